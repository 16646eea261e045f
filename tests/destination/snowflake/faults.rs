//! What goes wrong on the way: sessions that end, a service that is busy, files that are left behind or known already.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mirror_operator::{
    brief::Brief,
    destination::{Applier, Cell, Counts, Error, RowChange},
    postgres::Lsn,
};

use super::{at_once, lines, people, streaming};
use crate::{
    fixture::{Fixture, boundary, from_loaded, load, made, open, plan, until_loaded, whole},
    on_snowflake::{OnSnowflake, is_live},
    proxy::{Change, Proxy},
};

async fn through(place: &OnSnowflake, epoch: u32, change: Change) -> Brief {
    let proxy = Proxy::changing((place.to.at.host.clone(), place.to.at.port), change).await;
    place.through(proxy.address, epoch, 60_000)
}

fn is_statement(request: &[u8]) -> bool {
    request.starts_with(b"POST /queries/v1/query-request")
}

/// Of so many statements one is tried by a run of the tests. Which is another each time.
const STEP: usize = 4;

fn some() -> impl Iterator<Item = usize> {
    (crate::support::first(STEP)..).step_by(STEP)
}

/// The brief through a network on which the session of the statement with this number ends right before it, with what is open in it.
async fn ending(place: &OnSnowflake, epoch: u32, number: usize) -> (Brief, Arc<AtomicBool>) {
    let (seen, ended) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let (host, port, done) = (place.to.at.host.clone(), place.to.at.port, ended.clone());
    let change = move |request: Vec<u8>| {
        if is_statement(&request) && seen.fetch_add(1, Ordering::SeqCst) + 1 == number {
            let text = String::from_utf8_lossy(&request);
            let token = text.lines().find(|line| line.to_lowercase().starts_with("authorization:")).unwrap();
            let mut service = TcpStream::connect((host.as_str(), port)).unwrap();
            write!(
                service,
                "POST /session?delete=true HTTP/1.1\r\nHost: {host}\r\n{token}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            .unwrap();
            service.read_to_end(&mut Vec::new()).unwrap();
            done.store(true, Ordering::SeqCst);
        }
        request
    };
    (through(place, epoch, Arc::new(change)).await, ended)
}

const ROWS: &[&str] = &["1\tone\t\\N", "2\ttwo\t\\N"];

fn passes(outcome: &Result<(), Error>, doing: &str) {
    assert!(matches!(outcome, Ok(()) | Err(Error::Transient(_))), "{doing}: {outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_whose_session_ends_at_any_statement_is_loaded_once() {
    if is_live() {
        return;
    }
    for number in some() {
        let place = OnSnowflake::new().await;
        let (at, people) = (open(&place.brief(1)).await, people(&place));
        at.begin().await.unwrap();
        at.create_shadows(boundary(1), std::slice::from_ref(&people), &plan(&[1])).await.unwrap();
        let (brief, ended) = ending(&place, 1, number).await;
        let outcome = load(&*open(&brief).await, &people, 0, ROWS).await;
        passes(&outcome.map(drop), &format!("the session ends before statement {number}"));
        assert_eq!(load(&*at, &people, 0, ROWS).await.unwrap().rows, 2);
        assert_eq!(place.count("people_resync_e1g1").await, 2, "the session ends before statement {number}");
        assert_eq!(at.progress().await.unwrap().0.rows, 2);
        if !ended.load(Ordering::SeqCst) {
            assert!(number > 6, "{number} statements");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_whose_session_ends_at_any_statement_is_done_by_the_next_try() {
    if is_live() {
        return;
    }
    for number in some() {
        let place = OnSnowflake::new().await;
        whole(&*open(&place.brief(1)).await, &[(people(&place), &["1\told\t\\N"])]).await;
        let at = open(&place.brief(2)).await;
        until_loaded(&*at, &[(people(&place), ROWS)]).await;
        at.seal().await.unwrap();
        at.carry().await.unwrap();
        let (brief, ended) = ending(&place, 2, number).await;
        passes(&open(&brief).await.swap().await.map(drop), &format!("the session ends before statement {number}"));
        at.swap().await.unwrap();
        assert_eq!(place.read("people", &["name"]).await, ["one|f", "two|f"], "the session ends before statement {number}");
        assert_eq!(place.tables().await, ["people", "people_old"], "the session ends before statement {number}");
        if !ended.load(Ordering::SeqCst) {
            assert!(number > 6, "{number} statements");
            break;
        }
    }
}

/// Adds rows of a table without a key, where each time too often shows.
async fn add(applier: &mut dyn Applier, place: &OnSnowflake) -> Result<(), Error> {
    let row = ["2", "two"].map(|value| Cell::Text(value.to_string().into())).to_vec();
    let counts = Counts { inserts: 1, ..Counts::default() };
    applier.write(&lines(place), vec![RowChange::Add { row }], vec![made(1500)], counts).await?;
    applier.commit(Lsn(2000)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_session_ends_at_any_statement_is_applied_once() {
    if is_live() {
        return;
    }
    for number in some() {
        let (place, _, applier) = streaming(lines, &["1\tone"], true).await;
        drop(applier);
        let (brief, ended) = ending(&place, 1, number).await;
        let at = open(&brief).await;
        let outcome = match at.applier().await {
            Ok(mut applier) => add(&mut *applier, &place).await,
            Err(error) => Err(error),
        };
        passes(&outcome, &format!("the session ends before statement {number}"));
        let mut applier = open(&place.brief(1)).await.applier().await.unwrap();
        if applier.position() < Lsn(2000) {
            add(&mut *applier, &place).await.unwrap();
        }
        assert_eq!(place.read("lines", &["id"]).await, ["1|f", "2|f"], "the session ends before statement {number}: {outcome:?}");
        if !ended.load(Ordering::SeqCst) {
            assert!(number > 10 && outcome.is_ok(), "{number} statements: {outcome:?}");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_can_no_longer_be_renewed_ends_the_batch_and_not_the_stream() {
    if is_live() {
        return;
    }
    let (place, _, applier) = streaming(lines, &["1\tone"], true).await;
    drop(applier);
    // Tokens of this proxy's sessions last for a moment, and what would renew them is not known (code 390114).
    let refused = Arc::new(AtomicUsize::new(0));
    let seen = refused.clone();
    let change = move |request: Vec<u8>| {
        let text = String::from_utf8_lossy(&request).into_owned();
        if text.starts_with("POST /session/token-request") {
            seen.fetch_add(1, Ordering::SeqCst);
            let token = text.split("Token=\"").nth(1).unwrap().split('"').next().unwrap();
            return text.replace(token, &"0".repeat(token.len())).into_bytes();
        }
        if !text.starts_with("POST /session/v1/login-request") || seen.load(Ordering::SeqCst) > 0 {
            return request;
        }
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let body = body.replace("\"QUERY_TAG\"", "\"TESTBED_SECONDS_OF_A_TOKEN\":0.05,\"QUERY_TAG\"");
        let length = head.lines().find(|line| line.to_lowercase().starts_with("content-length")).unwrap();
        format!("{}\r\n\r\n{body}", head.replace(length, &format!("content-length: {}", body.len()))).into_bytes()
    };
    let at = open(&through(&place, 1, Arc::new(change)).await).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let outcome = match at.applier().await {
            Ok(applier) if applier.position() == Lsn(2000) => break,
            Ok(mut applier) => add(&mut *applier, &place).await,
            Err(error) => Err(error),
        };
        passes(&outcome, "the token has expired");
        assert!(Instant::now() < deadline, "{outcome:?}");
    }
    assert!(refused.load(Ordering::SeqCst) > 0, "no token was to be renewed");
    assert_eq!(place.read("lines", &["id"]).await, ["1|f", "2|f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_busy_is_asked_again_later_and_under_the_same_id() {
    if is_live() {
        return;
    }
    let place = OnSnowflake::new().await;
    let (at, people) = (open(&place.brief(1)).await, people(&place));
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), std::slice::from_ref(&people), &plan(&[1])).await.unwrap();
    // Three answers to the COPY, and three to the upload.
    let asked = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let seen = asked.clone();
    let change = move |request: Vec<u8>| {
        let text = String::from_utf8_lossy(&request);
        let (copies, uploads) = &mut *seen.lock().unwrap();
        let which = match text.split(' ').next() {
            Some("POST") if is_statement(&request) && text.contains("COPY INTO") => copies,
            Some("PUT") => uploads,
            _ => return request,
        };
        let path = text.split(' ').nth(1).unwrap();
        which.push((path.to_string(), Instant::now()));
        match ["429", "503", "500"].get(which.len() - 1) {
            // The line of the request is ASCII; what follows is not for an upload.
            Some(status) => {
                [text.split(' ').next().unwrap().as_bytes(), format!(" /status/{status} HTTP/1.1").as_bytes(), line_end(&request)].concat()
            }
            None => request,
        }
    };
    let at = open(&through(&place, 1, Arc::new(change)).await).await;
    assert_eq!(load(&*at, &people, 0, ROWS).await.unwrap().rows, 2);
    assert_eq!(place.count("people_resync_e1g1").await, 2);
    let (copies, uploads) = std::mem::take(&mut *asked.lock().unwrap());
    assert_eq!((copies.len(), uploads.len()), (4, 4), "{copies:?} {uploads:?}");
    let id = |path: &str| path.split("requestId=").nth(1).unwrap().split('&').next().unwrap().to_string();
    for (count, pair) in copies.windows(2).enumerate() {
        assert_eq!(id(&pair[0].0), id(&pair[1].0));
        assert!(pair[1].0.contains(&format!("retryCount={}", count + 1)), "{}", pair[1].0);
        assert!(pair[1].1 - pair[0].1 >= Duration::from_millis(200 << count), "{copies:?}");
    }
}

/// A request from the end of its first line.
fn line_end(request: &[u8]) -> &[u8] {
    &request[request.windows(2).position(|w| w == b"\r\n").unwrap()..]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_load_history_knows_is_loaded_if_the_ledger_does_not() {
    if is_live() {
        return;
    }
    let place = OnSnowflake::new().await;
    let (at, people) = (open(&place.brief(1)).await, people(&place));
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), std::slice::from_ref(&people), &plan(&[1])).await.unwrap();
    // Somebody else's COPY of the same file comes right before the transaction, and its rows are gone again: only the history has it.
    let (copies, other, done) = (Arc::new(AtomicUsize::new(0)), place.clone(), AtomicBool::new(false));
    let seen = copies.clone();
    let change = move |request: Vec<u8>| {
        let text = String::from_utf8_lossy(&request);
        seen.fetch_add(usize::from(is_statement(&request) && text.contains("COPY INTO")), Ordering::SeqCst);
        if text.contains("\"sqlText\":\"BEGIN\"") && !done.swap(true, Ordering::SeqCst) {
            let place = other.clone();
            at_once(async move {
                let (stage, into) =
                    (place.ledger(), format!("\"{}\".\"{}\".\"PEOPLE_RESYNC_E1G1\"", place.to.at.database, place.to.schema));
                let copy = format!(
                    "COPY INTO {into} (\"ID\", \"NAME\", \"NOTE\") FROM (SELECT $1, $2, $3 FROM @{stage}/e1g1/) FILES = ('0-0.csv.zst') \
                     FILE_FORMAT = (TYPE = CSV COMPRESSION = ZSTD FIELD_OPTIONALLY_ENCLOSED_BY = '\"')"
                );
                place.run(&copy).await;
                assert_eq!(place.count("people_resync_e1g1").await, 2);
                place.run(&format!("DELETE FROM {into}")).await;
            });
        }
        request
    };
    let at = open(&through(&place, 1, Arc::new(change)).await).await;
    assert_eq!(load(&*at, &people, 0, ROWS).await.unwrap().rows, 2);
    assert_eq!(copies.load(Ordering::SeqCst), 2, "the second one forces the file");
    assert_eq!(place.count("people_resync_e1g1").await, 2);
}

/// The files in the mirror's stage.
async fn files(place: &OnSnowflake) -> Vec<String> {
    let rows = place.rows(&format!("LIST @{}", place.ledger())).await;
    rows.iter().map(|row| row.split('|').next().unwrap().split_once('/').unwrap().1.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_from_the_stage_with_their_chunk_their_epoch_or_their_stream() {
    if is_live() {
        return;
    }
    let place = OnSnowflake::new().await;
    let people = people(&place);
    let none: [&str; 0] = [];
    for epoch in 1..3 {
        let at = open(&place.brief(epoch)).await;
        at.begin().await.unwrap();
        at.create_shadows(boundary(1), std::slice::from_ref(&people), &plan(&[2])).await.unwrap();
        load(&*at, &people, 0, ROWS).await.unwrap();
        assert_eq!(files(&place).await, none);
        // A worker that ends between the upload and the COPY.
        let change = |request: Vec<u8>| match is_statement(&request) && String::from_utf8_lossy(&request).contains("COPY INTO") {
            true => [b"POST /status/503 HTTP/1.1", line_end(&request)].concat(),
            false => request,
        };
        let proxy = Proxy::changing((place.to.at.host.clone(), place.to.at.port), Arc::new(change)).await;
        let ended = load(&*open(&place.through(proxy.address, epoch, 0)).await, &people, 1, &["3\tthree\t\\N"]).await;
        assert!(matches!(ended, Err(Error::Transient(_))), "{ended:?}");
        assert_eq!(files(&place).await, [format!("e{epoch}g1/1-0.csv.zst")]);
        if epoch == 1 {
            at.abandon().await.unwrap();
            assert_eq!(files(&place).await, none);
            continue;
        }
        load(&*at, &people, 1, &["3\tthree\t\\N"]).await.unwrap();
        assert_eq!(files(&place).await, none);
        from_loaded(&*at).await.unwrap();
        let mut applier = at.applier().await.unwrap();
        let row = ["4", "four", "x"].map(|value| Cell::Text(value.to_string().into())).to_vec();
        applier.write(&people, vec![RowChange::Upsert { row, deleted: false }], vec![made(1500)], Counts::default()).await.unwrap();
        assert_eq!(files(&place).await.len(), 1);
        open(&place.brief(2)).await.applier().await.unwrap();
        assert_eq!(files(&place).await, none);
    }
}
