//! Reads chunks: `COPY … TO STDOUT` under the snapshot. I/O.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_postgres::{Client, CopyOutStream};

use super::{Error, pace::Pace, snapshot};
use crate::{
    brief::Brief,
    destination::Chunk,
    postgres::{Lsn, connect, ident},
    table::{Column, TableSchema},
};

/// Rows are passed on in pieces of about this size: the driver yields them one by one, and a message for each would cost more than the row.
pub const PIECE: usize = 256 << 10;
/// A piece ends with the row that fills it.
const CAPACITY: usize = PIECE + (PIECE >> 2);
/// Pieces between the reader and the writer.
pub const PIECES: usize = 3;

/// A chunk that is read again brings the same rows in the same order: scans begin at the front, whoever else is at the table, and one process reads. A destination
/// without transactions tells by that what it has already.
const SAME_ORDER: &str = "SET synchronize_seqscans = off; SET max_parallel_workers_per_gather = 0";

/// A session that reads chunks, one at a time.
pub struct Reader {
    client: Client,
}

/// A chunk being read. Dropped before its end, its [`Reader`] is of no further use.
pub struct Rows<'a> {
    client: &'a Client,
    stream: Pin<Box<CopyOutStream>>,
    relation: u32,
    what: String,
}

impl Reader {
    /// Connects.
    pub async fn connect(brief: &Brief) -> Result<Self, Error> {
        let client = connect::connect(&brief.source, &brief.application_name("reader")).await?;
        client.batch_execute(SAME_ORDER).await.map_err(Error::query("preparing a reader"))?;
        Ok(Self { client })
    }

    /// Begins to read a chunk as the snapshot `name` sees it. The transaction is short, so that whoever waits for the table's lock waits for one chunk.
    pub async fn open(&self, name: &str, lsn: Lsn, table: &TableSchema, chunk: &Chunk) -> Result<Rows<'_>, Error> {
        snapshot::begin(&self.client, name, lsn).await?;
        let what = format!("reading {} (relation {}, from block {})", table.source, chunk.relation, chunk.first_block);
        let row = self.client.query_opt(RELATION, &[&chunk.relation]).await.map_err(Error::query(&what))?;
        let Some(row) = row else {
            let message = format!("{}: relation {} is gone since the plan was made; resync the mirror", table.source, chunk.relation);
            return Err(Error::refused("SourceSchemaChanged", message));
        };
        let stream = self.client.copy_out(&statement(table, row.get(0), chunk)).await.map_err(Error::query(&what))?;
        Ok(Rows { client: &self.client, stream: Box::pin(stream), relation: chunk.relation, what })
    }

    /// Whether this session is the only one that works on `partition`. Told by an advisory lock, which ends with the session.
    pub async fn claim(&self, brief: &Brief, partition: u32) -> Result<bool, Error> {
        let key = brief.application_name("partition");
        let row = self.client.query_one("SELECT pg_try_advisory_lock(hashtext($1), $2)", &[&key, &(partition as i32)]).await;
        Ok(row.map_err(Error::query("claiming a partition"))?.get(0))
    }
}

impl Rows<'_> {
    /// Passes all rows on in large pieces, ends the transaction, and only then ends the pieces. Returns false if the receiver lost interest;
    /// the session is then of no further use, as after an error.
    pub async fn pass_on(mut self, to: mpsc::Sender<Result<Bytes, String>>, pace: &mut Pace) -> Result<bool, Error> {
        match self.pieces(&to, pace).await {
            Ok(whole) => Ok(whole),
            Err(error) => {
                // The receiver learns that this is not the end; the error itself goes to the caller.
                let _ = to.send(Err(error.to_string())).await;
                Err(error)
            }
        }
    }

    async fn pieces(&mut self, to: &mpsc::Sender<Result<Bytes, String>>, pace: &mut Pace) -> Result<bool, Error> {
        let mut piece = BytesMut::with_capacity(CAPACITY);
        while let Some(row) = self.stream.next().await {
            piece.extend_from_slice(&row.map_err(Error::query(&self.what))?);
            if piece.len() >= PIECE {
                pace.take(piece.len()).await;
                let full = std::mem::replace(&mut piece, BytesMut::with_capacity(CAPACITY));
                if to.send(Ok(full.freeze())).await.is_err() {
                    return Ok(false);
                }
            }
        }
        self.refuse_rewritten().await?;
        self.client.batch_execute("COMMIT").await.map_err(Error::query(&self.what))?;
        Ok(piece.is_empty() || to.send(Ok(piece.freeze())).await.is_ok())
    }

    /// A table rewritten since the snapshot (VACUUM FULL, CLUSTER, TRUNCATE, ALTER TABLE) has its rows in other blocks, or hides them from the snapshot.
    /// Asked at the end, when the lock that the COPY took still keeps it as it was while it was read.
    async fn refuse_rewritten(&self) -> Result<(), Error> {
        let row = self.client.query_one(REWRITTEN, &[&vec![self.relation]]).await.map_err(Error::query(&self.what))?;
        if row.get(0) { Err(Error::Rewritten(self.what.clone())) } else { Ok(()) }
    }
}

/// Whether one of these relations of the session's snapshot has been rewritten since.
pub async fn rewritten(client: &Client, relations: &[u32]) -> Result<bool, Error> {
    let row = client.query_one(REWRITTEN, &[&relations]).await.map_err(Error::query("looking for rewritten tables"))?;
    Ok(row.get(0))
}

/// The statement that reads a chunk. ONLY, because each leaf of a partitioned table is read by itself.
pub fn statement(table: &TableSchema, relation: &str, chunk: &Chunk) -> String {
    let columns: Vec<String> = table.copied().map(value).collect();
    let mut bounds = Vec::new();
    if chunk.first_block > 0 {
        bounds.push(format!("ctid >= '({},0)'::tid", chunk.first_block));
    }
    if let Some(end) = chunk.end_block {
        bounds.push(format!("ctid < '({end},0)'::tid"));
    }
    let condition = if bounds.is_empty() { String::new() } else { format!(" WHERE {}", bounds.join(" AND ")) };
    let format = if table.binary() { "binary" } else { "text" };
    format!("COPY (SELECT {} FROM ONLY {relation}{condition}) TO STDOUT (FORMAT {format})", columns.join(", "))
}

/// What is read of a column. As text it is what the type's output function prints, as in the change stream: some casts to text print otherwise (inet), and
/// some values that are not NULL are neither IS NULL nor IS NOT NULL (composites).
fn value(column: &Column) -> String {
    let name = ident(&column.source);
    if column.as_text { format!("CASE WHEN num_nulls({name}) = 0 THEN format('%s', {name}) END") } else { name }
}

/// The name of now, quoted and qualified as the session's `search_path` is empty: a table may have been renamed since the snapshot.
const RELATION: &str = "SELECT oid::regclass::text FROM pg_class WHERE oid = $1 AND pg_relation_filenode(oid) IS NOT NULL";

/// `pg_class` answers as of the snapshot, the function as of now.
const REWRITTEN: &str = "SELECT EXISTS (SELECT FROM pg_class WHERE oid = ANY ($1::oid[]) AND pg_relation_filenode(oid) <> relfilenode)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Identity, TableName};

    fn table(binary: bool) -> TableSchema {
        let column = |name: &str, generated: Option<&str>| Column {
            source: name.into(),
            destination: name.into(),
            source_type: "integer".into(),
            source_type_oid: 23,
            destination_type: "integer".into(),
            not_null: false,
            generated: generated.map(str::to_string),
            binary,
            as_text: name == "cast",
        };
        let name = TableName { schema: "public".into(), name: "t".into() };
        TableSchema {
            number: 0,
            source: name.clone(),
            source_oid: 1,
            destination: name,
            columns: vec![column("a", None), column("sum", Some("a + 1")), column("b \"c\"", None), column("cast", None)],
            identity: Identity::FullRow,
        }
    }

    #[test]
    fn a_chunk_reads_exactly_its_blocks() {
        let chunk = |first_block, end_block| Chunk { number: 0, partition: 0, table: 0, relation: 1, first_block, end_block, bytes: 0 };
        let sql = |binary, first, end| statement(&table(binary), "public.t", &chunk(first, end));
        let select = r#"COPY (SELECT "a", "b ""c""", CASE WHEN num_nulls("cast") = 0 THEN format('%s', "cast") END FROM ONLY public.t"#;
        assert_eq!(sql(true, 0, None), format!("{select}) TO STDOUT (FORMAT binary)"));
        assert_eq!(sql(false, 0, Some(8)), format!("{select} WHERE ctid < '(8,0)'::tid) TO STDOUT (FORMAT text)"));
        assert_eq!(
            sql(true, 8, Some(9)),
            format!("{select} WHERE ctid >= '(8,0)'::tid AND ctid < '(9,0)'::tid) TO STDOUT (FORMAT binary)")
        );
        assert_eq!(sql(true, 9, None), format!("{select} WHERE ctid >= '(9,0)'::tid) TO STDOUT (FORMAT binary)"));
    }
}
