//! Tables that are read by ranges of a key: views and foreign tables, which have no blocks, and ordinary ones.

use mirror_operator::{
    api::{mirror::Mode, resync::Verification},
    brief::Brief,
    destination::{self, Chunk},
    finish,
    report::Stage,
    source::{catalog, copy, keys},
    table::TableSchema,
};
use tokio_postgres::Client;

use crate::{
    fixture::{Fixture, number, until},
    load::{Pod, work},
};

/// Keys that are missing, negative, equal, and at both ends of what there can be.
const ROWS: &str = "
CREATE TABLE t (id bigint, note text);
INSERT INTO t SELECT nullif(g / 2, 77), repeat(md5(g::text), 4) FROM generate_series(-4000, 4000) g;
INSERT INTO t VALUES (-9223372036854775808, 'first'), (9223372036854775807, 'last'), (NULL, NULL), (NULL, NULL);";

/// These tables, read by `id` in small chunks.
fn by_id(fixture: &Fixture, epoch: u32, mode: Mode, tables: &[&str]) -> Brief {
    let mut brief = Brief { mode, ..fixture.brief(epoch, tables) };
    brief.snapshot.chunk_size = Some("64Ki".to_string().try_into().unwrap());
    brief.tables.iter_mut().for_each(|table| table.partition_key = Some("id".into()));
    brief
}

async fn load(brief: &Brief) -> Pod {
    let pod = Pod::start(brief).await;
    pod.offers(1).await;
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    finish::swap(&pod.brief).await.unwrap();
    pod
}

async fn sum(client: &Client, table: &str) -> String {
    let sql = format!(
        "SELECT count(*) || ' ' || md5(coalesce(string_agg(t::text, ',' ORDER BY t::text COLLATE \"C\"), '')) FROM (SELECT id, note FROM {table}) t"
    );
    client.query_one(&sql, &[]).await.unwrap().get(0)
}

/// A server for foreign tables that is this database itself, and its table `far` for `t`.
async fn far(fixture: &Fixture, source: &Client) {
    let at = &fixture.source;
    let password = std::fs::read_to_string(&at.password.as_ref().unwrap().path).unwrap();
    let sql = format!(
        "CREATE EXTENSION postgres_fdw;
         CREATE SERVER itself FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{}', port '{}', dbname '{}');
         CREATE USER MAPPING FOR CURRENT_USER SERVER itself OPTIONS (user '{}', password '{password}');
         CREATE FOREIGN TABLE far (id bigint, note text) SERVER itself OPTIONS (schema_name 'public', table_name 't');
         ANALYZE far",
        at.host, at.port, at.database, at.user
    );
    source.batch_execute(&sql).await.unwrap();
}

#[tokio::test]
async fn views_materialized_views_and_foreign_tables_are_loaded_whole_by_their_keys() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute(ROWS).await.unwrap();
    far(&fixture, &source).await;
    source
        .batch_execute(
            "ANALYZE t; CREATE VIEW seen AS SELECT * FROM t; CREATE MATERIALIZED VIEW kept AS SELECT * FROM t;
             CREATE VIEW nothing AS SELECT id::smallint, note FROM t WHERE note = 'nothing';
             CREATE TABLE parts (id int, note text) PARTITION BY LIST (note);
             CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
             CREATE FOREIGN TABLE parts_far PARTITION OF parts DEFAULT SERVER itself OPTIONS (schema_name 'public', table_name 'few');
             CREATE TABLE few (id int, note text); INSERT INTO few SELECT g, 'far' FROM generate_series(1, 10) g;
             INSERT INTO parts SELECT g, 'a' FROM generate_series(1, 3000) g",
        )
        .await
        .unwrap();
    let names = ["public.t", "public.seen", "public.kept", "public.far", "public.nothing", "public.parts"];
    let brief = by_id(&fixture, 1, Mode::SnapshotOnly, &names);
    let mut pod = load(&brief).await;
    for table in names {
        assert_eq!(sum(&source, table).await, sum(&target, table).await, "{table}");
    }
    let chunks = "SELECT count(*) FROM _mirror_operator.chunk WHERE table_number = ";
    for (table, name) in names.iter().enumerate().take(4) {
        assert!(number(&target, &format!("{chunks}{table}")).await > 4, "{name} has several chunks");
    }
    assert_eq!(number(&target, &format!("{chunks}4")).await, 1);
    pod.stop().await;

    // A materialized view has blocks.
    let brief = Brief { mode: Mode::SnapshotOnly, ..fixture.brief(2, &["public.kept"]) };
    pod = load(&brief).await;
    assert_eq!(sum(&source, "kept").await, sum(&target, "kept").await);
    pod.stop().await;
    finish::forget(&brief, true).await.unwrap();
    drop((source, target));
    fixture.end().await;
}

#[tokio::test]
async fn an_ordinary_table_that_is_read_by_its_key_is_streamed_as_any_other() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute(ROWS).await.unwrap();
    source.batch_execute("ALTER TABLE t REPLICA IDENTITY FULL; CREATE INDEX ON t (id)").await.unwrap();
    let brief = by_id(&fixture, 1, Mode::Continuous, &["public.t"]);
    let pod = Pod::start(&brief).await;
    pod.offers(1).await;
    source
        .batch_execute("UPDATE t SET id = id + 3000 WHERE id < 0; DELETE FROM t WHERE id = 5; INSERT INTO t VALUES (NULL, 'late')")
        .await
        .unwrap();
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    finish::swap(&pod.brief).await.unwrap();
    pod.reaches(Stage::Streaming).await;
    let there = "SELECT EXISTS (SELECT FROM t WHERE note = 'late')";
    until(&target, "the change has arrived", there).await;
    target.batch_execute("DELETE FROM t WHERE \"_PEERDB_IS_DELETED\"").await.unwrap();
    assert_eq!(sum(&source, "t").await, sum(&target, "t").await);
    pod.stop().await;
    finish::forget(&brief, true).await.unwrap();
    drop((source, target));
    fixture.end().await;
}

#[tokio::test]
async fn a_chunk_of_keys_that_is_read_again_brings_the_same_rows_in_the_same_order_whatever_the_plan() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute(ROWS).await.unwrap();
    source
        .batch_execute("CREATE VIEW seen AS SELECT a.id, b.note FROM t a JOIN t b ON b.id = a.id OR b.id IS NULL AND a.id IS NULL")
        .await
        .unwrap();
    let brief = by_id(&fixture, 1, Mode::SnapshotOnly, &["public.seen"]);
    let table: TableSchema = catalog::read(&fixture.as_pod().await, &brief).await.unwrap().tables.remove(0);
    for (first, end) in [(0, Some(keys::position(0))), (keys::position(0), None)] {
        let chunk = Chunk { number: 0, partition: 0, table: 0, relation: table.source_oid, first, end, bytes: 0 };
        let select = copy::statement(&table, "public.seen", &chunk);
        let select = select.strip_prefix("COPY (").and_then(|s| s.split_once(") TO STDOUT")).unwrap().0;
        let mut seen = Vec::new();
        for how in ["", "SET enable_hashjoin = off; SET enable_mergejoin = off", "CREATE INDEX ON t (id); SET enable_seqscan = off"] {
            source.batch_execute(how).await.unwrap();
            let rows = source.query(select, &[]).await.unwrap();
            seen.push(rows.iter().map(|r| (r.get(0), r.get(1))).collect::<Vec<(Option<i64>, Option<String>)>>());
        }
        assert!(seen[0].len() > 4000 && seen[0] == seen[1] && seen[1] == seen[2]);
        source.batch_execute("RESET ALL; SET search_path = public").await.unwrap();
    }
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn a_view_below_which_a_partition_is_dropped_after_the_snapshot_is_loaded_again_from_a_new_one() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    let parts = "CREATE TABLE parts (id int, note text) PARTITION BY LIST (note);
         CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a'); CREATE TABLE parts_b PARTITION OF parts FOR VALUES IN ('b');
         INSERT INTO parts SELECT g, CASE g % 2 WHEN 0 THEN 'a' ELSE 'b' END FROM generate_series(1, 1000) g;
         CREATE VIEW seen AS SELECT * FROM parts";
    source.batch_execute(parts).await.unwrap();
    let brief = Brief { verification: Verification::RowCount, ..by_id(&fixture, 1, Mode::SnapshotOnly, &["public.seen"]) };
    let pod = Pod::start(&brief).await;
    pod.offers(1).await;
    source.batch_execute("DROP TABLE parts_b").await.unwrap();
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    assert!(pod.board.report().load.is_some_and(|l| l.generation >= 2));
    finish::swap(&pod.brief).await.unwrap();
    assert_eq!(sum(&source, "seen").await, sum(&target, "seen").await);
    pod.stop().await;
    finish::forget(&brief, true).await.unwrap();
    drop((source, target));
    fixture.end().await;
}

#[tokio::test]
async fn a_materialized_view_without_data_is_refused_with_what_fills_it() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute("CREATE TABLE t (id int); CREATE MATERIALIZED VIEW kept AS SELECT * FROM t WITH NO DATA").await.unwrap();
    let brief = Brief { mode: Mode::SnapshotOnly, ..fixture.brief(1, &["public.kept"]) };
    let problems = catalog::read(&fixture.as_pod().await, &brief).await.unwrap().problems;
    assert!(problems.len() == 1 && problems[0].reason == "UnsupportedTable", "{problems:?}");
    assert!(problems[0].message.contains("REFRESH MATERIALIZED VIEW"), "{problems:?}");
    source.batch_execute("REFRESH MATERIALIZED VIEW kept").await.unwrap();
    assert_eq!(catalog::read(&fixture.as_pod().await, &brief).await.unwrap().problems, []);
    drop(source);
    fixture.end().await;
}

#[tokio::test]
async fn a_view_whose_table_is_truncated_after_the_snapshot_is_loaded_again_from_a_new_one() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute(ROWS).await.unwrap();
    source
        .batch_execute(
            "CREATE VIEW below AS SELECT * FROM t; CREATE VIEW seen AS SELECT id, note FROM below WHERE EXISTS (SELECT FROM pg_class)",
        )
        .await
        .unwrap();
    let brief = by_id(&fixture, 1, Mode::SnapshotOnly, &["public.seen"]);
    let pod = Pod::start(&brief).await;
    pod.offers(1).await;
    source.batch_execute("TRUNCATE t; INSERT INTO t VALUES (1, 'anew')").await.unwrap();
    work(&pod.brief).await;
    pod.reaches(Stage::Loaded).await;
    finish::swap(&pod.brief).await.unwrap();
    pod.reaches(Stage::Done).await;
    assert!(pod.board.report().load.is_some_and(|l| l.generation >= 2));
    assert_eq!(number(&target, "SELECT count(*) FROM seen WHERE note = 'anew'").await, 1);
    pod.stop().await;
    // Nobody has touched the catalog, which the view reads too.
    let again = by_id(&fixture, 2, Mode::SnapshotOnly, &["public.seen"]);
    let pod = load(&again).await;
    assert_eq!(destination::open(&again).await.unwrap().state().await.unwrap().map(|s| s.generation), Some(1));
    pod.stop().await;
    finish::forget(&again, true).await.unwrap();
    drop((source, target));
    fixture.end().await;
}
