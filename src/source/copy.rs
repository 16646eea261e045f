//! Reads chunks: `COPY … TO STDOUT` under the snapshot. I/O.

use bytes::BytesMut;
use tokio_postgres::Client;

use super::{Error, ahead::Ahead, keys, pace::Pace, snapshot};
use crate::{
    brief::Brief,
    destination::Chunk,
    postgres::{
        Lsn, ident, literal,
        wire::{CopySession, WireError},
    },
    table::{Column, TableSchema},
};

/// Rows are passed on in pieces of about this size: a message for each would cost more than the row.
pub const PIECE: usize = 256 << 10;
/// A piece ends with the row that fills it.
const CAPACITY: usize = PIECE + (PIECE >> 2);

/// A chunk that is read again brings the same rows in the same order: scans begin at the front, whoever else is at the table, and one process reads. A destination
/// without transactions tells by that what it has already. What is read by keys is sorted: see [`by_key`].
const SAME_ORDER: &str = "SET synchronize_seqscans = off; SET max_parallel_workers_per_gather = 0";

/// A session that reads chunks, one at a time.
pub struct Reader {
    pub(super) session: CopySession,
}

/// A chunk being read. Dropped before its end, its [`Reader`] is of no further use.
pub struct Rows<'a> {
    session: &'a mut CopySession,
    statement: String,
    relation: u32,
    /// What the relation was called when it was asked for.
    name: String,
    what: String,
}

impl Reader {
    /// Connects.
    pub async fn connect(brief: &Brief) -> Result<Self, Error> {
        let mut session = CopySession::connect(&brief.source, &brief.application_name("reader")).await?;
        session.query(SAME_ORDER).await.map_err(|cause| reading("preparing a reader", cause))?;
        Ok(Self { session })
    }

    /// Begins to read a chunk as the snapshot `name` sees it. The transaction is short, so that whoever waits for the table's lock waits for one chunk.
    pub async fn open(&mut self, name: &str, lsn: Lsn, table: &TableSchema, chunk: &Chunk) -> Result<Rows<'_>, Error> {
        self.begin(name, lsn).await?;
        let what = format!("reading {} (relation {}, chunk {})", table.source, chunk.relation, chunk.number);
        let named = self.session.query(&relation(chunk.relation)).await.map_err(|cause| reading(&what, cause))?;
        let Some(Some(now)) = named.first().and_then(|row| row.first()) else {
            let message = format!("{}: relation {} is gone since the plan was made; resync the mirror", table.source, chunk.relation);
            return Err(Error::refused("SourceSchemaChanged", message));
        };
        let (name, statement) = (now.clone(), statement(table, now, chunk));
        Ok(Rows { session: &mut self.session, statement, relation: chunk.relation, name, what })
    }

    /// Begins a transaction that sees exactly the snapshot.
    pub(super) async fn begin(&mut self, name: &str, lsn: Lsn) -> Result<(), Error> {
        self.query(&snapshot::beginning(name)).await.map(drop).map_err(|cause| match &cause {
            WireError::Server { sqlstate, .. } if snapshot::is_gone(sqlstate) => Error::SnapshotGone { name: name.into(), lsn },
            _ => reading(format!("importing the snapshot at {lsn}"), cause),
        })
    }

    /// Runs SQL and returns all rows as texts.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, WireError> {
        self.session.query(sql).await
    }

    /// Whether this session is the only one that works on `partition`. Told by an advisory lock, which ends with the session.
    pub async fn claim(&mut self, brief: &Brief, partition: u32) -> Result<bool, Error> {
        self.claim_as(&brief.application_name("partition"), partition).await
    }

    pub(super) async fn claim_as(&mut self, role: &str, number: u32) -> Result<bool, Error> {
        let sql = format!("SELECT pg_try_advisory_lock(hashtext({}), {number})", literal(role));
        let answer = self.query(&sql).await.map_err(|cause| reading("claiming a part of the work", cause))?;
        Ok(is_true(&answer))
    }
}

/// The error of a statement, with what was being done.
pub(super) fn reading(doing: impl Into<String>, cause: WireError) -> Error {
    Error::Reading { doing: doing.into(), cause }
}

/// Whether a statement's answer is a single `true`.
pub(super) fn is_true(answer: &[Vec<Option<String>>]) -> bool {
    matches!(answer, [row] if matches!(row.as_slice(), [Some(value)] if value == "t"))
}

impl Rows<'_> {
    /// Passes all rows on in large pieces, ends the transaction, and only then ends the pieces. Returns false if the receiver lost interest;
    /// the session is then of no further use, as after an error.
    pub async fn pass_on(mut self, to: Ahead, pace: &mut Pace) -> Result<bool, Error> {
        match self.pieces(&to, pace).await {
            Ok(whole) => Ok(whole),
            Err(error) => {
                // The receiver learns that this is not the end; the error itself goes to the caller.
                to.fail(error.to_string()).await;
                Err(error)
            }
        }
    }

    async fn pieces(&mut self, to: &Ahead, pace: &mut Pace) -> Result<bool, Error> {
        let what = &self.what;
        let mut piece = BytesMut::with_capacity(CAPACITY);
        let mut rows = self.session.copy_out(&self.statement).await.map_err(|cause| reading(what, cause))?;
        while rows.read(&mut piece, PIECE).await.map_err(|cause| reading(what, cause))? {
            pace.take(piece.len()).await;
            if !to.send(std::mem::take(&mut piece).freeze()).await {
                return Ok(false);
            }
            piece.reserve(CAPACITY);
        }
        refuse_changed(self.session, self.relation, &self.name, what).await?;
        self.session.query("COMMIT").await.map_err(|cause| reading(&self.what, cause))?;
        Ok(piece.is_empty() || to.send(piece.freeze()).await)
    }
}

/// Refuses what was read of a relation that is not what the snapshot has of it, or that is another one. Asked at the end, when the locks that reading took
/// still keep everything as it was while it was read.
///
/// A table rewritten since the snapshot (VACUUM FULL, CLUSTER, TRUNCATE, ALTER TABLE) has its rows in other blocks, or hides them from the snapshot. And
/// whoever waited for the lock may have given the relation's name to another one after it was asked for and before it was read by it: then this one is
/// called otherwise now, and the lock is on the other one, which keeps the name.
pub(super) async fn refuse_changed(session: &mut CopySession, relation: u32, name: &str, what: &str) -> Result<(), Error> {
    let query = format!("{}, {relation}::regclass::text IS NOT DISTINCT FROM {}", are_rewritten(&[relation]), literal(name));
    let answer = session.query(&query).await.map_err(|cause| reading(what, cause))?;
    match answer.first().map(Vec::as_slice) {
        Some([Some(rewritten), _]) if rewritten == "t" => Err(Error::Rewritten(what.into())),
        Some([Some(_), Some(same)]) if same == "t" => Ok(()),
        _ => Err(Error::Passing(format!("{what}: it was renamed meanwhile, and is read again by its new name"))),
    }
}

/// Whether one of these relations of the session's snapshot has been rewritten since.
pub async fn rewritten(client: &Client, relations: &[u32]) -> Result<bool, Error> {
    let row = client.query_one(&are_rewritten(relations), &[]).await.map_err(Error::query("looking for rewritten tables"))?;
    Ok(row.get(0))
}

/// The statement that reads a chunk. ONLY, because each leaf of a partitioned table is read by itself.
pub fn statement(table: &TableSchema, relation: &str, chunk: &Chunk) -> String {
    let columns: Vec<String> = table.copied().map(value).collect();
    let (bounds, order) = match &table.partition_key {
        None => (by_block(chunk), String::new()),
        Some(key) => by_key(&ident(key), table, chunk),
    };
    let condition = if bounds.is_empty() { String::new() } else { format!(" WHERE {}", bounds.join(" AND ")) };
    let format = if table.binary() { "binary" } else { "text" };
    format!("COPY (SELECT {} FROM ONLY {relation}{condition}{order}) TO STDOUT (FORMAT {format})", columns.join(", "))
}

fn by_block(chunk: &Chunk) -> Vec<String> {
    let first = (chunk.first > 0).then(|| format!("ctid >= '({},0)'::tid", chunk.first));
    first.into_iter().chain(chunk.end.map(|end| format!("ctid < '({end},0)'::tid"))).collect()
}

/// Bounds and order. NULL is no key, and comes with the first chunk.
///
/// No scan is bound to bring rows in the same order twice: the planner may choose another, and views and foreign tables have none. So they are sorted, by the
/// key and then by a hash of the whole row, for not every type can be sorted. Rows of the same key and hash are equal, and it does not matter which comes
/// first; should they ever not be (one in 2^64 of such pairs), only a chunk that was torn off could come otherwise, and the count of its rows would tell.
fn by_key(key: &str, table: &TableSchema, chunk: &Chunk) -> (Vec<String>, String) {
    let at = |position| format!("'{}'::int8", keys::key(position));
    let bounds = match (chunk.first, chunk.end) {
        (0, None) => vec![],
        (0, Some(end)) => vec![format!("({key} < {} OR {key} IS NULL)", at(end))],
        (first, end) => std::iter::once(format!("{key} >= {}", at(first))).chain(end.map(|end| format!("{key} < {}", at(end)))).collect(),
    };
    let columns: Vec<String> = table.copied().map(|column| ident(&column.source)).collect();
    (bounds, format!(" ORDER BY {key}, hashtextextended(ROW({})::text, 0)", columns.join(", ")))
}

/// What is read of a column. As text it is what the type's output function prints, as in the change stream: some casts to text print otherwise (inet), and
/// some values that are not NULL are neither IS NULL nor IS NOT NULL (composites).
fn value(column: &Column) -> String {
    let name = ident(&column.source);
    if column.as_text { format!("CASE WHEN num_nulls({name}) = 0 THEN format('%s', {name}) END") } else { name }
}

/// Asks for the name of now, quoted and qualified as the session's `search_path` is empty: a table may have been renamed since the snapshot. `pg_class`
/// answers as of the snapshot, the function as of now: with NULL for what is gone.
fn relation(oid: u32) -> String {
    format!("SELECT oid::regclass::text FROM pg_class WHERE oid = {oid} AND pg_table_is_visible(oid) IS NOT NULL")
}

/// `pg_class` answers as of the snapshot, the function as of now: with NULL for what is gone. A view is what it reads, at any depth, but for what functions
/// read that it calls; catalogs, which may have no file number, are not looked at.
fn are_rewritten(relations: &[u32]) -> String {
    let oids: Vec<String> = relations.iter().map(u32::to_string).collect();
    format!(
        "WITH RECURSIVE read (oid) AS (
           SELECT unnest('{{{}}}'::oid[])
            UNION
           SELECT below.oid FROM read CROSS JOIN LATERAL (
             SELECT d.refobjid FROM pg_class v JOIN pg_rewrite r ON r.ev_class = v.oid JOIN pg_depend d ON d.objid = r.oid
              WHERE v.oid = read.oid AND v.relkind = 'v' AND d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
              UNION ALL
             SELECT inhrelid FROM pg_inherits WHERE inhparent = read.oid) AS below (oid))
         SELECT EXISTS (SELECT FROM read JOIN pg_class c ON c.oid = read.oid WHERE c.relfilenode <> 0 AND pg_relation_filenode(c.oid) IS DISTINCT FROM c.relfilenode)",
        oids.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Identity, TableName};

    fn table(binary: bool) -> TableSchema {
        let column = |name: &str, generated: Option<&str>| Column {
            source: name.into(),
            destination: name.into(),
            source_type: "integer".into(),
            base_type: None,
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
            partition_key: None,
        }
    }

    fn chunk(first: u64, end: Option<u64>) -> Chunk {
        Chunk { number: 0, partition: 0, table: 0, relation: 1, first, end, bytes: 0 }
    }

    #[test]
    fn a_chunk_of_keys_reads_exactly_its_range_sorted_and_the_first_one_what_has_no_key() {
        let keyed = TableSchema { partition_key: Some("a \"b\"".into()), ..table(true) };
        let position = |key: i64| keys::position(key);
        let order = r#"ORDER BY "a ""b""", hashtextextended(ROW("a", "b ""c""", "cast")::text, 0)) TO STDOUT (FORMAT binary)"#;
        for (first, end, condition) in [
            (0, None, ""),
            (0, Some(position(-5)), r#"WHERE ("a ""b""" < '-5'::int8 OR "a ""b""" IS NULL) "#),
            (position(-5), Some(position(7)), r#"WHERE "a ""b""" >= '-5'::int8 AND "a ""b""" < '7'::int8 "#),
            (position(7), None, r#"WHERE "a ""b""" >= '7'::int8 "#),
        ] {
            let sql = statement(&keyed, "public.t", &chunk(first, end));
            assert!(sql.ends_with(&format!("FROM ONLY public.t {condition}{order}")), "{sql}");
        }
    }

    #[test]
    fn a_chunk_reads_exactly_its_blocks() {
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
