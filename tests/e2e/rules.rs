//! What `kubectl apply` refuses, in the API server's words: CEL rules and schemas.

use serde_json::{Value, json};

use crate::world::World;

async fn refused(world: &World, manifest: Value, words: &str) {
    let error = world.apply(manifest.clone()).await.expect_err(&format!("{manifest} should be refused"));
    assert!(error.contains(words), "expected {words:?} in {error:?}");
}

#[tokio::test]
async fn kubectl_apply_refuses_what_the_schema_can_know() {
    let world = World::new("rules").await;
    let peer = |spec: Value| json!({ "kind": "Peer", "metadata": { "name": "p" }, "spec": spec });
    refused(&world, peer(json!({ "roles": ["Source"] })), "exactly one kind of database").await;
    let server = json!({ "host": "h", "database": "d", "user": "u" });
    refused(&world, peer(json!({ "roles": ["Destination"], "postgres": server, "clickhouse": server })), "exactly one kind of database")
        .await;
    refused(&world, peer(json!({ "roles": ["Source"], "clickhouse": server })), "only a PostgreSQL database").await;
    refused(
        &world,
        peer(json!({ "roles": [], "postgres": { "host": "h", "database": "d", "user": "u" } })),
        "should have at least 1 items",
    )
    .await;
    refused(
        &world,
        peer(json!({ "roles": ["Source"], "postgres": { "host": "h", "database": "d", "user": "u", "port": 70000 } })),
        "65535",
    )
    .await;
    refused(
        &world,
        peer(json!({ "roles": ["Source", "Source"], "postgres": { "host": "h", "database": "d", "user": "u" } })),
        "duplicate entries",
    )
    .await;
    let tls = json!({ "mode": "Require", "caSecretRef": { "name": "ca", "key": "ca.crt" } });
    refused(
        &world,
        peer(json!({ "roles": ["Source"], "postgres": { "host": "h", "database": "d", "user": "u", "tls": tls } })),
        "VerifyCA or VerifyFull",
    )
    .await;
    refused(
        &world,
        peer(json!({ "roles": ["Source"], "postgres": { "host": "h", "database": "d", "user": "u", "tls": { "mode": "Maybe" } } })),
        "supported values",
    )
    .await;

    let mirror = |more: Value| world.mirror("m", &["public.t"], more);
    refused(&world, mirror(json!({ "destination": { "peer": "source" } })), "must be different Peers").await;
    refused(&world, mirror(json!({ "tables": [] })), "should have at least 1 items").await;
    refused(&world, mirror(json!({ "tables": [{ "source": "nodot" }] })), "should match").await;
    refused(&world, mirror(json!({ "tables": [{ "source": "a.b" }, { "source": "a.b" }] })), "duplicate").await;
    refused(&world, mirror(json!({ "softDelete": { "column": "x" }, "syncedAtColumn": "x" })), "must differ").await;
    refused(&world, mirror(json!({ "snapshot": { "chunkSize": "much" } })), "should match").await;
    refused(&world, mirror(json!({ "replication": { "batchInterval": "soon" } })), "should match").await;
    refused(&world, world.mirror(&"m".repeat(37), &["public.t"], json!({})), "36 characters").await;

    refused(&world, world.mirror("1m", &["public.t"], json!({})), "begin with a letter").await;
    refused(&world, world.mirror("a.b", &["public.t"], json!({})), "hold no dot").await;
    refused(&world, world.resync("r.1", "m", json!({})), "may not hold a dot").await;
    refused(&world, mirror(json!({ "snapshot": { "chunkSize": "0" } })), "should match").await;
    refused(&world, world.resync(&"r".repeat(49), "m", json!({})), "48 characters").await;
    refused(&world, world.resync("r", "m", json!({ "handover": "Sideways" })), "supported values").await;
    world.apply(world.resync("r", "nobody", json!({ "cancel": true }))).await.expect("a resync");
    refused(&world, world.resync("r", "other", json!({ "cancel": true })), "mirror cannot be changed").await;
    refused(&world, world.resync("r", "nobody", json!({ "cancel": false })), "cannot be taken up again").await;

    let sized = |more: Value| {
        let mut snapshot = json!({ "chunkSize": "1Mi", "maxParallelWorkers": 2 });
        snapshot.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.resync("fixed", "nobody", json!({ "snapshot": snapshot, "keepOld": "1h" }))
    };
    world.apply(sized(json!({}))).await.expect("a resync");
    world.apply(sized(json!({ "maxParallelWorkers": 3 }))).await.expect("its parallelism");
    let mut approved = sized(json!({}));
    approved["spec"]["swap"] = json!({ "approval": "Manual", "approved": true });
    world.apply(approved).await.expect("its approval");
    for more in [json!({ "chunkSize": "2Mi" }), json!({ "partitionSize": "64Mi" }), json!({ "maxBytesPerSecond": "1Mi" })] {
        refused(&world, sized(more), "only maxParallelWorkers can be changed").await;
    }
    for (field, value) in [("carry", json!({ "missing": false })), ("keepOld", json!("2h"))] {
        let mut changed = sized(json!({}));
        changed["spec"][field] = value;
        refused(&world, changed, "carry and keepOld cannot be changed").await;
    }
    for swap in [json!({ "oldSnapshotWait": "1s" }), json!({ "onOldSnapshot": "Fail" })] {
        let mut changed = sized(json!({}));
        changed["spec"]["swap"] = swap;
        refused(&world, changed, "swap.onOldSnapshot cannot be changed").await;
    }

    world.apply(mirror(json!({ "suspend": true }))).await.expect("a Mirror");
    refused(&world, mirror(json!({ "source": { "peer": "elsewhere" } })), "source.peer cannot be changed").await;
    refused(&world, mirror(json!({ "destination": { "peer": "elsewhere" } })), "destination.peer cannot be changed").await;
    world.end().await;
}

#[tokio::test]
async fn a_resync_of_a_missing_mirror_waits_says_so_and_can_be_deleted() {
    let world = World::new("no-mirror").await;
    world.apply(world.resync("lost", "nobody", json!({}))).await.expect("a resync");
    world.says("lost", "does not exist").await;
    world.event("lost", "MirrorMissing").await;
    let api = world.api::<mirror_operator::api::MirrorResync>();
    api.delete("lost", &Default::default()).await.expect("deleted");
    crate::world::until("it is gone", crate::world::LIMIT, || async {
        match api.get_opt("lost").await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    world.end().await;
}
