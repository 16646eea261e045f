//! The loop over chunks.

use std::{collections::HashMap, time::Duration};

use super::patience::Patience;
use crate::{
    brief::Brief,
    destination::{Chunk, Destination},
    postgres::connect,
    report::{Failure, HeldSnapshot},
    source::{
        ahead::ahead,
        copy::Reader,
        pace::Pace,
        slot,
        snapshot::{self, Holder},
    },
    table::TableSchema,
    trouble::Trouble,
};

/// How long nothing may succeed before the pod gives up and leaves the next try to its Job.
const LIMIT: Duration = Duration::from_secs(120);

/// Loads chunks under the snapshot, of which it keeps a session of its own: once it has that, it does not need the pipeline pod.
pub struct Worker<'a> {
    brief: &'a Brief,
    destination: &'a dyn Destination,
    partition: u32,
    tables: HashMap<u32, TableSchema>,
    held: Option<Held>,
    /// The first generation that is of use.
    generation: u32,
    reader: Option<Reader>,
    pace: Pace,
    http: reqwest::Client,
    patience: Patience,
}

/// The snapshot in use.
struct Held {
    holder: Holder,
    generation: u32,
}

impl<'a> Worker<'a> {
    /// A worker that has done nothing yet.
    pub fn new(brief: &'a Brief, destination: &'a dyn Destination, partition: u32) -> Result<Self, Failure> {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().map_err(|error| Failure {
            reason: "HttpClient".into(),
            message: error.to_string(),
            permanent: false,
        })?;
        Ok(Self {
            brief,
            destination,
            partition,
            tables: HashMap::new(),
            held: None,
            generation: 0,
            reader: None,
            pace: Pace::new(None),
            http,
            patience: Patience::new(LIMIT),
        })
    }

    /// Works until its partition is loaded and what can be sealed and carried is, whatever passes by itself meanwhile.
    pub async fn work(&mut self) -> Result<(), Failure> {
        loop {
            let Err(trouble) = self.everything().await else { return Ok(()) };
            let failure = trouble.failure();
            if failure.permanent {
                return Err(failure);
            }
            self.let_go(&trouble);
            let Some(pause) = self.patience.next() else { return Err(failure) };
            tracing::info!(partition = self.partition, reason = %failure.reason, "{}; trying again", failure.message);
            tokio::time::sleep(pause).await;
        }
    }

    async fn everything(&mut self) -> Result<(), Trouble> {
        if self.tables.is_empty() {
            // Fewer partitions than workers: no more than one worker for each.
            let (load, _) = self.destination.progress().await?;
            let workers = u32::from(self.brief.snapshot.max_parallel_workers).min(load.partitions);
            self.pace = Pace::share(self.brief.snapshot.max_bytes_per_second.as_ref().map(|b| b.get()), workers);
            self.tables = self.destination.tables().await?.into_iter().map(|t| (t.schema.number, t.schema)).collect();
        }
        self.load_partition(self.partition).await?;
        // Nobody need keep the snapshot for this partition any more, least of all while keys are built. Who helps another takes it anew.
        (self.held, self.reader) = (None, None);
        self.finish().await?;
        self.help().await
    }

    /// Keys, then carried rows, of the tables that are complete: the swap's pod, which would do what is left, need not be awaited for it.
    async fn finish(&mut self) -> Result<(), Trouble> {
        self.destination.seal().await?;
        self.patience.renew();
        self.destination.carry_ahead().await?;
        self.patience.renew();
        Ok(())
    }

    /// Drops what is of no further use after an error.
    fn let_go(&mut self, trouble: &Trouble) {
        self.reader = None;
        if trouble.snapshot_lost() {
            // The session may still stand, yet what it holds is not what the next chunk needs.
            let rewritten = matches!(trouble, Trouble::Source(crate::source::Error::Rewritten(_)));
            if let (Some(held), true) = (&self.held, rewritten) {
                self.generation = self.generation.max(held.generation + 1);
            }
            if let Trouble::Destination(crate::destination::Error::StaleSnapshot { current }) = trouble {
                self.generation = self.generation.max(*current);
            }
            self.held = None;
        }
    }

    async fn load_partition(&mut self, partition: u32) -> Result<(), Trouble> {
        loop {
            let chunks = self.destination.pending(partition).await?;
            if chunks.is_empty() {
                return Ok(());
            }
            for chunk in chunks {
                self.load(partition, &chunk).await?;
                self.patience.renew();
            }
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
            let brief = self.brief;
            if self.reader().await?.claim(brief, partition).await? {
                tracing::info!(partition, "loading a partition that nobody works on");
                self.load_partition(partition).await?;
                self.finish().await?;
            }
        }
        Ok(())
    }

    async fn load(&mut self, partition: u32, chunk: &Chunk) -> Result<(), Trouble> {
        let Some(table) = self.tables.get(&chunk.table).cloned() else {
            return Err(Trouble::Waiting(format!(
                "chunk {} of partition {partition} names a table that the ledger does not have",
                chunk.number
            )));
        };
        self.hold().await?;
        self.reader().await?;
        let (Some(held), Some(mut reader)) = (&self.held, self.reader.take()) else { return Ok(()) };
        let rows = reader.open(held.holder.name(), held.holder.lsn(), &table, chunk).await?;
        let (send, pieces) = ahead();
        let (read, wrote) =
            tokio::join!(rows.pass_on(send, &mut self.pace), self.destination.load_chunk(&table, chunk, held.generation, pieces));
        match (read, wrote) {
            (Ok(whole), Ok(loaded)) => {
                tracing::debug!(table = %table.source, chunk = chunk.number, rows = loaded.rows, bytes = loaded.bytes, "chunk loaded");
                if whole {
                    self.reader = Some(reader);
                }
                Ok(())
            }
            // Somebody else had loaded it; what became of reading it again does not matter.
            (Err(_), Ok(_)) => Ok(()),
            (Err(error), Err(crate::destination::Error::Source(_))) => Err(error.into()),
            (_, Err(error)) => Err(error.into()),
        }
    }

    /// A session to read with, and the claim on this worker's partition that comes with it.
    async fn reader(&mut self) -> Result<&mut Reader, Trouble> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => {
                let mut reader = Reader::connect(self.brief).await?;
                // Not granted if the session of this partition's last pod still lingers: it is a hint to helpers, chunks are safe without it.
                reader.claim(self.brief, self.partition).await?;
                reader
            }
        };
        Ok(self.reader.insert(reader))
    }

    /// Makes sure that a session of its own holds the current snapshot.
    async fn hold(&mut self) -> Result<(), Trouble> {
        if self.held.as_ref().is_some_and(|held| !held.holder.has_ended()) {
            return Ok(());
        }
        self.held = None;
        let told = match self.ask().await {
            Ok(told) => told,
            Err(why) => return self.adopt(why).await,
        };
        if told.generation < self.generation {
            return Err(Trouble::Waiting(format!("waiting for a snapshot newer than generation {}", told.generation)));
        }
        let holder = Holder::import(self.brief, &told.name, told.lsn).await?;
        self.held = Some(Held { holder, generation: told.generation });
        Ok(())
    }

    /// The pipeline pod is not there: another worker may hold the snapshot.
    async fn adopt(&mut self, why: String) -> Result<(), Trouble> {
        let state = self.destination.state().await?;
        let current = state.filter(|s| s.generation > 0 && s.generation >= self.generation);
        let Some(state) = current else { return Err(Trouble::Waiting(why)) };
        let client = connect::connect(&self.brief.source, &slot::housekeeping(self.brief)).await.map_err(crate::source::Error::from)?;
        match snapshot::adopt(&client, self.brief, state.snapshot_lsn).await? {
            Some(holder) => {
                self.held = Some(Held { holder, generation: state.generation });
                Ok(())
            }
            None => Err(Trouble::Waiting(why)),
        }
    }

    async fn ask(&self) -> Result<HeldSnapshot, String> {
        let url = format!("{}/snapshot", self.brief.pipeline_url);
        let why = |error: reqwest::Error| format!("the pipeline pod does not answer at {url}: {}", error.without_url());
        let answer = self.http.get(&url).send().await.map_err(why)?;
        if answer.status().is_success() { answer.json().await.map_err(why) } else { Err(answer.text().await.unwrap_or_else(why)) }
    }
}
