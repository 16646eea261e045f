//! What a shadow is compared by, and what came of it.

use super::{ClickHouse, ledger::shadow_of, own::Own, quote::ident, seal};
use crate::{
    api::clickhouse::Engine,
    destination::{
        Error,
        fact::{Done, Fact, Planned, Table, Verified},
    },
    table::{TableName, TableSchema},
    verify::Measure,
};

/// See [`Destination::measured`](crate::destination::Destination::measured). A word that comes late has the version of a snapshot that no longer counts.
pub(super) async fn measured(at: &ClickHouse, table: &TableSchema, generation: u32, at_source: &Measure) -> Result<(), Error> {
    at.fence().await?;
    let facts = at.facts(&[Table::KIND]).await?;
    facts.refuse_stale(&at.brief, table.number, generation)?;
    at.record(&[at.entry(table.number, generation.into(), at_source)?]).await
}

/// See [`Destination::measure`](crate::destination::Destination::measure). Of rows with one key the last version counts, where the engine keeps versions: a block
/// that was written twice is there once. A table of the engine Null keeps nothing: what was written to it is what it got.
pub(super) async fn measure(at: &ClickHouse, table: &TableSchema) -> Result<Measure, Error> {
    let facts = at.facts(&[Table::KIND, Planned::KIND, Done::KIND]).await?;
    let known = facts.table(&at.brief, table.number)?;
    let engine = at.options(table).engine;
    if engine == Engine::Null {
        return Ok(Measure { rows: facts.rows_loaded(table.number, known.generation)?, sum: None });
    }
    let shadow = TableName { schema: table.destination.schema.clone(), name: shadow_of(at, &known) };
    let last = if engine == Engine::MergeTree { "" } else { " FINAL" };
    let not_carried = format!("{last} WHERE {} = 0", ident(&Own::of(&at.brief).flag));
    Ok(Measure { rows: seal::rows(at, &shadow, &not_carried).await?, sum: None })
}

/// See [`Destination::verified`](crate::destination::Destination::verified).
pub(super) async fn verified(at: &ClickHouse, table: &TableSchema, found: &Measure, remark: Option<&str>) -> Result<(), Error> {
    at.fence().await?;
    let facts = at.facts(&[Table::KIND]).await?;
    let known = facts.table(&at.brief, table.number)?;
    let verified = Verified { rows: found.rows, note: remark.map(str::to_string) };
    at.record(&[at.entry(table.number, known.generation.into(), &verified)?]).await
}
