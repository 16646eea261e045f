//! How things end, and that they leave nothing behind.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::StatefulSet,
        batch::v1::Job,
        core::v1::{ConfigMap, Secret},
    },
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use mirror_operator::api::{Mirror, MirrorResync, Peer, mirror::MirrorPhase, resync::Phase};
use serde_json::json;

use crate::{
    failures::{equal, loading, slow, wide},
    world::{LIMIT, World, until},
};

/// Names of the Mirror's workloads of one kind.
async fn workloads<K>(world: &World) -> Vec<String>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = world.api();
    let list = api.list(&ListParams::default().labels("mirror-operator.io/mirror=m")).await.expect("a list");
    list.items.iter().map(ResourceExt::name_any).collect()
}

fn text(secret: &BTreeMap<String, ByteString>, key: &str) -> String {
    String::from_utf8(secret[key].0.clone()).expect("text")
}

/// Awaits that of the Mirror's workloads only these Jobs are left.
async fn only_jobs(world: &World, wanted: &[&str]) {
    until("the workloads are gone", LIMIT, || async {
        let (jobs, sets) = (workloads::<Job>(world).await, workloads::<StatefulSet>(world).await);
        if jobs == wanted && sets.is_empty() { Ok(()) } else { Err(format!("{jobs:?} {sets:?}")) }
    })
    .await;
}

/// Nothing of any mirror is in the ledger.
async fn forgotten(world: &World) {
    let rows: i64 = world.destination.query_one("SELECT count(*) FROM _mirror_operator.mirror", &[]).await.unwrap().get(0);
    assert_eq!(rows, 0, "the ledger has forgotten the mirror");
}

#[tokio::test]
async fn a_mirror_that_is_deleted_in_mid_load_leaves_nothing_but_its_live_tables() {
    let world = wide(World::new("delete-loading").await, 60_000).await;
    world.apply(world.resync("again", "m", slow())).await.unwrap();
    loading(&world, "again").await;
    let r: MirrorResync = world.get("again").await;
    assert_eq!(r.status.unwrap().phase, Phase::Snapshot);
    world.api::<Mirror>().delete("m", &DeleteParams::default()).await.unwrap();
    world.gone::<Mirror>("m").await;
    assert_eq!(world.slots().await, Vec::<String>::new());
    assert_eq!(world.tables("public").await, ["small", "wide"]);
    forgotten(&world).await;
    world.phase("again", Phase::Cancelled).await;
    only_jobs(&world, &[]).await;
    world.end().await;
}

#[tokio::test]
async fn a_load_that_is_cancelled_leaves_nothing_and_the_next_resync_heals() {
    let world = wide(World::new("cancel-loading").await, 60_000).await;
    world.apply(world.resync("doomed", "m", slow())).await.unwrap();
    loading(&world, "doomed").await;
    let mut cancelled = slow();
    cancelled["cancel"] = json!(true);
    world.apply(world.resync("doomed", "m", cancelled)).await.unwrap();
    world.phase("doomed", Phase::Cancelled).await;
    assert_eq!(world.slots().await, Vec::<String>::new());
    assert_eq!(world.tables("public").await, ["small", "wide"]);
    only_jobs(&world, &["doomed-cleanup", "m-initial-snapshot", "m-initial-swap"]).await;
    let mirror = world.condition("m", "ResyncRequired", "True", LIMIT).await;
    assert_eq!(mirror.status.unwrap().phase, MirrorPhase::Failed);
    world.source.batch_execute("INSERT INTO small VALUES (1000)").await.unwrap();
    world.apply(world.resync("cure", "m", json!({}))).await.unwrap();
    world.phase("cure", Phase::Running).await;
    equal(&world).await;
    let briefs = until("old briefs are gone", LIMIT, || async {
        let briefs = workloads::<ConfigMap>(&world).await;
        if briefs.len() == 1 { Ok(briefs) } else { Err(format!("{briefs:?}")) }
    });
    assert_eq!(briefs.await, ["m-e3"]);
    world.end().await;
}

#[tokio::test]
async fn a_cancelled_load_whose_source_locks_it_out_says_so_and_is_removed_once_it_lets_it_in() {
    let world = wide(World::new("cancel-locked-out").await, 60_000).await;
    world.apply(world.resync("doomed", "m", slow())).await.unwrap();
    loading(&world, "doomed").await;
    let secret = world.api::<Secret>().get("postgres").await.unwrap().data.unwrap();
    let (right, destination) = (text(&secret, "password"), text(&secret, "destination"));
    world.secret("postgres", &[("password", "wrong"), ("destination", &destination)]).await;
    let mut cancelled = slow();
    cancelled["cancel"] = json!(true);
    world.apply(world.resync("doomed", "m", cancelled)).await.unwrap();
    world.says("doomed", "not removed yet: AuthenticationFailed").await;
    let r: MirrorResync = world.get("doomed").await;
    assert!(!r.status.unwrap().phase.is_end());
    assert_ne!(world.slots().await, Vec::<String>::new());
    world.secret("postgres", &[("password", &right), ("destination", &destination)]).await;
    world.phase("doomed", Phase::Cancelled).await;
    assert_eq!(world.slots().await, Vec::<String>::new());
    assert_eq!(world.tables("public").await, ["small", "wide"]);
    world.end().await;
}

#[tokio::test]
async fn old_tables_are_kept_as_long_as_the_resync_says() {
    let world = wide(World::new("keep-old").await, 1_000).await;
    world.apply(world.resync("again", "m", json!({ "keepOld": "20s" }))).await.unwrap();
    world.phase("again", Phase::Running).await;
    assert_eq!(world.tables("public").await, ["small", "small_old", "wide", "wide_old"]);
    let kept: i64 = world.destination.query_one("SELECT count(*) FROM wide_old", &[]).await.unwrap().get(0);
    assert_eq!(kept, 1_000);
    until("the old tables are gone", LIMIT, || async {
        let tables = world.tables("public").await;
        if tables == ["small", "wide"] { Ok(()) } else { Err(format!("{tables:?}")) }
    })
    .await;
    equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_lost_slot_heals_by_itself_where_the_policy_says_so() {
    let world = wide(World::new("slot-auto").await, 1_000).await;
    let policy = json!({ "resyncPolicy": { "onSlotLost": "Automatic" } });
    world.apply(world.mirror("m", &["public.wide", "public.small"], policy)).await.unwrap();
    world.drop_slot().await;
    world.source.batch_execute("DELETE FROM wide WHERE id = 1; INSERT INTO small VALUES (1000)").await.unwrap();
    world.phase("m-auto-2", Phase::Running).await;
    let mirror = world.ready("m").await;
    assert_eq!(mirror.status.unwrap().live_epoch, 2);
    equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn deleting_everything_at_once_peers_first_leaves_nothing_behind() {
    let world = wide(World::new("delete-all").await, 1_000).await;
    world.apply(world.resync("again", "m", json!({ "swap": { "approval": "Manual" } }))).await.unwrap();
    world.says("again", "approved").await;
    world.api::<Peer>().delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    world.gone::<Peer>("source").await;
    world.gone::<Peer>("destination").await;
    world.api::<Mirror>().delete("m", &DeleteParams::default()).await.unwrap();
    world.api::<MirrorResync>().delete("again", &DeleteParams::default()).await.unwrap();
    world.gone::<Mirror>("m").await;
    world.gone::<MirrorResync>("again").await;
    world.gone::<MirrorResync>("m-initial").await;
    assert_eq!(world.slots().await, Vec::<String>::new());
    assert_eq!(world.tables("public").await, ["small", "wide"]);
    forgotten(&world).await;
    only_jobs(&world, &[]).await;
    until("the briefs are gone", LIMIT, || async {
        let briefs = workloads::<ConfigMap>(&world).await;
        if briefs.is_empty() { Ok(()) } else { Err(format!("{briefs:?}")) }
    })
    .await;
    world.end().await;
}
