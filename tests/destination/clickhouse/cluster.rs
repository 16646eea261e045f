//! What is asked of a cluster. There is none here: a network in between takes out what only a cluster understands, and keeps what was said.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use mirror_operator::{
    api::{
        clickhouse::{ClickHouseTable, Engine},
        peer::Role,
    },
    brief::{Brief, DestinationPeer},
    check,
    destination::{RowChange, clickhouse::Peer},
};

use crate::{
    clickhouse::{change, row, streaming, t, upsert},
    fixture::{Fixture, column, made, open, whole},
    on_clickhouse::OnClickHouse,
    proxy::Proxy,
    support,
};

const ON: &str = " ON CLUSTER `the cluster`";
const REPLICA: &str = "'/clickhouse/tables/{uuid}/{shard}', '{replica}'";

/// What one server makes of it.
fn alone(sql: &str) -> String {
    if sql.starts_with("SYSTEM SYNC REPLICA") {
        return "SELECT 1".into();
    }
    let plain = [
        (ON, ""),
        (&format!("({REPLICA})"), ""),
        (&format!("({REPLICA}, "), "("),
        ("ENGINE = Replicated", "ENGINE = "),
        (" replicated_deduplication_window =", " non_replicated_deduplication_window ="),
        // What it answers is of a cluster again.
        (
            "name, engine, comment FROM system.tables",
            "name, replaceRegexpOne(engine, '(.*MergeTree)$', 'Replicated\\\\1') AS engine, comment FROM system.tables",
        ),
        ("clusterAllReplicas('the cluster', system.processes)", "system.processes"),
    ];
    plain.iter().fold(sql.to_string(), |sql, (of_cluster, alone)| sql.replace(of_cluster, alone))
}

/// A statement and where it was sent to.
type Said = Arc<Mutex<Vec<(String, String)>>>;

/// Takes down and changes what a request says. Statements that come with rows stand in the URL and are no definitions.
async fn listening(place: &OnClickHouse) -> (Proxy, Said) {
    let said = Said::default();
    let change = {
        let said = said.clone();
        move |request: Vec<u8>| {
            let end = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
            let head = String::from_utf8(request[..end].to_vec()).unwrap();
            let url = head.lines().next().unwrap().to_string();
            if url.contains("&query=") {
                said.lock().unwrap().push((url.clone(), url));
                return request;
            }
            let sql = String::from_utf8(request[end + 4..].to_vec()).unwrap();
            let sql: String = sql.split_inclusive('\n').filter(|line| !line.starts_with("--") && !line.trim().is_empty()).collect();
            let plain = alone(&sql);
            let lines = head.lines().filter(|line| !line.to_lowercase().starts_with("content-length:"));
            let head: Vec<String> = lines.map(str::to_string).chain([format!("content-length: {}", plain.len())]).collect();
            said.lock().unwrap().push((url, sql));
            format!("{}\r\n\r\n{plain}", head.join("\r\n")).into_bytes()
        }
    };
    let proxy = Proxy::changing((place.to.host.clone(), place.to.port), Arc::new(change)).await;
    (proxy, said)
}

fn through(place: &OnClickHouse, proxy: &Proxy, epoch: u32) -> Brief {
    let mut at = place.to.clone();
    (at.host, at.port) = (proxy.address.ip().to_string(), proxy.address.port());
    let peer = Peer { at, settings: BTreeMap::new(), cluster: Some("the cluster".into()) };
    Brief { destination: DestinationPeer::ClickHouse(peer), ..place.brief(epoch) }
}

/// Two epochs with everything that may be asked for between them, one that is given up, and the end of the mirror.
async fn life(place: &OnClickHouse, proxy: &Proxy) {
    let at = open(&through(place, proxy, 1)).await;
    whole(&*at, &[(t(place), &["1\tone\ta", "2\ttwo\ta"])]).await;
    let mut to = at.applier().await.unwrap();
    let mut schema = t(place);
    change(&mut *to, &schema, 2000, upsert("1|…|b")).await.unwrap();
    change(&mut *to, &schema, 2001, RowChange::Delete { key: row("2") }).await.unwrap();
    schema.columns.push(column("note", "text", false));
    schema.columns[3].destination_type = "Nullable(String)".into();
    to.add_column(&schema, 3, Some("x")).await.unwrap();
    schema = to.allow_null(&schema, 2).await.unwrap();
    to.truncate(&schema, made(2001)).await.unwrap();
    assert_eq!(place.read("t", &["id", "name", "kind", "note"]).await, ["1|one|b|x|t", "2|two|a|x|t"]);
    place.run("ALTER TABLE public.t ADD INDEX by_name name TYPE bloom_filter GRANULARITY 1").await;
    place.run("ALTER TABLE public.t ADD COLUMN twice Int64 ALIAS id * 2, COMMENT COLUMN name 'of it'").await;
    let running = tokio::spawn({
        let (place, id) = (place.clone(), format!("mo-{}-e1-late", place.brief(1).mirror_uid));
        async move { place.ask_as("SELECT sleepEachRow(1) FROM numbers(3600) SETTINGS max_block_size = 1", &id).await }
    });
    let seen = format!("SELECT count() FROM system.processes WHERE query_id = 'mo-{}-e1-late'", place.brief(1).mirror_uid);
    support::until("it runs", async || place.rows(&seen).await == ["1"]).await;
    let at = open(&through(place, proxy, 2)).await;
    whole(&*at, &[(schema.clone(), &["3\tthree\tc\ty"])]).await;
    assert!(running.await.unwrap().is_err());
    at.drop_retired().await.unwrap();
    assert_eq!(place.read("t", &["id", "name"]).await, ["1|one|t", "2|two|t", "3|three|f"]);
    let at = open(&through(place, proxy, 3)).await;
    at.begin().await.unwrap();
    at.create_shadows(crate::fixture::boundary(1), std::slice::from_ref(&schema), &crate::fixture::plan(&[1])).await.unwrap();
    at.renew_snapshot(crate::fixture::boundary(2)).await.unwrap();
    at.abandon().await.unwrap();
    assert_eq!(place.tables().await, ["t"]);
    at.forget(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_defined_goes_to_every_replica_and_whatever_is_written_to_most_of_them() {
    for engine in [Engine::ReplacingMergeTree, Engine::CoalescingMergeTree] {
        let place = OnClickHouse::new().await.with(ClickHouseTable { engine, ..ClickHouseTable::default() });
        let (proxy, said) = listening(&place).await;
        life(&place, &proxy).await;
        let said = said.lock().unwrap().clone();
        let mut kinds = BTreeMap::new();
        for (url, sql) in &said {
            for setting in ["insert_quorum=auto", "select_sequential_consistency=1", "distributed_ddl_output_mode=throw", "alter_sync=2"] {
                assert!(url.contains(setting), "{setting}: {sql}");
            }
            // Those who load a table at once need not wait for each other.
            assert_eq!(url.contains("insert_quorum_parallel=1"), url.contains("insert_deduplication_token"), "{url}");
            assert_eq!(url.matches("insert_quorum_parallel=").count(), 1, "{url}");
            let kind = sql.split(' ').take(2).collect::<Vec<_>>().join(" ");
            let defines = ["CREATE", "ALTER", "DROP", "RENAME", "EXCHANGE", "KILL", "SYSTEM", "TRUNCATE", "OPTIMIZE", "DETACH", "ATTACH"];
            if !defines.iter().any(|word| kind.starts_with(word)) {
                assert!(sql.starts_with("SELECT ") || sql.starts_with("INSERT INTO ") || sql.starts_with("POST "), "{sql}");
                continue;
            }
            assert_eq!(sql.matches(ON).count(), 1, "{sql}");
            assert!(!sql.contains("MergeTree") || sql.contains("ENGINE = Replicated") && sql.contains(REPLICA), "{sql}");
            kinds.insert(kind, sql.clone());
        }
        let expected = ["ALTER TABLE", "CREATE TABLE", "DROP TABLE", "EXCHANGE TABLES", "KILL QUERY", "RENAME TABLE", "SYSTEM SYNC"];
        assert_eq!(kinds.keys().collect::<Vec<_>>(), expected);
        for sql in said.iter().map(|(_, sql)| sql).filter(|sql| sql.contains(ON)) {
            // The server's own parser has nothing against it.
            place.run(&format!("SELECT formatQuery({})", mirror_operator::destination::clickhouse::quote::literal(sql))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_cannot_hold_the_tables_is_refused_with_the_cure() {
    let place = OnClickHouse::new().await;
    let reasons = async |cluster: &str| {
        let peer = Peer { at: place.to.clone(), settings: BTreeMap::new(), cluster: Some(cluster.into()) };
        let report = check::run(&DestinationPeer::ClickHouse(peer), &[Role::Destination]).await;
        report.problems.into_iter().map(|f| (f.reason, f.message)).collect::<Vec<_>>()
    };
    let unknown = reasons("nowhere").await;
    assert_eq!(unknown[0].0, "ClusterUnknown");
    assert!(
        unknown[0].1.contains("\"nowhere\"") && unknown[0].1.contains("remote_servers") && unknown[0].1.contains("lonely"),
        "{unknown:?}"
    );
    let sharded = reasons("sharded").await;
    assert!(sharded.len() == 1 && sharded[0].0 == "ClusterSharded" && sharded[0].1.contains("2 shards"), "{sharded:?}");
    let bare = reasons("lonely").await;
    assert_eq!(bare.iter().map(|(reason, _)| reason.as_str()).collect::<Vec<_>>(), ["KeeperMissing", "MacrosMissing"], "{bare:?}");
    assert!(bare[1].1.contains("<macros>"), "{bare:?}");
    streaming(&place).await;
    assert_eq!(reasons("lonely").await[2].0, "LedgerNotReplicated");
}
