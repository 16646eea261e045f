//! ClickHouse as a destination.
//!
//! There are no transactions. What they would do is done by names, versions and order (docs/architecture.md, "ClickHouse"): each epoch and snapshot
//! loads into tables of its own, rows bear the position of their change, blocks are deduplicated, and every step asks first what is true.

mod apply;
mod carry;
mod client;
mod cluster;
mod ddl;
pub mod encode;
mod error;
mod fence;
mod ledger;
mod live;
mod load;
mod mark;
mod own;
mod policy;
mod preflight;
pub mod quote;
mod retire;
mod rights;
mod seal;
mod shadow;
mod swap;
pub mod types;
mod undo;
mod verify;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use client::Peer;

use super::{Applier, Boundary, Chunk, ColumnType, Destination, EpochState, Error, LedgerTable, Loaded, Plan};
use crate::{
    api::{
        clickhouse::{ClickHouseTable, NullableColumns, OutOfRange},
        mirror::Table,
    },
    brief::Brief,
    report::{Failure, Load, PeerReport, SwapReport, TableReport},
    source::type_map::SourceType,
    table::TableSchema,
    verify::Measure,
};
use client::Client;
use ddl::Ddl;
use types::{Wishes, destination_type};

/// One epoch of one mirror at a ClickHouse server.
pub struct ClickHouse {
    brief: Brief,
    to: Peer,
    client: OnceLock<Client>,
    /// Set once the ledger was seen.
    ledger: OnceLock<()>,
    owner: Arc<apply::Owner>,
}

impl ClickHouse {
    /// Connects to nothing yet.
    pub fn new(brief: Brief, to: Peer) -> Self {
        Self { brief, to, client: OnceLock::new(), ledger: OnceLock::new(), owner: Arc::default() }
    }

    fn owned_by(self, owner: Arc<apply::Owner>) -> Self {
        Self { owner, ..self }
    }

    fn client(&self) -> Result<&Client, Error> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let name = format!("{}-e{}", query_prefix(&self.brief), self.brief.epoch);
        let client = Client::new(&self.to, name)?;
        Ok(self.client.get_or_init(|| client))
    }

    /// How statements are written at this destination.
    fn ddl(&self) -> Ddl<'_> {
        self.to.ddl()
    }

    /// What the Mirror wants of a table.
    fn options(&self, table: &TableSchema) -> ClickHouseTable {
        self.brief.tables.get(table.number as usize).and_then(|t| t.clickhouse.clone()).unwrap_or_default()
    }
}

/// What is missing at a server for any mirror to write to it, each with its cure.
pub async fn check(to: &Peer) -> PeerReport {
    let looked = match Client::new(to, "mo-check".into()) {
        Ok(client) => look(&client, to).await,
        Err(error) => Err(error),
    };
    looked.unwrap_or_else(|error| {
        let problem = match error {
            Error::Permanent(failure) => failure,
            other => Failure { reason: "Unreachable".into(), message: other.to_string(), permanent: false },
        };
        PeerReport { problems: vec![problem], ..PeerReport::default() }
    })
}

async fn look(client: &Client, to: &Peer) -> Result<PeerReport, Error> {
    if let Err(refusal) = client.try_run("SELECT 1", &[]).await
        && refusal.is_authentication()
    {
        let message = error::meaning(&refusal, &format!("Peer {}", to.at.peer)).to_string();
        let problem = Failure { reason: "AuthenticationFailed".into(), message, permanent: false };
        return Ok(PeerReport { problems: vec![problem], ..PeerReport::default() });
    }
    let (server, problems) = preflight::server(client, to).await?;
    Ok(PeerReport { server_version: server.version, system_identifier: server.identifier, problems, ..PeerReport::default() })
}

/// A column's type for this mirror, and how its values travel.
pub fn column_type(table: &Table, column: &str, source: &SourceType, not_null: bool) -> ColumnType {
    let options = table.clickhouse.clone().unwrap_or_default();
    let wishes = Wishes {
        wanted: table.columns.iter().find(|c| c.source == column).and_then(|c| c.type_.as_deref()),
        nullable: !not_null && options.nullable == NullableColumns::AsSource,
        times_as_text: options.out_of_range == OutOfRange::String,
    };
    destination_type(source, wishes)
}

/// What the ids of a mirror's queries begin with.
fn query_prefix(brief: &Brief) -> String {
    format!("mo-{}", brief.mirror_uid)
}

/// A number that no other call has. The standard library's hasher is seeded from the system's random numbers.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[async_trait]
impl Destination for ClickHouse {
    async fn preflight(&self, tables: &[TableSchema]) -> Result<Vec<Failure>, Error> {
        preflight::preflight(self, tables).await
    }

    async fn state(&self) -> Result<Option<EpochState>, Error> {
        ledger::state(self).await
    }

    async fn begin(&self) -> Result<(), Error> {
        fence::begin(self).await
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
