//! Names of an epoch's tables, and the labels that say whose they are. Pure.
//!
//! Every epoch and every snapshot loads into tables of its own, which are gone when their time is over, so that a late writer finds nothing to write to.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{brief::Brief, name, table::TableName};

/// Who made a table, and what for. Its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// UID of the mirror.
    pub(super) mirror: String,
    /// The epoch that made it, or that retired it.
    pub(super) epoch: u32,
    /// The table's number.
    pub(super) table: u32,
    pub(super) state: State,
}

/// What a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Loaded from the snapshot of this generation: a shadow, or live.
    Loaded(u32),
    /// What was live before.
    Retired,
    /// Rows on their way into a table.
    Stage,
}

/// The labels' keys. Keys and values have lower case letters, digits, dashes and underscores only (BigQuery docs, "Introduction to labels").
const MIRROR: &str = "mirror-operator";
const EPOCH: &str = "mirror-operator-epoch";
const TABLE: &str = "mirror-operator-table";
const STATE: &str = "mirror-operator-state";
/// On a shadow: it replaces the live table as a whole, as its layout is another.
pub(super) const REPLACES: &str = "mirror-operator-replaces";

impl Mark {
    pub(super) fn of(brief: &Brief, table: u32, state: State) -> Self {
        Self { mirror: brief.mirror_uid.clone(), epoch: brief.epoch, table, state }
    }

    /// As labels.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let state = match self.state {
            State::Loaded(generation) => format!("g{generation}"),
            State::Retired => "retired".into(),
            State::Stage => "stage".into(),
        };
        [(MIRROR, self.mirror.clone()), (EPOCH, self.epoch.to_string()), (TABLE, self.table.to_string()), (STATE, state)]
            .map(|(key, value)| (key.to_string(), value))
            .into()
    }

    /// Reads a table's labels, if there are all.
    pub(super) fn read(labels: &Value) -> Option<Self> {
        let text = |key: &str| labels.get(key)?.as_str();
        let state = match text(STATE)? {
            "retired" => State::Retired,
            "stage" => State::Stage,
            other => State::Loaded(other.strip_prefix('g')?.parse().ok()?),
        };
        Some(Self { mirror: text(MIRROR)?.into(), epoch: text(EPOCH)?.parse().ok()?, table: text(TABLE)?.parse().ok()?, state })
    }

    /// What removes the labels when it is patched in.
    pub(super) fn removed() -> Value {
        json!({ MIRROR: null, EPOCH: null, TABLE: null, STATE: null })
    }

    /// Labels of people's own.
    pub(super) fn others(labels: &Value) -> BTreeMap<String, String> {
        let own = [MIRROR, EPOCH, TABLE, STATE, REPLACES];
        let all = labels.as_object().into_iter().flatten();
        all.filter(|(key, _)| !own.contains(&key.as_str()))
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_string())))
            .collect()
    }
}

/// The shadow that a generation of an epoch is loaded into: `<table>_resync_e2g1`.
pub(super) fn shadow(table: &TableName, epoch: u32, generation: u32) -> TableName {
    TableName { schema: table.schema.clone(), name: name::suffixed(&table.name, &format!("_resync_e{epoch}g{generation}")) }
}

/// What the old table is called: `<table>_old`.
pub(super) fn retired(table: &TableName) -> TableName {
    TableName { schema: table.schema.clone(), name: name::retired(&table.name) }
}

/// What the ids of a mirror's jobs begin with: letters, digits, underscores and dashes only (BigQuery docs, "Jobs", `jobReference`).
pub(super) fn jobs(mirror: &str) -> String {
    format!("mo-{mirror}-e")
}

/// The same for one epoch.
pub(super) fn jobs_of_epoch(brief: &Brief) -> String {
    format!("{}{}-", jobs(&brief.mirror_uid), brief.epoch)
}

/// The epoch of a job of this mirror.
pub(super) fn epoch_of_job(mirror: &str, id: &str) -> Option<u32> {
    id.strip_prefix(&jobs(mirror))?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mark_reads_back(epoch: u32, table: u32, generation: u32) {
            for state in [State::Loaded(generation), State::Retired, State::Stage] {
                let mark = Mark { mirror: "0a1b2c3d-0000-4000-8000-000000000001".into(), epoch, table, state };
                let mut labels = json!(mark.labels());
                labels["team"] = "x".into();
                prop_assert_eq!(Mark::read(&labels), Some(mark.clone()));
                prop_assert_eq!(Mark::others(&labels), BTreeMap::from([("team".to_string(), "x".to_string())]));
                prop_assert!(mark.labels().iter().all(|(k, v)| [k, v].iter().all(|t| t.len() <= 63 && t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))));
            }
        }
    }

    #[test]
    fn jobs_tell_their_epoch() {
        assert_eq!(epoch_of_job("u-1", "mo-u-1-e12-t3_swap_a0"), Some(12));
        assert_eq!(epoch_of_job("u-1", "mo-u-2-e12-t3"), None);
        assert_eq!(epoch_of_job("u-1", "bquxjob_1"), None);
    }
}
