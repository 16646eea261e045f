//! The new tables are compared with the source before they are swapped.

use mirror_operator::api::{condition, resync::Phase};
use serde_json::json;

use crate::{
    failures::{equal, wide},
    world::{LIMIT, World, message, until},
};

#[tokio::test]
async fn a_resync_that_is_verified_says_what_was_compared() {
    let world = wide(World::new("verified").await, 20_000).await;
    // Rows that are carried, and changes while it loads, are no differences.
    world.source.batch_execute("DELETE FROM wide WHERE id <= 10").await.unwrap();
    equal(&world).await;
    world.apply(world.resync("again", "m", json!({ "verification": "Checksum", "snapshot": { "chunkSize": "512Ki" } }))).await.unwrap();
    world.source.batch_execute("UPDATE wide SET a = 'later' WHERE id % 100 = 0; DELETE FROM small WHERE id = 1").await.unwrap();
    let status = world.phase("again", Phase::Running).await.status.unwrap();
    let verified = condition::get(&status.conditions, "Verified").expect("a condition");
    assert!(verified.status == "True" && verified.message.contains("2 tables"), "{verified:?}");
    assert!(status.tables.iter().all(|t| t.rows_verified == Some(t.rows_loaded)), "{:?}", status.tables);
    equal(&world).await;
    let changed = world.apply(world.resync("again", "m", json!({ "snapshot": { "chunkSize": "512Ki" } }))).await.unwrap_err();
    assert!(changed.contains("verification cannot be changed"), "{changed}");
    world.end().await;
}

#[tokio::test]
async fn a_row_that_vanishes_from_a_new_table_ends_the_resync_and_the_live_table_stays() {
    let world = wide(World::new("unverified").await, 5_000).await;
    let with = |approved: bool| {
        world.resync("again", "m", json!({ "verification": "RowCount", "swap": { "approval": "Manual", "approved": approved } }))
    };
    world.apply(with(false)).await.unwrap();
    // The swap's own Job compares, after the approval.
    world.says("again", "approved").await;
    world.destination.batch_execute("DELETE FROM wide_resync WHERE id = 7").await.unwrap();
    world.apply(with(true)).await.unwrap();
    let ended = world.phase("again", Phase::Failed).await;
    let said = message(&ended);
    assert!(said.contains("public.wide has 5000 rows") && said.contains("has 4999"), "{said}");
    let status = ended.status.unwrap();
    assert_eq!(condition::get(&status.conditions, "Succeeded").map(|c| c.reason.as_str()), Some("VerificationFailed"));
    assert!(condition::get(&status.conditions, "Verified").is_none() && status.swap.is_none());
    assert_eq!(world.tables("public").await, ["small", "wide"]);
    let live: i64 = world.destination.query_one("SELECT count(*) FROM wide", &[]).await.unwrap().get(0);
    assert_eq!(live, 5_000);
    world.condition("m", "ResyncRequired", "True", LIMIT).await;
    world.apply(world.resync("cure", "m", json!({ "verification": "RowCount" }))).await.unwrap();
    world.phase("cure", Phase::Running).await;
    equal(&world).await;
    until("the slot of the failed resync is gone", LIMIT, || async {
        let slots = world.slots().await;
        if slots.len() == 1 { Ok(()) } else { Err(format!("{slots:?}")) }
    })
    .await;
    world.end().await;
}
