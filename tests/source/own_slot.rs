//! A slot of the user's own, which outlives the epochs that stream it.

use mirror_operator::{
    brief::Brief,
    finish,
    postgres::wire::ReplicationSession,
    report::Stage,
    source::{catalog, preflight, slot},
};

use crate::{
    fixture::{Fixture, number, until},
    load::{Pod, work},
};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT g, 0 FROM generate_series(1, 1000) g";

fn own(fixture: &Fixture, epoch: u32) -> Brief {
    let brief = fixture.brief(epoch, &["public.t"]);
    Brief { own_slot: Some(format!("own_{}", brief.mirror.replace('-', "_"))), ..brief }
}

async fn make(fixture: &Fixture, plugin: &str) {
    let slot = own(fixture, 1).own_slot.unwrap();
    let sql = format!("SELECT pg_create_logical_replication_slot('{slot}', '{plugin}')");
    fixture.at_source().await.query(&sql, &[]).await.unwrap();
}

async fn drop_it(fixture: &Fixture) {
    slot::drop_slot(&fixture.as_pod().await, &own(fixture, 1).own_slot.unwrap()).await.unwrap();
}

/// Loads and streams, with changes before, during and after the load.
async fn streams(fixture: &Fixture, epoch: u32) -> Pod {
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    let moved = async || source.batch_execute("UPDATE t SET n = n + 1; INSERT INTO t SELECT max(id) + 1, 0 FROM t").await.unwrap();
    moved().await;
    let pod = Pod::start(&own(fixture, epoch)).await;
    pod.offers(1).await;
    moved().await;
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    finish::swap(&pod.brief).await.unwrap();
    pod.reaches(Stage::Streaming).await;
    moved().await;
    let sum = "SELECT count(*) || ' ' || sum(n) || ' ' || max(id) FROM t";
    let expected: String = source.query_one(sum, &[]).await.unwrap().get(0);
    until(&target, "all has arrived", &format!("SELECT ({sum}) = '{expected}'")).await;
    pod
}

#[tokio::test]
async fn a_slot_of_ones_own_is_streamed_by_every_epoch_and_never_dropped() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(TABLE).await.unwrap();
    make(&fixture, "pgoutput").await;
    // The slot is older than the publication, and so are changes of the table.
    source.batch_execute("UPDATE t SET n = 1 WHERE id < 100").await.unwrap();
    streams(&fixture, 1).await.kill().await;
    let pod = streams(&fixture, 2).await;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(number(&source, slots).await, 1, "beside it only temporary ones were made");
    pod.stop().await;
    // One that is given up leaves it too.
    let pod = Pod::start(&own(&fixture, 3)).await;
    pod.offers(1).await;
    pod.stop().await;
    assert_eq!(finish::cleanup(&own(&fixture, 3)).await, Ok(None));
    finish::forget(&own(&fixture, 3), true).await.unwrap();
    assert_eq!(number(&source, slots).await, 1);
    drop_it(&fixture).await;
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn a_slot_that_cannot_serve_is_told_with_its_cure() {
    let fixture = Fixture::new().await;
    fixture.at_source().await.batch_execute(TABLE).await.unwrap();
    let brief = own(&fixture, 1);
    let told = async || {
        let client = fixture.as_pod().await;
        let tables = catalog::read(&client, &brief).await.unwrap().tables;
        let problems = preflight::check(&client, &brief, &tables).await.unwrap();
        problems.into_iter().map(|p| (p.reason, p.message)).collect::<Vec<_>>()
    };
    let missing = told().await;
    assert!(
        matches!(&missing[..], [(reason, words)] if reason == "SlotMissing" && words.contains("pg_create_logical_replication_slot")),
        "{missing:?}"
    );
    make(&fixture, "test_decoding").await;
    let unusable = told().await;
    assert!(matches!(&unusable[..], [(reason, words)] if reason == "SlotUnusable" && words.contains("test_decoding")), "{unusable:?}");
    drop_it(&fixture).await;
    make(&fixture, "pgoutput").await;
    assert_eq!(told().await, []);
    fixture.at_source().await.batch_execute("CREATE PUBLICATION p FOR TABLE t").await.unwrap();
    let other = ReplicationSession::connect(&fixture.source, "somebody").await.unwrap();
    let stream = other.start(&brief.slot(), Default::default(), "p").await.unwrap();
    let in_use = told().await;
    assert!(matches!(&in_use[..], [(reason, words)] if reason == "SlotInUse" && words.contains("somebody")), "{in_use:?}");
    drop(stream);
    drop_it(&fixture).await;
    fixture.end().await;
}
