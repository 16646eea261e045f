//! What `kubectl apply` refuses, in the API server's words: CEL rules and schemas.

use mirror_operator::api::MirrorResync;
use serde_json::{Value, json};

use crate::world::World;

async fn refused(world: &World, manifest: Value, words: &str) {
    let error = world.apply(manifest.clone()).await.expect_err(&format!("{manifest} should be refused"));
    assert!(error.contains(words), "expected {words:?} in {error:?}");
}

#[tokio::test]
async fn a_peer_that_makes_no_sense_is_refused() {
    let world = World::new("peer-rules").await;
    let peer = |spec: Value| json!({ "kind": "Peer", "metadata": { "name": "p" }, "spec": spec });
    let server = json!({ "host": "h", "database": "d", "user": "u" });
    let with = |more: Value| {
        let mut server = server.clone();
        server.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "roles": ["Source"], "postgres": server })
    };
    let staged = |more: Value| {
        let mut stage = json!({ "name": "ROWS" });
        stage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let secret = json!({ "name": "n", "key": "k" });
        json!({ "roles": ["Destination"], "snowflake": { "account": "a", "database": "d", "schema": "s", "user": "u", "passwordSecretRef": secret, "stage": stage } })
    };
    let table = [
        (json!({ "roles": ["Source"] }), "exactly one kind of database"),
        (json!({ "roles": ["Destination"], "postgres": server, "clickhouse": server }), "exactly one kind of database"),
        (
            json!({ "roles": ["Source"], "snowflake": { "account": "a", "database": "d", "schema": "s", "user": "u", "passwordSecretRef": { "name": "n", "key": "k" } } }),
            "role Source",
        ),
        (
            json!({ "roles": ["Destination"], "snowflake": { "account": "a", "database": "d", "schema": "s", "user": "u" } }),
            "exactly one of privateKeySecretRef",
        ),
        (staged(json!({ "url": "s3://b/p" })), "region is given with a url of S3"),
        (staged(json!({ "url": "gcs://b/p", "region": "eu-central-1" })), "region is given with a url of S3"),
        (staged(json!({ "url": "gcs://b/p", "endpoint": "https://h" })), "endpoint is not used"),
        (staged(json!({ "url": "azure://account/c" })), "url at Azure is azure://"),
        (staged(json!({ "url": "s3://b/../p", "region": "eu-central-1" })), "neither two dots nor two hyphens"),
        (staged(json!({ "url": "file:///tmp" })), "should match"),
        (staged(json!({ "url": "s3://b/p", "region": "eu-central-1", "endpoint": "http://h" })), "without TLS"),
        (json!({ "roles": ["Source"], "clickhouse": server }), "only a PostgreSQL database"),
        (json!({ "roles": [], "postgres": server }), "should have at least 1 items"),
        (json!({ "roles": ["Source", "Source"], "postgres": server }), "duplicate entries"),
        (with(json!({ "port": 70000 })), "65535"),
        (with(json!({ "tls": { "mode": "Require", "caSecretRef": { "name": "ca", "key": "ca.crt" } } })), "VerifyCA or VerifyFull"),
        (with(json!({ "tls": { "mode": "Maybe" } })), "supported values"),
    ];
    for (spec, words) in table {
        refused(&world, peer(spec), words).await;
    }
    let named = |length| json!({ "kind": "Peer", "metadata": { "name": "p".repeat(length) }, "spec": with(json!({})) });
    refused(&world, named(46), "45 characters").await;
    world.apply(named(45)).await.expect("a Peer");
    world.end().await;
}

#[tokio::test]
async fn a_mirror_that_makes_no_sense_is_refused_and_so_is_another_peer_for_it() {
    let world = World::new("mirror-rules").await;
    let mirror = |more: Value| world.mirror("m", &["public.t"], more);
    let table = [
        (mirror(json!({ "destination": { "peer": "source" } })), "must be different Peers"),
        (mirror(json!({ "tables": [] })), "should have at least 1 items"),
        (mirror(json!({ "tables": [{ "source": "nodot" }] })), "should match"),
        (mirror(json!({ "tables": [{ "source": "a.b" }, { "source": "a.b" }] })), "duplicate"),
        (mirror(json!({ "softDelete": { "column": "x" }, "syncedAtColumn": "x" })), "must differ"),
        (mirror(json!({ "mode": "SnapshotOnly", "initialLoad": false })), "would bring nothing"),
        (mirror(json!({ "mode": "SnapshotOnly", "source": { "peer": "source", "slot": "s" } })), "no use for source.slot"),
        (mirror(json!({ "source": { "peer": "source", "slot": "Has-Dash" } })), "should match"),
        (mirror(json!({ "snapshot": { "chunkSize": "much" } })), "should match"),
        (mirror(json!({ "snapshot": { "chunkSize": "0" } })), "should match"),
        (mirror(json!({ "snapshot": { "chunkSize": "65535" } })), "must be at least 64Ki"),
        (mirror(json!({ "snapshot": { "partitionSize": "1023Ki" } })), "must be at least 1Mi"),
        (mirror(json!({ "replication": { "batchInterval": "soon" } })), "should match"),
        (mirror(json!({ "snapshot": { "resources": { "limits": { "memory": "-1Mi" } } } })), "should match"),
        (
            mirror(json!({ "snapshot": { "resources": { "requests": { "memory": "2Gi" }, "limits": { "memory": "2000Mi" } } } })),
            "requests.memory is more than limits.memory",
        ),
        (
            mirror(json!({ "replication": { "resources": { "requests": { "cpu": "2" }, "limits": { "cpu": "1999m" } } } })),
            "requests.cpu is more than limits.cpu",
        ),
        (
            mirror(
                json!({ "snapshot": { "resources": { "requests": { "ephemeral-storage": "1Gi" }, "limits": { "ephemeral-storage": "1G" } } } }),
            ),
            "requests.ephemeral-storage is more than limits.ephemeral-storage",
        ),
        (mirror(json!({ "pods": { "tolerations": [{ "value": "x" }] } })), "without key operator must be Exists"),
        (mirror(json!({ "pods": { "tolerations": [{ "key": "a", "operator": "Exists", "value": "x" }] } })), "operator Equal"),
        (mirror(json!({ "pods": { "tolerations": [{ "key": "a", "tolerationSeconds": 5 }] } })), "effect NoExecute"),
        (mirror(json!({ "pods": { "nodeSelector": { "disk": "no label" } } })), "should match"),
        (world.mirror(&"m".repeat(37), &["public.t"], json!({})), "36 characters"),
        (world.mirror("1m", &["public.t"], json!({})), "begin with a letter"),
        (world.mirror("a.b", &["public.t"], json!({})), "hold no dot"),
    ];
    for (manifest, words) in table {
        refused(&world, manifest, words).await;
    }
    let least = json!({ "chunkSize": "64Ki", "partitionSize": "1Mi", "resources": { "requests": { "ephemeral-storage": "1Gi" }, "limits": { "ephemeral-storage": "1024Mi" } } });
    world.apply(mirror(json!({ "suspend": true, "snapshot": least }))).await.expect("a Mirror");
    refused(&world, mirror(json!({ "source": { "peer": "elsewhere" } })), "source.peer cannot be changed").await;
    refused(&world, mirror(json!({ "destination": { "peer": "elsewhere" } })), "destination.peer cannot be changed").await;
    world.end().await;
}

#[tokio::test]
async fn a_resync_is_fixed_but_for_its_parallelism_and_its_approval() {
    let world = World::new("resync-rules").await;
    refused(&world, world.resync("r.1", "m", json!({})), "may not hold a dot").await;
    refused(&world, world.resync(&"r".repeat(49), "m", json!({})), "48 characters").await;
    refused(&world, world.resync("r", "m", json!({ "handover": "Sideways" })), "supported values").await;
    refused(&world, world.resync("r", "m", json!({ "tables": ["public.t"] })), "tables needs handover: Live").await;
    refused(&world, world.resync("r", "m", json!({ "handover": "Live", "tables": ["a.b", "a.b"] })), "duplicate").await;
    for (snapshot, words) in [
        (json!({ "chunkSize": "1k" }), "must be at least 64Ki"),
        (json!({ "partitionSize": "1M" }), "must be at least 1Mi"),
        (
            json!({ "resources": { "requests": { "memory": "1Gi" }, "limits": { "memory": "1G" } } }),
            "requests.memory is more than limits.memory",
        ),
    ] {
        refused(&world, world.resync("r", "m", json!({ "snapshot": snapshot })), words).await;
    }
    world.apply(world.resync("some", "nobody", json!({ "handover": "Live", "tables": ["a.b"] }))).await.expect("a resync");
    refused(&world, world.resync("some", "nobody", json!({ "handover": "Live", "tables": ["a.b", "a.c"] })), "tables cannot be changed")
        .await;
    world.apply(world.resync("r", "nobody", json!({ "cancel": true }))).await.expect("a resync");
    refused(&world, world.resync("r", "other", json!({ "cancel": true })), "mirror cannot be changed").await;
    refused(&world, world.resync("r", "nobody", json!({ "cancel": false })), "cannot be taken up again").await;

    let sized = |more: Value| {
        let mut snapshot = json!({ "chunkSize": "1Mi", "maxParallelWorkers": 2 });
        snapshot.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.resync("fixed", "nobody", json!({ "snapshot": snapshot, "keepOld": "1h" }))
    };
    let with = |field: &str, value: Value| {
        let mut changed = sized(json!({}));
        changed["spec"][field] = value;
        changed
    };
    world.apply(sized(json!({}))).await.expect("a resync");
    world.apply(sized(json!({ "maxParallelWorkers": 3 }))).await.expect("its parallelism");
    world.apply(with("swap", json!({ "approval": "Manual", "approved": true }))).await.expect("its approval");
    // Once it has begun it cannot: tests/e2e/verify.rs.
    world.apply(with("verification", json!("RowCount"))).await.expect("its verification, before it has begun");
    let resources = json!({ "resources": { "limits": { "cpu": "2" } } });
    for more in [json!({ "chunkSize": "2Mi" }), json!({ "partitionSize": "64Mi" }), json!({ "maxBytesPerSecond": "1Mi" }), resources] {
        refused(&world, sized(more), "only maxParallelWorkers can be changed").await;
    }
    let table = [
        (with("carry", json!({ "missing": false })), "carry and keepOld cannot be changed"),
        (with("dryRun", json!(true)), "dryRun cannot be changed"),
        (with("handover", json!("Live")), "handover cannot be changed"),
        (with("keepOld", json!("2h")), "carry and keepOld cannot be changed"),
        (with("swap", json!({ "oldSnapshotWait": "1s" })), "swap.onOldSnapshot cannot be changed"),
        (with("swap", json!({ "onOldSnapshot": "Fail" })), "swap.onOldSnapshot cannot be changed"),
    ];
    for (manifest, words) in table {
        refused(&world, manifest, words).await;
    }
    world.end().await;
}

#[tokio::test]
async fn a_resync_of_a_missing_mirror_waits_says_so_and_can_be_deleted() {
    let world = World::new("no-mirror").await;
    world.apply(world.resync("lost", "nobody", json!({}))).await.expect("a resync");
    world.says("lost", "does not exist").await;
    world.event("lost", "MirrorMissing").await;
    world.api::<MirrorResync>().delete("lost", &Default::default()).await.expect("deleted");
    world.gone::<MirrorResync>("lost").await;
    world.end().await;
}
