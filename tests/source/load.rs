//! Whole loads: pipeline, workers and swap in one process, against both servers.

use std::{sync::Arc, time::Duration};

use mirror_operator::{
    api::mirror::Mode,
    brief::Brief,
    destination::{self, Destination},
    finish,
    pipeline::{self, Board, http},
    report::{Failure, Stage},
    snapshot::Worker,
    table::TableSchema,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Fixture, kill, number, until};

/// A pipeline pod.
pub struct Pod {
    pub board: Board,
    pub brief: Brief,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
    life: JoinHandle<Result<(), Failure>>,
}

impl Pod {
    /// Starts one; its address goes into its brief.
    pub async fn start(brief: &Brief) -> Self {
        Self::start_at(brief, "127.0.0.1:0").await
    }

    /// Starts one at an address.
    pub async fn start_at(brief: &Brief, address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let brief = Brief { pipeline_url: format!("http://{}", listener.local_addr().unwrap()), ..brief.clone() };
        let (board, shutdown) = (Board::new(&brief), CancellationToken::new());
        let server = tokio::spawn({
            let (board, shutdown) = (board.clone(), shutdown.clone());
            async move { http::serve(listener, board, shutdown).await.unwrap() }
        });
        let life = tokio::spawn({
            let (brief, board, shutdown) = (brief.clone(), board.clone(), shutdown.clone());
            async move {
                let destination = destination::open(&brief).await.unwrap();
                pipeline::live(&brief, &*destination, &board, &shutdown).await
            }
        });
        Self { board, brief, shutdown, server, life }
    }

    /// Waits for a stage; a permanent failure ends the test.
    pub async fn reaches(&self, stage: Stage) {
        for _ in 0..1200 {
            let report = self.board.report();
            if report.stage >= stage {
                return;
            }
            assert!(!report.failure.as_ref().is_some_and(|f| f.permanent), "{report:?}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{stage:?} not reached: {:?}", self.board.report());
    }

    /// Waits for a snapshot to be offered, of this generation at least.
    pub async fn offers(&self, generation: u32) {
        for _ in 0..1200 {
            if self.board.snapshot().is_some_and(|s| s.generation >= generation) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("no snapshot: {:?}", self.board.report());
    }

    /// As SIGKILL does: nothing is told to anybody.
    pub async fn kill(self) {
        self.server.abort();
        self.life.abort();
        let _ = (self.server.await, self.life.await);
    }

    /// As SIGTERM does.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.server.await.unwrap();
        self.life.await.unwrap().unwrap();
    }

    /// Waits until the process ends by itself, and says why it did.
    pub async fn ends(self) -> Failure {
        let ended = tokio::time::timeout(Duration::from_secs(60), self.life).await.expect("it lives on");
        self.shutdown.cancel();
        self.server.await.unwrap();
        ended.unwrap().unwrap_err()
    }

    /// Waits for a failure that is not tried again.
    pub async fn fails(&self) -> Failure {
        for _ in 0..1200 {
            if let Some(failure) = self.board.report().failure.filter(|f| f.permanent) {
                return failure;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("it goes on: {:?}", self.board.report());
    }
}

/// The workers of a Job, as many as there are partitions.
pub async fn work(brief: &Brief) {
    let destination: Arc<dyn Destination> = destination::open(brief).await.unwrap().into();
    let (load, _) = destination.progress().await.unwrap();
    let workers = (0..load.partitions).map(|partition| {
        let destination = destination.clone();
        async move { Worker::new(brief, &*destination, partition).unwrap().work().await.unwrap() }
    });
    futures::future::join_all(workers).await;
}

/// A whole epoch up to the stream; returns its tables.
pub async fn whole(_fixture: &Fixture, brief: &Brief) -> Vec<TableSchema> {
    let pod = Pod::start(brief).await;
    pod.offers(1).await;
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    finish::swap(&pod.brief).await.unwrap();
    pod.reaches(Stage::Streaming).await;
    let destination = destination::open(brief).await.unwrap();
    let tables = destination.tables().await.unwrap().into_iter().map(|t| t.schema).collect();
    pod.stop().await;
    tables
}

const SHOP: &str = "
CREATE TABLE orders (id bigint PRIMARY KEY, note text NOT NULL, n int);
INSERT INTO orders SELECT g, repeat(md5(g::text), 8), g FROM generate_series(1, 60000) g;
CREATE TABLE days (day date, id int, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE days_2 PARTITION OF days DEFAULT;
INSERT INTO days SELECT date '2026-01-01' + g % 60, g FROM generate_series(1, 5000) g;
CREATE TABLE empty (id int PRIMARY KEY);";

/// Small chunks and partitions, so that a small table has many.
fn many_chunks(fixture: &Fixture, epoch: u32) -> Brief {
    let mut brief = fixture.brief(epoch, &["public.orders", "public.days", "public.empty"]);
    brief.snapshot.chunk_size = Some("256Ki".to_string().try_into().unwrap());
    brief.snapshot.partition_size = "4Mi".to_string().try_into().unwrap();
    brief
}

async fn same(fixture: &Fixture) {
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    for (table, columns) in [("orders", "id, note, n"), ("days", "day, id"), ("empty", "id")] {
        let sql =
            format!("SELECT md5(coalesce(string_agg(t::text, ',' ORDER BY t::text), '')) FROM (SELECT {columns} FROM public.{table}) t");
        let sum = async |client: &tokio_postgres::Client| client.query_one(&sql, &[]).await.unwrap().get::<_, String>(0);
        assert_eq!(sum(&source).await, sum(&target).await, "{table}");
    }
}

#[tokio::test]
async fn tables_arrive_whole_and_a_resync_drops_the_old_slot_first() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(SHOP).await.unwrap();
    let first = many_chunks(&fixture, 1);
    whole(&fixture, &first).await;
    same(&fixture).await;

    let second = many_chunks(&fixture, 2);
    let pod = Pod::start(&second).await;
    pod.offers(1).await;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(number(&source, slots).await, 1, "the old slot went before the new one came");
    assert_eq!(number(&source, "SELECT count(*) FROM pg_publication").await, 1);
    let report = pod.board.report();
    assert!(report.load.is_some_and(|l| l.partitions > 1 && l.total_bytes > 0));
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    until(
        &source,
        "the snapshot is let go",
        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'mo % s%/%')",
    )
    .await;
    finish::swap(&pod.brief).await.unwrap();
    finish::swap(&pod.brief).await.unwrap();
    pod.reaches(Stage::Streaming).await;
    same(&fixture).await;
    pod.stop().await;
    assert!(finish::cleanup(&second).await.unwrap().is_some(), "it says that the swap was done");
    assert_eq!(number(&source, slots).await, 1, "cleanup never touches an epoch that was swapped");
    finish::forget(&second, true).await.unwrap();
    finish::forget(&second, true).await.unwrap();
    assert_eq!(number(&source, slots).await, 0);
    assert_eq!(number(&source, "SELECT count(*) FROM pg_publication").await, 0);
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn without_an_initial_load_tables_begin_empty_and_get_what_changes_from_then_on() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')").await.unwrap();
    let first = Brief { load: false, ..fixture.brief(1, &["public.t"]) };
    let pod = Pod::start(&first).await;
    pod.offers(1).await;
    source.batch_execute("INSERT INTO t VALUES (4, 'd'); UPDATE t SET v = 'B' WHERE id = 2").await.unwrap();
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    finish::swap(&pod.brief).await.unwrap();
    pod.reaches(Stage::Streaming).await;
    source.batch_execute("INSERT INTO t VALUES (5, 'e'); DELETE FROM t WHERE id = 4").await.unwrap();
    let live = "SELECT coalesce(string_agg(id || v, ' ' ORDER BY id), '') FROM t WHERE NOT \"_PEERDB_IS_DELETED\"";
    until(&target, "what was changed is there", &format!("SELECT ({live}) = '2B 5e'")).await;
    pod.stop().await;
    // A resync has everything.
    whole(&fixture, &fixture.brief(2, &["public.t"])).await;
    until(&target, "all rows are there", &format!("SELECT ({live}) = '1a 2B 3c 5e'")).await;
    drop((source, target));
    fixture.end().await;
}

#[tokio::test]
async fn what_is_loaded_only_once_needs_neither_key_nor_slot_and_leaves_nothing_at_the_source() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute("CREATE TABLE t (v text); INSERT INTO t SELECT g::text FROM generate_series(1, 1000) g").await.unwrap();
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    for epoch in [1, 2] {
        let brief = Brief { mode: Mode::SnapshotOnly, ..fixture.brief(epoch, &["public.t"]) };
        let pod = Pod::start(&brief).await;
        pod.offers(1).await;
        assert_eq!(number(&source, slots).await, 0, "nothing keeps the source's log while it is loaded");
        source.batch_execute("INSERT INTO t VALUES ('later')").await.unwrap();
        work(&pod.brief).await;
        pod.reaches(Stage::Loaded).await;
        finish::swap(&pod.brief).await.unwrap();
        pod.reaches(Stage::Done).await;
        assert!(pod.board.report().swap.is_some());
        pod.stop().await;
        assert_eq!(number(&target, "SELECT count(*) FROM t").await, 999 + i64::from(epoch), "as it was when the epoch began");
    }
    assert_eq!(number(&target, "SELECT count(*) FROM pg_class WHERE relname LIKE 't\\_%'").await, 0, "the old table is gone");
    assert_eq!(number(&source, slots).await + number(&source, "SELECT count(*) FROM pg_publication").await, 0);
    drop((source, target));
    fixture.end().await;
}

#[tokio::test]
async fn cleaning_an_epoch_that_began_drops_earlier_slots_too_and_one_that_did_not_leaves_them() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    let (first, second) = (many_chunks(&fixture, 1), many_chunks(&fixture, 2));
    source.query("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&first.slot()]).await.unwrap();
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(finish::cleanup(&second).await, Ok(None));
    assert_eq!(number(&source, slots).await, 1, "epoch 1 streams on");
    destination::open(&second).await.unwrap().begin().await.unwrap();
    for _ in 0..2 {
        assert_eq!(finish::cleanup(&second).await, Ok(None));
        assert_eq!(number(&source, slots).await, 0, "nobody will read it again");
    }
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn a_newer_epoch_leaves_the_older_pod_idle() {
    let fixture = Fixture::new().await;
    fixture.at_source().await.batch_execute(SHOP).await.unwrap();
    let older = Pod::start(&many_chunks(&fixture, 1)).await;
    older.offers(1).await;
    let newer = Pod::start(&many_chunks(&fixture, 2)).await;
    newer.offers(1).await;
    older.reaches(Stage::Superseded).await;
    assert_eq!(older.board.snapshot(), None);
    let brief = newer.brief.clone();
    newer.stop().await;
    older.stop().await;
    finish::cleanup(&brief).await.unwrap();
    finish::cleanup(&brief).await.unwrap();
    let source = fixture.at_source().await;
    assert_eq!(number(&source, "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()").await, 0);
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn what_is_wrong_is_said_before_anything_is_changed() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute("CREATE TABLE orders (id int)").await.unwrap();
    let pod = Pod::start(&fixture.brief(1, &["public.orders", "public.missing"])).await;
    let mut report = pod.board.report();
    while report.failure.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        report = pod.board.report();
    }
    let failure = report.failure.unwrap();
    assert!(failure.permanent && failure.reason == "NoPrimaryKey", "{failure:?}");
    assert!(failure.message.contains("public.missing"), "every problem is told at once: {failure:?}");
    assert_eq!(report.stage, Stage::Checking);
    assert_eq!(number(&fixture.at_destination().await, "SELECT count(*) FROM pg_namespace WHERE nspname = '_mirror_operator'").await, 0);
    assert_eq!(number(&source, "SELECT count(*) FROM pg_publication").await, 0);
    let answer = reqwest::get(format!("{}/snapshot", pod.brief.pipeline_url)).await.unwrap();
    assert_eq!(answer.status(), 503);
    let told: mirror_operator::report::Report =
        reqwest::get(format!("{}/status", pod.brief.pipeline_url)).await.unwrap().json().await.unwrap();
    assert_eq!(told.stage, Stage::Checking);
    pod.stop().await;
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn creating_the_slot_names_whom_it_waits_for() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(SHOP).await.unwrap();
    let writer = fixture.at_source().await;
    writer.batch_execute("SET application_name = 'slow writer'; BEGIN; INSERT INTO orders VALUES (-1, 'open', 0)").await.unwrap();
    let pod = Pod::start(&many_chunks(&fixture, 1)).await;
    for _ in 0..400 {
        if pod.board.report().waiting.contains("slow writer") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let waiting = pod.board.report().waiting;
    assert!(waiting.contains("slow writer") && waiting.contains("pid"), "{waiting:?}");
    writer.batch_execute("COMMIT").await.unwrap();
    pod.offers(1).await;
    let brief = pod.brief.clone();
    pod.stop().await;
    finish::cleanup(&brief).await.unwrap();
    drop((source, writer));
    fixture.end().await;
}

#[tokio::test]
async fn a_rewritten_table_is_loaded_again_from_a_new_snapshot() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(SHOP).await.unwrap();
    let pod = Pod::start(&many_chunks(&fixture, 1)).await;
    pod.offers(1).await;
    // Moves every row to other blocks; without care, chunks by block would lose some and double others.
    source.batch_execute("DELETE FROM orders WHERE id % 3 = 0").await.unwrap();
    source.batch_execute("VACUUM FULL orders").await.unwrap();
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    assert!(pod.board.report().load.is_some_and(|l| l.generation >= 2));
    finish::swap(&pod.brief).await.unwrap();
    same(&fixture).await;
    let brief = pod.brief.clone();
    pod.stop().await;
    finish::forget(&brief, false).await.unwrap();
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn sessions_of_a_pipeline_may_all_be_ended_at_any_time() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(SHOP).await.unwrap();
    let pod = Pod::start(&many_chunks(&fixture, 1)).await;
    pod.offers(1).await;
    let chaos = async {
        let mut killed = 0;
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            killed += kill(&source, "mo ").await;
        }
        killed
    };
    let (killed, ()) = tokio::join!(chaos, work(&pod.brief));
    assert!(killed > 0);
    pod.reaches(Stage::Loaded).await;
    finish::swap(&pod.brief).await.unwrap();
    same(&fixture).await;
    let brief = pod.brief.clone();
    pod.stop().await;
    finish::forget(&brief, false).await.unwrap();
    drop(source);
    fixture.end().await;
}
