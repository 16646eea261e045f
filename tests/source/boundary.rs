//! The boundary between snapshot and change stream, under load: no row in neither, none in both.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
};

use mirror_operator::{
    brief::Brief,
    destination::Cell,
    postgres::{
        Lsn,
        wire::{Frame, ReplicationSession},
    },
    source::{
        catalog,
        pgoutput::{Message, decode},
        slot,
        snapshot::{self, Holder},
    },
};
use tokio_postgres::Client;

use crate::fixture::{Fixture, number};

const ROUNDS: u32 = 25;
const WRITERS: u32 = 6;

/// Inserts one row a transaction, some of them with a pause before the commit, so that commits and LSNs of changes interleave.
async fn write(client: &Client, next: &AtomicI64, stop: &AtomicBool) {
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = next.fetch_add(1, Ordering::Relaxed);
        turn += 1;
        let pause = if turn % 3 == 0 { "SELECT pg_sleep(0.002);" } else { "" };
        let lazy = if turn % 2 == 0 { "SET LOCAL synchronous_commit = off;" } else { "" };
        client.batch_execute(&format!("BEGIN; {lazy} INSERT INTO t VALUES ({id}); {pause} COMMIT")).await.unwrap();
    }
}

async fn ids(client: &Client) -> BTreeSet<i64> {
    client.query("SELECT id FROM public.t", &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Every insert that the slot streams up to `end`, with where its transaction's commit record starts.
async fn streamed(brief: &Brief, end: Lsn) -> Vec<(i64, Lsn)> {
    let session = ReplicationSession::connect(&brief.source, "test").await.unwrap();
    let mut stream = session.start(&brief.slot(), Lsn(0), &brief.publication()).await.unwrap();
    let (mut rows, mut commit) = (Vec::new(), Lsn(0));
    loop {
        for frame in stream.next().await.unwrap() {
            match frame {
                Frame::Keepalive { end: at, .. } if at >= end => return rows,
                Frame::Keepalive { .. } => {}
                Frame::Data(_, data) => match decode(data).unwrap() {
                    Message::Begin { final_lsn, .. } => commit = final_lsn,
                    Message::Commit { end_lsn, .. } if end_lsn >= end => return rows,
                    Message::Insert { row, .. } => {
                        let Cell::Text(text) = &row[0] else { panic!("{row:?}") };
                        rows.push((std::str::from_utf8(text).unwrap().parse().unwrap(), commit));
                    }
                    _ => {}
                },
            }
        }
    }
}

fn check(what: &str, snapshot: &BTreeSet<i64>, stream: &BTreeSet<i64>, all: &BTreeSet<i64>) {
    let both: Vec<_> = snapshot.intersection(stream).collect();
    assert!(both.is_empty(), "{what}: doubled: {both:?}");
    let lost: Vec<_> = all.iter().filter(|id| !snapshot.contains(id) && !stream.contains(id)).collect();
    assert!(lost.is_empty(), "{what}: lost: {lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_lost_or_doubled_at_the_boundary() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    source.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY)").await.unwrap();
    let brief = fixture.brief(1, &["public.t"]);
    let tables = catalog::read(&fixture.as_pod().await, &brief).await.unwrap().tables;
    slot::create_publication(&fixture.as_pod().await, &brief, &tables).await.unwrap();

    let (next, stop) = (AtomicI64::new(1), AtomicBool::new(false));
    let mut clients = Vec::new();
    for _ in 0..WRITERS {
        clients.push(fixture.at_source().await);
    }
    let writers = futures::future::join_all(clients.iter().map(|client| write(client, &next, &stop)));
    let snapshots = async {
        // The slot's own snapshot first, then those that would replace it: all must fit the one slot's stream.
        let mut taken = Vec::new();
        for round in 0..ROUNDS {
            let exported = match round {
                0 => snapshot::create_slot(&brief).await.unwrap(),
                _ => snapshot::export_again(&brief, round + 1).await.unwrap(),
            };
            let holder = Holder::import(&brief, &exported.name, exported.lsn).await.unwrap();
            taken.push((exported.lsn, ids(holder.client()).await));
        }
        stop.store(true, Ordering::Relaxed);
        taken
    };
    let (_, taken) = tokio::join!(writers, snapshots);

    let all = ids(&source).await;
    // Where WAL is inserted, not where it is written: rows of lazy commits are seen before their commit records are written.
    let end: String = source.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap().get(0);
    // Something that commits after `end`, so that the stream is known to have passed it.
    source.batch_execute("INSERT INTO t VALUES (-1)").await.unwrap();
    let stream = streamed(&brief, end.parse().unwrap()).await;
    assert!(stream.len() > 100, "the load was real: {}", stream.len());
    assert!(stream.iter().all(|(_, commit)| *commit >= taken[0].0), "the slot itself follows the rule");
    for (round, (lsn, snapshot)) in taken.iter().enumerate() {
        let after: BTreeSet<i64> = stream.iter().filter(|(id, commit)| commit >= lsn && *id > 0).map(|(id, _)| *id).collect();
        check(&format!("round {round} at {lsn}"), snapshot, &after, &all);
    }
    println!("{} rows, {} streamed, {ROUNDS} snapshots", all.len(), stream.len());
    assert!(number(&source, "SELECT count(*) FROM t").await > 0);
    drop((clients, source));
    fixture.end().await;
}
