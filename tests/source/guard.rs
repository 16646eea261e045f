//! What ends an epoch before it does harm, and what must not end a pod for good.

use std::time::Duration;

use futures::StreamExt;
use mirror_operator::{
    brief::{Brief, DestinationPeer},
    destination::{self, Chunk},
    finish,
    pipeline::Board,
    report::Stage,
    snapshot::Worker,
    source::{ahead::ahead, catalog, copy::Reader, pace::Pace, snapshot},
};

use crate::{
    fixture::{Fixture, number, until},
    load::{Pod, whole, work},
};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10)";
const SWAPPED: &str = "SELECT count(*) FROM _mirror_operator.epoch WHERE swapped_at IS NOT NULL";

async fn lose_slot(fixture: &Fixture, brief: &Brief) {
    let source = fixture.at_source().await;
    until(&source, "the slot is free", &format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{}'", brief.slot())).await;
    source.batch_execute(&format!("SELECT pg_drop_replication_slot('{}')", brief.slot())).await.unwrap();
}

#[tokio::test]
async fn a_slot_that_is_lost_while_the_swap_is_waited_for_ends_the_epoch_unswapped() {
    let fixture = Fixture::new().await;
    fixture.at_source().await.batch_execute(TABLE).await.unwrap();
    let brief = fixture.brief(1, &["public.t"]);
    let pod = Pod::start(&brief).await;
    pod.offers(1).await;
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    lose_slot(&fixture, &brief).await;
    let failure = pod.fails().await;
    assert_eq!(failure.reason, "SlotLost");
    for words in [brief.slot().as_str(), "Nothing was swapped", "max_slot_wal_keep_size", "MirrorResync"] {
        assert!(failure.message.contains(words), "{failure:?}");
    }
    let refused = finish::swap(&pod.brief).await.unwrap_err();
    assert!(refused.permanent && refused.reason == "SlotLost", "{refused:?}");
    assert_eq!(number(&fixture.at_destination().await, SWAPPED).await, 0);
    pod.stop().await;
    finish::forget(&brief, false).await.unwrap();
    fixture.end().await;
}

#[tokio::test]
async fn a_slot_that_is_lost_while_tables_are_loaded_ends_the_epoch() {
    let fixture = Fixture::new().await;
    fixture.at_source().await.batch_execute(TABLE).await.unwrap();
    let brief = fixture.brief(1, &["public.t"]);
    let pod = Pod::start(&brief).await;
    pod.offers(1).await;
    lose_slot(&fixture, &brief).await;
    assert_eq!(pod.fails().await.reason, "SlotLost");
    assert_eq!(pod.board.report().stage, Stage::Loading);
    pod.stop().await;
    finish::forget(&brief, false).await.unwrap();
    fixture.end().await;
}

#[tokio::test]
async fn a_mirror_of_one_database_into_itself_may_not_write_what_it_reads() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)").await.unwrap();
    let mut brief = fixture.brief(1, &["public.t", "public.u"]);
    brief.destination = DestinationPeer::Postgres(fixture.source.clone());
    let pod = Pod::start(&brief).await;
    let failure = pod.fails().await;
    assert_eq!(failure.reason, "Loop");
    assert!(failure.message.contains("public.t would be read and written") && failure.message.contains("public.u"), "{failure:?}");
    assert_eq!(number(&source, "SELECT count(*) FROM pg_namespace WHERE nspname = '_mirror_operator'").await, 0);
    pod.stop().await;
    // Under names of their own the copies may stand beside the originals.
    for table in &mut brief.tables {
        table.destination = Some(table.source.replace("public.", "copies."));
    }
    source.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    whole(&fixture, &brief).await;
    assert_eq!(number(&source, "SELECT count(*) FROM copies.t").await, 1);
    finish::forget(&brief, true).await.unwrap();
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn a_mirror_of_nothing_but_an_empty_partitioned_root_is_loaded_and_swapped() {
    let fixture = Fixture::new().await;
    fixture.at_source().await.batch_execute("CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)").await.unwrap();
    let brief = fixture.brief(1, &["public.t"]);
    let pod = Pod::start(&brief).await;
    pod.offers(1).await;
    let load = pod.board.report().load.unwrap();
    assert_eq!((load.partitions, load.partitions_loaded), (1, 1));
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    finish::swap(&pod.brief).await.unwrap();
    pod.reaches(Stage::Streaming).await;
    pod.stop().await;
    finish::forget(&brief, true).await.unwrap();
    fixture.end().await;
}

#[tokio::test]
async fn nobody_who_changes_a_table_waits_for_the_snapshot_that_is_held() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    let tables = "CREATE TABLE plain (id int PRIMARY KEY); INSERT INTO plain VALUES (1);
                  CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
                  CREATE TABLE leaf PARTITION OF parted FOR VALUES FROM (1) TO (9); INSERT INTO parted VALUES (1)";
    source.batch_execute(tables).await.unwrap();
    let mut brief = fixture.brief(1, &["public.plain", "public.parted"]);
    brief.tables.iter_mut().for_each(|table| table.partition_key = Some("id".into()));
    let pod = Pod::start(&brief).await;
    pod.offers(1).await;
    // More than once: the holder looks at the tables again and again.
    for _ in 0..20 {
        let lock = "SET lock_timeout = '5s'; BEGIN; LOCK TABLE plain, parted, leaf IN ACCESS EXCLUSIVE MODE; COMMIT";
        source.batch_execute(lock).await.unwrap();
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    pod.stop().await;
    finish::forget(&brief, true).await.unwrap();
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn a_chunk_is_not_read_from_another_table_that_has_taken_the_name() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute("CREATE TABLE t_new (id int PRIMARY KEY)").await.unwrap();
    source.batch_execute(TABLE).await.unwrap();
    let brief = fixture.brief(1, &["public.t"]);
    let table = catalog::read(&fixture.as_pod().await, &brief).await.unwrap().tables.remove(0);
    let chunk = Chunk { number: 0, partition: 0, table: 0, relation: table.source_oid, first: 0, end: None, bytes: 0 };
    let exported = snapshot::create_slot(&brief).await.unwrap();
    for (swap, whole) in [("ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t", false), ("SELECT 1", true)] {
        // As if it had waited for the lock of the chunk before: it comes between the name being asked for and being used.
        let mut reader = Reader::connect(&brief).await.unwrap();
        let rows = reader.open(&exported.name, exported.lsn, &table, &chunk).await.unwrap();
        source.batch_execute(swap).await.unwrap();
        let ((send, pieces), mut pace) = (ahead(), Pace::new(None));
        let (read, came) = tokio::join!(rows.pass_on(send, &mut pace), pieces.collect::<Vec<_>>());
        if whole {
            assert!(read.unwrap() && came.iter().all(Result::is_ok), "it is read by its new name");
            let bytes: usize = came.into_iter().map(|piece| piece.unwrap().len()).sum();
            assert_eq!(bytes, 19 + 10 * (2 + 4 + 4) + 2, "binary COPY: header, ten rows of an integer, trailer");
        } else {
            let error = read.unwrap_err();
            assert!(!error.is_permanent() && error.to_string().contains("renamed"), "{error}");
            assert!(came.iter().any(Result::is_err), "whoever writes the chunk learns that this is not its end");
        }
    }
    drop((exported, source));
    fixture.end().await;
}

fn connected(board: &Board) -> bool {
    board.report().stream.is_some_and(|s| s.connected)
}

async fn streams(pod: &Pod) {
    for _ in 0..1200 {
        if connected(&pod.board) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it does not stream: {:?}", pod.board.report());
}

#[tokio::test]
async fn a_copied_column_that_changes_while_its_table_is_loaded_ends_the_resync_in_words_and_an_added_one_does_not() {
    let dropped = "column \"v\" does not exist";
    for (change, words) in [
        ("DROP v", Some(dropped)),
        ("RENAME v TO w", Some(dropped)),
        ("ALTER v TYPE bigint", Some("public.t: the table was changed at the source while it was loaded")),
        ("ADD x int DEFAULT 7", None),
    ] {
        let fixture = Fixture::new().await;
        let source = fixture.at_source().await;
        source.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT generate_series(1, 10), 1").await.unwrap();
        let pod = Pod::start(&fixture.brief(1, &["public.t"])).await;
        pod.offers(1).await;
        source.batch_execute(&format!("ALTER TABLE t {change}")).await.unwrap();
        let brief = pod.brief.clone();
        let destination = destination::open(&brief).await.unwrap();
        let mut worker = Worker::new(&brief, &*destination, 0).unwrap();
        let ended = tokio::select! {
            worked = worker.work() => worked.err(),
            // A table that was written anew wants a new snapshot, which the pod then refuses.
            failure = pod.fails() => Some(failure),
        };
        match words {
            None => assert_eq!(ended, None, "{change}"),
            Some(words) => {
                let failure = ended.unwrap();
                assert_eq!((failure.reason.as_str(), failure.permanent), ("SourceSchemaChanged", true), "{change}: {failure:?}");
                for words in ["public.t", words, "apply a new"] {
                    assert!(failure.message.contains(words), "{change}: {failure:?}");
                }
            }
        }
        pod.stop().await;
        finish::cleanup(&brief).await.unwrap();
        drop(source);
        fixture.end().await;
    }
}

#[tokio::test]
async fn a_table_that_is_locked_at_the_source_is_waited_for_and_named() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(TABLE).await.unwrap();
    source.batch_execute("BEGIN; LOCK TABLE t IN SHARE MODE").await.unwrap();
    let pod = Pod::start(&fixture.brief(1, &["public.t"])).await;
    until_failure(&pod, "SourceLocked").await;
    source.batch_execute("COMMIT").await.unwrap();
    pod.offers(1).await;
    let brief = pod.brief.clone();
    pod.stop().await;
    finish::cleanup(&brief).await.unwrap();
    drop(source);
    fixture.end().await;
}

/// Waits until the pod reports a failure that it goes on after.
async fn until_failure(pod: &Pod, reason: &str) {
    for _ in 0..1200 {
        if pod.board.report().failure.is_some_and(|f| f.reason == reason && !f.permanent) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{reason} is not reported: {:?}", pod.board.report());
}

#[tokio::test]
async fn a_pod_that_was_displaced_ends_so_that_its_next_process_takes_over_again() {
    let fixture = Fixture::new().await;
    fixture.at_source().await.batch_execute(TABLE).await.unwrap();
    let brief = fixture.brief(1, &["public.t"]);
    whole(&fixture, &brief).await;
    let first = Pod::start(&brief).await;
    streams(&first).await;
    let second = Pod::start(&brief).await;
    let failure = first.ends().await;
    assert_eq!((failure.reason.as_str(), failure.permanent), ("Displaced", false));
    streams(&second).await;
    let again = Pod::start(&brief).await;
    assert_eq!(second.ends().await.reason, "Displaced");
    streams(&again).await;
    fixture.at_source().await.batch_execute("INSERT INTO t VALUES (11)").await.unwrap();
    until(&fixture.at_destination().await, "the change has arrived", "SELECT EXISTS (SELECT FROM public.t WHERE id = 11)").await;
    again.stop().await;
    finish::forget(&brief, true).await.unwrap();
    fixture.end().await;
}

#[tokio::test]
async fn a_live_pod_goes_on_once_people_have_cured_what_it_called_permanent() {
    let fixture = Fixture::new().await;
    fixture.at_source().await.batch_execute(TABLE).await.unwrap();
    let brief = fixture.brief(1, &["public.t"]);
    whole(&fixture, &brief).await;
    let destination = fixture.at_destination().await;
    // The ledger cannot be read: a column has another name.
    destination.batch_execute("ALTER TABLE _mirror_operator.epoch RENAME swap_retries TO gone").await.unwrap();
    let pod = Pod::start(&brief).await;
    pod.fails().await;
    destination.batch_execute("ALTER TABLE _mirror_operator.epoch RENAME gone TO swap_retries").await.unwrap();
    streams(&pod).await;
    pod.stop().await;
    finish::forget(&brief, true).await.unwrap();
    drop(destination);
    fixture.end().await;
}

#[tokio::test]
async fn a_column_of_the_key_that_is_excluded_is_refused_by_name_and_nothing_is_made() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source
        .batch_execute(
            "CREATE TABLE t (day date, id int, note text, PRIMARY KEY (day, id)); INSERT INTO t VALUES ('2026-01-01', 1, 'x');
             CREATE TABLE u (a int, b text NOT NULL); CREATE UNIQUE INDEX u_b ON u (b); ALTER TABLE u REPLICA IDENTITY USING INDEX u_b",
        )
        .await
        .unwrap();
    let mut brief = fixture.brief(1, &["public.t", "public.u"]);
    brief.tables[0].exclude_columns = vec!["note".into(), "id".into()];
    brief.tables[1].exclude_columns = vec!["b".into()];
    let pod = Pod::start(&brief).await;
    let failure = pod.fails().await;
    pod.stop().await;
    let of = |column: &str| format!("column \"{column}\" is part of the key and cannot be excluded; remove it from excludeColumns");
    assert_eq!(
        (failure.reason.as_str(), failure.message.lines().collect::<Vec<_>>()),
        ("KeyColumnExcluded", vec![format!("public.t: {}", of("id")).as_str(), format!("public.u: {}", of("b")).as_str()])
    );
    let traces =
        "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) + (SELECT count(*) FROM pg_publication)
        + (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p'))
        + (SELECT count(*) FROM pg_namespace WHERE nspname = '_mirror_operator')";
    assert_eq!((number(&source, traces).await, number(&target, traces).await), (2, 0), "the source's two tables and nothing else");

    brief.tables[0].exclude_columns.pop();
    brief.tables[1].exclude_columns = vec!["a".into()];
    whole(&fixture, &brief).await;
    assert_eq!(number(&target, "SELECT count(*) FROM t").await, 1);
    finish::forget(&brief, true).await.unwrap();
    drop((source, target));
    fixture.end().await;
}

#[tokio::test]
async fn a_ledger_that_is_not_understood_stops_the_stream_with_the_way_out_and_is_left_as_it_is() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    let brief = fixture.brief(1, &["public.t"]);
    whole(&fixture, &brief).await;
    source.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    let keep = "CREATE TABLE kept AS SELECT schema, (SELECT applied_lsn FROM _mirror_operator.epoch) AS at FROM _mirror_operator.table";
    target.batch_execute(keep).await.unwrap();
    for (change, words) in [
        ("UPDATE _mirror_operator.table SET schema = '{\"number\": 0}'", "written by another version"),
        ("UPDATE _mirror_operator.epoch SET applied_lsn = NULL, start_lsn = NULL", "no position to stream from"),
    ] {
        target.batch_execute(change).await.unwrap();
        let pod = Pod::start(&brief).await;
        let failure = pod.fails().await;
        pod.stop().await;
        assert_eq!(failure.reason, "LedgerUnreadable");
        assert!(failure.message.contains(words) && failure.message.ends_with("Start a new resync"), "{failure:?}");
        assert_eq!(number(&target, "SELECT count(*) FROM t").await, 1, "nothing is applied");
        let back = "UPDATE _mirror_operator.table SET schema = (SELECT schema FROM kept)";
        target.batch_execute(back).await.unwrap();
    }
    target.batch_execute("UPDATE _mirror_operator.epoch SET applied_lsn = (SELECT at FROM kept)").await.unwrap();
    let pod = Pod::start(&brief).await;
    until(&target, "what it was put back to is understood", "SELECT count(*) = 2 FROM t").await;
    pod.stop().await;
    finish::forget(&brief, true).await.unwrap();
    drop((source, target));
    fixture.end().await;
}
