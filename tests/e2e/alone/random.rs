//! Whatever dies, whenever.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use mirror_operator::api::{MirrorResync, resync::Phase};
use proptest::{
    prelude::Rng,
    test_runner::{RngAlgorithm, TestRng},
};
use serde_json::json;

use super::operator::kill_operators;
use crate::{
    failures::{equal, wide},
    world::{LIMIT, World, connect, until},
};

/// What can die. Sessions are cut by the server, the operator's pod is removed, other containers are killed as the kernel's OOM killer would.
const VICTIMS: [&str; 6] = ["operator", "pipeline", "snapshot", "swap", "sessions at the source", "sessions at the destination"];

/// Kills of one resync: enough to meet every phase, few enough that back-offs end.
const KILLS: usize = 6;

/// Back-offs of Jobs, of a container that keeps dying and of the lease can follow each other.
const PATIENCE: Duration = Duration::from_secs(300);

/// Kills a victim. Returns whether there was one just now.
async fn kill(world: &World, victim: &str) -> bool {
    match victim {
        "operator" => kill_operators(world).await > 0,
        "sessions at the source" => cut(&world.source).await > 0,
        "sessions at the destination" => cut(&world.destination).await > 0,
        component => world.kill(component).await > 0,
    }
}

async fn cut(at: &tokio_postgres::Client) -> usize {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'mo %'";
    at.query(sql, &[]).await.expect("sessions are cut").len()
}

/// Writes until it is told to stop, in transactions over both tables.
async fn write(database: String, stop: Arc<AtomicBool>) -> u32 {
    let writer = connect("SOURCE", &database).await;
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let sql = format!(
            "BEGIN; INSERT INTO wide VALUES ({}, 'new', ''); UPDATE wide SET a = a || '.' WHERE id % 1000 = {round} % 1000;
             DELETE FROM wide WHERE id = {round}; INSERT INTO small VALUES ({}); COMMIT",
            1_000_000 + round,
            1_000 + round
        );
        writer.batch_execute(&sql).await.expect("the source takes writes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    round
}

async fn phase(world: &World, resync: &str) -> Phase {
    let resync: MirrorResync = world.get(resync).await;
    resync.status.map(|s| s.phase).unwrap_or_default()
}

#[tokio::test]
async fn whatever_is_killed_at_random_nothing_is_lost_and_nothing_doubled() {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let seed = std::env::var("SEED").map_or_else(|_| now(), |seed| seed.parse().expect("SEED is a number"));
    println!("SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);

    let world = wide(World::alone("random").await, 60_000).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(world.database().to_string(), Arc::clone(&stop)));
    let load = json!({ "snapshot": { "chunkSize": "512Ki", "maxBytesPerSecond": "2Mi", "maxParallelWorkers": 2 } });
    for round in 0..2 {
        let name = format!("round-{round}");
        world.apply(world.resync(&name, "m", load.clone())).await.unwrap();
        let begun = Instant::now();
        let mut killed = 0;
        while killed < KILLS {
            tokio::time::sleep(Duration::from_millis(u64::from(random.next_u32()) % 2_500)).await;
            let at = phase(&world, &name).await;
            if at.is_end() {
                break;
            }
            let first = random.next_u32() as usize;
            for victim in (0..VICTIMS.len()).map(|i| VICTIMS[(first + i) % VICTIMS.len()]) {
                if kill(&world, victim).await {
                    println!("{name}, {:.1} s, {at:?}: {victim}", begun.elapsed().as_secs_f64());
                    break;
                }
            }
            killed += 1;
        }
        world.phase_within(&name, Phase::Running, PATIENCE).await;
        println!("{name} took {:.1} s", begun.elapsed().as_secs_f64());
    }
    stop.store(true, Ordering::Relaxed);
    assert!(writer.await.expect("the writer wrote") > 0);
    equal(&world).await;
    let sql = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
    until("old tables and shadows are gone", LIMIT, || async {
        let tables: i64 = world.destination.query_one(sql, &[]).await.map_err(|e| e.to_string())?.get(0);
        if tables == 2 { Ok(()) } else { Err(format!("{:?}", world.tables("public").await)) }
    })
    .await;
    world.end().await;
}
