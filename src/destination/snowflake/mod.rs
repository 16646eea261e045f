//! Snowflake as a destination.
//!
//! Rows and what the ledger says of them change in one transaction; DDL is in none, and is done as at ClickHouse: by names that nobody else has, and by asking
//! first what is true (docs/architecture.md, "Snowflake"). What is loaded or applied goes through files in a stage.

mod answer;
mod apply;
mod carry;
mod client;
mod door;
pub mod encode;
mod error;
mod ledger;
mod live;
mod load;
mod mark;
mod own;
mod preflight;
pub mod quote;
mod retire;
mod seal;
mod shadow;
mod stage;
mod swap;
mod transaction;
pub mod types;
mod undo;
mod verify;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, Mutex, OnceLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use client::{PATIENCE_MILLIS, Peer, host};
pub use stage::ExternalStage;

use super::{Applier, Boundary, Chunk, ColumnType, Destination, EpochState, Error, LedgerTable, Loaded, Plan};
use crate::{
    api::{mirror::Table, snowflake::SnowflakeTable},
    brief::Brief,
    report::{Failure, Load, PeerReport, SwapReport, TableReport},
    source::type_map::SourceType,
    table::{TableName, TableSchema},
    verify::Measure,
};
use client::Client;

/// One epoch of one mirror at a Snowflake account.
pub struct Snowflake {
    brief: Brief,
    to: Peer,
    client: OnceLock<Client>,
    stage: stage::Places,
    owner: Arc<apply::Owner>,
    told: Mutex<Option<ledger::Told>>,
}

impl Snowflake {
    /// Connects to nothing yet.
    pub fn new(brief: Brief, to: Peer) -> Self {
        Self { brief, to, client: OnceLock::new(), stage: stage::Places::default(), owner: Arc::default(), told: Mutex::default() }
    }

    fn owned_by(self, owner: Arc<apply::Owner>) -> Self {
        Self { owner, ..self }
    }

    fn client(&self) -> Result<&Client, Error> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let tag = format!("mirror-operator {}/{} e{}", self.brief.namespace, self.brief.mirror, self.brief.epoch);
        let client = Client::new(&self.to, tag)?;
        Ok(self.client.get_or_init(|| client))
    }

    /// A table's whole name, quoted.
    fn quoted(&self, table: &TableName) -> String {
        self.to.table(&table.schema, &table.name)
    }

    /// What the Mirror wants of a table.
    fn options(&self, table: &TableSchema) -> SnowflakeTable {
        self.brief.tables.get(table.number as usize).and_then(|t| t.snowflake.clone()).unwrap_or_default()
    }
}

/// What is missing at an account for any mirror to write to it, each with its cure.
pub async fn check(to: &Peer) -> PeerReport {
    let looked = match Client::new(to, "mirror-operator check".into()) {
        Ok(client) => preflight::check(&client, to).await,
        Err(error) => Err(error),
    };
    looked.unwrap_or_else(|error| {
        let problem = match error {
            Error::Permanent(failure) => Failure { permanent: false, ..failure },
            other => Failure { reason: "Unreachable".into(), message: other.to_string(), permanent: false },
        };
        PeerReport { problems: vec![problem], ..PeerReport::default() }
    })
}

/// Executes one statement in a session of its own and returns its rows as texts: for tests, against whatever account.
pub async fn ask(to: &Peer, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
    Ok(Client::new(to, "mirror-operator test".into())?.query(sql, "asking").await?.into_rows())
}

/// A column's type for this mirror, and how its values travel.
pub fn column_type(table: &Table, column: &str, source: &SourceType) -> ColumnType {
    types::destination_type(source, table.columns.iter().find(|c| c.source == column).and_then(|c| c.type_.as_deref()))
}

/// A number that no other call has. The standard library's hasher is seeded from the system's random numbers.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[async_trait]
impl Destination for Snowflake {
    async fn preflight(&self, tables: &[TableSchema]) -> Result<Vec<Failure>, Error> {
        preflight::preflight(self, tables).await
    }

    async fn state(&self) -> Result<Option<EpochState>, Error> {
        ledger::state(self).await
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
        ledger::tables(self).await
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
        ledger::progress(self).await
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
