//! The live handover: the old pipeline streams until the swap.

use mirror_operator::api::{
    Mirror, MirrorResync, condition,
    mirror::MirrorPhase,
    resync::{Outcome, Phase},
};
use serde_json::json;

use crate::{
    life::{both_equal, shop},
    world::{LIMIT, World, message, until},
};

/// Inserts a customer at the source and waits until the live table has it.
async fn arrives(world: &World, email: &str) {
    world.source.batch_execute(&format!("INSERT INTO customers (email) VALUES ('{email}')")).await.unwrap();
    until("the change is in the live table", LIMIT, || async {
        let sql = "SELECT count(*) FROM customers WHERE email = $1";
        match world.destination.query_one(sql, &[&email]).await.unwrap().get::<_, i64>(0) {
            1 => Ok(()),
            rows => Err(format!("{rows} rows")),
        }
    })
    .await;
}

async fn one_slot(world: &World) {
    until("the other slot is gone", LIMIT, || async {
        let slots = world.slots().await;
        if slots.len() == 1 { Ok(()) } else { Err(format!("{slots:?}")) }
    })
    .await;
}

fn streams(mirror: &Mirror) -> bool {
    let status = mirror.status.clone().unwrap_or_default();
    status.phase == MirrorPhase::Running && condition::holds(&status.conditions, "Ready")
}

#[tokio::test]
async fn with_a_live_handover_the_old_tables_are_fresh_until_the_new_ones_take_their_names() {
    let world = shop(World::new("live").await).await;
    world
        .source
        .batch_execute("DELETE FROM orders WHERE id <= 10; ALTER TABLE orders ALTER COLUMN total TYPE numeric(20,4)")
        .await
        .unwrap();
    let live =
        |approved| world.resync("again", "shop", json!({ "handover": "Live", "swap": { "approval": "Manual", "approved": approved } }));
    world.apply(live(false)).await.unwrap();
    world.says("again", "approved").await;
    assert_eq!(world.slots().await.len(), 2);
    assert_eq!(world.tables("public").await, ["customers", "customers_resync", "orders", "orders_resync"]);
    let mirror: Mirror = world.get("shop").await;
    assert!(streams(&mirror), "{:?}", mirror.status);
    arrives(&world, "while-it-waits@example.com").await;
    // Neither pod is missed for long.
    assert_eq!(world.kill("pipeline").await, 2);
    arrives(&world, "after-a-kill@example.com").await;
    world.apply(live(true)).await.unwrap();
    let status = world.phase("again", Phase::Running).await.status.unwrap();
    assert!(condition::holds(&status.conditions, "CaughtUp"), "{:?}", status.conditions);
    assert_eq!(status.tables.iter().map(|t| t.soft_deleted_carried).sum::<i64>(), 10, "{:?}", status.tables);
    both_equal(&world).await;
    arrives(&world, "after-the-swap@example.com").await;
    one_slot(&world).await;
    until("the old pipeline is gone", LIMIT, || async {
        let pods = world.pods("pipeline").await;
        if pods.len() == 1 { Ok(()) } else { Err(format!("{} pods", pods.len())) }
    })
    .await;
    let mirror: Mirror = world.get("shop").await;
    assert_eq!(mirror.status.unwrap().resyncs[0].outcome, Outcome::Succeeded);
    world.end().await;
}

#[tokio::test]
async fn a_live_handover_that_is_cancelled_was_never_noticed() {
    let world = shop(World::new("live-cancel").await).await;
    let manual = json!({ "handover": "Live", "swap": { "approval": "Manual" } });
    world.apply(world.resync("doomed", "shop", manual)).await.unwrap();
    world.says("doomed", "approved").await;
    world.api::<MirrorResync>().delete("doomed", &Default::default()).await.unwrap();
    world.gone::<MirrorResync>("doomed").await;
    assert_eq!(world.tables("public").await, ["customers", "orders"]);
    one_slot(&world).await;
    arrives(&world, "after-the-cancel@example.com").await;
    let mirror = world.ready("shop").await;
    assert_eq!(mirror.status.unwrap().live_epoch, 1);
    let changed = world.apply(world.resync("again", "shop", json!({ "handover": "Live" }))).await;
    assert!(changed.is_ok(), "{changed:?}");
    world.phase("again", Phase::Running).await;
    let refused = world.apply(world.resync("again", "shop", json!({ "handover": "DropFirst" }))).await.unwrap_err();
    assert!(refused.contains("handover cannot be changed"), "{refused}");
    both_equal(&world).await;
    world.end().await;
}

#[tokio::test]
async fn some_tables_are_rebuilt_and_a_new_one_loaded_while_the_others_stay() {
    let world = shop(World::new("some").await).await;
    world
        .source
        .batch_execute("CREATE TABLE items (id int PRIMARY KEY, n int); INSERT INTO items SELECT g, g FROM generate_series(1, 500) g")
        .await
        .unwrap();
    let oid = "SELECT 'customers'::regclass::oid::bigint";
    let before: i64 = world.destination.query_one(oid, &[]).await.unwrap().get(0);
    let two = world.resync("again", "shop", json!({ "handover": "Live", "tables": ["public.orders", "public.items"] }));
    let unknown = world.resync("unknown", "shop", json!({ "handover": "Live", "tables": ["public.items"] }));
    world.apply(unknown).await.unwrap();
    let failed = world.phase("unknown", Phase::Failed).await;
    assert!(message(&failed).contains("The Mirror has no table \"public.items\""), "{failed:?}");
    world.apply(world.mirror("shop", &["public.customers", "public.items", "public.orders"], json!({}))).await.unwrap();
    world.apply(two).await.unwrap();
    let status = world.phase("again", Phase::Running).await.status.unwrap();
    let loaded: Vec<_> = status.tables.iter().map(|t| (t.source.as_str(), t.rows_loaded)).collect();
    assert_eq!(loaded, [("public.orders", 10_000), ("public.items", 500)]);
    assert_eq!(world.destination.query_one(oid, &[]).await.unwrap().get::<_, i64>(0), before, "the very table");
    world
        .source
        .batch_execute("UPDATE items SET n = 0 WHERE id < 9; UPDATE orders SET total = 1 WHERE id < 9; DELETE FROM orders WHERE id = 9")
        .await
        .unwrap();
    arrives(&world, "kept@example.com").await;
    both_equal(&world).await;
    world.equal("items", "id, n").await;
    one_slot(&world).await;
    let mirror = world.condition("shop", "SchemaInSync", "True", LIMIT).await;
    assert_eq!(mirror.status.unwrap().live_epoch, 3);
    world.apply(world.resync("all", "shop", json!({}))).await.unwrap();
    world.phase("all", Phase::Running).await;
    both_equal(&world).await;
    world.end().await;
}
