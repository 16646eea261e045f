//! How the service is spoken with: long statements, expired tokens, lost replies, and what is missing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use mirror_operator::destination::{
    Error,
    snowflake::{Peer, ask, check},
};

use super::people;
use crate::{
    fixture::{Fixture, open, whole},
    on_snowflake::{OnSnowflake, account, is_live},
    proxy::Proxy,
    support,
};

async fn reason(to: &Peer) -> String {
    let report = check(to).await;
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert!(!report.problems[0].message.contains("testbed-secret"), "{report:?}");
    report.problems[0].reason.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_what_is_missing() {
    let to = account().clone();
    let report = check(&to).await;
    assert!(report.problems.is_empty() && !report.server_version.is_empty() && report.system_identifier.contains('-'), "{report:?}");
    assert!(report.warehouse.as_ref().is_some_and(|name| !name.is_empty()), "{report:?}");
    let mut wrong = to.clone();
    wrong.at.password = Some(support::secret("wrong"));
    if is_live() {
        return;
    }
    assert_eq!(reason(&wrong).await, "AuthenticationFailed");
    wrong.key_pair = true;
    assert_eq!(reason(&wrong).await, "AuthenticationFailed");
    assert_eq!(reason(&Peer { schema: "NOWHERE".into(), ..to.clone() }).await, "SchemaMissing");
    assert_eq!(reason(&Peer { warehouse: None, ..to.clone() }).await, "WarehouseMissing");
    assert_eq!(reason(&Peer { warehouse: Some("MISSING".into()), ..to.clone() }).await, "ObjectMissing");
    assert_eq!(reason(&Peer { role: Some("MISSING".into()), ..to.clone() }).await, "ObjectMissing");
    let mut elsewhere = to.clone();
    elsewhere.at.database = "NOWHERE".into();
    assert_eq!(reason(&elsewhere).await, "DatabaseMissing");
    let mut away = Peer { patience_millis: 0, ..to };
    away.at.port = 1;
    assert_eq!(reason(&away).await, "Unreachable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_a_key_pair_comes_in() {
    if is_live() {
        return;
    }
    let key = include_str!("key.pem");
    let mut to = account().clone();
    (to.at.password, to.key_pair) = (Some(support::secret(key)), true);
    assert_eq!(check(&to).await.problems, vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_takes_long_is_polled_for() {
    let before = Instant::now();
    // The real service is polled after 45 seconds.
    let seconds = if is_live() { 60 } else { 5 };
    let rows = ask(account(), &format!("CALL SYSTEM$WAIT({seconds})")).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert!(before.elapsed() >= Duration::from_secs(seconds));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_whose_reply_was_lost_is_asked_for_again_and_not_done_twice() {
    if is_live() {
        return;
    }
    let place = OnSnowflake::new().await;
    place.run("CREATE TABLE public.counted (n NUMBER(38,0))").await;
    let sql = format!("INSERT INTO \"{}\".\"{}\".counted VALUES (1)", place.to.at.database, place.to.schema);
    for cut in 1..4 {
        let proxy = Proxy::http((place.to.at.host.clone(), place.to.at.port), cut).await;
        let mut to = place.to.clone();
        (to.at.host, to.at.port) = (proxy.address.ip().to_string(), proxy.address.port());
        ask(&to, &sql).await.unwrap();
        assert!(proxy.has_cut());
        assert_eq!(place.count("counted").await, cut as usize);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_renewed_within_the_transaction() {
    if is_live() {
        return;
    }
    let place = OnSnowflake::new().await;
    // Tokens of this proxy's sessions last for a moment.
    let renewed = Arc::new(AtomicU32::new(0));
    let seen = renewed.clone();
    let change = move |request: Vec<u8>| {
        let text = String::from_utf8_lossy(&request);
        seen.fetch_add(u32::from(text.starts_with("POST /session/token-request")), Ordering::SeqCst);
        if !text.starts_with("POST /session/v1/login-request") {
            return request;
        }
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let body = body.replace("\"QUERY_TAG\"", "\"TESTBED_SECONDS_OF_A_TOKEN\":0.3,\"QUERY_TAG\"");
        let length = head.lines().find(|line| line.to_lowercase().starts_with("content-length")).unwrap();
        format!("{}\r\n\r\n{body}", head.replace(length, &format!("content-length: {}", body.len()))).into_bytes()
    };
    let proxy = Proxy::changing((place.to.at.host.clone(), place.to.at.port), Arc::new(change)).await;
    let at = open(&place.through(proxy.address, 1, 60_000)).await;
    whole(&*at, &[(people(&place), &["1\tone\t\\N"])]).await;
    assert!(renewed.load(Ordering::SeqCst) > 0);
    assert_eq!(place.read("people", &["id"]).await, ["1|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_transaction_does_not_keep_others_waiting_for_long() {
    if is_live() {
        return;
    }
    let place = OnSnowflake::new().await;
    let (at, people) = (open(&place.brief(1)).await, people(&place));
    whole(&*at, &[(people.clone(), &["1\tone\t\\N"])]).await;
    // A pod that dies in mid-transaction, with nobody to close its session: its network is gone.
    let proxy = Proxy::http((place.to.at.host.clone(), place.to.at.port), 7).await;
    let outcome = open(&place.through(proxy.address, 1, 0)).await.applier().await.map(drop);
    assert!(matches!(outcome, Err(Error::Transient(_))), "{outcome:?}");
    drop(proxy);
    open(&place.brief(2)).await.begin().await.unwrap();
}
