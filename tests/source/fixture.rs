//! Databases of a test's own on both servers, and the brief of a mirror between them.

use std::time::Duration;

use mirror_operator::{
    api::{mirror, resync},
    brief::{Brief, DestinationPeer},
    postgres::{Connection, connect, ident, literal},
    source::slot,
};
use tokio_postgres::Client;

use crate::support;

/// One test's databases.
pub struct Fixture {
    /// The source.
    pub source: Connection,
    /// The destination.
    pub destination: Connection,
    uid: String,
    number: u32,
}

impl Fixture {
    /// Two empty databases.
    pub async fn new() -> Self {
        let (source, destination) = (support::server("MIRROR_TEST_SOURCE_URL"), support::server("MIRROR_TEST_DESTINATION_URL"));
        let number = support::unique();
        let database = format!("mo_test_{}_{number}", std::process::id());
        // One server may be both sides.
        let to = |server: &Connection, side: &str| Connection { database: format!("{database}_{side}"), ..server.clone() };
        let fixture = Self {
            source: to(&source, "source"),
            destination: to(&destination, "destination"),
            uid: format!("{:08x}-0000-4000-8000-{number:012x}", hash(&database)),
            number,
        };
        for (server, side) in [(&source, &fixture.source), (&destination, &fixture.destination)] {
            let client = connect::connect(server, "test").await.unwrap();
            client.batch_execute(&format!("DROP DATABASE IF EXISTS {0} WITH (FORCE)", ident(&side.database))).await.unwrap();
            client.batch_execute(&format!("CREATE DATABASE {}", ident(&side.database))).await.unwrap();
        }
        fixture
    }

    /// A brief for these tables, with everything else as by default.
    pub fn brief(&self, epoch: u32, tables: &[&str]) -> Brief {
        let table = |name: &&str| mirror::Table {
            source: name.to_string(),
            destination: None,
            exclude_columns: Vec::new(),
            columns: Vec::new(),
            partition_key: None,
            clickhouse: None,
            bigquery: None,
            snowflake: None,
        };
        Brief {
            namespace: "test".into(),
            mirror: format!("shop-{}", self.number),
            mirror_uid: self.uid.clone(),
            epoch,
            previous_epoch: epoch - 1,
            resync: "first".into(),
            resync_uid: self.uid.clone(),
            pipeline_url: "http://127.0.0.1:9".into(),
            source: self.source.clone(),
            destination: DestinationPeer::Postgres(self.destination.clone()),
            publication: None,
            own_slot: None,
            tables: tables.iter().map(table).collect(),
            soft_delete: mirror::SoftDelete::default(),
            synced_at_column: "_PEERDB_SYNCED_AT".into(),
            snapshot: mirror::Snapshot::default(),
            replication: mirror::Replication::default(),
            pods: Default::default(),
            kept: Vec::new(),
            handover: Default::default(),
            sequences: Default::default(),
            mode: Default::default(),
            load: true,
            carry: resync::Carry::default(),
            verification: Default::default(),
            old_snapshot_wait_millis: 1_000,
            on_old_snapshot: resync::OnOldSnapshot::Proceed,
            keep_old_millis: 0,
        }
    }

    /// A session at the source as people have it.
    pub async fn at_source(&self) -> Client {
        at(&self.source).await
    }

    /// A session at the destination as people have it.
    pub async fn at_destination(&self) -> Client {
        at(&self.destination).await
    }

    /// A session at the source as the pods have it.
    pub async fn as_pod(&self) -> Client {
        connect::connect(&self.source, "test").await.unwrap()
    }

    /// Drops everything.
    pub async fn end(self) {
        let client = self.as_pod().await;
        slot::drop_epochs(&client, &self.brief(1, &[]), |_| true).await.unwrap();
        drop(client);
        for server in [&self.source, &self.destination] {
            let admin = Connection { database: "postgres".into(), ..server.clone() };
            let client = connect::connect(&admin, "test").await.unwrap();
            // A slot that a failed assertion left is not dropped here: its test has failed and says more.
            client.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(&server.database))).await.unwrap();
        }
    }
}

async fn at(server: &Connection) -> Client {
    let client = connect::connect(server, "test").await.unwrap();
    client.batch_execute("SET search_path = public").await.unwrap();
    client
}

/// Awaits a condition at a server: a query that answers true.
pub async fn until(client: &Client, what: &str, query: &str) {
    for _ in 0..600 {
        if client.query_one(query, &[]).await.unwrap().get(0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not so after 30 s");
}

/// Ends the sessions whose `application_name` begins so; returns how many.
pub async fn kill(client: &Client, application: &str) -> i64 {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND starts_with(application_name, {})",
        literal(application)
    );
    client.query_one(&sql, &[]).await.unwrap().get(0)
}

/// One number.
pub async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.unwrap().get(0)
}

fn hash(text: &str) -> u32 {
    text.bytes().fold(2_166_136_261, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619))
}
