//! The snapshot outlives its holders, and is replaced when all are gone.

use mirror_operator::{
    destination, finish,
    report::Stage,
    source::snapshot::{self, Holder},
};

use crate::{
    fixture::{Fixture, kill, number, until},
    load::{Pod, work},
};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)";

#[tokio::test]
async fn a_snapshot_passes_from_holder_to_holder() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(TABLE).await.unwrap();
    let brief = fixture.brief(1, &["public.t"]);
    let exported = snapshot::create_slot(&brief).await.unwrap();
    let first = Holder::import(&brief, &exported.name, exported.lsn).await.unwrap();
    let lsn = exported.lsn;
    drop(exported);
    source.batch_execute("DELETE FROM t").await.unwrap();
    let second = Holder::import(&brief, first.name(), lsn).await.unwrap();
    drop(first);
    let mut third = snapshot::adopt(&source, &brief, lsn).await.unwrap().expect("the second holds it");
    assert_eq!(number(third.client(), "SELECT count(*) FROM public.t").await, 100);
    let elsewhere = mirror_operator::postgres::Lsn(lsn.0 + 1);
    assert!(snapshot::adopt(&source, &brief, elsewhere).await.unwrap().is_none(), "another snapshot is never taken for this one");
    drop(second);
    kill(&source, "mo ").await;
    third.ended().await;
    third.ended().await;
    assert!(third.has_ended());
    assert!(snapshot::adopt(&source, &brief, lsn).await.unwrap().is_none());
    assert!(matches!(Holder::import(&brief, third.name(), lsn).await, Err(mirror_operator::source::Error::SnapshotGone { .. })));
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn a_pipeline_that_dies_finds_the_snapshot_with_a_worker() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(TABLE).await.unwrap();
    let pod = Pod::start(&fixture.brief(1, &["public.t"])).await;
    pod.offers(1).await;
    let told = pod.board.snapshot().unwrap();
    let worker = Holder::import(&pod.brief, &told.name, told.lsn).await.unwrap();
    source.batch_execute("DELETE FROM t").await.unwrap();
    let brief = pod.brief.clone();
    pod.kill().await;
    let pod = Pod::start(&brief).await;
    pod.offers(1).await;
    let again = pod.board.snapshot().unwrap();
    assert_eq!((again.generation, again.lsn), (1, told.lsn));
    assert_ne!(again.name, told.name);
    drop(worker);
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    let rows = destination::open(&brief).await.unwrap().progress().await.unwrap().0.rows;
    assert_eq!(rows, 100, "the rows of the snapshot, though the source has none any more");
    pod.stop().await;
    finish::cleanup(&brief).await.unwrap();
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn a_snapshot_is_replaced_although_a_pod_was_killed_while_it_waited_for_one() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(TABLE).await.unwrap();
    let brief = fixture.brief(1, &["public.t"]);
    let writer = fixture.at_source().await;
    writer.batch_execute("BEGIN; INSERT INTO t VALUES (101)").await.unwrap();
    let export = || {
        let brief = brief.clone();
        tokio::spawn(async move { snapshot::export_again(&brief, 2).await.map(drop) })
    };
    let slot = "SELECT coalesce(max(active_pid), 0)::bigint FROM pg_replication_slots WHERE temporary AND database = current_database()";
    let killed = export();
    until(&source, "the slot waits for the writer", &format!("SELECT ({slot}) > 0")).await;
    let first = number(&source, slot).await;
    killed.abort();
    assert!(killed.await.unwrap_err().is_cancelled());
    // The server does not look at its client while it waits.
    assert_eq!(number(&source, slot).await, first);
    let next = export();
    until(&source, "the next one waits in its place", &format!("SELECT ({slot}) NOT IN (0, {first})")).await;
    writer.batch_execute("COMMIT").await.unwrap();
    next.await.unwrap().unwrap();
    drop((source, writer));
    fixture.end().await;
}

#[tokio::test]
async fn a_lost_snapshot_is_replaced_and_the_slot_stays() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(TABLE).await.unwrap();
    let pod = Pod::start(&fixture.brief(1, &["public.t"])).await;
    pod.offers(1).await;
    let brief = pod.brief.clone();
    let first = pod.board.snapshot().unwrap();
    source.batch_execute("INSERT INTO t VALUES (101)").await.unwrap();
    kill(&source, "mo ").await;
    pod.offers(2).await;
    let second = pod.board.snapshot().unwrap();
    assert!(second.lsn > first.lsn);
    assert_eq!(number(&source, "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()").await, 1);
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    let tables = destination::open(&brief).await.unwrap().tables().await.unwrap();
    assert_eq!(tables[0].gate, second.lsn);
    assert_eq!(destination::open(&brief).await.unwrap().progress().await.unwrap().0.rows, 101);
    pod.stop().await;
    finish::cleanup(&brief).await.unwrap();
    drop(source);
    fixture.end().await;
}
