//! The engine CoalescingMergeTree, which knows neither versions nor flags.

use mirror_operator::{
    api::clickhouse::{ClickHouseTable, Engine, NullableColumns},
    destination::{Counts, Error, RowChange},
};

use crate::{
    clickhouse::{ALL, change, row, streaming, t, upsert},
    fixture::{Fixture, made, open, whole},
    on_clickhouse::OnClickHouse,
};

async fn coalescing() -> OnClickHouse {
    OnClickHouse::new().await.with(ClickHouseTable { engine: Engine::CoalescingMergeTree, ..ClickHouseTable::default() })
}

/// The rows as the engine puts them together, when it is asked and once it has merged, which must be the same.
async fn merged(place: &OnClickHouse) -> Vec<String> {
    let sql = "SELECT id, name, kind FROM public.t FINAL WHERE NOT _peerdb_is_deleted ORDER BY 1";
    let asked = place.rows(sql).await;
    place.run("OPTIMIZE TABLE public.t FINAL").await;
    assert_eq!(place.rows(sql).await, asked);
    assert_eq!(place.rows("SELECT count() = uniqExact(id) FROM public.t").await, ["1"]);
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_loaded_streamed_and_swapped() {
    let place = coalescing().await;
    assert_eq!(open(&place.brief(1)).await.preflight(&[t(&place)]).await.unwrap(), vec![]);
    let at = streaming(&place).await;
    let engine = format!("SELECT engine FROM system.tables WHERE database = '{}' AND name = 't'", place.to.database);
    assert_eq!(place.rows(&engine).await, ["CoalescingMergeTree"]);
    let mut to = at.applier().await.unwrap();
    let schema = t(&place);
    for _ in 0..2 {
        for (position, what) in [
            (2000, upsert("3|three|b")),
            (2001, upsert("1|…|c")),
            (2002, RowChange::Delete { key: row("2") }),
            (2003, RowChange::Rekey { old_key: row("3"), row: row("30|…|d") }),
        ] {
            change(&mut *to, &schema, position, what).await.unwrap();
        }
    }
    assert_eq!(merged(&place).await, ["1|one|c", "30|three|d"]);
    assert_eq!(place.read("t", ALL).await, ["1|one|c|f", "2|two|a|t", "3|three|b|t", "30|three|d|f"]);
    change(&mut *to, &schema, 2005, upsert("2|again|f")).await.unwrap();
    to.truncate(&schema, made(2004)).await.unwrap();
    assert_eq!(merged(&place).await, ["2|again|f"]);
    let next = open(&place.brief(2)).await;
    whole(&*next, &[(schema.clone(), &["2\tnew\tg"])]).await;
    next.drop_retired().await.unwrap();
    assert_eq!(merged(&place).await, ["2|new|g"]);
    assert_eq!(place.read("t", &["id"]).await, ["1|t", "2|f", "3|t", "30|t"]);
    assert_eq!(place.tables().await, ["t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_becomes_null_stays_what_it_was_unless_no_column_is_nullable() {
    let place = coalescing().await;
    let at = streaming(&place).await;
    let mut to = at.applier().await.unwrap();
    change(&mut *to, &t(&place), 2000, upsert("1|∅|b")).await.unwrap();
    change(&mut *to, &t(&place), 2001, RowChange::Delete { key: row("2") }).await.unwrap();
    change(&mut *to, &t(&place), 2002, upsert("2|∅|c")).await.unwrap();
    assert_eq!(merged(&place).await, ["1|one|b", "2|two|c"]);

    let options = ClickHouseTable { engine: Engine::CoalescingMergeTree, nullable: NullableColumns::Never, ..ClickHouseTable::default() };
    let place = OnClickHouse::new().await.with(options);
    let mut schema = t(&place);
    schema.columns[1].destination_type = "String".into();
    let at = open(&place.brief(1)).await;
    whole(&*at, &[(schema.clone(), &["1\tone\ta"])]).await;
    change(&mut *at.applier().await.unwrap(), &schema, 2000, upsert("1|∅|b")).await.unwrap();
    assert_eq!(merged(&place).await, ["1||b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_stream_writes_late_is_refused() {
    let place = coalescing().await;
    let at = streaming(&place).await;
    let mut first = at.applier().await.unwrap();
    let mut second = at.applier().await.unwrap();
    change(&mut *second, &t(&place), 2001, upsert("1|newer|b")).await.unwrap();
    for late in [upsert("1|late|a"), upsert("1|…|a")] {
        let outcome = first.write(&t(&place), vec![late], vec![made(2000)], Counts::default()).await;
        assert!(matches!(outcome, Err(Error::Displaced)), "{outcome:?}");
    }
    assert!(matches!(first.truncate(&t(&place), made(2002)).await, Err(Error::Displaced)));
    assert_eq!(merged(&place).await, ["1|newer|b", "2|two|a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_of_an_earlier_stream_that_still_runs_is_ended() {
    let place = coalescing().await;
    let at = streaming(&place).await;
    let brief = place.brief(1);
    let id = format!("mo-{}-e1-late", brief.mirror_uid);
    let slow = "INSERT INTO FUNCTION null('x UInt8') SELECT sleepEachRow(1) FROM numbers(3600) SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 0";
    let running = tokio::spawn({
        let (place, id) = (place.clone(), id.clone());
        async move { place.ask_as(slow, &id).await }
    });
    let seen = format!("SELECT count() FROM system.processes WHERE query_id = '{id}'");
    crate::support::until("it runs", async || place.rows(&seen).await == ["1"]).await;
    at.applier().await.unwrap();
    assert!(running.await.unwrap().unwrap_err().contains("QUERY_WAS_CANCELLED"));
    assert_eq!(place.rows(&seen).await, ["0"]);
}
