//! What stands in the way: a server that is not set up, a name that is taken, nodes that do not fit, a server that is gone for good.

use std::process::Command;

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::ConfigMap};
use kube::api::{Patch, PatchParams, PostParams};
use mirror_operator::api::{Mirror, MirrorResync, resync::Phase};
use serde_json::json;

use crate::{
    failures::{equal, loading, wide},
    gate::{Gate, NODE, Stand},
    visible::one_table,
    world::{LIMIT, World, judged, message, only_on_the_testbed, until},
};

/// A server of one test's own, on the cluster's node.
struct Server(&'static str);

impl Server {
    fn up(name: &'static str, port: u16, settings: &[&str]) -> Self {
        let (port, settings) = (port.to_string(), settings.iter().flat_map(|setting| ["-c", setting]));
        script(["up", name, "15", &port, "--on-node"].into_iter().chain(settings).collect());
        Self(name)
    }
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testbed/postgres");

fn script(arguments: Vec<&str>) {
    let output = Command::new(SCRIPT).args(&arguments).output().expect("the testbed's script runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its test may have failed already: that is what is to be told.
        let _ = Command::new(SCRIPT).args(["down", self.0]).output();
    }
}

#[tokio::test]
async fn a_server_that_is_not_set_up_for_replication_is_told_each_setting_and_serves_once_it_is() {
    only_on_the_testbed("starting another server");
    let world = World::new("not-set-up").await;
    let unset = ["wal_level=replica", "max_replication_slots=0", "max_wal_senders=0"];
    let server = Server::up("e2e-not-set-up", 5450, &unset);
    let there = json!({ "host": NODE, "port": 5450, "database": "postgres" });
    world.apply(world.peer("bare", "SOURCE", there)).await.unwrap();
    let (verdict, reason, said) = judged(&world, "bare").await;
    assert_eq!((verdict.as_str(), reason.as_str()), ("False", "WalLevel"), "{said}");
    for cure in ["SET wal_level = logical", "SET max_replication_slots = ", "SET max_wal_senders = ", "restart the server"] {
        assert!(said.contains(cure), "{cure:?} is missing in {said:?}");
    }
    world.warns(&["bare"], "SET wal_level = logical").await;
    drop(server);
    let _server = Server::up("e2e-not-set-up", 5450, &["wal_level=logical"]);
    until("the Peer is Ready", LIMIT, || async {
        let (verdict, _, said) = judged(&world, "bare").await;
        if verdict == "True" { Ok(()) } else { Err(said) }
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn a_name_that_another_object_has_is_told_and_taken_once_it_is_free() {
    let world = one_table(World::new("name-taken").await).await;
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    world.ready("m").await;
    let theirs = json!({ "metadata": { "name": "m-e2" }, "data": { "theirs": "kept" } });
    let briefs = world.api::<ConfigMap>();
    briefs.create(&PostParams::default(), &serde_json::from_value(theirs).unwrap()).await.unwrap();
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    world.says("again", "ConfigMap \"m-e2\" exists but belongs to something else").await;
    world.event("again", "NameTaken").await;
    assert_eq!(world.get::<ConfigMap>("m-e2").await.data.unwrap()["theirs"], "kept");
    world.source.batch_execute("INSERT INTO t VALUES (2, 'still streaming')").await.unwrap();
    world.equal("t", "id, v").await;
    briefs.delete("m-e2", &Default::default()).await.unwrap();
    world.phase("again", Phase::Running).await;
    world.equal("t", "id, v").await;
    world.end().await;
}

#[tokio::test]
async fn pods_that_no_node_takes_are_told_in_the_schedulers_words_and_run_once_one_does() {
    let world = one_table(World::new("no-node").await).await;
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    world.ready("m").await;
    let nowhere = json!({ "pods": { "nodeSelector": { "e2e": "nowhere" } } });
    world.apply(world.mirror("m", &["public.t"], nowhere)).await.unwrap();
    assert_eq!(world.mirror_says("m", "cannot be scheduled", LIMIT).await, "PipelineNotRunning");
    world.event("m", "PipelineNotRunning").await;
    world.source.batch_execute("INSERT INTO t VALUES (2, 'waits')").await.unwrap();
    world.apply(world.mirror("m", &["public.t"], json!({ "pods": {} }))).await.unwrap();
    world.ready("m").await;
    world.equal("t", "id, v").await;
    world.end().await;
}

#[tokio::test]
async fn more_workers_join_a_load_that_is_under_way() {
    let world = wide(World::new("more-workers").await, 80_000).await;
    let with = |workers: u32| {
        let pace = json!({ "chunkSize": "512Ki", "partitionSize": "3Mi", "maxBytesPerSecond": "512Ki", "maxParallelWorkers": workers });
        json!({ "snapshot": pace })
    };
    world.apply(world.resync("again", "m", with(1))).await.unwrap();
    loading(&world, "again").await;
    let loading_now = async || {
        let running = |p: &k8s_openapi::api::core::v1::Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
        world.pods("snapshot").await.iter().filter(|p| running(p)).count()
    };
    // None while one pod has ended and the next one starts.
    assert!(loading_now().await <= 1, "one at a time");
    world.apply(world.resync("again", "m", with(4))).await.unwrap();
    until("four workers load", LIMIT, || async {
        let workers = loading_now().await;
        if workers == 4 { Ok(()) } else { Err(format!("{workers}: {}", message(&world.get("again").await))) }
    })
    .await;
    world.phase("again", Phase::Running).await;
    equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_mirror_whose_source_is_gone_for_good_goes_when_it_is_told_to() {
    let gate = Gate::open("SOURCE").await;
    let world = World::new("gone-for-good").await;
    world.apply(world.peer("source", "SOURCE", json!({ "host": gate.host, "port": gate.port }))).await.unwrap();
    let world = one_table(world).await;
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    world.ready("m").await;
    gate.set(Stand::Closed);
    world.api::<Mirror>().delete("m", &Default::default()).await.unwrap();
    world.mirror_says("m", "mirror-operator.io/force-delete=true", LIMIT).await;
    let forced = json!({ "metadata": { "annotations": { "mirror-operator.io/force-delete": "true" } } });
    world.api::<Mirror>().patch("m", &PatchParams::default(), &Patch::Merge(forced)).await.unwrap();
    world.gone::<Mirror>("m").await;
    world.gone::<MirrorResync>("m-initial").await;
    until("the pipeline is gone", LIMIT, || async {
        let left = world.api::<StatefulSet>().list(&Default::default()).await.map_err(|e| e.to_string())?;
        if left.items.is_empty() { Ok(()) } else { Err(format!("{} StatefulSets", left.items.len())) }
    })
    .await;
    // What docs/operations.md says may be left, by the statements that it gives.
    assert_eq!(world.slots().await.len(), 1);
    world.drop_slot().await;
    let publication = "SELECT pubname::text FROM pg_publication WHERE pubname LIKE 'mo\\_m\\_%'";
    let publication: String = world.source.query_one(publication, &[]).await.unwrap().get(0);
    world.source.batch_execute(&format!("DROP PUBLICATION \"{publication}\"")).await.unwrap();
    let rows: i64 = world.destination.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(rows, 1);
    world.end().await;
}
