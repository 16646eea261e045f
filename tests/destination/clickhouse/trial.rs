//! What the server would refuse is told before anything is changed.

use std::collections::BTreeMap;

use mirror_operator::{
    api::clickhouse::{ClickHouseTable, Engine},
    report::Failure,
};

use crate::{
    clickhouse::{streaming, t},
    fixture::{Fixture, open, table, whole},
    on_clickhouse::OnClickHouse,
};

/// What preflight finds for a table with these options. It must leave nothing behind.
async fn found(options: ClickHouseTable) -> Vec<Failure> {
    let place = OnClickHouse::new().await.with(options);
    let found = open(&place.brief(1)).await.preflight(&[t(&place)]).await.unwrap();
    assert_eq!(place.tables().await, Vec::<String>::new());
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_table_cannot_be_made_with_is_found_and_nothing_is_left() {
    let default = ClickHouseTable::default;
    let settings = |name: &str, value: &str| ClickHouseTable { settings: BTreeMap::from([(name.into(), value.into())]), ..default() };
    let ttl = |text: &str| ClickHouseTable { ttl: Some(text.into()), ..default() };
    let partition = |text: &str| ClickHouseTable { partition_by: Some(text.into()), ..default() };
    for (options, word) in [
        (partition("toYYYYMM(created)"), "created"),
        (partition("nosuch(id)"), "nosuch"),
        (partition("(id"), "yntax"),
        (ttl("id + INTERVAL 1 DAY"), "Int64"),
        (ttl("gone + INTERVAL 1 DAY"), "gone"),
        (settings("no_such_setting", "1"), "no_such_setting"),
        (settings("storage_policy", "cold"), "cold"),
        (settings("index_granularity", "many"), "many"),
    ] {
        let found = found(options).await;
        assert_eq!(found.iter().map(|f| f.reason.as_str()).collect::<Vec<_>>(), ["TableRefused"], "{found:?}");
        assert!(found[0].message.contains(word) && found[0].message.contains(".t cannot be made"), "{}", found[0].message);
    }
    let kept = ClickHouseTable { partition_by: Some("id % 3".into()), ..ttl("toDateTime(id) + INTERVAL 1 DAY") };
    assert_eq!(found(kept).await, vec![]);
    assert_eq!(found(ClickHouseTable { engine: Engine::Null, ..ttl("nonsense") }).await, vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_codec_that_the_new_type_cannot_have_is_left_out_with_a_note() {
    let place = OnClickHouse::new().await;
    streaming(&place).await;
    place.run("ALTER TABLE public.t MODIFY COLUMN id CODEC(T64, LZ4), MODIFY COLUMN name CODEC(ZSTD(3))").await;
    let at = open(&place.brief(2)).await;
    let schema = place.adapt(table(0, "t", &["id text!", "name text", "kind text!"]));
    assert_eq!(at.preflight(std::slice::from_ref(&schema)).await.unwrap(), vec![]);
    whole(&*at, &[(schema, &["1\tone\ta", "2\ttwo\ta"])]).await;
    let note = at.progress().await.unwrap().1.remove(0).note.unwrap();
    assert!(note.contains("codec of column \"id\"") && !note.contains("name"), "{note}");
    let codecs = format!(
        "SELECT name, compression_codec FROM system.columns WHERE database = '{}' AND table = 't' AND compression_codec != ''",
        place.to.database
    );
    assert_eq!(place.rows(&codecs).await, ["name|CODEC(ZSTD(3))"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_people_filled_are_missed_aloud_and_computed_ones_may_become_the_sources() {
    let place = OnClickHouse::new().await;
    streaming(&place).await;
    for sql in ["ADD COLUMN mine String DEFAULT 'x'", "ADD COLUMN twice Int64 MATERIALIZED id * 2"] {
        place.run(&format!("ALTER TABLE public.t {sql}")).await;
    }
    let at = open(&place.brief(2)).await;
    let schema = place.adapt(table(0, "t", &["id bigint!", "name text", "kind text!", "twice bigint!"]));
    whole(&*at, &[(schema, &["1\tone\ta\t7"])]).await;
    assert_eq!(place.read("t", &["id", "twice"]).await, ["1|7|f", "2|4|t"]);
    let note = at.progress().await.unwrap().1.remove(0).note.unwrap();
    assert!(note.contains("column \"mine\" was not kept") && !note.contains("twice"), "{note}");
}
