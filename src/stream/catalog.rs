//! What the stream does not tell of a table, from the source's catalog. I/O.

use tokio_postgres::Client;

use super::{Streamed, advise::StreamError};
use crate::{
    brief::Brief,
    postgres::{self, connect::words},
    source::{
        catalog,
        pgoutput::{Relation, RelationColumn},
        type_map::{Kind, SourceType},
    },
};

/// An ordinary session at the source, opened when it is first needed.
pub(super) struct Catalog<'a> {
    brief: &'a Brief,
    client: Option<Client>,
}

/// A column that was added at the source.
#[derive(Debug)]
pub(super) struct Added {
    pub not_null: bool,
    /// The value of rows that were there before, in text form.
    pub fill: Option<String>,
    /// Whether rows that were there before may have values that cannot be known.
    pub unknown: bool,
}

impl<'a> Catalog<'a> {
    pub fn new(brief: &'a Brief) -> Self {
        Self { brief, client: None }
    }

    async fn client(&mut self) -> Streamed<&Client> {
        let client = match self.client.take() {
            Some(client) if !client.is_closed() => client,
            _ => {
                let role = self.brief.application_name("catalog");
                postgres::connect(&self.brief.source, &role).await.map_err(|e| StreamError::Source(e.to_string()))?
            }
        };
        Ok(self.client.insert(client))
    }

    /// The types of a relation's columns as `format_type` prints them.
    pub async fn types(&mut self, relation: &Relation) -> Streamed<Vec<String>> {
        let (oids, modifiers): (Vec<u32>, Vec<i32>) = relation.columns.iter().map(|c| (c.type_oid, c.type_modifier)).unzip();
        let sql =
            "SELECT format_type(oid, modifier) FROM unnest($1::oid[], $2::int[]) WITH ORDINALITY AS c (oid, modifier, nth) ORDER BY nth";
        let rows = self.client().await?.query(sql, &[&oids, &modifiers]).await.map_err(|e| StreamError::Source(words(&e)))?;
        // NULL for a type that is gone by now.
        Ok(rows.iter().map(|r| r.get::<_, Option<String>>(0).unwrap_or_else(|| "???".into())).collect())
    }

    /// What an added column is made of. A type that is gone by now is taken for one that only its text tells of.
    pub async fn source_type(&mut self, column: &RelationColumn) -> Streamed<SourceType> {
        let found = catalog::source_type_of(self.client().await?, column.type_oid, column.type_modifier).await;
        let gone = || SourceType { oid: column.type_oid, text: "???".into(), kind: Kind::Other, element: None, sendable: false };
        Ok(found.map_err(|e| StreamError::Source(e.to_string()))?.unwrap_or_else(gone))
    }

    /// The tables that a table is a partition or a child of, at any distance.
    pub async fn ancestors(&mut self, oid: u32) -> Streamed<Vec<u32>> {
        let sql = "WITH RECURSIVE up (oid) AS (SELECT $1::oid UNION SELECT i.inhparent FROM pg_inherits i JOIN up ON i.inhrelid = up.oid) SELECT oid FROM up";
        let rows = self.client().await?.query(sql, &[&oid]).await.map_err(|e| StreamError::Source(words(&e)))?;
        Ok(rows.iter().map(|r| r.get(0)).collect())
    }

    /// What is known of an added column; a column that is gone by now has left nothing behind.
    ///
    /// PostgreSQL keeps a constant default of an added column as the value of all rows that were there (docs, "pg_attribute": attmissingval). With a default
    /// but without that, the table was written anew, with a value for each row that only a resync can bring; or, where nothing was ever written anew, the
    /// default was set later, for new rows only. A heap that was never rewritten has the number of its table (PostgreSQL source, heap_create).
    pub async fn added(&mut self, relation: u32, column: &str) -> Streamed<Added> {
        let sql = "SELECT attnotnull, atthasdef AND NOT atthasmissing AND EXISTS (
                              SELECT FROM (SELECT relid::oid FROM pg_partition_tree($1::oid::regclass) WHERE isleaf UNION SELECT $1::oid) AS leaf (oid)
                              WHERE pg_relation_filenode(leaf.oid) <> leaf.oid),
                          (attmissingval::text::text[])[1]
                   FROM pg_attribute WHERE attrelid = $1 AND attname = $2 AND attnum > 0 AND NOT attisdropped";
        let row = self.client().await?.query_opt(sql, &[&relation, &column]).await.map_err(|e| StreamError::Source(words(&e)))?;
        Ok(match row {
            Some(row) => Added { not_null: row.get(0), unknown: row.get(1), fill: row.get(2) },
            None => Added { not_null: false, fill: None, unknown: false },
        })
    }
}
