//! The yardstick: a binary COPY from one server to the other in pieces of 256 KiB, without ledger, snapshot, fence or retries.

use bytes::{Bytes, BytesMut};
use clap::Args;
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio_postgres::CopyInSink;

use crate::server::Server;

const PIECE: usize = 256 << 10;

/// One stream: some ranges of blocks, one after the other.
#[derive(Args)]
pub struct Stream {
    #[arg(long)]
    source: Server,
    #[arg(long)]
    source_database: String,
    #[arg(long)]
    destination: Server,
    #[arg(long)]
    destination_database: String,
    /// Conditions of the ranges.
    #[arg(long)]
    range: Vec<String>,
}

pub async fn run(stream: &Stream) {
    let source = stream.source.connect(&stream.source_database).await;
    let destination = stream.destination.connect(&stream.destination_database).await;
    for range in &stream.range {
        let sql = format!("COPY (SELECT * FROM firenibble WHERE {range}) TO STDOUT (FORMAT binary)");
        let mut rows = Box::pin(source.copy_out(&sql).await.expect("COPY TO"));
        let columns: Vec<String> = (0..16).map(|n| format!("f{n}")).collect();
        let sql = format!("COPY firenibble ({}) FROM STDIN (FORMAT binary)", columns.join(", "));
        let sink: CopyInSink<Bytes> = destination.copy_in(&sql).await.expect("COPY FROM");
        let mut sink = Box::pin(sink);
        let (send, mut receive) = mpsc::channel::<Bytes>(3);
        let read = async move {
            let mut piece = BytesMut::with_capacity(PIECE + PIECE / 4);
            while let Some(row) = rows.next().await {
                piece.extend_from_slice(&row.expect("a row"));
                if piece.len() >= PIECE {
                    let full = std::mem::replace(&mut piece, BytesMut::with_capacity(PIECE + PIECE / 4));
                    send.send(full.freeze()).await.expect("a writer");
                }
            }
            send.send(piece.freeze()).await.expect("a writer");
        };
        let write = async {
            while let Some(piece) = receive.recv().await {
                sink.feed(piece).await.expect("a piece is taken");
            }
            sink.as_mut().finish().await.expect("the end is taken");
        };
        tokio::join!(read, write);
    }
}
