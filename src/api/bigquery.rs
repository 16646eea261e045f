//! What only mirrors to BigQuery have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a table is kept at BigQuery. Changes take effect with the next resync.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BigQueryTable {
    /// Columns that the table is clustered by, by their names at the destination; the first of the source's key that can be if empty.
    #[schemars(length(max = 4))]
    pub cluster_by: Vec<String>,
    /// Expression of the partitions as BigQuery's `PARTITION BY` has it: a column, `DATE(column)`, `DATE_TRUNC(column, MONTH)`,
    /// `TIMESTAMP_TRUNC(column, DAY)` or `RANGE_BUCKET(column, GENERATE_ARRAY(…))`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub partition_by: Option<String>,
    /// Refuses readers' queries that do not say which partitions they want.
    pub require_partition_filter: bool,
    /// What becomes of dates and times that BigQuery's types do not hold.
    pub out_of_range: OutOfRange,
    /// What becomes of NULL among an array's elements, which BigQuery's arrays do not hold.
    pub null_elements: NullElements,
    /// Takes over a table that is there already, such as one that PeerDB has filled: its soft-deleted rows are carried over, and it is kept as long as
    /// the tables of earlier epochs are. Without this a table that is not empty and not this mirror's own is refused.
    pub adopt: bool,
}

/// What becomes of dates and times that BigQuery's types do not hold: before the year 1, after 9999, the infinite ones, and the time 24:00.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OutOfRange {
    /// The nearest one that the type holds.
    #[default]
    Clamp,
    /// The load stops and says where; in the change stream the table is parked.
    Error,
    /// Columns of dates and times are STRING, with PostgreSQL's text.
    String,
}

/// What becomes of NULL among an array's elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NullElements {
    /// It is left out.
    #[default]
    Omit,
    /// The load stops and says where; in the change stream the table is parked.
    Error,
    /// Columns of arrays are STRING, with PostgreSQL's text.
    String,
}
