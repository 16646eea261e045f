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
    connect::{SESSION_OPTIONS, VALUE_REFUSED, read_secret},
};

/// Bytes asked of the socket at once. Rows are slices of these buffers and keep them alive.
const READ_SIZE: usize = 128 * 1024;
/// A buffer with this much room left is read into further. A new one for each read would be kept alive whole by the few rows that a read may bring:
/// a batch of 16 MB then held hundreds.
const WORTH_READING: usize = 16 * 1024;
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
    pub async fn open(to: &Connection, application_name: &str) -> Result<Self, WireError> {
        let limit = Duration::from_millis(to.connect_timeout_millis);
        match tokio::time::timeout(limit, Self::open_untimed(to, application_name)).await {
            Ok(result) => result,
            Err(_) => Err(WireError::Secret(ConnectError::Timeout {
                peer: to.peer.clone(),
                host: to.host.clone(),
                port: to.port,
                seconds: limit.as_secs(),
            })),
        }
    }

    async fn open_untimed(to: &Connection, application_name: &str) -> Result<Self, WireError> {
        let (transport, binding) = transport(to).await?;
        let input = BytesMut::with_capacity(READ_SIZE);
        let mut link = Self { transport, input, peer: to.peer.clone(), host: to.host.clone(), port: to.port, server_major: 0 };
        let mut out = BytesMut::new();
        let parameters = [
            ("user", to.user.as_str()),
            ("database", &to.database),
            ("replication", "database"),
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
                b'Z' => return Ok(link),
                _ => {}
            }
        }
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
