//! Two epochs at the same table.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use mirror_operator::destination::Error;

use super::people;
use crate::{
    fixture::{Fixture, open, until_loaded, whole},
    on_snowflake::{OnSnowflake, is_live},
    proxy::Proxy,
};

/// Runs something to its end, from where nothing can be awaited.
fn at_once(what: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || runtime.block_on(what)).join().unwrap();
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
                let people = people(&place).destination;
                // Told in lower case.
                let shadow = place.tables().await.into_iter().find(|name| name.contains("resync")).unwrap().to_uppercase();
                let at = format!("\"{}\".\"{}\"", place.to.at.database, people.schema);
                let rename = format!("ALTER TABLE {at}.\"{shadow}\" RENAME TO {at}.\"{}_SWAP_E3_00000000000000AA\"", people.name);
                place.run(&rename).await;
            });
        }
        request
    };
    let proxy = Proxy::changing((place.to.at.host.clone(), place.to.at.port), Arc::new(change)).await;
    let late = open(&place.through(proxy.address, 2, 60_000)).await.swap().await;
    assert!(matches!(late, Err(Error::Superseded(3))), "{late:?}");
    let at = open(&place.brief(3)).await;
    at.swap().await.unwrap();
    at.drop_retired().await.unwrap();
    assert_eq!(place.read("people", &["name"]).await, ["newer|f"]);
    assert_eq!(place.tables().await.len(), 1, "{:?}", place.tables().await);
}
