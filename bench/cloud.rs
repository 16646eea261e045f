//! What loads to Snowflake and BigQuery ask of a worker, without the services: whether it keeps the source busy, and how much memory a file of full size takes.

use std::{
    fmt::Display,
    io::Read,
    process::{Command, Stdio},
    time::Instant,
};

use mirror_operator::{
    api::snowflake::{BeyondRange, Names},
    brief::DestinationPeer,
    destination::{bigquery, snowflake},
    postgres::connect::SecretFile,
};
use serde_json::json;

use crate::{
    Common,
    book::{Book, Target, median},
    encode::{self, RULES, Types},
    mirror::{self, Epoch},
    process::{self, MemoryWatch},
    server::{ask, drop_slots, fill},
};

const SOURCE: &str = "bench_cloud";
const STREAMS: u64 = 4;
/// Rows of a chunk of 64 MiB, the least that a large table is cut into: the emulator of BigQuery has all rows of a stream in memory until they are committed.
const CHUNK: u64 = 250_000;
/// The types of `firenibble` at the source, at Snowflake and at BigQuery.
const COLUMNS: [Types; 16] = [
    encode::COLUMNS[0],
    encode::COLUMNS[0],
    encode::COLUMNS[0],
    ("integer", "NUMBER(38,0)", "INT64"),
    ("double precision", "FLOAT", "FLOAT64"),
    ("double precision", "FLOAT", "FLOAT64"),
    ("double precision", "FLOAT", "FLOAT64"),
    ("double precision", "FLOAT", "FLOAT64"),
    ("character varying", "VARCHAR", "STRING"),
    ("character varying", "VARCHAR", "STRING"),
    ("date", "DATE", "DATE"),
    ("date", "DATE", "DATE"),
    ("date", "DATE", "DATE"),
    ("character varying", "VARCHAR", "STRING"),
    ("character varying", "VARCHAR", "STRING"),
    ("character varying", "VARCHAR", "STRING"),
];

/// Whose rows are made.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Kind {
    Snowflake,
    Bigquery,
}

impl Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Snowflake) { "snowflake" } else { "bigquery" })
    }
}

/// Encodes the COPY of `firenibble` that comes by the standard input, and forgets what it made: one stream of a worker whose destination takes anything at once.
pub fn sink(kind: Kind) {
    let schema = encode::schema(&COLUMNS, |column| if matches!(kind, Kind::Snowflake) { column.1 } else { column.2 });
    let input = std::io::stdin().lock();
    let rows = match kind {
        Kind::Snowflake => {
            let encoder = snowflake::encode::RowEncoder::new(&schema, BeyondRange::Clamp).expect("types that are written");
            let mut reader = snowflake::encode::CopyReader::new(&encoder, true);
            let mut piece = Vec::with_capacity(512 << 10);
            pieces(input, |read| {
                reader.push(read);
                while reader.next_row(&mut piece).expect("a row") {
                    if piece.len() >= 256 << 10 {
                        piece.clear();
                    }
                }
            });
            reader.rows()
        }
        Kind::Bigquery => {
            let encoder = bigquery::encode::RowEncoder::new(&schema, RULES, &[]).expect("types that are written");
            let mut reader = bigquery::encode::CopyReader::new(&encoder, true);
            let mut row = Vec::new();
            pieces(input, |read| {
                reader.push(read);
                while reader.next_row(&mut row).expect("a row") {}
            });
            reader.rows()
        }
    };
    assert!(rows > 0, "rows came");
}

fn pieces(mut input: impl Read, mut take: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 256 << 10];
    while let length @ 1.. = input.read(&mut buffer).expect("the standard input can be read") {
        take(&buffer[..length]);
    }
}

/// `account` is the URL of a stand-in for Snowflake, `emulator` that of one of BigQuery.
pub async fn run(book: &mut Book, common: &Common, (account, emulator): (&str, &str), rows: u64, rounds: u64) {
    let source = common.source.fresh(SOURCE).await;
    fill(&source, "firenibble", rows).await;
    for kind in [Kind::Snowflake, Kind::Bigquery] {
        let mut ratios = Vec::new();
        for _ in 0..rounds {
            let (alone, encoded) = (streams(common, &source, None).await, streams(common, &source, Some(kind)).await);
            println!("    {STREAMS} streams: source alone {alone:.2} s, encoded for {kind} {encoded:.2} s");
            ratios.push(alone / encoded);
        }
        book.put(&format!("cloud.{kind}.{STREAMS}.by_copy_out"), median(&ratios), "ratio", Target::AtLeast(0.9));
    }
    memory(book, common, &source, "snowflake", snowflake_peer(account)).await;
    let source = common.source.fresh(SOURCE).await;
    fill(&source, "firenibble", rows.min(CHUNK)).await;
    memory(book, common, &source, "bigquery", bigquery_peer(emulator).await).await;
}

/// The most that a worker has while it loads the table.
async fn memory(book: &mut Book, common: &Common, source: &tokio_postgres::Client, kind: &str, to: DestinationPeer) {
    let memory = MemoryWatch::start();
    load(common, source, to).await;
    let peak = memory.end().get("snapshot").copied().expect("a worker ran");
    book.put(&format!("cloud.{kind}.memory.snapshot"), peak, "MiB", Target::AtMost(256.0));
}

/// Seconds that all streams take to read the table, into nothing or into encoders.
async fn streams(common: &Common, source: &tokio_postgres::Client, kind: Option<Kind>) -> f64 {
    let blocks: u64 = ask(source, "SELECT pg_relation_size('firenibble') / 8192").await.parse().expect("a number");
    let itself = std::env::current_exe().expect("this program's path");
    let begun = Instant::now();
    let all = (0..STREAMS).map(|n| {
        let (from, to) = (blocks * n / STREAMS, blocks * (n + 1) / STREAMS);
        let sql = format!("COPY (SELECT * FROM firenibble WHERE ctid >= '({from},0)' AND ctid < '({to},0)') TO STDOUT (FORMAT binary)");
        let end = kind.map_or("cat >/dev/null".into(), |kind| format!("'{}' sink {kind}", itself.display()));
        let mut command = Command::new("bash");
        let script = format!("set -o pipefail; psql --no-psqlrc --quiet --dbname \"$1\" --command \"$2\" | {end}");
        command.args(["-c", &script, "bench", &common.source.url(SOURCE), &sql]).stdout(Stdio::null());
        process::run(command)
    });
    futures::future::join_all(all).await;
    begun.elapsed().as_secs_f64()
}

/// One worker with one chunk, so that its files become as large as they may.
async fn load(common: &Common, source: &tokio_postgres::Client, to: DestinationPeer) {
    drop_slots(&common.source.connect("postgres").await, SOURCE).await;
    let bytes: u64 = ask(source, "SELECT pg_table_size('firenibble')").await.parse().expect("a number");
    let size = (2 * bytes).to_string();
    let snapshot = json!({ "maxParallelWorkers": 1, "partitionSize": size, "chunkSize": size });
    let epoch = Epoch::new(common, SOURCE, to, snapshot);
    let pipeline = epoch.pipeline();
    mirror::offered().await;
    epoch.workers(1).await;
    pipeline.end();
    drop_slots(&common.source.connect("postgres").await, SOURCE).await;
}

fn snowflake_peer(account: &str) -> DestinationPeer {
    let parts = || {
        let (user, rest) = account.strip_prefix("http://")?.split_once(':')?;
        let (password, rest) = rest.split_once('@')?;
        let (address, database) = rest.split_once('/')?;
        let (host, port) = address.split_once(':')?;
        Some((user, password, host, port.parse::<u16>().ok()?, database))
    };
    let (user, password, host, port, database) = parts().expect("a URL of the form http://user:password@host:port/database");
    let path = std::env::temp_dir().join(format!("mirror-bench-{}-{port}", std::process::id()));
    std::fs::write(&path, password).expect("the temporary directory can be written");
    let secret = SecretFile { path, secret: "bench".into(), key: "password".into() };
    let at = json!({ "peer": "bench", "host": host, "port": port, "database": database, "user": user, "password": secret,
        "tls": "Disable", "connectTimeoutMillis": 10_000 });
    let peer = json!({ "at": at, "account": "testbed", "schema": "PUBLIC", "warehouse": "TESTING", "keyPair": false, "names": Names::AsSource,
        "patienceMillis": snowflake::PATIENCE_MILLIS });
    DestinationPeer::Snowflake(serde_json::from_value(peer).expect("a Peer"))
}

/// A dataset of its own at the emulator, empty.
async fn bigquery_peer(emulator: &str) -> DestinationPeer {
    let parts = || {
        let (endpoint, project) = emulator.rsplit_once('/')?;
        let (host, port) = endpoint.strip_prefix("http://")?.split_once(':')?;
        Some((endpoint, project, host, port.parse::<u16>().ok()?))
    };
    let (endpoint, project, host, port) = parts().expect("a URL of the form http://host:port/project");
    let (http, datasets) = (reqwest::Client::new(), format!("{endpoint}/bigquery/v2/projects/{project}/datasets"));
    let _ = http.delete(format!("{datasets}/{SOURCE}?deleteContents=true")).send().await;
    let dataset = json!({ "datasetReference": { "projectId": project, "datasetId": SOURCE } });
    let made = http.post(&datasets).json(&dataset).send().await.and_then(reqwest::Response::error_for_status);
    made.expect("a dataset can be made");
    let at = json!({ "peer": "bench", "host": host, "port": port, "database": SOURCE, "user": "", "tls": "Disable", "connectTimeoutMillis": 10_000 });
    let storage = format!("http://{host}:{}", port + 1);
    let peer = json!({ "at": at, "project": project, "endpoint": endpoint, "storageEndpoint": storage });
    DestinationPeer::BigQuery(serde_json::from_value(peer).expect("a Peer"))
}
