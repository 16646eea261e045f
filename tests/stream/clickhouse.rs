//! The change stream from a PostgreSQL server to a ClickHouse server, named by MIRROR_TEST_CLICKHOUSE_URL.

use std::time::Instant;

use mirror_operator::{
    brief::{Brief, DestinationPeer},
    destination::{self, Boundary, Destination, Error, Plan, clickhouse::Peer},
    postgres::{Connection, Lsn, connect, wire::ReplicationSession},
    source::catalog,
    stream::{self, Ended, Health},
    table::TableSchema,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::{self, CLICKHOUSE, SOURCE, database, until, value};

/// A source and an empty mirror of its table `items`, whose tables are live.
struct Stream {
    brief: Brief,
    source: Client,
    to: Connection,
}

const ITEMS: &str = "CREATE TABLE public.items (id int PRIMARY KEY, name text, big text, price numeric(10,2), at timestamptz, tags text[]);
    ALTER TABLE public.items ALTER big SET STORAGE EXTERNAL";

/// Runs a statement. A server that is away for a moment is asked again: these tests may run while it is killed.
async fn ask(to: &Connection, sql: &str) -> String {
    let password = std::fs::read_to_string(&to.password.as_ref().unwrap().path).unwrap();
    let mut answer = None;
    until("the server answers", async || {
        let request = reqwest::Client::new().post(format!("http://{}:{}/", to.host, to.port)).body(sql.to_string());
        let sent = request.header("X-ClickHouse-User", &to.user).header("X-ClickHouse-Key", &password).send().await;
        answer = match sent {
            Ok(sent) => Some((sent.status().is_success(), sent.text().await.unwrap_or_default())),
            Err(_) => None,
        };
        answer.is_some()
    })
    .await;
    let (fine, text) = answer.unwrap();
    assert!(fine, "{sql}: {text}");
    text.trim_end().to_string()
}

/// All steps up to the swap of empty tables; whatever fails is done again from the beginning.
async fn go_live(brief: &Brief, boundary: Boundary, tables: &[TableSchema]) -> Result<(), Error> {
    let destination = destination::open(brief).await?;
    assert_eq!(destination.preflight(tables).await?, vec![]);
    destination.begin().await?;
    destination.create_shadows(boundary, tables, &Plan::default()).await?;
    destination.seal().await?;
    destination.carry().await?;
    destination.swap().await.map(drop)
}

impl Stream {
    async fn new(name: &str, replication: serde_json::Value) -> Self {
        let from = database(SOURCE, &format!("stream_{name}_source")).await;
        let mut to = support::server(CLICKHOUSE);
        to.database = format!("stream_{name}");
        ask(&to, &format!("DROP DATABASE IF EXISTS {} SYNC", to.database)).await;
        ask(&to, &format!("CREATE DATABASE {}", to.database)).await;
        let source = connect(&from, "test").await.unwrap();
        source.batch_execute(ITEMS).await.unwrap();
        // Of one mirror's tables, wherever they are, another of the same UID would take some for its own.
        let own = name.bytes().fold(0u64, |sum, byte| (sum << 8 | u64::from(byte)) & 0xffff_ffff_ffff);
        let uid = format!("0a1b2c3d-{:04x}-4000-8000-{own:012x}", std::process::id() & 0xffff);
        let brief: Brief = serde_json::from_value(serde_json::json!({
            "namespace": "test", "mirror": name, "mirrorUid": uid, "epoch": 1, "previousEpoch": 0, "resync": "r", "resyncUid": uid,
            "pipelineUrl": "", "source": from, "destination": DestinationPeer::ClickHouse(Peer { at: to.clone(), settings: Default::default(), cluster: None }),
            "tables": [{ "source": "public.items", "destination": format!("{}.items", to.database) }],
            "softDelete": { "enabled": true, "column": "_peerdb_is_deleted" }, "syncedAtColumn": "_peerdb_synced_at",
            "snapshot": {}, "replication": replication, "carry": {},
            "oldSnapshotWaitMillis": 0, "onOldSnapshot": "Proceed", "keepOldMillis": 0
        }))
        .unwrap();
        source.batch_execute(&format!("CREATE PUBLICATION {} FOR TABLE public.items", brief.slot())).await.unwrap();
        let mut session = ReplicationSession::connect(&brief.source, "test").await.unwrap();
        let slot = session.create_slot(&brief.slot(), false).await.unwrap();
        let tables = catalog::read(&source, &brief).await.unwrap().tables;
        let boundary = Boundary { generation: 1, lsn: slot.consistent_point };
        until("the tables are live", async || match go_live(&brief, boundary, &tables).await {
            Ok(()) => true,
            Err(Error::Transient(_)) => false,
            Err(error) => panic!("{error:?}"),
        })
        .await;
        Self { brief, source, to }
    }

    fn run(&self) -> (JoinHandle<Ended>, watch::Receiver<Health>) {
        let (sender, health) = watch::channel(Health::default());
        let brief = self.brief.clone();
        let task = tokio::spawn(async move {
            let destination: Box<dyn Destination> = destination::open(&brief).await.unwrap();
            stream::run(&brief, destination.as_ref(), &sender, stream::bound::Bound::none(), CancellationToken::new()).await
        });
        (task, health)
    }

    async fn settle(&self, health: &watch::Receiver<Health>) {
        let target: Lsn = value(&self.source, "SELECT pg_current_wal_insert_lsn()::text").await.parse().unwrap();
        until(&format!("{target} is applied"), async || health.borrow().stream.applied_lsn >= target).await;
    }

    /// Both sides hold the same rows; says how many.
    async fn same(&self, columns: &str) -> usize {
        let here: Vec<String> = self
            .source
            .query(
                &format!(
                    "SELECT concat_ws('|', {columns}, coalesce(array_to_string(tags, ',', 'NULL'), '')) FROM public.items ORDER BY id"
                ),
                &[],
            )
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        let tags = "arrayStringConcat(arrayMap(t -> ifNull(t, 'NULL'), tags), ',')";
        let sql = format!(
            "SELECT arrayStringConcat(arrayFilter(v -> v IS NOT NULL, [{columns}, {tags}]), '|') FROM {}.items FINAL ORDER BY id",
            self.to.database
        );
        let cents = "if(price IS NULL, NULL, toString(toInt64(assumeNotNull(price) * 100)))";
        let sql = sql.replace("(price * 100)::int::text", cents);
        let there = ask(&self.to, &sql.replace("md5(big)", "lower(hex(MD5(big)))").replace("::text", "::Nullable(String)")).await;
        let there: Vec<String> = there.lines().map(str::to_string).collect();
        assert_eq!(here.len(), there.len());
        for (ours, theirs) in here.iter().zip(&there) {
            assert_eq!(ours, theirs);
        }
        there.len()
    }

    async fn remove(self) {
        ask(&self.to, &format!("DROP DATABASE {} SYNC", self.to.database)).await;
        support::remove_database(SOURCE, &self.brief.source.database).await;
    }
}

const COLUMNS: &str = "id::text, name::text, md5(big), (price * 100)::int::text";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_arrives_also_when_the_stream_is_killed_at_any_moment() {
    let stream = Stream::new("changes", serde_json::json!({ "batchRows": 200, "batchInterval": "20ms" })).await;
    let large = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 400))";
    let (mut task, mut health) = stream.run();
    let mut statements =
        vec![format!("INSERT INTO public.items SELECT i, 'n' || i, {large}, i, now(), ARRAY['a', NULL] FROM generate_series(1, 500) i")];
    for round in 0..12 {
        statements.push(format!("UPDATE public.items SET price = price + 1 WHERE id % 7 = {}", round % 7));
        statements.push(format!("UPDATE public.items SET id = id + 10000 WHERE id % 50 = {round}"));
        statements.push(format!("DELETE FROM public.items WHERE id % 31 = {round}"));
        statements.push(format!("INSERT INTO public.items SELECT i, 'again', NULL, 0, NULL, '{{}}' FROM generate_series(1, 100) i WHERE i % 31 = {round} ON CONFLICT DO NOTHING"));
        statements.push(format!("BEGIN; INSERT INTO public.items (id) VALUES ({0}); UPDATE public.items SET name = 'x', big = {large} WHERE id = {0}; DELETE FROM public.items WHERE id = {0}; INSERT INTO public.items (id, name) VALUES ({0}, 'y'); COMMIT", 20_000 + round));
    }
    statements.push("TRUNCATE public.items".into());
    statements.push("INSERT INTO public.items SELECT i, 'new', 'b', 1, now(), NULL FROM generate_series(1, 50) i".into());
    statements.push("ALTER TABLE public.items ADD COLUMN extra int DEFAULT 7".into());
    statements.push("INSERT INTO public.items (id, extra) VALUES (1000, 8); UPDATE public.items SET name = 'z' WHERE id = 3".into());
    for (number, sql) in statements.iter().enumerate() {
        stream.source.batch_execute(sql).await.unwrap();
        if number % 5 == 4 {
            task.abort();
            let _ = task.await;
            (task, health) = stream.run();
        }
        if sql.starts_with("TRUNCATE") {
            stream.settle(&health).await;
            assert_eq!(stream.same(COLUMNS).await, 0);
        } else if number % 20 == 10 {
            stream.settle(&health).await;
            assert!(stream.same(COLUMNS).await > 300);
        }
    }
    stream.settle(&health).await;
    assert_eq!(stream.same(&format!("{COLUMNS}, extra::text")).await, 51);
    task.abort();
    stream.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_record_is_older_than_that_of_its_predecessors_end_stays() {
    let stream = Stream::new("order", serde_json::json!({ "batchRows": 1, "batchInterval": "20ms" })).await;
    stream.source.batch_execute("INSERT INTO public.items (id, name) VALUES (500, 'old')").await.unwrap();
    let other = async || connect(&stream.brief.source, "test").await.unwrap();
    let (holder, writer) = (other().await, other().await);
    holder.batch_execute("BEGIN; INSERT INTO public.items (id) VALUES (1)").await.unwrap();
    // COPY logs all tuples of a buffer before it looks at the first one's key, which has to wait.
    let copying = tokio::spawn(async move {
        let sink = writer.copy_in::<_, bytes::Bytes>("COPY public.items (id, name) FROM STDIN").await.unwrap();
        let mut sink = std::pin::pin!(sink);
        futures::SinkExt::send(&mut sink, "1\tnew\n500\tnew\n".into()).await.unwrap();
        sink.finish().await.unwrap()
    });
    let waiting = "SELECT count(*)::text FROM pg_stat_activity WHERE query LIKE 'COPY public.items%' AND wait_event_type = 'Lock'";
    until("the COPY waits", async || value(&stream.source, waiting).await == "1").await;
    stream.source.batch_execute("DELETE FROM public.items WHERE id = 500").await.unwrap();
    holder.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(copying.await.unwrap(), 2);
    let (task, health) = stream.run();
    stream.settle(&health).await;
    assert_eq!(stream.same(COLUMNS).await, 2);
    task.abort();
    stream.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_applied_quickly() {
    let stream = Stream::new("speed", serde_json::json!({})).await;
    let rows = 200_000u32;
    stream
        .source
        .batch_execute(&format!(
            "INSERT INTO public.items SELECT i, 'name ' || i, 'value', 1, now(), NULL FROM generate_series(1, {rows}) i"
        ))
        .await
        .unwrap();
    stream.source.batch_execute("UPDATE public.items SET price = price + 1").await.unwrap();
    let began = Instant::now();
    let (task, health) = stream.run();
    stream.settle(&health).await;
    let seconds = began.elapsed().as_secs_f64();
    println!("{} changes in {seconds:.1} s: {:.0} a second", 2 * rows, f64::from(2 * rows) / seconds);
    let count = format!("SELECT count(), sum(price) FROM {}.items FINAL", stream.to.database);
    assert_eq!(ask(&stream.to, &count).await, format!("{rows}\t{}", 2 * rows));
    task.abort();
    stream.remove().await;
}
