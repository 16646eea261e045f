//! What only mirrors to ClickHouse have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What becomes of dates and times that ClickHouse's types do not hold: before 1900, after 2299, and the infinite ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OutOfRange {
    /// The nearest one that the type holds.
    #[default]
    Clamp,
    /// The load stops and says where; in the change stream the table is parked.
    Error,
    /// Columns of dates and times are Strings, with PostgreSQL's text.
    String,
}
