//! ClickHouse under the suite: each test has a database and a mirror of its own.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use mirror_operator::{
    api::{clickhouse::ClickHouseTable, mirror::Table},
    brief::{Brief, DestinationPeer},
    destination::clickhouse::{
        Peer,
        quote::ident,
        types::{Wishes, destination_type},
    },
    postgres::Connection,
    source::type_map::{Kind, SourceType},
    table::TableSchema,
};

use crate::{
    fixture::{Fixture, brief},
    proxy::Proxy,
    support,
};

/// A database of the engine Atomic.
pub type OnClickHouse = Place<true>;
/// A database of the engine Ordinary, which cannot exchange tables.
pub type OnOrdinary = Place<false>;

/// One database; it goes with the last of its clones.
#[derive(Clone)]
pub struct Place<const ATOMIC: bool> {
    pub to: Connection,
    /// What the Mirror says of each table.
    pub options: Vec<ClickHouseTable>,
    uid: String,
    _guard: Arc<Guard>,
}

struct Guard(Connection);

impl Drop for Guard {
    fn drop(&mut self) {
        let (to, sql) = (server_of(&self.0), format!("DROP DATABASE IF EXISTS {} SYNC", ident(&self.0.database)));
        // The test's own runtime cannot be waited for from here.
        let end = move || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(ask(&to, &sql));
        let _ = std::thread::spawn(end).join();
    }
}

/// Its server, whatever databases it has.
fn server_of(to: &Connection) -> Connection {
    Connection { database: "default".into(), ..to.clone() }
}

/// The server; one password file serves all tests.
fn server() -> &'static Connection {
    static SERVER: OnceLock<Connection> = OnceLock::new();
    SERVER.get_or_init(|| support::server(support::CLICKHOUSE))
}

/// What no other test has.
fn unique() -> String {
    format!("{:08x}-{:04x}", std::process::id(), support::unique())
}

/// The password of the server's users.
pub fn password() -> String {
    std::fs::read_to_string(&server().password.as_ref().unwrap().path).unwrap()
}

/// Runs a statement and returns the answer, tab-separated. As the user of `to`, whose password is the server's.
pub async fn ask(to: &Connection, sql: &str) -> Result<String, String> {
    ask_with(to, sql, &[]).await
}

async fn ask_with(to: &Connection, sql: &str, settings: &[(&str, &str)]) -> Result<String, String> {
    let url = format!("http://{}:{}/", to.host, to.port);
    let request = reqwest::Client::new().post(url).query(&[("wait_end_of_query", "1")]).query(settings).body(sql.to_string());
    let answer = request.header("X-ClickHouse-User", &to.user).header("X-ClickHouse-Key", password()).send().await.unwrap();
    let fine = answer.status().is_success();
    let text = answer.text().await.unwrap();
    if fine { Ok(text) } else { Err(text) }
}

impl<const ATOMIC: bool> Place<ATOMIC> {
    /// The brief's destination.
    pub fn peer(&self) -> DestinationPeer {
        DestinationPeer::ClickHouse(Peer { at: self.to.clone(), settings: Default::default(), cluster: None })
    }

    /// An empty database of this name.
    async fn named(server: &Connection, database: &str, unique: &str) -> Self {
        let to = Connection { database: database.into(), ..server.clone() };
        ask(server, &format!("DROP DATABASE IF EXISTS {} SYNC", ident(database))).await.unwrap();
        let engine = if ATOMIC { "Atomic" } else { "Ordinary" };
        let sql = format!("CREATE DATABASE {} ENGINE = {engine}", ident(database));
        ask_with(server, &sql, &[("allow_deprecated_database_ordinary", "1")]).await.unwrap();
        let _guard = Arc::new(Guard(to.clone()));
        Self { to, options: vec![], uid: format!("{unique}-4000-8000-000000000001"), _guard }
    }

    /// An empty database of a server.
    pub async fn at(server: &Connection) -> Self {
        let unique = unique();
        Self::named(server, &format!("mo_test_{}", unique.replace('-', "_")), &unique).await
    }

    /// The one whose table `t` the server's user `reader` may read, in part.
    pub async fn granted() -> Self {
        Self::named(server(), "mo_granted", &unique()).await
    }

    /// The one of whose table `t` the server's user `filtered` may do everything but see all rows.
    pub async fn filtered() -> Self {
        Self::named(server(), "mo_filtered", &unique()).await
    }

    /// The one in which the server's user `least` has the rights that the documentation lists.
    pub async fn least() -> Self {
        Self::named(server(), "mo_least", &unique()).await
    }

    /// Runs a statement under an id.
    pub async fn ask_as(&self, sql: &str, id: &str) -> Result<String, String> {
        ask_with(&self.to, sql, &[("query_id", id)]).await
    }

    /// The same place for a mirror of other tables' options.
    pub fn with(mut self, options: ClickHouseTable) -> Self {
        self.options = vec![options];
        self
    }
}

#[async_trait]
impl<const ATOMIC: bool> Fixture for Place<ATOMIC> {
    const LEDGER_A_MIRROR: bool = false;

    async fn new() -> Self {
        Self::at(server()).await
    }

    fn brief(&self, epoch: u32) -> Brief {
        let mut brief = brief(&self.uid, epoch, self.to.clone(), self.peer());
        brief.soft_delete.column = "_peerdb_is_deleted".into();
        brief.synced_at_column = "_peerdb_synced_at".into();
        let table = |options: &ClickHouseTable| Table {
            source: "public.t".into(),
            destination: None,
            exclude_columns: vec![],
            columns: vec![],
            partition_key: None,
            clickhouse: Some(options.clone()),
            bigquery: None,
            snowflake: None,
        };
        brief.tables = self.options.iter().map(table).collect();
        brief
    }

    async fn through_cut(&self, mut brief: Brief, at: u32) -> (Brief, Box<dyn Fn() -> bool + Send + Sync>) {
        let proxy = Proxy::http((self.to.host.clone(), self.to.port), at).await;
        let mut to = self.to.clone();
        (to.host, to.port) = (proxy.address.ip().to_string(), proxy.address.port());
        brief.destination = DestinationPeer::ClickHouse(Peer { at: to, settings: Default::default(), cluster: None });
        (brief, Box::new(move || proxy.has_cut()))
    }

    async fn run(&self, sql: &str) {
        self.rows(sql).await;
    }

    async fn rows(&self, sql: &str) -> Vec<String> {
        let sql = sql.replace("public.", &format!("{}.", ident(&self.to.database)));
        let answer = ask(&self.to, &sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        answer.lines().map(|line| line.split('\t').map(|v| if v == "\\N" { "∅" } else { v }).collect::<Vec<_>>().join("|")).collect()
    }

    fn adapt(&self, mut table: TableSchema) -> TableSchema {
        table.destination.schema = self.to.database.clone();
        for column in &mut table.columns {
            let source = SourceType { oid: 1, text: column.source_type.clone(), kind: Kind::Base, element: None, sendable: true };
            let wishes = Wishes { wanted: None, nullable: !column.not_null, times_as_text: false };
            column.destination_type = destination_type(&source, wishes).destination_type;
        }
        table
    }

    async fn read(&self, table: &str, columns: &[&str]) -> Vec<String> {
        let last = format!("SELECT * FROM public.{table} ORDER BY _peerdb_version DESC, _peerdb_is_deleted LIMIT 1 BY {}", columns[0]);
        self.rows(&format!("SELECT {}, if(_peerdb_is_deleted = 1, 't', 'f') FROM ({last}) ORDER BY 1", columns.join(", "))).await
    }

    async fn count(&self, table: &str) -> usize {
        self.rows(&format!("SELECT 1 FROM public.{table}")).await.len()
    }

    fn shadow(&self, table: &str) -> String {
        format!("{table}_resync_e1g1")
    }

    async fn epochs(&self) -> Vec<u32> {
        let sql = "SELECT DISTINCT epoch FROM public._mirror_operator_fact ORDER BY 1";
        self.rows(sql).await.iter().map(|e| e.parse().unwrap()).collect()
    }

    async fn flag(&self, ids: &[i64], at: &str) {
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        let sql = format!(
            "INSERT INTO public.people SELECT * REPLACE (1 AS _peerdb_is_deleted, toDateTime64('{at}', 6, 'UTC') AS _peerdb_synced_at, 77 AS _peerdb_version) \
             FROM public.people WHERE id IN ({})",
            ids.join(", ")
        );
        self.run(&sql).await;
    }

    async fn times(&self, epoch: u32) -> Vec<String> {
        let begun = format!("(SELECT at FROM public._mirror_operator_fact WHERE kind = 'begun' AND epoch = {epoch})");
        let at = format!("if(_peerdb_synced_at = {begun}, 'begun', toString(_peerdb_synced_at))");
        self.rows(&format!("SELECT id, {at} FROM public.people WHERE _peerdb_is_deleted = 1 ORDER BY 1")).await
    }

    async fn tables(&self) -> Vec<String> {
        let sql = format!(
            "SELECT name FROM system.tables WHERE database = '{}' AND NOT startsWith(name, '_mirror_operator') ORDER BY 1",
            self.to.database
        );
        self.rows(&sql).await
    }

    async fn forget_ledger(&self) {
        for table in ["mirror", "fact"] {
            self.run(&format!("DROP TABLE public._mirror_operator_{table} SYNC")).await;
        }
    }
}
