//! Our own end of a logical replication connection: PostgreSQL docs, "Streaming Replication Protocol". I/O.
//!
//! tokio-postgres does not speak it. Framing of what we send, passwords and SCRAM come from the crate `postgres-protocol`.

mod link;
mod stream;
mod transport;

use bytes::{Buf, Bytes};

pub use stream::{Frame, Received, ReplicationStream, StatusHandle};

use crate::postgres::{ConnectError, Connection, Lsn, connect::NO_LATER_TIMEOUTS, ident};
use link::Link;

/// What went wrong on a replication connection.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A Secret or a certificate cannot be used.
    #[error(transparent)]
    Secret(#[from] ConnectError),
    /// No connection, or it ended.
    #[error("Peer {peer}: the replication connection to {host}:{port} failed: {cause}")]
    Io {
        /// Name of the Peer.
        peer: String,
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// The system's words.
        cause: String,
    },
    /// The server refused.
    #[error("{message} (SQLSTATE {sqlstate}){}", .hint.as_ref().map(|h| format!(". {h}")).unwrap_or_default())]
    Server {
        /// SQLSTATE.
        sqlstate: String,
        /// Its words, without the detail, which may hold a row's values.
        message: String,
        /// Its hint.
        hint: Option<String>,
    },
    /// The slot is gone or can no longer be read: changes are missing, and only a resync brings them back.
    #[error("replication slot {slot:?} is lost: {cause}")]
    SlotLost {
        /// The slot.
        slot: String,
        /// The server's words.
        cause: String,
    },
    /// Another session reads from the slot.
    #[error("replication slot {slot:?} is in use: {cause}")]
    SlotActive {
        /// The slot.
        slot: String,
        /// The server's words.
        cause: String,
    },
    /// The server sent something that makes no sense.
    #[error("the server sent what is not understood: {0}")]
    Protocol(String),
}

/// A slot just created, and the snapshot that was exported with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Transactions whose commit record starts at or after this point are in the slot's stream; all others are in the snapshot.
    pub consistent_point: Lsn,
    /// Name to import with `SET TRANSACTION SNAPSHOT`. It lives until the session's next command or end.
    pub snapshot: String,
}

/// A replication session that executes commands. Dropping it closes the connection.
///
/// A call that is dropped half way leaves the session of no use: drop it too.
pub struct ReplicationSession {
    link: Link,
}

impl ReplicationSession {
    /// Connects with `replication=database`.
    pub async fn connect(to: &Connection, application_name: &str) -> Result<Self, WireError> {
        let mut session = Self { link: Link::open(to, application_name).await? };
        session.simple_query(NO_LATER_TIMEOUTS).await?;
        Ok(session)
    }

    /// The server's major version.
    pub fn server_major(&self) -> u32 {
        self.link.server_major
    }

    /// Runs SQL or a replication command and returns all rows as texts.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, WireError> {
        self.link.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            let message = self.link.read().await?;
            match message.tag {
                b'D' => rows.push(data_row(message.body).ok_or_else(|| WireError::Protocol("a malformed row".into()))?),
                b'E' => refused = Some(link::server_error(&message.body)),
                b'Z' => return refused.map_or(Ok(rows), Err),
                b'G' | b'W' | b'H' => return Err(WireError::Protocol("the command began a copy".into())),
                _ => {}
            }
        }
    }

    /// Creates a slot and exports its snapshot. Waits for all transactions that are running.
    pub async fn create_slot(&mut self, name: &str, temporary: bool) -> Result<CreatedSlot, WireError> {
        // Version 15 brought the form with options; PostgreSQL docs, "CREATE_REPLICATION_SLOT".
        let export = if self.link.server_major >= 15 { "(SNAPSHOT 'export')" } else { "EXPORT_SNAPSHOT" };
        let temporary = if temporary { "TEMPORARY " } else { "" };
        let rows = self.simple_query(&format!("CREATE_REPLICATION_SLOT {} {temporary}LOGICAL pgoutput {export}", ident(name))).await?;
        let wrong = || WireError::Protocol("an answer to CREATE_REPLICATION_SLOT without consistent point or snapshot".into());
        match rows.into_iter().next().unwrap_or_default().as_slice() {
            [_, Some(point), Some(snapshot), ..] => {
                Ok(CreatedSlot { consistent_point: point.parse().map_err(|_| wrong())?, snapshot: snapshot.clone() })
            }
            _ => Err(wrong()),
        }
    }

    /// Drops a slot, unless it is in use.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), WireError> {
        self.simple_query(&format!("DROP_REPLICATION_SLOT {}", ident(name))).await.map(drop)
    }

    /// Begins to stream the changes of `publication` from `from` on.
    pub async fn start(mut self, slot: &str, from: Lsn, publication: &str) -> Result<ReplicationStream, WireError> {
        // The option's value is a list of identifiers inside of a string constant.
        let publications = crate::postgres::ident(publication).replace('\'', "''");
        let command =
            format!("START_REPLICATION SLOT {} LOGICAL {from} (proto_version '1', publication_names '{publications}')", ident(slot));
        self.link.send_query(&command).await?;
        loop {
            let message = self.link.read().await?;
            match message.tag {
                b'W' => return Ok(ReplicationStream::spawn(self.link, from)),
                b'E' => return Err(start_error(slot, link::server_error(&message.body))),
                b'Z' => return Err(WireError::Protocol("START_REPLICATION ended at once".into())),
                _ => {}
            }
        }
    }
}

/// What a refusal of START_REPLICATION means for the slot.
fn start_error(slot: &str, error: WireError) -> WireError {
    let WireError::Server { sqlstate, message, .. } = &error else { return error };
    let (slot, cause) = (slot.to_string(), message.clone());
    match sqlstate.as_str() {
        // undefined_object; undefined_file (its WAL was removed). An invalidated slot is 55000, but so is a wal_level too low.
        "42704" | "58P01" => WireError::SlotLost { slot, cause },
        "55006" => WireError::SlotActive { slot, cause },
        _ => error,
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

    #[test]
    fn a_refused_start_tells_lost_slots_from_busy_ones() {
        let error = |sqlstate: &str| start_error("s", WireError::Server { sqlstate: sqlstate.into(), message: "words".into(), hint: None });
        for lost in ["42704", "58P01"] {
            assert!(matches!(error(lost), WireError::SlotLost { .. }), "{lost}");
        }
        assert!(matches!(error("55006"), WireError::SlotActive { .. }));
        for other in ["53300", "55000"] {
            assert!(matches!(error(other), WireError::Server { .. }), "{other}");
        }
    }

    #[test]
    fn malformed_rows_are_refused() {
        assert_eq!(data_row(Bytes::from_static(&[0, 2, 0, 0, 0, 1, b'x', 255, 255, 255, 255])), Some(vec![Some("x".into()), None]));
        for wrong in [&[][..], &[0], &[0, 1], &[0, 1, 0, 0, 0, 9, b'x'], &[0, 1, 127, 255, 255, 255]] {
            assert_eq!(data_row(Bytes::copy_from_slice(wrong)), None);
        }
    }
}
