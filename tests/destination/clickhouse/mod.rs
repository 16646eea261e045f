//! What is ClickHouse's own: the change stream, what hangs on a table that is exchanged, and what is refused.

mod cluster;
mod coalescing;
mod dependents;
mod killed;
mod limits;
mod missing;
mod ordinary;
mod pair;
mod pressure;
mod random;
mod refused;
mod replay;
mod rights;
mod swapping;
mod tables;
mod tls;
mod trial;
mod types;

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::StreamExt;
use mirror_operator::{
    api::clickhouse::{ClickHouseTable, Engine},
    brief::DestinationPeer,
    check,
    destination::{Applier, Cell, Counts, Destination, Error, RowChange, clickhouse::Peer},
    postgres::Lsn,
    table::{Identity, TableSchema},
};

use crate::{
    fixture::{Fixture, boundary, column, from_loaded, made, open, plan, table, until_loaded, whole},
    on_clickhouse::{OnClickHouse, ask},
};

const COLUMNS: &[&str] = &["id bigint!", "name text", "kind text!"];
pub const ALL: &[&str] = &["id", "name", "kind"];

pub fn t(place: &OnClickHouse) -> TableSchema {
    place.adapt(table(0, "t", COLUMNS))
}

/// A mirror whose table `t` has two rows.
pub async fn streaming(place: &OnClickHouse) -> Box<dyn Destination> {
    let at = open(&place.brief(1)).await;
    whole(&*at, &[(t(place), &["1\tone\ta", "2\ttwo\ta"])]).await;
    at
}

pub fn cell(text: &str) -> Cell {
    match text {
        "∅" => Cell::Null,
        "…" => Cell::Unchanged,
        text => Cell::Text(Bytes::copy_from_slice(text.as_bytes())),
    }
}

pub fn row(text: &str) -> Vec<Cell> {
    text.split('|').map(cell).collect()
}

pub fn upsert(text: &str) -> RowChange {
    RowChange::Upsert { row: row(text), deleted: false }
}

/// Writes one change at a position, which is then the checkpoint.
pub async fn change(to: &mut dyn Applier, table: &TableSchema, position: u64, change: RowChange) -> Result<(), Error> {
    to.write(table, vec![change], vec![made(position)], Counts { updates: 1, ..Counts::default() }).await?;
    to.commit(Lsn(position)).await
}

pub async fn live(place: &OnClickHouse) -> Vec<String> {
    place.rows("SELECT id, name, kind FROM public.t FINAL ORDER BY 1").await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_applied_and_doing_them_again_changes_nothing() {
    let place = OnClickHouse::new().await;
    let at = streaming(&place).await;
    let mut to = at.applier().await.unwrap();
    assert_eq!(to.position(), boundary(1).lsn);
    let schema = t(&place);
    let changes = [
        (2000, upsert("3|three|b")),
        // What was not sent is kept.
        (2001, upsert("1|…|c")),
        (2002, RowChange::Delete { key: row("2") }),
        (2003, RowChange::Rekey { old_key: row("3"), row: row("30|…|d") }),
        (2004, RowChange::Upsert { row: row("4|∅|e"), deleted: true }),
        (2005, upsert("2|again|f")),
    ];
    for _ in 0..2 {
        for (position, what) in &changes {
            to.write(&schema, vec![what.clone()], vec![made(*position)], Counts::default()).await.unwrap();
        }
    }
    to.commit(Lsn(2005)).await.unwrap();
    assert_eq!(live(&place).await, ["1|one|c", "2|again|f", "30|three|d"]);
    assert_eq!(place.read("t", ALL).await, ["1|one|c|f", "2|again|f|f", "3|three|b|t", "4|∅|e|t", "30|three|d|f"]);
    assert_eq!(at.state().await.unwrap().unwrap().applied_lsn, Lsn(2005));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_sorting_key_leaves_no_second_row() {
    let place = OnClickHouse::new().await.with(ClickHouseTable { order_by: vec!["kind".into()], ..ClickHouseTable::default() });
    let at = streaming(&place).await;
    let mut to = at.applier().await.unwrap();
    let schema = t(&place);
    assert_eq!(
        place.rows(&format!("SELECT sorting_key FROM system.tables WHERE database = '{}' AND name = 't'", place.to.database)).await,
        ["kind, id"]
    );
    for _ in 0..2 {
        change(&mut *to, &schema, 2000, upsert("1|one|z")).await.unwrap();
        change(&mut *to, &schema, 2001, upsert("2|…|y")).await.unwrap();
    }
    assert_eq!(live(&place).await, ["1|one|z", "2|two|y"]);
    change(&mut *to, &schema, 2002, RowChange::Delete { key: row("1") }).await.unwrap();
    assert_eq!(live(&place).await, ["2|two|y"]);
    // Carried over, it is one row that is deleted.
    whole(&*open(&place.brief(2)).await, &[(t(&place), &["2\ttwo\ty"])]).await;
    assert_eq!(place.read("t", ALL).await, ["1|one|z|t", "2|two|y|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_flags_what_was_there_before_it() {
    let place = OnClickHouse::new().await;
    let at = streaming(&place).await;
    let mut to = at.applier().await.unwrap();
    let schema = t(&place);
    change(&mut *to, &schema, 3000, upsert("2|later|b")).await.unwrap();
    for _ in 0..2 {
        to.truncate(&schema, made(2500)).await.unwrap();
    }
    assert_eq!(place.read("t", ALL).await, ["1|one|a|t", "2|later|b|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_column_fills_the_rows_that_are_there() {
    let place = OnClickHouse::new().await;
    let at = streaming(&place).await;
    let mut to = at.applier().await.unwrap();
    let mut schema = t(&place);
    for (name, source, type_, fill) in [
        ("price", "numeric(10,2)", "Nullable(Decimal(10, 2))", "1.50"),
        ("tags", "text[]", "Array(Nullable(String))", "{a,NULL}"),
        ("seen", "boolean", "Bool", "t"),
        ("blob", "bytea", "String", "\\xff00c3"),
        ("blobs", "bytea[]", "Array(String)", r#"{"\\xff27"}"#),
    ] {
        let mut added = column(name, source, false);
        added.destination_type = type_.into();
        schema.columns.push(added);
        for _ in 0..2 {
            to.add_column(&schema, schema.columns.len() - 1, Some(fill)).await.unwrap();
        }
    }
    change(&mut *to, &schema, 2000, upsert("2|two|b|∅|{}|f|\\x00|{}")).await.unwrap();
    let rows = place.rows("SELECT id, price, tags, seen, hex(blob), arrayMap(b -> hex(b), blobs) FROM public.t FINAL ORDER BY 1").await;
    assert_eq!(rows, ["1|1.5|['a',NULL]|true|FF00C3|['FF27']", "2|∅|[]|false|00|[]"]);
    assert_eq!(at.tables().await.unwrap()[0].schema, schema);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_epoch_ends_the_stream_of_an_older_one() {
    let place = OnClickHouse::new().await;
    let at = streaming(&place).await;
    let mut to = at.applier().await.unwrap();
    open(&place.brief(2)).await.begin().await.unwrap();
    let late = to.write(&t(&place), vec![upsert("9|late|a")], vec![made(2000)], Counts::default()).await;
    assert!(matches!(late, Err(Error::Superseded(2))), "{late:?}");
    assert!(matches!(to.commit(Lsn(2000)).await, Err(Error::Superseded(2))));
    assert_eq!(place.count("t").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_the_one_that_opened_last_streams() {
    let place = OnClickHouse::new().await;
    let at = streaming(&place).await;
    let mut first = at.applier().await.unwrap();
    let other = open(&place.brief(1)).await;
    let mut second = other.applier().await.unwrap();
    assert!(matches!(first.commit(Lsn(2000)).await, Err(Error::Displaced)));
    assert!(matches!(at.applier().await.map(drop), Err(Error::Displaced)));
    second.commit(Lsn(2001)).await.unwrap();
    assert_eq!(other.applier().await.unwrap().position(), Lsn(2001));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_survives_every_lost_reply() {
    for n in 1.. {
        let place = OnClickHouse::new().await;
        let at = streaming(&place).await;
        let schema = t(&place);
        let run = async |at: &dyn Destination| -> Result<(), Error> {
            let mut to = at.applier().await?;
            let changes = vec![upsert("1|…|b"), RowChange::Delete { key: row("2") }, upsert("3|three|c")];
            let counts = Counts { inserts: 1, updates: 1, deletes: 1 };
            to.write(&schema, changes, vec![made(2000), made(2001), made(2002)], counts).await?;
            to.commit(Lsn(2002)).await
        };
        let (brief, has_cut) = place.through_cut(place.brief(1), n).await;
        let outcome = run(&*open(&brief).await).await;
        assert!(matches!(outcome, Ok(()) | Err(Error::Transient(_))), "{n}: {outcome:?}");
        if outcome.is_err() && at.state().await.unwrap().unwrap().applied_lsn < Lsn(2002) {
            run(&*at).await.unwrap();
        }
        assert_eq!(live(&place).await, ["1|one|b", "3|three|c"], "cut at request {n}");
        let report = at.progress().await.unwrap().1.remove(0);
        assert_eq!((report.inserts, report.updates, report.deletes), (1, 1, 1), "cut at request {n}");
        if !has_cut() {
            assert!(n > 1);
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_merge_tree_keeps_every_change_and_loads_each_row_once() {
    let options = ClickHouseTable {
        engine: Engine::MergeTree,
        order_by: vec!["id".into()],
        partition_by: Some("id % 7".into()),
        ..ClickHouseTable::default()
    };
    let place = OnClickHouse::new().await.with(options);
    let schema = TableSchema { identity: Identity::FullRow, ..t(&place) };
    let at = open(&place.brief(1)).await;
    assert_eq!(at.preflight(std::slice::from_ref(&schema)).await.unwrap(), vec![]);
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), std::slice::from_ref(&schema), &plan(&[1])).await.unwrap();
    // Large enough for several blocks, and torn off after the first of them.
    let line = |i: u64| format!("{i}\t{}\ta\n", "x".repeat(1 << 20));
    let rows = |count: u64| futures::stream::iter((0..count).map(move |i| Ok(Bytes::from(line(i)))));
    let first_block = async {
        while place.count(&place.shadow("t")).await == 0 {
            tokio::task::yield_now().await;
        }
        Err("torn".to_string())
    };
    let torn = rows(40).chain(futures::stream::once(first_block)).boxed();
    let chunk = &plan(&[1]).chunks[0];
    assert!(matches!(at.load_chunk(&schema, chunk, 1, torn).await, Err(Error::Source(_))));
    assert_eq!(at.load_chunk(&schema, chunk, 1, rows(60).boxed()).await.unwrap().rows, 60);
    assert_eq!(place.count(&place.shadow("t")).await, 60);
    from_loaded(&*at).await.unwrap();
    let mut to = at.applier().await.unwrap();
    change(&mut *to, &schema, 2000, RowChange::Add { row: row("1|one|b") }).await.unwrap();
    change(&mut *to, &schema, 2001, RowChange::Remove { row: row("1|one|b") }).await.unwrap();
    let log = "SELECT kind, _peerdb_is_deleted, _peerdb_version FROM public.t WHERE id = 1 ORDER BY 3";
    let version = |position| made(position).version();
    assert_eq!(place.rows(log).await, ["a|0|0".to_string(), format!("b|0|{}", version(2000)), format!("b|1|{}", version(2001))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_may_fall_into_many_partitions() {
    let options = ClickHouseTable { partition_by: Some("id % 300".into()), ..ClickHouseTable::default() };
    let place = OnClickHouse::new().await.with(options);
    let at = open(&place.brief(1)).await;
    let lines: Vec<String> = (0..600).map(|i| format!("{i}\tone\ta")).collect();
    whole(&*at, &[(t(&place), &lines.iter().map(String::as_str).collect::<Vec<_>>())]).await;
    let mut to = at.applier().await.unwrap();
    let changes: Vec<RowChange> = (0..600).map(|i| upsert(&format!("{i}|…|b"))).collect();
    to.write(&t(&place), changes, (2000..2600).map(made).collect(), Counts::default()).await.unwrap();
    assert_eq!(place.rows("SELECT count(), countIf(name = 'one' AND kind = 'b') FROM public.t FINAL").await, ["600|600"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_gave_to_a_table_is_kept() {
    let place = OnClickHouse::new().await;
    streaming(&place).await;
    let database = place.to.database.clone();
    for sql in [
        "ALTER TABLE public.t ADD INDEX by_name name TYPE bloom_filter(0.02) GRANULARITY 2",
        "ALTER TABLE public.t ADD CONSTRAINT positive CHECK id > 0",
        "ALTER TABLE public.t MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild'",
        "ALTER TABLE public.t MODIFY COLUMN name Nullable(String) CODEC(ZSTD(3))",
        "ALTER TABLE public.t COMMENT COLUMN kind 'what it''s about'",
        "ALTER TABLE public.t ADD COLUMN twice Int64 ALIAS id * 2",
        "CREATE TABLE public.log (id Int64) ENGINE = MergeTree ORDER BY id",
        "CREATE MATERIALIZED VIEW public.log_view TO public.log AS SELECT id FROM public.t",
        "CREATE VIEW public.names AS SELECT name FROM public.t FINAL",
    ] {
        place.run(sql).await;
    }
    let comment = "SELECT comment FROM system.tables WHERE name = 't' AND database = ";
    let comment = format!("{comment}'{database}'");
    let words = place.rows(&comment).await.remove(0);
    place.run(&format!("ALTER TABLE public.t MODIFY COMMENT 'Orders. {words}'")).await;
    let looks = format!(
        "SELECT replaceRegexpOne(create_table_query, ' COMMENT \\'Orders.*', '') FROM system.tables WHERE name = 't' AND database = '{database}'"
    );
    let without_settings = |text: String| text.split(" SETTINGS ").next().unwrap().to_string();
    let before = without_settings(place.rows(&looks).await.remove(0));
    for epoch in 2..4 {
        let at = open(&place.brief(epoch)).await;
        let row = format!("1\t{epoch}\ta");
        whole(&*at, &[(t(&place), &[&row])]).await;
        at.drop_retired().await.unwrap();
        assert_eq!(without_settings(place.rows(&looks).await.remove(0)), before);
        assert!(place.rows(&comment).await[0].starts_with("Orders. [mirror-operator "));
        assert_eq!(at.progress().await.unwrap().1[0].note, None);
        assert_eq!(place.rows("SELECT name FROM public.names WHERE name != 'two'").await, [epoch.to_string()]);
        let mut to = at.applier().await.unwrap();
        change(&mut *to, &t(&place), 2000 + u64::from(epoch), upsert(&format!("{epoch}|new|a"))).await.unwrap();
        assert_eq!(place.rows(&format!("SELECT count() FROM public.log WHERE id = {epoch}")).await, ["1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_find_the_table_at_every_moment_of_a_swap() {
    let place = OnClickHouse::new().await;
    streaming(&place).await;
    let end = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = {
        let (place, end) = (place.clone(), end.clone());
        tokio::spawn(async move {
            let mut seen = Vec::new();
            while !end.load(std::sync::atomic::Ordering::Relaxed) {
                let row = place.rows("SELECT name FROM public.t FINAL WHERE id = 1").await;
                assert_eq!(row.len(), 1, "{row:?}");
                seen.extend(row);
            }
            seen.dedup();
            seen
        })
    };
    for epoch in 2..5 {
        let row = format!("1\t{epoch}\ta");
        let at = open(&place.brief(epoch)).await;
        whole(&*at, &[(t(&place), &[&row])]).await;
        at.drop_retired().await.unwrap();
    }
    end.store(true, std::sync::atomic::Ordering::Relaxed);
    let seen = reader.await.unwrap();
    let order = ["one", "2", "3", "4"];
    let places: Vec<usize> = seen.iter().map(|s| order.iter().position(|o| o == s).unwrap()).collect();
    assert!(places.is_sorted(), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_swaps_at_once_end_with_the_new_tables() {
    for round in 0..5 {
        let place = OnClickHouse::new().await;
        streaming(&place).await;
        let (one, two) = (open(&place.brief(2)).await, open(&place.brief(2)).await);
        until_loaded(&*one, &[(t(&place), &["1\tnew\ta"])]).await;
        one.seal().await.unwrap();
        one.carry().await.unwrap();
        let (a, b) = tokio::join!(one.swap(), two.swap());
        for outcome in [a, b] {
            assert!(matches!(outcome, Ok(_) | Err(Error::Transient(_))), "{outcome:?}");
        }
        one.swap().await.unwrap();
        assert_eq!(live(&place).await, ["1|new|a"], "round {round}");
        one.drop_retired().await.unwrap();
        assert_eq!(place.tables().await, ["t"], "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_tables_are_refused_and_an_existing_one_can_be_adopted() {
    let place = OnClickHouse::new().await;
    place.run("CREATE TABLE public.t_resync_e1g1 (x Int8) ENGINE = Null").await;
    let own = "_peerdb_synced_at DateTime64(9) DEFAULT now64(), _peerdb_is_deleted UInt8, _peerdb_version UInt64";
    place
        .run(&format!("CREATE TABLE public.t (id Int64, name String, {own}) ENGINE = ReplacingMergeTree(_peerdb_version) ORDER BY id"))
        .await;
    place.run("INSERT INTO public.t VALUES (1, 'live', '2024-01-01 00:00:00', 0, 5), (2, 'gone', '2024-01-01 00:00:00', 1, 6)").await;
    let found = open(&place.brief(1)).await.preflight(&[t(&place)]).await.unwrap();
    assert_eq!(found.iter().map(|f| f.reason.as_str()).collect::<Vec<_>>(), ["ForeignShadow", "TableNotOurs"], "{found:?}");
    place.run("DROP TABLE public.t_resync_e1g1 SYNC").await;
    let place = place.with(ClickHouseTable { adopt: true, ..ClickHouseTable::default() });
    let at = open(&place.brief(1)).await;
    assert_eq!(at.preflight(&[t(&place)]).await.unwrap(), vec![]);
    whole(&*at, &[(t(&place), &["1\tlive\ta"])]).await;
    assert_eq!(place.read("t", &["id", "name"]).await, ["1|live|f", "2|gone|t"]);
    assert_eq!(place.rows("SELECT _peerdb_synced_at FROM public.t WHERE id = 2").await, ["2024-01-01 00:00:00.000000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_named_before_anything_is_changed() {
    let reasons = async |options: ClickHouseTable, schema: &dyn Fn(&OnClickHouse) -> TableSchema| {
        let place = OnClickHouse::new().await.with(options);
        let found = open(&place.brief(1)).await.preflight(&[schema(&place)]).await.unwrap();
        found.into_iter().map(|f| f.reason).collect::<Vec<_>>()
    };
    let default = ClickHouseTable::default;
    let order = |column: &str| ClickHouseTable { order_by: vec![column.into()], ..default() };
    assert_eq!(reasons(default(), &t).await, Vec::<String>::new());
    assert_eq!(reasons(order("name"), &t).await, ["OrderBy"]);
    assert_eq!(reasons(order("nothing"), &t).await, ["OrderBy"]);
    assert_eq!(reasons(ClickHouseTable { primary_key: vec!["kind".into()], ..default() }, &t).await, ["OrderBy"]);
    let nullable = ClickHouseTable { settings: BTreeMap::from([("allow_nullable_key".into(), "1".into())]), ..order("name") };
    assert_eq!(reasons(nullable, &t).await, Vec::<String>::new());
    assert_eq!(reasons(default(), &|p| TableSchema { identity: Identity::FullRow, ..t(p) }).await, ["NoPrimaryKey"]);
    let typed = |type_: &'static str| {
        move |p: &OnClickHouse| {
            let mut schema = t(p);
            schema.columns[1].destination_type = type_.into();
            schema
        }
    };
    assert_eq!(reasons(default(), &typed("Tuple(Int8)")).await, ["TypeUnsupported"]);
    assert_eq!(reasons(default(), &|p| table_named(p, "_peerdb_version")).await, ["ColumnConflict"]);
}

fn table_named(place: &OnClickHouse, column: &str) -> TableSchema {
    place.adapt(table(0, "t", &["id bigint!", &format!("{column} text")]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_says_what_is_missing() {
    let place = OnClickHouse::new().await;
    let look = async |change: &dyn Fn(&mut Peer)| {
        let mut peer = Peer { at: place.to.clone(), settings: BTreeMap::new(), cluster: None };
        change(&mut peer);
        let report = check::run(&DestinationPeer::ClickHouse(peer), &[mirror_operator::api::peer::Role::Destination]).await;
        (report.server_version, report.problems.into_iter().map(|f| (f.reason, f.message)).collect::<Vec<_>>())
    };
    let (version, problems) = look(&|_| {}).await;
    assert!(version.starts_with("26.") && problems.is_empty(), "{version} {problems:?}");
    let reason = async |change: &dyn Fn(&mut Peer)| {
        let (_, problems) = look(change).await;
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.into_iter().next().unwrap()
    };
    let (missing, cure) = reason(&|p| p.at.database = "no such".into()).await;
    assert_eq!(missing, "DatabaseMissing");
    assert!(cure.contains("CREATE DATABASE `no such`"), "{cure}");
    assert_eq!(reason(&|p| p.at.user = "readonly".into()).await.0, "ReadOnly");
    let (wrong, words) = reason(&|p| p.at.password = Some(crate::support::secret("wrong"))).await;
    assert!(wrong == "AuthenticationFailed" && words.contains("Authentication failed") && !words.contains("wrong\""), "{words}");
    assert_eq!(reason(&|p| p.at.port = 1).await.0, "Unreachable");
    let ordinary = format!("{}_ordinary", place.to.database);
    let url = format!("CREATE DATABASE `{ordinary}` ENGINE = Memory");
    ask(&place.to, &url).await.unwrap();
    let (engine, words) = reason(&|p| p.at.database = ordinary.clone()).await;
    assert!(engine == "DatabaseEngine" && words.contains("Atomic"), "{words}");
    ask(&place.to, &format!("DROP DATABASE `{ordinary}`")).await.unwrap();
}
