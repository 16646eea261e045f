//! BigQuery as a destination.
//!
//! Its transactions hold DML and no DDL. So an epoch's tables are told apart by names and labels as at ClickHouse, steps that must be done once are jobs with
//! ids that follow from what they do, chunks are streams that are committed by name, and the change stream's batches are transactions with their checkpoint
//! (docs/architecture.md, "BigQuery").

mod apply;
mod auth;
mod carry;
mod client;
pub mod encode;
mod error;
mod job;
mod ledger;
mod live;
mod load;
mod mark;
mod own;
mod poll;
mod preflight;
pub mod quote;
mod retire;
mod seal;
mod shadow;
mod swap;
pub mod types;
mod verify;
mod write;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::{Mutex, OnceCell};

pub use client::Peer;

use super::{Applier, Boundary, Chunk, ColumnType, Destination, EpochState, Error, LedgerTable, Loaded, Plan, gone};
use crate::{
    api::{bigquery::BigQueryTable, mirror::Table},
    brief::Brief,
    report::{Failure, Load, PeerReport, SwapReport, TableReport},
    source::type_map::SourceType,
    table::{TableName, TableSchema},
    verify::Measure,
};
use client::Client;
use error::{meaning, permanent};
use job::Jobs;
use write::Writer;

/// One epoch of one mirror in a dataset of BigQuery.
pub struct BigQuery {
    brief: Brief,
    to: Peer,
    client: OnceLock<Client>,
    writer: OnceCell<Writer>,
    location: OnceCell<String>,
    /// When the ledger was made.
    life: OnceCell<String>,
    /// What the ids of the epoch's jobs begin with.
    prefix: String,
    owner: Arc<apply::Owner>,
    /// What was read for those who ask how far the epoch is.
    read: Mutex<Option<poll::Read>>,
}

impl BigQuery {
    /// Connects to nothing yet.
    pub fn new(brief: Brief, to: Peer) -> Self {
        let prefix = mark::jobs_of_epoch(&brief);
        Self {
            brief,
            to,
            client: OnceLock::new(),
            writer: OnceCell::new(),
            location: OnceCell::new(),
            life: OnceCell::new(),
            prefix,
            owner: Arc::default(),
            read: Mutex::new(None),
        }
    }

    fn owned_by(self, owner: Arc<apply::Owner>) -> Self {
        Self { owner, ..self }
    }

    fn client(&self) -> Result<&Client, Error> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = Client::new(&self.to)?;
        Ok(self.client.get_or_init(|| client))
    }

    async fn writer(&self) -> Result<&Writer, Error> {
        self.writer.get_or_try_init(|| async { Writer::new(&self.to, self.client()?.auth()) }).await
    }

    /// Runs jobs of this epoch.
    async fn jobs(&self) -> Result<Jobs<'_>, Error> {
        let client = self.client()?;
        let location = self.location.get_or_try_init(|| location(client, &self.to)).await?;
        Ok(Jobs { client, location, prefix: &self.prefix, owner: &self.owner })
    }

    /// The id of a step that is done once in the life of a ledger: one that was forgotten and made anew begins from the beginning.
    async fn once(&self, step: &str) -> Result<String, Error> {
        let life = self.life.get_or_try_init(|| async {
            let ledger = live::find(self, &self.ledger()).await?;
            ledger.and_then(|ledger| Some(ledger.resource["creationTime"].as_str()?.to_string())).ok_or_else(|| gone(&self.brief))
        });
        Ok(format!("{step}-{}", life.await?))
    }

    /// A table as statements name it.
    fn quoted(&self, table: &TableName) -> String {
        quote::qualified(&self.to.project, table)
    }

    /// What the Mirror wants of a table.
    fn options(&self, table: &TableSchema) -> BigQueryTable {
        self.brief.tables.get(table.number as usize).and_then(|t| t.bigquery.clone()).unwrap_or_default()
    }
}

/// Where the Peer's dataset is: jobs run there.
async fn location(client: &Client, to: &Peer) -> Result<String, Error> {
    let dataset = &to.at.database;
    let found = client.dataset(dataset).await.map_err(|e| meaning(&e, &format!("looking for dataset {dataset:?}")))?;
    let Some(found) = found else { return Err(Error::Permanent(preflight::dataset_missing(to, dataset))) };
    let actual = found["location"].as_str().unwrap_or("US").to_string();
    match &to.location {
        Some(wanted) if !wanted.eq_ignore_ascii_case(&actual) => Err(permanent(
            "DatasetLocation",
            format!("Peer {}: dataset {dataset:?} is in {actual}, not in {wanted}: correct `location`, or leave it out", to.at.peer),
        )),
        _ => Ok(actual),
    }
}

/// What is missing in a dataset for any mirror to write to it, each with its cure.
pub async fn check(to: &Peer) -> PeerReport {
    match preflight::check(to).await {
        Ok(problems) => PeerReport { system_identifier: format!("{}.{}", to.project, to.at.database), problems, ..PeerReport::default() },
        Err(error) => {
            let problem = match error {
                Error::Permanent(failure) => failure,
                other => Failure { reason: "Unreachable".into(), message: other.to_string(), permanent: false },
            };
            PeerReport { problems: vec![problem], ..PeerReport::default() }
        }
    }
}

/// A column's type for this mirror, and how its values travel.
pub fn column_type(table: &Table, column: &str, source: &SourceType) -> ColumnType {
    let wanted = table.columns.iter().find(|c| c.source == column).and_then(|c| c.type_.as_deref());
    types::destination_type(source, wanted, &table.bigquery.clone().unwrap_or_default())
}

/// A number that no other call has. The standard library's hasher is seeded from the system's random numbers.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[async_trait]
impl Destination for BigQuery {
    async fn preflight(&self, tables: &[TableSchema]) -> Result<Vec<Failure>, Error> {
        preflight::preflight(self, tables).await
    }

    async fn state(&self) -> Result<Option<EpochState>, Error> {
        poll::state(self).await
    }

    async fn begin(&self) -> Result<(), Error> {
        ledger::begin(self).await
    }

    async fn create_shadows(&self, boundary: Boundary, tables: &[TableSchema], plan: &Plan) -> Result<(), Error> {
        shadow::create(self, boundary, tables, plan).await
    }

    async fn renew_snapshot(&self, boundary: Boundary) -> Result<(), Error> {
        shadow::renew(self, boundary).await
    }

    async fn tables(&self) -> Result<Vec<LedgerTable>, Error> {
        poll::tables(self).await
    }

    async fn pending(&self, partition: u32) -> Result<Vec<Chunk>, Error> {
        ledger::pending(self, partition).await
    }

    async fn load_chunk(
        &self,
        table: &TableSchema,
        chunk: &Chunk,
        generation: u32,
        rows: BoxStream<'_, Result<Bytes, String>>,
    ) -> Result<Loaded, Error> {
        load::chunk(self, table, chunk, generation, rows).await
    }

    async fn measured(&self, table: &TableSchema, generation: u32, at_source: &Measure) -> Result<(), Error> {
        verify::measured(self, table, generation, at_source).await
    }

    async fn seal(&self) -> Result<(), Error> {
        seal::seal(self).await
    }

    async fn progress(&self) -> Result<(Load, Vec<TableReport>), Error> {
        poll::progress(self).await
    }

    async fn carry(&self) -> Result<(), Error> {
        carry::carry(self).await
    }

    async fn measure(&self, table: &TableSchema) -> Result<Measure, Error> {
        verify::measure(self, table).await
    }

    async fn verified(&self, table: &TableSchema, found: &Measure, remark: Option<&str>) -> Result<(), Error> {
        verify::verified(self, table, found, remark).await
    }

    async fn swap(&self) -> Result<SwapReport, Error> {
        swap::swap(self).await
    }

    async fn swapped(&self) -> Result<Option<SwapReport>, Error> {
        ledger::swap_report(self).await
    }

    async fn drop_retired(&self) -> Result<(), Error> {
        retire::drop_retired(self).await
    }

    async fn abandon(&self) -> Result<(), Error> {
        retire::abandon(self).await
    }

    async fn forget(&self, drop_tables: bool) -> Result<(), Error> {
        retire::forget(self, drop_tables).await
    }

    async fn applier(&self) -> Result<Box<dyn Applier>, Error> {
        apply::open(self).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::BigQuery;
    use crate::brief::DestinationPeer;

    /// One of a mirror of `public.t`, kept as `options` say, that has connected to nothing.
    pub(super) fn unconnected(options: &Value) -> BigQuery {
        let object = |kind: &str, name: &str, spec: Value| json!({ "apiVersion": "mirror-operator.io/v1alpha1", "kind": kind, "metadata": { "name": name, "namespace": "n" }, "spec": spec });
        let peer = |name: &str, spec: Value| serde_json::from_value(object("Peer", name, spec)).unwrap();
        let source = peer("a", json!({ "roles": ["Source"], "postgres": { "host": "h", "database": "d", "user": "u" } }));
        let to = peer("b", json!({ "roles": ["Destination"], "bigquery": { "project": "p", "dataset": "shop" } }));
        let tables = json!([{ "source": "public.t", "bigquery": options }]);
        let spec = json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": tables });
        let mirror = serde_json::from_value(object("Mirror", "m", spec)).unwrap();
        let brief = crate::mirror::brief(&mirror, None, 1, Some(&source), Some(&to), None).unwrap();
        let DestinationPeer::BigQuery(to) = brief.destination.clone() else { panic!("{:?}", brief.destination) };
        BigQuery::new(brief, to)
    }
}
