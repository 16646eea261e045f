//! What a shadow is compared by, and what came of it.

use super::{BigQuery, ledger::shadow_of, own::Own, quote::ident, seal};
use crate::{
    destination::{
        Error,
        fact::{Fact, Table, Verified},
    },
    table::TableSchema,
    verify::Measure,
};

/// See [`Destination::measured`](crate::destination::Destination::measured). A word that comes late has the version of a snapshot that no longer counts.
pub(super) async fn measured(at: &BigQuery, table: &TableSchema, generation: u32, at_source: &Measure) -> Result<(), Error> {
    let facts = at.facts(&[Table::KIND]).await?;
    facts.fence(at)?;
    facts.refuse_stale(&at.brief, table.number, generation)?;
    at.record(&[at.entry(table.number, generation.into(), at_source)?]).await
}

/// See [`Destination::measure`](crate::destination::Destination::measure). Rows of the load have no flag at all.
pub(super) async fn measure(at: &BigQuery, table: &TableSchema) -> Result<Measure, Error> {
    let known = at.facts(&[Table::KIND]).await?.table(&at.brief, table.number)?;
    let shadow = shadow_of(at, &known);
    let carried = Own::of(&at.brief).flag.map(|flag| format!(" WHERE {} IS NOT TRUE", ident(&flag))).unwrap_or_default();
    let rows = seal::rows_where(at, &shadow, &carried).await?;
    Ok(Measure { rows: rows.ok_or_else(|| Error::Transient(format!("counting rows of {shadow}: the answer has no number")))?, sum: None })
}

/// See [`Destination::verified`](crate::destination::Destination::verified).
pub(super) async fn verified(at: &BigQuery, table: &TableSchema, found: &Measure, remark: Option<&str>) -> Result<(), Error> {
    let facts = at.facts(&[Table::KIND]).await?;
    facts.fence(at)?;
    let known = facts.table(&at.brief, table.number)?;
    let verified = Verified { rows: found.rows, note: remark.map(str::to_string) };
    at.record(&[at.entry(table.number, known.generation.into(), &verified)?]).await
}
