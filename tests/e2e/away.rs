//! A server is away, or a pod is killed, while a Job other than the load is at work.

use mirror_operator::api::{Mirror, MirrorResync, resync::Phase};
use serde_json::json;

use crate::{
    failures::{equal, kill, loading, slow, wide},
    gate::{Gate, Stand},
    world::{LIMIT, World, connect, judged, message, until},
};

/// Puts a gate before the Peer of one side.
async fn behind(world: &World, gate: &Gate, name: &str, side: &str) {
    let more = json!({ "host": gate.host, "port": gate.port, "connectTimeout": "60s" });
    world.apply(world.peer(name, side, more)).await.expect("a Peer");
}

#[tokio::test]
async fn a_check_whose_pod_is_killed_is_told_and_made_again() {
    let gate = Gate::open("SOURCE").await;
    let world = World::new("check-kill").await;
    // Their pods have the component's name too.
    for other in ["source", "destination"] {
        judged(&world, other).await;
    }
    gate.set(Stand::Silent);
    behind(&world, &gate, "gated", "SOURCE").await;
    kill(&world, "check").await;
    world.event("gated", "CheckFailed").await;
    gate.set(Stand::Open);
    let (verdict, _, said) = judged(&world, "gated").await;
    assert_eq!(verdict, "True", "{said}");
    world.end().await;
}

#[tokio::test]
async fn a_load_cancelled_while_the_source_is_away_is_cleaned_up_once_it_is_back() {
    let gate = Gate::open("SOURCE").await;
    let world = World::new("cleanup-away").await;
    behind(&world, &gate, "source", "SOURCE").await;
    let world = wide(world, 60_000).await;
    world.apply(world.resync("doomed", "m", slow())).await.unwrap();
    loading(&world, "doomed").await;
    gate.set(Stand::Closed);
    let resyncs = world.api::<MirrorResync>();
    resyncs.delete("doomed", &Default::default()).await.unwrap();
    until("it says what it waits for", LIMIT, || async {
        let said = message(&world.get("doomed").await);
        if said.contains("not removed yet") { Ok(()) } else { Err(said) }
    })
    .await;
    assert_ne!(world.slots().await, Vec::<String>::new(), "nobody could drop it");
    gate.set(Stand::Silent);
    kill(&world, "cleanup").await;
    gate.set(Stand::Open);
    world.gone::<MirrorResync>("doomed").await;
    assert_eq!(world.slots().await, Vec::<String>::new());
    assert_eq!(world.tables("public").await, ["small", "wide"]);
    world.apply(world.resync("cure", "m", json!({}))).await.unwrap();
    world.phase("cure", Phase::Running).await;
    equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_mirror_deleted_while_the_source_is_silent_is_forgotten_even_if_the_pod_that_does_it_is_killed() {
    let gate = Gate::open("SOURCE").await;
    let world = World::new("forget-kill").await;
    behind(&world, &gate, "source", "SOURCE").await;
    let world = wide(world, 1_000).await;
    gate.set(Stand::Silent);
    world.api::<Mirror>().delete("m", &Default::default()).await.unwrap();
    kill(&world, "forget").await;
    gate.set(Stand::Open);
    world.gone::<Mirror>("m").await;
    assert_eq!(world.tables("public").await, ["small", "wide"]);
    world.end().await;
}

#[tokio::test]
async fn a_swap_whose_destination_goes_away_is_done_once_when_it_is_back() {
    let gate = Gate::open("DESTINATION").await;
    let world = World::new("swap-away").await;
    behind(&world, &gate, "destination", "DESTINATION").await;
    let world = wide(world, 1_000).await;
    let reader = connect("DESTINATION", world.database()).await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM wide").await.unwrap();
    world.source.batch_execute("DELETE FROM wide WHERE id = 1").await.unwrap();
    world.apply(world.resync("again", "m", json!({}))).await.unwrap();
    until("the swap waits for the reader", LIMIT, || async {
        let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' AND relation = 'wide'::regclass";
        let waiting: i64 = world.destination.query_one(sql, &[]).await.map_err(|e| e.to_string())?.get(0);
        if waiting > 0 { Ok(()) } else { Err("nobody waits".into()) }
    })
    .await;
    gate.set(Stand::Closed);
    reader.batch_execute("COMMIT").await.unwrap();
    until("the lost session's attempt is over", LIMIT, || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'mo %'";
        let left: i64 = world.destination.query_one(sql, &[]).await.map_err(|e| e.to_string())?.get(0);
        if left == 0 { Ok(()) } else { Err(format!("{left} sessions")) }
    })
    .await;
    gate.set(Stand::Open);
    let ended = world.phase("again", Phase::Running).await;
    assert_eq!(ended.status.unwrap().tables.iter().map(|t| t.soft_deleted_carried).sum::<i64>(), 1);
    equal(&world).await;
    assert_eq!(world.tables("public").await, ["small", "wide"]);
    world.end().await;
}
