//! What a shadow is compared by, and what came of it.

use super::{
    Snowflake,
    ledger::{of_kinds, shadow_of},
    own::Own,
    quote::ident,
    transaction::Transaction,
};
use crate::{
    destination::{
        Error,
        fact::{Fact, Table, Verified},
    },
    table::{TableName, TableSchema},
    verify::Measure,
};

/// See [`Destination::measured`](crate::destination::Destination::measured). Behind the fence, where no snapshot is renewed meanwhile: a word that comes late
/// would take the place of one on the next snapshot.
pub(super) async fn measured(at: &Snowflake, table: &TableSchema, generation: u32, at_source: &Measure) -> Result<(), Error> {
    let mut transaction = Transaction::fenced(at).await?;
    let known = transaction.facts_where(&of_kinds(&[Table::KIND])).await?.table(&at.brief, table.number)?;
    if known.generation != generation {
        transaction.roll_back().await;
        return Err(Error::StaleSnapshot { current: known.generation });
    }
    transaction.record(&[at.entry(table.number, generation.into(), at_source)?]).await?;
    transaction.commit().await
}

/// See [`Destination::measure`](crate::destination::Destination::measure).
pub(super) async fn measure(at: &Snowflake, table: &TableSchema) -> Result<Measure, Error> {
    let known = at.facts(&[Table::KIND]).await?.table(&at.brief, table.number)?;
    let shadow = TableName { schema: table.destination.schema.clone(), name: shadow_of(at, &known) };
    let carried = Own::of(&at.brief).flag.map(|flag| format!(" WHERE NOT {}", ident(&flag))).unwrap_or_default();
    let sql = format!("SELECT COUNT(*) FROM {}{carried}", at.quoted(&shadow));
    Ok(Measure { rows: at.client()?.query(&sql, "counting rows").await?.number(), sum: None })
}

/// See [`Destination::verified`](crate::destination::Destination::verified).
pub(super) async fn verified(at: &Snowflake, table: &TableSchema, found: &Measure, remark: Option<&str>) -> Result<(), Error> {
    at.fence().await?;
    let facts = at.facts(&[Table::KIND]).await?;
    let known = facts.table(&at.brief, table.number)?;
    let verified = Verified { rows: found.rows, note: remark.map(str::to_string) };
    at.record(&[at.entry(table.number, known.generation.into(), &verified)?]).await
}
