//! The columns that every table has beside the source's. Pure.

use super::quote::ident;
use crate::{brief::Brief, table::TableSchema};

/// The names of the columns, as the brief has them.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// True for a deleted row; `None` if such rows are deleted.
    pub(super) flag: Option<String>,
    /// When the row was written, in UTC, if that is wanted.
    pub(super) synced_at: Option<String>,
}

impl Own {
    pub(super) fn of(brief: &Brief) -> Self {
        Self {
            flag: brief.soft_delete.enabled.then(|| brief.soft_delete.column.clone()),
            synced_at: (!brief.synced_at_column.is_empty()).then(|| brief.synced_at_column.clone()),
        }
    }

    /// All names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.flag.as_deref().into_iter().chain(self.synced_at.as_deref())
    }

    /// Their definitions.
    pub(super) fn definitions(&self) -> impl Iterator<Item = String> {
        let flag = self.flag.iter().map(|name| format!("{} BOOLEAN NOT NULL DEFAULT FALSE", ident(name)));
        flag.chain(self.synced_at.iter().map(|name| format!("{} TIMESTAMP_NTZ(6)", ident(name))))
    }

    /// Names and values of a row that is written now. `now` is an expression.
    pub(super) fn values(&self, deleted: &str, now: &str) -> Vec<(String, String)> {
        let flag = self.flag.iter().map(|name| (ident(name), deleted.to_string()));
        flag.chain(self.synced_at.iter().map(|name| (ident(name), now.to_string()))).collect()
    }
}

/// Names of the key's columns at the destination.
pub(super) fn key(table: &TableSchema) -> Vec<&str> {
    table.key().iter().filter_map(|i| table.columns.get(*i)).map(|c| c.destination.as_str()).collect()
}
