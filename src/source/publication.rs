//! A publication: what it brings of a mirror's tables, and what it leaves out.

use tokio_postgres::Client;

use super::Error;
use crate::{
    postgres::{ident, qualified},
    table::{TableName, TableSchema},
};

/// A publication as the source's catalog has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// Its name.
    pub name: String,
    /// Whether it publishes inserts, updates, deletes and truncates.
    pub whole: bool,
    /// `publish_via_partition_root`.
    pub via_root: bool,
    /// The tables that it brings.
    pub tables: Vec<Published>,
}

/// A table of a publication.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Its oid: a name may be another table's by now.
    pub oid: u32,
    /// Whether only some rows are published.
    pub filtered: bool,
    /// Names of the columns that are published; empty where the server knows no column lists.
    pub columns: Vec<String>,
}

/// Something that a publication leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// In words.
    pub what: String,
    /// The statement that mends the publication.
    pub cure: String,
}

/// Reads a publication; `None` if there is none of that name.
pub async fn read(client: &Client, name: &str) -> Result<Option<Publication>, Error> {
    let doing = || Error::query(format!("reading publication {name}"));
    let query = "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot FROM pg_publication WHERE pubname::text = $1";
    let Some(row) = client.query_opt(query, &[&name]).await.map_err(doing())? else { return Ok(None) };
    let tables = client.query(PUBLISHED, &[&name]).await.map_err(doing())?;
    let tables = tables.iter().map(|row| Published { oid: row.get(0), filtered: row.get(1), columns: row.get(2) }).collect();
    Ok(Some(Publication { name: name.into(), whole: row.get(0), via_root: row.get(1), tables }))
}

/// Row filters and column lists came with version 15; the columns of the view are read by name so that 14 answers too.
const PUBLISHED: &str = "
SELECT c.oid, (to_jsonb(p) -> 'rowfilter') IS NOT NULL AND to_jsonb(p) -> 'rowfilter' <> 'null',
       ARRAY(SELECT jsonb_array_elements_text(nullif(to_jsonb(p) -> 'attnames', 'null')))
  FROM pg_publication_tables p
  JOIN pg_namespace n ON n.nspname = p.schemaname
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
 WHERE p.pubname::text = $1";

impl Publication {
    /// Whether it leaves out some kinds of changes.
    pub fn gap(&self) -> Option<Gap> {
        (!self.whole).then(|| Gap {
            what: format!("publication {} leaves out some kinds of changes", self.name),
            cure: format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')", ident(&self.name)),
        })
    }

    /// What it leaves out of a table, of which these columns are wanted.
    pub fn gap_of<'a>(&self, table: &TableName, oid: u32, partitioned: bool, mut columns: impl Iterator<Item = &'a String>) -> Option<Gap> {
        let (name, own, of) = (&self.name, ident(&self.name), qualified(&table.schema, &table.name));
        if partitioned && !self.via_root {
            return Some(Gap {
                what: format!("publication {name} publishes the partitions of {table} under their own names"),
                cure: format!("ALTER PUBLICATION {own} SET (publish_via_partition_root = true)"),
            });
        }
        let Some(published) = self.tables.iter().find(|published| published.oid == oid) else {
            return Some(Gap {
                what: format!("publication {name} does not cover {table}"),
                cure: format!("ALTER PUBLICATION {own} ADD TABLE {of}"),
            });
        };
        let missing = columns.any(|column| !published.columns.is_empty() && !published.columns.contains(column));
        (published.filtered || missing).then(|| Gap {
            what: format!("publication {name} publishes only some rows or columns of {table}"),
            cure: format!("ALTER PUBLICATION {own} DROP TABLE {of}; ALTER PUBLICATION {own} ADD TABLE {of}"),
        })
    }
}

/// The statement that creates a publication as mirrors need it.
pub fn creation(name: &str, tables: &[TableSchema]) -> String {
    let list: Vec<String> = tables.iter().map(|t| qualified(&t.source.schema, &t.source.name)).collect();
    format!("CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)", ident(name), list.join(", "))
}
