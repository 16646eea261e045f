//! What only mirrors to ClickHouse have.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What becomes of dates and times that ClickHouse's types do not hold: before 1900, after 2299, and the infinite ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OutOfRange {
    /// The nearest one that the type holds; in columns of the key as Error, since two rows must not become one.
    #[default]
    Clamp,
    /// The load stops and says where; in the change stream the table is parked.
    Error,
    /// Columns of dates and times are Strings, with PostgreSQL's text.
    String,
}

/// How a table is kept at ClickHouse. Changes take effect with the next resync.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClickHouseTable {
    /// ReplacingMergeTree keeps the last version of each row, which FINAL shows. CoalescingMergeTree does too, but where that is NULL it keeps the value
    /// before it, and FINAL shows deleted rows. MergeTree keeps every version, for tables that are only added to and for those without a key. Null keeps
    /// nothing, for materialized views that read the inserts.
    pub engine: Engine,
    /// Columns of the sorting key, by their names at the destination; the key of the source if empty. The key's columns are added at the end where they are missing,
    /// as rows with the same sorting key are versions of one.
    #[schemars(length(max = 50))]
    pub order_by: Vec<String>,
    /// Columns of the primary key: a prefix of the sorting key, which it is if this is empty.
    #[schemars(length(max = 50))]
    pub primary_key: Vec<String>,
    /// Expression of the partition key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub partition_by: Option<String>,
    /// Expression of the TTL.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub ttl: Option<String>,
    /// Settings of the table.
    pub settings: BTreeMap<String, String>,
    /// Which columns are Nullable.
    pub nullable: NullableColumns,
    /// What becomes of dates and times that ClickHouse's types do not hold.
    pub out_of_range: OutOfRange,
    /// Takes over a table that is there already, such as one that PeerDB has filled: its soft-deleted rows are carried over, and it is kept as long as
    /// the tables of earlier epochs are. Without this a table that is not empty and not this mirror's own is refused.
    pub adopt: bool,
}

/// The engine of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Engine {
    /// The last version of each row counts.
    #[default]
    ReplacingMergeTree,
    /// Of each column the last value that is not NULL counts. ClickHouse 25.6 or newer.
    CoalescingMergeTree,
    /// Every version of each row is kept.
    MergeTree,
    /// Nothing is kept.
    Null,
}

/// Which columns are Nullable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NullableColumns {
    /// Those that may be NULL at the source.
    #[default]
    AsSource,
    /// None: NULL becomes the type's default, such as 0 or the empty text.
    Never,
}
