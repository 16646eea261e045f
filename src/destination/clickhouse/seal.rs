//! What is done to a shadow once its rows are there: they are counted, and it gets what people gave to the live table.

use serde::Deserialize;

use super::{
    ClickHouse,
    ddl::quoted,
    error::permanent,
    ledger::shadow_of,
    live::{self, attributes},
    mark::Mark,
    quote::{ident, literal},
    shadow::loaded,
};
use crate::{
    api::clickhouse::Engine,
    destination::{
        Error,
        fact::{Done, Fact, Planned, Sealed, Table},
    },
    table::{TableName, TableSchema},
    verify::Measure,
};

/// See [`Destination::seal`](crate::destination::Destination::seal).
pub(super) async fn seal(at: &ClickHouse) -> Result<(), Error> {
    at.fence().await?;
    let mut tables = at.facts(&[Table::KIND]).await?.all::<Table>()?;
    if !tables.is_empty() {
        // Several workers begin at different places.
        let start = super::random() as usize % tables.len();
        tables.rotate_left(start);
    }
    for (number, _, _) in tables {
        let facts = at.facts(&[Table::KIND, Planned::KIND, Done::KIND, Measure::KIND, Sealed::KIND]).await?;
        let table = facts.table(&at.brief, number)?;
        if facts.is_sealed(number, table.generation)? || facts.incomplete(&at.brief)?.contains(&number) {
            continue;
        }
        let shadow = TableName { schema: table.schema.destination.schema.clone(), name: shadow_of(at, &table) };
        if live::find(at, &shadow).await?.is_none() {
            at.fence().await?;
            return Err(Error::Transient(format!("{shadow} is gone; it is looked at again")));
        }
        count(at, &table.schema, &shadow, facts.rows_loaded(number, table.generation)?).await?;
        loaded(at, &table.schema, &shadow).await?;
        let notes = dress(at, &table, &shadow).await?;
        at.fence().await?;
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        at.record(&[at.entry(number, table.generation.into(), &Sealed { note })?]).await?;
    }
    Ok(())
}

/// Compares the shadow's rows with those that were read. A merge may leave out what was written twice, but nothing that was written once.
async fn count(at: &ClickHouse, table: &TableSchema, shadow: &TableName, expected: u64) -> Result<(), Error> {
    let engine = at.options(table).engine;
    if engine == Engine::Null {
        return Ok(());
    }
    let found = rows(at, shadow, "").await?;
    if found < expected || found > expected && engine == Engine::MergeTree {
        let message = format!(
            "{}: {expected} rows were read and {found} are in {shadow}. Nothing was swapped. Start a new resync",
            table.destination
        );
        return Err(permanent("LoadMiscounted", message));
    }
    Ok(())
}

/// The rows of a shadow under a condition, once the replica that is asked has all of them.
pub(super) async fn rows(at: &ClickHouse, shadow: &TableName, condition: &str) -> Result<u64, Error> {
    #[derive(Deserialize)]
    struct Count {
        n: u64,
    }
    if let Some(sync) = at.ddl().sync(shadow) {
        at.client()?.run(&sync, &format!("waiting for the replicas of {shadow}")).await?;
    }
    let sql = format!("SELECT count() AS n FROM {}{condition}", quoted(shadow));
    Ok(at.client()?.row::<Count>(&sql, "counting rows").await?.n)
}

/// Something that people gave to the live table, and how the shadow gets it.
struct Gift {
    /// For people.
    what: String,
    statements: Vec<String>,
}

/// Gives the shadow what the live table has beside its columns. Returns what could not be kept.
async fn dress(at: &ClickHouse, table: &Table, shadow: &TableName) -> Result<Vec<String>, Error> {
    let name = &table.schema.destination;
    let Some(live) = live::find(at, name).await?.filter(|live| live.mark.as_ref().is_none_or(|m| m.mirror == at.brief.mirror_uid)) else {
        return Ok(vec![]);
    };
    let mut notes = lost(at, &table.schema, shadow).await?;
    for gift in gifts(at, name, shadow).await? {
        for statement in gift.statements {
            match at.client()?.run_over_rows(&statement, &gift.what).await {
                Ok(()) => {}
                Err(Error::Permanent(failure)) => {
                    notes.push(format!("{} was not kept: {}", gift.what, failure.message));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    let mark =
        Mark { mirror: at.brief.mirror_uid.clone(), epoch: at.brief.epoch, table: table.schema.number, generation: Some(table.generation) };
    at.client()?.run(&at.ddl().mark(shadow, &mark, &live.words), "writing a comment").await?;
    Ok(notes)
}

/// What the live table's columns had that no statement brings back.
async fn lost(at: &ClickHouse, table: &TableSchema, shadow: &TableName) -> Result<Vec<String>, Error> {
    let there = attributes(at, shadow).await?;
    let mut notes = Vec::new();
    for column in attributes(at, &table.destination).await? {
        let kept = there.iter().find(|c| c.name == column.name);
        if kept.is_none() && matches!(column.default_kind.as_str(), "" | "DEFAULT") {
            notes.push(format!(
                "column {:?} was not kept: the Mirror has none of that name, and its values are not computed from others",
                column.name
            ));
        }
        if kept.is_some_and(|kept| kept.compression_codec.is_empty()) && !column.compression_codec.is_empty() {
            notes.push(format!("the codec of column {:?} was not kept: its type cannot have it now", column.name));
        }
    }
    Ok(notes)
}

#[derive(Deserialize)]
struct Part {
    name: String,
    body: String,
}

async fn gifts(at: &ClickHouse, live: &TableName, shadow: &TableName) -> Result<Vec<Gift>, Error> {
    let to = at.ddl().alter(shadow);
    let mut gifts = Vec::new();
    let there = attributes(at, shadow).await?;
    for column in attributes(at, live).await? {
        let name = ident(&column.name);
        if matches!(column.default_kind.as_str(), "MATERIALIZED" | "ALIAS") {
            let sql =
                format!("{to} ADD COLUMN IF NOT EXISTS {name} {} {} {}", column.type_, column.default_kind, column.default_expression);
            gifts.push(Gift { what: format!("column {:?}", column.name), statements: vec![sql] });
        } else if !column.comment.is_empty() && there.iter().any(|c| c.name == column.name) {
            let sql = format!("{to} COMMENT COLUMN {name} {}", literal(&column.comment));
            gifts.push(Gift { what: format!("comment of column {:?}", column.name), statements: vec![sql] });
        }
    }
    let of = format!("database = {} AND table = {}", literal(&live.schema), literal(&live.name));
    let indices = "concat(expr, ' TYPE ', type_full, ' GRANULARITY ', toString(granularity))";
    for (system, kind, body) in [
        ("data_skipping_indices", "INDEX", indices),
        ("projections", "PROJECTION", "concat('(', query, ')')"),
        ("constraints", "CONSTRAINT", "concat(type, ' ', expression)"),
    ] {
        // Older servers do not list all of them.
        if live::find(at, &TableName { schema: "system".into(), name: system.into() }).await?.is_none() {
            continue;
        }
        let sql = format!("SELECT name, {body} AS body FROM system.{system} WHERE {of} ORDER BY name");
        for part in at.client()?.rows::<Part>(&sql, "reading what the live table has").await? {
            gifts.push(gift(&to, kind, &part));
        }
    }
    Ok(gifts)
}

fn gift(to: &str, kind: &str, part: &Part) -> Gift {
    let name = ident(&part.name);
    let mut statements = vec![format!("{to} ADD {kind} IF NOT EXISTS {name} {}", part.body)];
    if kind != "CONSTRAINT" {
        // The rows that are there already get it too; the answer comes when they have.
        statements.push(format!("{to} MATERIALIZE {kind} {name} SETTINGS mutations_sync = 2"));
    }
    Gift { what: format!("{} {:?}", kind.to_lowercase(), part.name), statements }
}
