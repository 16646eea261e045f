//! What a real account does not show: requests in between, and what taxonomies and quotas would be needed for. These tests run against the emulator only.

mod keeps;
mod patience;

use std::sync::{Arc, Mutex};

use mirror_operator::brief::{Brief, DestinationPeer};
use serde_json::Value;

use crate::{fixture::Fixture, on_bigquery::OnBigQuery, proxy::Proxy};

/// A request of REST for a table, in the service's own words: the client's models leave out policy tags.
async fn rest(place: &OnBigQuery, method: reqwest::Method, table: &str, body: Option<Value>) -> Value {
    let url = format!("{}/bigquery/v2/projects/{}/datasets/{}/tables/{table}", place.to.endpoint, place.to.project, place.to.at.database);
    let mut request = reqwest::Client::new().request(method, url);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    assert!(answer.status().is_success(), "{table}: {}", answer.text().await.unwrap());
    answer.json().await.unwrap()
}

/// Where the emulator's REST is.
fn server(place: &OnBigQuery) -> (String, u16) {
    let (host, port) = place.to.endpoint.strip_prefix("http://").unwrap().rsplit_once(':').unwrap();
    (host.into(), port.parse().unwrap())
}

/// The brief of an epoch whose REST is at this address.
fn through(place: &OnBigQuery, epoch: u32, address: std::net::SocketAddr) -> Brief {
    let to = mirror_operator::destination::bigquery::Peer { endpoint: format!("http://{address}"), ..place.to.clone() };
    Brief { destination: DestinationPeer::BigQuery(to), ..place.brief(epoch) }
}

/// The brief of an epoch through a network that writes requests down.
async fn recorded(place: &OnBigQuery, epoch: u32) -> (Brief, Arc<Mutex<Vec<String>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let listen = {
        let said = said.clone();
        move |request: Vec<u8>| {
            said.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
            request
        }
    };
    let proxy = Proxy::changing(server(place), Arc::new(listen)).await;
    (through(place, epoch, proxy.address), said)
}
