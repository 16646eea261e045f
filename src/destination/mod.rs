//! Where a mirror's tables live: the contract that every destination keeps, and its implementations.

pub mod bigquery;
pub mod clickhouse;
mod fact;
pub mod postgres;
pub mod snowflake;

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{
    api::mirror::Table,
    brief::{Brief, DestinationPeer},
    postgres::Lsn,
    report::{Failure, Load, SwapReport, TableReport},
    source::{
        sequence::Sequence,
        type_map::{self, SourceType},
    },
    table::{TableName, TableSchema},
    verify::Measure,
};

/// What went wrong at a destination, ready for people.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Trying again is of no use until people change something. The failure says what.
    #[error("{}", .0.message)]
    Permanent(Failure),
    /// A newer epoch has begun: this writer must stop and touch nothing more.
    #[error("epoch {0} has begun at the destination; this one is over")]
    Superseded(u32),
    /// Another pod has opened the applier of the same epoch after this one did: this one must stop.
    #[error("another pipeline pod of this epoch has taken over the change stream; this one stops")]
    Displaced,
    /// The snapshot that the caller loads from is no longer the current one.
    #[error("the snapshot was replaced (generation {current}); ask for the new one")]
    StaleSnapshot {
        /// The current generation.
        current: u32,
    },
    /// The rows' source failed while a chunk was written; nothing of it was kept.
    #[error("reading from the source: {0}")]
    Source(String),
    /// Anything else: try again.
    #[error("{0}")]
    Transient(String),
}

/// Where a snapshot stands in the source's WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// 1 for the first snapshot of an epoch.
    pub generation: u32,
    /// Transactions whose commit record starts at or after this point are not in the snapshot (see docs/architecture.md, "The boundary").
    pub lsn: Lsn,
}

/// A part of one source relation: the unit of commit. A range of its blocks or, if its table has a [`TableSchema::partition_key`], of that column's
/// values, by their [`position`](crate::source::keys::position).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Unique in the epoch.
    pub number: u32,
    /// Index of the snapshot Job that loads it.
    pub partition: u32,
    /// The table that it belongs to.
    pub table: u32,
    /// At the source: the table, or one leaf of a partitioned one.
    pub relation: u32,
    /// Where it begins; 0 means at the beginning, with whatever has no position.
    pub first: u64,
    /// End, exclusive; `None` means to the end, however far that is when the chunk is read.
    pub end: Option<u64>,
    /// Estimated size.
    pub bytes: u64,
}

/// The whole plan of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// All chunks, numbered from 0.
    pub chunks: Vec<Chunk>,
    /// Number of partitions, at least 1; one may be without chunks.
    pub partitions: u32,
    /// Estimate of all rows.
    pub rows: u64,
    /// Estimate of all bytes.
    pub bytes: u64,
}

/// What the ledger says of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochState {
    /// Generation of the current snapshot; 0 while there are no shadows.
    pub generation: u32,
    /// Consistent point of the current snapshot.
    pub snapshot_lsn: Lsn,
    /// The slot's own consistent point.
    pub start_lsn: Lsn,
    /// The checkpoint.
    pub applied_lsn: Lsn,
    /// Whether every table is sealed.
    pub loaded: bool,
    /// Whether the tables bear their live names.
    pub swapped: bool,
    /// The newest epoch of the mirror that has fenced the earlier ones: greater than this one means superseded.
    pub newest_epoch: u32,
    /// Whether that one came by a [live handover](Destination::hand_over) from this epoch and is not swapped: given up, it would give the stream back.
    pub may_return: bool,
    /// Whether this epoch's own live handover has begun: what the epoch before it has applied is final.
    pub handed_over: bool,
    /// What the live epoch has applied.
    pub live_lsn: Lsn,
    /// Whether all of that is in the shadows, and nothing more is applied before the swap.
    pub caught_up: bool,
}

/// A table as the ledger knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerTable {
    /// Its schema as read in the snapshot, with columns added since.
    pub schema: TableSchema,
    /// Changes of transactions that commit at or after this point belong on top of the load.
    pub gate: Lsn,
    /// Whether load, key and indexes are complete.
    pub sealed: bool,
    /// What the source has of it in the snapshot that it is loaded from, if that was asked for.
    pub measured: Option<Measure>,
    /// Whether its shadow was found to be as the source has it.
    pub verified: bool,
    /// Why the change stream passes it over.
    pub parked: Option<String>,
    /// What differs between the source's table and ours and wants a resync.
    pub drift: BTreeSet<String>,
}

/// What one chunk brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Rows.
    pub rows: u64,
    /// Bytes as they came from the source.
    pub bytes: u64,
}

/// Where a mirror's tables live. One value stands for one epoch of one mirror.
///
/// Every method may be called again after it returned an error, after the caller died at any statement, and after it succeeded with the reply lost.
/// It then finishes or confirms the same outcome; `tests/destination/` runs every implementation through all three.
/// Methods may be called from several pods at the same time; never does a method of an older epoch change anything after `begin` of a newer one:
/// it returns [`Error::Superseded`].
#[async_trait]
pub trait Destination: Send + Sync {
    /// What would stop a load of `tables`, each with its cure. Changes nothing. Looks at rights, versions, types, names and at tables that exist
    /// but are not this mirror's own.
    async fn preflight(&self, tables: &[TableSchema]) -> Result<Vec<Failure>, Error>;

    /// What the ledger says of this epoch; `None` before [`begin`](Self::begin).
    async fn state(&self) -> Result<Option<EpochState>, Error>;

    /// Records that this epoch has begun, which fences all earlier ones, unless its [handover is live](Brief::is_live). Errors: `EpochGone` if it was given up before ([`abandon`](Self::abandon)).
    async fn begin(&self) -> Result<(), Error>;

    /// Creates or replaces the shadows, empty and marked as this epoch's, and records boundary, tables and plan, all in one step.
    /// Does nothing if the ledger already has a generation. A `_resync` table that does not bear this system's mark is refused, never replaced.
    async fn create_shadows(&self, boundary: Boundary, tables: &[TableSchema], plan: &Plan) -> Result<(), Error>;

    /// A new snapshot has replaced a lost one: tables with a chunk that is not loaded yet are emptied and all their chunks are to be loaded again,
    /// on `boundary`. So are those that are to be verified and of which nobody has asked the source yet ([`measured`](Self::measured)): it cannot tell any more.
    /// Complete tables stay, sealed or not. Does nothing if `boundary`'s generation is not newer than the ledger's.
    async fn renew_snapshot(&self, boundary: Boundary) -> Result<(), Error>;

    /// The tables of this epoch.
    async fn tables(&self) -> Result<Vec<LedgerTable>, Error>;

    /// The chunks of a partition that are not loaded yet, in order.
    async fn pending(&self, partition: u32) -> Result<Vec<Chunk>, Error>;

    /// Writes one chunk into the shadow and marks it loaded, both or neither. `rows` are pieces of a `COPY … TO STDOUT` stream: binary if
    /// [`TableSchema::binary`], else text, of the [`TableSchema::copied`] columns in order. A chunk that is already loaded is confirmed and left alone.
    /// Errors: [`Error::StaleSnapshot`] when `generation` is no longer current.
    async fn load_chunk(
        &self,
        table: &TableSchema,
        chunk: &Chunk,
        generation: u32,
        rows: BoxStream<'_, Result<Bytes, String>>,
    ) -> Result<Loaded, Error>;

    /// Records what the source has of a table in the snapshot of `generation`. Where the brief wants tables verified, none is complete before.
    /// Errors: [`Error::StaleSnapshot`] when the table is not loaded from that one.
    async fn measured(&self, table: &TableSchema, generation: u32, at_source: &Measure) -> Result<(), Error>;

    /// Builds the keys and indexes of every table that is complete: its chunks are all loaded. Several callers share the work; when it returns, every table that was
    /// complete at the call is sealed.
    async fn seal(&self) -> Result<(), Error>;

    /// How far the load is, and each table.
    async fn progress(&self) -> Result<(Load, Vec<TableReport>), Error>;

    /// Carries soft-deleted and missing rows from the live tables into the shadows, and gathers the shadows' statistics. Needs every table sealed.
    async fn carry(&self) -> Result<(), Error>;

    /// Does what it can of [`carry`](Self::carry) ahead of it, called by workers at the same time, for tables that are sealed. Nothing, where callers
    /// cannot keep out of each other's way.
    async fn carry_ahead(&self) -> Result<(), Error> {
        Ok(())
    }

    /// What the shadow of a table has of the source's rows: those that were carried are left out. Needs the table sealed.
    async fn measure(&self, table: &TableSchema) -> Result<Measure, Error>;

    /// Records that a table's shadow was found to be as the source has it, and a remark on what could not be looked at.
    async fn verified(&self, table: &TableSchema, found: &Measure, remark: Option<&str>) -> Result<(), Error>;

    /// What would keep these sequences from being made here, each with its cure. Changes nothing. Nothing, where there are no sequences.
    async fn sequence_problems(&self, _sequences: &[Sequence]) -> Result<Vec<Failure>, Error> {
        Ok(vec![])
    }

    /// Makes the sequences that are missing, brings them to the source's places, never back, and before the swap lets the shadows' columns draw from them.
    /// Nothing, where there are no sequences.
    async fn follow_sequences(&self, _sequences: &[Sequence]) -> Result<(), Error> {
        Ok(())
    }

    /// Begins a live handover: fences the epochs before this one, as [`begin`](Self::begin) has not done. What the live one has applied is final when this
    /// returns. Tables that are [kept](Brief::kept) must have at least what the shadows have: else it is refused, to be tried again. [`abandon`](Self::abandon) gives the stream back to it. Only of destinations that can apply changes to shadows.
    async fn hand_over(&self) -> Result<(), Error> {
        Err(Error::Permanent(no_live_handover()))
    }

    /// Ends the applying of changes to the shadows if they have everything that the live epoch has applied; the applier can then be opened again after the swap.
    /// `reached`: up to where the caller knows everything of the change stream to be in the shadows. Returns whether it has ended. Needs the [handover
    /// begun](Self::hand_over).
    async fn catch_up(&self, _reached: Lsn) -> Result<bool, Error> {
        Err(Error::Permanent(no_live_handover()))
    }

    /// Gives the shadows the live names, retires the old tables, and takes over those that are [kept](Brief::kept). Readers see either all old or all new tables. Needs every table carried, and where the
    /// brief wants that, verified.
    async fn swap(&self) -> Result<SwapReport, Error>;

    /// What the swap did; `None` before it.
    async fn swapped(&self) -> Result<Option<SwapReport>, Error>;

    /// Drops the tables that the swap retired.
    async fn drop_retired(&self) -> Result<(), Error>;

    /// Removes the shadows and the ledger's rows of this epoch unless it was swapped, and fences it: nothing of it can begin again. If its handover is live, the
    /// epoch before it may apply again. If it has not begun
    /// it never will from then on, and the live epoch goes on as if it had not been; only where there is no ledger yet, and so no live epoch, nothing is
    /// recorded.
    async fn abandon(&self) -> Result<(), Error>;

    /// Forgets the mirror: its ledger, shadows and retired tables; with `drop_tables` also its live tables. Any epoch may do so: none is left after.
    async fn forget(&self, drop_tables: bool) -> Result<(), Error>;

    /// Opens the one applier of this epoch. Needs the swap done; if the brief wants a live handover, it also opens once every table is sealed, to apply changes to
    /// the shadows until [`catch_up`](Self::catch_up) ends that. Of two processes the one that opened last wins: the other's applier fails, and opening
    /// it there again is refused with [`Error::Displaced`].
    async fn applier(&self) -> Result<Box<dyn Applier>, Error>;
}

/// How a column's values reach the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnType {
    /// See [`Column::destination_type`](crate::table::Column::destination_type).
    pub destination_type: String,
    /// See [`Column::binary`](crate::table::Column::binary).
    pub binary: bool,
    /// See [`Column::as_text`](crate::table::Column::as_text).
    pub as_text: bool,
}

/// How a column of `table` reaches the destination that the brief names. `source` is its type there, with domains resolved.
pub fn column_type(brief: &Brief, table: &Table, column: &str, source: &SourceType, not_null: bool) -> ColumnType {
    match &brief.destination {
        DestinationPeer::ClickHouse(_) => clickhouse::column_type(table, column, source, not_null),
        DestinationPeer::BigQuery(_) => bigquery::column_type(table, column, source),
        DestinationPeer::Snowflake(_) => snowflake::column_type(table, column, source),
        DestinationPeer::Postgres(_) => {
            let wanted = table.columns.iter().find(|c| c.source == column).and_then(|c| c.type_.as_deref());
            let mapped = type_map::destination_type(source, wanted);
            ColumnType { destination_type: mapped.destination_type, binary: mapped.binary, as_text: false }
        }
    }
}

/// A column's name as the destination that the brief names stores it.
pub fn column_name(brief: &Brief, wanted: &str) -> String {
    match &brief.destination {
        DestinationPeer::Snowflake(peer) => peer.names.stored(wanted),
        DestinationPeer::Postgres(_) | DestinationPeer::ClickHouse(_) | DestinationPeer::BigQuery(_) => wanted.to_string(),
    }
}

/// Says that a shadow's name is taken.
fn foreign_shadow(shadow: &TableName) -> String {
    format!("{shadow} exists at the destination and was not made by this mirror, which needs the name for its load: rename or drop it")
}

/// What only people can end.
fn failure(reason: &str, message: impl Into<String>) -> Failure {
    Failure { reason: reason.into(), message: message.into(), permanent: true }
}

/// The same as an error.
fn permanent(reason: &str, message: impl Into<String>) -> Error {
    Error::Permanent(failure(reason, message))
}

/// Says that changes are applied to live tables only.
pub fn no_live_handover() -> Failure {
    failure("HandoverUnsupported", "handover: Live serves PostgreSQL destinations only. Apply a MirrorResync with DropFirst")
}

/// Says that a shadow was passed over by the change stream, and must not take the place of a table that was not.
pub fn shadow_parked(why: &str) -> Error {
    permanent("TableParked", format!("a _resync table misses changes, so nothing was swapped: {why}"))
}

/// Says that an epoch can no longer begin.
fn given_up(brief: &Brief) -> Error {
    let Brief { epoch, namespace, mirror, .. } = brief;
    let message = format!("epoch {epoch} of {namespace}/{mirror} was given up before it began. Apply a new MirrorResync");
    permanent("EpochGone", message)
}

/// The ledger does not know the epoch: it was abandoned, or its mirror forgotten, while the caller was at work.
fn gone(brief: &Brief) -> Error {
    let Brief { epoch, namespace, mirror, .. } = brief;
    let message = format!("the destination's ledger does not know epoch {epoch} of {namespace}/{mirror}: it was removed");
    permanent("EpochGone", message)
}

/// Drift: of an update that leaves a large value out, because it did not change, nothing can be made where the row is not.
const ROWS_MISSING: &str =
    "rows that were updated at the source were missing at the destination, and came without the large values that had not changed";

/// Says that values of the old table do not fit the new types of these columns.
fn carry_cast(live: &TableName, columns: &[String]) -> String {
    format!(
        "{live}: the type of column {} has changed, and some of the old table's values do not fit. Nothing was swapped. Repair them in the old table, \
         or resync with carry.softDeleted and carry.missing set to false",
        columns.join(", ")
    )
}

/// The destination that the brief names. Connects when it is first used, so an error here is one of the brief itself.
pub async fn open(brief: &Brief) -> Result<Box<dyn Destination>, Error> {
    match &brief.destination {
        DestinationPeer::Postgres(to) => Ok(Box::new(postgres::Postgres::new(brief.clone(), to.clone()))),
        DestinationPeer::ClickHouse(to) => Ok(Box::new(clickhouse::ClickHouse::new(brief.clone(), to.clone()))),
        DestinationPeer::BigQuery(to) => Ok(Box::new(bigquery::BigQuery::new(brief.clone(), to.clone()))),
        DestinationPeer::Snowflake(to) => Ok(Box::new(snowflake::Snowflake::new(brief.clone(), to.clone()))),
    }
}

/// A value of a changed row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    /// NULL.
    Null,
    /// Not sent: an unchanged TOAST value, which the destination keeps.
    Unchanged,
    /// The value in the type's text form.
    Text(Bytes),
}

/// What a batch does to one row. `row`s have a cell for each of [`TableSchema::copied`], in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// The row now reads so. `deleted`: it was written and deleted within the batch; a soft delete keeps it, flagged.
    /// `Cell::Unchanged` occurs only if the row stands in the destination.
    Upsert {
        /// The row.
        row: Vec<Cell>,
        /// Whether it is deleted at the end.
        deleted: bool,
    },
    /// The row with this key is gone. Cells outside the key are not to be read.
    Delete {
        /// The key, in a row's places.
        key: Vec<Cell>,
    },
    /// The row changed its key, and some of its values are `Unchanged`: they are to be taken from the row with the old key, which is then gone.
    Rekey {
        /// The key it had, in a row's places.
        old_key: Vec<Cell>,
        /// The row.
        row: Vec<Cell>,
    },
    /// Keyless tables: one more row like this.
    Add {
        /// The row.
        row: Vec<Cell>,
    },
    /// Keyless tables: one row like this is gone.
    Remove {
        /// The row, whole.
        row: Vec<Cell>,
    },
}

impl RowChange {
    /// The row, of a delete its key.
    pub fn row(&self) -> &[Cell] {
        match self {
            Self::Upsert { row, .. } | Self::Rekey { row, .. } | Self::Add { row } | Self::Remove { row } => row,
            Self::Delete { key } => key,
        }
    }
}

/// Where in the source's WAL a row was changed. Changes of one key are ordered by their commits first: their own records are not written in that order. (A
/// tuple's record precedes the check for its key, which may wait for another transaction to delete that key: PostgreSQL source, `heap_insert` and
/// `ExecInsertIndexTuples`. What was written first is committed last then.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Where the transaction's commit record starts.
    pub commit: Lsn,
    /// Where the change's own record is.
    pub change: Lsn,
}

impl Position {
    /// As one number of 128 bits, in the same order. 0 is before every change.
    pub fn version(self) -> u128 {
        u128::from(self.commit.0) << 64 | u128::from(self.change.0)
    }
}

/// How many rows the source inserted, updated and deleted, for the statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Inserts.
    pub inserts: u64,
    /// Updates.
    pub updates: u64,
    /// Deletes.
    pub deletes: u64,
}

/// Writes the change stream. Where the destination has transactions, all writes since the last [`commit`](Self::commit) become visible with it, together,
/// or not at all. Elsewhere they are visible at once, and doing them again after an error changes nothing.
///
/// After an error the applier is of no further use: drop it, open another and start from its [`position`](Self::position).
#[async_trait]
pub trait Applier: Send {
    /// The checkpoint: every transaction that ends at or before it is durable here.
    fn position(&self) -> Lsn;

    /// Adds changes of one table; `positions` are where in the source's WAL each was made, the last one where several were folded. A key occurs at most once in `changes` (a `Rekey`'s old key counts); calls are applied in their order.
    /// Memory stays bounded: what was added may be written at once, out of readers' sight.
    /// Errors: [`Error::Permanent`] when the destination refuses this table's changes and will again: the caller parks the table.
    async fn write(&mut self, table: &TableSchema, changes: Vec<RowChange>, positions: Vec<Position>, counts: Counts) -> Result<(), Error>;

    /// Empties a table; with soft deletes flags all its rows. `position` is that of the source's TRUNCATE. Errors: as for [`write`](Self::write).
    async fn truncate(&mut self, table: &TableSchema, position: Position) -> Result<(), Error>;

    /// The source has a new column: adds it, with `fill` (text form) for the rows already there. Records `table` as the new schema.
    async fn add_column(&mut self, table: &TableSchema, column: usize, fill: Option<&str>) -> Result<(), Error>;

    /// The source no longer has this column, so new rows come without it: NULL is allowed there. Returns `table` as it is recorded from now on.
    async fn allow_null(&mut self, table: &TableSchema, column: usize) -> Result<TableSchema, Error>;

    /// What differs between the source's table and ours and wants a resync, in words. Some of it may be known already, and more than that.
    async fn drift(&mut self, table: &TableSchema, drift: &BTreeSet<String>) -> Result<(), Error>;

    /// The change stream passes this table over from now on; `why` names the cause and the cure.
    async fn park(&mut self, table: &TableSchema, why: &str) -> Result<(), Error>;

    /// Makes everything since the last commit durable, with `position` as the new checkpoint.
    /// Errors: [`Error::Superseded`] when a newer epoch has begun.
    async fn commit(&mut self, position: Lsn) -> Result<(), Error>;
}
