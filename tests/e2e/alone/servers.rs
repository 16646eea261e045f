//! The database servers: killed, set otherwise, kept from making slots.

use mirror_operator::api::resync::Phase;
use serde_json::json;

use crate::{
    failures::{equal, loading, slow, wide},
    world::{LIMIT, World, only_on_the_testbed, until},
};

fn server(command: &str, name: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testbed/postgres");
    let output = std::process::Command::new(script).args([command, name]).output().expect("the testbed's script runs");
    assert!(output.status.success(), "{command} {name}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn both_servers_may_be_killed_in_mid_load_and_come_back() {
    only_on_the_testbed("it kills the database servers");
    let mut world = wide(World::alone("server-kill").await, 60_000).await;
    world.apply(world.resync("again", "m", slow())).await.unwrap();
    loading(&world, "again").await;
    for name in ["source", "destination"] {
        server("kill", name);
        server("restart", name);
    }
    world.reconnect().await;
    world.source.batch_execute("UPDATE wide SET a = 'after' WHERE id % 7 = 0; DELETE FROM wide WHERE id % 11 = 0").await.unwrap();
    let ended = world.phase("again", Phase::Running).await;
    let status = ended.status.unwrap();
    assert!(status.snapshot.unwrap().exports > 1, "a restarted source has no exported snapshot");
    equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_slot_that_was_invalidated_is_reported_and_healed_by_a_resync() {
    let world = wide(World::alone("invalidated").await, 1_000).await;
    let slot = world.slots().await.remove(0);
    world.apply(world.mirror("m", &["public.wide", "public.small"], json!({ "suspend": true }))).await.unwrap();
    until("the slot is idle", LIMIT, || async {
        let row = world
            .source
            .query_one("SELECT active FROM pg_replication_slots WHERE slot_name = $1::text", &[&slot])
            .await
            .map_err(|e| e.to_string())?;
        if row.get(0) { Err("active".into()) } else { Ok(()) }
    })
    .await;
    world.source.batch_execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await.unwrap();
    world.source.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    until("the slot is invalidated", LIMIT, || async {
        world.source.batch_execute("UPDATE wide SET a = a || '.'; SELECT pg_switch_wal()").await.map_err(|e| e.to_string())?;
        world.source.batch_execute("CHECKPOINT").await.map_err(|e| e.to_string())?;
        let row = world
            .source
            .query_one("SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1::text", &[&slot])
            .await
            .map_err(|e| e.to_string())?;
        if row.get::<_, String>(0) == "lost" { Ok(()) } else { Err(row.get(0)) }
    })
    .await;
    world.source.batch_execute("ALTER SYSTEM RESET max_slot_wal_keep_size").await.unwrap();
    world.source.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    world.apply(world.mirror("m", &["public.wide", "public.small"], json!({ "suspend": false }))).await.unwrap();
    until("the Mirror names the cause", LIMIT, || async {
        let mirror = world.condition("m", "ResyncRequired", "True", LIMIT).await;
        let said = format!("{:?}", mirror.status.unwrap().conditions);
        if said.contains("max_slot_wal_keep_size") { Ok(()) } else { Err(said) }
    })
    .await;
    world.apply(world.resync("heal", "m", json!({}))).await.unwrap();
    world.phase("heal", Phase::Running).await;
    world.ready("m").await;
    equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_resync_that_is_cancelled_while_its_slot_is_being_made_leaves_no_slot() {
    let world = wide(World::alone("cancel-setup").await, 1_000).await;
    let writer = crate::world::connect("SOURCE", world.database()).await;
    writer.batch_execute("BEGIN; INSERT INTO small VALUES (1000)").await.unwrap();
    world.apply(world.resync("doomed", "m", json!({}))).await.unwrap();
    let waiting = world.says("doomed", "when transactions that were running have ended").await;
    assert_eq!(waiting.status.unwrap().phase, Phase::Setup);
    world.apply(world.resync("doomed", "m", json!({ "cancel": true }))).await.unwrap();
    world.phase("doomed", Phase::Cancelled).await;
    assert_eq!(world.slots().await, Vec::<String>::new());
    assert_eq!(world.tables("public").await, ["small", "wide"]);
    writer.batch_execute("COMMIT").await.unwrap();
    world.apply(world.resync("cure", "m", json!({}))).await.unwrap();
    world.phase("cure", Phase::Running).await;
    equal(&world).await;
    world.end().await;
}
