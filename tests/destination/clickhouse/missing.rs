//! Rows that an update needs, because it leaves values out, and that the destination does not have.

use mirror_operator::{
    api::clickhouse::{ClickHouseTable, Engine},
    destination::{Counts, Destination, RowChange},
    postgres::Lsn,
};

use super::{change, live, row, streaming, t, upsert};
use crate::{
    fixture::{Fixture, made, open},
    on_clickhouse::OnClickHouse,
};

const MISSING: &str = "were missing at the destination";

/// What the ledger says of the table's drift.
async fn drift(at: &dyn Destination) -> String {
    at.tables().await.unwrap().remove(0).drift.into_iter().collect::<Vec<_>>().join("; ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_an_update_needs_and_does_not_find_asks_for_a_resync() {
    let by_kind = ClickHouseTable { order_by: vec!["kind".into()], ..ClickHouseTable::default() };
    let coalescing = ClickHouseTable { engine: Engine::CoalescingMergeTree, ..ClickHouseTable::default() };
    for options in [ClickHouseTable::default(), by_kind, coalescing] {
        for lost in [upsert("7|…|b"), RowChange::Rekey { old_key: row("7"), row: row("70|…|b") }] {
            let place = OnClickHouse::new().await.with(options.clone());
            let at = streaming(&place).await;
            let mut to = at.applier().await.unwrap();
            // Whatever finds its row, or needs none, is no reason.
            let fine = [upsert("1|…|c"), RowChange::Delete { key: row("8") }, upsert("3|three|b"), upsert("2|…|y")];
            to.write(&t(&place), fine.to_vec(), (2000..2004).map(made).collect(), Counts::default()).await.unwrap();
            assert_eq!(drift(&*at).await, "");
            // The rest of its batch arrives.
            let batch = vec![lost.clone(), upsert("1|…|d")];
            to.write(&t(&place), batch.clone(), vec![made(2010), made(2011)], Counts::default()).await.unwrap();
            assert!(drift(&*at).await.contains(MISSING), "{options:?} {lost:?}");
            assert_eq!(
                live(&place).await.iter().filter(|row| !row.starts_with("8|")).collect::<Vec<_>>()[..3],
                ["1|one|d", "2|two|y", "3|three|b"]
            );
            // It is known now, also to another process, and beside it stays what is found later.
            to.drift(&t(&place), &["something else".to_string()].into()).await.unwrap();
            let mut to = open(&place.brief(1)).await.applier().await.unwrap();
            to.write(&t(&place), batch, vec![made(2010), made(2011)], Counts::default()).await.unwrap();
            to.commit(Lsn(2011)).await.unwrap();
            let told = drift(&*at).await;
            assert!(told.contains(MISSING) && told.contains("something else"), "{told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_rows_go_by_themselves_a_missing_one_is_no_drift() {
    let expiring = ClickHouseTable { ttl: Some("toDateTime(id) + INTERVAL 1 DAY".into()), ..ClickHouseTable::default() };
    let null = ClickHouseTable { engine: Engine::Null, ..ClickHouseTable::default() };
    for options in [expiring, null] {
        let place = OnClickHouse::new().await.with(options);
        let at = streaming(&place).await;
        let mut to = at.applier().await.unwrap();
        change(&mut *to, &t(&place), 2000, upsert("7|…|b")).await.unwrap();
        assert_eq!(drift(&*at).await, "");
    }
}
