//! A mirror whose tables are loaded (they were empty) and swapped: what the change stream begins with.

use std::sync::Arc;

use mirror_operator::{
    brief::Brief,
    destination::postgres::Postgres,
    postgres::{Connection, Lsn, connect, ident, literal, wire::ReplicationSession},
    stream::{self, Ended, Health},
    table::{Column, Identity, TableName, TableSchema},
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::{self, DESTINATION, SOURCE, database, until, value};

pub const UID: &str = "0a1b2c3d-0000-4000-8000-000000000000";

pub struct World {
    pub brief: Brief,
    pub source: Client,
    pub destination: Client,
    pub schemas: Vec<TableSchema>,
}

/// A running stream. Dropping it kills it.
pub struct Running {
    pub task: JoinHandle<Ended>,
    pub health: watch::Receiver<Health>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let from = self.brief.source.database.clone();
        let Connection { database: to, .. } = self.brief.destination.connection().clone();
        // A failed test has told already why.
        let _ = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                support::remove_database(SOURCE, &from).await;
                support::remove_database(DESTINATION, &to).await;
            });
        })
        .join();
    }
}

pub struct Options {
    pub soft: bool,
    pub excluded: Vec<String>,
}

impl World {
    pub async fn new(name: &str, tables: &[&str], ddl: &str) -> Self {
        Self::with(name, tables, ddl, Options { soft: true, excluded: vec![] }).await
    }

    /// `ddl` makes `tables` (in schema public), at both ends.
    pub async fn with(name: &str, tables: &[&str], ddl: &str, options: Options) -> Self {
        // One server may be both sides.
        let from = database(SOURCE, &format!("stream_{name}_source")).await;
        let to = database(DESTINATION, &format!("stream_{name}_destination")).await;
        let source = connect(&from, "test").await.unwrap();
        let destination = connect(&to, "test").await.unwrap();
        source.batch_execute(&format!("SET search_path = public; {ddl}")).await.unwrap();
        destination.batch_execute(&format!("SET search_path = public; {ddl}")).await.unwrap();
        let brief = brief(name, tables, from, to, &options);
        let list: Vec<_> = tables.iter().map(|t| format!("public.{}", ident(t))).collect();
        source.batch_execute(&format!("CREATE PUBLICATION {} FOR TABLE {}", ident(&brief.slot()), list.join(", "))).await.unwrap();
        let mut world = Self { brief, source, destination, schemas: vec![] };
        for (number, table) in tables.iter().enumerate() {
            let schema = world.schema(number as u32, table, &options).await;
            world.schemas.push(schema);
            if options.soft {
                let own = "ADD \"_PEERDB_IS_DELETED\" boolean NOT NULL DEFAULT false, ADD \"_PEERDB_SYNCED_AT\" timestamptz NOT NULL DEFAULT now()";
                world.destination.batch_execute(&format!("ALTER TABLE {} {own}", ident(table))).await.unwrap();
            }
        }
        let mut session = ReplicationSession::connect(&world.brief.source, "test").await.unwrap();
        let slot = session.create_slot(&world.brief.slot(), false).await.unwrap();
        world.write_ledger(slot.consistent_point).await;
        world
    }

    async fn schema(&self, number: u32, table: &str, options: &Options) -> TableSchema {
        let sql = "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid, a.attnotnull, a.attgenerated <> '',
                          coalesce(a.attnum = ANY (i.indkey), false), c.oid
                   FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                   LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
                   WHERE c.relnamespace = 'public'::regnamespace AND c.relname = $1 ORDER BY a.attnum";
        let rows = self.source.query(sql, &[&table]).await.unwrap();
        let kept: Vec<_> = rows.iter().filter(|r| !options.excluded.contains(&r.get(0))).collect();
        let column = |r: &&tokio_postgres::Row| Column {
            source: r.get(0),
            destination: r.get(0),
            source_type: r.get(1),
            base_type: None,
            source_type_oid: r.get(2),
            destination_type: r.get(1),
            not_null: r.get(3),
            generated: r.get::<_, bool>(4).then(|| "?".into()),
            binary: true,
            as_text: false,
        };
        let key: Vec<usize> = kept.iter().enumerate().filter(|(_, r)| r.get(5)).map(|(i, _)| i).collect();
        let name = TableName { schema: "public".into(), name: table.into() };
        TableSchema {
            number,
            source: name.clone(),
            source_oid: rows[0].get(6),
            destination: name,
            columns: kept.iter().map(column).collect(),
            identity: if key.is_empty() { Identity::FullRow } else { Identity::Key(key) },
            partition_key: None,
        }
    }

    async fn write_ledger(&self, start: Lsn) {
        let mut sql = format!(
            "CREATE SCHEMA IF NOT EXISTS _mirror_operator; {};
             INSERT INTO _mirror_operator.mirror VALUES ('{UID}', 'test/test', 1, 1);
             INSERT INTO _mirror_operator.epoch (mirror, epoch, resync, slot, generation, snapshot_lsn, start_lsn, swapped_at)
             VALUES ('{UID}', 1, '{UID}', '{}', 1, '{start}', '{start}', now());",
            include_str!("../../src/destination/postgres/ledger.sql"),
            self.brief.slot()
        );
        for schema in &self.schemas {
            sql += &format!(
                "INSERT INTO _mirror_operator.table
                 (mirror, epoch, number, schema, destination_schema, destination_name, shadow_name, relation, generation, gate_lsn, sealed_at)
                 VALUES ('{UID}', 1, {}, {}, 'public', {name}, {name}, 0, 1, '{start}', now());",
                schema.number,
                literal(&serde_json::to_string(schema).unwrap()),
                name = literal(&schema.destination.name)
            );
        }
        self.destination.batch_execute(&sql).await.unwrap();
    }

    /// Starts a pipeline process.
    pub fn run(&self) -> Running {
        self.run_in(self.process())
    }

    /// What a pipeline process holds as long as it lives.
    pub fn process(&self) -> Arc<Postgres> {
        let to = self.brief.destination.connection();
        Arc::new(Postgres::new(self.brief.clone(), to.clone()))
    }

    pub fn run_in(&self, process: Arc<Postgres>) -> Running {
        let (sender, health) = watch::channel(Health::default());
        let brief = self.brief.clone();
        let task = tokio::spawn(async move {
            stream::run(&brief, process.as_ref(), &sender, stream::bound::Bound::none(), CancellationToken::new()).await
        });
        Running { task, health }
    }

    pub async fn sql(&self, sql: &str) {
        self.source.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    pub async fn source_lsn(&self) -> Lsn {
        value(&self.source, "SELECT pg_current_wal_lsn()::text").await.parse().unwrap()
    }

    /// Waits until all that was committed at the source is applied.
    pub async fn settle(&self, running: &Running) {
        let target = self.source_lsn().await;
        until(&format!("{target} is applied: {:?}", running.health.borrow().failure), async || {
            assert!(!running.task.is_finished(), "the stream has ended: {:?}", running.health.borrow());
            running.health.borrow().stream.applied_lsn >= target
        })
        .await;
    }

    /// Source and destination hold the same live rows; says how many.
    pub async fn same(&self, table: &str) -> usize {
        let schema = self.schemas.iter().find(|s| s.source.name == table).unwrap();
        let columns: Vec<_> = schema.columns.iter().map(|c| ident(&c.source)).collect();
        let of = |live: &str| format!("SELECT ROW({})::text FROM public.{}{live} ORDER BY 1", columns.join(", "), ident(table));
        let live = if self.brief.soft_delete.enabled { " WHERE NOT \"_PEERDB_IS_DELETED\"" } else { "" };
        let rows = |rows: Vec<tokio_postgres::Row>| rows.iter().map(|r| r.get::<_, String>(0)).collect::<Vec<_>>();
        let expected = rows(self.source.query(&of(""), &[]).await.unwrap());
        let found = rows(self.destination.query(&of(live), &[]).await.unwrap());
        if expected != found {
            let lacks: Vec<_> = expected.iter().filter(|r| !found.contains(r)).take(5).collect();
            let extra: Vec<_> = found.iter().filter(|r| !expected.contains(r)).take(5).collect();
            panic!("{table}: {} rows at the source, {} at the destination; lacks {lacks:?}, has {extra:?}", expected.len(), found.len());
        }
        found.len()
    }

    /// What the ledger says of the tables' drift.
    pub async fn drift(&self) -> String {
        self.at_destination("SELECT string_agg(array_to_string(drift, '; '), '; ') FROM _mirror_operator.table").await
    }

    pub async fn at_destination(&self, sql: &str) -> String {
        value(&self.destination, sql).await
    }
}

fn brief(name: &str, tables: &[&str], source: Connection, destination: Connection, options: &Options) -> Brief {
    let listed: Vec<_> =
        tables.iter().map(|t| serde_json::json!({ "source": format!("public.{t}"), "excludeColumns": options.excluded })).collect();
    let mut brief: Brief = serde_json::from_value(serde_json::json!({
        "namespace": "test", "mirror": name, "mirrorUid": UID, "epoch": 1, "previousEpoch": 0, "resync": "r", "resyncUid": UID,
        "pipelineUrl": "", "source": source, "destination": { "postgres": destination }, "tables": listed,
        "softDelete": { "enabled": options.soft, "column": "_PEERDB_IS_DELETED" },
        "syncedAtColumn": if options.soft { "_PEERDB_SYNCED_AT" } else { "" },
        "snapshot": {}, "replication": { "batchRows": 5000, "batchInterval": "20ms" }, "carry": {},
        "oldSnapshotWaitMillis": 0, "onOldSnapshot": "Proceed", "keepOldMillis": 0
    }))
    .unwrap();
    brief.mirror = name.into();
    brief
}

/// A server's connection in the mode given.
pub fn with_tls(mode: mirror_operator::api::peer::TlsMode) -> Connection {
    Connection { tls: mode, ..support::connection(SOURCE) }
}
