//! What people and their tools see: conditions, columns, health, metrics.

use std::{collections::BTreeSet, process::Command, time::Duration};

use axum::http::Request;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use mirror_operator::api::{Mirror, resync::Phase};
use serde_json::{Value, json};

use crate::world::{LIMIT, World, judged, until};

/// What the leading operator answers.
pub async fn operator(world: &World, path: &str) -> String {
    let pods: Api<Pod> = Api::all(world.client.clone());
    let labels = "app.kubernetes.io/name=mirror-operator,app.kubernetes.io/component=operator";
    until(&format!("the leading operator answers {path}"), LIMIT, || async {
        let ask = async |pod: &Pod, path: &str| {
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            let url = format!("/api/v1/namespaces/{namespace}/pods/{name}:8081/proxy{path}");
            world.client.request_text(Request::get(url).body(vec![]).expect("a request")).await.map_err(|e| e.to_string())
        };
        let mut said = "no operator's pod".to_string();
        for pod in pods.list(&ListParams::default().labels(labels)).await.map_err(|e| e.to_string())? {
            match ask(&pod, "/readyz").await {
                Ok(ready) if ready == "leading" => return ask(&pod, path).await,
                Ok(other) | Err(other) => said = other,
            }
        }
        Err(said)
    })
    .await
}

pub async fn one_table(world: World) -> World {
    world.source.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x')").await.unwrap();
    world
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_with_the_statement_that_grants_it() {
    let world = one_table(World::new("no-select").await).await;
    let role = "DROP ROLE IF EXISTS e2e_blind; CREATE ROLE e2e_blind LOGIN REPLICATION PASSWORD 'blind'";
    world.source.batch_execute(role).await.unwrap();
    world.secret("blind", &[("password", "blind")]).await;
    let login = json!({ "user": "e2e_blind", "passwordSecretRef": { "name": "blind", "key": "password" } });
    world.apply(world.peer("blind", "SOURCE", login)).await.unwrap();
    world.apply(world.mirror("m", &["public.t"], json!({ "source": { "peer": "blind" } }))).await.unwrap();
    world.mirror_says("m", "GRANT SELECT ON", LIMIT).await;
    let failed = world.says("m-initial", "GRANT SELECT ON").await;
    let said = crate::world::message(&failed);
    assert!(said.contains("public.t") && said.contains("e2e_blind"), "{said}");
    assert_eq!(world.tables("public").await, Vec::<String>::new());
    world.end().await;
    crate::world::connect("SOURCE", "postgres").await.batch_execute("DROP ROLE e2e_blind").await.unwrap();
}

#[tokio::test]
async fn a_second_mirror_of_a_destination_table_waits_until_the_first_is_gone() {
    let world = one_table(World::new("conflict").await).await;
    world.apply(world.mirror("first", &["public.t"], json!({ "deletionPolicy": "Drop" }))).await.unwrap();
    world.ready("first").await;
    world.apply(world.mirror("second", &["public.t"], json!({}))).await.unwrap();
    assert_eq!(world.mirror_says("second", "Mirror first already writes public.t", LIMIT).await, "Conflict");
    assert_eq!(world.slots().await.len(), 1);
    world.api::<Mirror>().delete("first", &Default::default()).await.unwrap();
    world.gone::<Mirror>("first").await;
    world.ready("second").await;
    world.equal("t", "id, v").await;
    world.end().await;
}

#[tokio::test]
async fn a_secret_that_is_missing_is_named_by_peer_and_mirror_and_its_creation_is_enough() {
    let world = one_table(World::new("no-secret").await).await;
    let password = world.api::<k8s_openapi::api::core::v1::Secret>().get("postgres").await.unwrap().data.unwrap()["password"].0.clone();
    let missing = json!({ "passwordSecretRef": { "name": "later", "key": "password" } });
    world.apply(world.peer("source", "SOURCE", missing)).await.unwrap();
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    until("the Peer names its Secret", LIMIT, || async {
        let (verdict, reason, said) = judged(&world, "source").await;
        if verdict == "False" && reason == "SecretMissing" && said.contains("\"later\"") { Ok(()) } else { Err(said) }
    })
    .await;
    world.mirror_says("m", "\"later\"", LIMIT).await;
    world.secret("later", &[("password", std::str::from_utf8(&password).unwrap())]).await;
    // The kubelet brings a new Secret into a running pod within about a minute and a half.
    world.condition("m", "Ready", "True", Duration::from_secs(300)).await;
    world.equal("t", "id, v").await;
    world.end().await;
}

#[tokio::test]
async fn a_workload_that_a_quota_refuses_is_told_and_made_once_there_is_room() {
    let world = one_table(World::new("quota").await).await;
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    world.ready("m").await;
    let quotas = world.api::<ResourceQuota>();
    let quota = json!({ "metadata": { "name": "no-jobs" }, "spec": { "hard": { "count/jobs.batch": "0" } } });
    quotas.create(&PostParams::default(), &serde_json::from_value(quota).unwrap()).await.unwrap();
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    world.says("again", "the API server refuses Job \"again-snapshot\"").await;
    world.event("again", "WorkloadRefused").await;
    quotas.delete("no-jobs", &Default::default()).await.unwrap();
    world.phase("again", Phase::Running).await;
    world.end().await;
}

#[tokio::test]
async fn objects_that_cannot_work_do_not_disturb_one_that_can() {
    let world = one_table(World::new("beside").await).await;
    world.source.batch_execute("CREATE TABLE u (id int PRIMARY KEY)").await.unwrap();
    let long = format!("public.{}", "x".repeat(64));
    world.apply(world.mirror("no-peer", &["public.nothing"], json!({ "source": { "peer": "nobody" } }))).await.unwrap();
    world.apply(world.mirror("long-name", &[&long], json!({}))).await.unwrap();
    let huge = json!({ "snapshot": { "chunkSize": "99999999T", "partitionSize": "99999999T" } });
    world.apply(world.mirror("huge", &["public.u"], huge)).await.unwrap();
    world.apply(world.resync("of-nobody", "nobody", json!({ "keepOld": "99999999999999999h" }))).await.unwrap();
    world.apply(world.mirror("good", &["public.t"], json!({}))).await.unwrap();
    assert_eq!(world.mirror_says("no-peer", "\"nobody\"", LIMIT).await, "InvalidSpec");
    assert_eq!(world.mirror_says("long-name", "64 bytes", LIMIT).await, "InvalidSpec");
    world.ready("good").await;
    world.source.batch_execute("INSERT INTO t VALUES (2, 'y')").await.unwrap();
    world.equal("t", "id, v").await;
    world.end().await;
}

#[tokio::test]
async fn the_operator_tells_its_health_and_documented_metrics() {
    let world = one_table(World::new("metrics").await).await;
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    world.ready("m").await;
    assert_eq!(operator(&world, "/healthz").await, "ok");
    assert_eq!(operator(&world, "/readyz").await, "leading");
    let ready = format!("mirror_operator_mirror_ready{{namespace=\"{}\",name=\"m\"}} 1", world.namespace);
    let metrics = until("the Mirror's metric", LIMIT, || async {
        let metrics = operator(&world, "/metrics").await;
        if metrics.contains(&ready) { Ok(metrics) } else { Err(metrics) }
    })
    .await;
    let named: BTreeSet<&str> = metrics.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(['{', ' ']).next()).collect();
    assert!(named.len() >= 5, "{named:?}");
    let documented = include_str!("../../docs/operations.md");
    for name in named {
        assert!(documented.contains(&format!("`{name}`")), "{name} is not documented");
    }
    world.end().await;
}

fn kubectl(namespace: &str, arguments: &[&str]) -> String {
    let output = Command::new("kubectl").args(["--namespace", namespace]).args(arguments).output().expect("kubectl runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
async fn kubectl_shows_columns_short_names_and_words() {
    let world = one_table(World::new("kubectl").await).await;
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    world.ready("m").await;
    let table = [
        ("peer", vec!["NAME", "TYPE", "HOST", "DATABASE", "VERSION", "READY", "MESSAGE", "AGE"]),
        ("mirror", vec!["NAME", "PHASE", "EPOCH", "TABLES", "LAG", "SECONDS", "RESYNC", "READY", "AGE"]),
        ("mresync", vec!["NAME", "MIRROR", "PHASE", "PROGRESS", "ROWS", "LAG", "AGE"]),
    ];
    for (short, columns) in table {
        let shown = kubectl(&world.namespace, &["get", short]);
        assert_eq!(shown.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(), columns);
    }
    let mirror = kubectl(&world.namespace, &["get", "mirrors", "m", "--no-headers"]);
    assert!(mirror.contains("Running") && mirror.contains("True"), "{mirror}");
    let all = kubectl(&world.namespace, &["get", "cdc", "--output", "name"]);
    for object in ["peer.mirror-operator.io/source", "mirror.mirror-operator.io/m", "mirrorresync.mirror-operator.io/m-initial"] {
        assert!(all.lines().any(|line| line == object), "{all}");
    }
    for path in ["peer.spec.postgres.tls", "mirror.spec.snapshot", "mirror.status", "mirrorresync.spec.swap", "mirrorresync.status"] {
        let words = kubectl(&world.namespace, &["explain", path]);
        assert!(words.contains("DESCRIPTION") && !words.contains("<no description>"), "{words}");
    }
    world.end().await;
}

#[tokio::test]
async fn sizes_that_would_make_pods_and_transactions_without_number_are_refused() {
    let world = World::new("sizes").await;
    for (size, least) in [(json!({ "chunkSize": "63Ki" }), "at least 64Ki"), (json!({ "partitionSize": "1000k" }), "at least 1Mi")] {
        let manifests: [Value; 2] =
            [world.mirror("m", &["public.t"], json!({ "snapshot": size })), world.resync("r", "m", json!({ "snapshot": size }))];
        for manifest in manifests {
            let error = world.apply(manifest).await.unwrap_err();
            assert!(error.contains(least), "{error}");
        }
    }
    world.end().await;
}
