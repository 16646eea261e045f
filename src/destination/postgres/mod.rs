//! PostgreSQL as a destination.
//!
//! Data and ledger change in the same transactions, so whatever the ledger says is true of the tables. Each method reads there first what is
//! already done; that makes it safe to repeat after a crash at any statement and after a lost reply.

pub mod apply;
mod carry;
mod dependents;
mod dress;
mod error;
mod ledger;
mod live;
mod load;
mod preflight;
mod retire;
mod seal;
mod sequence;
mod session;
mod shadow;
mod snapshots;
mod swap;
mod verify;

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio_postgres::Client;

use super::{Applier, Boundary, Chunk, Destination, EpochState, Error, LedgerTable, Loaded, Plan};
use crate::{
    brief::Brief,
    postgres::{Connection, Lsn},
    report::{Failure, Load, SwapReport, TableReport},
    source::sequence::Sequence,
    table::TableSchema,
    verify::Measure,
};

/// One epoch of one mirror in a PostgreSQL database. Connections are opened when they are needed.
pub struct Postgres {
    brief: Brief,
    to: Connection,
    idle: Mutex<Vec<Client>>,
    owner: apply::Owner,
}

impl Postgres {
    /// Connects to nothing yet.
    pub fn new(brief: Brief, to: Connection) -> Self {
        Self { brief, to, idle: Mutex::default(), owner: apply::Owner::default() }
    }

    /// A list is whole whoever panicked while holding it.
    fn idle(&self) -> MutexGuard<'_, Vec<Client>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Destination for Postgres {
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

    async fn carry_ahead(&self) -> Result<(), Error> {
        carry::ahead(self).await
    }

    async fn measure(&self, table: &TableSchema) -> Result<Measure, Error> {
        verify::measure(self, table).await
    }

    async fn verified(&self, table: &TableSchema, found: &Measure, remark: Option<&str>) -> Result<(), Error> {
        verify::verified(self, table, found, remark).await
    }

    async fn sequence_problems(&self, sequences: &[Sequence]) -> Result<Vec<Failure>, Error> {
        sequence::problems(self, sequences).await
    }

    async fn follow_sequences(&self, sequences: &[Sequence]) -> Result<(), Error> {
        sequence::follow(self, sequences).await
    }

    async fn hand_over(&self) -> Result<(), Error> {
        ledger::hand_over(self).await
    }

    async fn catch_up(&self, reached: Lsn) -> Result<bool, Error> {
        ledger::catch_up(self, reached).await
    }

    async fn swap(&self) -> Result<SwapReport, Error> {
        swap::swap(self).await
    }

    async fn swapped(&self) -> Result<Option<SwapReport>, Error> {
        let session = self.session().await?;
        let report = match ledger::exists(session.client()).await? {
            true => ledger::swap_report(session.client(), &self.brief).await?,
            false => None,
        };
        session.keep();
        Ok(report)
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
        // Whoever comes first upgrades the ledger.
        self.session().await?.keep();
        apply::open(&self.brief, &self.to, &self.owner).await
    }
}
