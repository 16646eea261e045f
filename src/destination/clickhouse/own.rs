//! The columns that every table has beside the source's, and its sorting key. Pure.

use super::{encode::Rules, quote::ident};
use crate::{
    api::clickhouse::{ClickHouseTable, NullableColumns},
    brief::Brief,
    table::TableSchema,
};

/// The position of a row's change: its commit's, and within that its own, in 64 bits each; 0 for rows of the load and those that were carried over.
pub const VERSION: &str = "_peerdb_version";

/// The names of the columns, as the brief has them.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// 1 for a deleted row. Always there: the engine needs it.
    pub(super) flag: String,
    /// When the row was written, if that is wanted.
    pub(super) synced_at: Option<String>,
}

impl Own {
    pub(super) fn of(brief: &Brief) -> Self {
        let synced_at = (!brief.synced_at_column.is_empty()).then(|| brief.synced_at_column.clone());
        Self { flag: brief.soft_delete.column.clone(), synced_at }
    }

    /// All names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        [self.flag.as_str(), VERSION].into_iter().chain(self.synced_at.as_deref())
    }

    /// Their definitions.
    pub(super) fn definitions(&self) -> Vec<String> {
        let mut all = vec![format!("{} UInt8 DEFAULT 0", ident(&self.flag))];
        all.extend(self.synced_at.iter().map(|name| format!("{} DateTime64(6, 'UTC') DEFAULT now64(6)", ident(name))));
        all.push(format!("{} UInt128 DEFAULT 0", ident(VERSION)));
        all
    }

    /// The order in which the last version of a row comes first. Of a row whose sorting key changed there are two with the same version: the one that lives is the last.
    pub(super) fn newest_first(&self) -> String {
        format!("{} DESC, {} ASC", ident(VERSION), ident(&self.flag))
    }
}

/// Names of the key's columns at the destination.
pub(super) fn key(table: &TableSchema) -> Vec<&str> {
    table.key().iter().filter_map(|i| table.columns.get(*i)).map(|c| c.destination.as_str()).collect()
}

/// The columns of the sorting key: those that are wanted, then what is missing of the key.
pub(super) fn sorting_key(table: &TableSchema, options: &ClickHouseTable) -> Vec<String> {
    let mut columns = options.order_by.clone();
    for column in key(table) {
        if !columns.iter().any(|c| c == column) {
            columns.push(column.to_string());
        }
    }
    columns
}

/// How values are written.
pub(super) fn rules(options: &ClickHouseTable) -> Rules {
    Rules { out_of_range: options.out_of_range, null_as_default: options.nullable == NullableColumns::Never }
}

/// Quoted names, separated by commas.
pub(super) fn list<T: AsRef<str>>(columns: impl IntoIterator<Item = T>) -> String {
    columns.into_iter().map(|c| ident(c.as_ref())).collect::<Vec<_>>().join(", ")
}
