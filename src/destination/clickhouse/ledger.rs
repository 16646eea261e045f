//! The ledger: what is true of each epoch, kept in the Peer's database.

use serde::{Deserialize, Serialize};

use super::{
    ClickHouse,
    ddl::{Ddl, quoted},
    error::permanent,
    mark,
    quote::literal,
};
use crate::{
    destination::{
        Chunk, EpochState, Error, LedgerTable,
        fact::{self, Fact, Facts, Row, Swapped, Table},
    },
    report::{Load, SwapReport, TableReport},
    table::TableName,
};

/// The ledger's tables.
const TABLES: &str = include_str!("ledger.sql");
/// Their names in the Peer's database.
pub(super) const MIRROR: &str = "_mirror_operator_mirror";
pub(super) const FACT: &str = "_mirror_operator_fact";

/// A fact as the server writes it down.
#[derive(Debug, Deserialize)]
struct Found {
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
        let mut facts = Facts::default();
        for Found { kind, number, version, value, at } in self.client()?.rows(&sql, "reading the ledger").await? {
            facts.add(&kind, number, Row { version, value, at });
        }
        Ok(facts)
    }

    /// A fact of this epoch to be recorded.
    pub(super) fn entry<F: Fact>(&self, number: u32, version: u64, fact: &F) -> Result<Entry, Error> {
        let value = fact::written(fact)?;
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
    let facts = at.facts(fact::STATE).await?;
    at.newest().await?.map_or(Ok(None), |newest| facts.state(newest, None))
}

/// See [`Destination::tables`](crate::destination::Destination::tables).
pub(super) async fn tables(at: &ClickHouse) -> Result<Vec<LedgerTable>, Error> {
    at.facts(fact::TABLES).await?.tables()
}

/// See [`Destination::pending`](crate::destination::Destination::pending).
pub(super) async fn pending(at: &ClickHouse, partition: u32) -> Result<Vec<Chunk>, Error> {
    at.facts(fact::PENDING).await?.pending_of(partition)
}

/// See [`Destination::progress`](crate::destination::Destination::progress).
pub(super) async fn progress(at: &ClickHouse) -> Result<(Load, Vec<TableReport>), Error> {
    at.facts(&[]).await?.progress(&at.brief)
}

/// What the swap of this epoch did; `None` before it.
pub(super) async fn swap_report(at: &ClickHouse) -> Result<Option<SwapReport>, Error> {
    at.facts(&[Swapped::KIND]).await?.swap_report()
}

/// The shadow's name, as the ledger's table fact gives it.
pub(super) fn shadow_of(at: &ClickHouse, table: &Table) -> String {
    mark::shadow(&table.schema.destination, at.brief.epoch, table.generation)
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
