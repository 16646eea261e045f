//! The live handover, between both servers: the old tables are fresh until the new ones take their names.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use mirror_operator::{
    api::resync::{Handover, Verification},
    brief::Brief,
    destination, finish,
    report::Stage,
};
use tokio_postgres::Client;

use crate::{
    fixture::{Fixture, number, until},
    load::{Pod, work},
};

const SHOP: &str = "
CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL, note text);
INSERT INTO t SELECT g, 0, repeat(md5(g::text), 8) FROM generate_series(1, 20000) g;
CREATE TABLE u (id bigint PRIMARY KEY, n bigint NOT NULL);
INSERT INTO u SELECT g, 0 FROM generate_series(1, 10) g;";

fn live(fixture: &Fixture, epoch: u32) -> Brief {
    let mut brief = Brief { handover: Handover::Live, ..fixture.brief(epoch, &["public.t", "public.u"]) };
    brief.previous_epoch = 1;
    brief.snapshot.chunk_size = "256Ki".to_string().try_into().unwrap();
    brief
}

/// The first epoch, streaming.
async fn first(fixture: &Fixture) -> Pod {
    fixture.at_source().await.batch_execute(SHOP).await.unwrap();
    let pod = Pod::start(&fixture.brief(1, &["public.t", "public.u"])).await;
    pod.offers(1).await;
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    finish::swap(&pod.brief).await.unwrap();
    pod.reaches(Stage::Streaming).await;
    pod
}

/// An epoch beside it, as far as it comes by itself.
async fn beside(brief: &Brief) -> Pod {
    let pod = Pod::start(brief).await;
    pod.offers(1).await;
    work(&pod.brief).await;
    pod.reaches(Stage::CatchingUp).await;
    pod
}

/// Transactions that move a row on in both tables, and add and delete others, until told to stop; returns how many.
async fn write(client: &Client, stop: &AtomicBool) -> i64 {
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let sql = format!(
            "BEGIN; UPDATE t SET n = {turn} WHERE id IN (1, {}); UPDATE u SET n = {turn} WHERE id = 1; INSERT INTO t VALUES ({}, {turn}, 'new'); \
             DELETE FROM t WHERE id = {}; COMMIT",
            turn % 20_000 + 2,
            100_000 + turn,
            10_000 + turn
        );
        client.batch_execute(&sql).await.unwrap();
    }
    turn
}

/// Looks at the live tables all the while: they are there, one is as old as the other, and neither goes back in time. Returns the longest time that they did
/// not move.
async fn look(client: &Client, stop: &AtomicBool) -> Duration {
    let (mut last, mut since, mut longest) = (0, tokio::time::Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let row = client.query_one("SELECT t.n, u.n, (SELECT count(*) FROM t) FROM t, u WHERE t.id = 1 AND u.id = 1", &[]).await.unwrap();
        let (t, u, rows): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert!(t == u && t >= last && rows >= 20_000, "{t} and {u} after {last}, of {rows}");
        if t > last {
            (last, since) = (t, tokio::time::Instant::now());
        }
        longest = longest.max(since.elapsed());
    }
    longest
}

async fn sum(client: &Client, alive: &str) -> String {
    let sql = format!("SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY id)) FROM (SELECT id, n, note FROM t {alive}) t");
    client.query_one(&sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_live_handover_readers_see_fresh_tables_until_the_new_ones_have_it_all() {
    let fixture = Fixture::new().await;
    let old = first(&fixture).await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute("DELETE FROM t WHERE id = 7").await.unwrap();
    until(&target, "the row is flagged", "SELECT \"_PEERDB_IS_DELETED\" FROM t WHERE id = 7").await;
    target.batch_execute("INSERT INTO t (id, n) VALUES (999999, 0)").await.unwrap();

    let (writing, looking) = (AtomicBool::new(false), AtomicBool::new(false));
    let (writer, reader) = (fixture.at_source().await, fixture.at_destination().await);
    let life = async {
        let brief = Brief { verification: Verification::RowCount, ..live(&fixture, 2) };
        let new = beside(&brief).await;
        until(&target, "both get changes", "SELECT (SELECT max(n) FROM t_resync) > 50 AND (SELECT max(n) FROM t) > 50").await;
        new.kill().await;
        let new = Pod::start(&brief).await;
        new.reaches(Stage::CatchingUp).await;
        until(&target, "the next pod goes on", "SELECT max(n) > 100 FROM t_resync").await;
        finish::swap(&new.brief).await.unwrap();
        new.reaches(Stage::Streaming).await;
        let n = number(&target, "SELECT max(n) FROM t").await;
        until(&target, "the new tables stream", &format!("SELECT max(n) > {n} + 20 FROM t")).await;
        writing.store(true, Ordering::Relaxed);
        new
    };
    let (new, turns, still) = tokio::join!(life, write(&writer, &writing), async {
        let looked = look(&reader, &looking);
        let done = async {
            while !writing.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            looking.store(true, Ordering::Relaxed);
        };
        tokio::join!(looked, done).0
    });
    println!("{turns} transactions; the tables stood still for {} ms at most", still.as_millis());
    until(&target, "the last change has arrived", &format!("SELECT n = {turns} FROM t WHERE id = 1")).await;
    assert_eq!(sum(&source, "").await, sum(&target, "WHERE NOT \"_PEERDB_IS_DELETED\"").await);
    let carried = destination::open(&new.brief).await.unwrap().progress().await.unwrap().1.remove(0);
    assert_eq!(carried.carried_missing, 1, "{carried:?}");
    assert!(carried.carried_deleted >= 1 && carried.rows_verified.is_some(), "{carried:?}");
    assert_eq!(number(&target, "SELECT count(*) FROM t WHERE id IN (7, 999999) AND \"_PEERDB_IS_DELETED\"").await, 2);
    let slots = format!(
        "SELECT array_agg(slot_name::text) = ARRAY['{}'] FROM pg_replication_slots WHERE database = current_database()",
        new.brief.slot()
    );
    until(&source, "the old slot is dropped", &slots).await;
    assert_eq!(number(&source, "SELECT count(*) FROM pg_publication").await, 1);
    old.reaches(Stage::Superseded).await;
    old.stop().await;
    new.stop().await;
    finish::forget(&live(&fixture, 2), true).await.unwrap();
    drop((source, target, writer, reader));
    fixture.end().await;
}

#[tokio::test]
async fn a_live_handover_that_is_given_up_leaves_the_stream_to_the_old_tables() {
    let fixture = Fixture::new().await;
    let old = first(&fixture).await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    let arrives = async |id: i64| {
        source.batch_execute(&format!("INSERT INTO t VALUES ({id}, 0, 'new')")).await.unwrap();
        until(&target, "the change arrives", &format!("SELECT EXISTS (SELECT FROM t WHERE id = {id})")).await;
    };
    let alone = format!(
        "SELECT array_agg(slot_name::text) = ARRAY['{}'] FROM pg_replication_slots WHERE database = current_database()",
        old.brief.slot()
    );

    // Before the old stream has ended.
    let new = beside(&live(&fixture, 2)).await;
    arrives(200_001).await;
    new.stop().await;
    assert_eq!(finish::cleanup(&live(&fixture, 2)).await, Ok(None));
    arrives(200_002).await;
    until(&source, "its slot is dropped", &alone).await;
    let zombie = Pod::start(&live(&fixture, 2)).await;
    assert_eq!(zombie.fails().await.reason, "EpochGone");
    zombie.stop().await;

    // After: the swap's pod got no further.
    let new = beside(&live(&fixture, 3)).await;
    let destination = destination::open(&new.brief).await.unwrap();
    for _ in 0..2 {
        destination.hand_over().await.unwrap();
    }
    source.batch_execute("INSERT INTO t VALUES (200003, 0, 'new')").await.unwrap();
    while !destination.state().await.unwrap().unwrap().caught_up {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(destination.applier().await.is_err(), "nothing is applied between the catch-up and the swap");
    assert_eq!(number(&target, "SELECT count(*) FROM t WHERE id = 200003").await, 0, "the old tables stand still");
    new.kill().await;
    assert_eq!(finish::cleanup(&live(&fixture, 3)).await, Ok(None));
    until(&target, "the old stream goes on", "SELECT EXISTS (SELECT FROM t WHERE id = 200003)").await;
    arrives(200_004).await;
    assert_eq!(old.board.report().stage, Stage::Streaming);
    until(&source, "its slot is dropped", &alone).await;

    // And then one that comes to its end.
    let new = beside(&live(&fixture, 4)).await;
    finish::swap(&new.brief).await.unwrap();
    new.reaches(Stage::Streaming).await;
    arrives(200_005).await;
    assert_eq!(number(&target, "SELECT count(*) FROM t WHERE id > 200000").await, 5);
    old.stop().await;
    new.stop().await;
    finish::forget(&live(&fixture, 4), true).await.unwrap();
    drop((source, target));
    fixture.end().await;
}
