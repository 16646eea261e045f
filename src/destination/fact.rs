//! Facts, of which the ledgers of destinations without their own tables of state consist: what is true of an epoch, each under its kind and number. Pure.

mod epoch;

pub(super) use epoch::{PENDING, STATE, TABLES};

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Chunk, Error, gone, permanent};
use crate::{
    brief::Brief,
    postgres::Lsn,
    table::TableSchema,
    verify::{self, Measure},
};

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
    /// BigQuery: the stream that has a chunk's rows, before it is committed. Recorded once: of two workers that load the same chunk, one stream is committed. Its
    /// version is the generation.
    Written = "written" { stream: String, rows: u64, bytes: u64, }
    /// A chunk is loaded. Its version is the generation; it counts if that is still its table's.
    Done = "loaded" { rows: u64, bytes: u64, }
    /// A table is sealed; the version as above.
    Sealed = "sealed" { note: Option<String>, }
    /// A table's rows are carried.
    Carried = "carried" { deleted: i64, missing: i64, note: Option<String>, }
    /// ClickHouse: at its swap there was a moment without the table.
    Gap = "gap" { }
    /// A table's shadow was found to have what the source has; the version is the generation.
    Verified = "verified" { rows: u64, note: Option<String>, }
    /// All tables are swapped.
    Swapped = "swapped" { at: String, millis: i64, retries: u32, }
    /// The change stream passes a table over.
    Parked = "parked" { why: String, }
    /// What differs between the source's table and ours and wants a resync.
    Drifted = "drifted" { drift: BTreeSet<String>, }
    /// Changes of a table since the load. Its version is the checkpoint that it belongs to, where facts are told by versions.
    Counted = "counted" { inserts: u64, updates: u64, deletes: u64, }
    /// The checkpoint, which is also the version, where facts are told by versions.
    Applied = "applied" { lsn: Lsn, }
    /// Who opened the applier last; the version counts the openings.
    Owner = "owner" { token: String, }
}

impl Fact for Measure {
    const KIND: &'static str = "measured";
}

/// Facts of one epoch.
#[derive(Debug, Default)]
pub(super) struct Facts {
    found: BTreeMap<(String, u32), Row>,
    /// The newest epoch of the mirror that was begun, where the ledger tells it with the facts.
    pub(super) newest: Option<u32>,
}

/// A fact as a ledger has it.
#[derive(Debug)]
pub(super) struct Row {
    /// Of two facts of one kind and number the higher one counts.
    pub(super) version: u64,
    /// JSON.
    pub(super) value: String,
    /// When it was written, by the server's clock.
    pub(super) at: String,
}

impl Facts {
    /// Adds a fact that was read.
    pub(super) fn add(&mut self, kind: &str, number: u32, row: Row) {
        self.found.insert((kind.into(), number), row);
    }

    /// A fact, if it is known.
    pub(super) fn get<F: Fact>(&self, number: u32) -> Result<Option<F>, Error> {
        Ok(self.versioned(number)?.map(|(_, fact)| fact))
    }

    /// A table. Errors: [`gone`], as each has its fact from the beginning.
    pub(super) fn table(&self, brief: &Brief, number: u32) -> Result<Table, Error> {
        self.get(number)?.ok_or_else(|| gone(brief))
    }

    /// Refuses what was read in the snapshot of `generation` when the table is loaded from another one.
    pub(super) fn refuse_stale(&self, brief: &Brief, number: u32, generation: u32) -> Result<(), Error> {
        match self.table(brief, number)?.generation {
            current if current == generation => Ok(()),
            current => Err(Error::StaleSnapshot { current }),
        }
    }

    /// A fact with its version.
    pub(super) fn versioned<F: Fact>(&self, number: u32) -> Result<Option<(u64, F)>, Error> {
        let row = self.found.get(&(F::KIND.to_string(), number));
        row.map(|row| Ok((row.version, serde_json::from_str(&row.value).map_err(unreadable)?))).transpose()
    }

    /// A fact that counts if its version is the generation of the snapshot that its table is loaded from.
    fn of_generation<F: Fact>(&self, number: u32, generation: u32) -> Result<Option<F>, Error> {
        Ok(self.versioned(number)?.filter(|(version, _)| *version == u64::from(generation)).map(|(_, fact)| fact))
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
        Ok(self.of_generation::<Sealed>(number, generation)?.is_some())
    }

    /// What the source has of a table in the snapshot that it is loaded from.
    pub(super) fn measured(&self, number: u32, generation: u32) -> Result<Option<Measure>, Error> {
        self.of_generation(number, generation)
    }

    /// What was found of a table's shadow, if that is as it should be.
    pub(super) fn verified(&self, number: u32, generation: u32) -> Result<Option<Verified>, Error> {
        self.of_generation(number, generation)
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
        for (number, _, _) in self.all::<Planned>()?.into_iter().filter(|(_, _, chunk)| chunk.table == table) {
            rows += self.of_generation::<Done>(number, generation)?.map_or(0, |done| done.rows);
        }
        Ok(rows)
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

/// The text of a fact.
pub(super) fn written<F: Fact>(fact: &F) -> Result<String, Error> {
    serde_json::to_string(fact).map_err(|e| permanent("Internal", e.to_string()))
}

fn unreadable(error: serde_json::Error) -> Error {
    permanent("LedgerUnreadable", format!("the destination's ledger was written by another version: {error}. Start a new resync"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_that_another_version_wrote_is_refused_with_the_way_out() {
        let mut facts = Facts::default();
        for (number, value) in [(0, "{}"), (1, "not JSON")] {
            facts.add(Table::KIND, number, Row { version: 1, value: value.into(), at: String::new() });
            let Err(Error::Permanent(failure)) = facts.get::<Table>(number) else { panic!("{value} is no table") };
            assert_eq!(failure.reason, "LedgerUnreadable");
            assert!(
                failure.message.contains("written by another version: ") && failure.message.ends_with("Start a new resync"),
                "{failure:?}"
            );
        }
        assert!(matches!(facts.all::<Table>(), Err(Error::Permanent(_))));
        assert!(facts.get::<Table>(2).unwrap().is_none(), "what is not there is not unreadable");
    }
}
