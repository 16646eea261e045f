//! The body of a snapshot Job's pod: loads the chunks of one partition.

mod patience;
mod worker;

use tokio::signal::unix::{SignalKind, signal};

use crate::{brief::Brief, destination, report::Failure, trouble::Trouble};

pub use worker::Worker;

/// Loads a partition, then builds the keys of tables that are complete. Returns early when the pod is told to end; a chunk in hand is then not kept.
pub async fn run(brief: &Brief, partition: u32) -> Result<(), Failure> {
    let ended = |why: String| Failure { reason: "Terminated".into(), message: why, permanent: false };
    let mut terminated = signal(SignalKind::terminate()).map_err(|error| ended(error.to_string()))?;
    let destination = destination::open(brief).await.map_err(|error| Trouble::from(error).failure())?;
    let mut worker = Worker::new(brief, &*destination, partition)?;
    tokio::select! {
        done = worker.work() => done,
        _ = terminated.recv() => Err(ended("the pod was told to end".into())),
    }
}
