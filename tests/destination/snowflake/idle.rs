//! An idle stream: it wakes no warehouse, and still finds out who has taken its place.

use std::sync::{Arc, Mutex};

use mirror_operator::{
    destination::{Cell, Counts, Error, RowChange},
    postgres::Lsn,
};

use super::{lines, people, streaming};
use crate::{
    fixture::{Fixture, made, open},
    on_snowflake::is_live,
    proxy::Proxy,
};

/// The statement of a request.
fn statement(request: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(request);
    let body = text.strip_prefix("POST /queries/v1/query-request")?.split_once("\r\n\r\n")?.1;
    Some(serde_json::from_str::<serde_json::Value>(body).ok()?["sqlText"].as_str()?.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_sends_nothing_that_needs_a_warehouse() {
    if is_live() {
        return;
    }
    let (place, lines, applier) = streaming(lines, &["1\tone"], true).await;
    drop(applier);
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    let change = move |request: Vec<u8>| {
        seen.lock().unwrap().extend(statement(&request));
        request
    };
    let proxy = Proxy::changing((place.to.at.host.clone(), place.to.at.port), Arc::new(change)).await;
    let at = open(&place.through(proxy.address, 1, 60_000)).await;
    let mut applier = at.applier().await.unwrap();
    let row = ["2", "two"].map(|value| Cell::Text(value.to_string().into())).to_vec();
    let change = vec![RowChange::Add { row }];
    applier.write(&lines, change, vec![made(1500)], Counts { inserts: 1, ..Counts::default() }).await.unwrap();
    applier.commit(Lsn(2000)).await.unwrap();
    // What the pipeline tells is read once more, and then known.
    assert_eq!(at.progress().await.unwrap().1[0].inserts, 1);
    log.lock().unwrap().clear();
    for position in [3000, 4000, 5000] {
        applier.commit(Lsn(position)).await.unwrap();
        assert_eq!(applier.position(), Lsn(position));
        assert_eq!(at.progress().await.unwrap().1[0].inserts, 1);
        assert_eq!(at.tables().await.unwrap().len(), 1);
    }
    let log = std::mem::take(&mut *log.lock().unwrap());
    let words: Vec<&str> = log.iter().filter_map(|sql| sql.split_whitespace().next()).collect();
    assert_eq!(words, ["SHOW", "COMMENT"].repeat(3), "{log:?}");
    // It is durable all the same.
    drop(applier);
    assert_eq!(open(&place.brief(1)).await.state().await.unwrap().unwrap().applied_lsn, Lsn(5000));
    assert_eq!(open(&place.brief(1)).await.applier().await.unwrap().position(), Lsn(5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_idle_stream_knows_is_read_anew_when_it_has_written() {
    let (place, people, applier) = streaming(people, &["1\tone\t\\N"], true).await;
    drop(applier);
    let at = open(&place.brief(1)).await;
    let mut applier = at.applier().await.unwrap();
    assert_eq!(at.tables().await.unwrap()[0].parked, None);
    applier.park(&people, "a reason").await.unwrap();
    assert_eq!(at.tables().await.unwrap()[0].parked.as_deref(), Some("a reason"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_notices_who_has_taken_its_place() {
    let (place, _, mut first) = streaming(people, &["1\tone\t\\N"], true).await;
    first.commit(Lsn(2000)).await.unwrap();
    let mut second = open(&place.brief(1)).await.applier().await.unwrap();
    assert_eq!(second.position(), Lsn(2000));
    assert!(matches!(first.commit(Lsn(9000)).await, Err(Error::Displaced)));
    second.commit(Lsn(3000)).await.unwrap();
    // To begin once more changes nothing for it.
    open(&place.brief(1)).await.begin().await.unwrap();
    assert_eq!(open(&place.brief(1)).await.state().await.unwrap().unwrap().applied_lsn, Lsn(3000));
    open(&place.brief(2)).await.begin().await.unwrap();
    assert!(matches!(second.commit(Lsn(9000)).await, Err(Error::Superseded(2))));
}
