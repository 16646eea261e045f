//! A connection's bytes: TLS, startup, passwords, and messages out of a large buffer.

use std::{io, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::frontend,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    WireError,
    transport::{Binding, Transport, transport},
};
use crate::postgres::{
    ConnectError, Connection,
    connect::{NO_LATER_TIMEOUTS, SESSION_OPTIONS, VALUE_REFUSED, read_secret},
};

/// Bytes asked of the socket at once. Rows are slices of these buffers and keep them alive.
const READ_SIZE: usize = 128 * 1024;
/// A buffer with this much room left is read into further. A new one for each read would be kept alive whole by the few rows that a read may bring:
/// a batch of 16 MB then held hundreds.
const WORTH_READING: usize = 16 * 1024;
/// Rows that took more of the buffer than this leave none of it.
const LARGE: usize = 1 << 20;
/// A message cannot be longer: a field has at most 1 GB, and a length beyond that is not from PostgreSQL.
const MAX_MESSAGE: usize = 0x7fff_ffff;

/// One message from the server, without its length.
pub(super) struct Message {
    pub tag: u8,
    pub body: Bytes,
}

/// A connection after startup.
pub(super) struct Link {
    transport: Box<dyn Transport>,
    input: BytesMut,
    /// For messages.
    peer: String,
    host: String,
    port: u16,
    pub server_major: u32,
}

impl Link {
    /// Connects; with `replication`, as a session that also takes replication commands.
    pub async fn open(to: &Connection, application_name: &str, replication: bool) -> Result<Self, WireError> {
        let limit = Duration::from_millis(to.connect_timeout_millis);
        match tokio::time::timeout(limit, Self::open_untimed(to, application_name, replication)).await {
            Ok(result) => result,
            Err(_) => Err(WireError::Secret(ConnectError::Timeout {
                peer: to.peer.clone(),
                host: to.host.clone(),
                port: to.port,
                seconds: limit.as_secs(),
            })),
        }
    }

    async fn open_untimed(to: &Connection, application_name: &str, replication: bool) -> Result<Self, WireError> {
        let (transport, binding) = transport(to).await?;
        let input = BytesMut::with_capacity(READ_SIZE);
        let mut link = Self { transport, input, peer: to.peer.clone(), host: to.host.clone(), port: to.port, server_major: 0 };
        let mut out = BytesMut::new();
        let parameters = [
            ("user", to.user.as_str()),
            ("database", &to.database),
            ("replication", if replication { "database" } else { "false" }),
            ("application_name", application_name),
            ("client_encoding", "UTF8"),
            ("options", SESSION_OPTIONS),
        ];
        frontend::startup_message(parameters, &mut out).map_err(|e| link.io(e))?;
        link.write(&out).await?;
        link.authenticate(to, binding).await?;
        loop {
            let message = link.read().await?;
            match message.tag {
                b'S' => link.note_parameter(&message.body),
                b'E' => return Err(server_error(&message.body)),
                b'Z' => break,
                _ => {}
            }
        }
        link.query(NO_LATER_TIMEOUTS).await?;
        Ok(link)
    }

    fn note_parameter(&mut self, body: &[u8]) {
        let mut parts = body.split(|b| *b == 0).map(String::from_utf8_lossy);
        if parts.next().as_deref() == Some("server_version") {
            let version = parts.next().unwrap_or_default();
            self.server_major = version.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0);
        }
    }

    /// Answers what the server asks; PostgreSQL docs, "Message Flow", Start-up.
    async fn authenticate(&mut self, to: &Connection, binding: Binding) -> Result<(), WireError> {
        loop {
            let mut body = self.authentication().await?;
            let kind = body.try_get_i32().map_err(|_| malformed("authentication"))?;
            let mut out = BytesMut::new();
            match kind {
                0 => return Ok(()),
                3 => frontend::password_message(password(to)?.as_bytes(), &mut out).map_err(|e| self.io(e))?,
                5 => {
                    let salt = body.get(..4).and_then(|s| s.try_into().ok()).ok_or_else(|| malformed("authentication"))?;
                    let hash = md5_hash(to.user.as_bytes(), password(to)?.as_bytes(), salt);
                    frontend::password_message(hash.as_bytes(), &mut out).map_err(|e| self.io(e))?;
                }
                10 => {
                    self.scram(password(to)?.as_bytes(), &body, binding.clone()).await?;
                    continue;
                }
                other => {
                    return Err(WireError::Protocol(format!(
                        "authentication method {other}; Peer {:?} needs scram-sha-256, md5 or password in pg_hba.conf",
                        self.peer
                    )));
                }
            }
            self.write(&out).await?;
        }
    }

    async fn scram(&mut self, password: &[u8], mechanisms: &[u8], offered: Binding) -> Result<(), WireError> {
        let has = |name: &str| mechanisms.split(|b| *b == 0).any(|m| m == name.as_bytes());
        let (mechanism, binding) = match offered {
            Some(hash) if has(SCRAM_SHA_256_PLUS) => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
            // Says "I could, but you did not offer": a server that did offer then knows that somebody meddles.
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if !has(mechanism) {
            return Err(WireError::Protocol("no SASL mechanism that is known here".into()));
        }
        let mut scram = ScramSha256::new(password, binding);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out).map_err(|e| self.io(e))?;
        self.write(&out).await?;
        let challenge = self.sasl_step(11).await?;
        scram.update(&challenge).map_err(|e| WireError::Protocol(e.to_string()))?;
        out.clear();
        frontend::sasl_response(scram.message(), &mut out).map_err(|e| self.io(e))?;
        self.write(&out).await?;
        let proof = self.sasl_step(12).await?;
        scram.finish(&proof).map_err(|e| WireError::Protocol(e.to_string()))
    }

    async fn sasl_step(&mut self, wanted: i32) -> Result<Bytes, WireError> {
        let mut body = self.authentication().await?;
        match body.try_get_i32() {
            Ok(kind) if kind == wanted => Ok(body),
            _ => Err(malformed("authentication")),
        }
    }

    async fn authentication(&mut self) -> Result<Bytes, WireError> {
        loop {
            let message = self.read().await?;
            match message.tag {
                b'R' => return Ok(message.body),
                b'E' => return Err(server_error(&message.body)),
                b'N' | b'v' => {}
                _ => return Err(malformed("startup")),
            }
        }
    }

    pub async fn send_query(&mut self, sql: &str) -> Result<(), WireError> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(|e| self.io(e))?;
        self.write(&out).await
    }

    /// Runs SQL or a replication command and returns all rows as texts.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, WireError> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            let message = self.read().await?;
            match message.tag {
                b'D' => rows.push(data_row(message.body).ok_or_else(|| malformed("row"))?),
                b'E' => refused = Some(server_error(&message.body)),
                b'Z' => return refused.map_or(Ok(rows), Err),
                b'G' | b'W' | b'H' => return Err(WireError::Protocol("the command began a copy".into())),
                _ => {}
            }
        }
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.transport.write_all(bytes).await.map_err(|e| self.io(e))?;
        self.transport.flush().await.map_err(|e| self.io(e))
    }

    /// The next message.
    pub async fn read(&mut self) -> Result<Message, WireError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// Reads what the socket has. Can be dropped at any moment without loss.
    pub async fn fill(&mut self) -> Result<(), WireError> {
        if self.input.capacity() - self.input.len() < WORTH_READING {
            self.input.reserve(READ_SIZE);
        }
        match self.transport.read_buf(&mut self.input).await {
            Ok(0) => Err(self.io(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"))),
            Ok(_) => Ok(()),
            Err(error) => Err(self.io(error)),
        }
    }

    /// Appends the contents of whole CopyData messages in the buffer to `piece`, until it has `enough` bytes or something else comes.
    pub fn take_copy_data(&mut self, piece: &mut BytesMut, enough: usize) {
        let before = piece.len();
        copy_data(&mut self.input, piece, enough);
        if piece.len() - before > LARGE {
            // The buffer of a large row would stay as large.
            let mut rest = BytesMut::with_capacity(self.input.len().max(READ_SIZE));
            rest.extend_from_slice(&self.input);
            self.input = rest;
        }
    }

    /// The next message if it is whole in the buffer.
    pub fn buffered(&mut self) -> Result<Option<Message>, WireError> {
        let Some(header) = self.input.get(..5) else { return Ok(None) };
        let (tag, length) = (header[0], u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize);
        if !(4..=MAX_MESSAGE).contains(&length) {
            return Err(WireError::Protocol(format!("a message of {length} bytes")));
        }
        if self.input.len() < length + 1 {
            self.input.reserve(length + 1 - self.input.len());
            return Ok(None);
        }
        let mut body = self.input.split_to(length + 1).freeze();
        body.advance(5);
        Ok(Some(Message { tag, body }))
    }

    fn io(&self, error: io::Error) -> WireError {
        WireError::Io { peer: self.peer.clone(), host: self.host.clone(), port: self.port, cause: error.to_string() }
    }
}

fn malformed(what: &str) -> WireError {
    WireError::Protocol(format!("a malformed {what} message"))
}

fn password(to: &Connection) -> Result<String, WireError> {
    match &to.password {
        Some(file) => Ok(read_secret(to, file)?),
        None => Err(WireError::Protocol(format!("Peer {:?} has no password but the server wants one; set passwordSecretRef", to.peer))),
    }
}

/// An ErrorResponse; PostgreSQL docs, "Error and Notice Message Fields".
pub(super) fn server_error(body: &[u8]) -> WireError {
    let (mut sqlstate, mut message, mut hint) = (String::new(), String::new(), None);
    for field in body.split(|b| *b == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => sqlstate = text,
            b'M' => message = text,
            b'H' => hint = Some(text),
            _ => {}
        }
    }
    if sqlstate.starts_with("22") {
        (message, hint) = (VALUE_REFUSED.into(), None);
    }
    WireError::Server { sqlstate, message, hint }
}

/// CopyData is a `d`, a length that counts itself, and the data; PostgreSQL docs, "Message Formats".
fn copy_data(input: &mut BytesMut, piece: &mut BytesMut, enough: usize) {
    while piece.len() < enough
        && let Some(&[b'd', a, b, c, d]) = input.first_chunk()
        && let end = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_add(1)
        && let Some(data) = input.get(5..end)
    {
        piece.extend_from_slice(data);
        input.advance(end);
    }
}

fn data_row(mut body: Bytes) -> Option<Vec<Option<String>>> {
    let fields = body.try_get_u16().ok()?;
    let mut row = Vec::with_capacity(usize::from(fields));
    for _ in 0..fields {
        let length = body.try_get_i32().ok()?;
        if length < 0 {
            row.push(None);
            continue;
        }
        let length = usize::try_from(length).ok()?;
        if body.remaining() < length {
            return None;
        }
        row.push(Some(String::from_utf8_lossy(&body.split_to(length)).into_owned()));
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_rows_are_refused() {
        assert_eq!(data_row(Bytes::from_static(&[0, 2, 0, 0, 0, 1, b'x', 255, 255, 255, 255])), Some(vec![Some("x".into()), None]));
        for wrong in [&[][..], &[0], &[0, 1], &[0, 1, 0, 0, 0, 9, b'x'], &[0, 1, 127, 255, 255, 255]] {
            assert_eq!(data_row(Bytes::copy_from_slice(wrong)), None);
        }
    }

    proptest! {
        #[test]
        fn copied_rows_come_whole_and_in_order_however_the_socket_cuts_them(
            rows in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40),
            read in 1_usize..50,
            enough in 1_usize..200,
        ) {
            let mut wire = Vec::new();
            for row in &rows {
                wire.push(b'd');
                wire.extend_from_slice(&(row.len() as u32 + 4).to_be_bytes());
                wire.extend_from_slice(row);
            }
            wire.extend_from_slice(b"c\0\0\0\x04");
            let (mut input, mut piece, mut copied, mut ends) = (BytesMut::new(), BytesMut::new(), Vec::new(), Vec::new());
            for cut in wire.chunks(read) {
                input.extend_from_slice(cut);
                loop {
                    copy_data(&mut input, &mut piece, enough);
                    if piece.len() < enough {
                        break;
                    }
                    copied.extend_from_slice(&piece.split());
                    ends.push(copied.len());
                }
            }
            copied.extend_from_slice(&piece);
            prop_assert_eq!(&copied, &rows.concat());
            prop_assert_eq!(&input[..], b"c\0\0\0\x04");
            let row_ends: Vec<usize> = rows.iter().scan(0, |at, row| { *at += row.len(); Some(*at) }).collect();
            prop_assert!(ends.iter().all(|end| row_ends.contains(end)), "a piece ends with a row");
        }

        #[test]
        fn no_bytes_make_the_reader_of_copies_panic(bytes: Vec<u8>) {
            copy_data(&mut BytesMut::from(bytes.as_slice()), &mut BytesMut::new(), usize::MAX);
        }
    }
}
