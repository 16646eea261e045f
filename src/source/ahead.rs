//! The rows that a reader may be ahead of the writer: bounded in bytes, since a single row may be large.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes that the writer has not done with, about three pieces. One that is larger passes alone, and nothing more is read before the writer is done with it.
const BYTES: u32 = 1 << 20;
/// Pieces between the two; what bounds memory is [`BYTES`].
const PIECES: usize = 8;

/// A piece, and the room that it takes.
type Piece = Result<(Bytes, OwnedSemaphorePermit), String>;

/// The reader's end.
pub struct Ahead {
    to: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
}

/// The two ends. Who asks for the next piece is done with the last one.
pub fn ahead() -> (Ahead, BoxStream<'static, Result<Bytes, String>>) {
    let (to, pieces) = mpsc::channel(PIECES);
    let pieces = futures::stream::unfold((pieces, None::<OwnedSemaphorePermit>), |(mut pieces, at_work)| async move {
        drop(at_work);
        match pieces.recv().await? {
            Ok((piece, room)) => Some((Ok(piece), (pieces, Some(room)))),
            Err(error) => Some((Err(error), (pieces, None))),
        }
    });
    (Ahead { to, room: Arc::new(Semaphore::new(BYTES as usize)) }, pieces.boxed())
}

impl Ahead {
    /// Passes a piece on once there is room. False if nobody listens any more.
    pub async fn send(&self, piece: Bytes) -> bool {
        let size = u32::try_from(piece.len()).unwrap_or(BYTES).min(BYTES);
        let Some(room) = self.room(size).await else { return false };
        self.to.send(Ok((piece, room))).await.is_ok() && (size < BYTES || self.room(BYTES).await.is_some())
    }

    /// Tells the writer that this is not the end.
    pub async fn fail(&self, why: String) {
        // Nobody listens any more if this fails.
        let _ = self.to.send(Err(why)).await;
    }

    async fn room(&self, size: u32) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            () = self.to.closed() => None,
            room = self.room.clone().acquire_many_owned(size) => room.ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_large_piece_is_alone_until_the_writer_is_done_with_it() {
        let (ahead, mut pieces) = ahead();
        let large = || Bytes::from(vec![0; 2 * BYTES as usize]);
        assert!(ahead.send(Bytes::from_static(b"small")).await);
        let mut sending = Box::pin(ahead.send(large()));
        assert!((&mut sending).now_or_never().is_none());
        assert_eq!(pieces.next().await.unwrap().unwrap(), "small");
        assert!((&mut sending).now_or_never().is_none(), "the small one is still being written");
        let taken = {
            let mut next = pieces.next();
            assert!((&mut next).now_or_never().is_none());
            assert!((&mut sending).now_or_never().is_none());
            next.await.unwrap().unwrap()
        };
        assert_eq!(taken.len(), 2 * BYTES as usize);
        assert!((&mut sending).now_or_never().is_none(), "the reader waits while it is being written");
        assert!(pieces.next().now_or_never().is_none());
        assert!(sending.await);
    }

    #[tokio::test]
    async fn a_reader_learns_that_nobody_listens() {
        let (ahead, pieces) = ahead();
        let mut sending = Box::pin(ahead.send(Bytes::from(vec![0; BYTES as usize])));
        assert!((&mut sending).now_or_never().is_none());
        drop(pieces);
        assert!(!sending.await);
    }
}
