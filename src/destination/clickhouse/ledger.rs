//! The ledger: what is true of each epoch, kept in the Peer's database.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    ClickHouse,
    ddl::{Ddl, quoted},
    error::permanent,
    mark,
    quote::literal,
};
use crate::{
    destination::{Chunk, EpochState, Error, LedgerTable},
    postgres::Lsn,
    report::{Load, SwapReport, TableReport},
    table::{TableName, TableSchema},
};

/// The ledger's tables.
const TABLES: &str = include_str!("ledger.sql");
/// Their names in the Peer's database.
pub(super) const MIRROR: &str = "_mirror_operator_mirror";
pub(super) const FACT: &str = "_mirror_operator_fact";

/// A kind of fact, with what is told of it.
pub(super) trait Fact: Serialize + DeserializeOwned {
    /// Its name in the ledger.
    const KIND: &'static str;
}

macro_rules! facts {
    ($($(#[$doc:meta])* $name:ident = $kind:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub(super) struct $name { $($(#[$field_doc])* pub(super) $field: $type,)* }
        impl Fact for $name { const KIND: &'static str = $kind; }
    )* };
}

facts! {
    /// The epoch has begun.
    Begun = "begun" { resync: String, slot: String, }
    /// The epoch is given up: from now on it neither begins nor swaps by itself.
    GivenUp = "given up" { }
    /// The current snapshot. Its version is the generation.
    Snapshot = "snapshot" { lsn: Lsn, start_lsn: Lsn, partitions: u32, rows: u64, bytes: u64, }
    /// A table.
    Table = "table" { schema: TableSchema, generation: u32, gate: Lsn, }
    /// A chunk of the plan.
    Planned = "chunk" { partition: u32, table: u32, relation: u32, first_block: u64, end_block: Option<u64>, bytes: u64, }
    /// A chunk is loaded. Its version is the generation; it counts if that is still its table's.
    Done = "loaded" { rows: u64, bytes: u64, }
    /// A table is sealed; the version as above.
    Sealed = "sealed" { note: Option<String>, }
    /// A table's rows are carried.
    Carried = "carried" { deleted: i64, missing: i64, note: Option<String>, }
    /// At its swap there was a moment without the table.
    Gap = "gap" { }
    /// All tables are swapped.
    Swapped = "swapped" { at: String, millis: i64, retries: u32, }
    /// The change stream passes a table over.
    Parked = "parked" { why: String, }
    /// What differs between the source's table and ours and wants a resync.
    Drifted = "drifted" { drift: BTreeSet<String>, }
    /// Changes of a table since the load. Its version is the checkpoint that it belongs to.
    Counted = "counted" { inserts: u64, updates: u64, deletes: u64, }
    /// The checkpoint, which is also the version.
    Applied = "applied" { lsn: Lsn, }
    /// Who opened the applier last; the version counts the openings.
    Owner = "owner" { token: String, }
}

/// Facts of one epoch.
#[derive(Debug, Default)]
pub(super) struct Facts {
    found: BTreeMap<(String, u32), Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    kind: String,
    number: u32,
    version: u64,
    value: String,
    at: String,
}

/// A row to be written.
#[derive(Serialize)]
pub(super) struct Entry {
    mirror: String,
    epoch: u32,
    kind: &'static str,
    number: u32,
    version: u64,
    value: String,
}

impl Facts {
    /// A fact, if it is known.
    pub(super) fn get<F: Fact>(&self, number: u32) -> Result<Option<F>, Error> {
        Ok(self.versioned(number)?.map(|(_, fact)| fact))
    }

    /// A fact with its version.
    pub(super) fn versioned<F: Fact>(&self, number: u32) -> Result<Option<(u64, F)>, Error> {
        let row = self.found.get(&(F::KIND.to_string(), number));
        row.map(|row| Ok((row.version, serde_json::from_str(&row.value).map_err(unreadable)?))).transpose()
    }

    /// All facts of a kind with their numbers and versions.
    pub(super) fn all<F: Fact>(&self) -> Result<Vec<(u32, u64, F)>, Error> {
        let rows = self.found.range((F::KIND.to_string(), 0)..=(F::KIND.to_string(), u32::MAX));
        rows.map(|((_, number), row)| Ok((*number, row.version, serde_json::from_str(&row.value).map_err(unreadable)?))).collect()
    }

    /// When a fact was written, by the server's clock.
    pub(super) fn at<F: Fact>(&self, number: u32) -> Option<&str> {
        self.found.get(&(F::KIND.to_string(), number)).map(|row| row.at.as_str())
    }

    /// Whether a table's shadow is sealed.
    pub(super) fn is_sealed(&self, number: u32, generation: u32) -> Result<bool, Error> {
        Ok(self.versioned::<Sealed>(number)?.is_some_and(|(version, _)| version == u64::from(generation)))
    }

    /// The chunks of each table that are not loaded.
    pub(super) fn pending(&self) -> Result<Vec<Chunk>, Error> {
        let generations: BTreeMap<u32, u32> = self.all::<Table>()?.into_iter().map(|(number, _, t)| (number, t.generation)).collect();
        let mut pending = Vec::new();
        for (number, _, chunk) in self.all::<Planned>()? {
            let done = self.versioned::<Done>(number)?.map(|(version, _)| version);
            if done.is_none() || done != generations.get(&chunk.table).map(|g| u64::from(*g)) {
                let Planned { partition, table, relation, first_block, end_block, bytes } = chunk;
                pending.push(Chunk { number, partition, table, relation, first: first_block, end: end_block, bytes });
            }
        }
        Ok(pending)
    }

    /// Rows that were loaded into a table.
    pub(super) fn rows_loaded(&self, table: u32, generation: u32) -> Result<u64, Error> {
        let mut rows = 0;
        for (number, _, chunk) in self.all::<Planned>()? {
            if chunk.table == table
                && let Some((_, done)) = self.versioned::<Done>(number)?.filter(|(version, _)| *version == u64::from(generation))
            {
                rows += done.rows;
            }
        }
        Ok(rows)
    }
}

impl ClickHouse {
    /// The name of one of the ledger's tables.
    pub(super) fn ledger_name(&self, table: &str) -> TableName {
        TableName { schema: self.to.at.database.clone(), name: table.into() }
    }

    /// The same, quoted.
    pub(super) fn ledger(&self, table: &str) -> String {
        quoted(&self.ledger_name(table))
    }

    /// Whether the ledger is there.
    pub(super) async fn has_ledger(&self) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Found {
            n: u64,
        }
        if self.ledger.get().is_some() {
            return Ok(true);
        }
        let sql = format!(
            "SELECT count() AS n FROM system.tables WHERE database = {} AND name IN ({}, {})",
            literal(&self.to.at.database),
            literal(MIRROR),
            literal(FACT)
        );
        let found = self.client()?.row::<Found>(&sql, "looking for the ledger").await?.n == 2;
        if found {
            self.ledger.get_or_init(|| ());
        }
        Ok(found)
    }

    /// What the ledger says of this epoch; of these kinds only, unless there are none.
    pub(super) async fn facts(&self, kinds: &[&str]) -> Result<Facts, Error> {
        let kinds: Vec<String> = kinds.iter().map(|kind| literal(kind)).collect();
        self.facts_where(&if kinds.is_empty() { "true".into() } else { format!("kind IN ({})", kinds.join(", ")) }).await
    }

    /// What the ledger says of this epoch under a condition.
    pub(super) async fn facts_where(&self, condition: &str) -> Result<Facts, Error> {
        if !self.has_ledger().await? {
            return Ok(Facts::default());
        }
        let sql = format!(
            "SELECT kind, number, version, value, toString(at) AS at FROM {} FINAL WHERE mirror = {} AND epoch = {} AND ({condition})",
            self.ledger(FACT),
            literal(&self.brief.mirror_uid),
            self.brief.epoch
        );
        let rows: Vec<Row> = self.client()?.rows(&sql, "reading the ledger").await?;
        Ok(Facts { found: rows.into_iter().map(|row| ((row.kind.clone(), row.number), row)).collect() })
    }

    /// A fact of this epoch to be recorded.
    pub(super) fn entry<F: Fact>(&self, number: u32, version: u64, fact: &F) -> Result<Entry, Error> {
        let value = serde_json::to_string(fact).map_err(|e| permanent("Internal", e.to_string()))?;
        Ok(Entry { mirror: self.brief.mirror_uid.clone(), epoch: self.brief.epoch, kind: F::KIND, number, version, value })
    }

    /// Records facts, all or none.
    pub(super) async fn record(&self, entries: &[Entry]) -> Result<(), Error> {
        let mut sql = format!("INSERT INTO {} (mirror, epoch, kind, number, version, value) FORMAT JSONEachRow\n", self.ledger(FACT));
        for entry in entries {
            sql.push_str(&serde_json::to_string(entry).map_err(|e| permanent("Internal", e.to_string()))?);
            sql.push('\n');
        }
        self.client()?.run_as_one_block(&sql, "writing the ledger").await
    }

    /// Records a fact if a condition holds when the statement begins.
    pub(super) async fn record_if(&self, condition: &str, entry: &Entry) -> Result<(), Error> {
        let Entry { mirror, epoch, kind, number, version, value } = entry;
        let sql = format!(
            "INSERT INTO {} (mirror, epoch, kind, number, version, value) SELECT {}, {epoch}, {}, {number}, {version}, {} WHERE {condition}",
            self.ledger(FACT),
            literal(mirror),
            literal(kind),
            literal(value)
        );
        self.client()?.run(&sql, "writing the ledger").await
    }

    /// The ledger does not know the epoch: it was abandoned, or its mirror forgotten, while the caller was at work.
    pub(super) fn gone(&self) -> Error {
        let crate::brief::Brief { epoch, namespace, mirror, .. } = &self.brief;
        permanent("EpochGone", format!("the destination's ledger does not know epoch {epoch} of {namespace}/{mirror}: it was removed"))
    }
}

/// The statements that create the ledger.
pub(super) fn tables_of_ledger(ddl: Ddl<'_>, database: &str) -> Vec<String> {
    let create = |table: &str| ddl.create(&TableName { schema: database.into(), name: table.into() });
    let sql = TABLES
        .replace("{create mirror}", &create(MIRROR))
        .replace("{create fact}", &create(FACT))
        .replace("{mirrors}", &ddl.engine("ReplacingMergeTree", &[]))
        .replace("{facts}", &ddl.engine("ReplacingMergeTree", &["version".into()]));
    sql.split(";\n").map(str::to_string).collect()
}

/// See [`Destination::state`](crate::destination::Destination::state).
pub(super) async fn state(at: &ClickHouse) -> Result<Option<EpochState>, Error> {
    let facts = at.facts(&[Begun::KIND, Snapshot::KIND, Table::KIND, Sealed::KIND, Swapped::KIND, Applied::KIND]).await?;
    let newest = at.newest().await?;
    let (Some(_), Some(newest_epoch)) = (facts.get::<Begun>(0)?, newest) else { return Ok(None) };
    let snapshot = facts.versioned::<Snapshot>(0)?;
    let start_lsn = snapshot.as_ref().map(|(_, s)| s.start_lsn).unwrap_or_default();
    let mut loaded = snapshot.is_some();
    for (number, _, table) in facts.all::<Table>()? {
        loaded &= facts.is_sealed(number, table.generation)?;
    }
    Ok(Some(EpochState {
        generation: snapshot.as_ref().map_or(0, |(version, _)| *version as u32),
        snapshot_lsn: snapshot.map(|(_, s)| s.lsn).unwrap_or_default(),
        start_lsn,
        applied_lsn: facts.get::<Applied>(0)?.map_or(start_lsn, |a| a.lsn),
        loaded,
        swapped: facts.get::<Swapped>(0)?.is_some(),
        newest_epoch,
    }))
}

/// See [`Destination::tables`](crate::destination::Destination::tables).
pub(super) async fn tables(at: &ClickHouse) -> Result<Vec<LedgerTable>, Error> {
    let facts = at.facts(&[Table::KIND, Sealed::KIND, Parked::KIND, Drifted::KIND]).await?;
    let table = |(number, _, table): (u32, u64, Table)| {
        let (sealed, parked) = (facts.is_sealed(number, table.generation)?, facts.get::<Parked>(number)?.map(|p| p.why));
        let drift = facts.get::<Drifted>(number)?.map(|d| d.drift).unwrap_or_default();
        Ok(LedgerTable { schema: table.schema, gate: table.gate, sealed, parked, drift })
    };
    facts.all::<Table>()?.into_iter().map(table).collect()
}

/// See [`Destination::pending`](crate::destination::Destination::pending).
pub(super) async fn pending(at: &ClickHouse, partition: u32) -> Result<Vec<Chunk>, Error> {
    let facts = at.facts(&[Table::KIND, Planned::KIND, Done::KIND]).await?;
    Ok(facts.pending()?.into_iter().filter(|chunk| chunk.partition == partition).collect())
}

/// See [`Destination::progress`](crate::destination::Destination::progress).
pub(super) async fn progress(at: &ClickHouse) -> Result<(Load, Vec<TableReport>), Error> {
    let facts = at.facts(&[]).await?;
    facts.get::<Begun>(0)?.ok_or_else(|| at.gone())?;
    let mut load = Load::default();
    if let Some((generation, snapshot)) = facts.versioned::<Snapshot>(0)? {
        let waiting: BTreeSet<u32> = facts.pending()?.iter().map(|chunk| chunk.partition).collect();
        load = Load {
            generation: generation as u32,
            snapshot_lsn: snapshot.lsn,
            partitions: snapshot.partitions,
            partitions_loaded: snapshot.partitions - waiting.len() as u32,
            total_rows: snapshot.rows as i64,
            total_bytes: snapshot.bytes as i64,
            ..load
        };
    }
    let planned: BTreeMap<u32, u32> = facts.all::<Planned>()?.into_iter().map(|(number, _, chunk)| (number, chunk.table)).collect();
    let tables = facts.all::<Table>()?;
    let generations: BTreeMap<u32, u64> = tables.iter().map(|(number, _, t)| (*number, u64::from(t.generation))).collect();
    let mut rows: BTreeMap<u32, i64> = BTreeMap::new();
    for (number, version, done) in facts.all::<Done>()? {
        let Some(table) = planned.get(&number).filter(|table| generations.get(table) == Some(&version)) else { continue };
        *rows.entry(*table).or_default() += done.rows as i64;
        load.rows += done.rows as i64;
        load.bytes += done.bytes as i64;
    }
    let report = |(number, _, table): (u32, u64, Table)| report(&facts, number, &table, rows.get(&number).copied().unwrap_or(0));
    Ok((load, tables.into_iter().map(report).collect::<Result<_, _>>()?))
}

fn report(facts: &Facts, number: u32, table: &Table, rows_loaded: i64) -> Result<TableReport, Error> {
    let carried = facts.get::<Carried>(number)?;
    let counted = facts.get::<Counted>(number)?;
    let drift = facts.get::<Drifted>(number)?.map(|d| d.drift.into_iter().collect::<Vec<_>>());
    let gap =
        facts.get::<Gap>(number)?.map(|_| "the destination cannot exchange tables: during the swap there was none for a moment".into());
    let notes = [facts.get::<Sealed>(number)?.and_then(|s| s.note), carried.as_ref().and_then(|c| c.note.clone()), gap];
    let notes: Vec<String> = notes.into_iter().flatten().collect();
    Ok(TableReport {
        source: table.schema.source.to_string(),
        destination: table.schema.destination.to_string(),
        rows_loaded,
        carried_deleted: carried.as_ref().map_or(0, |c| c.deleted),
        carried_missing: carried.as_ref().map_or(0, |c| c.missing),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        sealed: facts.is_sealed(number, table.generation)?,
        parked: facts.get::<Parked>(number)?.map(|p| p.why),
        drift: drift.filter(|d| !d.is_empty()).map(|d| format!("{}. Apply a MirrorResync", d.join("; "))),
        inserts: counted.as_ref().map_or(0, |c| c.inserts as i64),
        updates: counted.as_ref().map_or(0, |c| c.updates as i64),
        deletes: counted.as_ref().map_or(0, |c| c.deletes as i64),
    })
}

/// What the swap of this epoch did; `None` before it.
pub(super) async fn swap_report(at: &ClickHouse) -> Result<Option<SwapReport>, Error> {
    let swapped = at.facts(&[Swapped::KIND]).await?.get::<Swapped>(0)?;
    Ok(swapped.map(|s| SwapReport { at: s.at, lock_millis: s.millis, retries: s.retries }))
}

/// The shadow's name, as the ledger's table fact gives it.
pub(super) fn shadow_of(at: &ClickHouse, table: &Table) -> String {
    mark::shadow(&table.schema.destination, at.brief.epoch, table.generation)
}

fn unreadable(error: serde_json::Error) -> Error {
    permanent("LedgerUnreadable", format!("the destination's ledger was written by another version: {error}. Start a new resync"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_replica_of_a_cluster_has_the_ledger() {
        let engines = |ddl| {
            let tables = tables_of_ledger(ddl, "shop");
            let part = |sql: &str, from: &str, to: &str| sql.split_once(from).unwrap().1.split_once(to).unwrap().0.to_string();
            tables
                .iter()
                .map(|sql| (part(sql, "CREATE TABLE IF NOT EXISTS ", " ("), part(sql, "ENGINE = ", " PARTITION")))
                .collect::<Vec<_>>()
        };
        let tables = |on: &str, mirrors: &str, facts: &str| {
            vec![
                (format!("`shop`.`_mirror_operator_mirror`{on}"), mirrors.to_string()),
                (format!("`shop`.`_mirror_operator_fact`{on}"), facts.to_string()),
            ]
        };
        assert_eq!(engines(Ddl(None)), tables("", "ReplacingMergeTree", "ReplacingMergeTree(version)"));
        let replica = "'/clickhouse/tables/{uuid}/{shard}', '{replica}'";
        let replicated = |more: &str| format!("ReplicatedReplacingMergeTree({replica}{more})");
        assert_eq!(engines(Ddl(Some("c"))), tables(" ON CLUSTER `c`", &replicated(""), &replicated(", version")));
    }
}
