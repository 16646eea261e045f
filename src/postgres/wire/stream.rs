//! The stream of changes: a task that reads ahead, within bounds, and reports to the server however slow the applier is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::MissedTickBehavior,
};

use super::{
    WireError,
    link::{Link, Message, server_error},
};
use crate::postgres::Lsn;

/// Read-ahead: so many pieces of what one read of the socket brought.
const QUEUE: usize = 32;
/// The same in bytes, with what is being worked on. A piece is 128 KiB, or one message if that is larger; one that is larger than this passes alone.
const QUEUE_BYTES: usize = 8 << 20;
/// A server gives up on a client that says nothing for `wal_sender_timeout` (60 s); asking for an answer each time also tells where an idle source is.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// 2000-01-01, where PostgreSQL's clock begins, in seconds of Unix time.
const EPOCH_SECONDS: u64 = 946_684_800;

/// What the server sends while it streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message of the output plugin, and the position of the WAL record that it tells of.
    Data(Lsn, Bytes),
    /// The server is alive.
    Keepalive {
        /// Everything that committed before this position was sent.
        end: Lsn,
        /// Whether it wants to hear what is durable here.
        answer: bool,
    },
}

/// Frames that came together, in order.
pub type Received = Result<Vec<Frame>, WireError>;

/// Frames that came together, and the room that they take until the next are asked for.
type Piece = Result<(Vec<Frame>, OwnedSemaphorePermit), WireError>;

/// A running stream. Dropping it ends the connection.
pub struct ReplicationStream {
    frames: mpsc::Receiver<Piece>,
    at_work: Option<OwnedSemaphorePermit>,
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
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        let reader = Reader { link, room, flushed: flushed.clone(), received: from.0, ended: None };
        let task = tokio::spawn(reader.run(sender));
        Self { frames, at_work: None, status: StatusHandle { flushed }, task }
    }

    /// A handle to report durable positions.
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// What came next. Can be dropped at any moment without loss. After an error there is nothing more.
    pub async fn next(&mut self) -> Received {
        self.at_work = None;
        let (frames, room) = self.frames.recv().await.unwrap_or_else(|| Err(WireError::Protocol("the stream has ended".into())))?;
        self.at_work = Some(room);
        Ok(frames)
    }
}

impl Drop for ReplicationStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Reader {
    link: Link,
    room: Arc<Semaphore>,
    flushed: Arc<AtomicU64>,
    /// End of what was received, for the status' "written".
    received: u64,
    ended: Option<WireError>,
}

/// What one read of the socket has completed.
struct Buffered {
    frames: Vec<Frame>,
    bytes: usize,
    /// Whether the server wants an answer.
    asked: bool,
}

/// Waits for a place in the queue and for room for so many bytes; `None` if nobody listens any more. Can be dropped at any moment.
async fn place<'a>(
    queue: &'a mpsc::Sender<Piece>,
    room: &Arc<Semaphore>,
    bytes: usize,
) -> Option<(mpsc::Permit<'a, Piece>, OwnedSemaphorePermit)> {
    let place = queue.reserve().await.ok()?;
    let bytes = u32::try_from(bytes.min(QUEUE_BYTES)).ok()?;
    tokio::select! {
        room = room.clone().acquire_many_owned(bytes) => room.ok().map(|room| (place, room)),
        () = queue.closed() => None,
    }
}

impl Reader {
    async fn run(mut self, queue: mpsc::Sender<Piece>) {
        if let Err(error) = self.forward(&queue).await {
            // Nobody listens any more if this fails.
            let _ = queue.send(Err(error)).await;
        }
    }

    async fn forward(&mut self, queue: &mpsc::Sender<Piece>) -> Result<(), WireError> {
        let mut tick = tokio::time::interval(STATUS_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ready: Option<Buffered> = None;
        let mut reported = 0;
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => {
                    reported = self.send_status(true).await?;
                }
                place = place(queue, &self.room, ready.as_ref().map_or(0, |r| r.bytes)), if ready.is_some() => match place {
                    Some((place, room)) => { if let Some(ready) = ready.take() { place.send(Ok((ready.frames, room))); } }
                    None => return Ok(()),
                },
                filled = self.link.fill(), if ready.is_none() => {
                    filled?;
                    let buffered = self.take_buffered();
                    if buffered.asked || self.flushed.load(Ordering::Acquire) > reported {
                        reported = self.send_status(false).await?;
                    }
                    ready = (!buffered.frames.is_empty()).then_some(buffered);
                }
            }
            if ready.is_none()
                && let Some(error) = self.ended.take()
            {
                return Err(error);
            }
        }
    }

    /// All whole messages in the buffer. An error is kept until what came before it was handed on.
    fn take_buffered(&mut self) -> Buffered {
        let mut taken = Buffered { frames: Vec::new(), bytes: 0, asked: false };
        while self.ended.is_none() {
            match self.link.buffered() {
                Ok(None) => break,
                Ok(Some(message)) => {
                    // What is passed over counts too: it shares a buffer with what is not.
                    taken.bytes += message.body.len();
                    match self.understand(message) {
                        Ok(Some((frame, asked))) => {
                            taken.asked |= asked;
                            taken.frames.push(frame);
                        }
                        Ok(None) => {}
                        Err(error) => self.ended = Some(error),
                    }
                }
                Err(error) => self.ended = Some(error),
            }
        }
        taken
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
                let answer = body.get_u8() == 1;
                Ok(Some((Frame::Keepalive { end: Lsn(end), answer }, answer)))
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
