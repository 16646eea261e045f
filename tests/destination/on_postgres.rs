//! PostgreSQL under the suite: each test has a database of its own.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use mirror_operator::{
    brief::{Brief, DestinationPeer},
    postgres::{self, Connection, ident},
    table::TableSchema,
};
use tokio_postgres::SimpleQueryMessage;

use crate::{
    fixture::{Fixture, brief},
    proxy::Proxy,
    support,
};

/// One database; it goes with the last of its clones.
#[derive(Clone)]
pub struct OnPostgres {
    pub to: Connection,
    _guard: Arc<Guard>,
}

struct Guard(String);

impl Drop for Guard {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(&self.0));
        // The test's own runtime cannot be waited for from here.
        let end = move || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(administer(&sql));
        let _ = std::thread::spawn(end).join();
    }
}

pub const MIRROR_UID: &str = "0a1b2c3d-0000-4000-8000-000000000001";

impl OnPostgres {
    /// A session of a reader.
    pub async fn client(&self) -> tokio_postgres::Client {
        postgres::connect(&self.to, "reader").await.unwrap()
    }
}

/// The server; one password file serves all tests.
fn server() -> &'static Connection {
    static SERVER: OnceLock<Connection> = OnceLock::new();
    SERVER.get_or_init(|| support::server(support::DESTINATION))
}

async fn administer(sql: &str) {
    postgres::connect(server(), "suite").await.unwrap().batch_execute(sql).await.unwrap();
}

#[async_trait]
impl Fixture for OnPostgres {
    const LEDGER_A_MIRROR: bool = false;

    async fn new() -> Self {
        let mut to = server().clone();
        to.database = format!("mo_test_{}_{}", std::process::id(), support::unique());
        administer(&format!("CREATE DATABASE {}", ident(&to.database))).await;
        let _guard = Arc::new(Guard(to.database.clone()));
        Self { to, _guard }
    }

    fn brief(&self, epoch: u32) -> Brief {
        brief(MIRROR_UID, epoch, self.to.clone(), DestinationPeer::Postgres(self.to.clone()))
    }

    async fn through_cut(&self, mut brief: Brief, at: u32) -> (Brief, Box<dyn Fn() -> bool + Send + Sync>) {
        let proxy = Proxy::new((self.to.host.clone(), self.to.port), at).await;
        let mut to = self.to.clone();
        (to.host, to.port) = (proxy.address.ip().to_string(), proxy.address.port());
        brief.destination = DestinationPeer::Postgres(to);
        (brief, Box::new(move || proxy.has_cut()))
    }

    async fn run(&self, sql: &str) {
        self.client().await.batch_execute(sql).await.unwrap();
    }

    async fn rows(&self, sql: &str) -> Vec<String> {
        let mut rows = Vec::new();
        for message in self.client().await.simple_query(sql).await.unwrap() {
            if let SimpleQueryMessage::Row(row) = message {
                let values: Vec<&str> = (0..row.len()).map(|i| row.get(i).unwrap_or("∅")).collect();
                rows.push(values.join("|"));
            }
        }
        rows
    }

    fn adapt(&self, table: TableSchema) -> TableSchema {
        table
    }

    async fn read(&self, table: &str, columns: &[&str]) -> Vec<String> {
        self.rows(&format!("SELECT {}, \"_PEERDB_IS_DELETED\" FROM public.{table} ORDER BY 1", columns.join(", "))).await
    }

    async fn count(&self, table: &str) -> usize {
        self.rows(&format!("SELECT FROM public.{table}")).await.len()
    }

    fn shadow(&self, table: &str) -> String {
        format!("{table}_resync")
    }

    async fn epochs(&self) -> Vec<u32> {
        self.rows("SELECT epoch FROM _mirror_operator.epoch ORDER BY 1").await.iter().map(|e| e.parse().unwrap()).collect()
    }

    async fn flag(&self, ids: &[i64], at: &str) {
        let sql = "UPDATE public.people SET \"_PEERDB_IS_DELETED\" = true, \"_PEERDB_SYNCED_AT\"";
        self.run(&format!("{sql} = '{at}Z' WHERE id = ANY ('{{{}}}')", ids.iter().map(i64::to_string).collect::<Vec<_>>().join(","))).await;
    }

    async fn times(&self, epoch: u32) -> Vec<String> {
        let at = "CASE WHEN \"_PEERDB_SYNCED_AT\" = begun_at THEN 'begun' ELSE \"_PEERDB_SYNCED_AT\"::text END";
        let flagged = "\"_PEERDB_IS_DELETED\" ORDER BY 1";
        self.rows(&format!("SELECT id, {at} FROM public.people, _mirror_operator.epoch WHERE epoch = {epoch} AND {flagged}")).await
    }

    async fn tables(&self) -> Vec<String> {
        self.rows("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1").await
    }

    async fn forget_ledger(&self) {
        self.run("DROP SCHEMA _mirror_operator CASCADE").await;
    }
}
