//! The server is killed between two statements. The mirror goes on where it was once the server is back.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use mirror_operator::{
    brief::{Brief, DestinationPeer},
    destination::{Counts, Destination, Error, RowChange, clickhouse::Peer},
    postgres::{Connection, Lsn},
    table::TableSchema,
};

use super::{row, upsert};
use crate::{
    fixture::{Fixture, boundary, from_loaded, load, made, open, plan, table, whole},
    on_clickhouse::OnClickHouse,
    proxy::Proxy,
    support,
};

/// Every third statement: each takes a server's start and two epochs. Which third is another each time.
const STEP: usize = 3;

/// The testbed's script, about the server that is ours to kill.
fn testbed(command: &str) -> String {
    let name = std::env::var("MIRROR_TEST_CLICKHOUSE_KILLED").expect("MIRROR_TEST_CLICKHOUSE_KILLED names a server of the testbed");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testbed/clickhouse");
    let output = Command::new(script).args([command, &name]).output().unwrap();
    assert!(output.status.success(), "{command} {name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().into()
}

fn server() -> Connection {
    let (_, address) = testbed("url").rsplit_once('@').map(|(a, b)| (a.to_string(), b.to_string())).unwrap();
    let (host, port) = address.split_once('/').unwrap().0.rsplit_once(':').unwrap();
    Connection { host: host.into(), port: port.parse().unwrap(), ..support::server(support::CLICKHOUSE) }
}

fn t(place: &OnClickHouse) -> TableSchema {
    place.adapt(table(0, "t", &["id bigint!", "name text"]))
}

/// What becomes of the server.
#[derive(Default)]
struct Fate {
    /// How many statements came.
    seen: AtomicUsize,
    /// While it is being killed and started again. A server that dies still takes connections after it has closed others.
    away: AtomicBool,
}

/// A brief whose server is killed and started again before the statement with this number reaches it.
async fn through_kill(place: &OnClickHouse, brief: Brief, number: usize) -> (Brief, Arc<Fate>) {
    let fate = Arc::new(Fate::default());
    let told = fate.clone();
    let kill = move |request| {
        if told.seen.fetch_add(1, Ordering::SeqCst) + 1 == number {
            told.away.store(true, Ordering::SeqCst);
            testbed("kill");
            testbed("restart");
            told.away.store(false, Ordering::SeqCst);
        }
        request
    };
    let proxy = Proxy::changing((place.to.host.clone(), place.to.port), Arc::new(kill)).await;
    let mut at = place.to.clone();
    (at.host, at.port) = (proxy.address.ip().to_string(), proxy.address.port());
    (Brief { destination: DestinationPeer::ClickHouse(Peer { at, settings: Default::default(), cluster: None }), ..brief }, fate)
}

/// A whole epoch and two batches of its stream.
async fn live(at: &dyn Destination, schema: &TableSchema) -> Result<(), Error> {
    at.begin().await?;
    at.create_shadows(boundary(1), std::slice::from_ref(schema), &plan(&[2])).await?;
    load(at, schema, 0, &["1\tnew"]).await?;
    load(at, schema, 1, &["2\ttwo"]).await?;
    from_loaded(at).await?;
    at.drop_retired().await?;
    for (position, change) in [(2000, upsert("3|three")), (2001, RowChange::Delete { key: row("2") })] {
        let mut to = at.applier().await?;
        if to.position() < Lsn(position) {
            to.write(schema, vec![change], vec![made(position)], Counts { inserts: 1, updates: 0, deletes: 0 }).await?;
            to.commit(Lsn(position)).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_between_two_statements_loses_and_doubles_nothing() {
    let server = server();
    let mut number = support::first(STEP);
    println!("beginning with statement {number}");
    loop {
        let place = OnClickHouse::at(&server).await;
        whole(&*open(&place.brief(1)).await, &[(t(&place), &["1\told", "7\tgone"])]).await;
        let (brief, fate) = through_kill(&place, place.brief(2), number).await;
        let at = open(&brief).await;
        let mut tries = 1;
        while let Err(error) = live(&*at, &t(&place)).await {
            assert!(matches!(error, Error::Transient(_)) && tries < 3, "killed before statement {number}: {error:?}");
            tries += 1;
            support::until("the server is back", async || !fate.away.load(Ordering::SeqCst)).await;
        }
        assert_eq!(place.read("t", &["id", "name"]).await, ["1|new|f", "2|two|t", "3|three|f", "7|gone|t"], "statement {number}");
        assert_eq!(place.tables().await, ["t"], "statement {number}");
        assert_eq!(open(&place.brief(2)).await.progress().await.unwrap().1[0].inserts, 2, "statement {number}");
        let seen = fate.seen.load(Ordering::SeqCst);
        if seen < number {
            println!("{seen} statements");
            assert!(number > 20, "an epoch takes more than {number} statements");
            return;
        }
        number += STEP;
    }
}
