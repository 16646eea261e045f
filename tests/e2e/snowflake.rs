//! A mirror to Snowflake's stand-in: load, change stream, a resync, and Peers that cannot serve. Needs SNOWFLAKE_URL.

use mirror_operator::{
    api::{Peer, peer::TlsMode, resync::Phase, snowflake::Names},
    destination::snowflake::{self, PATIENCE_MILLIS, ask, quote::ident},
    postgres::{Connection, connect::SecretFile},
};
use serde_json::{Value, json};

use crate::world::{LIMIT, World, judged, until};

const ORDERS: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint NOT NULL, total numeric(12,2), note text);
    INSERT INTO orders SELECT i, i % 100, i * 1.5, 'note ' || i FROM generate_series(1, 20000) i";

/// The account, as `http://user:password@host:port/database`.
struct Account {
    to: snowflake::Peer,
    password: String,
}

impl Account {
    /// With a schema of the test's own.
    fn new(schema: &str) -> Self {
        let url =
            std::env::var("SNOWFLAKE_URL").expect("SNOWFLAKE_URL must be the URL of a stand-in for Snowflake; run the tests by `make e2e`");
        let (user, rest) = url.strip_prefix("http://").and_then(|rest| rest.split_once(':')).expect("http://user:…");
        let (password, rest) = rest.rsplit_once('@').expect("…password@…");
        let (address, database) = rest.split_once('/').expect("…host:port/…");
        let (host, port) = address.rsplit_once(':').expect("host:port");
        let path = std::env::temp_dir().join(format!("mirror-e2e-snowflake-{}-{schema}", std::process::id()));
        std::fs::write(&path, password).unwrap();
        let at = Connection {
            peer: "snowflake".into(),
            host: host.into(),
            port: port.parse().expect("a port"),
            database: database.into(),
            user: user.into(),
            password: Some(SecretFile { path, secret: "snowflake".into(), key: "password".into() }),
            tls: TlsMode::Disable,
            ca: None,
            client_certificate: None,
            connect_timeout_millis: 10_000,
        };
        let to = snowflake::Peer {
            at,
            account: "testbed".into(),
            schema: schema.to_uppercase(),
            warehouse: Some("TESTING".into()),
            role: None,
            key_pair: false,
            names: Names::Upper,
            patience_millis: PATIENCE_MILLIS,
            stage: None,
        };
        Self { to, password: password.into() }
    }

    fn schema(&self) -> String {
        format!("{}.{}", ident(&self.to.at.database), ident(&self.to.schema))
    }

    async fn ask(&self, sql: &str) -> Result<String, String> {
        let rows = ask(&self.to, sql).await.map_err(|e| e.to_string())?;
        let line = |row: &Vec<Option<String>>| row.iter().map(|v| v.as_deref().unwrap_or("∅")).collect::<Vec<_>>().join(" ");
        Ok(rows.iter().map(line).collect::<Vec<_>>().join("\n"))
    }

    fn peer(&self, name: &str) -> Value {
        let at = &self.to.at;
        json!({ "kind": "Peer", "metadata": { "name": name }, "spec": { "roles": ["Destination"], "snowflake": {
            "account": self.to.account, "host": at.host, "port": at.port, "database": at.database, "schema": self.to.schema, "user": at.user,
            "warehouse": "TESTING", "passwordSecretRef": { "name": "snowflake", "key": "password" }, "tls": { "mode": "Disable" } } } })
    }
}

/// Awaits that the live rows are the source's. Sums are compared there: the stand-in writes them in another way than the service.
async fn equal(world: &World, account: &Account) {
    let here = "SELECT count(*)::text, coalesce(sum(id), 0)::text, coalesce(sum(total), 0)::text FROM orders";
    until("orders are equal on both sides", LIMIT, || async {
        let row = world.source.query_one(here, &[]).await.map_err(|e| e.to_string())?;
        let (rows, ids, totals): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let sums =
            format!("SELECT COUNT(*) AS N, SUM(ID) AS I, SUM(TOTAL) AS T FROM {}.ORDERS WHERE NOT _PEERDB_IS_DELETED", account.schema());
        let same = account.ask(&format!("SELECT COUNT(*) FROM ({sums}) WHERE N = {rows} AND I = {ids} AND T = {totals}")).await?;
        if same == "1" { Ok(()) } else { Err(format!("source {rows} {ids} {totals}, destination {}", account.ask(&sums).await?)) }
    })
    .await;
}

#[tokio::test]
async fn a_mirror_to_snowflake_loads_streams_and_resyncs() {
    let world = World::new("snowflake").await;
    let account = Account::new(world.database());
    // One is left by a run that was broken off.
    account.ask(&format!("DROP SCHEMA IF EXISTS {}", account.schema())).await.unwrap();
    account.ask(&format!("CREATE SCHEMA {}", account.schema())).await.unwrap();
    world.secret("snowflake", &[("password", &account.password)]).await;
    world.apply(account.peer("snowflake")).await.unwrap();
    let (ready, _, message) = judged(&world, "snowflake").await;
    assert_eq!(ready, "True", "{message}");
    let peer: Peer = world.get("snowflake").await;
    assert_eq!(peer.status.unwrap().type_.as_deref(), Some("Snowflake"));

    world.source.batch_execute(ORDERS).await.unwrap();
    world.apply(world.mirror("orders", &["public.orders"], json!({ "destination": { "peer": "snowflake" } }))).await.unwrap();
    world.ready("orders").await;
    equal(&world, &account).await;
    let changes = "INSERT INTO orders VALUES (100001, 7, 1, NULL); UPDATE orders SET total = total + 1 WHERE id <= 500; DELETE FROM orders WHERE id BETWEEN 600 AND 699";
    world.source.batch_execute(changes).await.unwrap();
    equal(&world, &account).await;

    world.apply(world.resync("again", "orders", json!({}))).await.unwrap();
    let resync = world.phase("again", Phase::Running).await;
    let carried: i64 = resync.status.unwrap_or_default().tables.iter().map(|t| t.soft_deleted_carried).sum();
    assert_eq!(carried, 100);
    let deleted = format!("SELECT COUNT(*) FROM {}.ORDERS WHERE _PEERDB_IS_DELETED", account.schema());
    assert_eq!(account.ask(&deleted).await.unwrap(), "100");
    world.source.batch_execute("ALTER TABLE orders ADD COLUMN more text DEFAULT 'x'; DELETE FROM orders WHERE id = 51").await.unwrap();
    world.source.batch_execute("INSERT INTO orders VALUES (100002, 8, 2, NULL, 'y')").await.unwrap();
    equal(&world, &account).await;
    let more = format!("SELECT MORE, COUNT(*) FROM {}.ORDERS WHERE ID IN (1, 2, 100002) GROUP BY 1 ORDER BY 1", account.schema());
    assert_eq!(account.ask(&more).await.unwrap(), "x 2\ny 1");

    world.end().await;
    account.ask(&format!("DROP SCHEMA {}", account.schema())).await.unwrap();
}

#[tokio::test]
async fn a_snowflake_peer_that_cannot_serve_says_why() {
    let world = World::new("snowflake-peer").await;
    let account = Account::new(world.database());
    world.secret("snowflake", &[("password", &account.password), ("wrong", "wrong")]).await;
    let peer = |name: &str, field: &str, value: Value| {
        let mut peer = account.peer(name);
        peer["spec"]["snowflake"]["schema"] = json!("PUBLIC");
        peer["spec"]["snowflake"][field] = value;
        peer
    };
    for (name, field, value, reason, words) in [
        ("schema", "schema", json!("nowhere"), "SchemaMissing", "CREATE SCHEMA \"MO\".\"NOWHERE\""),
        ("warehouse", "warehouse", json!("missing"), "ObjectMissing", "warehouse \"MISSING\""),
        ("password", "passwordSecretRef", json!({ "name": "snowflake", "key": "wrong" }), "AuthenticationFailed", "password"),
    ] {
        world.apply(peer(name, field, value)).await.unwrap();
        let (ready, said, message) = judged(&world, name).await;
        assert_eq!((ready.as_str(), said.as_str()), ("False", reason), "{message}");
        assert!(message.contains(words), "{message}");
    }
    // Both ways to log in at once are refused by the API server.
    let mut both = account.peer("both");
    both["spec"]["snowflake"]["privateKeySecretRef"] = json!({ "name": "snowflake", "key": "key" });
    let refused = world.apply(both).await.unwrap_err().to_string();
    assert!(refused.contains("exactly one of privateKeySecretRef and passwordSecretRef"), "{refused}");
    world.end().await;
}
