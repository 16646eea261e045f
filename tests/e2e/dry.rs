//! Dry runs: what a resync would find, told without one.

use mirror_operator::api::{Mirror, condition, resync::Phase};
use serde_json::json;

use crate::{
    visible::one_table,
    world::{LIMIT, World, message, until},
};

#[tokio::test]
async fn a_dry_run_tells_what_a_resync_would_load_while_the_mirror_streams_on() {
    let world = one_table(World::new("dry-run").await).await;
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    world.ready("m").await;
    let slots = world.slots().await;
    world.apply(world.resync("look", "m", json!({ "dryRun": true }))).await.unwrap();
    let look = world.phase("look", Phase::Succeeded).await;
    let status = look.status.as_ref().unwrap();
    assert!(message(&look).contains("Nothing was changed"), "{}", message(&look));
    assert!(status.completion_time.is_some() && status.epoch.is_none());
    assert_eq!(condition::get(&status.conditions, "Succeeded").unwrap().status, "True");
    assert_eq!(status.plan.as_ref().unwrap().tables, 1);
    assert_eq!(world.slots().await, slots);
    assert_eq!(world.tables("public").await, ["t"]);

    world.destination.batch_execute("CREATE TABLE t_resync (theirs int)").await.unwrap();
    world.apply(world.resync("again", "m", json!({ "dryRun": true }))).await.unwrap();
    until("the dry run fails", LIMIT, || async {
        let resync: mirror_operator::api::MirrorResync = world.get("again").await;
        let phase = resync.status.as_ref().map(|s| s.phase).unwrap_or_default();
        if phase == Phase::Failed && message(&resync).contains("t_resync") { Ok(()) } else { Err(message(&resync)) }
    })
    .await;
    world.source.batch_execute("INSERT INTO t VALUES (2, 'streams on')").await.unwrap();
    world.equal("t", "id, v").await;
    let mirror: Mirror = world.get("m").await;
    let status = mirror.status.unwrap();
    assert_eq!((status.epoch, status.live_epoch, status.resyncs.len()), (1, 1, 1), "the Mirror knows nothing of it");
    world.destination.batch_execute("DROP TABLE t_resync").await.unwrap();
    world.end().await;
}
