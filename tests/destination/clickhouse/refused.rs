//! What is refused by name, and leaves everything as it is.

use mirror_operator::{
    api::clickhouse::{ClickHouseTable, Engine},
    table::{Identity, TableSchema},
};

use super::{ALL, streaming, t};
use crate::{
    fixture::{Fixture, made, open, refused, until_loaded, whole},
    on_clickhouse::OnClickHouse,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_loaded_table_whose_rows_somebody_took_is_not_sealed_and_not_swapped() {
    let place = OnClickHouse::new().await;
    let at = open(&place.brief(1)).await;
    until_loaded(&*at, &[(t(&place), &["1\tone\ta", "2\ttwo\ta"])]).await;
    place.run(&format!("TRUNCATE TABLE public.{}", place.shadow("t"))).await;
    let failure = refused(at.seal().await);
    assert_eq!(failure.reason, "LoadMiscounted");
    assert!(failure.message.contains("2 rows were read and 0 are in ") && failure.message.ends_with("Start a new resync"), "{failure:?}");
    assert!(!at.tables().await.unwrap()[0].sealed && at.swap().await.is_err());
    assert_eq!(place.tables().await, [place.shadow("t")], "there is no live table");
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_of_a_table_without_a_key_is_refused_and_takes_no_row() {
    let place = OnClickHouse::new().await.with(ClickHouseTable { engine: Engine::MergeTree, ..ClickHouseTable::default() });
    let schema = TableSchema { identity: Identity::FullRow, ..t(&place) };
    let at = open(&place.brief(1)).await;
    whole(&*at, &[(schema.clone(), &["1\tone\ta"])]).await;
    let failure = refused(at.applier().await.unwrap().truncate(&schema, made(2000)).await);
    assert_eq!(failure.reason, "TruncateWithoutKey");
    assert!(failure.message.contains(".t: without a key its rows cannot be told apart"), "{failure:?}");
    assert_eq!(place.read("t", ALL).await, ["1|one|a|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_handover_is_refused_and_the_stream_goes_on() {
    let place = OnClickHouse::new().await;
    let at = streaming(&place).await;
    let failure = refused(open(&place.brief(2)).await.hand_over().await);
    assert_eq!(failure.reason, "HandoverUnsupported");
    assert!(failure.message.ends_with("Apply a MirrorResync with DropFirst"), "{failure:?}");
    at.applier().await.unwrap().truncate(&t(&place), made(2000)).await.unwrap();
    assert_eq!(place.read("t", ALL).await, ["1|one|a|t", "2|two|a|t"]);
}
