//! The benchmarks, run by `bench/run`. README.md says what is measured and how.

mod book;
mod clickhouse;
mod cloud;
mod cluster;
mod encode;
mod load;
mod mirror;
mod pass_through;
mod process;
mod recorder;
mod server;
mod stream;

use std::path::PathBuf;

use book::Book;
use clap::{Args, Parser, Subcommand};
use server::Server;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Loads, against other tools.
    Load {
        #[command(flatten)]
        common: Common,
        /// Rows of the table.
        #[arg(long, value_delimiter = ',')]
        rows: Vec<u64>,
        /// Streams at the same time.
        #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
        streams: Vec<u32>,
        /// How often each contestant loads.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// The change stream.
    Stream {
        #[command(flatten)]
        common: Common,
        /// Rows of the one large transaction.
        #[arg(long, default_value_t = 5_000_000)]
        rows: u64,
        /// How often the changes are measured.
        #[arg(long, default_value_t = 3)]
        rounds: u64,
    },
    /// Loads and the change stream to ClickHouse.
    Clickhouse {
        #[command(flatten)]
        common: Common,
        /// Superuser's URL of the ClickHouse server.
        #[arg(long)]
        clickhouse: clickhouse::ClickHouse,
        /// The server has a processor for itself: measure only loads.
        #[arg(long)]
        apart: bool,
        /// Rows of the table.
        #[arg(long, default_value_t = 5_000_000)]
        rows: u64,
        /// Streams at the same time.
        #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
        streams: Vec<u32>,
        /// How often each is measured.
        #[arg(long, default_value_t = 3)]
        rounds: u64,
    },
    /// The encoders of Snowflake and BigQuery, without a server.
    Encode {
        /// Where the figures go, beside those of other parts.
        #[arg(long)]
        json: PathBuf,
        /// Rows that are encoded.
        #[arg(long, default_value_t = 1_000_000)]
        rows: u64,
    },
    /// What loads to Snowflake and BigQuery ask of a worker.
    Cloud {
        #[command(flatten)]
        common: Common,
        /// URL of a stand-in for Snowflake.
        #[arg(long)]
        snowflake: String,
        /// URL of an emulator of BigQuery.
        #[arg(long)]
        bigquery: String,
        /// Rows of the table.
        #[arg(long, default_value_t = 5_000_000)]
        rows: u64,
        /// How often each is measured.
        #[arg(long, default_value_t = 3)]
        rounds: u64,
    },
    /// A stream of a load whose destination takes anything at once: rows come by the standard input.
    Sink { kind: cloud::Kind },
    /// Whole resyncs on a cluster.
    Cluster {
        #[command(flatten)]
        common: Common,
        /// Rows of the large table.
        #[arg(long, default_value_t = 5_000_000)]
        rows: u64,
        /// How often each table is resynced.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// One stream of the pass-through: a process of its own, as a worker is.
    PassThrough(pass_through::Stream),
}

/// What every part is told.
#[derive(Args)]
struct Common {
    /// Superuser's URL of the source.
    #[arg(long)]
    source: Server,
    /// Superuser's URL of the destination.
    #[arg(long)]
    destination: Server,
    /// The operator's binary.
    #[arg(long)]
    binary: PathBuf,
    /// Where the figures go, beside those of other parts.
    #[arg(long)]
    json: PathBuf,
}

fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let part = Cli::parse().part;
    // A stream has one thread, as a worker has.
    let mut runtime = match part {
        Part::PassThrough(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.worker_threads(2).enable_all().build().expect("a runtime").block_on(run(part));
}

async fn run(part: Part) {
    match part {
        Part::Load { common, rows, streams, rounds } => load::run(&mut Book::open(&common.json), &common, &rows, &streams, rounds).await,
        Part::Stream { common, rows, rounds } => stream::run(&mut Book::open(&common.json), &common, rows, rounds).await,
        Part::Clickhouse { common, clickhouse, rows, streams, rounds, apart } => {
            clickhouse::run(&mut Book::open(&common.json), &common, &clickhouse, rows, &streams, rounds, apart).await;
        }
        Part::Cloud { common, snowflake, bigquery, rows, rounds } => {
            cloud::run(&mut Book::open(&common.json), &common, (&snowflake, &bigquery), rows, rounds).await;
        }
        Part::Sink { kind } => cloud::sink(kind),
        Part::Encode { json, rows } => encode::run(&mut Book::open(&json), rows),
        Part::Cluster { common, rows, rounds } => cluster::run(&mut Book::open(&common.json), &common, rows, rounds).await,
        Part::PassThrough(stream) => pass_through::run(&stream).await,
    }
}
