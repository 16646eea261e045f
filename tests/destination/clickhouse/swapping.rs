//! What may come between the steps of a swap: a cancellation, a newer epoch, rows that expire.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
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
    support::until,
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
