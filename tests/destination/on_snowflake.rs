//! Snowflake under the suite: each test has a schema and a mirror of its own, at the stand-in or at a real account.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use mirror_operator::{
    api::{
        mirror::Table,
        peer::TlsMode,
        snowflake::{Names, SnowflakeTable},
    },
    brief::{Brief, DestinationPeer},
    destination::snowflake::{PATIENCE_MILLIS, Peer, ask, host, quote::ident, types::destination_type},
    source::type_map::{Kind, SourceType},
    table::TableSchema,
};

use crate::{
    fixture::{Fixture, brief},
    proxy::Proxy,
    support,
};

/// One schema; it goes with the last of its clones.
#[derive(Clone)]
pub struct OnSnowflake {
    pub to: Peer,
    /// What the Mirror says of each table.
    pub options: Vec<SnowflakeTable>,
    uid: String,
    _guard: Arc<Guard>,
}

struct Guard(Peer);

impl Drop for Guard {
    fn drop(&mut self) {
        let (to, sql) = (self.0.clone(), format!("DROP SCHEMA IF EXISTS {}.{}", ident(&self.0.at.database), ident(&self.0.schema)));
        // The test's own runtime cannot be waited for from here.
        let end = move || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(ask(&to, &sql)).map(drop);
        let _ = std::thread::spawn(end).join();
    }
}

/// The account that the environment names: the stand-in by MIRROR_TEST_SNOWFLAKE_URL, a real one by MIRROR_TEST_SNOWFLAKE_ACCOUNT and others (see `make test-live`).
pub fn account() -> &'static Peer {
    static ACCOUNT: OnceLock<Peer> = OnceLock::new();
    ACCOUNT.get_or_init(|| {
        let variable = |name: &str| std::env::var(format!("MIRROR_TEST_SNOWFLAKE_{name}")).ok().filter(|value| !value.is_empty());
        let Some(account) = variable("ACCOUNT") else {
            return peer(support::server(support::SNOWFLAKE), "testbed", Some("TESTING"));
        };
        let wanted = |name: &str| variable(name).unwrap_or_else(|| panic!("set MIRROR_TEST_SNOWFLAKE_{name}"));
        let (key, password) = (variable("PRIVATE_KEY"), variable("PASSWORD"));
        let secret = key.clone().or(password).expect("set MIRROR_TEST_SNOWFLAKE_PRIVATE_KEY or _PASSWORD");
        let mut at = mirror_operator::postgres::Connection {
            peer: "live".into(),
            host: host(&account),
            port: 443,
            database: Names::Upper.stored(&wanted("DATABASE")),
            user: wanted("USER"),
            password: Some(support::secret(&secret)),
            tls: TlsMode::VerifyFull,
            ca: None,
            client_certificate: None,
            connect_timeout_millis: 30_000,
        };
        if let Some(host) = variable("HOST") {
            at.host = host;
        }
        let role = variable("ROLE").map(|role| Names::Upper.stored(&role));
        let mut to = peer(at, &account, variable("WAREHOUSE").map(|name| Names::Upper.stored(&name)).as_deref());
        (to.role, to.key_pair) = (role, key.is_some());
        to
    })
}

/// Whether it is a real one.
pub fn is_live() -> bool {
    account().account != "testbed"
}

fn peer(at: mirror_operator::postgres::Connection, account: &str, warehouse: Option<&str>) -> Peer {
    Peer {
        at,
        account: account.into(),
        schema: "PUBLIC".into(),
        warehouse: warehouse.map(str::to_string),
        role: None,
        key_pair: false,
        names: Names::Upper,
        stage: None,
        patience_millis: PATIENCE_MILLIS,
    }
}

impl OnSnowflake {
    /// The ledger's name.
    pub fn ledger(&self) -> String {
        format!("public.\"_MIRROR_OPERATOR_{}\"", self.uid.replace('-', "_").to_uppercase())
    }

    /// Whether there is no table at all, no ledger either.
    async fn is_empty(&self) -> bool {
        let tables = format!("{}.INFORMATION_SCHEMA.TABLES", ident(&self.to.at.database));
        self.rows(&format!("SELECT COUNT(*) FROM {tables} WHERE TABLE_SCHEMA = '{}'", self.to.schema)).await == ["0"]
    }

    /// The same place for a mirror of other tables' options.
    pub fn with(mut self, options: SnowflakeTable) -> Self {
        self.options = vec![options];
        self
    }

    /// The same place for another mirror.
    pub fn of_another_mirror(&self) -> Self {
        Self { uid: self.uid.replace("-4000-", "-4001-"), ..self.clone() }
    }

    /// The answer to a query, `public.` being this place's schema.
    pub async fn ask(&self, sql: &str) -> Result<Vec<String>, String> {
        let sql = sql.replace("public.", &format!("{}.{}.", ident(&self.to.at.database), ident(&self.to.schema)));
        let rows = ask(&self.to, &sql).await.map_err(|e| format!("{sql}: {e}"))?;
        Ok(rows.iter().map(|row| row.iter().map(|v| v.as_deref().unwrap_or("∅")).collect::<Vec<_>>().join("|")).collect())
    }

    fn brief_of(&self, to: Peer, epoch: u32) -> Brief {
        let mut brief = brief(&self.uid, epoch, to.at.clone(), DestinationPeer::Snowflake(to));
        let table = |options: &SnowflakeTable| Table {
            source: "public.t".into(),
            destination: None,
            exclude_columns: vec![],
            columns: vec![],
            partition_key: None,
            clickhouse: None,
            snowflake: Some(options.clone()),
            bigquery: None,
        };
        brief.tables = self.options.iter().map(table).collect();
        brief
    }

    /// The brief of an epoch through another address.
    pub fn through(&self, address: std::net::SocketAddr, epoch: u32, patience_millis: u64) -> Brief {
        let mut to = Peer { patience_millis, ..self.to.clone() };
        (to.at.host, to.at.port) = (address.ip().to_string(), address.port());
        self.brief_of(to, epoch)
    }
}

/// A number without zeros at its end.
fn plain(value: &str) -> &str {
    match value.parse::<f64>() {
        Ok(_) if value.contains('.') => value.trim_end_matches('0').trim_end_matches('.'),
        _ => value,
    }
}

#[async_trait]
impl Fixture for OnSnowflake {
    const LEDGER_A_MIRROR: bool = true;

    async fn new() -> Self {
        let unique = format!("{:08x}-{:04x}", std::process::id(), support::unique());
        let to = Peer { schema: format!("MO_TEST_{}", unique.replace('-', "_").to_uppercase()), ..account().clone() };
        let schema = format!("{}.{}", ident(&to.at.database), ident(&to.schema));
        ask(&to, &format!("CREATE SCHEMA IF NOT EXISTS {schema}")).await.unwrap();
        let _guard = Arc::new(Guard(to.clone()));
        Self { to, options: vec![], uid: format!("{unique}-4000-8000-000000000001"), _guard }
    }

    fn brief(&self, epoch: u32) -> Brief {
        self.brief_of(self.to.clone(), epoch)
    }

    async fn through_cut(&self, brief: Brief, at: u32) -> (Brief, Box<dyn Fn() -> bool + Send + Sync>) {
        assert!(!is_live(), "replies of the real service are not cut off");
        let proxy = Proxy::http((self.to.at.host.clone(), self.to.at.port), at).await;
        // Without patience: what a process that ends then leaves to others.
        let brief = self.through(proxy.address, brief.epoch, 0);
        (brief, Box::new(move || proxy.has_cut()))
    }

    async fn run(&self, sql: &str) {
        self.rows(sql).await;
    }

    async fn rows(&self, sql: &str) -> Vec<String> {
        self.ask(sql).await.unwrap_or_else(|e| panic!("{e}"))
    }

    fn adapt(&self, mut table: TableSchema) -> TableSchema {
        table.destination.schema = self.to.schema.clone();
        table.destination.name = self.to.names.stored(&table.destination.name);
        for column in &mut table.columns {
            let source = SourceType { oid: 1, text: column.source_type.clone(), kind: Kind::Base, element: None, sendable: true };
            // The suite wants a type that texts do not fit.
            let wanted = (column.source_type == "uuid" && column.source == "name").then_some("NUMBER(38,0)");
            column.destination_type = destination_type(&source, wanted).destination_type;
            column.destination = self.to.names.stored(&column.destination);
        }
        table
    }

    async fn read(&self, table: &str, columns: &[&str]) -> Vec<String> {
        let texts: Vec<String> = columns.iter().map(|c| format!("TO_VARCHAR({c})")).collect();
        let sql = format!("SELECT {}, IFF(_PEERDB_IS_DELETED, 't', 'f') FROM public.{table} ORDER BY {}", texts.join(", "), columns[0]);
        let rows = self.rows(&sql).await;
        rows.iter().map(|row| row.split('|').map(plain).collect::<Vec<_>>().join("|")).collect()
    }

    async fn count(&self, table: &str) -> usize {
        self.rows(&format!("SELECT COUNT(*) FROM public.{table}")).await[0].parse().unwrap()
    }

    fn shadow(&self, table: &str) -> String {
        format!("{table}_resync_e1g1")
    }

    async fn epochs(&self) -> Vec<u32> {
        // It goes with its mirror.
        if self.is_empty().await {
            return vec![];
        }
        let sql = format!("SELECT DISTINCT EPOCH FROM {} WHERE EPOCH > 0 ORDER BY 1", self.ledger());
        self.rows(&sql).await.iter().map(|e| e.parse().unwrap()).collect()
    }

    async fn flag(&self, ids: &[i64], at: &str) {
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        let set = format!("_PEERDB_IS_DELETED = TRUE, _PEERDB_SYNCED_AT = '{at}'::TIMESTAMP_NTZ");
        self.run(&format!("UPDATE public.people SET {set} WHERE id IN ({})", ids.join(", "))).await;
    }

    async fn times(&self, epoch: u32) -> Vec<String> {
        let begun = format!("(SELECT \"AT\" FROM {} WHERE KIND = 'begun' AND EPOCH = {epoch})", self.ledger());
        let at = format!("IFF(_PEERDB_SYNCED_AT = {begun}, 'begun', TO_VARCHAR(_PEERDB_SYNCED_AT))");
        self.rows(&format!("SELECT id, {at} FROM public.people WHERE _PEERDB_IS_DELETED ORDER BY id")).await
    }

    async fn tables(&self) -> Vec<String> {
        let sql = format!(
            "SELECT TABLE_NAME FROM {}.INFORMATION_SCHEMA.TABLES WHERE TABLE_SCHEMA = '{}' AND NOT STARTSWITH(TABLE_NAME, '_MIRROR_OPERATOR') ORDER BY 1",
            ident(&self.to.at.database),
            self.to.schema
        );
        self.rows(&sql).await.iter().map(|name| name.to_lowercase()).collect()
    }

    async fn forget_ledger(&self) {
        // It is the mirror's own, and goes with it.
        assert!(self.is_empty().await);
    }
}
