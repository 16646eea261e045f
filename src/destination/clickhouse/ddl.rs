//! Statements that make, change, rename and drop. The one place that knows how they reach every replica of a cluster. Pure.
//!
//! A cluster has one shard. What defines a table goes to all its servers (`ON CLUSTER`), each of which does it in the order of asking (ClickHouse docs,
//! "Distributed DDL queries"); what fills it goes to one and is replicated by the table's engine.

use super::{
    mark::Mark,
    quote::{ident, literal, qualified},
};
use crate::table::TableName;

/// What lets a server drop whatever size it has (ClickHouse docs, "max_table_size_to_drop").
const NO_LIMITS: &str = "SETTINGS max_table_size_to_drop = 0, max_partition_size_to_drop = 0";

/// How statements are written: for one server, or for all of a cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ddl<'a>(pub(super) Option<&'a str>);

impl Ddl<'_> {
    /// What follows a name.
    fn on(self) -> String {
        self.0.map(|cluster| format!(" ON CLUSTER {}", ident(cluster))).unwrap_or_default()
    }

    /// An engine of the MergeTree family. Replicas meet at a path that bears the table's UUID, so that it is never used again (ClickHouse docs,
    /// "Replicated* table engines": `default_replica_path`).
    pub(super) fn engine(self, name: &str, arguments: &[String]) -> String {
        let replica = ["'/clickhouse/tables/{uuid}/{shard}'".to_string(), "'{replica}'".into()];
        let (name, arguments) = match self.0 {
            Some(_) => (format!("Replicated{name}"), [&replica, arguments].concat()),
            None => (name.to_string(), arguments.to_vec()),
        };
        if arguments.is_empty() { name } else { format!("{name}({})", arguments.join(", ")) }
    }

    /// The table's settings of how many parts are remembered. Keeper forgets them after an hour if nothing else is said, which a load may outlast.
    pub(super) fn remembering(self, parts: u64) -> String {
        match self.0 {
            Some(_) => format!("replicated_deduplication_window = {parts}, replicated_deduplication_window_seconds = 31536000"),
            None => format!("non_replicated_deduplication_window = {parts}"),
        }
    }

    /// Where running queries are listed.
    pub(super) fn processes(self) -> String {
        self.0.map_or_else(|| "system.processes".into(), |cluster| format!("clusterAllReplicas({}, system.processes)", literal(cluster)))
    }

    pub(super) fn create_database(self, database: &str) -> String {
        format!("CREATE DATABASE IF NOT EXISTS {}{}", ident(database), self.on())
    }

    /// What a table's columns and its engine follow. Done late, or twice, it changes nothing: whoever needs an empty table drops it first, or has a new name.
    pub(super) fn create(self, table: &TableName) -> String {
        format!("CREATE TABLE IF NOT EXISTS {}{}", quoted(table), self.on())
    }

    /// What a change follows.
    pub(super) fn alter(self, table: &TableName) -> String {
        format!("ALTER TABLE {}{}", quoted(table), self.on())
    }

    /// Rows that have expired go in the background.
    pub(super) fn expire(self, table: &TableName, ttl: &str) -> String {
        format!("{} MODIFY TTL {ttl} SETTINGS materialize_ttl_after_modify = 1", self.alter(table))
    }

    pub(super) fn comment(self, table: &TableName, words: &str) -> String {
        format!("{} MODIFY COMMENT {}", self.alter(table), literal(words))
    }

    pub(super) fn mark(self, table: &TableName, mark: &Mark, words: &str) -> String {
        self.comment(table, &mark.comment(words))
    }

    /// However large the table is, and answered when it is gone.
    pub(super) fn drop(self, table: &TableName) -> String {
        format!("DROP TABLE IF EXISTS {}{} SYNC {NO_LIMITS}", quoted(table), self.on())
    }

    /// However large the partition is.
    pub(super) fn drop_partition(self, table: &TableName, partition: &str) -> String {
        format!("{} DROP PARTITION {partition} {NO_LIMITS}", self.alter(table))
    }

    /// One after the other, to the first that fails.
    pub(super) fn rename(self, names: &[(&TableName, &TableName)]) -> String {
        let names: Vec<String> = names.iter().map(|(from, to)| format!("{} TO {}", quoted(from), quoted(to))).collect();
        format!("RENAME TABLE {}{}", names.join(", "), self.on())
    }

    pub(super) fn exchange(self, one: &TableName, other: &TableName) -> String {
        format!("EXCHANGE TABLES {} AND {}{}", quoted(one), quoted(other), self.on())
    }

    /// Answered when the queries have ended.
    pub(super) fn kill(self, which: &str) -> String {
        format!("KILL QUERY{} WHERE {which} SYNC", self.on())
    }

    /// Waits until every replica has what others have of a table; nothing where there are none.
    pub(super) fn sync(self, table: &TableName) -> Option<String> {
        self.0.map(|_| format!("SYSTEM SYNC REPLICA{} {}", self.on(), quoted(table)))
    }

    /// Settings of every query.
    ///
    /// What is confirmed is on most replicas, and whichever is asked has it or says that it does not (`REPLICA_IS_NOT_IN_QUORUM`): so the ledger is read as it
    /// was written (ClickHouse docs, "insert_quorum", "select_sequential_consistency"). Those who write one table at once are told to wait, except for
    /// the load, where they ask for `insert_quorum_parallel`. Definitions are everywhere before the answer comes, or there is an error (docs,
    /// "distributed_ddl_output_mode", "alter_sync", "mutations_sync").
    pub(super) fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self.0 {
            None => &[],
            Some(_) => &[
                ("insert_quorum", "auto"),
                ("insert_quorum_parallel", "0"),
                ("select_sequential_consistency", "1"),
                ("distributed_ddl_output_mode", "throw"),
                ("alter_sync", "2"),
                ("mutations_sync", "2"),
            ],
        }
    }
}

pub(super) fn quoted(table: &TableName) -> String {
    qualified(&table.schema, &table.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> TableName {
        TableName { schema: "shop".into(), name: name.into() }
    }

    fn all(ddl: Ddl<'_>) -> Vec<String> {
        let mark = Mark { mirror: "u".into(), epoch: 2, table: 3, generation: None };
        vec![
            ddl.create_database("shop"),
            ddl.create(&name("t")),
            ddl.alter(&name("t")),
            ddl.expire(&name("t"), "at + INTERVAL 1 YEAR"),
            ddl.comment(&name("t"), "it's"),
            ddl.mark(&name("t"), &mark, "Orders."),
            ddl.drop(&name("t")),
            ddl.drop_partition(&name("t"), "'p'"),
            ddl.rename(&[(&name("t"), &name("u")), (&name("u"), &name("v"))]),
            ddl.exchange(&name("t"), &name("u")),
            ddl.kill("query_id = 'a'"),
            ddl.remembering(7),
            ddl.processes(),
            ddl.engine("MergeTree", &[]),
            ddl.engine("ReplacingMergeTree", &["v".into(), "d".into()]),
        ]
    }

    #[test]
    fn for_one_server_statements_are_plain() {
        let expected = [
            "CREATE DATABASE IF NOT EXISTS `shop`",
            "CREATE TABLE IF NOT EXISTS `shop`.`t`",
            "ALTER TABLE `shop`.`t`",
            "ALTER TABLE `shop`.`t` MODIFY TTL at + INTERVAL 1 YEAR SETTINGS materialize_ttl_after_modify = 1",
            "ALTER TABLE `shop`.`t` MODIFY COMMENT 'it\\'s'",
            "ALTER TABLE `shop`.`t` MODIFY COMMENT 'Orders. [mirror-operator u e2 t3 retired]'",
            "DROP TABLE IF EXISTS `shop`.`t` SYNC SETTINGS max_table_size_to_drop = 0, max_partition_size_to_drop = 0",
            "ALTER TABLE `shop`.`t` DROP PARTITION 'p' SETTINGS max_table_size_to_drop = 0, max_partition_size_to_drop = 0",
            "RENAME TABLE `shop`.`t` TO `shop`.`u`, `shop`.`u` TO `shop`.`v`",
            "EXCHANGE TABLES `shop`.`t` AND `shop`.`u`",
            "KILL QUERY WHERE query_id = 'a' SYNC",
            "non_replicated_deduplication_window = 7",
            "system.processes",
            "MergeTree",
            "ReplacingMergeTree(v, d)",
        ];
        assert_eq!(all(Ddl(None)), expected);
        assert_eq!((Ddl(None).sync(&name("t")), Ddl(None).settings().len()), (None, 0));
    }

    #[test]
    fn for_a_cluster_they_go_to_every_replica() {
        let expected = [
            "CREATE DATABASE IF NOT EXISTS `shop` ON CLUSTER `c 1`",
            "CREATE TABLE IF NOT EXISTS `shop`.`t` ON CLUSTER `c 1`",
            "ALTER TABLE `shop`.`t` ON CLUSTER `c 1`",
            "ALTER TABLE `shop`.`t` ON CLUSTER `c 1` MODIFY TTL at + INTERVAL 1 YEAR SETTINGS materialize_ttl_after_modify = 1",
            "ALTER TABLE `shop`.`t` ON CLUSTER `c 1` MODIFY COMMENT 'it\\'s'",
            "ALTER TABLE `shop`.`t` ON CLUSTER `c 1` MODIFY COMMENT 'Orders. [mirror-operator u e2 t3 retired]'",
            "DROP TABLE IF EXISTS `shop`.`t` ON CLUSTER `c 1` SYNC SETTINGS max_table_size_to_drop = 0, max_partition_size_to_drop = 0",
            "ALTER TABLE `shop`.`t` ON CLUSTER `c 1` DROP PARTITION 'p' SETTINGS max_table_size_to_drop = 0, max_partition_size_to_drop = 0",
            "RENAME TABLE `shop`.`t` TO `shop`.`u`, `shop`.`u` TO `shop`.`v` ON CLUSTER `c 1`",
            "EXCHANGE TABLES `shop`.`t` AND `shop`.`u` ON CLUSTER `c 1`",
            "KILL QUERY ON CLUSTER `c 1` WHERE query_id = 'a' SYNC",
            "replicated_deduplication_window = 7, replicated_deduplication_window_seconds = 31536000",
            "clusterAllReplicas('c 1', system.processes)",
            "ReplicatedMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}')",
            "ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', v, d)",
        ];
        assert_eq!(all(Ddl(Some("c 1"))), expected);
        assert_eq!(Ddl(Some("c 1")).sync(&name("t")).unwrap(), "SYSTEM SYNC REPLICA ON CLUSTER `c 1` `shop`.`t`");
    }
}
