//! A server that cannot merge as fast as is written: it refuses, nothing is lost, and it goes on.

use std::collections::BTreeMap;

use mirror_operator::{
    api::clickhouse::{ClickHouseTable, Engine},
    brief::DestinationPeer,
    destination::{Counts, Error},
    postgres::Lsn,
};

use crate::{
    clickhouse::{streaming, t, upsert},
    fixture::{Fixture, boundary, from_loaded, load, made, open, plan, table, whole},
    on_clickhouse::OnClickHouse,
    support::until,
};

/// A table that takes two parts, and no third before they are merged.
async fn narrow() -> OnClickHouse {
    let settings = BTreeMap::from([("parts_to_throw_insert".to_string(), "2".to_string())]);
    OnClickHouse::new().await.with(ClickHouseTable { settings, ..ClickHouseTable::default() })
}

/// The refusal, which is to be tried again, in words for people.
fn told(outcome: Result<impl std::fmt::Debug, Error>) {
    assert!(matches!(&outcome, Err(Error::Transient(words)) if words.contains("merges too slowly")), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_waits_for_merges() {
    let place = narrow().await;
    let at = open(&place.brief(1)).await;
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), &[t(&place)], &plan(&[4])).await.unwrap();
    place.run(&format!("SYSTEM STOP MERGES public.{}", place.shadow("t"))).await;
    let row = |chunk: u32| format!("{chunk}\tname\tkind");
    let chunk = async |chunk: u32| load(&*at, &t(&place), chunk, &[&row(chunk)]).await;
    for number in 0..2 {
        chunk(number).await.unwrap();
    }
    for _ in 0..2 {
        told(chunk(2).await);
    }
    assert_eq!(at.pending(0).await.unwrap().iter().map(|c| c.number).collect::<Vec<_>>(), [2, 3]);
    place.run(&format!("SYSTEM START MERGES public.{}", place.shadow("t"))).await;
    for number in 2..4 {
        place.run(&format!("OPTIMIZE TABLE public.{} FINAL", place.shadow("t"))).await;
        chunk(number).await.unwrap();
    }
    from_loaded(&*at).await.unwrap();
    assert_eq!(place.read("t", &["id"]).await, ["0|f", "1|f", "2|f", "3|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_waits_for_merges() {
    let place = narrow().await;
    let at = streaming(&place).await;
    place.run("SYSTEM STOP MERGES public.t").await;
    // What the stream does: it opens the applier, goes on from the checkpoint, and starts again after an error.
    let stream = async || -> Result<(), Error> {
        let mut to = at.applier().await?;
        let from = to.position().0.max(1999) + 1;
        for position in from..2010 {
            let change = upsert(&format!("{position}|new|b"));
            to.write(&t(&place), vec![change], vec![made(position)], Counts { inserts: 1, ..Counts::default() }).await?;
            to.commit(Lsn(position)).await?;
        }
        Ok(())
    };
    told(stream().await);
    let reached = at.state().await.unwrap().unwrap().applied_lsn;
    told(stream().await);
    assert!(reached < Lsn(2009) && at.state().await.unwrap().unwrap().applied_lsn == reached);
    place.run("SYSTEM START MERGES public.t").await;
    until("all is streamed", async || {
        place.run("OPTIMIZE TABLE public.t FINAL").await;
        stream().await.is_ok()
    })
    .await;
    let expected: Vec<String> = ["1|f".to_string(), "2|f".into()].into_iter().chain((2000..2010).map(|id| format!("{id}|f"))).collect();
    assert_eq!(place.read("t", &["id"]).await, expected);
    assert_eq!(at.progress().await.unwrap().1[0].inserts, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_takes_no_more_memory_for_a_large_table() {
    for engine in [Engine::ReplacingMergeTree, Engine::MergeTree] {
        let options = ClickHouseTable { engine, order_by: vec!["id".into()], ..ClickHouseTable::default() };
        let place = OnClickHouse::new().await.with(options);
        let at = streaming(&place).await;
        let rows =
            "INSERT INTO public.t (id, name, kind, _peerdb_version) SELECT number, repeat('x', 200), 'a', 1500 FROM numbers(3, 4000000)";
        place.run(rows).await;
        place.run("INSERT INTO public.t (id, name, kind, _peerdb_version) SELECT 4, 'later', 'a', bitShiftLeft(toUInt128(3000), 64)").await;
        let mut brief = place.brief(1);
        let DestinationPeer::ClickHouse(peer) = &mut brief.destination else { panic!() };
        peer.settings.insert("max_memory_usage".into(), "1000000000".into());
        drop(at);
        open(&brief).await.applier().await.unwrap().truncate(&t(&place), made(2500)).await.unwrap();
        let left = "SELECT id, name FROM (SELECT * FROM public.t WHERE id < 100 ORDER BY _peerdb_version DESC LIMIT 1 BY id) WHERE _peerdb_is_deleted = 0";
        assert_eq!(place.rows(left).await, ["4|later"], "{engine:?}");
        assert_eq!(place.rows("SELECT count(DISTINCT id) FROM public.t WHERE _peerdb_is_deleted = 1").await, ["4000001"], "{engine:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_comes_again_after_thousands_of_parts_is_written_once() {
    let options = ClickHouseTable {
        engine: Engine::MergeTree,
        order_by: vec!["id".into()],
        partition_by: Some("id % 300".into()),
        ..ClickHouseTable::default()
    };
    let place = OnClickHouse::new().await.with(options);
    let at = open(&place.brief(1)).await;
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), &[t(&place)], &plan(&[5])).await.unwrap();
    let chunk = async |chunk: u32| {
        let lines: Vec<String> = (chunk * 300..(chunk + 1) * 300).map(|id| format!("{id}\tname\tkind")).collect();
        load(&*at, &t(&place), chunk, &lines.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    };
    chunk(0).await;
    // Its worker was killed before it said so, and another comes to it last.
    place.run("ALTER TABLE public._mirror_operator_fact DELETE WHERE kind = 'loaded' SETTINGS mutations_sync = 2").await;
    for number in [1, 2, 3, 4, 0] {
        chunk(number).await;
    }
    assert_eq!(place.count(&place.shadow("t")).await, 1500);
    at.seal().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_refused_is_told_by_its_key_and_without_its_values() {
    let place = OnClickHouse::new().await;
    let schema = place.adapt(table(0, "t", &["id bigint!", "n integer", "kind text!"]));
    let at = open(&place.brief(1)).await;
    whole(&*at, &[(schema.clone(), &["1\t1\ta"])]).await;
    let refused = async |row: &str| {
        let mut to = at.applier().await.unwrap();
        let outcome = to.write(&schema, vec![upsert(row)], vec![made(2000)], Counts::default()).await;
        let Err(Error::Permanent(failure)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(failure.reason, "ValueRefused");
        failure.message
    };
    let words = refused("77|98765432100|a").await;
    assert!(words.contains("the row with the key (77)") && words.contains("\"n\"") && !words.contains("98765"), "{words}");
    // A view of the table that takes some values only.
    place.run("CREATE TABLE public.log (kind Enum('a')) ENGINE = Null").await;
    place.run("CREATE MATERIALIZED VIEW public.to_log TO public.log AS SELECT CAST(kind, 'Enum(\\'a\\')') AS kind FROM public.t").await;
    let words = refused("78|1|hidden").await;
    assert!(!words.contains("hidden"), "{words}");
}
