//! Relations that are read by ranges of an integer column: views and foreign tables, which have no blocks, and whatever else the Mirror names a
//! `partitionKey` for.

use std::collections::HashMap;

use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Error, partition::Relation};
use crate::{
    postgres::ident,
    table::{TableName, TableSchema},
};

/// Oids of the types that a key may have: smallint, integer and bigint.
pub const TYPES: [u32; 3] = [21, 23, 20];

/// The place of a key among all that there can be, from 0.
pub fn position(key: i64) -> u64 {
    key.cast_unsigned() ^ (1 << 63)
}

/// The key at a place.
pub fn key(position: u64) -> i64 {
    (position ^ (1 << 63)).cast_signed()
}

/// Finds out where the keys of `relations` lie, for those that are read by keys: from the smallest to the largest, which an index on the key makes cheap
/// and without one is a scan. Views and foreign tables have no size either: theirs is the planner's estimate.
///
/// Of now and not of the snapshot, as rows outside of the range are read too. Not in the session that holds the snapshot: what it reads it locks until the load ends.
pub async fn measure(client: &Client, tables: &[TableSchema], relations: &mut [Relation]) -> Result<(), Error> {
    let keyed: HashMap<u32, (&TableSchema, &str)> =
        tables.iter().filter_map(|table| Some((table.number, (table, table.partition_key.as_deref()?)))).collect();
    for relation in relations {
        let Some((table, key)) = keyed.get(&relation.table) else { continue };
        let doing = || Error::query(format!("looking for the range of {} in {}", ident(key), table.source));
        let kind = "SELECT oid::regclass::text, relkind IN ('v', 'f') FROM pg_class WHERE oid = $1";
        let row = client.query_one(kind, &[&relation.oid]).await.map_err(doing())?;
        let (name, sizeless): (String, bool) = (row.get(0), row.get(1));
        let range = format!("SELECT min({0})::int8, max({0})::int8 FROM ONLY {name}", ident(key));
        let row = client.query_one(&range, &[]).await.map_err(doing())?;
        relation.positions = match (row.get(0), row.get(1)) {
            (Some(first), Some(last)) => position(first)..position(last),
            _ => 0..0,
        };
        if sizeless {
            (relation.rows, relation.bytes) = estimate(client, table, &name).await?;
        }
    }
    Ok(())
}

/// How many rows the planner expects, and of how many bytes.
async fn estimate(client: &Client, table: &TableSchema, name: &str) -> Result<(u64, u64), Error> {
    let columns: Vec<String> = table.copied().map(|column| ident(&column.source)).collect();
    let sql = format!("EXPLAIN (FORMAT JSON) SELECT {} FROM ONLY {name}", columns.join(", "));
    let answer = client.simple_query(&sql).await.map_err(Error::query(format!("estimating the size of {}", table.source)))?;
    let plan = answer.iter().find_map(|message| if let SimpleQueryMessage::Row(row) = message { row.get(0) } else { None });
    plan.and_then(expected).ok_or_else(|| unreadable(&table.source))
}

fn unreadable(table: &TableName) -> Error {
    Error::Passing(format!("the source's plan for reading {table} has no estimate of its rows"))
}

/// What an estimate says at most, of rows and of bytes: a wild one is no size, and the sums over a mirror's tables stay within what the ledger counts in.
const MOST: u64 = 1 << 50;

/// Rows and bytes as a plan in JSON has them.
fn expected(plan: &str) -> Option<(u64, u64)> {
    let plan: Value = serde_json::from_str(plan).ok()?;
    let plan = plan.get(0)?.get("Plan")?;
    let rows = plan.get("Plan Rows")?.as_f64()? as u64;
    let bytes = rows.saturating_mul(plan.get("Plan Width")?.as_u64()?);
    Some((rows.min(MOST), bytes.min(MOST)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn positions_are_in_the_order_of_the_keys(a: i64, b: i64) {
            prop_assert_eq!(position(a).cmp(&position(b)), a.cmp(&b));
            prop_assert_eq!(key(position(a)), a);
        }
    }

    #[test]
    fn the_smallest_key_is_where_an_unbounded_chunk_begins() {
        assert_eq!((position(i64::MIN), position(i64::MAX)), (0, u64::MAX));
    }

    #[test]
    fn a_plan_tells_rows_and_bytes() {
        assert_eq!(expected(r#"[{"Plan": {"Node Type": "Seq Scan", "Plan Rows": 1000, "Plan Width": 12}}]"#), Some((1000, 12_000)));
        assert_eq!(expected(r#"[{"Plan": {"Plan Rows": 1e30, "Plan Width": 12}}]"#), Some((MOST, MOST)));
        assert_eq!(expected("[]"), None);
    }
}
