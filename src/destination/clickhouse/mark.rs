//! Names of an epoch's tables, and the mark in their comments that says whose they are. Pure.
//!
//! ClickHouse has no transactions that could keep a writer of an earlier epoch, or of a lost snapshot, out of a table. Names do it instead: every
//! epoch and every snapshot loads into tables of its own, which are gone when their time is over, so that a late writer finds nothing to write to.

use crate::{name, table::TableName};

/// Who made a table, and what for. The end of its comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// UID of the mirror.
    pub(super) mirror: String,
    /// The epoch that made it, or that retired it.
    pub(super) epoch: u32,
    /// The table's number.
    pub(super) table: u32,
    /// The generation of the snapshot that it was loaded from; `None`: the table is retired.
    pub(super) generation: Option<u32>,
}

const BEGIN: &str = "[mirror-operator ";

impl Mark {
    /// The comment with people's own words before the mark.
    pub(super) fn comment(&self, words: &str) -> String {
        let state = self.generation.map_or_else(|| "retired".into(), |generation| format!("g{generation}"));
        let space = if words.is_empty() { "" } else { " " };
        format!("{words}{space}{BEGIN}{} e{} t{} {state}]", self.mirror, self.epoch, self.table)
    }

    /// Splits a comment into people's words and the mark.
    pub(super) fn read(comment: &str) -> (&str, Option<Self>) {
        let Some(at) = comment.rfind(BEGIN) else { return (comment, None) };
        let parse = || {
            let mut parts = comment[at + BEGIN.len()..].strip_suffix(']')?.split(' ');
            let mirror = parts.next()?.to_string();
            let mut number = |prefix: char| parts.next()?.strip_prefix(prefix)?.parse().ok();
            let (epoch, table) = (number('e')?, number('t')?);
            let generation = match parts.next()? {
                "retired" => None,
                other => Some(other.strip_prefix('g')?.parse().ok()?),
            };
            Some(Self { mirror, epoch, table, generation })
        };
        match parse() {
            Some(mark) => (comment[..at].trim_end(), Some(mark)),
            None => (comment, None),
        }
    }
}

/// The shadow that a generation of an epoch is loaded into: `<table>_resync_e2g1`.
pub(super) fn shadow(table: &TableName, epoch: u32, generation: u32) -> String {
    name::suffixed(&table.name, &format!("_resync_e{epoch}g{generation}"))
}

/// The generation of an empty table that is made to see whether the server takes it, and dropped again.
pub(super) const TRIAL: u32 = 0;

/// What it is called.
pub(super) fn trial(table: &TableName, attempt: u64) -> String {
    name::suffixed(&table.name, &format!("_trial_{attempt:016x}"))
}

/// What an attempt to swap calls the shadow, and after it the old table: `<table>_swap_e2_…`. No two attempts have the same name.
pub(super) fn swap(table: &TableName, epoch: u32, attempt: u64) -> String {
    name::suffixed(&table.name, &format!("_swap_e{epoch}_{attempt:016x}"))
}

/// The epoch of an attempt to swap this table, if that is what the name is.
pub(super) fn swap_of(table: &TableName, name: &str) -> Option<u32> {
    let parse = || {
        let (_, rest) = name.rsplit_once("_swap_e")?;
        let (epoch, attempt) = rest.split_once('_')?;
        Some((epoch.parse().ok()?, u64::from_str_radix(attempt, 16).ok()?))
    };
    parse().filter(|(epoch, attempt)| swap(table, *epoch, *attempt) == name).map(|(epoch, _)| epoch)
}

/// Whether a name is that of an attempt of this epoch to swap whatever table.
pub(super) fn is_any_swap(name: &str, epoch: u32) -> bool {
    let attempt = name.rsplit_once(&format!("_swap_e{epoch}_")).map(|(_, attempt)| attempt);
    attempt.is_some_and(|attempt| attempt.len() == 16 && attempt.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The name of another attempt of the same epoch to swap the same table, if this is one.
pub(super) fn another_attempt(name: &str, attempt: u64) -> Option<String> {
    let (_, rest) = name.rsplit_once("_swap_e")?;
    let epoch = rest.split_once('_')?.0.parse().ok()?;
    let start = name.len().checked_sub(16).filter(|_| is_any_swap(name, epoch))?;
    Some(format!("{}{attempt:016x}", name.get(..start)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mark_reads_back(words in "\\PC{0,20}", epoch: u32, table: u32, generation: Option<u32>) {
            let mark = Mark { mirror: "0a1b2c3d-0000-4000-8000-000000000001".into(), epoch, table, generation };
            let comment = mark.comment(words.trim_end());
            prop_assert_eq!(Mark::read(&comment), (words.trim_end(), Some(mark)));
        }

        #[test]
        fn names_of_swaps_are_recognised(name in "\\PC{1,63}", other in "[a-z]{1,20}", epoch: u32, attempt: u64) {
            prop_assume!(name.len() <= name::MAX_NAME && name != other);
            let table = |name: &str| TableName { schema: "d".into(), name: name.into() };
            let swap = swap(&table(&name), epoch, attempt);
            prop_assert_eq!(swap_of(&table(&name), &swap), Some(epoch));
            prop_assert_eq!(swap_of(&table(&other), &swap), None);
            prop_assert_eq!(another_attempt(&swap, 7), Some(super::swap(&table(&name), epoch, 7)));
            prop_assert_eq!(another_attempt(&shadow(&table(&name), epoch, 1), 7), None);
        }
    }

    #[test]
    fn comments_of_others_have_no_mark() {
        for comment in ["", "orders", "[mirror-operator x]", "[mirror-operator u e1 t0 g1] and more"] {
            assert_eq!(Mark::read(comment), (comment, None));
        }
    }
}
