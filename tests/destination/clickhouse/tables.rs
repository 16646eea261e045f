//! What the Mirror asks of a table is what the server has after the swap.

use mirror_operator::destination::{Destination, RowChange};
use serde_json::{Value, json};

use super::{
    change,
    pair::{Pair, asked},
    row, upsert,
};
use crate::{fixture::Fixture, on_clickhouse::OnClickHouse};

/// What the server's catalog says of the live table, without quotes and brackets, which it puts as it likes.
async fn told(place: &OnClickHouse, what: &str) -> String {
    let sql = format!("SELECT {what} FROM system.tables WHERE database = '{}' AND name = 't'", place.to.database);
    place.rows(&sql).await.remove(0).replace(['(', ')', '`'], "")
}

/// The columns of the source, as the live table has them.
async fn columns(place: &OnClickHouse) -> Vec<String> {
    let sql = format!(
        "SELECT name, type FROM system.columns WHERE database = '{}' AND table = 't' AND NOT startsWith(name, '_peerdb') ORDER BY position",
        place.to.database
    );
    place.rows(&sql).await.into_iter().map(|column| column.replace("\\'", "'")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_made_with_all_that_the_mirror_asks_for() {
    let table = json!({
        "excludeColumns": ["secret"],
        "columns": [
            { "source": "name", "destination": "label", "type": "LowCardinality(String)" },
            { "source": "details", "type": "JSON" },
            { "source": "ip", "type": "IPv4" },
            { "source": "price", "type": "Float64" },
        ],
        "clickhouse": {
            "orderBy": ["shop", "id"], "primaryKey": ["shop"], "partitionBy": "toYYYYMM(at)", "ttl": "toDateTime(at) + INTERVAL 50 YEAR",
            "settings": { "index_granularity": "1024", "merge_with_ttl_timeout": "7200" },
        },
    });
    let columns_there =
        "shop int NOT NULL, at timestamptz NOT NULL, name text, details jsonb, ip inet, price numeric(9,2), secret text DEFAULT 'hidden'";
    let pair = asked(table, columns_there, "SELECT 1").await;
    pair.source
        .run("INSERT INTO public.t VALUES (1, 7, '2026-05-01Z', 'one', '{\"a\": {\"b\": 5}}', '10.0.0.1', 1.25), (2, 8, '2026-06-01Z', NULL, NULL, NULL, NULL)")
        .await;
    let (place, at) = (&pair.place, pair.load().await.unwrap());
    for round in ["the load", "the change stream"] {
        assert_eq!(told(place, "engine, sorting_key, primary_key, partition_key").await, "ReplacingMergeTree|shop, id|shop|toYYYYMMat");
        let full = told(place, "engine_full").await;
        for part in [
            "ReplacingMergeTree_peerdb_version, _peerdb_is_deleted ",
            " TTL toDateTimeat + toIntervalYear50 ",
            "index_granularity = 1024",
            "merge_with_ttl_timeout = 7200",
        ] {
            assert!(full.contains(part), "{part}: {full}");
        }
        assert_eq!(
            columns(place).await,
            [
                "id|Int32",
                "shop|Int32",
                "at|DateTime64(6, 'UTC')",
                "label|LowCardinality(Nullable(String))",
                "details|Nullable(JSON)",
                "ip|Nullable(IPv4)",
                "price|Nullable(Float64)"
            ]
        );
        let rows = place.rows("SELECT id, label, details.a.b, ip, price FROM public.t FINAL ORDER BY 1").await;
        assert_eq!(rows, ["1|one|5|10.0.0.1|1.25", "2|∅|∅|∅|∅"], "{round}");
        let parts = format!(
            "SELECT DISTINCT partition FROM system.parts WHERE database = '{}' AND table = 't' AND active ORDER BY 1",
            place.to.database
        );
        assert_eq!(place.rows(&parts).await, ["202605", "202606"], "{round}");
        if round == "the load" {
            pair.stream(&*at).await;
        }
    }
}

/// A mirror of two rows whose table is of an engine.
async fn of_engine(engine: &str) -> (Pair, Box<dyn Destination>) {
    let pair = asked(json!({ "clickhouse": { "engine": engine } }), "name text", "SELECT 1").await;
    pair.source.run("INSERT INTO public.t VALUES (1, 'one'), (2, NULL)").await;
    let at = pair.load().await.unwrap();
    (pair, at)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_engine_keeps_of_load_stream_and_resync_what_it_is_for() {
    for (engine, full, streamed) in [
        ("ReplacingMergeTree", "ReplacingMergeTree_peerdb_version, _peerdb_is_deleted ORDER BY id SETTINGS ", 2),
        ("CoalescingMergeTree", "CoalescingMergeTree ORDER BY id SETTINGS ", 2),
        ("MergeTree", "MergeTree ORDER BY id SETTINGS ", 4),
    ] {
        let (mut pair, at) = of_engine(engine).await;
        assert!(told(&pair.place, "engine_full").await.starts_with(full), "{}", told(&pair.place, "engine_full").await);
        assert_eq!(pair.place.read("t", &["id", "name"]).await, ["1|one|f", "2|∅|f"], "{engine}");
        pair.stream(&*at).await;
        pair.place.run("OPTIMIZE TABLE public.t FINAL").await;
        assert_eq!(pair.place.count("t").await, streamed, "{engine}");
        pair.source.run("DELETE FROM public.t WHERE id = 1").await;
        (pair.brief.epoch, pair.brief.previous_epoch) = (2, 1);
        pair.load().await.unwrap().drop_retired().await.unwrap();
        assert!(told(&pair.place, "engine_full").await.starts_with(full));
        assert_eq!(pair.place.read("t", &["id", "name"]).await, ["1|one|t", "2|∅|f"], "{engine}");
        assert_eq!(pair.place.count("t").await, 2, "{engine}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_null_table_keeps_nothing_and_views_read_what_the_stream_writes() {
    let (mut pair, mut at) = of_engine("Null").await;
    for sql in [
        "CREATE TABLE public.log (id Int32, name Nullable(String), gone UInt8, version UInt128) ENGINE = MergeTree ORDER BY version",
        "CREATE MATERIALIZED VIEW public.log_view TO public.log AS SELECT id, name, _peerdb_is_deleted AS gone, _peerdb_version AS version FROM public.t",
    ] {
        pair.place.run(sql).await;
    }
    for epoch in 1..3 {
        assert_eq!(told(&pair.place, "engine, engine_full").await, "Null|Null");
        let mut to = at.applier().await.unwrap();
        change(&mut *to, &pair.schema, 2000, upsert("3|three")).await.unwrap();
        change(&mut *to, &pair.schema, 2001, RowChange::Delete { key: row("3") }).await.unwrap();
        let log = pair.place.rows("SELECT id, name, gone FROM public.log ORDER BY version").await;
        assert_eq!(log, ["3|three|0", "3|∅|1"], "epoch {epoch}");
        assert_eq!(pair.place.count("t").await, 0);
        pair.place.run("TRUNCATE TABLE public.log").await;
        (pair.brief.epoch, pair.brief.previous_epoch) = (epoch + 1, epoch);
        at = pair.load().await.unwrap();
        at.drop_retired().await.unwrap();
        assert_eq!(pair.place.count("log").await, 0, "what a resync loads does not go through views");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn null_is_kept_or_becomes_the_types_default_as_the_mirror_says() {
    let before = "CREATE TYPE public.mood AS ENUM ('sad')";
    let there = "n int, s text, m public.mood, u uuid, a int[], must text NOT NULL";
    let made = async |nullable: Value| {
        let pair = asked(json!({ "clickhouse": { "nullable": nullable } }), there, before).await;
        pair.source.run("INSERT INTO public.t VALUES (1, NULL, NULL, NULL, NULL, NULL, 'x')").await;
        let at = pair.load().await.unwrap();
        let read = async || pair.place.rows("SELECT n, s, m, u, a FROM public.t FINAL").await;
        let loaded = read().await;
        pair.stream(&*at).await;
        assert_eq!(read().await, loaded);
        (columns(&pair.place).await.join(" "), loaded.concat())
    };
    let (types, row) = made("AsSource".into()).await;
    assert_eq!(
        types,
        "id|Int32 n|Nullable(Int32) s|Nullable(String) m|LowCardinality(Nullable(String)) u|Nullable(UUID) a|Array(Nullable(Int32)) must|String"
    );
    assert_eq!(row, "∅|∅|∅|∅|[]");
    let (types, row) = made("Never".into()).await;
    assert_eq!(types, "id|Int32 n|Int32 s|String m|LowCardinality(String) u|UUID a|Array(Nullable(Int32)) must|String");
    assert_eq!(row, "0|||00000000-0000-0000-0000-000000000000|[]");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_mirror_asks_for_otherwise_comes_with_the_next_resync() {
    let wanted = |options: Value| json!({ "clickhouse": options });
    let mut pair = asked(wanted(json!({})), "name text NOT NULL, at timestamp NOT NULL", "SELECT 1").await;
    pair.source.run("INSERT INTO public.t SELECT i, 'n' || i % 3, '2026-01-01' FROM generate_series(1, 100) i").await;
    pair.load().await.unwrap();
    let looks = "engine, sorting_key, primary_key, partition_key, position(engine_full, ' TTL ') > 0";
    assert_eq!(told(&pair.place, looks).await, "ReplacingMergeTree|id|id||0");
    let table = &mut pair.brief.tables[0];
    let options = json!({ "orderBy": ["name"], "partitionBy": "id % 4", "ttl": "toDateTime(at) + INTERVAL 50 YEAR" });
    table.clickhouse = Some(serde_json::from_value(options).unwrap());
    (pair.brief.epoch, pair.brief.previous_epoch) = (2, 1);
    pair.load().await.unwrap();
    assert_eq!(told(&pair.place, looks).await, "ReplacingMergeTree|name, id|name, id|id % 4|1");
    pair.brief.tables[0].clickhouse = None;
    (pair.brief.epoch, pair.brief.previous_epoch) = (3, 2);
    pair.load().await.unwrap();
    assert_eq!(told(&pair.place, looks).await, "ReplacingMergeTree|id|id||0");
    assert_eq!(pair.place.rows("SELECT count(), uniqExact(id) FROM public.t").await, ["100|100"]);
}
