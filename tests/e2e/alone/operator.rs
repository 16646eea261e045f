//! The one operator: killed, and counted.

use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use mirror_operator::api::{MirrorResync, resync::Phase};
use serde_json::json;

use crate::{
    failures::{equal, loading, slow, wide},
    visible::{one_table, operator},
    world::{LIMIT, World, until},
};

/// Kills the operator's pods without a word. Returns how many there were.
pub async fn kill_operators(world: &World) -> usize {
    let pods: Api<Pod> = Api::all(world.client.clone());
    let labels = "app.kubernetes.io/name=mirror-operator,app.kubernetes.io/component=operator";
    let operators = pods.list(&ListParams::default().labels(labels)).await.unwrap();
    let found = operators.items.len();
    for pod in operators {
        let api: Api<Pod> = Api::namespaced(world.client.clone(), &pod.namespace().unwrap());
        // It may have died meanwhile.
        let _ = api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
    }
    found
}

#[tokio::test]
async fn a_killed_operator_goes_on_where_it_stood() {
    let world = wide(World::alone("operator-kill").await, 60_000).await;
    world.apply(world.resync("again", "m", slow())).await.unwrap();
    loading(&world, "again").await;
    assert!(kill_operators(&world).await > 0, "the operator's pod bears its labels");
    world.phase("again", Phase::Running).await;
    equal(&world).await;
    world.end().await;
}

/// Writes so far, beside Events, and all of them in words.
async fn writes(world: &World) -> (u64, String) {
    let metrics = operator(world, "/metrics").await;
    let lines: Vec<&str> = metrics.lines().filter(|l| l.starts_with("mirror_operator_api_writes_total")).collect();
    let counted = lines.iter().filter(|l| !l.contains("\"Event\"")).filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum();
    (counted, lines.join("\n"))
}

/// Awaits that the operator has no more to do for a resync that has ended.
async fn done_with(world: &World, resync: &str) {
    until(&format!("the finalizer of {resync} is taken off"), LIMIT, || async {
        let r: MirrorResync = world.get(resync).await;
        if r.finalizers().is_empty() { Ok(()) } else { Err(format!("{:?}", r.finalizers())) }
    })
    .await;
}

#[tokio::test]
async fn a_resync_costs_the_api_server_few_writes() {
    let world = one_table(World::alone("writes").await).await;
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    world.ready("m").await;
    done_with(&world, "m-initial").await;
    let (before, were) = writes(&world).await;
    let begun = Instant::now();
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    world.phase("again", Phase::Running).await;
    world.ready("m").await;
    done_with(&world, "again").await;
    let (after, are) = writes(&world).await;
    // 18 to 22, by which states the operator happens to see. Progress is told for as long as it takes.
    let most = 24 + begun.elapsed().as_secs() / 5;
    assert!(after - before <= most, "{} writes in {:?}.\nBefore:\n{were}\nAfter:\n{are}", after - before, begun.elapsed());
    world.end().await;
}
