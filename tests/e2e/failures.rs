//! Things die at any moment; nothing is lost or doubled.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use mirror_operator::api::resync::Phase;
use serde_json::json;

use crate::world::{LIMIT, World, connect, until};

/// Enough rows that a load takes seconds under the given limit of bytes per second.
pub async fn wide(world: World, rows: u32) -> World {
    world.source.batch_execute(&format!("CREATE TABLE wide (id bigint PRIMARY KEY, a text, b text); CREATE TABLE small (id int PRIMARY KEY);
        INSERT INTO wide SELECT i, md5(i::text), repeat('x', 150) FROM generate_series(1, {rows}) i; INSERT INTO small SELECT generate_series(1, 100)")).await.unwrap();
    world.apply(world.mirror("m", &["public.wide", "public.small"], json!({}))).await.unwrap();
    world.ready("m").await;
    world
}

pub fn slow() -> serde_json::Value {
    json!({ "snapshot": { "chunkSize": "512Ki", "maxBytesPerSecond": "4Mi", "maxParallelWorkers": 2 } })
}

pub async fn loading(world: &World, resync: &str) {
    until("some chunks are loaded", LIMIT, || async {
        let sql = "SELECT count(*) FILTER (WHERE loaded_at IS NOT NULL), count(*) FROM _mirror_operator.chunk WHERE epoch = (SELECT max(epoch) FROM _mirror_operator.epoch)";
        let row = world.destination.query_one(sql, &[]).await.map_err(|e| e.to_string())?;
        let (done, all): (i64, i64) = (row.get(0), row.get(1));
        if done > 1 && done < all { Ok(()) } else { Err(format!("{done} of {all} chunks of {resync}")) }
    })
    .await;
}

/// The chunks of the newest epoch that are loaded, and when they were.
async fn loaded(world: &World) -> BTreeMap<i32, String> {
    let sql = "SELECT number, loaded_at::text FROM _mirror_operator.chunk WHERE loaded_at IS NOT NULL AND epoch = (SELECT max(epoch) FROM _mirror_operator.epoch)";
    world.destination.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Kills what runs of a component; awaits that something does.
pub async fn kill(world: &World, component: &str) {
    until(&format!("a container of {component} to kill"), LIMIT, || async {
        if world.kill(component).await > 0 { Ok(()) } else { Err("none runs".into()) }
    })
    .await;
}

/// Awaits that so many sessions hold the snapshot: the pipeline's two and those of workers.
async fn holders(world: &World, wanted: i64) {
    until("sessions hold the snapshot", LIMIT, || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND backend_xmin IS NOT NULL AND application_name LIKE 'mo %'";
        let held: i64 = world.source.query_one(sql, &[]).await.map_err(|e| e.to_string())?.get(0);
        if held >= wanted { Ok(()) } else { Err(format!("{held} sessions")) }
    })
    .await;
}

pub async fn equal(world: &World) {
    world.equal("wide", "id, a, b").await;
    world.equal("small", "id").await;
}

#[tokio::test]
async fn killing_workers_pipeline_and_swap_in_mid_resync_loses_nothing() {
    let world = wide(World::new("kills").await, 100_000).await;
    world.apply(world.resync("again", "m", slow())).await.unwrap();
    loading(&world, "again").await;
    let before = loaded(&world).await;
    kill(&world, "snapshot").await;
    holders(&world, 3).await;
    kill(&world, "pipeline").await;
    world.source.batch_execute("UPDATE wide SET a = 'during' WHERE id % 100 = 0; DELETE FROM wide WHERE id % 1000 = 1").await.unwrap();
    // Who reads in a transaction keeps the swap waiting.
    let reader = connect("DESTINATION", world.database()).await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM wide").await.unwrap();
    kill(&world, "swap").await;
    until("another swap pod waits for the reader", LIMIT, || async {
        let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' AND relation = 'wide'::regclass";
        let waiting: i64 = world.destination.query_one(sql, &[]).await.map_err(|e| e.to_string())?.get(0);
        if waiting > 0 { Ok(()) } else { Err("nobody waits".into()) }
    })
    .await;
    kill(&world, "swap").await;
    reader.batch_execute("COMMIT").await.unwrap();
    let ended = world.phase("again", Phase::Running).await;
    assert_eq!(ended.status.unwrap().snapshot.unwrap().exports, 1, "the snapshot outlived the pipeline pod");
    let after = loaded(&world).await;
    for (chunk, at) in before {
        assert_eq!(after.get(&chunk), Some(&at), "chunk {chunk} was loaded again");
    }
    equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_stream_whose_pod_is_killed_again_and_again_applies_each_change_once() {
    let world = wide(World::new("stream-kills").await, 1_000).await;
    for round in 0..4 {
        for i in 0..10 {
            world
                .source
                .batch_execute(&format!(
                    "BEGIN; INSERT INTO wide VALUES ({}, 'r', 'r'); UPDATE wide SET b = b || 'z' WHERE id <= 20; COMMIT",
                    1_000_000 + round * 100 + i
                ))
                .await
                .unwrap();
        }
        kill(&world, "pipeline").await;
        let killed = Instant::now();
        world.source.batch_execute(&format!("INSERT INTO small VALUES ({})", 1000 + round)).await.unwrap();
        equal(&world).await;
        // The kubelet waits before it restarts a container that keeps dying; the first time it does not.
        assert!(round > 0 || killed.elapsed() < Duration::from_secs(15), "took {:?}", killed.elapsed());
    }
    world.end().await;
}

#[tokio::test]
async fn every_connection_to_source_and_destination_may_be_cut_in_mid_load() {
    let world = wide(World::new("cut").await, 60_000).await;
    world.apply(world.resync("again", "m", slow())).await.unwrap();
    for _ in 0..3 {
        loading(&world, "again").await;
        for side in [&world.source, &world.destination] {
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> 'e2e'";
            side.query(sql, &[]).await.unwrap();
        }
        world
            .source
            .batch_execute(
                "UPDATE wide SET a = a || '!' WHERE id % 50 = 0; DELETE FROM wide WHERE id IN (SELECT id FROM wide ORDER BY id LIMIT 3)",
            )
            .await
            .unwrap();
    }
    let ended = world.phase("again", Phase::Running).await;
    assert!(ended.status.unwrap().snapshot.unwrap().exports > 1, "with every holder cut the snapshot had to be exported anew");
    equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_resync_can_be_paused_and_resumed_in_mid_load() {
    let world = wide(World::new("pause").await, 60_000).await;
    world.apply(world.resync("again", "m", slow())).await.unwrap();
    loading(&world, "again").await;
    let mut paused = slow();
    paused["suspend"] = json!(true);
    world.apply(world.resync("again", "m", paused)).await.unwrap();
    until("no worker runs", LIMIT, || async {
        let running =
            world.pods("snapshot").await.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")).count();
        if running == 0 { Ok(()) } else { Err(format!("{running} workers")) }
    })
    .await;
    world.says("again", "paused").await;
    world.apply(world.resync("again", "m", slow())).await.unwrap();
    world.phase("again", Phase::Running).await;
    equal(&world).await;
    world.end().await;
}
