//! The stream of changes: a task that reads ahead, within bounds, and reports to the server however slow the applier is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{sync::mpsc, task::JoinHandle, time::MissedTickBehavior};

use super::{
    WireError,
    link::{Link, Message, server_error},
};
use crate::postgres::Lsn;

/// Read-ahead: so many pieces of what one read of the socket brought (128 KiB each, or a message if that is larger).
const QUEUE: usize = 32;
/// A server gives up on a client that says nothing for `wal_sender_timeout` (60 s); asking for an answer each time also tells where an idle source is.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// 2000-01-01, where PostgreSQL's clock begins, in seconds of Unix time.
const EPOCH_SECONDS: u64 = 946_684_800;

/// What the server sends while it streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message of the output plugin, and the position of the WAL record that it tells of.
    Data(Lsn, Bytes),
    /// Everything that committed before this position was sent.
    Keepalive(Lsn),
}

/// Frames that came together, in order.
pub type Received = Result<Vec<Frame>, WireError>;

/// A running stream. Dropping it ends the connection.
pub struct ReplicationStream {
    frames: mpsc::Receiver<Received>,
    status: StatusHandle,
    task: JoinHandle<()>,
}

/// Tells the server what is durable here.
#[derive(Clone, Debug)]
pub struct StatusHandle {
    flushed: Arc<AtomicU64>,
}

impl StatusHandle {
    /// Everything before `position` is durable: the server may forget it. Never goes back.
    pub fn flushed(&self, position: Lsn) {
        self.flushed.fetch_max(position.0, Ordering::AcqRel);
    }
}

impl ReplicationStream {
    pub(super) fn spawn(link: Link, from: Lsn) -> Self {
        let flushed = Arc::new(AtomicU64::new(from.0));
        let (sender, frames) = mpsc::channel(QUEUE);
        let reader = Reader { link, flushed: flushed.clone(), received: from.0, ended: None };
        let task = tokio::spawn(reader.run(sender));
        Self { frames, status: StatusHandle { flushed }, task }
    }

    /// A handle to report durable positions.
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// What came next. Can be dropped at any moment without loss. After an error there is nothing more.
    pub async fn next(&mut self) -> Received {
        self.frames.recv().await.unwrap_or_else(|| Err(WireError::Protocol("the stream has ended".into())))
    }
}

impl Drop for ReplicationStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Reader {
    link: Link,
    flushed: Arc<AtomicU64>,
    /// End of what was received, for the status' "written".
    received: u64,
    ended: Option<WireError>,
}

impl Reader {
    async fn run(mut self, queue: mpsc::Sender<Received>) {
        if let Err(error) = self.forward(&queue).await {
            // Nobody listens any more if this fails.
            let _ = queue.send(Err(error)).await;
        }
    }

    async fn forward(&mut self, queue: &mpsc::Sender<Received>) -> Result<(), WireError> {
        let mut tick = tokio::time::interval(STATUS_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ready: Option<Vec<Frame>> = None;
        let mut reported = 0;
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => {
                    reported = self.send_status(true).await?;
                }
                permit = queue.reserve(), if ready.is_some() => match permit {
                    Ok(permit) => { if let Some(frames) = ready.take() { permit.send(Ok(frames)); } }
                    Err(_) => return Ok(()),
                },
                filled = self.link.fill(), if ready.is_none() => {
                    filled?;
                    let (frames, asked) = self.take_buffered();
                    if asked || self.flushed.load(Ordering::Acquire) > reported {
                        reported = self.send_status(false).await?;
                    }
                    ready = (!frames.is_empty()).then_some(frames);
                }
            }
            if ready.is_none()
                && let Some(error) = self.ended.take()
            {
                return Err(error);
            }
        }
    }

    /// All whole messages in the buffer, and whether the server wants an answer. An error is kept until what came before it was handed on.
    fn take_buffered(&mut self) -> (Vec<Frame>, bool) {
        let (mut frames, mut asked) = (Vec::new(), false);
        while self.ended.is_none() {
            match self.link.buffered() {
                Ok(None) => break,
                Ok(Some(message)) => match self.understand(message) {
                    Ok(Some((frame, wants_answer))) => {
                        asked |= wants_answer;
                        frames.push(frame);
                    }
                    Ok(None) => {}
                    Err(error) => self.ended = Some(error),
                },
                Err(error) => self.ended = Some(error),
            }
        }
        (frames, asked)
    }

    fn understand(&mut self, message: Message) -> Result<Option<(Frame, bool)>, WireError> {
        let mut body = message.body;
        match message.tag {
            b'd' => {}
            b'E' => return Err(server_error(&body)),
            b'c' | b'C' | b'Z' => return Err(WireError::Protocol("the server ended the stream".into())),
            _ => return Ok(None),
        }
        let malformed = || WireError::Protocol("a malformed replication message".into());
        match body.try_get_u8().map_err(|_| malformed())? {
            // XLogData: start, end, time, data
            b'w' if body.len() >= 24 => {
                let start = body.get_u64();
                self.received = self.received.max(start);
                body.advance(16);
                Ok(Some((Frame::Data(Lsn(start), body), false)))
            }
            // Keepalive: end, time, whether to answer
            b'k' if body.len() >= 17 => {
                let end = body.get_u64();
                body.advance(8);
                self.received = self.received.max(end);
                Ok(Some((Frame::Keepalive(Lsn(end)), body.get_u8() == 1)))
            }
            _ => Err(malformed()),
        }
    }

    /// PostgreSQL docs, "Streaming Replication Protocol", Standby status update. Returns the position that it reports as flushed.
    async fn send_status(&mut self, ask: bool) -> Result<u64, WireError> {
        let flushed = self.flushed.load(Ordering::Acquire);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros = now.saturating_sub(Duration::from_secs(EPOCH_SECONDS)).as_micros();
        let mut out = BytesMut::with_capacity(39);
        out.put_u8(b'd');
        out.put_u32(4 + 34);
        out.put_u8(b'r');
        out.put_u64(self.received.max(flushed));
        out.put_u64(flushed);
        out.put_u64(flushed);
        out.put_u64(u64::try_from(micros).unwrap_or(0));
        out.put_u8(u8::from(ask));
        self.link.write(&out).await?;
        Ok(flushed)
    }
}
