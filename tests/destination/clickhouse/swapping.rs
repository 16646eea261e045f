//! What may come between the steps of a swap: a cancellation, a newer epoch, rows that expire.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use mirror_operator::{
    api::clickhouse::ClickHouseTable,
    brief::{Brief, DestinationPeer},
    destination::{Destination, Error, clickhouse::Peer},
    table::TableSchema,
};

use crate::{
    clickhouse::t,
    fixture::{Fixture, boundary, from_loaded, load, open, plan, table, until_loaded, whole},
    on_clickhouse::{OnClickHouse, ask},
    proxy::Proxy,
    support::{self, until},
};

fn u(place: &OnClickHouse) -> TableSchema {
    place.adapt(table(1, "u", &["id bigint!", "name text", "kind text!"]))
}

/// An epoch of two tables that could be swapped now, after a first one.
async fn ready(place: &OnClickHouse) -> Box<dyn Destination> {
    whole(&*open(&place.brief(1)).await, &[(t(place), &["1\told\ta"]), (u(place), &["1\told\ta"])]).await;
    let at = open(&place.brief(2)).await;
    until_loaded(&*at, &[(t(place), &["1\tnew\ta"]), (u(place), &["1\tnew\ta"])]).await;
    at.seal().await.unwrap();
    at.carry().await.unwrap();
    at
}

async fn names(place: &OnClickHouse) -> Vec<String> {
    place.rows("SELECT t.name, u.name FROM public.t FINAL, public.u FINAL").await
}

/// The brief through a network that does something, once, before a request that says this reaches the server.
async fn before(place: &OnClickHouse, brief: Brief, what: &'static str, act: impl Fn() + Send + Sync + 'static) -> Brief {
    let done = AtomicBool::new(false);
    let change = move |request: Vec<u8>| {
        if String::from_utf8_lossy(&request).contains(what) && !done.swap(true, Ordering::SeqCst) {
            act();
        }
        request
    };
    through(place, brief, change).await
}

/// The brief through a network that does something before the request with this number reaches the server.
async fn before_number(place: &OnClickHouse, brief: Brief, number: usize, act: impl Fn() + Send + Sync + 'static) -> Brief {
    let seen = AtomicUsize::new(0);
    let change = move |request: Vec<u8>| {
        if seen.fetch_add(1, Ordering::SeqCst) + 1 == number {
            act();
        }
        request
    };
    through(place, brief, change).await
}

async fn through(place: &OnClickHouse, brief: Brief, change: impl Fn(Vec<u8>) -> Vec<u8> + Send + Sync + 'static) -> Brief {
    let proxy = Proxy::changing((place.to.host.clone(), place.to.port), Arc::new(change)).await;
    let mut at = place.to.clone();
    (at.host, at.port) = (proxy.address.ip().to_string(), proxy.address.port());
    Brief { destination: DestinationPeer::ClickHouse(Peer { at, settings: Default::default(), cluster: None }), ..brief }
}

/// Runs something to its end, from where nothing can be awaited.
fn at_once(what: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || runtime.block_on(what)).join().unwrap();
}

/// Rows whose key is a time in the past have expired.
fn expiring(place: OnClickHouse) -> OnClickHouse {
    place.with(ClickHouseTable { ttl: Some("toDateTime(id) + INTERVAL 1 DAY".into()), ..ClickHouseTable::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_have_expired_are_counted_and_then_deleted() {
    let place = expiring(OnClickHouse::new().await);
    for epoch in 1..3 {
        let at = open(&place.brief(epoch)).await;
        at.begin().await.unwrap();
        at.create_shadows(boundary(1), &[t(&place)], &plan(&[2])).await.unwrap();
        load(&*at, &t(&place), 0, &["1\texpired\ta"]).await.unwrap();
        load(&*at, &t(&place), 1, &["4000000000\tlives\ta"]).await.unwrap();
        place.run(&format!("OPTIMIZE TABLE public.t_resync_e{epoch}g1 FINAL")).await;
        from_loaded(&*at).await.unwrap();
        until("what has expired is gone", async || place.read("t", &["id"]).await == ["4000000000|f"]).await;
        let report = at.progress().await.unwrap().1.remove(0);
        assert_eq!((report.carried_deleted, report.carried_missing), (0, 0), "epoch {epoch}");
        at.drop_retired().await.unwrap();
    }
}

/// What an attempt has done of a swap that stopped in the middle.
async fn exchange(place: &OnClickHouse, table: &str) {
    place.run(&format!("RENAME TABLE public.{table}_resync_e2g1 TO public.{table}_swap_e2_00000000000000aa")).await;
    place.run(&format!("EXCHANGE TABLES public.{table} AND public.{table}_swap_e2_00000000000000aa")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_is_given_up_in_the_middle_of_its_swap_is_swapped() {
    let place = OnClickHouse::new().await;
    let at = ready(&place).await;
    exchange(&place, "t").await;
    assert_eq!(names(&place).await, ["new|old"]);
    for _ in 0..2 {
        at.abandon().await.unwrap();
    }
    assert_eq!(names(&place).await, ["new|new"]);
    assert!(at.swapped().await.unwrap().is_some());
    assert_eq!(place.tables().await, ["t", "t_old", "u", "u_old"]);
    // Its stream goes on.
    at.applier().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_cannot_be_finished_is_taken_back() {
    let place = OnClickHouse::new().await;
    let at = ready(&place).await;
    exchange(&place, "t").await;
    place.run("RENAME TABLE public.u TO public.kept").await;
    place.run("CREATE VIEW public.u AS SELECT 1 AS id, 'view' AS name").await;
    for _ in 0..2 {
        at.abandon().await.unwrap();
    }
    assert_eq!(place.tables().await, ["kept", "t", "u"]);
    assert_eq!(place.read("t", &["name"]).await, ["old|f"]);
    assert_eq!(at.swapped().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_comes_while_its_epoch_is_given_up_loses_no_table() {
    // Once it was looked how far the swap is, and the fence is closed; when the shadow is dropped.
    for late in ["BETWEEN 1 AND 2", "TABLE"] {
        let place = OnClickHouse::new().await;
        ready(&place).await;
        place.run("RENAME TABLE public.t_resync_e2g1 TO public.t_swap_e2_00000000000000aa").await;
        let came = Arc::new(AtomicBool::new(false));
        let exchange = {
            let (to, database, came) = (place.to.clone(), place.to.database.clone(), came.clone());
            move || {
                came.store(true, Ordering::SeqCst);
                let (to, sql) = (to.clone(), format!("EXCHANGE TABLES {database}.t AND {database}.t_swap_e2_00000000000000aa"));
                at_once(async move { drop(ask(&to, &sql).await.unwrap()) });
            }
        };
        let at = open(&before(&place, place.brief(2), late, exchange).await).await;
        at.abandon().await.unwrap();
        assert!(came.load(Ordering::SeqCst), "no request says {late}");
        assert_eq!(names(&place).await, ["old|old"], "before {late}");
        assert_eq!(place.tables().await, ["t", "u"], "before {late}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_wakes_up_late_leaves_a_newer_epochs_shadow_alone() {
    let place = OnClickHouse::new().await;
    whole(&*open(&place.brief(1)).await, &[(t(&place), &["1\told\ta"])]).await;
    let second = open(&place.brief(2)).await;
    until_loaded(&*second, &[(t(&place), &["1\tnew\ta"])]).await;
    second.seal().await.unwrap();
    second.carry().await.unwrap();
    // The third epoch has named its shadow for the exchange when the second looks for what it has exchanged.
    let third = {
        let place = place.clone();
        move || {
            let place = place.clone();
            at_once(async move {
                let at = open(&place.brief(3)).await;
                until_loaded(&*at, &[(t(&place), &["1\tnewer\ta"])]).await;
                at.seal().await.unwrap();
                at.carry().await.unwrap();
                place.run("RENAME TABLE public.t_resync_e3g1 TO public.t_swap_e3_00000000000000aa").await;
            });
        }
    };
    let late = open(&before(&place, place.brief(2), "startsWith(name", third).await).await;
    // Its own swap is recorded by then.
    late.swap().await.unwrap();
    let at = open(&place.brief(3)).await;
    at.swap().await.unwrap();
    at.drop_retired().await.unwrap();
    assert_eq!(place.read("t", &["name"]).await, ["newer|f"]);
    assert_eq!(place.tables().await, ["t"]);
}

/// A second epoch of one table that could be swapped now.
async fn ready_alone(place: &OnClickHouse) {
    whole(&*open(&place.brief(1)).await, &[(t(place), &["1\told\ta"])]).await;
    let at = open(&place.brief(2)).await;
    until_loaded(&*at, &[(t(place), &["1\tnew\ta"])]).await;
    at.seal().await.unwrap();
    at.carry().await.unwrap();
}

/// What a process does that comes between the requests of another.
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

/// The outcome of a deed that another one interrupts, once and at one of its requests, and that one's if it came to it.
async fn interrupted(place: &OnClickHouse, deed: Deed, number: usize, by: Deed) -> (Result<(), Error>, Option<Result<(), Error>>) {
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
    let at = open(&before_number(place, place.brief(2), number, act).await).await;
    let outcome = deed.by(&*at).await;
    let came = came.lock().unwrap().take();
    (outcome, came)
}

/// Every third request: each takes two epochs. Which third is another each time.
const STEP: usize = 3;

/// One of the two has won, and both know which.
#[tokio::test(flavor = "multi_thread")]
async fn a_swap_and_the_giving_up_of_its_epoch_agree_wherever_one_comes_between_the_steps_of_the_other() {
    for (deed, by) in [(Deed::GiveUp, Deed::Swap), (Deed::Swap, Deed::GiveUp)] {
        for number in (support::first(STEP)..).step_by(STEP) {
            let place = OnClickHouse::new().await;
            ready_alone(&place).await;
            let (outcome, came) = interrupted(&place, deed, number, by).await;
            let Some(came) = came else {
                assert!(number > 10, "{deed:?} took {number} requests");
                break;
            };
            let doing = format!("{by:?} ({came:?}) before request {number} of {deed:?} ({outcome:?})");
            let (swap, given_up) = if deed == Deed::Swap { (outcome, came) } else { (came, outcome) };
            assert!(matches!(given_up, Ok(()) | Err(Error::Transient(_))), "{doing}");
            let at = open(&place.brief(2)).await;
            // It is tried until it is done.
            at.abandon().await.unwrap();
            let swapped = at.swapped().await.unwrap().is_some();
            assert!(swapped || swap.is_err(), "{doing}");
            let (live, tables): (&str, &[&str]) = if swapped { ("new", &["t", "t_old"]) } else { ("old", &["t"]) };
            assert_eq!(place.rows("SELECT name FROM public.t FINAL").await, [live], "{doing}");
            assert_eq!(place.tables().await, tables, "{doing}");
            assert_eq!(at.applier().await.is_ok(), swapped, "{doing}");
        }
    }
}

/// Of two tables one was exchanged. Whoever gives the epoch up finishes that, or takes it back where a view has the other one's name.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_give_up_an_epoch_in_the_middle_of_its_swap_agree_wherever_one_comes_between_the_steps_of_the_other() {
    for finishable in [true, false] {
        for number in (support::first(STEP)..).step_by(STEP) {
            let place = OnClickHouse::new().await;
            ready(&place).await;
            exchange(&place, "t").await;
            if !finishable {
                place.run("RENAME TABLE public.u TO public.kept").await;
                place.run("CREATE VIEW public.u AS SELECT 1 AS id, 'view' AS name").await;
            }
            let (outcome, came) = interrupted(&place, Deed::GiveUp, number, Deed::GiveUp).await;
            let Some(came) = came else {
                assert!(number > 10, "giving up took {number} requests");
                break;
            };
            let doing = format!("another ({came:?}) before request {number} of giving up ({outcome:?}), finishable: {finishable}");
            let at = open(&place.brief(2)).await;
            at.abandon().await.unwrap();
            let (tables, name): (&[&str], &str) =
                if finishable { (&["t", "t_old", "u", "u_old"], "new") } else { (&["kept", "t", "u"], "old") };
            assert_eq!(place.tables().await, tables, "{doing}");
            assert_eq!(place.rows("SELECT name FROM public.t FINAL").await, [name], "{doing}");
            assert_eq!(at.swapped().await.unwrap().is_some(), finishable, "{doing}");
        }
    }
}
