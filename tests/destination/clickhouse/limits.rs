//! Tables and partitions larger than the server lets anyone drop (ClickHouse docs, "max_table_size_to_drop").

use mirror_operator::brief::{Brief, DestinationPeer};

use super::t;
use crate::{
    fixture::{Fixture, open, until_loaded, whole},
    on_clickhouse::{OnClickHouse, ask},
};

/// Each is a byte here: less than any table with rows has, the ledger's among them.
const LIMITS: [&str; 2] = ["max_table_size_to_drop", "max_partition_size_to_drop"];

/// The brief of an epoch for a server with those limits.
fn limited(place: &OnClickHouse, epoch: u32) -> Brief {
    let mut brief = place.brief(epoch);
    let DestinationPeer::ClickHouse(peer) = &mut brief.destination else { panic!() };
    peer.settings = LIMITS.map(|name| (name.to_string(), "1".to_string())).into();
    brief
}

#[tokio::test(flavor = "multi_thread")]
async fn old_tables_shadows_and_the_ledger_go_however_large_they_are() {
    let place = OnClickHouse::new().await;
    for epoch in 1..3 {
        whole(&*open(&limited(&place, epoch)).await, &[(t(&place), &["1\tone\ta", "2\ttwo\ta"])]).await;
    }
    assert_eq!(place.tables().await, ["t", "t_old"]);
    let database = &place.to.database;
    for (what, limit) in [("DROP TABLE", "SETTINGS"), ("ALTER TABLE", "DROP PARTITION tuple() SETTINGS")] {
        let settings = LIMITS.map(|name| format!("{name} = 1")).join(", ");
        let refused = ask(&place.to, &format!("{what} {database}.t_old {limit} {settings}")).await.unwrap_err();
        assert!(refused.contains("TABLE_SIZE_EXCEEDS_MAX_DROP_SIZE_LIMIT"), "{refused}");
    }
    open(&limited(&place, 2)).await.drop_retired().await.unwrap();
    assert_eq!(place.tables().await, ["t"]);
    assert_eq!(place.epochs().await, [2]);
    let given_up = open(&limited(&place, 3)).await;
    until_loaded(&*given_up, &[(t(&place), &["1\tone\ta"])]).await;
    given_up.abandon().await.unwrap();
    assert_eq!(place.tables().await, ["t"]);
    open(&limited(&place, 2)).await.forget(true).await.unwrap();
    assert_eq!(place.tables().await, Vec::<String>::new());
    assert_eq!(place.epochs().await, Vec::<u32>::new());
}
