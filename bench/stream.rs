//! The change stream: how fast it is applied, beside how fast the source sends it, and the memory that one large transaction takes.

use std::{process::Command, time::Instant};

use mirror_operator::brief::DestinationPeer;
use serde_json::json;

use crate::{
    Common,
    book::{Book, Target, median},
    mirror::{self, Epoch},
    process::{self, peak_memory},
    server::{ask, drop_slots, execute, fill, rows},
};

const SOURCE: &str = "bench_stream";
const DESTINATION: &str = "bench_stream_destination";
pub const ROWS_BEFORE: u64 = 1_000_000;
/// Transactions of a round: 500 inserts, 400 updates and 100 deletes each.
pub const TRANSACTIONS: u64 = 1600;

pub async fn run(book: &mut Book, common: &Common, large: u64, rounds: u64) {
    let source = common.source.fresh(SOURCE).await;
    let ledger = common.destination.fresh(DESTINATION).await;
    fill(&source, "firenibble", ROWS_BEFORE).await;
    let epoch = Epoch::new(common, SOURCE, DestinationPeer::Postgres(common.destination.connection(DESTINATION)), json!({}));
    let pipeline = epoch.pipeline();
    let partitions = mirror::planned(&ledger).await;
    epoch.workers(partitions).await;
    epoch.swap().await;
    mirror::applied(&ledger, &position(&source).await).await;
    pipeline.end();

    let publication = ask(&source, "SELECT pubname FROM pg_publication").await;
    let (mut ours, mut senders, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        execute(&source, "SELECT pg_create_logical_replication_slot('bench_sender', 'pgoutput')").await;
        changes(&source, round, rounds).await;
        execute(&ledger, "CHECKPOINT").await;
        execute(&source, "CHECKPOINT").await;
        let end = position(&source).await;
        let before = counted(&ledger).await;

        let begun = Instant::now();
        drain(common, &publication, &end).await;
        let sent = begun.elapsed().as_secs_f64();
        execute(&source, "SELECT pg_drop_replication_slot('bench_sender')").await;

        let begun = Instant::now();
        let pipeline = epoch.pipeline();
        mirror::applied(&ledger, &end).await;
        let seconds = begun.elapsed().as_secs_f64();
        pipeline.end();
        let changes = (counted(&ledger).await - before) as f64;
        assert_eq!(changes as u64, TRANSACTIONS * 1000, "every change was counted");
        println!("    round {round}: {changes} changes, sent in {sent:.1} s, applied in {seconds:.1} s");
        ours.push(changes / seconds);
        senders.push(changes / sent);
        ratios.push(sent / seconds);
    }
    if rounds > 0 {
        book.put("stream.sender", median(&senders), "changes/s", Target::None);
        book.put("stream.apply", median(&ours), "changes/s", Target::AtLeast(50_000.0));
        book.put("stream.apply_by_sender", median(&ratios), "ratio", Target::None);
    }

    // With the pod there from the beginning, as it is in life.
    let pipeline = epoch.pipeline();
    execute(&source, &format!("INSERT INTO firenibble {}", rows(100_000_000, 99_999_999 + large))).await;
    let end = position(&source).await;
    let begun = Instant::now();
    mirror::applied(&ledger, &end).await;
    println!("    one transaction of {large} rows was applied {:.1} s after its end", begun.elapsed().as_secs_f64());
    let peak = peak_memory(pipeline.id()).expect("the pipeline lives");
    book.put("memory.pipeline_large_transaction", peak, "MiB", Target::AtMost(256.0));
    pipeline.end();
    drop((source, ledger));
    drop_slots(&common.source.connect("postgres").await, SOURCE).await;
}

pub async fn changes(source: &tokio_postgres::Client, round: u64, rounds: u64) {
    let first = 10_000_000 * (round + 1);
    // Each round updates and deletes other rows of those that stood there at first.
    let share = ROWS_BEFORE / rounds / TRANSACTIONS;
    let old = 1 + round * share * TRANSACTIONS;
    let insert = rows(1, 1).replace("generate_series(1::bigint, 1::bigint)", "generate_series(first, first + 499)");
    execute(
        source,
        &format!(
            "DO $$ DECLARE first bigint; old bigint; BEGIN
               FOR n IN 0..{} LOOP
                 first := {first} + n * 500;
                 old := {old} + n * {share};
                 INSERT INTO firenibble {insert};
                 UPDATE firenibble SET f1 = f1 + 1, f8 = md5(f1::text) WHERE f0 >= old AND f0 < old + 100;
                 UPDATE firenibble SET f4 = random(), f13 = md5(f1::text) WHERE f0 >= first AND f0 < first + 300;
                 DELETE FROM firenibble WHERE f0 >= old + 100 AND f0 < old + 200;
                 COMMIT;
               END LOOP; END $$",
            TRANSACTIONS - 1
        ),
    )
    .await;
}

/// Everything up to `end` through a slot of its own into nothing.
async fn drain(common: &Common, publication: &str, end: &str) {
    let mut command = Command::new("pg_recvlogical");
    command.arg("--dbname").arg(common.source.url(SOURCE)).args(["--slot", "bench_sender", "--start", "--no-loop", "--endpos", end]);
    command.args(["--option", "proto_version=1", "--option", &format!("publication_names={publication}"), "--file", "/dev/null"]);
    process::run(command).await;
}

pub async fn position(source: &tokio_postgres::Client) -> String {
    // A record of its own, for a transaction may end within the position otherwise.
    ask(source, "SELECT pg_logical_emit_message(true, 'bench', '')").await;
    ask(source, "SELECT pg_current_wal_flush_lsn()").await
}

async fn counted(ledger: &tokio_postgres::Client) -> u64 {
    ask(ledger, "SELECT sum(inserts + updates + deletes) FROM _mirror_operator.table").await.parse().expect("a number")
}
