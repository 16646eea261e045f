//! Quotas and a service that is busy: what is asked again, and how soon.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
};
use mirror_operator::destination::Error;
use serde_json::json;

use super::through;
use crate::{
    fixture::{Fixture, open},
    on_bigquery::OnBigQuery,
};

/// Refuses requests before the emulator hears of them, as long as there are refusals.
struct Door {
    server: String,
    /// Of which requests: the end of their paths.
    of: &'static str,
    refusals: Mutex<VecDeque<(u16, &'static str)>>,
    /// When each of them came.
    asked: Mutex<Vec<Instant>>,
}

impl Door {
    async fn open(place: &OnBigQuery, of: &'static str, refusals: &[(u16, &'static str)]) -> (Arc<Self>, SocketAddr) {
        let door = Arc::new(Self {
            server: place.to.endpoint.clone(),
            of,
            refusals: Mutex::new(refusals.iter().copied().collect()),
            asked: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(door.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (door, address)
    }

    /// How long was waited after each.
    fn pauses(&self) -> Vec<Duration> {
        self.asked.lock().unwrap().windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

/// As the service refuses (BigQuery docs, "Error messages").
async fn answer(State(door): State<Arc<Door>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> (StatusCode, String) {
    let counts = uri.path().ends_with(door.of);
    if counts {
        door.asked.lock().unwrap().push(Instant::now());
    }
    let refusal = if counts { door.refusals.lock().unwrap().pop_front() } else { None };
    if let Some((status, reason)) = refusal {
        // Proxies before the service answer without a reason.
        let error =
            json!({ "error": { "code": status, "message": "refused here", "errors": [{ "reason": reason, "domain": "usageLimits" }] } });
        let body = if reason.is_empty() { String::new() } else { error.to_string() };
        return (StatusCode::from_u16(status).unwrap(), body);
    }
    let mut request = reqwest::Client::new().request(method, format!("{}{uri}", door.server)).body(body);
    if let Some(kind) = headers.get("content-type") {
        request = request.header("content-type", kind);
    }
    let answer = request.send().await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_asks_for_patience_is_asked_again_after_pauses_that_grow() {
    let place = OnBigQuery::new().await;
    let refusals = [(429, ""), (403, "rateLimitExceeded"), (503, "backendError")];
    let (door, address) = Door::open(&place, "", &refusals).await;
    assert!(open(&through(&place, 1, address)).await.state().await.unwrap().is_none());
    let pauses = door.pauses();
    for (pause, seconds) in pauses.iter().zip([1, 2, 4]) {
        // A quarter of it is by chance.
        assert!(*pause >= Duration::from_secs(seconds), "{pauses:?}");
    }
    assert!(pauses.len() >= refusals.len(), "{pauses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_meets_a_quota_is_sent_again_and_done_once() {
    let place = OnBigQuery::new().await;
    let (door, address) = Door::open(&place, "/jobs", &[(403, "quotaExceeded"), (500, "")]).await;
    open(&through(&place, 1, address)).await.begin().await.unwrap();
    assert!(door.asked.lock().unwrap().len() > 2 && door.refusals.lock().unwrap().is_empty());
    assert_eq!(place.rows(&format!("SELECT COUNT(*) FROM {} WHERE kind = 'begun'", place.ledger())).await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_is_not_asked_for_again() {
    let place = OnBigQuery::new().await;
    let (door, address) = Door::open(&place, "", &[(403, "accessDenied")]).await;
    let Err(Error::Permanent(failure)) = open(&through(&place, 1, address)).await.state().await.map(drop) else { panic!() };
    assert_eq!(failure.reason, "PermissionDenied");
    assert_eq!(door.asked.lock().unwrap().len(), 1);
}
