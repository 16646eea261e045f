//! Loads and the change stream to ClickHouse, beside what the source alone can do.

use std::{
    process::{Command, Stdio},
    str::FromStr,
    time::{Duration, Instant},
};

use mirror_operator::{
    api::peer::TlsMode,
    brief::DestinationPeer,
    destination::clickhouse::Peer,
    postgres::{Connection, connect::SecretFile},
};
use serde_json::json;

use crate::{
    Common,
    book::{Book, Target, median},
    mirror::{self, Epoch},
    process::{self, MemoryWatch},
    server::{ask, drop_slots, execute, fill, until},
    stream,
};

const SOURCE: &str = "bench_clickhouse";
const DESTINATION: &str = "bench";
const LIMIT: Duration = Duration::from_secs(300);

/// A ClickHouse server, by its superuser's URL.
#[derive(Clone, Debug)]
pub struct ClickHouse {
    host: String,
    port: u16,
    user: String,
    password: String,
}

impl FromStr for ClickHouse {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let parts = || {
            let (user, rest) = url.strip_prefix("http://")?.split_once(':')?;
            let (password, rest) = rest.split_once('@')?;
            let (host, port) = rest.split('/').next()?.split_once(':')?;
            Some(Self { host: host.into(), port: port.parse().ok()?, user: user.into(), password: password.into() })
        };
        parts().ok_or_else(|| "not of the form http://user:password@host:port/".into())
    }
}

impl ClickHouse {
    /// Runs a statement; its answer without the line's end.
    async fn ask(&self, sql: &str) -> String {
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let url = format!("http://{}:{}/?wait_end_of_query=1", self.host, self.port);
        let request = http.post(url).header("X-ClickHouse-User", &self.user).header("X-ClickHouse-Key", &self.password);
        let answer = request.body(sql.to_string()).send().await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        let fine = answer.status().is_success();
        let text = answer.text().await.expect("an answer");
        assert!(fine, "{sql}: {text}");
        text.trim_end().to_string()
    }

    async fn fresh(&self) {
        self.ask(&format!("DROP DATABASE IF EXISTS {DESTINATION} SYNC")).await;
        self.ask(&format!("CREATE DATABASE {DESTINATION}")).await;
    }

    fn peer(&self) -> DestinationPeer {
        let path = std::env::temp_dir().join(format!("mirror-bench-{}-{}", std::process::id(), self.port));
        std::fs::write(&path, &self.password).expect("the temporary directory can be written");
        let at = Connection {
            peer: "bench".into(),
            host: self.host.clone(),
            port: self.port,
            database: DESTINATION.into(),
            user: self.user.clone(),
            password: Some(SecretFile { path, secret: "bench".into(), key: "password".into() }),
            tls: TlsMode::Disable,
            ca: None,
            client_certificate: None,
            connect_timeout_millis: 10_000,
        };
        DestinationPeer::ClickHouse(serde_json::from_value::<Peer>(json!({ "at": at })).expect("a Peer"))
    }

    /// What the ledger knows of the newest fact of a kind, as JSON; nothing if there is none.
    async fn fact(&self, kind: &str, field: &str) -> String {
        let there = format!("EXISTS TABLE {DESTINATION}._mirror_operator_fact");
        if self.ask(&there).await != "1" {
            return String::new();
        }
        self.ask(&format!(
            "SELECT JSONExtractRaw(value, '{field}') FROM {DESTINATION}._mirror_operator_fact WHERE kind = '{kind}' ORDER BY version DESC LIMIT 1"
        ))
        .await
    }
}

/// With `apart` the server has a processor for itself, and everybody else has the others: then only loads are measured.
pub async fn run(book: &mut Book, common: &Common, to: &ClickHouse, rows: u64, streams: &[u32], rounds: u64, apart: bool) {
    let source = common.source.fresh(SOURCE).await;
    fill(&source, "firenibble", rows).await;
    let memory = MemoryWatch::start();
    for &streams in streams {
        load(book, common, to, &source, (rows, streams), rounds, apart).await;
    }
    if apart {
        return;
    }
    table_function(book, common, to, rows).await;
    drop(source);
    change_stream(book, common, to, rounds).await;
    for (part, peak) in memory.end().into_iter().filter(|(part, _)| part == "snapshot" || part == "pipeline") {
        book.put(&format!("clickhouse.memory.{part}"), peak, "MiB", Target::AtMost(if part == "snapshot" { 192.0 } else { 256.0 }));
    }
    to.ask(&format!("DROP DATABASE IF EXISTS {DESTINATION} SYNC")).await;
}

/// Loads in turns with the source's own binary COPY into nothing, with as many streams over the same blocks.
async fn load(
    book: &mut Book,
    common: &Common,
    to: &ClickHouse,
    source: &tokio_postgres::Client,
    (rows, streams): (u64, u32),
    rounds: u64,
    apart: bool,
) {
    let (mut ours, mut ratios, mut parts) = (Vec::new(), Vec::new(), 0_u64);
    for _ in 0..rounds {
        let copied = copy_out(common, source, streams).await;
        let loaded = one_load(common, to, source, streams).await;
        assert_eq!(
            to.ask(&format!("SELECT count() FROM {DESTINATION}.firenibble_resync_e1g1")).await,
            rows.to_string(),
            "every row was loaded"
        );
        let sql =
            format!("SELECT count() FROM system.parts WHERE active AND database = '{DESTINATION}' AND startsWith(table, 'firenibble')");
        parts = parts.max(to.ask(&sql).await.parse().expect("a number"));
        println!("    {streams} streams: source alone {copied:.2} s, ours {loaded:.2} s");
        ours.push(loaded);
        ratios.push(loaded / copied);
    }
    let name = |what: &str| format!("clickhouse.load.{}{}M.{streams}.{what}", if apart { "apart." } else { "" }, rows / 1_000_000);
    book.put(&name("ours"), median(&ours), "s", Target::None);
    book.put(&name("by_copy_out"), median(&ratios), "ratio", if apart { Target::AtMost(1.15) } else { Target::None });
    book.put(&name("parts"), parts as f64, "parts", Target::AtMost(50.0));
}

/// Seconds from the workers' start to their end.
async fn one_load(common: &Common, to: &ClickHouse, source: &tokio_postgres::Client, streams: u32) -> f64 {
    to.fresh().await;
    drop_slots(&common.source.connect("postgres").await, SOURCE).await;
    let bytes: u64 = ask(source, "SELECT pg_table_size('firenibble')").await.parse().expect("a number");
    let partition = bytes.div_ceil(u64::from(streams)) + (8 << 20);
    let snapshot = json!({ "maxParallelWorkers": streams, "partitionSize": partition.to_string() });
    let epoch = Epoch::new(common, SOURCE, to.peer(), snapshot);
    let pipeline = epoch.pipeline();
    let partitions = planned(to).await;
    assert_eq!(partitions, streams, "as many partitions as streams");
    let begun = Instant::now();
    epoch.workers(partitions).await;
    let seconds = begun.elapsed().as_secs_f64();
    pipeline.end();
    drop_slots(&common.source.connect("postgres").await, SOURCE).await;
    execute(
        source,
        &format!("DROP PUBLICATION IF EXISTS {}", ask(source, "SELECT coalesce(min(pubname), 'none') FROM pg_publication").await),
    )
    .await;
    seconds
}

async fn planned(to: &ClickHouse) -> u32 {
    until("the plan", LIMIT, async || !to.fact("snapshot", "partitions").await.is_empty()).await;
    mirror::offered().await;
    to.fact("snapshot", "partitions").await.parse().expect("a number")
}

/// Seconds that the source takes to send the table into nothing.
async fn copy_out(common: &Common, source: &tokio_postgres::Client, streams: u32) -> f64 {
    let blocks: u64 = ask(source, "SELECT pg_relation_size('firenibble') / 8192").await.parse().expect("a number");
    let streams = u64::from(streams);
    let begun = Instant::now();
    let all = (0..streams).map(|n| {
        let (from, to) = (blocks * n / streams, blocks * (n + 1) / streams);
        let mut command = Command::new("psql");
        let sql = format!("COPY (SELECT * FROM firenibble WHERE ctid >= '({from},0)' AND ctid < '({to},0)') TO STDOUT (FORMAT binary)");
        command.args(["--no-psqlrc", "--quiet", "--dbname", &common.source.url(SOURCE), "--command", &sql]).stdout(Stdio::null());
        process::run(command)
    });
    futures::future::join_all(all).await;
    begun.elapsed().as_secs_f64()
}

/// ClickHouse's own way to read a table of PostgreSQL, and how much longer it takes than our load with one stream.
async fn table_function(book: &mut Book, common: &Common, to: &ClickHouse, rows: u64) {
    let Common { source, .. } = common;
    to.ask(&format!("CREATE TABLE {DESTINATION}.by_function ENGINE = MergeTree ORDER BY f0 AS {DESTINATION}.firenibble_resync_e1g1")).await;
    let columns: Vec<String> = (0..16).map(|n| format!("f{n}")).collect();
    let columns = columns.join(", ");
    let sql = format!(
        "INSERT INTO {DESTINATION}.by_function ({columns}) SELECT {columns} FROM postgresql('{}:{}', '{SOURCE}', 'firenibble', '{}', '{}')",
        source.host, source.port, source.user, source.password
    );
    let begun = Instant::now();
    to.ask(&sql).await;
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(to.ask(&format!("SELECT count() FROM {DESTINATION}.by_function")).await, rows.to_string(), "every row was loaded");
    println!("    INSERT … SELECT FROM postgresql(): {seconds:.2} s");
    if let Some(ours) = book.value(&format!("clickhouse.load.{}M.1.ours", rows / 1_000_000)) {
        book.put("clickhouse.load.table_function_by_ours", seconds / ours, "ratio", Target::AtLeast(2.0));
    }
}

async fn change_stream(book: &mut Book, common: &Common, to: &ClickHouse, rounds: u64) {
    let source = common.source.fresh(SOURCE).await;
    to.fresh().await;
    fill(&source, "firenibble", stream::ROWS_BEFORE).await;
    let epoch = Epoch::new(common, SOURCE, to.peer(), json!({}));
    let pipeline = epoch.pipeline();
    let partitions = planned(to).await;
    epoch.workers(partitions).await;
    epoch.swap().await;
    applied(to, &stream::position(&source).await).await;
    pipeline.end();
    let mut speeds = Vec::new();
    for round in 0..rounds {
        stream::changes(&source, round, rounds).await;
        execute(&source, "CHECKPOINT").await;
        let end = stream::position(&source).await;
        let begun = Instant::now();
        let pipeline = epoch.pipeline();
        applied(to, &end).await;
        let seconds = begun.elapsed().as_secs_f64();
        pipeline.end();
        println!("    round {round}: {} changes applied in {seconds:.1} s", stream::TRANSACTIONS * 1000);
        speeds.push((stream::TRANSACTIONS * 1000) as f64 / seconds);
    }
    let alive = ask(&source, "SELECT count(*) FROM firenibble").await;
    assert_eq!(to.ask(&format!("SELECT count() FROM {DESTINATION}.firenibble FINAL")).await, alive, "as many rows as at the source");
    book.put("clickhouse.stream.apply", median(&speeds), "changes/s", Target::AtLeast(30_000.0));
    drop(source);
    drop_slots(&common.source.connect("postgres").await, SOURCE).await;
}

/// Awaits that the checkpoint reaches a position of the source.
async fn applied(to: &ClickHouse, position: &str) {
    let number = |lsn: &str| -> u64 {
        let (high, low) = lsn.split_once('/').expect("an LSN");
        (u64::from_str_radix(high, 16).expect("hexadecimal") << 32) + u64::from_str_radix(low, 16).expect("hexadecimal")
    };
    let wanted = number(position);
    until("the checkpoint", LIMIT, async || {
        let found = to.fact("applied", "lsn").await;
        let found = found.trim_matches('"');
        !found.is_empty() && found.parse().unwrap_or_else(|_| number(found)) >= wanted
    })
    .await;
}
