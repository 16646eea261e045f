//! The loop over a partition's chunks.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::{
    patience::Patience,
    reading::{Reading, Stop, Turn},
};
use crate::{
    brief::Brief,
    destination::{self, Chunk, Destination},
    report::Failure,
    trouble::Trouble,
};

/// How long nothing may succeed before the pod gives up and leaves the next try to its Job.
const LIMIT: Duration = Duration::from_secs(120);

/// Chunks that are written at the same time: while the destination finishes one, the next one is begun.
const WRITTEN: usize = 2;

/// Loads the chunks of a partition.
pub struct Worker<'a> {
    destination: &'a dyn Destination,
    partition: u32,
    reading: Reading<'a>,
    patience: Patience,
    /// Whether changes are applied to the old tables meanwhile: then it is too early to say what of them is to be carried.
    live: bool,
}

impl<'a> Worker<'a> {
    /// A worker that has done nothing yet.
    pub fn new(brief: &'a Brief, destination: &'a dyn Destination, partition: u32) -> Result<Self, Failure> {
        let reading = Reading::new(brief, destination, partition)?;
        Ok(Self { live: brief.is_live(), destination, partition, reading, patience: Patience::new(LIMIT) })
    }

    /// Works until its partition is loaded and what can be sealed and carried is, whatever passes by itself meanwhile.
    pub async fn work(&mut self) -> Result<(), Failure> {
        loop {
            let Err(trouble) = self.everything().await else { return Ok(()) };
            let failure = trouble.failure();
            if failure.permanent {
                return Err(failure);
            }
            self.reading.let_go(&trouble);
            let Some(pause) = self.patience.next() else { return Err(failure) };
            tracing::info!(partition = self.partition, reason = %failure.reason, "{}; trying again", failure.message);
            tokio::time::sleep(pause).await;
        }
    }

    async fn everything(&mut self) -> Result<(), Trouble> {
        self.reading.prepare().await?;
        self.load_partition(self.partition).await?;
        self.reading.measure(&mut self.patience).await?;
        self.patience.renew();
        // Nobody need keep the snapshot for this partition any more, least of all while keys are built.
        self.reading.end();
        self.finish().await?;
        self.help().await
    }

    /// Keys, then carried rows, of the tables that are complete: the swap's pod, which would do what is left, need not be awaited for it.
    async fn finish(&mut self) -> Result<(), Trouble> {
        self.destination.seal().await?;
        self.patience.renew();
        if !self.live {
            self.destination.carry_ahead().await?;
            self.patience.renew();
        }
        Ok(())
    }

    async fn load_partition(&mut self, partition: u32) -> Result<(), Trouble> {
        loop {
            let chunks = self.destination.pending(partition).await?;
            if chunks.is_empty() {
                return Ok(());
            }
            self.load(chunks).await?;
        }
    }

    /// A renewed snapshot empties tables whose other partitions are complete, and the Job starts no pod for those again: whoever is still here loads them.
    async fn help(&mut self) -> Result<(), Trouble> {
        let (load, _) = self.destination.progress().await?;
        if load.generation < 2 {
            return Ok(());
        }
        for partition in 0..load.partitions {
            if partition == self.partition || self.destination.pending(partition).await?.is_empty() {
                continue;
            }
            if self.reading.claim(partition).await? {
                tracing::info!(partition, "loading a partition that nobody works on");
                self.load_partition(partition).await?;
                self.reading.measure(&mut self.patience).await?;
                self.finish().await?;
            }
        }
        Ok(())
    }

    async fn load(&mut self, chunks: Vec<Chunk>) -> Result<(), Trouble> {
        let (to, turns) = mpsc::channel(1);
        match tokio::join!(self.reading.chunks(chunks, to), write(self.destination, turns, &mut self.patience)) {
            // The source's own words are better than the destination's about it.
            (Err(Stop::Torn(error)), Err(destination::Error::Source(_))) => Err(error.into()),
            (_, Err(error)) => Err(error.into()),
            (Err(Stop::Before(trouble)), Ok(())) => Err(trouble),
            // Somebody else had loaded the chunk; what became of reading it again does not matter.
            (Ok(()) | Err(Stop::Torn(_)), Ok(())) => Ok(()),
        }
    }
}

/// Writes chunks as they come, until there are no more.
async fn write(destination: &dyn Destination, mut turns: mpsc::Receiver<Turn>, patience: &mut Patience) -> Result<(), destination::Error> {
    let written = stream::poll_fn(|context| turns.poll_recv(context)).map(async |Turn { table, chunk, generation, rows }| {
        let loaded = destination.load_chunk(&table, &chunk, generation, rows).await?;
        tracing::debug!(table = %table.source, chunk = chunk.number, rows = loaded.rows, bytes = loaded.bytes, "chunk loaded");
        Ok(())
    });
    written
        .buffered(WRITTEN)
        .try_for_each(|()| {
            patience.renew();
            async { Ok(()) }
        })
        .await
}
