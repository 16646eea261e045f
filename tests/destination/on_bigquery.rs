//! BigQuery under the suite: each test has a dataset and a mirror of its own. `MIRROR_TEST_BIGQUERY_URL` names the testbed's emulator as
//! `http://host:port/project`, its gRPC port being the next one. Or it names the real service: `https://bigquery.googleapis.com/project`, with the key file of a
//! service account in `MIRROR_TEST_BIGQUERY_CREDENTIALS` and, if wanted, `MIRROR_TEST_BIGQUERY_LOCATION`.

use std::sync::Arc;

use async_trait::async_trait;
use gcp_bigquery_client::{
    Client, auth::Authenticator, client_builder::ClientBuilder, error::BQError, model::dataset::Dataset, model::query_request::QueryRequest,
};
use mirror_operator::{
    api::{bigquery::BigQueryTable, mirror::Table, peer::TlsMode},
    brief::{Brief, DestinationPeer},
    destination::bigquery::{Peer, types::destination_type},
    postgres::{Connection, connect::SecretFile},
    source::type_map::{Kind, SourceType},
    table::TableSchema,
};

use crate::{
    bigquery::grpc,
    fixture::{Fixture, brief},
    proxy::Proxy,
    support,
};

/// One dataset; it goes with the last of its clones.
#[derive(Clone)]
pub struct OnBigQuery {
    pub to: Peer,
    /// What the Mirror says of each table.
    pub options: Vec<BigQueryTable>,
    uid: String,
    client: Client,
    _guard: Arc<Guard>,
}

struct Guard(Peer);

impl Drop for Guard {
    fn drop(&mut self) {
        let to = self.0.clone();
        // The test's own runtime cannot be waited for from here.
        let end = move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let client = client(&to).await;
                let _ = client.dataset().delete(&to.project, &to.at.database, true).await;
            });
        };
        let _ = std::thread::spawn(end).join();
    }
}

/// What the emulator asks of nobody.
#[derive(Clone)]
struct Nobody;

#[async_trait]
impl Authenticator for Nobody {
    async fn access_token(&self) -> Result<String, BQError> {
        Ok("nobody".into())
    }
}

/// The suite looks at what there is with a client that is not the one under test.
async fn client(to: &Peer) -> Client {
    let mut builder = ClientBuilder::new();
    builder.with_v2_base_url(format!("{}/bigquery/v2", to.endpoint));
    match &to.at.password {
        Some(file) => builder.build_from_service_account_key_file(&file.path.to_string_lossy()).await.unwrap(),
        None => builder.build_from_authenticator(Arc::new(Nobody)).await.unwrap(),
    }
}

/// The service that the environment names, and an empty name for a dataset.
fn service() -> Peer {
    let variable = support::BIGQUERY;
    let url = std::env::var(variable).unwrap_or_else(|_| panic!("set {variable} to http://host:port/project of a test server"));
    let (endpoint, project) = url.rsplit_once('/').unwrap();
    let host = endpoint.split_once("://").unwrap().1.to_string();
    let storage_endpoint = match host.rsplit_once(':') {
        Some((host, port)) => format!("http://{host}:{}", port.parse::<u16>().unwrap() + 1),
        None => "https://bigquerystorage.googleapis.com".into(),
    };
    let credentials = std::env::var("MIRROR_TEST_BIGQUERY_CREDENTIALS").ok();
    let password = credentials.map(|path| SecretFile { path: path.into(), secret: "test".into(), key: "credentials".into() });
    let at = Connection {
        peer: variable.to_string(),
        host,
        port: 443,
        database: String::new(),
        user: String::new(),
        password,
        tls: TlsMode::VerifyFull,
        ca: None,
        client_certificate: None,
        connect_timeout_millis: 10_000,
    };
    let location = std::env::var("MIRROR_TEST_BIGQUERY_LOCATION").ok();
    Peer { at, project: project.into(), location, endpoint: endpoint.into(), storage_endpoint }
}

impl OnBigQuery {
    /// The same place for a mirror of other tables' options.
    pub fn with(mut self, options: BigQueryTable) -> Self {
        self.options = vec![options];
        self
    }

    /// A client that is not the one under test.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How many statements have named the mirror's ledger.
    pub async fn statements(&self) -> usize {
        let ledger = self.ledger().replace("public.", "");
        let all = self.client.job().list(&self.to.project).await.unwrap();
        all.jobs.into_iter().flatten().filter(|job| serde_json::to_string(job).unwrap().contains(&ledger)).count()
    }

    /// The mirror's ledger, as a statement names it.
    pub fn ledger(&self) -> String {
        format!("public._mirror_operator_{}", self.uid.replace('-', "_"))
    }

    /// What a statement answers, or its error.
    pub async fn try_rows(&self, sql: &str) -> Result<Vec<String>, String> {
        let sql = sql.replace("public.", &format!("`{}`.", self.to.at.database));
        let mut request = QueryRequest::new(sql);
        (request.use_query_cache, request.location, request.timeout_ms) = (Some(false), self.to.location.clone(), Some(60_000));
        let answer = self.client.job().query(&self.to.project, request).await.map_err(|e| e.to_string())?;
        let value = |value: Option<serde_json::Value>| match value {
            None | Some(serde_json::Value::Null) => "∅".to_string(),
            Some(serde_json::Value::String(text)) => text,
            Some(other) => other.to_string(),
        };
        let rows = answer.rows.into_iter().flatten();
        Ok(rows.map(|row| row.columns.into_iter().flatten().map(|cell| value(cell.value)).collect::<Vec<_>>().join("|")).collect())
    }

    /// A table's description, as the service gives it.
    pub async fn describe(&self, table: &str) -> gcp_bigquery_client::model::table::Table {
        self.client.table().get(&self.to.project, &self.to.at.database, table, None).await.unwrap()
    }
}

#[async_trait]
impl Fixture for OnBigQuery {
    const LEDGER_A_MIRROR: bool = true;
    // A step and its like need seconds here, each of which is the emulator's.
    const STRIDE: u32 = 3;

    async fn new() -> Self {
        let mut to = service();
        let unique = format!("{:08x}-{:04x}", std::process::id(), support::unique());
        to.at.database = format!("mo_test_{}", unique.replace('-', "_"));
        let client = client(&to).await;
        let _ = client.dataset().delete(&to.project, &to.at.database, true).await;
        let mut dataset = Dataset::new(&to.project, &to.at.database);
        dataset.location = to.location.clone();
        client.dataset().create(dataset).await.unwrap();
        let _guard = Arc::new(Guard(to.clone()));
        Self { to, options: vec![], uid: format!("{unique}-4000-8000-000000000001"), client, _guard }
    }

    fn brief(&self, epoch: u32) -> Brief {
        let mut brief = brief(&self.uid, epoch, self.to.at.clone(), DestinationPeer::BigQuery(self.to.clone()));
        let table = |options: &BigQueryTable| Table {
            source: "public.t".into(),
            destination: None,
            exclude_columns: vec![],
            columns: vec![],
            partition_key: None,
            clickhouse: None,
            bigquery: Some(options.clone()),
            snowflake: None,
        };
        brief.tables = self.options.iter().map(table).collect();
        brief
    }

    async fn through_cut(&self, mut brief: Brief, at: u32) -> (Brief, Box<dyn Fn() -> bool + Send + Sync>) {
        let address = |url: &str| {
            let (host, port) = url.strip_prefix("http://").expect("only the emulator can be cut off").rsplit_once(':').unwrap();
            (host.to_string(), port.parse().unwrap())
        };
        let proxy = Proxy::http(address(&self.to.endpoint), at).await;
        let storage = grpc::proxy(address(&self.to.storage_endpoint), proxy.seen.clone(), proxy.cut_at).await;
        let mut to = self.to.clone();
        (to.endpoint, to.storage_endpoint) = (format!("http://{}", proxy.address), format!("http://{storage}"));
        brief.destination = DestinationPeer::BigQuery(to);
        (brief, Box::new(move || proxy.has_cut()))
    }

    async fn run(&self, sql: &str) {
        self.rows(sql).await;
    }

    async fn rows(&self, sql: &str) -> Vec<String> {
        self.try_rows(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    fn adapt(&self, mut table: TableSchema) -> TableSchema {
        table.destination.schema = self.to.at.database.clone();
        for column in &mut table.columns {
            let source = SourceType { oid: 1, text: column.source_type.clone(), kind: Kind::Base, element: None, sendable: true };
            let options = self.options.first().cloned().unwrap_or_default();
            column.destination_type = destination_type(&source, None, &options).destination_type;
        }
        table
    }

    async fn read(&self, table: &str, columns: &[&str]) -> Vec<String> {
        let flag = "IF(COALESCE(_PEERDB_IS_DELETED, FALSE), 't', 'f')";
        self.rows(&format!("SELECT {}, {flag} FROM public.{table} ORDER BY {table}.{}", columns.join(", "), columns[0])).await
    }

    async fn count(&self, table: &str) -> usize {
        self.rows(&format!("SELECT COUNT(*) FROM public.{table}")).await[0].parse().unwrap()
    }

    fn shadow(&self, table: &str) -> String {
        format!("{table}_resync_e1g1")
    }

    async fn epochs(&self) -> Vec<u32> {
        // It goes with its mirror.
        let there = "SELECT COUNT(*) FROM public.INFORMATION_SCHEMA.TABLES WHERE STARTS_WITH(table_name, '_mirror_operator')";
        if self.rows(there).await == ["0"] {
            return vec![];
        }
        let sql = format!("SELECT DISTINCT epoch FROM {} WHERE kind = 'begun' ORDER BY 1", self.ledger());
        self.rows(&sql).await.iter().map(|e| e.parse().unwrap()).collect()
    }

    async fn flag(&self, ids: &[i64], at: &str) {
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        let set = format!("_PEERDB_IS_DELETED = TRUE, _PEERDB_SYNCED_AT = TIMESTAMP '{at}+00'");
        self.run(&format!("UPDATE public.people SET {set} WHERE id IN ({})", ids.join(", "))).await;
    }

    async fn times(&self, epoch: u32) -> Vec<String> {
        let begun = format!("(SELECT MIN(at) FROM {} WHERE kind = 'begun' AND epoch = {epoch})", self.ledger());
        let at = format!("IF(_PEERDB_SYNCED_AT = {begun}, 'begun', FORMAT_TIMESTAMP('%F %H:%M:%E6S', _PEERDB_SYNCED_AT))");
        self.rows(&format!("SELECT id, {at} FROM public.people WHERE _PEERDB_IS_DELETED ORDER BY 1")).await
    }

    async fn tables(&self) -> Vec<String> {
        let sql =
            "SELECT table_name FROM public.INFORMATION_SCHEMA.TABLES WHERE NOT STARTS_WITH(table_name, '_mirror_operator') ORDER BY 1";
        self.rows(sql).await
    }

    async fn forget_ledger(&self) {
        self.run(&format!("DROP TABLE IF EXISTS {}", self.ledger())).await;
    }
}
