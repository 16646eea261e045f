//! A swap where tables cannot be exchanged: the old one gives way first.

use std::sync::{Arc, Mutex};

use mirror_operator::{
    brief::{Brief, DestinationPeer},
    destination::{Destination, clickhouse::Peer},
    table::TableSchema,
};

use crate::{
    fixture::{Fixture, from_loaded, open, table, until_loaded, whole},
    on_clickhouse::{OnOrdinary, ask},
    proxy::Proxy,
};

fn t(place: &OnOrdinary) -> TableSchema {
    place.adapt(table(0, "t", &["id bigint!", "name text"]))
}

/// A second epoch that could be swapped now, after a first one with a row that is gone.
async fn ready(place: &OnOrdinary) -> Box<dyn Destination> {
    whole(&*open(&place.brief(1)).await, &[(t(place), &["1\told", "7\tgone"])]).await;
    let at = open(&place.brief(2)).await;
    until_loaded(&*at, &[(t(place), &["1\tnew"])]).await;
    at.seal().await.unwrap();
    at.carry().await.unwrap();
    at
}

const SWAPPED: [&str; 2] = ["1|new|f", "7|gone|t"];

#[tokio::test(flavor = "multi_thread")]
async fn the_swap_takes_place_and_the_note_says_how() {
    let place = OnOrdinary::new().await;
    assert_eq!(open(&place.brief(1)).await.preflight(&[t(&place)]).await.unwrap(), vec![]);
    let at = ready(&place).await;
    at.swap().await.unwrap();
    assert_eq!(place.read("t", &["id", "name"]).await, SWAPPED);
    assert_eq!(place.tables().await, ["t", "t_old"]);
    let note = at.progress().await.unwrap().1.remove(0).note.unwrap();
    assert!(note.contains("there was none for a moment"), "{note}");
    at.drop_retired().await.unwrap();
    assert_eq!(place.tables().await, ["t"]);
}

/// Does by hand what a server has done that ended in the middle of the swap.
async fn ends_in_the_middle(place: &OnOrdinary) {
    place.run("RENAME TABLE public.t_resync_e2g1 TO public.t_swap_e2_00000000000000aa").await;
    place.run("RENAME TABLE public.t_swap_e2_00000000000000aa TO public.t_swap_e2_00000000000000ab, public.t TO public.t_swap_e2_00000000000000ac").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_between_the_old_table_and_the_new_one_is_no_harm() {
    let place = OnOrdinary::new().await;
    let at = ready(&place).await;
    ends_in_the_middle(&place).await;
    at.swap().await.unwrap();
    assert_eq!(place.read("t", &["id", "name"]).await, SWAPPED);
    assert_eq!(place.tables().await, ["t", "t_old"]);
    assert_eq!(place.read("t_old", &["id", "name"]).await, ["1|old|f", "7|gone|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_table_has_its_name_back_if_the_epoch_is_given_up_there() {
    let place = OnOrdinary::new().await;
    let at = ready(&place).await;
    ends_in_the_middle(&place).await;
    for _ in 0..2 {
        at.abandon().await.unwrap();
    }
    assert_eq!(place.tables().await, ["t"]);
    assert_eq!(place.read("t", &["id", "name"]).await, ["1|old|f", "7|gone|f"]);
    whole(&*open(&place.brief(3)).await, &[(t(&place), &["1\tnew"])]).await;
    assert_eq!(place.read("t", &["id", "name"]).await, SWAPPED);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_of_a_swap_is_done_again_later_changes_nothing() {
    let place = OnOrdinary::new().await;
    ready(&place).await;
    let said = Arc::new(Mutex::new(Vec::new()));
    let listen = {
        let said = said.clone();
        move |request: Vec<u8>| {
            let body = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            said.lock().unwrap().push(String::from_utf8_lossy(&request[body..]).into_owned());
            request
        }
    };
    let proxy = Proxy::changing((place.to.host.clone(), place.to.port), Arc::new(listen)).await;
    let mut at = place.to.clone();
    (at.host, at.port) = (proxy.address.ip().to_string(), proxy.address.port());
    let peer = Peer { at, settings: Default::default(), cluster: None };
    let at = open(&Brief { destination: DestinationPeer::ClickHouse(peer), ..place.brief(2) }).await;
    from_loaded(&*at).await.unwrap();
    let renames: Vec<String> =
        said.lock().unwrap().iter().filter(|sql| sql.starts_with("RENAME") || sql.starts_with("EXCHANGE")).cloned().collect();
    // Names of its own, the exchange that is refused, the three renames, and the old table's last name.
    assert_eq!(renames.len(), 4, "{renames:?}");
    assert_eq!(renames[2].matches(" TO ").count(), 3);
    for late in renames {
        ask(&place.to, &late).await.unwrap_err();
        assert_eq!(place.tables().await, ["t", "t_old"], "{late}");
        assert_eq!(place.read("t", &["id", "name"]).await, SWAPPED, "{late}");
    }
}
