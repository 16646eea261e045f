//! Shadows: made, and made anew when their snapshot was lost.

use std::collections::BTreeSet;

use super::{
    ClickHouse,
    ddl::Ddl,
    error::{failure, meaning, permanent},
    ledger::{Entry, shadow_of},
    live::{self, Found},
    mark::{self, Mark},
    own::{Own, VERSION, list, sorting_key},
    quote::{ident, literal},
    undo,
};
use crate::{
    api::clickhouse::{ClickHouseTable, Engine},
    destination::{
        Boundary, Error, Plan,
        fact::{Begun, Done, Fact, Planned, Snapshot, Table},
        foreign_shadow, gone,
    },
    report::Failure,
    table::{TableName, TableSchema},
    verify::Measure,
};

/// Parts whose tokens a table remembers: more than any load writes. A block leaves one in each partition that it falls into, and may come again as long as the
/// load lasts. Only those that there are take room.
const REMEMBERED: u64 = 1_000_000_000;

/// See [`Destination::create_shadows`](crate::destination::Destination::create_shadows).
pub(super) async fn create(at: &ClickHouse, boundary: Boundary, tables: &[TableSchema], plan: &Plan) -> Result<(), Error> {
    at.fence().await?;
    let facts = at.facts(&[Begun::KIND, Snapshot::KIND]).await?;
    facts.get::<Begun>(0)?.ok_or_else(|| gone(&at.brief))?;
    if facts.get::<Snapshot>(0)?.is_some() {
        return Ok(());
    }
    // What earlier epochs and an earlier try of this one have left; from here on their late writers find no tables.
    undo::drop_shadows(at, |epoch| epoch <= at.brief.epoch).await?;
    create_databases(at, tables).await?;
    let mut entries = Vec::with_capacity(tables.len() + plan.chunks.len() + 1);
    for table in tables {
        let fact = Table { schema: table.clone(), generation: boundary.generation, gate: boundary.lsn };
        create_one(at, &fact).await?;
        entries.push(at.entry(table.number, boundary.generation.into(), &fact)?);
    }
    for c in &plan.chunks {
        let planned = Planned {
            partition: c.partition,
            table: c.table,
            relation: c.relation,
            first_block: c.first,
            end_block: c.end,
            bytes: c.bytes,
        };
        entries.push(at.entry(c.number, 0, &planned)?);
    }
    let (partitions, rows, bytes) = (plan.partitions, plan.rows, plan.bytes);
    entries.push(snapshot(at, boundary, &Snapshot { lsn: boundary.lsn, start_lsn: boundary.lsn, partitions, rows, bytes })?);
    at.fence().await?;
    at.record(&entries).await
}

fn snapshot(at: &ClickHouse, boundary: Boundary, fact: &Snapshot) -> Result<Entry, Error> {
    at.entry(0, boundary.generation.into(), fact)
}

/// See [`Destination::renew_snapshot`](crate::destination::Destination::renew_snapshot).
pub(super) async fn renew(at: &ClickHouse, boundary: Boundary) -> Result<(), Error> {
    at.fence().await?;
    let facts = at.facts(&[Snapshot::KIND, Table::KIND, Planned::KIND, Done::KIND, Measure::KIND]).await?;
    let Some((current, of_epoch)) = facts.versioned::<Snapshot>(0)? else {
        return Err(permanent("NoShadows", "a snapshot cannot be renewed before the shadows are created"));
    };
    if current < u64::from(boundary.generation) {
        let incomplete = facts.incomplete(&at.brief)?;
        let mut entries = Vec::new();
        for (number, _, table) in facts.all::<Table>()?.into_iter().filter(|(number, ..)| incomplete.contains(number)) {
            let fact = Table { generation: boundary.generation, gate: boundary.lsn, ..table };
            create_one(at, &fact).await?;
            entries.push(at.entry(number, boundary.generation.into(), &fact)?);
        }
        entries.push(snapshot(at, boundary, &Snapshot { lsn: boundary.lsn, ..of_epoch })?);
        at.fence().await?;
        at.record(&entries).await?;
    }
    drop_replaced(at).await
}

/// Drops this epoch's shadows of snapshots that were lost.
async fn drop_replaced(at: &ClickHouse) -> Result<(), Error> {
    let tables = at.facts(&[Table::KIND]).await?.all::<Table>()?;
    let current: BTreeSet<(u32, Option<u32>)> = tables.iter().map(|(number, _, t)| (*number, Some(t.generation))).collect();
    for found in live::marked(at).await?.iter().filter(|f| f.is_shadow() && f.mark.epoch == at.brief.epoch) {
        if !current.contains(&(found.mark.table, found.mark.generation)) {
            live::drop_table(at, &found.name).await?;
        }
    }
    Ok(())
}

async fn create_databases(at: &ClickHouse, tables: &[TableSchema]) -> Result<(), Error> {
    let databases: BTreeSet<&str> = tables.iter().map(|t| t.destination.schema.as_str()).collect();
    for database in databases.into_iter().filter(|d| *d != at.to.at.database) {
        if !live::database_exists(at, database).await? {
            at.client()?.run(&at.ddl().create_database(database), &format!("creating database {database:?}")).await?;
        }
    }
    Ok(())
}

/// Creates a shadow, empty. Whatever bears its name and not this mirror's mark is somebody's own.
async fn create_one(at: &ClickHouse, fact: &Table) -> Result<(), Error> {
    let table = &fact.schema;
    let name = TableName { schema: table.destination.schema.clone(), name: shadow_of(at, fact) };
    if let Some(found) = live::find(at, &name).await?
        && found.mark.as_ref().is_none_or(|mark| mark.mirror != at.brief.mirror_uid)
    {
        return Err(permanent("ForeignShadow", foreign_shadow(&name)));
    }
    let options = at.options(table);
    let mark = Mark { mirror: at.brief.mirror_uid.clone(), epoch: at.brief.epoch, table: table.number, generation: Some(fact.generation) };
    let loading = while_loading(&options, &known_settings(at).await?);
    let sql = statement(at.ddl(), &name, table, &options, &Own::of(&at.brief), &loading, &mark);
    at.client()?.run(&sql, &format!("creating {name}")).await?;
    if options.engine == Engine::Null { Ok(()) } else { compress(at, table, &name).await }
}

/// Gives columns the codecs that people gave to those of the live table. One that the type cannot have any more is left out, which the table's note says.
async fn compress(at: &ClickHouse, table: &TableSchema, shadow: &TableName) -> Result<(), Error> {
    let there = live::attributes(at, shadow).await?;
    for column in live::attributes(at, &table.destination).await? {
        if column.compression_codec.is_empty() || !there.iter().any(|c| c.name == column.name) {
            continue;
        }
        let sql = format!("{} MODIFY COLUMN {} {}", at.ddl().alter(shadow), ident(&column.name), column.compression_codec);
        match at.client()?.run(&sql, &format!("compressing {shadow}")).await {
            Ok(()) | Err(Error::Permanent(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes an empty table as the shadow will be, under a name that nobody else has, and drops it. Returns what the server has against it.
///
/// A trial of a pod that was killed is dropped when shadows are made.
pub(super) async fn trial(at: &ClickHouse, table: &TableSchema) -> Result<Option<Failure>, Error> {
    let schema = &table.destination.schema;
    let schema = if live::database_exists(at, schema).await? { schema.clone() } else { at.to.at.database.clone() };
    let name = TableName { schema, name: mark::trial(&table.destination, super::random()) };
    let mark = Mark { mirror: at.brief.mirror_uid.clone(), epoch: at.brief.epoch, table: table.number, generation: Some(mark::TRIAL) };
    let options = at.options(table);
    let loading = while_loading(&options, &known_settings(at).await?);
    let mut statements = vec![statement(at.ddl(), &name, table, &options, &Own::of(&at.brief), &loading, &mark)];
    statements.extend(options.ttl.filter(|_| options.engine != Engine::Null).map(|ttl| at.ddl().expire(&name, &ttl)));
    let mut outcome = Ok(());
    for sql in statements {
        if outcome.is_ok() {
            outcome = at.client()?.try_run(&sql, &[]).await;
        }
    }
    live::drop_table(at, &name).await?;
    let Err(refusal) = outcome else { return Ok(None) };
    match meaning(&refusal, &format!("trying whether {} can be made", table.destination)) {
        Error::Permanent(failure) if failure.reason == "PermissionDenied" => Ok(Some(failure)),
        Error::Permanent(_) => Ok(Some(failure(
            "TableRefused",
            format!(
                "{} cannot be made as the Mirror wants it: {}. Correct tables[].clickhouse or the columns' types",
                table.destination,
                refusal.sentence()
            ),
        ))),
        other => Err(other),
    }
}

/// The statement that creates a shadow. Codecs come after it, as the types may not have them. Its TTL comes with the swap: rows that expire while they
/// are loaded would be missing when they are counted and carried.
fn statement(
    ddl: Ddl<'_>,
    name: &TableName,
    table: &TableSchema,
    options: &ClickHouseTable,
    own: &Own,
    loading: &[Setting],
    mark: &Mark,
) -> String {
    let mut columns: Vec<String> = table.copied().map(|c| format!("{} {}", ident(&c.destination), c.destination_type)).collect();
    columns.extend(own.definitions());
    let mut sql = format!("{} ({}) ENGINE = ", ddl.create(name), columns.join(", "));
    match options.engine {
        Engine::Null => sql.push_str("Null"),
        Engine::MergeTree => sql.push_str(&ddl.engine("MergeTree", &[])),
        Engine::CoalescingMergeTree => sql.push_str(&ddl.engine("CoalescingMergeTree", &[])),
        Engine::ReplacingMergeTree => sql.push_str(&ddl.engine("ReplacingMergeTree", &[ident(VERSION), ident(&own.flag)])),
    }
    if options.engine != Engine::Null {
        if let Some(expression) = &options.partition_by {
            sql.push_str(&format!(" PARTITION BY ({expression})"));
        }
        if !options.primary_key.is_empty() {
            sql.push_str(&format!(" PRIMARY KEY ({})", list(&options.primary_key)));
        }
        sql.push_str(&format!(" ORDER BY ({})", list(sorting_key(table, options))));
        let mut settings = vec![
            ddl.remembering(REMEMBERED),
            // The source forgets what is confirmed to it: that must survive a power failure.
            "fsync_after_insert = 1".into(),
            "fsync_part_directory = 1".into(),
        ];
        settings.extend(loading.iter().map(|(name, value)| format!("{name} = {value}")));
        settings.extend(options.settings.iter().map(|(name, value)| format!("{} = {}", ident(name), setting(value))));
        sql.push_str(&format!(" SETTINGS {}", settings.join(", ")));
    }
    sql.push_str(&format!(" COMMENT {}", literal(&mark.comment(""))));
    sql
}

/// A setting of a table, and its value.
type Setting = (&'static str, u64);

/// Settings that spare a load work which is done better once, after it; [`loaded`] takes them back.
///
/// Blocks wait to be merged many at a time: to merge them five by five, as they come, writes every row several times. And each block's columns share a file,
/// for every file is brought to the disk apart (`fsync_after_insert`).
const WHILE_LOADING: &[Setting] = &[("min_parts_to_merge_at_once", 40), ("min_bytes_for_wide_part", 1 << 30)];

/// Those that serve a table. Where blocks fall into many partitions each has few rows of its own: there they are merged as ever.
fn while_loading(options: &ClickHouseTable, known: &BTreeSet<String>) -> Vec<Setting> {
    let wanted = |name: &str| known.contains(name) && !options.settings.contains_key(name);
    let serves = options.engine != Engine::Null && options.partition_by.is_none();
    WHILE_LOADING.iter().filter(|(name, _)| serves && wanted(name)).copied().collect()
}

/// Those that the server has; older ones lack some.
async fn known_settings(at: &ClickHouse) -> Result<BTreeSet<String>, Error> {
    #[derive(serde::Deserialize)]
    struct Known {
        name: String,
    }
    let names: Vec<String> = WHILE_LOADING.iter().map(|(name, _)| literal(name)).collect();
    let sql = format!("SELECT name FROM system.merge_tree_settings WHERE name IN ({})", names.join(", "));
    let known: Vec<Known> = at.client()?.rows(&sql, "looking at the server's settings").await?;
    Ok(known.into_iter().map(|known| known.name).collect())
}

/// Takes back what held for the load alone. May be done again.
pub(super) async fn loaded(at: &ClickHouse, table: &TableSchema, shadow: &TableName) -> Result<(), Error> {
    let names: Vec<&str> = while_loading(&at.options(table), &known_settings(at).await?).iter().map(|(name, _)| *name).collect();
    if names.is_empty() {
        return Ok(());
    }
    let sql = format!("{} RESET SETTING {}", at.ddl().alter(shadow), names.join(", "));
    at.client()?.run(&sql, &format!("settling {shadow}")).await
}

/// Numbers stay numbers.
fn setting(value: &str) -> String {
    if value.parse::<f64>().is_ok() { value.to_string() } else { literal(value) }
}

impl Found {
    /// Whether it still bears a name of the time before its swap.
    pub(super) fn is_shadow(&self) -> bool {
        let Some(generation) = self.mark.generation else { return false };
        if generation == mark::TRIAL {
            return true;
        }
        let epoch = self.mark.epoch;
        self.name.name.ends_with(&format!("_resync_e{epoch}g{generation}")) || mark::is_any_swap(&self.name.name, epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Column, Identity};

    fn table() -> TableSchema {
        let column = |name: &str, type_: &str| Column {
            source: name.into(),
            destination: name.into(),
            source_type: "text".into(),
            base_type: None,
            source_type_oid: 25,
            destination_type: type_.into(),
            not_null: true,
            generated: None,
            binary: true,
            as_text: false,
        };
        let name = TableName { schema: "shop".into(), name: "orders".into() };
        let columns = vec![column("id", "Int64"), column("customer", "Int64"), column("it's `odd`", "Nullable(String)")];
        TableSchema {
            number: 3,
            source: name.clone(),
            source_oid: 1,
            destination: name,
            columns,
            identity: Identity::Key(vec![0]),
            partition_key: None,
        }
    }

    fn sql(options: &ClickHouseTable, synced_at: Option<&str>) -> String {
        sql_for(Ddl(None), options, synced_at)
    }

    fn sql_for(ddl: Ddl<'_>, options: &ClickHouseTable, synced_at: Option<&str>) -> String {
        let name = TableName { schema: "shop".into(), name: "orders_resync_e2g1".into() };
        let own = Own { flag: "_peerdb_is_deleted".into(), synced_at: synced_at.map(str::to_string) };
        let mark = Mark { mirror: "u".into(), epoch: 2, table: 3, generation: Some(1) };
        statement(ddl, &name, &table(), options, &own, &[], &mark)
    }

    #[test]
    fn the_default_keeps_the_last_version_by_the_sources_key() {
        assert_eq!(
            sql(&ClickHouseTable::default(), Some("at")),
            "CREATE TABLE IF NOT EXISTS `shop`.`orders_resync_e2g1` (`id` Int64, `customer` Int64, `it's \\`odd\\`` Nullable(String), \
             `_peerdb_is_deleted` UInt8 DEFAULT 0, `at` DateTime64(6, 'UTC') DEFAULT now64(6), `_peerdb_version` UInt128 DEFAULT 0) \
             ENGINE = ReplacingMergeTree(`_peerdb_version`, `_peerdb_is_deleted`) ORDER BY (`id`) \
             SETTINGS non_replicated_deduplication_window = 1000000000, fsync_after_insert = 1, fsync_part_directory = 1 \
             COMMENT '[mirror-operator u e2 t3 g1]'"
        );
    }

    #[test]
    fn in_a_cluster_every_replica_has_it() {
        let engine = |engine| {
            let sql = sql_for(Ddl(Some("c")), &ClickHouseTable { engine, ..ClickHouseTable::default() }, None);
            let (start, rest) = sql.split_once(" (").unwrap();
            assert_eq!(start, "CREATE TABLE IF NOT EXISTS `shop`.`orders_resync_e2g1` ON CLUSTER `c`");
            rest.split_once(" ENGINE = ").unwrap().1.split_once(", fsync").map_or(rest.to_string(), |(engine, _)| engine.to_string())
        };
        let replica = "'/clickhouse/tables/{uuid}/{shard}', '{replica}'";
        let settings =
            "ORDER BY (`id`) SETTINGS replicated_deduplication_window = 1000000000, replicated_deduplication_window_seconds = 31536000";
        assert_eq!(
            engine(Engine::ReplacingMergeTree),
            format!("ReplicatedReplacingMergeTree({replica}, `_peerdb_version`, `_peerdb_is_deleted`) {settings}")
        );
        assert_eq!(engine(Engine::CoalescingMergeTree), format!("ReplicatedCoalescingMergeTree({replica}) {settings}"));
        assert_eq!(engine(Engine::MergeTree), format!("ReplicatedMergeTree({replica}) {settings}"));
        assert!(engine(Engine::Null).contains(" ENGINE = Null COMMENT "));
    }

    #[test]
    fn a_wanted_order_comes_first_and_the_key_after_it() {
        let options = ClickHouseTable {
            order_by: vec!["customer".into()],
            primary_key: vec!["customer".into()],
            partition_by: Some("customer % 4".into()),
            ttl: Some("at + INTERVAL 1 YEAR".into()),
            settings: [("index_granularity".into(), "1024".into()), ("storage_policy".into(), "cold's".into())].into(),
            ..ClickHouseTable::default()
        };
        let sql = sql(&options, Some("at"));
        let expected = "PARTITION BY (customer % 4) PRIMARY KEY (`customer`) ORDER BY (`customer`, `id`) SETTINGS";
        assert!(sql.contains(expected), "{sql}");
        assert!(sql.contains("`index_granularity` = 1024, `storage_policy` = 'cold\\'s'"), "{sql}");
    }

    #[test]
    fn a_load_is_spared_what_the_server_knows_and_nobody_has_asked_for() {
        let known: BTreeSet<String> = ["min_parts_to_merge_at_once", "min_bytes_for_wide_part"].map(String::from).into();
        let names = |options: &ClickHouseTable, known: &BTreeSet<String>| {
            while_loading(options, known).iter().map(|(name, _)| *name).collect::<Vec<&'static str>>()
        };
        assert_eq!(names(&ClickHouseTable::default(), &known), ["min_parts_to_merge_at_once", "min_bytes_for_wide_part"]);
        assert_eq!(names(&ClickHouseTable::default(), &BTreeSet::new()), [""; 0]);
        let wide = ClickHouseTable { settings: [("min_bytes_for_wide_part".into(), "0".into())].into(), ..ClickHouseTable::default() };
        assert_eq!(names(&wide, &known), ["min_parts_to_merge_at_once"]);
        assert_eq!(names(&ClickHouseTable { partition_by: Some("id % 4".into()), ..ClickHouseTable::default() }, &known), [""; 0]);
        assert_eq!(names(&ClickHouseTable { engine: Engine::Null, ..ClickHouseTable::default() }, &known), [""; 0]);
    }

    #[test]
    fn a_null_table_has_neither_order_nor_settings() {
        let sql = sql(&ClickHouseTable { engine: Engine::Null, ..ClickHouseTable::default() }, None);
        assert!(sql.ends_with("ENGINE = Null COMMENT '[mirror-operator u e2 t3 g1]'"), "{sql}");
    }
}
