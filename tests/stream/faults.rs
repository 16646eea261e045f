//! Whatever dies, every change is applied once.

use std::time::Duration;

use mirror_operator::{
    postgres::{Lsn, wire::ReplicationSession},
    stream::Ended,
};

use crate::{
    support::until,
    world::{Options, Running, World},
};

/// Enough randomness for a test, the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

const TABLES: &str = "CREATE TABLE acc (id int PRIMARY KEY, v int, big text); ALTER TABLE acc ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE log (n int, t text); ALTER TABLE log REPLICA IDENTITY FULL";

/// A transaction that leaves traces wherever it is applied twice or not at all.
fn transaction(dice: &mut Dice) -> String {
    let mut sql = String::from("BEGIN;");
    for _ in 0..=dice.roll(6) {
        let (id, other) = (dice.roll(40), dice.roll(40));
        sql += &match dice.roll(7) {
            0 | 1 => format!(
                "INSERT INTO public.acc VALUES ({id}, 0, repeat(md5('{other}'), 200)) ON CONFLICT (id) DO UPDATE SET v = acc.v + 1;"
            ),
            2 => format!("UPDATE public.acc SET v = v + 1 WHERE id = {id};"),
            3 => format!("UPDATE public.acc SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM public.acc WHERE id = {other});"),
            4 => format!("DELETE FROM public.acc WHERE id = {id};"),
            5 => format!("INSERT INTO public.log VALUES ({}, 'x'), (0, 'same');", other % 5),
            _ => format!("DELETE FROM public.log WHERE ctid = (SELECT ctid FROM public.log WHERE n = {} LIMIT 1);", id % 5),
        };
    }
    sql + "COMMIT"
}

async fn kill_at_random(name: &str, soft: bool, rounds: usize) {
    let world = World::with(name, &["acc", "log"], TABLES, Options { soft, excluded: vec![] }).await;
    let mut dice = Dice(42);
    let mut running = world.run();
    for _ in 0..rounds {
        for _ in 0..=dice.roll(10) {
            world.sql(&transaction(&mut dice)).await;
        }
        tokio::time::sleep(Duration::from_millis(dice.roll(60))).await;
        let end = |role: &str| {
            format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{}'",
                world.brief.application_name(role)
            )
        };
        match dice.roll(4) {
            0 => world.destination.batch_execute(&end("apply")).await.unwrap(),
            1 => world.sql(&end("stream")).await,
            _ => {
                // As with a pod: what it had sent may still be at work.
                drop(running);
                running = world.run();
            }
        }
    }
    world.settle(&running).await;
    assert!(world.same("acc").await > 0);
    world.same("log").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_applied_exactly_once_whoever_dies() {
    kill_at_random("kill_soft", true, 40).await;
    kill_at_random("kill_hard", false, 40).await;
}

async fn ended(running: Running) -> Ended {
    let mut running = running;
    tokio::time::timeout(Duration::from_secs(30), &mut running.task).await.expect("it goes on").unwrap()
}

#[tokio::test]
async fn of_two_pipelines_the_second_wins() {
    let world = World::new("two", &["acc", "log"], TABLES).await;
    let process = world.process();
    let first = world.run_in(process.clone());
    world.sql("INSERT INTO public.acc VALUES (1)").await;
    world.settle(&first).await;
    let second = world.run();
    until("the second is connected", async || second.health.borrow().stream.connected).await;
    world.sql("INSERT INTO public.acc VALUES (2)").await;
    world.settle(&second).await;
    assert_eq!(ended(first).await, Ended::Displaced);
    assert_eq!(ended(world.run_in(process)).await, Ended::Displaced, "it does not take the stream back");
    world.sql("INSERT INTO public.acc VALUES (3)").await;
    world.settle(&second).await;
    assert_eq!(world.same("acc").await, 3);
}

#[tokio::test]
async fn an_epoch_that_is_over_applies_nothing() {
    let world = World::new("over", &["acc", "log"], TABLES).await;
    let running = world.run();
    world.sql("INSERT INTO public.acc VALUES (1)").await;
    world.settle(&running).await;
    world.destination.batch_execute("UPDATE _mirror_operator.mirror SET epoch = 2").await.unwrap();
    world.sql("INSERT INTO public.acc VALUES (2)").await;
    assert_eq!(ended(running).await, Ended::Superseded(2));
    assert_eq!(ended(world.run()).await, Ended::Superseded(2));
    assert_eq!(world.at_destination("SELECT count(*)::text FROM public.acc").await, "1");
}

#[tokio::test]
async fn a_lost_slot_is_told_and_does_not_end_the_process() {
    let world = World::new("lost", &["acc", "log"], TABLES).await;
    world.sql(&format!("SELECT pg_drop_replication_slot('{}')", world.brief.slot())).await;
    let running = world.run();
    until("the loss is told", async || {
        let health = running.health.borrow().clone();
        health.stream.slot_lost.is_some()
            && health.failure.is_some_and(|f| f.reason == "SlotLost" && f.message.contains("apply a MirrorResync"))
    })
    .await;
    assert!(!running.task.is_finished());
}

#[tokio::test]
async fn a_destination_that_went_back_in_time_is_told_and_nothing_is_passed_over() {
    let world = World::new("back", &["acc", "log"], TABLES).await;
    let before = world.at_destination("SELECT start_lsn::text FROM _mirror_operator.epoch").await;
    let running = world.run();
    world.sql("INSERT INTO public.acc VALUES (1)").await;
    world.settle(&running).await;
    let confirmed =
        format!("SELECT (confirmed_flush_lsn > '{before}')::text FROM pg_replication_slots WHERE slot_name = '{}'", world.brief.slot());
    until("the slot has moved", async || crate::support::value(&world.source, &confirmed).await == "true").await;
    drop(running);
    // As a restore of a backup, or a failover to a standby that lagged, would have it.
    world.destination.batch_execute("DELETE FROM public.acc; UPDATE _mirror_operator.epoch SET applied_lsn = NULL").await.unwrap();
    world.sql("INSERT INTO public.acc VALUES (2)").await;
    let running = world.run();
    until("the loss is told", async || {
        let health = running.health.borrow().clone();
        health.stream.slot_lost.is_some_and(|lost| lost.contains("went back in time") && lost.contains(&before))
            && health.failure.is_some_and(|f| f.reason == "SlotLost" && f.permanent && f.message.contains("apply a MirrorResync"))
    })
    .await;
    // Whoever watches the slot, which is well, does not take that back.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(running.health.borrow().stream.slot_lost.is_some());
    assert_eq!(world.at_destination("SELECT count(*)::text FROM public.acc").await, "0");
}

#[tokio::test]
async fn the_slot_is_told_of_nothing_that_the_ledger_does_not_hold() {
    let world = World::new("durable", &["acc"], "CREATE TABLE acc (id int PRIMARY KEY); CREATE TABLE other (id int)").await;
    let running = world.run();
    world.sql("INSERT INTO public.acc VALUES (1)").await;
    world.settle(&running).await;
    for n in 0..30 {
        // Nothing of this is the mirror's: the stream is idle and reads on.
        world.sql(&format!("INSERT INTO public.other SELECT generate_series(1, {})", n + 1)).await;
        let confirmed = format!("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{}'", world.brief.slot());
        let confirmed = crate::support::value(&world.source, &confirmed).await;
        let ahead = format!("SELECT (coalesce(applied_lsn, start_lsn) < '{confirmed}')::text FROM _mirror_operator.epoch");
        assert_eq!(world.at_destination(&ahead).await, "false");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.settle(&running).await;
}

#[tokio::test]
async fn a_slot_that_somebody_else_reads_from_is_told_and_taken_once_it_is_free() {
    let world = World::new("in_use", &["acc", "log"], TABLES).await;
    let session = ReplicationSession::connect(&world.brief.source, "somebody").await.unwrap();
    let reading = session.start(&world.brief.slot(), Lsn(0), &world.brief.publication()).await.unwrap();
    let running = world.run();
    until("it is told", async || running.health.borrow().failure.as_ref().is_some_and(|f| f.reason == "SlotInUse" && !f.permanent)).await;
    drop(reading);
    world.sql("INSERT INTO public.acc VALUES (1)").await;
    world.settle(&running).await;
    assert_eq!(world.same("acc").await, 1);
    assert_eq!(running.health.borrow().failure, None);
}
