//! Reads chunks under the snapshot, one after the other.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use super::patience::Patience;
use crate::{
    brief::Brief,
    destination::{self, Chunk, Destination, LedgerTable},
    postgres::connect,
    report::{Failure, HeldSnapshot},
    source::{
        self,
        ahead::ahead,
        copy::Reader,
        pace::Pace,
        slot,
        snapshot::{self, Holder},
    },
    table::TableSchema,
    trouble::Trouble,
    verify,
};

/// A chunk whose rows have begun to come.
pub struct Turn {
    pub table: TableSchema,
    pub chunk: Chunk,
    /// Of the snapshot that it is read under.
    pub generation: u32,
    pub rows: BoxStream<'static, Result<Bytes, String>>,
}

/// Why reading came to its end too early.
pub enum Stop {
    /// In the middle of a chunk. Whoever writes it has been told, and may not need the rest.
    Torn(source::Error),
    /// Before a chunk was begun.
    Before(Trouble),
}

impl<E: Into<Trouble>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Before(error.into())
    }
}

/// Keeps a session of its own on the snapshot: once it has that, it does not need the pipeline pod.
pub struct Reading<'a> {
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
}

/// The snapshot in use.
struct Held {
    holder: Holder,
    generation: u32,
}

impl<'a> Reading<'a> {
    /// Connects to nothing yet.
    pub fn new(brief: &'a Brief, destination: &'a dyn Destination, partition: u32) -> Result<Self, Failure> {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().map_err(|error| Failure {
            reason: "HttpClient".into(),
            message: error.to_string(),
            permanent: false,
        })?;
        let (tables, pace) = (HashMap::new(), Pace::new(None));
        Ok(Self { brief, destination, partition, tables, held: None, generation: 0, reader: None, pace, http })
    }

    /// Learns what there is to read, and this worker's share of the allowed bytes a second.
    pub async fn prepare(&mut self) -> Result<(), destination::Error> {
        if self.tables.is_empty() {
            // Fewer partitions than workers: no more than one worker for each.
            let (load, _) = self.destination.progress().await?;
            let workers = u32::from(self.brief.snapshot.max_parallel_workers).min(load.partitions);
            self.pace = Pace::share(self.brief.snapshot.max_bytes_per_second.as_ref().map(|b| b.get()), workers);
            self.tables = self.destination.tables().await?.into_iter().map(|t| (t.schema.number, t.schema)).collect();
        }
        Ok(())
    }

    /// Reads `chunks` in order. The next one is begun as soon as one is read: its first rows are there when the last one's have been written.
    pub async fn chunks(&mut self, chunks: Vec<Chunk>, to: mpsc::Sender<Turn>) -> Result<(), Stop> {
        for chunk in chunks {
            let Some(table) = self.tables.get(&chunk.table).cloned() else {
                let (chunk, table) = (chunk.number, chunk.table);
                return Err(Trouble::Waiting(format!("chunk {chunk} is of table {table}, which the ledger does not have")).into());
            };
            self.hold().await?;
            self.session().await?;
            let (Some(held), Some(mut reader)) = (&self.held, self.reader.take()) else { continue };
            let rows = reader.open(held.holder.name(), held.holder.lsn(), &table, &chunk).await?;
            let (send, pieces) = ahead();
            if to.send(Turn { table, chunk, generation: held.generation, rows: pieces }).await.is_err() {
                return Ok(());
            }
            if rows.pass_on(send, &mut self.pace).await.map_err(Stop::Torn)? {
                self.reader = Some(reader);
            }
        }
        Ok(())
    }

    /// Asks the source what it has of the tables in the snapshot, if they are to be verified: one after the other, as long as there is one that nobody has asked
    /// for. Those that another worker asks for are that one's: whoever is last to complete a table seals it.
    pub async fn measure(&mut self, patience: &mut Patience) -> Result<(), Trouble> {
        if !verify::is_wanted(self.brief) {
            return Ok(());
        }
        let (brief, mut seen) = (self.brief, HashSet::new());
        while let Some(table) = self.unmeasured(&seen).await? {
            seen.insert(table.schema.number);
            self.hold().await?;
            if !self.session().await?.claim_table(brief, table.schema.number).await? {
                continue;
            }
            let (Some(held), Some(mut reader)) = (&self.held, self.reader.take()) else { continue };
            if table.gate != held.holder.lsn() {
                // The table may also have been read before the snapshot that is held came to be known here.
                let current = held.generation + u32::from(table.gate > held.holder.lsn());
                return Err(destination::Error::StaleSnapshot { current }.into());
            }
            let measure = reader.measure(held.holder.name(), held.holder.lsn(), &table.schema, brief.verification).await?;
            self.destination.measured(&table.schema, held.generation, &measure).await?;
            tracing::debug!(table = %table.schema.source, rows = measure.rows, "measured at the source");
            self.reader = Some(reader);
            patience.renew();
        }
        Ok(())
    }

    /// A table of which nobody has asked the source what it has. Read anew each time: others ask too.
    async fn unmeasured(&self, seen: &HashSet<u32>) -> Result<Option<LedgerTable>, destination::Error> {
        let tables = self.destination.tables().await?;
        Ok(tables.into_iter().find(|t| t.measured.is_none() && !seen.contains(&t.schema.number)))
    }

    /// Whether nobody else works on a partition; it is this worker's then.
    pub async fn claim(&mut self, partition: u32) -> Result<bool, source::Error> {
        let brief = self.brief;
        self.session().await?.claim(brief, partition).await
    }

    /// Lets go of the snapshot. Whoever reads again takes it anew.
    pub fn end(&mut self) {
        (self.held, self.reader) = (None, None);
    }

    /// Drops what is of no further use after an error.
    pub fn let_go(&mut self, trouble: &Trouble) {
        self.reader = None;
        if trouble.snapshot_lost() {
            // The session may still stand, yet what it holds is not what the next chunk needs.
            let rewritten = matches!(trouble, Trouble::Source(source::Error::Rewritten(_)));
            if let (Some(held), true) = (&self.held, rewritten) {
                self.generation = self.generation.max(held.generation + 1);
            }
            if let Trouble::Destination(destination::Error::StaleSnapshot { current }) = trouble {
                self.generation = self.generation.max(*current);
            }
            self.held = None;
        }
    }

    /// A session to read with, and the claim on this worker's partition that comes with it.
    async fn session(&mut self) -> Result<&mut Reader, source::Error> {
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
        let client = connect::connect(&self.brief.source, &slot::housekeeping(self.brief)).await.map_err(source::Error::from)?;
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
