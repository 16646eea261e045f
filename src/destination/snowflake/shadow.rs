//! Shadows: made, and made anew when their snapshot was lost.

use std::collections::BTreeSet;

use super::{
    Snowflake,
    error::permanent,
    ledger::{Entry, of_kinds, shadow_of},
    live,
    mark::Mark,
    own::Own,
    quote::{ident, literal},
    transaction::Transaction,
    undo,
};
use crate::{
    api::snowflake::SnowflakeTable,
    destination::{
        Boundary, Error, Plan,
        fact::{Begun, Done, Fact, Planned, Snapshot, Table},
        foreign_shadow, gone,
    },
    table::{TableName, TableSchema},
    verify::Measure,
};

/// See [`Destination::create_shadows`](crate::destination::Destination::create_shadows).
pub(super) async fn create(at: &Snowflake, boundary: Boundary, tables: &[TableSchema], plan: &Plan) -> Result<(), Error> {
    at.fence().await?;
    let facts = at.facts(&[Begun::KIND, Snapshot::KIND]).await?;
    facts.get::<Begun>(0)?.ok_or_else(|| gone(&at.brief))?;
    if facts.get::<Snapshot>(0)?.is_some() {
        return Ok(());
    }
    // What earlier epochs and an earlier try of this one have left; from here on their late writers find no tables.
    undo::drop_shadows(at, |epoch| epoch <= at.brief.epoch).await?;
    create_schemas(at, tables).await?;
    at.create_stage().await?;
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
    record_unless(at, boundary.generation, &entries).await
}

/// Records a generation unless somebody has recorded it, or a newer one.
async fn record_unless(at: &Snowflake, generation: u32, entries: &[Entry]) -> Result<(), Error> {
    let mut transaction = Transaction::fenced(at).await?;
    let known = transaction.facts_where(&of_kinds(&[Snapshot::KIND])).await?.versioned::<Snapshot>(0)?;
    if known.is_some_and(|(known, _)| known >= u64::from(generation)) {
        transaction.roll_back().await;
        return Ok(());
    }
    transaction.record(entries).await?;
    transaction.commit().await
}

fn snapshot(at: &Snowflake, boundary: Boundary, fact: &Snapshot) -> Result<Entry, Error> {
    at.entry(0, boundary.generation.into(), fact)
}

/// See [`Destination::renew_snapshot`](crate::destination::Destination::renew_snapshot).
pub(super) async fn renew(at: &Snowflake, boundary: Boundary) -> Result<(), Error> {
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
        record_unless(at, boundary.generation, &entries).await?;
    }
    drop_replaced(at).await
}

/// Drops this epoch's shadows of snapshots that were lost.
async fn drop_replaced(at: &Snowflake) -> Result<(), Error> {
    let tables = at.facts(&[Table::KIND]).await?.all::<Table>()?;
    let current: BTreeSet<(u32, Option<u32>)> = tables.iter().map(|(number, _, t)| (*number, Some(t.generation))).collect();
    for found in live::marked(at).await?.iter().filter(|f| f.is_shadow() && f.mark.epoch == at.brief.epoch) {
        if !current.contains(&(found.mark.table, found.mark.generation)) {
            live::drop_table(at, &found.name).await?;
        }
    }
    Ok(())
}

async fn create_schemas(at: &Snowflake, tables: &[TableSchema]) -> Result<(), Error> {
    let schemas: BTreeSet<&str> = tables.iter().map(|t| t.destination.schema.as_str()).filter(|s| *s != at.to.schema).collect();
    for schema in schemas {
        let sql = format!("CREATE SCHEMA IF NOT EXISTS {}.{}", ident(&at.to.at.database), ident(schema));
        at.client()?.query(&sql, &format!("creating schema {schema}")).await?;
    }
    Ok(())
}

/// Creates the shadow of this epoch and generation, empty.
async fn create_one(at: &Snowflake, fact: &Table) -> Result<(), Error> {
    let table = &fact.schema;
    let name = TableName { schema: table.destination.schema.clone(), name: shadow_of(at, fact) };
    if let Some(found) = live::find(at, &name).await? {
        if found.mark.is_none_or(|mark| mark.mirror != at.brief.mirror_uid) {
            return Err(permanent("ForeignShadow", foreign_shadow(&name)));
        }
        live::drop_table(at, &name).await?;
    }
    let mark = Mark { mirror: at.brief.mirror_uid.clone(), epoch: at.brief.epoch, table: table.number, generation: Some(fact.generation) };
    let live = live::find(at, &table.destination).await?;
    let kept = live.filter(|live| live.is_ours(at, table)).and_then(|live| live.clustering);
    let sql = statement(&at.quoted(&name), table, &at.options(table), &Own::of(&at.brief), kept.as_deref(), &mark);
    at.client()?.query(&sql, &format!("creating {name}")).await.map(drop)
}

/// The statement that creates a shadow. `kept` is the clustering key of the live table. Only the key is NOT NULL there: what the source allows tomorrow
/// must not stop the stream.
fn statement(name: &str, table: &TableSchema, options: &SnowflakeTable, own: &Own, kept: Option<&str>, mark: &Mark) -> String {
    let key = super::own::key(table);
    let not_null = |column: &str| if key.contains(&column) { " NOT NULL" } else { "" };
    let columns = table.copied().map(|c| format!("{} {}{}", ident(&c.destination), c.destination_type, not_null(&c.destination)));
    let columns: Vec<String> = columns.chain(own.definitions()).collect();
    let cluster = match (options.cluster_by.as_slice(), kept) {
        ([], Some(kept)) => format!(" CLUSTER BY {kept}"),
        ([], None) => String::new(),
        (wanted, _) => format!(" CLUSTER BY ({})", wanted.join(", ")),
    };
    let transient = if options.transient { "TRANSIENT " } else { "" };
    // An earlier try that comes late finds it made.
    format!("CREATE {transient}TABLE IF NOT EXISTS {name} ({}){cluster} COMMENT = {}", columns.join(", "), literal(&mark.comment("")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Column, Identity};

    fn sql(options: &SnowflakeTable, own: &Own, kept: Option<&str>) -> String {
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
        let name = TableName { schema: "SHOP".into(), name: "ORDERS".into() };
        let columns = vec![column("ID", "NUMBER(38,0)"), column("it's \"odd\"", "VARCHAR")];
        let table = TableSchema {
            number: 3,
            source: name.clone(),
            source_oid: 1,
            destination: name,
            columns,
            identity: Identity::Key(vec![0]),
            partition_key: None,
        };
        let mark = Mark { mirror: "u".into(), epoch: 2, table: 3, generation: Some(1) };
        statement("\"D\".\"S\".\"T\"", &table, options, own, kept, &mark)
    }

    #[test]
    fn a_shadow_has_the_sources_columns_and_our_own() {
        let own = Own { flag: Some("_PEERDB_IS_DELETED".into()), synced_at: Some("_PEERDB_SYNCED_AT".into()) };
        assert_eq!(
            sql(&SnowflakeTable::default(), &own, None),
            "CREATE TABLE IF NOT EXISTS \"D\".\"S\".\"T\" (\"ID\" NUMBER(38,0) NOT NULL, \"it's \"\"odd\"\"\" VARCHAR, \
             \"_PEERDB_IS_DELETED\" BOOLEAN NOT NULL DEFAULT FALSE, \"_PEERDB_SYNCED_AT\" TIMESTAMP_NTZ(6)) COMMENT = '[mirror-operator u e2 t3 g1]'"
        );
    }

    #[test]
    fn a_wanted_clustering_key_counts_more_than_that_of_the_live_table() {
        let own = Own { flag: None, synced_at: None };
        let wanted = SnowflakeTable { cluster_by: vec!["\"ID\"".into(), "x % 2".into()], transient: true, ..SnowflakeTable::default() };
        let statement = sql(&wanted, &own, Some("(\"ID\")"));
        assert!(
            statement.starts_with("CREATE TRANSIENT TABLE") && statement.contains(") CLUSTER BY (\"ID\", x % 2) COMMENT"),
            "{statement}"
        );
        assert!(sql(&SnowflakeTable::default(), &own, Some("(A, B)")).contains(" CLUSTER BY (A, B) COMMENT"));
    }
}
