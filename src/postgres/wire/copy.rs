//! A session that reads `COPY … TO STDOUT`.
//!
//! A row is a message of its own there. Rows are copied from the socket's buffer straight into the piece that is passed on; a driver that makes an
//! object of each costs more than half as much processor time again (bench/README.md).

use bytes::BytesMut;

use super::{
    WireError,
    link::{Link, server_error},
};
use crate::postgres::Connection;

/// An ordinary session. Dropping it closes the connection; a call that is dropped half way leaves it of no use.
pub struct CopySession {
    link: Link,
}

/// A COPY that is being read. Dropped before its end, its session is of no further use.
pub struct CopyRows<'a> {
    link: &'a mut Link,
}

impl CopySession {
    /// Connects.
    pub async fn connect(to: &Connection, application_name: &str) -> Result<Self, WireError> {
        Ok(Self { link: Link::open(to, application_name, false).await? })
    }

    /// Runs SQL and returns all rows as texts.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, WireError> {
        self.link.query(sql).await
    }

    /// Begins a `COPY … TO STDOUT`.
    pub async fn copy_out(&mut self, sql: &str) -> Result<CopyRows<'_>, WireError> {
        self.link.send_query(sql).await?;
        loop {
            let message = self.link.read().await?;
            match message.tag {
                b'H' => return Ok(CopyRows { link: &mut self.link }),
                b'E' => return Err(server_error(&message.body)),
                b'Z' => return Err(WireError::Protocol("the statement was no COPY TO STDOUT".into())),
                _ => {}
            }
        }
    }
}

impl CopyRows<'_> {
    /// Appends whole rows to `piece` until it has at least `enough` bytes. False at the end, after which the session serves again.
    pub async fn read(&mut self, piece: &mut BytesMut, enough: usize) -> Result<bool, WireError> {
        loop {
            self.link.take_copy_data(piece, enough);
            if piece.len() >= enough {
                return Ok(true);
            }
            match self.link.buffered()? {
                None => self.link.fill().await?,
                Some(message) => match message.tag {
                    // Whole rows are taken above.
                    b'd' => return Err(WireError::Protocol("a row where none may be".into())),
                    b'E' => return Err(server_error(&message.body)),
                    b'Z' => return Ok(false),
                    // CopyDone and CommandComplete come before the end; notices may come at any time.
                    _ => {}
                },
            }
        }
    }
}
