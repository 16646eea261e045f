//! One chunk into its shadow: one stream, which is committed once.

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::mpsc;

use super::{
    BigQuery,
    encode::{self, CopyError, CopyReader, RowEncoder},
    error::{Refusal, meaning, permanent},
    ledger::shadow_of,
    own::Own,
};
use crate::{
    destination::{
        Chunk, Error, Loaded,
        fact::{Done, Fact, Planned, Snapshot, Table, Written},
        gone,
    },
    table::TableSchema,
};

/// Rows of one request, in bytes: it may have 10 MB (BigQuery docs, "Quotas and limits", "Storage Write API"). One is filled while others are on their way:
/// they are what a worker's memory holds.
const REQUEST: usize = 4 << 20;

/// See [`Destination::load_chunk`](crate::destination::Destination::load_chunk).
///
/// The rows go into a stream of their own that nobody sees. Its name is then recorded, once for the chunk: of several workers one stream is chosen. That one is
/// committed, by whomever and however often; a committed stream stays as it is. The shadow is that of this epoch and generation alone.
pub(super) async fn chunk(
    at: &BigQuery,
    table: &TableSchema,
    chunk: &Chunk,
    generation: u32,
    rows: BoxStream<'_, Result<Bytes, String>>,
) -> Result<Loaded, Error> {
    let doing = format!("loading {}, chunk {}", table.destination, chunk.number);
    let (into, written) = match claim(at, table, chunk, generation).await? {
        Claim::Loaded(loaded) => return Ok(loaded),
        Claim::Written(into, written) => (into, written),
        Claim::Ours(into) => {
            let written = match copy(at, table, &into, rows, &doing).await {
                Ok(written) => written,
                Err(Stopped::Error(error)) => return Err(error),
                Err(Stopped::Refused(refusal)) => return Err(why(at, table, chunk, generation, &refusal, &doing).await),
            };
            let entry = at.entry(chunk.number, into.generation.into(), &written)?;
            at.record_once(&format!("g{}c{}-written", into.generation, chunk.number), entry).await?;
            match claim(at, table, chunk, generation).await? {
                Claim::Loaded(loaded) => return Ok(loaded),
                Claim::Written(into, written) => (into, written),
                Claim::Ours(_) => return Err(Error::Transient(format!("{doing}: the ledger does not know its stream yet"))),
            }
        }
    };
    if !written.stream.is_empty()
        && let Err(refusal) = at.writer().await?.commit(&shadow_of(at, &into), &written.stream).await
    {
        return Err(why(at, table, chunk, generation, &refusal, &doing).await);
    }
    let loaded = Loaded { rows: written.rows, bytes: written.bytes };
    at.append(&at.entry(chunk.number, into.generation.into(), &Done { rows: loaded.rows, bytes: loaded.bytes })?).await?;
    Ok(loaded)
}

/// What a refusal means. A shadow that is gone went with its generation, its epoch, or its mirror: the ledger knows.
async fn why(at: &BigQuery, table: &TableSchema, chunk: &Chunk, generation: u32, refusal: &Refusal, doing: &str) -> Error {
    if !refusal.is("notFound") {
        return meaning(refusal, doing);
    }
    match claim(at, table, chunk, generation).await {
        Err(error) => error,
        Ok(_) => Error::Transient(meaning(refusal, doing).to_string()),
    }
}

/// How far a chunk is.
enum Claim {
    /// Somebody has loaded it.
    Loaded(Loaded),
    /// Its rows are in a stream.
    Written(Table, Written),
    /// Ours, into the shadow of this table.
    Ours(Table),
}

async fn claim(at: &BigQuery, table: &TableSchema, chunk: &Chunk, generation: u32) -> Result<Claim, Error> {
    let of = |kind: &str, number: u32| format!("(kind = '{kind}' AND number = {number})");
    let (number, chunk) = (table.number, chunk.number);
    let wanted =
        [of(Snapshot::KIND, 0), of(Table::KIND, number), of(Planned::KIND, chunk), of(Written::KIND, chunk), of(Done::KIND, chunk)];
    let facts = at.facts_where(&wanted.join(" OR ")).await?;
    facts.fence(at)?;
    let (Some((current, _)), Some(table), Some(_)) =
        (facts.versioned::<Snapshot>(0)?, facts.get::<Table>(number)?, facts.get::<Planned>(chunk)?)
    else {
        return Err(gone(&at.brief));
    };
    let is_current = |version: u64| version == u64::from(table.generation);
    if let Some((_, done)) = facts.versioned::<Done>(chunk)?.filter(|(version, _)| is_current(*version)) {
        return Ok(Claim::Loaded(Loaded { rows: done.rows, bytes: done.bytes }));
    }
    if current != u64::from(generation) || table.generation != generation {
        return Err(Error::StaleSnapshot { current: current as u32 });
    }
    match facts.versioned::<Written>(chunk)?.filter(|(version, _)| is_current(*version)) {
        Some((_, written)) => Ok(Claim::Written(table, written)),
        None => Ok(Claim::Ours(table)),
    }
}

/// Why rows did not get into a stream.
enum Stopped {
    Error(Error),
    Refused(Refusal),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Writes the rows into a stream of their own.
async fn copy(
    at: &BigQuery,
    table: &TableSchema,
    into: &Table,
    rows: BoxStream<'_, Result<Bytes, String>>,
    doing: &str,
) -> Result<Written, Stopped> {
    let now = jiff::Timestamp::now().as_microsecond();
    let encoder = encoder(at, table, now).map_err(|why| permanent("TypeUnsupported", format!("{doing}: {why}")))?;
    let reader = CopyReader::new(&encoder, table.binary());
    let (full, batches) = mpsc::channel(1);
    let filling = async { Ok::<_, Stopped>(fill(reader, rows, full, |error| refused(table, &error, doing)).await?) };
    let sending = send(at, into, encoder.descriptor(), batches);
    // Whichever fails ends the other.
    let (loaded, (stream, written)) = tokio::try_join!(filling, sending)?;
    if loaded.rows != written {
        return Err(Stopped::Error(Error::Transient(format!("{doing}: {} rows were read and {written} are in the stream", loaded.rows))));
    }
    Ok(Written { stream, rows: loaded.rows, bytes: loaded.bytes })
}

/// How rows of a load are written: none of them is deleted, and all are of now.
pub(super) fn encoder(at: &BigQuery, table: &TableSchema, now: i64) -> Result<RowEncoder, String> {
    let own = Own::of(&at.brief);
    let flag = own.flag.as_deref().map(|name| (name, encode::Own::Flag(false)));
    let time = own.synced_at.as_deref().map(|name| (name, encode::Own::Time(now)));
    let own: Vec<_> = flag.into_iter().chain(time).collect();
    RowEncoder::new(table, (&at.options(table)).into(), &own)
}

/// Opens a stream with the first rows, appends all, and ends it. Without rows there is none.
async fn send(
    at: &BigQuery,
    into: &Table,
    descriptor: prost_types::DescriptorProto,
    mut batches: mpsc::Receiver<Vec<Vec<u8>>>,
) -> Result<(String, u64), Stopped> {
    let Some(first) = batches.recv().await else { return Ok((String::new(), 0)) };
    let writer = at.writer().await?;
    let stream = writer.open(&shadow_of(at, into)).await?;
    let rest = futures::stream::unfold(batches, |mut batches| async { batches.recv().await.map(|batch| (batch, batches)) });
    writer.append(&stream, descriptor, futures::stream::iter([first]).chain(rest)).await?;
    let written = writer.finalize(&stream).await?;
    Ok((stream, written))
}

/// Makes requests of the rows. Room for the next one is awaited before it is begun.
async fn fill(
    mut reader: CopyReader<'_>,
    mut rows: BoxStream<'_, Result<Bytes, String>>,
    full: mpsc::Sender<Vec<Vec<u8>>>,
    refused: impl Fn(CopyError) -> Error,
) -> Result<Loaded, Error> {
    let (mut batch, mut size, mut bytes, mut row) = (Vec::new(), 0, 0, Vec::new());
    while let Some(piece) = rows.next().await {
        let piece = piece.map_err(Error::Source)?;
        bytes += piece.len() as u64;
        reader.push(&piece);
        while reader.next_row(&mut row).map_err(&refused)? {
            size += row.len() + 8;
            let room = row.len() + row.len() / 4;
            batch.push(std::mem::replace(&mut row, Vec::with_capacity(room)));
            if size >= REQUEST {
                size = 0;
                // Nobody takes it if sending has failed, and then this is dropped too.
                let _ = full.send(std::mem::take(&mut batch)).await;
            }
        }
    }
    if !reader.is_whole() {
        return Err(Error::Source("the rows end in the middle of one".into()));
    }
    if !batch.is_empty() {
        let _ = full.send(batch).await;
    }
    Ok(Loaded { rows: reader.rows(), bytes })
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
