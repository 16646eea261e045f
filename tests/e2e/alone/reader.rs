//! A reader who looks all the while, and for how long he is kept waiting.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mirror_operator::api::{
    Mirror,
    resync::{Outcome, Phase},
};
use serde_json::json;

use crate::{
    life::{both_equal, shop},
    world::{LIMIT, World, connect},
};

/// A reader of the live tables that asks every millisecond and remembers what a user would complain about.
struct Reader {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Seen>,
}

/// What it saw.
#[derive(Default)]
struct Seen {
    longest: Duration,
    complaints: Vec<String>,
    reads: u64,
    /// Of each statement, which table bore the one name and which the other: a resync replaces both, so each occurs in one pair only.
    pairs: BTreeSet<(u32, u32)>,
}

/// One statement over both tables, whichever generation of them is read; NULL for an empty one.
const BOTH: &str = "SELECT (SELECT tableoid FROM customers LIMIT 1), (SELECT tableoid FROM orders LIMIT 1)";

impl Reader {
    async fn start(database: &str) -> Self {
        let client = connect("DESTINATION", database).await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut seen = Seen::default();
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                match client.query_one(BOTH, &[]).await.map(|row| (row.get(0), row.get(1))) {
                    Ok((Some(customers), Some(orders))) => drop(seen.pairs.insert((customers, orders))),
                    Ok((customers, orders)) => seen.complaints.push(format!("an empty table: {customers:?}, {orders:?}")),
                    Err(error) => seen.complaints.push(error.to_string()),
                }
                seen.longest = seen.longest.max(asked.elapsed());
                seen.reads += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            seen
        });
        Self { stop, task }
    }

    async fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the reader")
    }
}

#[tokio::test]
async fn a_resync_picks_up_a_changed_schema_and_readers_never_notice() {
    let world = shop(World::alone("resync").await).await;
    world.source.batch_execute("DELETE FROM orders WHERE id % 10 = 0").await.unwrap();
    both_equal(&world).await;
    let deleted_at: String = world
        .destination
        .query_one("SELECT max(\"_PEERDB_SYNCED_AT\")::text FROM orders WHERE \"_PEERDB_IS_DELETED\"", &[])
        .await
        .unwrap()
        .get(0);
    world.destination.batch_execute("CREATE INDEX by_total ON orders (total); CREATE VIEW big AS SELECT id FROM orders WHERE total > 100; COMMENT ON TABLE orders IS 'kept'; DROP ROLE IF EXISTS resync_reader; CREATE ROLE resync_reader; GRANT SELECT ON orders TO resync_reader").await.unwrap();
    world.source.batch_execute("ALTER TABLE orders ALTER at TYPE text; ALTER TABLE customers RENAME note TO remark").await.unwrap();
    world.condition("shop", "SchemaInSync", "True", LIMIT).await;
    let reader = Reader::start(world.database()).await;
    for round in ["first", "second"] {
        world.apply(world.resync(round, "shop", json!({}))).await.unwrap();
        let ended = world.phase(round, Phase::Running).await;
        let status = ended.status.unwrap();
        let orders = status.tables.iter().find(|t| t.source == "public.orders").unwrap();
        assert_eq!((orders.soft_deleted_carried, orders.missing_carried), (1000, 0), "{round}");
        assert!(status.completion_time.is_some() && status.swap.unwrap().lock_millis < 500, "{round}");
    }
    let Seen { longest, complaints, reads, pairs } = reader.end().await;
    assert!(complaints.is_empty(), "{complaints:?}");
    let generations = |of: fn(&(u32, u32)) -> u32| pairs.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!((generations(|p| p.0), generations(|p| p.1), pairs.len()), (3, 3, 3), "old and new tables in one statement: {pairs:?}");
    assert!(reads > 100 && longest < Duration::from_millis(500), "{reads} reads, the longest {longest:?}");
    world.ready("shop").await;
    world.equal("orders", "id, customer, total, at").await;
    world.equal("customers", "id, email, remark").await;
    let row = world.destination.query_one("SELECT max(\"_PEERDB_SYNCED_AT\")::text, obj_description('orders'::regclass), has_table_privilege('resync_reader', 'orders', 'SELECT'), (SELECT count(*) FROM pg_indexes WHERE indexname = 'by_total' AND tablename = 'orders'), (SELECT count(*) FROM big) FROM orders WHERE \"_PEERDB_IS_DELETED\"", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), deleted_at, "carried rows keep their time");
    assert_eq!((row.get::<_, Option<String>>(1).as_deref(), row.get::<_, bool>(2), row.get::<_, i64>(3)), (Some("kept"), true, 1));
    assert!(row.get::<_, i64>(4) > 1000, "the view reads the new table");
    assert_eq!(world.tables("public").await, ["customers", "orders"], "no shadow and no old table is left");
    let mirror: Mirror = world.get("shop").await;
    let status = mirror.status.unwrap();
    assert_eq!((status.live_epoch, status.resyncs.len(), status.resyncs[0].outcome), (3, 3, Outcome::Succeeded));
    assert_eq!(world.slots().await.len(), 1, "only the live epoch's slot is left");
    world.destination.batch_execute("DROP OWNED BY resync_reader; DROP ROLE resync_reader").await.unwrap();
    world.end().await;
}
