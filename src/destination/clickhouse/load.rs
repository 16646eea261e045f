//! One chunk into its shadow, in blocks that are each written once.

use std::{hash::Hasher, io::Write};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use lz4_flex::frame::{BlockSize, Error as PackError, FrameEncoder, FrameInfo};
use tokio::sync::mpsc;
use twox_hash::XxHash3_64;

use super::{
    ClickHouse,
    encode::{Block, CopyError, CopyReader, RowEncoder},
    error::{Refusal, UNKNOWN_TABLE, meaning, permanent},
    ledger::shadow_of,
    own::{self, list},
    quote::qualified,
};
use crate::{
    destination::{
        Chunk, Error, Loaded,
        fact::{Done, Fact, Facts, Planned, Snapshot, Table},
        gone,
    },
    table::TableSchema,
};

/// A block ends with the row that fills it. Where that is depends on the rows alone, so that a chunk that is read again falls into the same blocks.
const BLOCK: usize = 32 << 20;
/// One is filled while another is on its way: they, and what is packed of one, are what a worker's memory holds.
const BLOCKS: usize = 2;

/// See [`Destination::load_chunk`](crate::destination::Destination::load_chunk).
///
/// Blocks bear a token of chunk, place and content, and the table remembers the tokens of all its blocks: a block that is sent again, by whomever, is
/// written once. The snapshot gives the same rows in the same order each time. The shadow is that of this epoch and generation alone.
pub(super) async fn chunk(
    at: &ClickHouse,
    table: &TableSchema,
    chunk: &Chunk,
    generation: u32,
    rows: BoxStream<'_, Result<Bytes, String>>,
) -> Result<Loaded, Error> {
    let doing = format!("loading {}, chunk {}", table.destination, chunk.number);
    let into = match claim(at, table, chunk, generation).await? {
        Claim::Loaded(loaded) => return Ok(loaded),
        Claim::Ours(table) => table,
    };
    let loaded = match copy(at, table, chunk, &into, rows, &doing).await {
        // Gone with its generation, its epoch, or its mirror: the ledger knows.
        Err(Gone::Table(error)) => match claim(at, table, chunk, generation).await? {
            Claim::Loaded(loaded) => return Ok(loaded),
            Claim::Ours(_) => return Err(error),
        },
        Err(Gone::No(error)) => return Err(error),
        Ok(loaded) => loaded,
    };
    at.fence().await?;
    at.record(&[at.entry(chunk.number, into.generation.into(), &Done { rows: loaded.rows, bytes: loaded.bytes })?]).await?;
    Ok(loaded)
}

/// Whose turn it is.
enum Claim {
    /// Somebody has loaded it.
    Loaded(Loaded),
    /// Ours, into the shadow of this table.
    Ours(Table),
}

async fn claim(at: &ClickHouse, table: &TableSchema, chunk: &Chunk, generation: u32) -> Result<Claim, Error> {
    at.fence().await?;
    let facts: Facts = at.facts_of_chunk(table.number, chunk.number).await?;
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

/// An error, and whether the shadow was not there any more.
enum Gone {
    Table(Error),
    No(Error),
}

impl From<Error> for Gone {
    fn from(error: Error) -> Self {
        Self::No(error)
    }
}

async fn copy(
    at: &ClickHouse,
    table: &TableSchema,
    chunk: &Chunk,
    into: &Table,
    rows: BoxStream<'_, Result<Bytes, String>>,
    doing: &str,
) -> Result<Loaded, Gone> {
    let encoder =
        RowEncoder::new(table, own::rules(&at.options(table))).map_err(|why| permanent("TypeUnsupported", format!("{doing}: {why}")))?;
    let shadow = qualified(&table.destination.schema, &shadow_of(at, into));
    let sending = Sending {
        at,
        target: format!("{shadow} ({})", list(table.copied().map(|c| &c.destination))),
        encoder: &encoder,
        names: table.copied().map(|c| c.destination.clone()).collect(),
        prefix: format!("{}/{}", into.generation, chunk.number),
        doing,
    };
    let (full, to_send) = mpsc::channel(BLOCKS);
    let (sent, empty) = mpsc::channel(BLOCKS);
    for _ in 0..BLOCKS {
        // There is room for all of them.
        let _ = sent.try_send(Block::new(&encoder));
    }
    let filling = async { Ok(fill(CopyReader::new(&encoder, table.binary()), rows, (empty, full), |e| refused(table, &e, doing)).await?) };
    // Whichever fails ends the other.
    tokio::try_join!(filling, sending.all(to_send, sent)).map(|(loaded, ())| loaded)
}

/// Makes blocks of the rows: takes empty ones and passes full ones on.
async fn fill(
    mut reader: CopyReader<'_>,
    mut rows: BoxStream<'_, Result<Bytes, String>>,
    (mut empty, full): (mpsc::Receiver<Block>, mpsc::Sender<Block>),
    refused: impl Fn(CopyError) -> Error,
) -> Result<Loaded, Error> {
    // If sending has failed this is dropped, and nobody hears of it.
    let ended = || Error::Transient("blocks are no longer sent".into());
    let mut block = empty.recv().await.ok_or_else(ended)?;
    let mut bytes = 0;
    while let Some(piece) = rows.next().await {
        let piece = piece.map_err(Error::Source)?;
        bytes += piece.len() as u64;
        reader.push(piece);
        while reader.next_row(&mut block).map_err(&refused)? {
            if block.bytes() >= BLOCK {
                full.send(block).await.map_err(|_| ended())?;
                block = empty.recv().await.ok_or_else(ended)?;
            }
        }
    }
    if !reader.is_whole() {
        return Err(Error::Source("the rows end in the middle of one".into()));
    }
    if !block.is_empty() {
        full.send(block).await.map_err(|_| ended())?;
    }
    Ok(Loaded { rows: reader.rows(), bytes })
}

struct Sending<'a> {
    at: &'a ClickHouse,
    target: String,
    encoder: &'a RowEncoder,
    names: Vec<String>,
    prefix: String,
    doing: &'a str,
}

impl Sending<'_> {
    /// Sends blocks as they come, until there are no more, and gives them back as soon as they are packed.
    async fn all(&self, mut blocks: mpsc::Receiver<Block>, packed: mpsc::Sender<Block>) -> Result<(), Gone> {
        let mut number = 0;
        while let Some(mut block) = blocks.recv().await {
            let data = self.pack(&block).map_err(|e| Error::Transient(format!("{}: compressing rows: {e}", self.doing)))?;
            block.clear();
            // Nobody takes it after the last row.
            let _ = packed.try_send(block);
            self.send(number, data).await?;
            number += 1;
        }
        Ok(())
    }

    async fn send(&self, number: u32, packed: Packed) -> Result<(), Gone> {
        let token = format!("{}/{number}/{:016x}", self.prefix, packed.hash);
        self.at.client()?.insert(&self.target, &token, packed.bytes).await.map_err(|refusal| self.refusal(&refusal))
    }

    fn refusal(&self, refusal: &Refusal) -> Gone {
        let error = meaning(refusal, self.doing);
        if refusal.code == UNKNOWN_TABLE { Gone::Table(Error::Transient(error.to_string())) } else { Gone::No(error) }
    }

    fn pack(&self, block: &Block) -> Result<Packed, PackError> {
        let mut hasher = XxHash3_64::with_seed(0);
        // The first piece is a few bytes, by which the encoder would choose small ones.
        let pieces = FrameInfo::new().block_size(BlockSize::Max1MB);
        let mut packer = FrameEncoder::with_frame_info(pieces, Vec::with_capacity(block.bytes() / 2));
        block.pieces(self.encoder, &self.names, |piece| {
            hasher.write(piece);
            packer.write_all(piece).map_err(PackError::from)
        })?;
        Ok(Packed { bytes: packer.finish()?, hash: hasher.finish() })
    }
}

/// A block as it is sent.
struct Packed {
    /// An LZ4 frame.
    bytes: Vec<u8>,
    /// Of what is in it.
    hash: u64,
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

impl ClickHouse {
    /// What the ledger says of one chunk and its table.
    async fn facts_of_chunk(&self, table: u32, chunk: u32) -> Result<Facts, Error> {
        let of = |kind: &str, number: u32| format!("(kind = '{kind}' AND number = {number})");
        let wanted = [of(Snapshot::KIND, 0), of(Table::KIND, table), of(Planned::KIND, chunk), of(Done::KIND, chunk)];
        self.facts_where(&wanted.join(" OR ")).await
    }
}
