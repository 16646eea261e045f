//! A mirror to a ClickHouse server: load, change stream, and another ORDER BY by a resync. Needs CLICKHOUSE_URL.

use mirror_operator::api::{Mirror, Peer, resync::Phase};
use serde_json::{Value, json};

use crate::{
    gate::NODE,
    tls,
    world::{LIMIT, World, judged, only_on_the_testbed, until},
};

const ORDERS: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint NOT NULL, total numeric(12,2), note text);
    INSERT INTO orders SELECT i, i % 100, i * 1.5, 'note ' || i FROM generate_series(1, 20000) i";

/// The server, as `http://user:password@host:port/database`.
struct Server {
    address: String,
    user: String,
    password: String,
}

impl Server {
    fn new() -> Self {
        let url =
            std::env::var("CLICKHOUSE_URL").expect("CLICKHOUSE_URL must be the URL of a ClickHouse server; run the tests by `make e2e`");
        let (user, rest) = url.strip_prefix("http://").and_then(|rest| rest.split_once(':')).expect("http://user:…");
        let (password, rest) = rest.rsplit_once('@').expect("…password@…");
        let (address, _) = rest.split_once('/').expect("…host:port/…");
        Self { address: address.into(), user: user.into(), password: password.into() }
    }

    async fn ask(&self, sql: &str) -> Result<String, String> {
        let request = reqwest::Client::new().post(format!("http://{}/", self.address)).body(sql.to_string());
        let answer = request.header("X-ClickHouse-User", &self.user).header("X-ClickHouse-Key", &self.password).send().await;
        let answer = answer.map_err(|e| e.to_string())?;
        let fine = answer.status().is_success();
        let text = answer.text().await.map_err(|e| e.to_string())?;
        if fine { Ok(text.trim_end().to_string()) } else { Err(text) }
    }

    fn peer(&self, name: &str, database: &str, user: &str) -> Value {
        let (host, port) = self.address.rsplit_once(':').expect("host:port");
        json!({ "kind": "Peer", "metadata": { "name": name }, "spec": { "roles": ["Destination"], "clickhouse": {
            "host": host, "port": port.parse::<u16>().expect("a port"), "database": database, "user": user,
            "passwordSecretRef": { "name": "clickhouse", "key": "password" } } } })
    }
}

fn mirror(world: &World, order_by: &[&str]) -> Value {
    let table = json!({ "source": "public.orders", "clickhouse": { "orderBy": order_by } });
    world.mirror("orders", &["public.orders"], json!({ "destination": { "peer": "clickhouse" }, "tables": [table] }))
}

/// An empty database of its own for the test, and the Secret with the server's password.
async fn place(world: &World, server: &Server) {
    let database = world.database();
    server.ask(&format!("DROP DATABASE IF EXISTS {database} SYNC")).await.unwrap();
    server.ask(&format!("CREATE DATABASE {database}")).await.unwrap();
    world.secret("clickhouse", &[("password", &server.password)]).await;
}

/// The end of a test with a database.
async fn end(world: World, server: &Server) {
    let database = world.database().to_string();
    world.end().await;
    server.ask(&format!("DROP DATABASE {database} SYNC")).await.unwrap();
}

/// Awaits that the live rows are the source's.
async fn equal(world: &World, server: &Server) {
    let here = "SELECT count(*)::text || ' ' || coalesce(sum(id), 0)::text || ' ' || coalesce(trim_scale(sum(total)), 0)::text FROM orders";
    let there = format!(
        "SELECT concat(toString(count()), ' ', toString(sum(id)), ' ', toString(sum(total))) FROM {}.orders FINAL",
        world.database()
    );
    until("orders are equal on both sides", LIMIT, || async {
        let ours: String = world.source.query_one(here, &[]).await.map_err(|e| e.to_string())?.get(0);
        let theirs = server.ask(&there).await?;
        if ours == theirs { Ok(()) } else { Err(format!("source {ours:?}, destination {theirs:?}")) }
    })
    .await;
}

#[tokio::test]
async fn another_order_by_comes_with_a_resync_and_deleted_rows_are_carried() {
    let world = World::new("clickhouse").await;
    let server = Server::new();
    let database = world.database();
    place(&world, &server).await;
    world.apply(server.peer("clickhouse", database, &server.user)).await.unwrap();
    let (ready, _, message) = judged(&world, "clickhouse").await;
    assert_eq!(ready, "True", "{message}");
    let peer: Peer = world.get("clickhouse").await;
    assert_eq!(peer.status.unwrap().type_.as_deref(), Some("ClickHouse"));

    world.source.batch_execute(ORDERS).await.unwrap();
    world.apply(mirror(&world, &[])).await.unwrap();
    world.ready("orders").await;
    equal(&world, &server).await;
    let changes = "INSERT INTO orders VALUES (100001, 7, 1, NULL); UPDATE orders SET total = total + 1 WHERE id <= 500; DELETE FROM orders WHERE id BETWEEN 600 AND 699";
    world.source.batch_execute(changes).await.unwrap();
    equal(&world, &server).await;

    let sorting = format!("SELECT sorting_key FROM system.tables WHERE database = '{database}' AND name = 'orders'");
    let sorting_key = async || server.ask(&sorting).await.unwrap().replace(['(', ')'], "");
    assert_eq!(sorting_key().await, "id");
    world.condition("orders", "SchemaInSync", "True", LIMIT).await;
    world.apply(mirror(&world, &["customer"])).await.unwrap();
    let _: Mirror = world.condition("orders", "ResyncRequired", "True", LIMIT).await;
    world.apply(world.resync("reorder", "orders", json!({}))).await.unwrap();
    let resync = world.phase("reorder", Phase::Running).await;
    let carried: i64 = resync.status.unwrap_or_default().tables.iter().map(|t| t.soft_deleted_carried).sum();
    assert_eq!(carried, 100);
    assert_eq!(sorting_key().await, "customer, id");
    let deleted = format!("SELECT count() FROM {database}.orders WHERE _peerdb_is_deleted = 1");
    assert_eq!(server.ask(&deleted).await.unwrap(), "100");
    world.condition("orders", "ResyncRequired", "False", LIMIT).await;
    world.source.batch_execute("UPDATE orders SET customer = customer + 1 WHERE id <= 50; DELETE FROM orders WHERE id = 51").await.unwrap();
    equal(&world, &server).await;

    end(world, &server).await;
}

#[tokio::test]
async fn a_server_behind_tls_is_verified_and_mirrored_to() {
    only_on_the_testbed("it has pods come to this process");
    let world = World::new("clickhouse-tls").await;
    let server = Server::new();
    place(&world, &server).await;
    let certificates = tls::certificates(&format!("IP:{NODE}"));
    let (host, port) = server.address.rsplit_once(':').unwrap();
    let port = tls::proxy(&certificates, NODE, (host.into(), port.parse().unwrap())).await;
    world.secret("authority", &[("ca.crt", &std::fs::read_to_string(certificates.join("ca.crt")).unwrap())]).await;
    let peer = |name: &str, tls: Value| {
        let mut peer = server.peer(name, world.database(), &server.user);
        let to = &mut peer["spec"]["clickhouse"];
        (to["host"], to["port"], to["tls"]) = (json!(NODE), json!(port), tls);
        peer
    };
    world.apply(peer("stranger", json!({ "mode": "VerifyFull" }))).await.unwrap();
    let (ready, _, message) = judged(&world, "stranger").await;
    assert_eq!(ready, "False", "{message}");
    assert!(message.contains("certificate"), "{message}");
    world
        .apply(peer("clickhouse", json!({ "mode": "VerifyFull", "caSecretRef": { "name": "authority", "key": "ca.crt" } })))
        .await
        .unwrap();
    world.source.batch_execute(ORDERS).await.unwrap();
    world.apply(mirror(&world, &[])).await.unwrap();
    world.ready("orders").await;
    world.source.batch_execute("UPDATE orders SET total = 7 WHERE id <= 500").await.unwrap();
    equal(&world, &server).await;
    std::fs::remove_dir_all(certificates).unwrap();
    end(world, &server).await;
}

#[tokio::test]
async fn a_peer_that_cannot_serve_says_why() {
    let world = World::new("clickhouse-peer").await;
    let server = Server::new();
    world.secret("clickhouse", &[("password", &server.password)]).await;
    world.apply(server.peer("missing", "no_such_database", &server.user)).await.unwrap();
    world.apply(server.peer("readonly", "system", "readonly")).await.unwrap();
    let (ready, reason, message) = judged(&world, "missing").await;
    assert_eq!((ready.as_str(), reason.as_str()), ("False", "DatabaseMissing"), "{message}");
    assert!(message.contains("CREATE DATABASE `no_such_database`"), "{message}");
    let (ready, reason, message) = judged(&world, "readonly").await;
    assert_eq!((ready.as_str(), reason.as_str()), ("False", "ReadOnly"), "{message}");
    world.end().await;
}
