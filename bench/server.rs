//! A PostgreSQL server, its databases, and the table that everybody loads.

use std::{str::FromStr, time::Duration};

use mirror_operator::{
    api::peer::TlsMode,
    postgres::{Connection, connect::SecretFile},
};
use tokio_postgres::{Client, Config, NoTls, config::Host};

/// A server, by its superuser's URL.
#[derive(Clone, Debug)]
pub struct Server {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: String,
}

impl FromStr for Server {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let config: Config = url.parse().map_err(|e: tokio_postgres::Error| e.to_string())?;
        match (config.get_hosts(), config.get_ports(), config.get_user(), config.get_password()) {
            ([Host::Tcp(host)], [port], Some(user), Some(password)) => Ok(Self {
                host: host.clone(),
                port: *port,
                user: user.into(),
                password: String::from_utf8(password.into()).map_err(|e| e.to_string())?,
            }),
            _ => Err("not of the form postgres://user:password@host:port/database".into()),
        }
    }
}

impl Server {
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{}:{}@{}:{}/{database}", self.user, self.password, self.host, self.port)
    }

    pub async fn connect(&self, database: &str) -> Client {
        let mut config: Config = self.url(database).parse().expect("our own URL");
        config.application_name("bench");
        let (client, driver) = config.connect(NoTls).await.unwrap_or_else(|e| panic!("{}:{}: {e}", self.host, self.port));
        tokio::spawn(driver);
        client
    }

    /// An empty database, in place of an older one, and whatever held its slots.
    pub async fn fresh(&self, database: &str) -> Client {
        let admin = self.connect("postgres").await;
        drop_slots(&admin, database).await;
        execute(&admin, &format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await;
        execute(&admin, &format!("CREATE DATABASE {database}")).await;
        self.connect(database).await
    }

    /// How pods and processes of ours reach a database. The password's file is left in the temporary directory.
    pub fn connection(&self, database: &str) -> Connection {
        let path = std::env::temp_dir().join(format!("mirror-bench-{}-{}", std::process::id(), self.port));
        std::fs::write(&path, &self.password).expect("the temporary directory can be written");
        Connection {
            peer: "bench".into(),
            host: self.host.clone(),
            port: self.port,
            database: database.into(),
            user: self.user.clone(),
            password: Some(SecretFile { path, secret: "bench".into(), key: "password".into() }),
            tls: TlsMode::Disable,
            ca: None,
            client_certificate: None,
            connect_timeout_millis: 10_000,
        }
    }
}

pub async fn execute(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

/// The first column of the first row, as text.
pub async fn ask(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = messages.iter().find_map(|m| if let tokio_postgres::SimpleQueryMessage::Row(row) = m { row.get(0) } else { None });
    row.unwrap_or_default().to_string()
}

/// Asks every few milliseconds until the answer is true.
pub async fn until(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !ask().await {
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Drops all slots of a database, ending the sessions that use them.
pub async fn drop_slots(admin: &Client, database: &str) {
    let sql = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '{database}' AND active_pid IS NOT NULL;
         SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{database}' AND active_pid IS NULL"
    );
    until("old slots are dropped", Duration::from_secs(30), async || {
        let _ = admin.simple_query(&sql).await;
        ask(admin, &format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{database}'")).await == "0"
    })
    .await;
}

/// The columns of the table.
pub const COLUMNS: &str = "f0 bigint, f1 bigint, f2 bigint, f3 int, f4 double precision, f5 double precision, f6 double precision,
    f7 double precision, f8 varchar(32), f9 varchar(32), f10 date, f11 date, f12 date, f13 varchar(32), f14 varchar(32), f15 varchar(32)";

/// Rows of the table, as a query.
pub fn rows(from: u64, to: u64) -> String {
    format!(
        "SELECT i, i * 2, i * 3, (i % 1000)::int, random(), random(), random(), random(), md5(i::text), md5((i + 1)::text),
         DATE '2020-01-01' + (i % 1000)::int, DATE '2021-01-01' + (i % 1000)::int, DATE '2022-01-01', md5((i + 2)::text), md5((i + 3)::text),
         md5((i + 4)::text) FROM generate_series({from}::bigint, {to}::bigint) i"
    )
}

/// Creates and fills the table, and leaves nothing for a vacuum to do.
pub async fn fill(client: &Client, table: &str, count: u64) {
    let columns = COLUMNS.replacen("f0 bigint", "f0 bigint GENERATED BY DEFAULT AS IDENTITY", 1);
    execute(client, &format!("CREATE TABLE {table} ({columns})")).await;
    execute(client, &format!("INSERT INTO {table} {}", rows(1, count))).await;
    execute(client, &format!("ALTER TABLE {table} ADD PRIMARY KEY (f0)")).await;
    execute(client, &format!("VACUUM (FREEZE, ANALYZE) {table}")).await;
    execute(client, "CHECKPOINT").await;
}
