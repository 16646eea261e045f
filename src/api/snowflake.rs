//! What only mirrors to Snowflake have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How names reach Snowflake, where they are always quoted. Those of the Peer and of the Mirror follow one rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Names {
    /// A name without capital letters is written in capitals, so that queries find it without quotes: `orders` is `ORDERS`. A name with capital letters stays as
    /// it is: `OrderLines` is `"OrderLines"`.
    #[default]
    Upper,
    /// Names stay as they are: `orders` is `"orders"`, which queries find in quotes only.
    AsSource,
}

impl Names {
    /// A name as Snowflake stores it.
    pub fn stored(self, name: &str) -> String {
        match self {
            Self::Upper if !name.chars().any(char::is_uppercase) => name.to_uppercase(),
            _ => name.to_string(),
        }
    }
}

/// What becomes of dates and times that Snowflake's types do not hold: before the year 1, after 9999, the infinite ones, and the time 24:00.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BeyondRange {
    /// The nearest one that the type holds.
    #[default]
    Clamp,
    /// The load stops and says where; in the change stream the table is parked.
    Error,
}

/// How a table is kept at Snowflake. Changes take effect with the next resync.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SnowflakeTable {
    /// Expressions of the clustering key, such as `"CREATED_AT"` or `to_date("CREATED_AT")`. If empty, a resync keeps the key that the live table has.
    #[schemars(length(max = 10))]
    pub cluster_by: Vec<String>,
    /// Whether the table is TRANSIENT: without Fail-safe, which makes it cheaper to keep.
    pub transient: bool,
    /// What becomes of dates and times that Snowflake's types do not hold.
    pub out_of_range: BeyondRange,
    /// Takes over a table that is there already, such as one that PeerDB has filled: its soft-deleted rows are carried over, and it is kept as long as
    /// the tables of earlier epochs are. Without this a table that is not empty and not this mirror's own is refused.
    pub adopt: bool,
}

#[cfg(test)]
mod tests {
    use super::Names::{AsSource, Upper};

    #[test]
    fn names_without_capitals_are_found_without_quotes() {
        for (name, upper) in [("orders", "ORDERS"), ("Orders", "Orders"), ("ORDERS", "ORDERS"), ("größe 1", "GRÖSSE 1"), ("_x$", "_X$")]
        {
            assert_eq!((Upper.stored(name), AsSource.stored(name)), (upper.to_string(), name.to_string()));
        }
    }
}
