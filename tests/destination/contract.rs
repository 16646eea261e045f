//! The contract of `Destination`, method by method, for every kind.

use bytes::Bytes;
use futures::StreamExt;
use mirror_operator::{
    destination::{Destination, Error},
    table::TableSchema,
};

use crate::{
    fixture::{Fixture, boundary, for_every_kind, from_loaded, load, open, plan, table, until_loaded, whole},
    on_bigquery::OnBigQuery,
    on_clickhouse::{OnClickHouse, OnOrdinary},
    on_postgres::OnPostgres,
    on_snowflake::OnSnowflake,
};

fn orders(place: &impl Fixture) -> TableSchema {
    place.adapt(table(0, "orders", &["id bigint!", "name text", "amount numeric"]))
}

fn items(place: &impl Fixture) -> TableSchema {
    place.adapt(table(1, "items", &["id bigint!", "order_id bigint"]))
}

/// All rows of both tables.
async fn both(place: &impl Fixture) -> Vec<String> {
    let mut rows = Vec::new();
    for (table, columns) in [("items", &["id", "order_id"][..]), ("orders", &["id", "name", "amount"])] {
        rows.extend(place.read(table, columns).await.into_iter().map(|row| format!("{table}|{row}")));
    }
    rows
}

const ORDERS: &[&str] = &["1\tone\t1.5", "2\ttwo\t\\N"];
const ITEMS: &[&str] = &["10\t1", "11\t2", "12\t2"];
const EXPECTED: &[&str] = &["items|10|1|f", "items|11|2|f", "items|12|2|f", "orders|1|one|1.5|f", "orders|2|two|∅|f"];

async fn an_epoch_goes_from_nothing_to_live_tables<F: Fixture>() {
    let place = F::new().await;
    let at = open(&place.brief(1)).await;
    assert_eq!(at.preflight(&[orders(&place), items(&place)]).await.unwrap(), vec![]);
    assert_eq!(at.state().await.unwrap(), None);
    assert_eq!(at.swapped().await.unwrap(), None);
    until_loaded(&*at, &[(orders(&place), ORDERS), (items(&place), ITEMS)]).await;
    assert!(!at.state().await.unwrap().unwrap().loaded);
    assert_eq!(at.pending(0).await.unwrap(), vec![]);
    let (progress, _) = at.progress().await.unwrap();
    assert_eq!((progress.partitions, progress.partitions_loaded, progress.rows), (1, 1, 5));
    let report = from_loaded(&*at).await.unwrap();
    assert_eq!(both(&place).await, EXPECTED);
    let state = at.state().await.unwrap().unwrap();
    assert!(state.loaded && state.swapped);
    assert_eq!((state.generation, state.start_lsn, state.applied_lsn), (1, boundary(1).lsn, boundary(1).lsn));
    assert_eq!(at.swapped().await.unwrap(), Some(report));
    assert!(at.tables().await.unwrap().iter().all(|t| t.sealed && t.parked.is_none() && t.gate == boundary(1).lsn));
}

async fn every_method_may_be_called_twice<F: Fixture>() {
    let place = F::new().await;
    let at = open(&place.brief(1)).await;
    for _ in 0..2 {
        at.begin().await.unwrap();
    }
    for _ in 0..2 {
        at.create_shadows(boundary(1), &[orders(&place), items(&place)], &plan(&[1, 1])).await.unwrap();
    }
    for _ in 0..2 {
        assert_eq!(load(&*at, &orders(&place), 0, ORDERS).await.unwrap().rows, 2);
        assert_eq!(load(&*at, &items(&place), 1, ITEMS).await.unwrap().rows, 3);
    }
    let mut reports = Vec::new();
    for _ in 0..2 {
        at.renew_snapshot(boundary(1)).await.unwrap();
        at.seal().await.unwrap();
        at.carry().await.unwrap();
    }
    for _ in 0..2 {
        reports.push(at.swap().await.unwrap());
        at.abandon().await.unwrap();
        at.drop_retired().await.unwrap();
        at.seal().await.unwrap();
        at.carry().await.unwrap();
    }
    assert_eq!(reports[0], reports[1]);
    assert_eq!(both(&place).await, EXPECTED);
    for _ in 0..2 {
        at.forget(true).await.unwrap();
    }
    assert_eq!(place.tables().await, Vec::<String>::new());
}

async fn a_resync_replaces_the_tables_and_drops_the_old_ones<F: Fixture>() {
    let place = F::new().await;
    whole(&*open(&place.brief(1)).await, &[(orders(&place), &["7\tgone\t1"]), (items(&place), &[])]).await;
    let mut brief = place.brief(2);
    (brief.carry.soft_deleted, brief.carry.missing) = (false, false);
    let at = open(&brief).await;
    assert_eq!(at.preflight(&[orders(&place), items(&place)]).await.unwrap(), vec![]);
    whole(&*at, &[(orders(&place), ORDERS), (items(&place), ITEMS)]).await;
    assert_eq!(both(&place).await, EXPECTED);
    assert_eq!(place.read("orders_old", &["id"]).await, ["7|f"]);
    at.drop_retired().await.unwrap();
    assert_eq!(place.tables().await, ["items", "orders"]);
    assert_eq!(place.epochs().await, [2]);
}

async fn a_newer_epoch_fences_every_writer_of_an_older_one<F: Fixture>() {
    let place = F::new().await;
    let old = open(&place.brief(1)).await;
    until_loaded(&*old, &[(orders(&place), ORDERS)]).await;
    let new = open(&place.brief(2)).await;
    new.begin().await.unwrap();
    let superseded = |outcome: Result<(), Error>| assert!(matches!(outcome, Err(Error::Superseded(2))), "{outcome:?}");
    superseded(old.begin().await);
    superseded(old.create_shadows(boundary(1), &[orders(&place)], &plan(&[1])).await);
    superseded(old.renew_snapshot(boundary(2)).await);
    superseded(load(&*old, &orders(&place), 0, ORDERS).await.map(drop));
    superseded(old.seal().await);
    superseded(old.abandon().await);
    assert_eq!(old.state().await.unwrap().unwrap().newest_epoch, 2);
    // The newer one replaces the shadow that the older one left behind.
    whole(&*new, &[(orders(&place), ORDERS)]).await;
    assert_eq!(place.read("orders", &["id"]).await.len(), 2);
}

async fn a_loader_that_hangs_in_an_older_epoch_does_not_hold_up_a_newer_one<F: Fixture>() {
    let place = F::new().await;
    let old = open(&place.brief(1)).await;
    old.begin().await.unwrap();
    old.create_shadows(boundary(1), &[orders(&place)], &plan(&[1])).await.unwrap();
    let schema = orders(&place);
    let hanging = tokio::spawn(async move { old.load_chunk(&schema, &plan(&[1]).chunks[0], 1, futures::stream::pending().boxed()).await });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    open(&place.brief(2)).await.begin().await.unwrap();
    hanging.abort();
}

async fn two_workers_with_the_same_chunk_load_it_once<F: Fixture>() {
    let place = F::new().await;
    let (one, two) = (open(&place.brief(1)).await, open(&place.brief(1)).await);
    one.begin().await.unwrap();
    one.create_shadows(boundary(1), &[orders(&place)], &plan(&[1])).await.unwrap();
    let schema = orders(&place);
    let (a, b) = tokio::join!(load(&*one, &schema, 0, ORDERS), load(&*two, &schema, 0, ORDERS));
    assert_eq!((a.unwrap().rows, b.unwrap().rows), (2, 2));
    assert_eq!(place.count(&place.shadow("orders")).await, 2);
}

async fn a_source_that_fails_in_mid_chunk_leaves_nothing_of_it<F: Fixture>() {
    let place = F::new().await;
    let at = open(&place.brief(1)).await;
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), &[orders(&place)], &plan(&[1])).await.unwrap();
    let pieces = vec![Ok(Bytes::from_static(b"1\tone\t1\n")), Err("the source is gone".to_string())];
    let outcome = at.load_chunk(&orders(&place), &plan(&[1]).chunks[0], 1, futures::stream::iter(pieces).boxed()).await;
    assert!(matches!(&outcome, Err(Error::Source(why)) if why == "the source is gone"), "{outcome:?}");
    assert_eq!(at.pending(0).await.unwrap().len(), 1);
    load(&*at, &orders(&place), 0, ORDERS).await.unwrap();
    assert_eq!(place.count(&place.shadow("orders")).await, 2);
}

async fn a_refused_value_is_permanent_and_names_the_column_but_not_the_value<F: Fixture>() {
    let place = F::new().await;
    let at = open(&place.brief(1)).await;
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), &[orders(&place)], &plan(&[1])).await.unwrap();
    let outcome = load(&*at, &orders(&place), 0, &["1\tone\tsecret"]).await;
    let Err(Error::Permanent(failure)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.reason, "ValueRefused");
    assert!(
        failure.message.contains(&orders(&place).destination.to_string()) && failure.message.to_lowercase().contains("\"amount\""),
        "{}",
        failure.message
    );
    assert!(!failure.message.contains("secret"), "{}", failure.message);
}

async fn a_lost_snapshot_empties_incomplete_tables_only<F: Fixture>() {
    let place = F::new().await;
    let at = open(&place.brief(1)).await;
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), &[orders(&place), items(&place)], &plan(&[1, 2])).await.unwrap();
    load(&*at, &orders(&place), 0, ORDERS).await.unwrap();
    load(&*at, &items(&place), 1, ITEMS).await.unwrap();
    at.renew_snapshot(boundary(2)).await.unwrap();
    let pending: Vec<u32> = at.pending(0).await.unwrap().iter().map(|c| c.number).collect();
    assert_eq!(pending, [1, 2]);
    let stale = load(&*at, &items(&place), 1, ITEMS).await;
    assert!(matches!(stale, Err(Error::StaleSnapshot { current: 2 })), "{stale:?}");
    for chunk in 1..3 {
        let pieces: Vec<Result<Bytes, String>> = vec![Ok(Bytes::from(format!("{chunk}\t1\n")))];
        at.load_chunk(&items(&place), &plan(&[1, 2]).chunks[chunk as usize], 2, futures::stream::iter(pieces).boxed()).await.unwrap();
    }
    let gates: Vec<u64> = at.tables().await.unwrap().iter().map(|t| t.gate.0).collect();
    assert_eq!(gates, [1000, 2000]);
    from_loaded(&*at).await.unwrap();
    assert_eq!(place.read("items", &["id"]).await, ["1|f", "2|f"]);
    assert_eq!(place.read("orders", &["id"]).await, ["1|f", "2|f"]);
}

async fn an_abandoned_epoch_leaves_nothing_but_the_fence_which_keeps_its_own_pods_out_too<F: Fixture>() {
    let place = F::new().await;
    let at = open(&place.brief(2)).await;
    until_loaded(&*at, &[(orders(&place), ORDERS)]).await;
    for _ in 0..2 {
        at.abandon().await.unwrap();
    }
    assert_eq!(at.state().await.unwrap(), None);
    assert_eq!(place.tables().await, Vec::<String>::new());
    let superseded = |outcome: Result<(), Error>| assert!(matches!(outcome, Err(Error::Superseded(3))), "{outcome:?}");
    superseded(open(&place.brief(1)).await.begin().await);
    superseded(at.begin().await);
    superseded(load(&*at, &orders(&place), 0, ORDERS).await.map(drop));
    let next = open(&place.brief(3)).await;
    whole(&*next, &[(orders(&place), ORDERS)]).await;
    at.abandon().await.unwrap();
    assert_eq!(place.read("orders", &["id"]).await, ["1|f", "2|f"]);
}

async fn an_epoch_that_was_given_up_before_it_began_never_begins_and_the_live_one_streams_on<F: Fixture>() {
    let place = F::new().await;
    // Before there is a ledger there is nothing to protect.
    open(&place.brief(1)).await.abandon().await.unwrap();
    let live = open(&place.brief(1)).await;
    whole(&*live, &[(orders(&place), ORDERS)]).await;
    let mut applier = live.applier().await.unwrap();
    for _ in 0..2 {
        open(&place.brief(2)).await.abandon().await.unwrap();
    }
    // A pod of it that nobody could stop was at its checks all the while.
    let late = open(&place.brief(2)).await;
    for _ in 0..2 {
        assert_eq!(late.state().await.unwrap(), None);
        let refused = late.begin().await;
        assert!(matches!(&refused, Err(Error::Permanent(f)) if f.reason == "EpochGone"), "{refused:?}");
    }
    applier.commit(boundary(2).lsn).await.unwrap();
    live.begin().await.unwrap();
    assert_eq!(live.state().await.unwrap().unwrap().newest_epoch, 1);
    let next = open(&place.brief(3)).await;
    whole(&*next, &[(orders(&place), ORDERS)]).await;
    assert!(matches!(late.begin().await, Err(Error::Superseded(3))));
    next.forget(true).await.unwrap();
    assert_eq!(place.epochs().await, Vec::<u32>::new());
}

async fn a_mirror_whose_epochs_were_given_up_leaves_nothing_behind<F: Fixture>() {
    let place = F::new().await;
    // Another mirror has made the ledger; where that is another one, an epoch of this mirror that did not get far has.
    let mut other = place.brief(1);
    other.mirror_uid = "0a1b2c3d-0000-4000-8000-00000000000f".into();
    open(&other).await.begin().await.unwrap();
    if F::LEDGER_A_MIRROR {
        let first = open(&place.brief(1)).await;
        first.begin().await.unwrap();
        first.abandon().await.unwrap();
    }
    let at = open(&place.brief(if F::LEDGER_A_MIRROR { 2 } else { 1 })).await;
    at.abandon().await.unwrap();
    assert!(matches!(at.begin().await, Err(Error::Permanent(f)) if f.reason == "EpochGone"));
    for _ in 0..2 {
        at.forget(true).await.unwrap();
    }
    open(&other).await.forget(true).await.unwrap();
    assert_eq!(place.epochs().await, Vec::<u32>::new());
    at.begin().await.unwrap();
}

async fn a_mirror_is_forgotten_whole_whatever_its_newest_epoch_is<F: Fixture>() {
    let place = F::new().await;
    let at = open(&place.brief(1)).await;
    whole(&*at, &[(orders(&place), ORDERS)]).await;
    let failed = open(&place.brief(2)).await;
    failed.begin().await.unwrap();
    failed.abandon().await.unwrap();
    for _ in 0..2 {
        at.forget(true).await.unwrap();
    }
    assert_eq!(place.tables().await, Vec::<String>::new());
    assert_eq!(at.state().await.unwrap(), None);
}

async fn a_table_that_was_left_out_for_a_while_is_still_the_mirrors_own<F: Fixture>() {
    let place = F::new().await;
    whole(&*open(&place.brief(1)).await, &[(orders(&place), ORDERS), (items(&place), ITEMS)]).await;
    for epoch in 2..4 {
        let without = open(&place.brief(epoch)).await;
        whole(&*without, &[(orders(&place), ORDERS)]).await;
        without.drop_retired().await.unwrap();
    }
    let again = open(&place.brief(4)).await;
    assert_eq!(again.preflight(&[orders(&place), items(&place)]).await.unwrap(), vec![]);
    whole(&*again, &[(orders(&place), ORDERS), (items(&place), &["10\t1"])]).await;
    again.drop_retired().await.unwrap();
    assert_eq!(place.read("items", &["id"]).await, ["10|f", "11|t", "12|t"]);
}

/// A step of an epoch, for the tests that break it.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Step {
    Begin,
    Create,
    Renew,
    Load,
    Seal,
    Carry,
    Swap,
    DropRetired,
}

const STEPS: [Step; 8] = [Step::Begin, Step::Create, Step::Renew, Step::Load, Step::Seal, Step::Carry, Step::Swap, Step::DropRetired];

async fn step(place: &impl Fixture, at: &dyn Destination, step: Step) -> Result<(), Error> {
    match step {
        Step::Begin => at.begin().await,
        Step::Create => at.create_shadows(boundary(1), &[orders(place), items(place)], &plan(&[1, 1])).await,
        Step::Renew => at.renew_snapshot(boundary(2)).await,
        Step::Load => {
            for (chunk, (schema, lines)) in plan(&[1, 1]).chunks.iter().zip([(orders(place), ORDERS), (items(place), ITEMS)]) {
                let pieces: Vec<Result<Bytes, String>> = lines.iter().map(|line| Ok(Bytes::from(format!("{line}\n")))).collect();
                at.load_chunk(&schema, chunk, 2, futures::stream::iter(pieces).boxed()).await?;
            }
            Ok(())
        }
        Step::Seal => at.seal().await,
        Step::Carry => at.carry().await,
        Step::Swap => at.swap().await.map(drop),
        Step::DropRetired => at.drop_retired().await,
    }
}

/// Runs an epoch with the reply to the n-th request of one step lost, for every n, and again; the end is always the same. Several at once, each of every
/// so manyth n on a place of its own, as a server answers faster than one can ask it in turn. Where each request takes long, it is every so manyth n in
/// all, one after the other; which ones is another each time, so that each comes up over runs.
async fn survives_every_lost_reply_in<F: Fixture>(broken: Step) {
    let (first, at_once) = (crate::support::first(F::STRIDE as usize) as u32, if F::STRIDE == 1 { 3 } else { 1 });
    let lanes = (0..at_once).map(|lane| lose_replies::<F>(broken, (first + lane..).step_by((at_once * F::STRIDE) as usize)));
    // The places go once all lanes are done: to remove one takes this thread, and a server that waits for the others.
    let ended = futures::future::join_all(lanes).await;
    let lost: u32 = ended.iter().map(|(lost, _)| lost).sum();
    println!("{broken:?}: {lost} replies were lost, one of {}, from number {first} on", F::STRIDE);
    assert!(lost > 0, "{broken:?} asked for nothing");
}

/// Loses these replies, until there is none with that number, and returns how many, and where. It is a later epoch of its mirror each time, and finds a row that the
/// source does not have any more, except where the first request of all is to be lost.
async fn lose_replies<F: Fixture>(broken: Step, numbers: impl Iterator<Item = u32>) -> (u32, F) {
    let place = F::new().await;
    let first = broken == Step::Begin;
    let mut expected: Vec<String> = EXPECTED.iter().map(|row| row.to_string()).collect();
    if !first {
        whole(&*open(&place.brief(1)).await, &[(orders(&place), &[]), (items(&place), &[])]).await;
    }
    let mut lost = 0;
    for n in numbers {
        let epoch = if first { 2 } else { lost + 2 };
        if !first {
            place.run(&format!("INSERT INTO public.orders (id, name) VALUES ({}, 'missing')", 100 + n)).await;
            expected.push(format!("orders|{}|missing|∅|t", 100 + n));
        }
        let at = open(&place.brief(epoch)).await;
        for before in STEPS.into_iter().filter(|s| *s < broken) {
            step(&place, &*at, before).await.unwrap();
        }
        let (brief, has_cut) = place.through_cut(place.brief(epoch), n).await;
        let outcome = step(&place, &*open(&brief).await, broken).await;
        let cut = has_cut();
        assert!(outcome.is_ok() || cut, "{broken:?}: {outcome:?}");
        if let Err(error) = outcome {
            assert!(matches!(error, Error::Transient(_)), "{broken:?}, request {n}: {error:?}");
        }
        for after in STEPS.into_iter().filter(|s| *s >= broken) {
            step(&place, &*at, after).await.unwrap_or_else(|e| panic!("{after:?} after {broken:?} was cut at request {n}: {e}"));
        }
        assert_eq!(both(&place).await, expected, "{broken:?} cut at request {n}");
        assert_eq!(place.tables().await, ["items", "orders"], "{broken:?} cut at request {n}");
        if first {
            at.forget(true).await.unwrap();
            place.forget_ledger().await;
        }
        if !cut {
            break;
        }
        lost += 1;
    }
    (lost, place)
}

async fn begin_survives_every_lost_reply<F: Fixture>() {
    survives_every_lost_reply_in::<F>(Step::Begin).await;
}

async fn create_shadows_survives_every_lost_reply<F: Fixture>() {
    survives_every_lost_reply_in::<F>(Step::Create).await;
}

async fn renew_snapshot_survives_every_lost_reply<F: Fixture>() {
    survives_every_lost_reply_in::<F>(Step::Renew).await;
}

async fn load_chunk_survives_every_lost_reply<F: Fixture>() {
    survives_every_lost_reply_in::<F>(Step::Load).await;
}

async fn seal_survives_every_lost_reply<F: Fixture>() {
    survives_every_lost_reply_in::<F>(Step::Seal).await;
}

async fn carry_survives_every_lost_reply<F: Fixture>() {
    survives_every_lost_reply_in::<F>(Step::Carry).await;
}

async fn swap_survives_every_lost_reply<F: Fixture>() {
    survives_every_lost_reply_in::<F>(Step::Swap).await;
}

async fn drop_retired_survives_every_lost_reply<F: Fixture>() {
    survives_every_lost_reply_in::<F>(Step::DropRetired).await;
}

for_every_kind! {
    an_epoch_goes_from_nothing_to_live_tables;
    every_method_may_be_called_twice;
    a_resync_replaces_the_tables_and_drops_the_old_ones;
    a_newer_epoch_fences_every_writer_of_an_older_one;
    a_loader_that_hangs_in_an_older_epoch_does_not_hold_up_a_newer_one;
    two_workers_with_the_same_chunk_load_it_once;
    a_source_that_fails_in_mid_chunk_leaves_nothing_of_it;
    a_refused_value_is_permanent_and_names_the_column_but_not_the_value;
    a_lost_snapshot_empties_incomplete_tables_only;
    an_abandoned_epoch_leaves_nothing_but_the_fence_which_keeps_its_own_pods_out_too;
    an_epoch_that_was_given_up_before_it_began_never_begins_and_the_live_one_streams_on;
    a_mirror_whose_epochs_were_given_up_leaves_nothing_behind;
    a_mirror_is_forgotten_whole_whatever_its_newest_epoch_is;
    a_table_that_was_left_out_for_a_while_is_still_the_mirrors_own;
    begin_survives_every_lost_reply;
    create_shadows_survives_every_lost_reply;
    renew_snapshot_survives_every_lost_reply;
    load_chunk_survives_every_lost_reply;
    seal_survives_every_lost_reply;
    carry_survives_every_lost_reply;
    swap_survives_every_lost_reply;
    drop_retired_survives_every_lost_reply;
}

mod on_a_clickhouse_server_that_cannot_exchange_tables {
    use super::OnOrdinary;

    #[tokio::test(flavor = "multi_thread")]
    async fn every_method_may_be_called_twice() {
        super::every_method_may_be_called_twice::<OnOrdinary>().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn swap_survives_every_lost_reply() {
        super::swap_survives_every_lost_reply::<OnOrdinary>().await;
    }
}
