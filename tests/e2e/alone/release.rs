//! The operator's own life: upgraded, uninstalled, in two replicas. Mirrors go on meanwhile.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use axum::http::Request;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use mirror_operator::api::{Peer, condition, resync::Phase};
use serde_json::json;

use crate::{
    failures::{equal, loading, slow, wide},
    world::{LIMIT, World, only_on_the_testbed, until},
};

const NAMESPACE: &str = "mirror-operator";

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Installs or upgrades the operator as all tests have it, with these arguments for helm besides.
pub fn install(more: &[&str]) {
    run(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testbed/install-chart"), more);
}

/// Has the operator again as all tests want it, if its test fails halfway.
pub struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testbed/install-chart")).output();
        }
    }
}

/// The chart as an older release may have had it: Mirrors have no short name.
fn older_chart() -> PathBuf {
    let chart = std::env::temp_dir().join(format!("mirror-operator-chart-{}", std::process::id()));
    run("cp", &["--recursive", concat!(env!("CARGO_MANIFEST_DIR"), "/charts/mirror-operator"), chart.to_str().unwrap()]);
    let kinds = chart.join("templates/crds.yaml");
    let text = std::fs::read_to_string(&kinds).unwrap();
    let older = text.replace("    plural: mirrors\n    shortNames:\n    - mirror\n", "    plural: mirrors\n");
    assert_ne!(text, older, "the chart has the lines that are taken out");
    std::fs::write(&kinds, older).unwrap();
    chart
}

/// The operator's image under another name, as an older release has one.
fn older_image() -> String {
    let image = std::env::var("IMAGE").expect("IMAGE is the operator's image");
    let (repository, _) = image.rsplit_once(':').expect("an image with a tag");
    let older = format!("{repository}:older");
    run("ctr", &["--namespace", "k8s.io", "images", "tag", "--force", &image, &older]);
    older
}

fn install_older(chart: &Path, image: &str) {
    let (repository, tag) = image.rsplit_once(':').expect("an image with a tag");
    let set = format!("image.repository={repository},image.tag={tag}");
    let chart = chart.to_str().unwrap();
    run("helm", &["upgrade", "--install", "mirror-operator", chart, "--namespace", NAMESPACE, "--set", &set, "--wait", "--timeout", "2m"]);
}

/// Awaits that the pipeline of an epoch runs with this image.
async fn pipeline_has(world: &World, pod: &str, image: &str) {
    until(&format!("{pod} runs {image}"), LIMIT, || async {
        let pod = world.api::<Pod>().get_opt(pod).await.map_err(|e| e.to_string())?.ok_or("no pod")?;
        let has = pod.spec.and_then(|s| s.containers.into_iter().next()).and_then(|c| c.image).unwrap_or_default();
        let running = pod.status.and_then(|s| s.phase).is_some_and(|phase| phase == "Running");
        if running && has == image { Ok(()) } else { Err(has) }
    })
    .await;
}

async fn short_names(world: &World) -> Vec<String> {
    let kinds: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    kinds.get("mirrors.mirror-operator.io").await.expect("the kind is there").spec.names.short_names.unwrap_or_default()
}

async fn operators(world: &World) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), NAMESPACE);
    let labels = "app.kubernetes.io/name=mirror-operator,app.kubernetes.io/component=operator";
    // Whoever asks a pod that is about to be gone may wait for half a minute.
    let stays = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    pods.list(&ListParams::default().labels(labels)).await.expect("pods").items.into_iter().filter(stays).collect()
}

/// What each operator's pod says of itself.
async fn roles(world: &World) -> Vec<(String, String)> {
    let mut roles = Vec::new();
    for pod in operators(world).await.iter().map(ResourceExt::name_any) {
        let url = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8081/proxy/readyz");
        let says = world.client.request_text(Request::get(url).body(vec![]).unwrap()).await.unwrap_or_else(|e| e.to_string());
        roles.push((pod, says));
    }
    roles
}

/// Awaits that there are two operators and one of them leads.
async fn leader_of_two(world: &World) -> String {
    until("one of two leads", LIMIT, || async {
        let roles = roles(world).await;
        let leading: Vec<&String> = roles.iter().filter(|(_, says)| says == "leading").map(|(pod, _)| pod).collect();
        match (roles.len(), leading.as_slice()) {
            (2, [one]) if roles.iter().all(|(_, says)| says == "leading" || says == "waiting for the lease") => Ok((*one).clone()),
            _ => Err(format!("{roles:?}")),
        }
    })
    .await
}

pub async fn streaming(test: &str) -> World {
    let world = World::alone(test).await;
    world.source.batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    world.apply(world.mirror("m", &["public.t"], json!({}))).await.unwrap();
    world.ready("m").await;
    world
}

#[tokio::test]
async fn an_upgrade_in_mid_load_brings_the_kinds_and_the_image_of_its_release_and_nothing_begins_anew() {
    only_on_the_testbed("giving an image another name");
    let world = wide(World::alone("upgrade").await, 60_000).await;
    let (chart, older, _restored) = (older_chart(), older_image(), Restored);
    install_older(&chart, &older);
    assert_eq!(short_names(&world).await, Vec::<String>::new());
    pipeline_has(&world, "m-e1-0", &older).await;
    world.source.batch_execute("INSERT INTO small VALUES (1000)").await.unwrap();
    world.equal("small", "id").await;
    world.apply(world.resync("again", "m", slow())).await.unwrap();
    loading(&world, "again").await;
    install(&[]);
    std::fs::remove_dir_all(chart).unwrap();
    until("the short name is back", LIMIT, || async {
        let names = short_names(&world).await;
        if names == ["mirror"] { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    let ended = world.phase("again", Phase::Running).await;
    assert_eq!(ended.status.unwrap().snapshot.unwrap().exports, 1, "the snapshot was held all the while");
    pipeline_has(&world, "m-e2-0", &std::env::var("IMAGE").unwrap()).await;
    world.source.batch_execute("INSERT INTO small VALUES (1001)").await.unwrap();
    world.ready("m").await;
    equal(&world).await;
    run("ctr", &["--namespace", "k8s.io", "images", "rm", &older]);
    world.end().await;
}

#[tokio::test]
async fn uninstalling_leaves_kinds_and_objects_and_mirrors_stream_on() {
    let world = streaming("uninstall").await;
    run("helm", &["uninstall", "mirror-operator", "--namespace", NAMESPACE, "--wait"]);
    world.source.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    world.equal("t", "id").await;
    assert_eq!(short_names(&world).await, ["mirror"]);
    install(&[]);
    world.ready("m").await;
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    world.phase("again", Phase::Running).await;
    world.equal("t", "id").await;
    world.end().await;
}

#[tokio::test]
async fn an_operator_of_one_namespace_serves_it_whole_and_no_other() {
    let world = streaming("watched").await;
    install(&["--set", "watchNamespace=e2e-watched"]);
    until("the operator with fewer rights leads", LIMIT, || async {
        let roles = roles(&world).await;
        if roles.iter().all(|(_, says)| says == "leading") { Ok(()) } else { Err(format!("{roles:?}")) }
    })
    .await;
    let elsewhere: Api<Peer> = Api::namespaced(world.client.clone(), "default");
    let mut manifest = world.peer("unwatched", "SOURCE", json!({}));
    manifest["apiVersion"] = json!("mirror-operator.io/v1alpha1");
    elsewhere.create(&PostParams::default(), &serde_json::from_value(manifest).unwrap()).await.unwrap();
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    world.phase("again", Phase::Running).await;
    world.ready("m").await;
    assert!(elsewhere.get("unwatched").await.unwrap().status.is_none(), "nobody looked at it");
    install(&[]);
    until("an operator of all namespaces judges it", LIMIT, || async {
        let conditions = elsewhere.get("unwatched").await.unwrap().status.unwrap_or_default().conditions;
        condition::get(&conditions, "Ready").map(|_| ()).ok_or_else(|| format!("{conditions:?}"))
    })
    .await;
    elsewhere.delete("unwatched", &DeleteParams::default()).await.unwrap();
    world.equal("t", "id").await;
    world.end().await;
}

#[tokio::test]
async fn of_two_replicas_one_leads_and_the_other_takes_over_in_a_restricted_namespace() {
    let world = streaming("replicas").await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let level = |level: Option<&str>| json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": level } } });
    namespaces.patch(NAMESPACE, &PatchParams::default(), &Patch::Merge(level(Some("restricted")))).await.unwrap();
    // Its old pod was admitted before the label was there.
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), NAMESPACE);
    for pod in operators(&world).await {
        pods.delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
    }
    install(&["--set", "replicas=2"]);
    let leader = leader_of_two(&world).await;
    pods.delete(&leader, &DeleteParams::default()).await.unwrap();
    let told = Instant::now();
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), NAMESPACE);
    until("another one has the lease", LIMIT, || async {
        let holder = leases.get("mirror-operator").await.map_err(|e| e.to_string())?.spec.and_then(|s| s.holder_identity);
        if holder.as_ref().is_some_and(|h| *h != leader) { Ok(()) } else { Err(format!("{holder:?}")) }
    })
    .await;
    assert!(
        told.elapsed().as_secs() < 8,
        "a leader that ends gives its lease of 10 s back, rather than let it run out: {:?}",
        told.elapsed()
    );
    let leader = leader_of_two(&world).await;
    pods.delete(&leader, &DeleteParams::default().grace_period(0)).await.unwrap();
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    world.phase("again", Phase::Running).await;
    install(&["--set", "replicas=1"]);
    namespaces.patch(NAMESPACE, &PatchParams::default(), &Patch::Merge(level(None))).await.unwrap();
    world.equal("t", "id").await;
    world.end().await;
}
