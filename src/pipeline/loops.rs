//! A mirror whose source and destination are one database: fine, unless what it writes is what it reads.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hasher, RandomState},
};

use tokio_postgres::Client;

use crate::{
    brief::{Brief, DestinationPeer},
    destination::Error as DestinationError,
    name,
    postgres::{connect, connect::words},
    report::Failure,
    source::{Error, error::failure, slot},
    table::{TableName, TableSchema},
    trouble::Trouble,
};

/// The tables that would be written and read at once, as problems. Changes nothing.
pub async fn check(brief: &Brief, source: &Client, tables: &[TableSchema]) -> Result<Vec<Failure>, Trouble> {
    let found = written_and_read(tables);
    if found.is_empty() {
        return Ok(found);
    }
    let DestinationPeer::Postgres(to) = &brief.destination else { return Ok(vec![]) };
    let destination = connect::connect(to, &slot::housekeeping(brief)).await.map_err(DestinationError::from)?;
    Ok(if are_one(source, &destination).await? { found } else { vec![] })
}

/// Whether two sessions are of one database of one server, whatever its address and role. An advisory lock tells, as it is known to its database only: it
/// needs no right, and a server that was cloned from another has a lock table of its own, unlike a system identifier.
async fn are_one(source: &Client, destination: &Client) -> Result<bool, Trouble> {
    // A key of this look's own: the standard library's hasher is seeded from the system's random numbers.
    let key = RandomState::new().build_hasher().finish() as i64;
    let doing = "comparing source and destination";
    source.execute("SELECT pg_advisory_lock($1)", &[&key]).await.map_err(Error::query(doing))?;
    let row = destination.query_one("SELECT NOT pg_try_advisory_xact_lock($1)", &[&key]).await;
    source.execute("SELECT pg_advisory_unlock($1)", &[&key]).await.map_err(Error::query(doing))?;
    let row = row.map_err(|e| DestinationError::Transient(format!("{doing}: {}", words(&e))))?;
    Ok(row.get(0))
}

/// What is wrong if both sides are one database. Pure.
fn written_and_read(tables: &[TableSchema]) -> Vec<Failure> {
    let read: BTreeSet<&TableName> = tables.iter().map(|t| &t.source).collect();
    let mut found = Vec::new();
    for table in tables {
        let helper = |name: String| TableName { schema: table.destination.schema.clone(), name };
        let live = table.destination.clone();
        let written = [helper(name::shadow(&live.name)), helper(name::retired(&live.name)), live];
        for written in written.iter().filter(|w| read.contains(w)) {
            let message = format!(
                "{written} would be read and written by this mirror: both of its Peers name the same database. Give {} another `destination`, or correct the Peers",
                table.source
            );
            found.push(failure("Loop", message));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Identity;

    fn table(source: &str, destination: &str) -> TableSchema {
        let name = |name: &str| TableName { schema: "public".into(), name: name.into() };
        let (source, destination) = (name(source), name(destination));
        TableSchema { number: 0, source, source_oid: 1, destination, columns: vec![], identity: Identity::FullRow, partition_key: None }
    }

    #[test]
    fn a_table_that_is_written_under_the_name_of_one_that_is_read_is_a_loop() {
        let of = |tables: &[TableSchema]| written_and_read(tables).into_iter().map(|f| f.message).collect::<Vec<_>>();
        assert!(of(&[table("a", "b"), table("c", "d")]).is_empty());
        assert!(of(&[table("a", "a")])[0].starts_with("public.a would be read and written"));
        assert!(of(&[table("a", "b"), table("b", "c")])[0].starts_with("public.b "));
        assert!(of(&[table("a", "b"), table("b_resync", "c")])[0].starts_with("public.b_resync "));
    }
}
