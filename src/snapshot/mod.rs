//! The body of a snapshot Job's pod: loads the chunks of one partition.

mod patience;
mod reading;
mod worker;

use crate::{brief::Brief, destination, report::Failure, trouble::Trouble};

pub use worker::Worker;

/// Loads a partition, then builds the keys of tables that are complete. A chunk in hand when the pod ends is not kept.
pub async fn run(brief: &Brief, partition: u32) -> Result<(), Failure> {
    let destination = destination::open(brief).await.map_err(|error| Trouble::from(error).failure())?;
    Worker::new(brief, &*destination, partition)?.work().await
}
