//! Things die at any moment; nothing is lost or doubled.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use mirror_operator::api::resync::Phase;
use serde_json::json;

use crate::world::{LIMIT, World, until};

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

/// Kills what runs of a component; awaits that something does.
async fn kill(world: &World, component: &str) {
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
    kill(&world, "snapshot").await;
    holders(&world, 3).await;
    kill(&world, "pipeline").await;
    world.source.batch_execute("UPDATE wide SET a = 'during' WHERE id % 100 = 0; DELETE FROM wide WHERE id % 1000 = 1").await.unwrap();
    until("the swap has begun", LIMIT, || async {
        if world.kill("swap").await > 0 {
            return Ok(());
        }
        let r: mirror_operator::api::MirrorResync = world.get("again").await;
        if r.status.as_ref().is_some_and(|s| s.phase.is_end()) { Ok(()) } else { Err("not yet".into()) }
    })
    .await;
    let ended = world.phase("again", Phase::Running).await;
    assert_eq!(ended.status.unwrap().snapshot.unwrap().exports, 1, "the snapshot outlived the pipeline pod");
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
async fn a_killed_operator_goes_on_where_it_stood() {
    let world = wide(World::alone("operator-kill").await, 60_000).await;
    world.apply(world.resync("again", "m", slow())).await.unwrap();
    loading(&world, "again").await;
    let pods: Api<Pod> = Api::all(world.client.clone());
    let operators = pods
        .list(&ListParams::default().labels("app.kubernetes.io/name=mirror-operator,app.kubernetes.io/component=operator"))
        .await
        .unwrap();
    assert!(!operators.items.is_empty(), "the operator's pod bears its labels");
    for pod in operators {
        let api: Api<Pod> = Api::namespaced(world.client.clone(), &pod.namespace().unwrap());
        api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await.unwrap();
    }
    world.phase("again", Phase::Running).await;
    equal(&world).await;
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

fn server(command: &str, name: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testbed/postgres");
    let output = std::process::Command::new(script).args([command, name]).output().expect("the testbed's script runs");
    assert!(output.status.success(), "{command} {name}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn both_servers_may_be_killed_in_mid_load_and_come_back() {
    if std::env::var("CLUSTER").is_ok_and(|c| c == "existing") {
        return; // Servers of one's own are not ours to kill.
    }
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
