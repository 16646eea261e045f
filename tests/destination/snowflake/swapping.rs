//! What may come between the steps of a swap: a cancellation, a newer epoch, the end of a process, and statements that nobody expects any more.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use mirror_operator::{
    brief::Brief,
    destination::{Destination, Error},
    table::TableSchema,
};

use super::{at_once, people};
use crate::{
    fixture::{Fixture, open, table, until_loaded, whole},
    on_snowflake::{OnSnowflake, is_live},
    proxy::Proxy,
};

fn items(place: &OnSnowflake) -> TableSchema {
    place.adapt(table(1, "items", &["id bigint!", "name text", "note text"]))
}

/// Loads both tables and brings them to where they could be swapped.
async fn prepare(place: &OnSnowflake, at: &dyn Destination, row: &str) {
    until_loaded(at, &[(people(place), &[row]), (items(place), &[row])]).await;
    at.seal().await.unwrap();
    at.carry().await.unwrap();
}

/// A second epoch of two tables that could be swapped now.
async fn ready() -> (OnSnowflake, Box<dyn Destination>) {
    let place = OnSnowflake::new().await;
    let old: &[&str] = &["1\told\t\\N"];
    whole(&*open(&place.brief(1)).await, &[(people(&place), old), (items(&place), old)]).await;
    let at = open(&place.brief(2)).await;
    prepare(&place, &*at, "1\tnew\t\\N").await;
    (place, at)
}

/// A name of the place's schema, quoted.
fn quoted(place: &OnSnowflake, name: &str) -> String {
    format!("\"{}\".\"{}\".\"{name}\"", place.to.at.database, place.to.schema)
}

/// The name of an attempt of an epoch to swap a table.
fn attempt(table: &str, epoch: u32) -> String {
    format!("{table}_SWAP_E{epoch}_00000000000000AA")
}

/// Gives the shadow of an epoch its attempt's name.
async fn name_for_swap(place: &OnSnowflake, table: &str, epoch: u32) {
    let (shadow, ours) = (format!("{table}_RESYNC_E{epoch}G1"), attempt(table, epoch));
    place.run(&format!("ALTER TABLE {} RENAME TO {}", quoted(place, &shadow), quoted(place, &ours))).await;
}

fn exchange(place: &OnSnowflake, table: &str, epoch: u32) -> String {
    format!("ALTER TABLE {} SWAP WITH {}", quoted(place, table), quoted(place, &attempt(table, epoch)))
}

/// What an attempt has done of a swap that stopped in the middle.
async fn half(place: &OnSnowflake) {
    name_for_swap(place, "PEOPLE", 2).await;
    place.run(&exchange(place, "PEOPLE", 2)).await;
}

/// The live names of both tables' rows.
async fn names(place: &OnSnowflake) -> Vec<String> {
    place.rows("SELECT p.name, i.name FROM public.people AS p, public.items AS i").await
}

/// Puts something that cannot be swapped in the place of a table.
async fn obstruct(place: &OnSnowflake) {
    place.run(&format!("ALTER TABLE {} RENAME TO {}", quoted(place, "ITEMS"), quoted(place, "KEPT"))).await;
    place.run(&format!("CREATE VIEW {} AS SELECT 1 AS id, 'view' AS name", quoted(place, "ITEMS"))).await;
}

/// The brief through a network that does something before the statement with this number reaches the service. Those of an open transaction are not counted: whoever wants
/// the ledger would wait for its end.
async fn before_number(place: &OnSnowflake, epoch: u32, number: usize, act: impl Fn() + Send + Sync + 'static) -> Brief {
    let (seen, open) = (AtomicUsize::new(0), AtomicBool::new(false));
    let change = move |request: Vec<u8>| {
        let text = String::from_utf8_lossy(&request);
        if text.starts_with("POST /queries/v1/query-request") {
            let is = |sql: &str| text.contains(&format!("\"sqlText\":\"{sql}\""));
            if !open.load(Ordering::SeqCst) && seen.fetch_add(1, Ordering::SeqCst) + 1 == number {
                act();
            }
            open.store((open.load(Ordering::SeqCst) || is("BEGIN")) && !is("COMMIT") && !is("ROLLBACK"), Ordering::SeqCst);
        }
        request
    };
    let proxy = Proxy::changing((place.to.at.host.clone(), place.to.at.port), Arc::new(change)).await;
    place.through(proxy.address, epoch, 60_000)
}

/// The brief through a network on which a statement arrives that was sent long ago, right before the one with this number. Also whether it has come to that, and what the
/// service made of it.
async fn late(place: &OnSnowflake, epoch: u32, number: usize, sql: String) -> (Brief, Arc<Mutex<Option<bool>>>) {
    let came = Arc::new(Mutex::new(None));
    let act = {
        let (place, came) = (place.clone(), came.clone());
        move || {
            let (place, came, sql) = (place.clone(), came.clone(), sql.clone());
            at_once(async move { *came.lock().unwrap() = Some(place.ask(&sql).await.is_ok()) });
        }
    };
    (before_number(place, epoch, number, act).await, came)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_wakes_up_late_leaves_a_newer_epochs_shadow_alone() {
    if is_live() {
        return;
    }
    let place = OnSnowflake::new().await;
    whole(&*open(&place.brief(1)).await, &[(people(&place), &["1\told\t\\N"])]).await;
    let second = open(&place.brief(2)).await;
    until_loaded(&*second, &[(people(&place), &["1\tnew\t\\N"])]).await;
    second.seal().await.unwrap();
    second.carry().await.unwrap();
    // The third epoch has named its shadow for the swap when the second, which has done its own, looks for what that has put aside.
    let (swapped, done, third) = (AtomicBool::new(false), AtomicBool::new(false), place.clone());
    let change = move |request: Vec<u8>| {
        let text = String::from_utf8_lossy(&request);
        swapped.fetch_or(text.contains("SWAP WITH"), Ordering::SeqCst);
        let looks = text.contains("TABLE_SCHEMA = ") && !text.contains("TABLE_NAME = ");
        if looks && swapped.load(Ordering::SeqCst) && !done.swap(true, Ordering::SeqCst) {
            let place = third.clone();
            at_once(async move {
                let at = open(&place.brief(3)).await;
                until_loaded(&*at, &[(people(&place), &["1\tnewer\t\\N"])]).await;
                at.seal().await.unwrap();
                at.carry().await.unwrap();
                name_for_swap(&place, "PEOPLE", 3).await;
            });
        }
        request
    };
    let proxy = Proxy::changing((place.to.at.host.clone(), place.to.at.port), Arc::new(change)).await;
    open(&place.through(proxy.address, 2, 60_000)).await.swap().await.unwrap();
    assert_eq!(place.read("people", &["name"]).await, ["new|f"]);
    let at = open(&place.brief(3)).await;
    at.swap().await.unwrap();
    at.drop_retired().await.unwrap();
    assert_eq!(place.read("people", &["name"]).await, ["newer|f"]);
    assert_eq!(place.tables().await, ["people"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_is_given_up_in_the_middle_of_its_swap_is_swapped() {
    let (place, at) = ready().await;
    half(&place).await;
    assert_eq!(names(&place).await, ["new|old"]);
    for _ in 0..2 {
        at.abandon().await.unwrap();
    }
    assert_eq!(names(&place).await, ["new|new"]);
    assert!(at.swapped().await.unwrap().is_some());
    assert_eq!(place.tables().await, ["items", "items_old", "people", "people_old"]);
    // Its stream goes on.
    at.applier().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_cannot_be_finished_is_taken_back() {
    let (place, at) = ready().await;
    half(&place).await;
    obstruct(&place).await;
    for _ in 0..2 {
        at.abandon().await.unwrap();
    }
    assert_eq!(place.tables().await, ["items", "kept", "people"]);
    assert_eq!(place.read("people", &["name"]).await, ["old|f"]);
    assert_eq!(at.swapped().await.unwrap(), None);
    // The next epoch finds all as it was.
    place.run(&format!("DROP VIEW {}", quoted(&place, "ITEMS"))).await;
    place.run(&format!("ALTER TABLE {} RENAME TO {}", quoted(&place, "KEPT"), quoted(&place, "ITEMS"))).await;
    let next = open(&place.brief(3)).await;
    prepare(&place, &*next, "1\tnewer\t\\N").await;
    next.swap().await.unwrap();
    next.drop_retired().await.unwrap();
    assert_eq!(names(&place).await, ["newer|newer"]);
    assert_eq!(place.tables().await, ["items", "people"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_table_was_before_a_swap_that_is_taken_back_leaves_none() {
    let place = OnSnowflake::new().await;
    let at = open(&place.brief(1)).await;
    prepare(&place, &*at, "1\tnew\t\\N").await;
    let shadow = quoted(&place, "PEOPLE_RESYNC_E1G1");
    place.run(&format!("ALTER TABLE {shadow} RENAME TO {}", quoted(&place, "PEOPLE"))).await;
    place.run(&format!("CREATE VIEW {} AS SELECT 1 AS id", quoted(&place, "ITEMS"))).await;
    at.abandon().await.unwrap();
    assert_eq!(place.tables().await, ["items"]);
}

/// Of so many statements one is tried by a run of the tests. Which is another each time.
const STEP: usize = 8;

fn some() -> impl Iterator<Item = usize> {
    (crate::support::first(STEP)..).step_by(STEP)
}

/// Whatever a statement does that arrives between two of an epoch's giving up: afterwards both tables are of one epoch, and none is lost or left.
async fn one_epoch_is_live(place: &OnSnowflake, doing: &str) {
    let at = open(&place.brief(2)).await;
    let swapped = at.swapped().await.unwrap().is_some();
    let (live, tables): (&str, &[&str]) =
        if swapped { ("new|new", &["items", "items_old", "people", "people_old"]) } else { ("old|old", &["items", "people"]) };
    assert_eq!(names(place).await, [live], "{doing}");
    // Whoever died right after the swap was recorded has not named the old tables.
    let named = |name: &String| name.split_once("_swap_e2_").map_or(name.clone(), |(table, _)| format!("{table}_old"));
    assert_eq!(place.tables().await.iter().map(named).collect::<Vec<_>>(), tables, "{doing}");
    assert_eq!(at.applier().await.is_ok(), swapped, "{doing}");
    if swapped {
        at.drop_retired().await.unwrap();
        assert_eq!(place.tables().await, ["items", "people"], "{doing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_arrives_between_any_two_statements_of_its_epochs_giving_up_loses_no_table() {
    if is_live() {
        return;
    }
    for number in some() {
        let (place, _) = ready().await;
        name_for_swap(&place, "PEOPLE", 2).await;
        let (brief, came) = late(&place, 2, number, exchange(&place, "PEOPLE", 2)).await;
        open(&brief).await.abandon().await.unwrap();
        let Some(went_through) = *came.lock().unwrap() else {
            assert!(number > 10, "{number} statements");
            break;
        };
        one_epoch_is_live(&place, &format!("a swap (done: {went_through}) before statement {number}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_gets_its_attempts_name_late_is_dropped_with_its_epoch() {
    if is_live() {
        return;
    }
    for number in some() {
        let (place, _) = ready().await;
        let (shadow, ours) = (quoted(&place, "PEOPLE_RESYNC_E2G1"), quoted(&place, &attempt("PEOPLE", 2)));
        let (brief, came) = late(&place, 2, number, format!("ALTER TABLE {shadow} RENAME TO {ours}")).await;
        open(&brief).await.abandon().await.unwrap();
        let Some(went_through) = *came.lock().unwrap() else {
            assert!(number > 10, "{number} statements");
            break;
        };
        one_epoch_is_live(&place, &format!("a rename (done: {went_through}) before statement {number}")).await;
    }
}

/// What a process does that comes between the statements of another.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Swap,
    GiveUp,
}

impl Deed {
    async fn by(self, at: &dyn Destination) -> Result<(), Error> {
        match self {
            Self::Swap => at.swap().await.map(drop),
            Self::GiveUp => at.abandon().await,
        }
    }
}

/// The outcome of a deed that another one interrupts, once and at one of its statements, and that one's if it came to it.
async fn interrupted(place: &OnSnowflake, deed: Deed, number: usize, by: Deed) -> (Result<(), Error>, Option<Result<(), Error>>) {
    let came = Arc::new(Mutex::new(None));
    let act = {
        let (place, came) = (place.clone(), came.clone());
        move || {
            let (place, came) = (place.clone(), came.clone());
            at_once(async move {
                let outcome = by.by(&*open(&place.brief(2)).await).await;
                *came.lock().unwrap() = Some(outcome);
            });
        }
    };
    let at = open(&before_number(place, 2, number, act).await).await;
    let outcome = deed.by(&*at).await;
    let came = came.lock().unwrap().take();
    (outcome, came)
}

/// One of the two has won, and both know which.
#[tokio::test(flavor = "multi_thread")]
async fn a_swap_and_the_giving_up_of_its_epoch_agree_wherever_one_comes_between_the_steps_of_the_other() {
    if is_live() {
        return;
    }
    for (deed, by) in [(Deed::GiveUp, Deed::Swap), (Deed::Swap, Deed::GiveUp), (Deed::GiveUp, Deed::GiveUp)] {
        for number in some() {
            let (place, at) = ready().await;
            let (outcome, came) = interrupted(&place, deed, number, by).await;
            let Some(came) = came else {
                assert!(number > 10, "{deed:?} took {number} statements");
                break;
            };
            let doing = format!("{by:?} ({came:?}) before statement {number} of {deed:?} ({outcome:?})");
            // It is tried until it is done.
            at.abandon().await.unwrap();
            one_epoch_is_live(&place, &doing).await;
            let swapped = at.swapped().await.unwrap().is_some();
            for (deed, outcome) in [(deed, outcome), (by, came)] {
                match deed {
                    Deed::Swap => assert!(swapped || outcome.is_err(), "{doing}"),
                    Deed::GiveUp => assert!(matches!(outcome, Ok(()) | Err(Error::Transient(_))), "{doing}"),
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_gives_up_an_epoch_whose_swap_or_cleanup_ended_at_any_statement_leaves_one_epoch_live() {
    if is_live() {
        return;
    }
    for deed in [Deed::Swap, Deed::GiveUp] {
        for number in some() {
            let (place, at) = ready().await;
            if deed == Deed::GiveUp {
                half(&place).await;
            }
            let (brief, has_cut) = place.through_cut(place.brief(2), number as u32).await;
            // The statement was done, and nobody was there to hear of it.
            let outcome = deed.by(&*open(&brief).await).await;
            if !has_cut() {
                assert!(number > 10, "{deed:?} took {number} requests");
                break;
            }
            at.abandon().await.unwrap();
            one_epoch_is_live(&place, &format!("{deed:?} ({outcome:?}) ended with request {number}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_a_swap_back_may_end_at_any_statement_and_is_brought_to_its_end() {
    if is_live() {
        return;
    }
    for number in some() {
        let (place, at) = ready().await;
        half(&place).await;
        obstruct(&place).await;
        let (brief, has_cut) = place.through_cut(place.brief(2), number as u32).await;
        let _ = open(&brief).await.abandon().await;
        if !has_cut() {
            assert!(number > 10, "{number} requests");
            break;
        }
        at.abandon().await.unwrap();
        assert_eq!(place.tables().await, ["items", "kept", "people"], "ended with request {number}");
        assert_eq!(place.read("people", &["name"]).await, ["old|f"], "ended with request {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_begins_over_a_half_done_swap_ends_with_its_own_tables_and_no_others() {
    if is_live() {
        return;
    }
    for number in some() {
        let (place, _) = ready().await;
        half(&place).await;
        name_for_swap(&place, "ITEMS", 2).await;
        // The older epoch's last statement arrives somewhere in between.
        let (brief, came) = late(&place, 3, number, exchange(&place, "ITEMS", 2)).await;
        let at = open(&brief).await;
        prepare(&place, &*at, "1\tnewer\t\\N").await;
        at.swap().await.unwrap();
        at.drop_retired().await.unwrap();
        let doing = format!("{:?} before statement {number}", *came.lock().unwrap());
        assert_eq!(names(&place).await, ["newer|newer"], "{doing}");
        assert_eq!(place.tables().await, ["items", "people"], "{doing}");
        if came.lock().unwrap().is_none() {
            assert!(number > 30, "{number} statements");
            break;
        }
    }
}
