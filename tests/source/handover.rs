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
    brief.snapshot.chunk_size = Some("256Ki".to_string().try_into().unwrap());
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

/// Looks at the live tables all the while, in one snapshot each time: they are there, one is as old as the other, and neither goes back in time. Returns the longest time that they did
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

/// An epoch that rebuilds only `t`, and loads `w`, which it did not have.
fn some(fixture: &Fixture, epoch: u32) -> Brief {
    let mut brief = Brief { kept: vec![1], ..live(fixture, epoch) };
    brief.tables.extend(fixture.brief(epoch, &["public.w"]).tables);
    brief
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_tables_are_rebuilt_while_the_others_stay_and_all_are_as_old_as_each_other() {
    let fixture = Fixture::new().await;
    let old = first(&fixture).await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute("CREATE TABLE w (id int PRIMARY KEY); INSERT INTO w SELECT generate_series(1, 100)").await.unwrap();
    let oid = number(&target, "SELECT 'u'::regclass::oid::bigint").await;
    let (writing, looking) = (AtomicBool::new(false), AtomicBool::new(false));
    let (writer, reader) = (fixture.at_source().await, fixture.at_destination().await);
    let life = async {
        until(&target, "changes come", "SELECT n > 20 FROM u WHERE id = 1").await;
        // One that is given up when the old stream has ended leaves everything as it was.
        let given_up = beside(&some(&fixture, 2)).await;
        let destination = destination::open(&given_up.brief).await.unwrap();
        assert_eq!(destination.tables().await.unwrap().len(), 2, "only what is rebuilt");
        // Until the old stream has come to where the new one begins it is refused, to be tried again.
        while let Err(error) = destination.hand_over().await {
            assert!(matches!(error, destination::Error::Transient(_)), "{error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        given_up.stop().await;
        assert_eq!(finish::cleanup(&some(&fixture, 2)).await, Ok(None));
        let new = beside(&some(&fixture, 3)).await;
        until(&target, "the shadow gets changes", "SELECT max(n) > 60 FROM t_resync").await;
        finish::swap(&new.brief).await.unwrap();
        new.reaches(Stage::Streaming).await;
        let n = number(&target, "SELECT n FROM u WHERE id = 1").await;
        until(&target, "all stream", &format!("SELECT n > {n} + 20 FROM u WHERE id = 1")).await;
        writing.store(true, Ordering::Relaxed);
        looking.store(true, Ordering::Relaxed);
        new
    };
    let (new, turns, _) = tokio::join!(life, write(&writer, &writing), look(&reader, &looking));
    source.batch_execute("INSERT INTO w VALUES (101)").await.unwrap();
    until(
        &target,
        "the last changes have arrived",
        &format!("SELECT n = {turns} AND EXISTS (SELECT FROM w WHERE id = 101) FROM u WHERE id = 1"),
    )
    .await;
    assert_eq!(sum(&source, "").await, sum(&target, "WHERE NOT \"_PEERDB_IS_DELETED\"").await);
    assert_eq!(number(&target, "SELECT 'u'::regclass::oid::bigint").await, oid, "it is the very table");
    assert_eq!(number(&target, "SELECT n FROM t WHERE id = 1").await, turns);
    let counted = number(&target, "SELECT updates FROM _mirror_operator.table WHERE destination_name = 'u'").await;
    assert_eq!(counted, turns, "each change was applied once, by the one epoch or the other");
    old.stop().await;
    new.stop().await;

    // Whole again, and gone: of the table that was kept too.
    let third = Brief { kept: vec![], handover: Handover::DropFirst, previous_epoch: 3, ..some(&fixture, 4) };
    crate::load::whole(&fixture, &third).await;
    assert_ne!(number(&target, "SELECT 'u'::regclass::oid::bigint").await, oid);
    assert_eq!(number(&target, "SELECT count(*) FROM _mirror_operator.epoch").await, 1);
    finish::forget(&third, false).await.unwrap();
    assert_eq!(number(&target, "SELECT count(*) FROM u").await, 10, "tables are retained");
    drop((source, target, writer, reader));
    fixture.end().await;
}

#[tokio::test]
async fn tables_that_are_kept_are_not_given_up_when_the_old_slot_is_lost() {
    let fixture = Fixture::new().await;
    let old = first(&fixture).await;
    let source = fixture.at_source().await;
    source.batch_execute("CREATE TABLE w (id int PRIMARY KEY)").await.unwrap();
    let slot = old.brief.slot();
    old.stop().await;
    until(&source, "the slot is free", &format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{slot}'")).await;
    // Neither applied by the old stream, nor in the new one.
    source.batch_execute("INSERT INTO u VALUES (11, 0)").await.unwrap();
    let new = beside(&some(&fixture, 2)).await;
    let destination = destination::open(&new.brief).await.unwrap();
    let refused = destination.hand_over().await;
    assert!(matches!(&refused, Err(destination::Error::Transient(why)) if why.contains("has not come")), "{refused:?}");
    source.batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.unwrap();
    let failure = new.fails().await;
    assert!(failure.reason == "SlotLost" && failure.message.contains("all tables"), "{failure:?}");
    new.stop().await;
    assert_eq!(finish::cleanup(&some(&fixture, 2)).await, Ok(None));
    finish::forget(&some(&fixture, 2), true).await.unwrap();
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn a_table_that_could_not_be_streamed_any_more_is_not_kept() {
    let fixture = Fixture::new().await;
    let old = first(&fixture).await;
    let source = fixture.at_source().await;
    source.batch_execute("CREATE TABLE w (id int PRIMARY KEY)").await.unwrap();
    for (change, words) in [
        ("ALTER TABLE u REPLICA IDENTITY NOTHING", "REPLICA IDENTITY"),
        ("ALTER TABLE u RENAME TO v; CREATE TABLE u (id bigint PRIMARY KEY)", "another table"),
    ] {
        source.batch_execute(change).await.unwrap();
        let new = Pod::start(&some(&fixture, 2)).await;
        let failure = new.fails().await;
        assert!(failure.reason == "KeptTable" && failure.message.contains("public.u") && failure.message.contains(words), "{failure:?}");
        assert_eq!(new.board.report().stage, Stage::Checking);
        new.stop().await;
    }
    old.stop().await;
    finish::forget(&some(&fixture, 2), true).await.unwrap();
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn a_table_that_cannot_take_a_change_while_it_catches_up_is_not_swapped_in() {
    let fixture = Fixture::new().await;
    let old = first(&fixture).await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    let new = beside(&live(&fixture, 2)).await;
    target.batch_execute("ALTER TABLE t_resync ADD CHECK (n < 1000)").await.unwrap();
    source.batch_execute("UPDATE t SET n = 2000 WHERE id = 5; INSERT INTO t VALUES (30000, 0, 'new')").await.unwrap();
    let failure = new.fails().await;
    assert!(failure.reason == "TableParked" && failure.message.contains("nothing was swapped"), "{failure:?}");
    let refused = destination::open(&new.brief).await.unwrap().hand_over().await;
    assert!(matches!(&refused, Err(destination::Error::Permanent(f)) if f.reason == "TableParked"), "{refused:?}");
    new.stop().await;
    assert_eq!(finish::cleanup(&live(&fixture, 2)).await, Ok(None));
    until(&target, "the old stream goes on", "SELECT count(*) = 2 FROM t WHERE n = 2000 OR id = 30000").await;
    old.stop().await;
    finish::forget(&live(&fixture, 2), true).await.unwrap();
    drop((source, target));
    fixture.end().await;
}
