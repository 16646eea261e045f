//! One chunk into its shadow: a pass-through from the source's COPY to ours.

use bytes::Bytes;
use futures::{SinkExt, StreamExt, stream::BoxStream};
use tokio_postgres::{CopyInSink, Transaction};

use super::{
    Postgres,
    error::At,
    session::{commit, fence},
};
use crate::{
    brief::Brief,
    destination::{Chunk, Error, Loaded, gone},
    postgres::{ident, qualified},
    table::TableSchema,
};

/// See [`Destination::load_chunk`](crate::destination::Destination::load_chunk).
///
/// The commit waits for the WAL to be durable. It could do without as far as chunk and ledger go, which would be lost together; but a worker
/// whose last chunk were lost has ended by then, and nobody would load it again.
pub(super) async fn chunk(
    at: &Postgres,
    table: &TableSchema,
    chunk: &Chunk,
    generation: u32,
    rows: BoxStream<'_, Result<Bytes, String>>,
) -> Result<Loaded, Error> {
    let doing = format!("loading {}, chunk {}", table.destination, chunk.number);
    let mut session = at.session().await?;
    let tx = session.begin(&doing).await?;
    fence(&tx, &at.brief).await?;
    let loaded = match claim(&tx, &at.brief, chunk, generation, &doing).await? {
        Claim::Loaded(loaded) => loaded,
        Claim::Ours { shadow } => {
            let loaded = copy(&tx, table, &shadow, rows, &doing).await?;
            record(&tx, &at.brief, chunk, loaded, &doing).await?;
            loaded
        }
    };
    commit(tx, &doing).await?;
    session.keep();
    Ok(loaded)
}

/// Whose turn it is.
enum Claim {
    /// Somebody has loaded it.
    Loaded(Loaded),
    /// Ours, into this table.
    Ours { shadow: String },
}

/// Waits for whoever loads the same chunk and then sees what became of it.
async fn claim(tx: &Transaction<'_>, brief: &Brief, chunk: &Chunk, generation: u32, doing: &str) -> Result<Claim, Error> {
    let (epoch, number) = (brief.epoch as i32, chunk.number as i32);
    let sql = "SELECT c.loaded_at IS NOT NULL, c.rows, c.bytes, e.generation, t.destination_schema, t.shadow_name
               FROM _mirror_operator.chunk c
               JOIN _mirror_operator.epoch e USING (mirror, epoch)
               JOIN _mirror_operator.table t ON t.mirror = c.mirror AND t.epoch = c.epoch AND t.number = c.table_number
               WHERE c.mirror = $1::text::uuid AND c.epoch = $2 AND c.number = $3 FOR UPDATE OF c";
    let row = tx.query_opt(sql, &[&brief.mirror_uid, &epoch, &number]).await.at(doing)?.ok_or_else(|| gone(brief))?;
    if row.get(0) {
        let count = |column: usize| row.get::<_, Option<i64>>(column).unwrap_or(0) as u64;
        return Ok(Claim::Loaded(Loaded { rows: count(1), bytes: count(2) }));
    }
    let current = row.get::<_, i32>(3) as u32;
    if current != generation {
        return Err(Error::StaleSnapshot { current });
    }
    Ok(Claim::Ours { shadow: qualified(row.get(4), row.get(5)) })
}

/// Passes the pieces on as they come. An error of the source ends the COPY, and dropping the transaction takes its rows back.
async fn copy(
    tx: &Transaction<'_>,
    table: &TableSchema,
    shadow: &str,
    mut rows: BoxStream<'_, Result<Bytes, String>>,
    doing: &str,
) -> Result<Loaded, Error> {
    let columns: Vec<String> = table.copied().map(|c| ident(&c.destination)).collect();
    let format = if table.binary() { "binary" } else { "text" };
    let sql = format!("COPY {shadow} ({}) FROM STDIN (FORMAT {format})", columns.join(", "));
    let sink: CopyInSink<Bytes> = tx.copy_in(&sql).await.at(doing)?;
    let mut sink = Box::pin(sink);
    let mut bytes = 0;
    while let Some(piece) = rows.next().await {
        let piece = piece.map_err(Error::Source)?;
        bytes += piece.len() as u64;
        // `feed` does not flush: the connection takes the next piece while this one is on its way.
        if sink.feed(piece).await.is_err() {
            break;
        }
    }
    // The server's own words, if it has refused in the middle, come with the end.
    let rows = sink.as_mut().finish().await.at(doing)?;
    Ok(Loaded { rows, bytes })
}

async fn record(tx: &Transaction<'_>, brief: &Brief, chunk: &Chunk, loaded: Loaded, doing: &str) -> Result<(), Error> {
    let sql = "UPDATE _mirror_operator.chunk SET rows = $4, bytes = $5, loaded_at = now()
               WHERE mirror = $1::text::uuid AND epoch = $2 AND number = $3";
    let (epoch, number) = (brief.epoch as i32, chunk.number as i32);
    tx.execute(sql, &[&brief.mirror_uid, &epoch, &number, &(loaded.rows as i64), &(loaded.bytes as i64)]).await.at(doing)?;
    Ok(())
}
