//! What a shadow is compared by, and what came of it.

use std::collections::BTreeSet;

use super::{
    BigQuery,
    ledger::{Fact, Facts, Table, Verified, shadow_of},
    own::Own,
    quote::ident,
    seal,
};
use crate::{
    brief::Brief,
    destination::Error,
    table::TableSchema,
    verify::{self, Measure},
};

impl Fact for Measure {
    const KIND: &'static str = "measured";
}

impl Facts {
    /// What the source has of a table in the snapshot that it is loaded from. Its version is the generation.
    pub(super) fn measured(&self, number: u32, generation: u32) -> Result<Option<Measure>, Error> {
        Ok(self.versioned::<Measure>(number)?.filter(|(version, _)| *version == u64::from(generation)).map(|(_, measure)| measure))
    }

    /// What was found of a table's shadow, if that is as it should be.
    pub(super) fn verified(&self, number: u32, generation: u32) -> Result<Option<Verified>, Error> {
        Ok(self.versioned::<Verified>(number)?.filter(|(version, _)| *version == u64::from(generation)).map(|(_, verified)| verified))
    }

    /// Tables with a chunk that is not loaded, and those that are to be verified and of which the source was not asked.
    pub(super) fn incomplete(&self, brief: &Brief) -> Result<BTreeSet<u32>, Error> {
        let mut incomplete: BTreeSet<u32> = self.pending()?.iter().map(|chunk| chunk.table).collect();
        if verify::is_wanted(brief) {
            for (number, _, table) in self.all::<Table>()? {
                if self.measured(number, table.generation)?.is_none() {
                    incomplete.insert(number);
                }
            }
        }
        Ok(incomplete)
    }

    /// Refuses to swap a table that is to be verified and was not.
    pub(super) fn refuse_unverified(&self, brief: &Brief, table: &Table) -> Result<(), Error> {
        let (name, number) = (&table.schema.destination, table.schema.number);
        if verify::is_wanted(brief) && self.verified(number, table.generation)?.is_none() {
            return Err(Error::Transient(format!("{name} is not ready for the swap: it must be verified first")));
        }
        Ok(())
    }
}

/// See [`Destination::measured`](crate::destination::Destination::measured). A word that comes late has the version of a snapshot that no longer counts.
pub(super) async fn measured(at: &BigQuery, table: &TableSchema, generation: u32, at_source: &Measure) -> Result<(), Error> {
    let facts = at.facts(&[Table::KIND]).await?;
    facts.fence(at)?;
    let known = facts.get::<Table>(table.number)?.ok_or_else(|| at.gone())?;
    if known.generation != generation {
        return Err(Error::StaleSnapshot { current: known.generation });
    }
    at.record(&[at.entry(table.number, generation.into(), at_source)?]).await
}

/// See [`Destination::measure`](crate::destination::Destination::measure). Rows of the load have no flag at all.
pub(super) async fn measure(at: &BigQuery, table: &TableSchema) -> Result<Measure, Error> {
    let known = at.facts(&[Table::KIND]).await?.get::<Table>(table.number)?.ok_or_else(|| at.gone())?;
    let shadow = shadow_of(at, &known);
    let carried = Own::of(&at.brief).flag.map(|flag| format!(" WHERE {} IS NOT TRUE", ident(&flag))).unwrap_or_default();
    let rows = seal::rows_where(at, &shadow, &carried).await?;
    Ok(Measure { rows: rows.ok_or_else(|| Error::Transient(format!("counting rows of {shadow}: the answer has no number")))?, sum: None })
}

/// See [`Destination::verified`](crate::destination::Destination::verified).
pub(super) async fn verified(at: &BigQuery, table: &TableSchema, found: &Measure, remark: Option<&str>) -> Result<(), Error> {
    let facts = at.facts(&[Table::KIND]).await?;
    facts.fence(at)?;
    let known = facts.get::<Table>(table.number)?.ok_or_else(|| at.gone())?;
    let verified = Verified { rows: found.rows, note: remark.map(str::to_string) };
    at.record(&[at.entry(table.number, known.generation.into(), &verified)?]).await
}
