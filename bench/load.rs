//! Loads by ours, a bare pass-through, psql and pgcopydb, in turns.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use mirror_operator::brief::DestinationPeer;
use serde_json::json;
use tokio_postgres::Client;

use crate::{
    Common,
    book::{Book, Target, median},
    mirror::{self, Epoch},
    process,
    server::{COLUMNS, ask, drop_slots, execute, fill, until},
};

const DESTINATION: &str = "bench_destination";

#[derive(Clone, Copy, PartialEq)]
enum Contestant {
    Ours,
    PassThrough,
    Psql,
    Pgcopydb,
}

/// Seconds until all rows were there, and until the key was.
#[derive(Clone, Copy, Default)]
struct Times {
    rows: f64,
    key: f64,
}

/// Ranges of blocks, by stream.
type Ranges = Vec<Vec<String>>;

struct Track<'a> {
    common: &'a Common,
    database: String,
    count: u64,
    streams: u32,
    source: Client,
    /// As ours has planned them.
    ranges: Ranges,
}

pub async fn run(book: &mut Book, common: &Common, sizes: &[u64], streams: &[u32], rounds: usize) {
    let mut contestants = vec![Contestant::Ours, Contestant::PassThrough, Contestant::Psql, Contestant::Pgcopydb];
    if !process::installed("pgcopydb") {
        println!("pgcopydb is not installed: no comparison with it");
        contestants.pop();
    }
    for &count in sizes {
        let database = format!("bench_{count}");
        let admin = common.source.connect("postgres").await;
        if ask(&admin, &format!("SELECT count(*) FROM pg_database WHERE datname = '{database}'")).await == "0" {
            fill(&common.source.fresh(&database).await, "firenibble", count).await;
        }
        for &streams in streams {
            let source = common.source.connect(&database).await;
            let mut track = Track { common, database: database.clone(), count, streams, source, ranges: Ranges::new() };
            track.race(book, &contestants, rounds).await;
        }
    }
}

impl Track<'_> {
    async fn race(&mut self, book: &mut Book, contestants: &[Contestant], rounds: usize) {
        let mut times: Vec<Vec<Times>> = vec![Vec::new(); contestants.len()];
        // The source's pages and the programs are in memory afterwards.
        ask(&self.source, "SELECT sum(f1) FROM firenibble").await;
        self.ours().await;
        for round in 0..rounds {
            for turn in 0..contestants.len() {
                let who = (round + turn) % contestants.len();
                times[who].push(self.once(contestants[who]).await);
            }
        }
        let million = self.count / 1_000_000;
        let name = |what: &str| format!("load.{million}M.{}.{what}", self.streams);
        let of = |who: Contestant, part: fn(&Times) -> f64| {
            let index = contestants.iter().position(|c| *c == who)?;
            Some(times[index].iter().map(part).collect::<Vec<f64>>())
        };
        let seconds = |who, part| of(who, part).map(|all| median(&all));
        let put = |book: &mut Book, what: &str, value: Option<f64>, unit: &str, target| {
            if let Some(value) = value {
                book.put(&name(what), value, unit, target);
            }
        };
        put(book, "ours.rows", seconds(Contestant::Ours, |t| t.rows), "s", Target::None);
        put(book, "ours.key", seconds(Contestant::Ours, |t| t.key), "s", Target::None);
        put(book, "passthrough.rows", seconds(Contestant::PassThrough, |t| t.rows), "s", Target::None);
        put(book, "psql.rows", seconds(Contestant::Psql, |t| t.rows), "s", Target::None);
        put(book, "psql.key", seconds(Contestant::Psql, |t| t.key), "s", Target::None);
        put(book, "pgcopydb.key", seconds(Contestant::Pgcopydb, |t| t.key), "s", Target::None);
        // Ratios within each round: what the machine is busy with besides hits its neighbours too.
        let ratio = |who, part: fn(&Times) -> f64| {
            let (theirs, ours) = (of(who, part)?, of(Contestant::Ours, part)?);
            Some(median(&theirs.iter().zip(&ours).map(|(theirs, ours)| theirs / ours).collect::<Vec<_>>()))
        };
        put(book, "passthrough_by_ours", ratio(Contestant::PassThrough, |t| t.rows), "ratio", Target::AtLeast(0.95));
        put(book, "psql_by_ours", ratio(Contestant::Psql, |t| t.key), "ratio", Target::AtLeast(1.0));
        put(book, "pgcopydb_by_ours", ratio(Contestant::Pgcopydb, |t| t.key), "ratio", Target::AtLeast(1.0));
        for (who, all) in ["ours", "passthrough", "psql", "pgcopydb"].iter().zip(&times) {
            let all: Vec<String> = all.iter().map(|t| format!("{:.2}/{:.2}", t.rows, t.key)).collect();
            println!("    {} rounds, rows/key: {}", name(who), all.join(" "));
        }
    }

    async fn once(&mut self, who: Contestant) -> Times {
        match who {
            Contestant::Ours => self.ours().await,
            Contestant::PassThrough => self.pass_through().await,
            Contestant::Psql => self.psql().await,
            Contestant::Pgcopydb => self.pgcopydb().await,
        }
    }

    /// An empty destination with nothing left to write.
    async fn destination(&self) -> Client {
        let client = self.common.destination.fresh(DESTINATION).await;
        execute(&client, "CHECKPOINT").await;
        client
    }

    async fn check(&self, destination: &Client) {
        assert_eq!(ask(destination, "SELECT count(*) FROM firenibble").await, self.count.to_string(), "every row was loaded");
    }

    async fn ours(&mut self) -> Times {
        let ledger = self.destination().await;
        let admin = self.common.source.connect("postgres").await;
        drop_slots(&admin, &self.database).await;
        let bytes: u64 = ask(&self.source, "SELECT pg_table_size('firenibble')").await.parse().expect("a number");
        // A margin, or what chunks cost makes one partition more.
        let partition = bytes.div_ceil(u64::from(self.streams)) + (8 << 20);
        let epoch = Epoch::new(
            self.common,
            &self.database,
            DestinationPeer::Postgres(self.common.destination.connection(DESTINATION)),
            json!({ "maxParallelWorkers": self.streams, "partitionSize": partition.to_string() }),
        );
        let pipeline = epoch.pipeline();
        let partitions = mirror::planned(&ledger).await;
        assert_eq!(partitions, self.streams, "as many partitions as streams");
        let begun = Instant::now();
        let awaited = async {
            let left = "SELECT count(*) FROM _mirror_operator.chunk WHERE loaded_at IS NULL";
            until("all chunks", std::time::Duration::from_secs(300), async || ask(&ledger, left).await == "0").await;
            let rows = begun.elapsed().as_secs_f64();
            let left = "SELECT count(*) FROM _mirror_operator.table WHERE sealed_at IS NULL";
            until("all tables", std::time::Duration::from_secs(300), async || ask(&ledger, left).await == "0").await;
            Times { rows, key: begun.elapsed().as_secs_f64() }
        };
        let (times, ()) = tokio::join!(awaited, epoch.workers(partitions));
        pipeline.end();
        self.ranges = ranges(&ledger).await;
        assert_eq!(ask(&ledger, "SELECT sum(rows) FROM _mirror_operator.chunk").await, self.count.to_string(), "every row was loaded");
        drop_slots(&admin, &self.database).await;
        execute(
            &self.source,
            &format!("DROP PUBLICATION IF EXISTS {}", ask(&self.source, "SELECT coalesce(min(pubname), 'none') FROM pg_publication").await),
        )
        .await;
        times
    }

    async fn pass_through(&self) -> Times {
        let destination = self.destination().await;
        // As ours fills it: the columns of its own are added later.
        execute(&destination, &format!("CREATE TABLE firenibble ({COLUMNS}) WITH (autovacuum_enabled = false)")).await;
        let begun = Instant::now();
        let all = self.ranges.iter().map(|ranges| {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.arg("pass-through").args(["--source", &self.common.source.url("postgres"), "--source-database", &self.database]);
            command.args(["--destination", &self.common.destination.url("postgres"), "--destination-database", DESTINATION]);
            command.args(ranges.iter().flat_map(|range| ["--range", range]));
            process::run(command)
        });
        futures::future::join_all(all).await;
        let rows = begun.elapsed().as_secs_f64();
        self.check(&destination).await;
        Times { rows, key: rows }
    }

    async fn psql(&self) -> Times {
        let destination = self.destination().await;
        execute(&destination, &format!("CREATE TABLE firenibble ({COLUMNS})")).await;
        let blocks: u64 = ask(&self.source, "SELECT pg_relation_size('firenibble') / 8192").await.parse().expect("a number");
        let streams = u64::from(self.streams);
        let begun = Instant::now();
        let all = (0..streams).map(|n| {
            let (from, to) = (blocks * n / streams, blocks * (n + 1) / streams);
            let range = if streams == 1 { "true".to_string() } else { format!("ctid >= '({from},0)' AND ctid < '({to},0)'") };
            let mut command = Command::new("bash");
            command.args([
                "-c",
                r#"set -o pipefail; psql --no-psqlrc --quiet "$1" --command "COPY (SELECT * FROM firenibble WHERE $3) TO STDOUT (FORMAT binary)" |
                   psql --no-psqlrc --quiet "$2" --command "COPY firenibble FROM STDIN (FORMAT binary)""#,
                "psql",
            ]);
            command.arg(self.common.source.url(&self.database)).arg(self.common.destination.url(DESTINATION)).arg(range);
            process::run(command)
        });
        futures::future::join_all(all).await;
        let rows = begun.elapsed().as_secs_f64();
        execute(&destination, "ALTER TABLE firenibble ADD PRIMARY KEY (f0)").await;
        let key = begun.elapsed().as_secs_f64();
        self.check(&destination).await;
        Times { rows, key }
    }

    async fn pgcopydb(&self) -> Times {
        let destination = self.destination().await;
        let directory = std::env::temp_dir().join(format!("mirror-bench-pgcopydb-{}", std::process::id()));
        let bytes: u64 = ask(&self.source, "SELECT pg_table_size('firenibble')").await.parse().expect("a number");
        let jobs = self.streams.to_string();
        let mut command = Command::new("pgcopydb");
        command.arg("clone").arg("--source").arg(self.common.source.url(&self.database)).arg("--target");
        command.arg(self.common.destination.url(DESTINATION)).arg("--dir").arg(&directory);
        command.args(["--table-jobs", &jobs, "--index-jobs", &jobs, "--no-owner", "--no-acl", "--skip-large-objects", "--skip-extensions"]);
        if self.streams > 1 {
            command.args(["--split-tables-larger-than", &(bytes.div_ceil(u64::from(self.streams))).to_string()]);
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let begun = Instant::now();
        process::run(command).await;
        let key = begun.elapsed().as_secs_f64();
        let _ = std::fs::remove_dir_all(directory);
        self.check(&destination).await;
        Times { rows: key, key }
    }
}

async fn ranges(ledger: &Client) -> Ranges {
    let sql = "SELECT partition, first_block, end_block FROM _mirror_operator.chunk ORDER BY number";
    let mut ranges = Ranges::new();
    for row in ledger.query(sql, &[]).await.expect("the plan") {
        let (partition, first, end): (i32, i64, Option<i64>) = (row.get(0), row.get(1), row.get(2));
        ranges.resize(ranges.len().max(partition as usize + 1), Vec::new());
        let end = end.map(|end| format!(" AND ctid < '({end},0)'")).unwrap_or_default();
        ranges[partition as usize].push(format!("ctid >= '({first},0)'{end}"));
    }
    ranges
}
