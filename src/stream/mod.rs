//! The pipeline's change stream: reads transactions, folds their changes, has them applied exactly once.
//!
//! A batch ends at a transaction's end. What a batch holds in memory is bounded: a large transaction is handed to the destination in pieces, all of
//! which become visible with its end.

pub mod advise;
mod batch;
pub mod bound;
mod catalog;
pub mod fold;
pub mod lag;
mod monitor;
mod relation;
mod session;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    brief::Brief,
    destination::Destination,
    report::{self, Failure},
};
use advise::{Next, StreamError, advise};
use bound::Bound;
use lag::Oldest;

/// What the change stream tells of itself, for the pipeline's report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// Slot, checkpoint and lag.
    pub stream: report::Stream,
    /// Why nothing is applied just now, if so. It is tried again.
    pub failure: Option<Failure>,
    /// Of what was received and is not applied. It outlives a lost connection: the change is still not applied.
    pub oldest: Option<Oldest>,
}

/// Why the change stream ended for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Shutdown,
    /// A newer epoch has begun.
    Superseded(u32),
    /// Another pod of this epoch has taken over.
    Displaced,
}

/// What the source's catalog tells of the tables and the stream does not, by their numbers: see [`present`](crate::source::present).
type Drift = BTreeMap<u32, BTreeSet<String>>;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Streams until it is told to stop or must make way for others. Every error is tried again, by what [`advise`] says of it.
///
/// May be dropped or killed at any moment: what was not committed at the destination is read again.
pub async fn run(
    brief: &Brief,
    destination: &dyn Destination,
    health: &watch::Sender<Health>,
    bound: Bound,
    shutdown: CancellationToken,
) -> Ended {
    health.send_modify(|h| h.stream.slot = brief.slot());
    let (found, noticed) = watch::channel(Drift::new());
    tokio::select! {
        () = shutdown.cancelled() => Ended::Shutdown,
        () = monitor::watch(brief, destination, health, &found) => Ended::Shutdown,
        ended = keep_streaming(brief, destination, health, &bound, noticed) => ended,
    }
}

async fn keep_streaming(
    brief: &Brief,
    destination: &dyn Destination,
    health: &watch::Sender<Health>,
    bound: &Bound,
    noticed: watch::Receiver<Drift>,
) -> Ended {
    let mut pause = FIRST_PAUSE;
    let mut to_park = Vec::new();
    loop {
        let begun = Instant::now();
        let Err(error) = session::stream(brief, destination, health, bound, &mut to_park, noticed.clone()).await;
        let advice = advise(error);
        // A session that lived for a while has shown that things work.
        if begun.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        health.send_modify(|h| {
            h.stream.connected = false;
            h.stream.slot_lost = h.stream.slot_lost.take().or(advice.slot_lost.clone());
            h.failure = advice.failure.clone();
        });
        if let Some(failure) = &advice.failure {
            tracing::warn!(reason = %failure.reason, "change stream: {}", failure.message);
        }
        match advice.next {
            Next::End(ended) => return ended,
            Next::Park(table, why) => to_park.push((table, why)),
            Next::Wait(time) => tokio::time::sleep(time).await,
            Next::Retry => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// A result that is only ever an error.
pub(crate) type Never = std::convert::Infallible;

/// What goes wrong in the change stream.
pub(crate) type Streamed<T> = Result<T, StreamError>;
