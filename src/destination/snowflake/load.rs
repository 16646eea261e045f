//! One chunk into its shadow: files into the stage, then COPY and the ledger's word in one transaction.

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};

use super::{
    Snowflake,
    answer::{Answer, Row},
    encode::{CopyError, CopyReader, FILE_FORMAT, RowEncoder},
    error::permanent,
    ledger::shadow_of,
    own::Own,
    quote::{ident, literal},
    stage::{File, Place},
    transaction::Transaction,
    types::Type,
};
use crate::{
    destination::{
        Chunk, Error, Loaded,
        fact::{Done, Fact, Facts, Planned, Snapshot, Table},
        gone,
    },
    table::{TableName, TableSchema},
};

/// Rows are handed on to the file in pieces of about this size.
const PIECE: usize = 256 << 10;

/// See [`Destination::load_chunk`](crate::destination::Destination::load_chunk).
///
/// The names of the files are those of chunk and generation: who uploads them again writes the same rows. They count only when the transaction that reads
/// them has found the chunk not loaded, behind the fence.
pub(super) async fn chunk(
    at: &Snowflake,
    table: &TableSchema,
    chunk: &Chunk,
    generation: u32,
    rows: BoxStream<'_, Result<Bytes, String>>,
) -> Result<Loaded, Error> {
    let doing = format!("loading {}, chunk {}", table.destination, chunk.number);
    at.fence().await?;
    let facts = at.facts_where(&of_chunk(table.number, chunk.number)).await?;
    let into = match claim(at, &facts, table, chunk, generation)? {
        Claim::Loaded(loaded) => return Ok(loaded),
        Claim::Ours(table) => table,
    };
    let encoder = RowEncoder::new(table, at.options(table).out_of_range);
    let encoder = encoder.map_err(|why| permanent("TypeUnsupported", format!("{doing}: {why}")))?;
    let path = format!("e{}g{generation}/", at.brief.epoch);
    let (place, now) = (at.place(&path).await?, at.now().await?);
    let written = write(CopyReader::new(&encoder, table.binary()), rows, &place, chunk.number, |e| refused(table, &e, &doing)).await;
    let written = written.inspect_err(|_| at.stage.forget())?;
    let copy = Copy { at, table, into: &into, from: place.from(), now: &now, doing: &doing };
    let loaded = copy.commit(chunk, generation, &written).await?;
    for file in &written.files {
        // Tried once: what is left goes with the epoch.
        let _ = at.clean(&format!("{path}{file}")).await;
    }
    Ok(loaded)
}

/// Whose turn it is.
enum Claim {
    /// Somebody has loaded it.
    Loaded(Loaded),
    /// Ours, into the shadow of this table.
    Ours(Table),
}

fn claim(at: &Snowflake, facts: &Facts, table: &TableSchema, chunk: &Chunk, generation: u32) -> Result<Claim, Error> {
    let (Some((current, _)), Some(table), Some(_)) =
        (facts.versioned::<Snapshot>(0)?, facts.get::<Table>(table.number)?, facts.get::<Planned>(chunk.number)?)
    else {
        return Err(gone(&at.brief));
    };
    if let Some((version, done)) = facts.versioned::<Done>(chunk.number)?
        && version == u64::from(table.generation)
    {
        return Ok(Claim::Loaded(Loaded { rows: done.rows, bytes: done.bytes }));
    }
    if current != u64::from(generation) || table.generation != generation {
        return Err(Error::StaleSnapshot { current: current as u32 });
    }
    Ok(Claim::Ours(table))
}

/// The condition for what the ledger says of one chunk and its table.
fn of_chunk(table: u32, chunk: u32) -> String {
    let of = |kind: &str, number: u32| format!("(\"KIND\" = '{kind}' AND \"NUMBER\" = {number})");
    [of(Snapshot::KIND, 0), of(Table::KIND, table), of(Planned::KIND, chunk), of(Done::KIND, chunk)].join(" OR ")
}

/// What is in the stage.
struct Written {
    files: Vec<String>,
    loaded: Loaded,
}

/// Makes files of the rows. One that rows are being added to when it fails is given up; of one that cannot be ended parts may stay.
async fn write(
    mut reader: CopyReader<'_>,
    mut rows: BoxStream<'_, Result<Bytes, String>>,
    place: &Place,
    chunk: u32,
    refused: impl Fn(CopyError) -> Error,
) -> Result<Written, Error> {
    let (mut files, mut file, mut piece, mut bytes) = (Vec::new(), None::<File>, Vec::with_capacity(PIECE * 2), 0);
    let outcome: Result<(), Error> = async {
        while let Some(read) = rows.next().await {
            let read = read.map_err(Error::Source)?;
            bytes += read.len() as u64;
            reader.push(&read);
            while reader.next_row(&mut piece).map_err(&refused)? {
                if piece.len() >= PIECE {
                    hand_on(&mut piece, &mut file, &mut files, place, chunk).await?;
                }
            }
        }
        if !reader.is_whole() {
            return Err(Error::Source("the rows end in the middle of one".into()));
        }
        if !piece.is_empty() {
            hand_on(&mut piece, &mut file, &mut files, place, chunk).await?;
        }
        Ok(())
    }
    .await;
    match (outcome, file) {
        (Ok(()), file) => {
            if let Some(file) = file {
                file.finish().await?;
            }
            Ok(Written { files, loaded: Loaded { rows: reader.rows(), bytes } })
        }
        (Err(error), file) => {
            if let Some(file) = file {
                file.abort().await;
            }
            Err(error)
        }
    }
}

/// Writes a piece into the file that is open, or into the next one.
async fn hand_on(piece: &mut Vec<u8>, file: &mut Option<File>, files: &mut Vec<String>, place: &Place, chunk: u32) -> Result<(), Error> {
    if file.as_ref().is_some_and(File::is_full)
        && let Some(full) = file.take()
    {
        full.finish().await?;
    }
    if file.is_none() {
        let name = format!("{chunk}-{}.csv.zst", files.len());
        *file = Some(place.file(&name)?);
        files.push(name);
    }
    if let Some(file) = file {
        file.write(piece).await?;
    }
    piece.clear();
    Ok(())
}

struct Copy<'a> {
    at: &'a Snowflake,
    table: &'a TableSchema,
    into: &'a Table,
    /// The files' folder, as statements call it.
    from: &'a str,
    /// The server's clock at the claim.
    now: &'a str,
    doing: &'a str,
}

impl Copy<'_> {
    async fn commit(&self, chunk: &Chunk, generation: u32, written: &Written) -> Result<Loaded, Error> {
        let mut transaction = Transaction::begin(self.at).await?;
        if !written.files.is_empty()
            && let Err(error) = self.copy(&mut transaction, written).await
        {
            transaction.roll_back().await;
            // The shadow may be gone with its generation or its epoch, or somebody else is done: the ledger knows.
            self.at.fence().await?;
            let facts = self.at.facts_where(&of_chunk(self.table.number, chunk.number)).await?;
            return match claim(self.at, &facts, self.table, chunk, generation)? {
                Claim::Loaded(loaded) => Ok(loaded),
                Claim::Ours(_) => Err(error),
            };
        }
        // From here on no other worker gets further: what the ledger says now is true until the end.
        transaction.fence("TRUE").await?;
        let facts = transaction.facts_where(&of_chunk(self.table.number, chunk.number)).await?;
        match claim(self.at, &facts, self.table, chunk, generation) {
            Ok(Claim::Ours(_)) => {}
            other => {
                transaction.roll_back().await;
                return match other? {
                    Claim::Loaded(loaded) => Ok(loaded),
                    Claim::Ours(_) => Err(gone(&self.at.brief)),
                };
            }
        }
        let done = Done { rows: written.loaded.rows, bytes: written.loaded.bytes };
        transaction.record(&[self.at.entry(chunk.number, generation.into(), &done)?]).await?;
        transaction.commit().await?;
        Ok(written.loaded)
    }

    async fn copy(&self, transaction: &mut Transaction<'_>, written: &Written) -> Result<(), Error> {
        let answer = transaction.query(&self.sql(&written.files, false), self.doing).await?;
        let mut rows = answer.sum("rows_loaded");
        let known = passed_over(&answer, &written.files);
        if rows < written.loaded.rows && !known.is_empty() {
            // The load history knows the files' names. What was loaded under them and counts is in the ledger, and the ledger says that nothing was.
            rows += transaction.query(&self.sql(&known, true), self.doing).await?.sum("rows_loaded");
        }
        if rows != written.loaded.rows {
            let message = format!("{}: {} rows were read and {rows} arrived. Nothing was kept of them", self.doing, written.loaded.rows);
            return Err(permanent("LoadMiscounted", message));
        }
        Ok(())
    }

    fn sql(&self, files: &[String], force: bool) -> String {
        let shadow = TableName { schema: self.table.destination.schema.clone(), name: shadow_of(self.at, self.into) };
        let own = Own::of(&self.at.brief);
        let (columns, values) = columns_and_values(self.table, &own.values("FALSE", &literal(self.now)));
        copy_sql(&self.at.quoted(&shadow), &columns, &values, self.from, files, force)
    }
}

/// Files of which a COPY has loaded nothing. It names those that it looked at, with a path before them.
fn passed_over(answer: &Answer, files: &[String]) -> Vec<String> {
    let name = |row: Row<'_>| row.named("file").and_then(|path| path.rsplit('/').next()).map(str::to_string);
    let loaded: Vec<String> = answer.rows().filter(|row| row.named("status") == Some("LOADED")).filter_map(name).collect();
    files.iter().filter(|file| !loaded.contains(file)).cloned().collect()
}

/// The columns that a file's fields go into, and how, with others at the end.
pub(super) fn columns_and_values(table: &TableSchema, more: &[(String, String)]) -> (Vec<String>, Vec<String>) {
    let fields = table.copied().enumerate().map(|(place, column)| {
        let field = format!("${}", place + 1);
        (ident(&column.destination), Type::parse(&column.destination_type).map_or(field.clone(), |to| to.of_text(&field)))
    });
    fields.chain(more.iter().cloned()).unzip()
}

/// COPY of files of a path in the stage, `stage/path/`.
pub(super) fn copy_sql(into: &str, columns: &[String], values: &[String], from: &str, files: &[String], force: bool) -> String {
    let files: Vec<String> = files.iter().map(|file| literal(file)).collect();
    format!(
        "COPY INTO {into} ({}) FROM (SELECT {} FROM @{from}) FILES = ({}) {FILE_FORMAT} ON_ERROR = ABORT_STATEMENT{}",
        columns.join(", "),
        values.join(", "),
        files.join(", "),
        if force { " FORCE = TRUE" } else { "" }
    )
}

fn refused(table: &TableSchema, error: &CopyError, doing: &str) -> Error {
    match error {
        CopyError::Malformed => Error::Source(format!("{doing}: the rows are not what the table's schema says")),
        CopyError::Value { refused, row } => {
            let column = table.copied().nth(refused.column).map_or("", |c| c.destination.as_str());
            permanent("ValueRefused", format!("{doing}: column {column:?} of the row {row} cannot be written: {}", refused.why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_a_copy_has_passed_over_are_told_apart() {
        let answer = |rows: &[[&str; 2]]| {
            let rows = rows.iter().map(|row| row.iter().map(|v| Some(v.to_string())).collect()).collect();
            Answer::of(&["file", "status"], rows)
        };
        let files = ["1-0.csv.zst", "1-1.csv.zst", "11-0.csv.zst"].map(String::from);
        let all = answer(&[["e1g1/1-0.csv.zst", "LOADED"], ["e1g1/1-1.csv.zst", "LOADED"], ["e1g1/11-0.csv.zst", "LOADED"]]);
        assert_eq!(passed_over(&all, &files), Vec::<String>::new());
        let some = answer(&[["e1g1/11-0.csv.zst", "LOADED"], ["e1g1/1-1.csv.zst", "LOAD_SKIPPED"]]);
        assert_eq!(passed_over(&some, &files), files[..2]);
        // Of a COPY that had nothing to do no file is named.
        assert_eq!(passed_over(&Answer::of(&["status"], vec![vec![Some("Copy executed with 0 files processed.".into())]]), &files), files);
    }
}
