//! The examples as people follow them: the statements of the two SQL files, then the Peers and the Mirror of the manifests, whose roles have those rights only.

use std::fs;

use mirror_operator::{
    api::{Mirror, Peer, peer::Role},
    brief::{Brief, DestinationPeer},
    check, destination, mirror,
    postgres::{Connection, connect, ident},
    report::Stage,
    source::{catalog, preflight},
};
use serde_json::Value;

use crate::{
    fixture::{Fixture, until},
    load::{Pod, whole},
    support,
};

const SHOP: &str = "
CREATE TABLE customers (id bigint PRIMARY KEY, name text, notes text);
CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint, total numeric(10,2));
INSERT INTO customers SELECT i, 'customer ' || i, 'not for everybody' FROM generate_series(1, 100) i;
INSERT INTO orders SELECT i, i % 100 + 1, i * 1.25 FROM generate_series(1, 1000) i;";

const ROLES: [&str; 4] = ["mirror_source", "mirror_destination", "shop_owner", "analyst"];

/// An example, with databases and roles of this test's own.
fn example(file: &str, fixture: &Fixture) -> String {
    let text = fs::read_to_string(format!("{}/examples/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let text = text.replace("DATABASE shop ", &format!("DATABASE {} ", fixture.source.database));
    let text = text.replace("DATABASE warehouse ", &format!("DATABASE {} ", fixture.destination.database));
    ROLES.iter().fold(text, |text, role| text.replace(role, &own(role, fixture)))
}

fn own(role: &str, fixture: &Fixture) -> String {
    format!("{role}_{}", fixture.source.database)
}

/// The statements of a SQL file that it has in comments, as what may be done besides.
fn besides(sql: &str) -> String {
    sql.lines().filter_map(|line| line.strip_prefix("--   ")).collect()
}

/// The documents of a manifest.
fn documents(text: &str) -> Vec<Value> {
    text.split("\n---").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// The brief that the operator would make of the manifests, with both servers where they are.
fn brief(fixture: &Fixture) -> Brief {
    let peers = documents(&example("01-peers.yaml", fixture));
    let of = |kind: &str, name: &str| peers.iter().find(|d| d["kind"] == kind && d["metadata"]["name"] == name).unwrap().clone();
    let peer = |name: &str| serde_json::from_value::<Peer>(of("Peer", name)).unwrap();
    let [document] = documents(&example("02-mirror.yaml", fixture)).try_into().unwrap();
    let mut mirror: Mirror = serde_json::from_value(document).unwrap();
    let like = fixture.brief(1, &[]);
    (mirror.metadata.name, mirror.metadata.namespace, mirror.metadata.uid) =
        (Some(like.mirror), Some(like.namespace), Some(like.mirror_uid));
    let made = mirror::brief(&mirror, None, 1, Some(&peer("shop-source")), Some(&peer("warehouse")), None).unwrap();
    let reach = |told: &Connection, at: &Connection, secret: &str| Connection {
        user: told.user.clone(),
        password: Some(support::secret(of("Secret", secret)["stringData"]["password"].as_str().unwrap())),
        ..at.clone()
    };
    let source = reach(&made.source, &fixture.source, "shop-source");
    let target = reach(made.destination.connection(), &fixture.destination, "warehouse");
    Brief { source, destination: DestinationPeer::Postgres(target), resync: like.resync, resync_uid: like.resync_uid, ..made }
}

#[tokio::test]
async fn the_examples_rights_are_enough_for_the_examples_mirror() {
    let fixture = Fixture::new().await;
    let (source, target) = (fixture.at_source().await, fixture.at_destination().await);
    source.batch_execute(SHOP).await.unwrap();
    let (at_source, at_target) = (example("source.sql", &fixture), example("destination.sql", &fixture));
    source.batch_execute(&at_source).await.unwrap();
    target.batch_execute(&at_target).await.unwrap();

    let brief = brief(&fixture);
    assert_eq!(check::run(&DestinationPeer::Postgres(brief.source.clone()), &[Role::Source]).await.problems, []);
    assert_eq!(check::run(&brief.destination, &[Role::Destination]).await.problems, []);
    whole(&fixture, &brief).await;
    source.batch_execute("UPDATE orders SET total = 7 WHERE id = 1; DELETE FROM customers WHERE id = 2").await.unwrap();
    let pod = Pod::start(&brief).await;
    pod.reaches(Stage::Streaming).await;
    until(&target, "changes arrive", "SELECT total_amount = 7 FROM shop_orders WHERE id = 1").await;
    until(&target, "so do deletes", "SELECT \"_PEERDB_IS_DELETED\" FROM customers WHERE id = 2").await;
    pod.stop().await;
    let there = "SELECT (SELECT count(*) FROM customers), (SELECT count(*) FROM shop_orders), (SELECT format_type(atttypid, atttypmod) FROM pg_attribute
        WHERE attrelid = 'shop_orders'::regclass AND attname = 'total_amount'), (SELECT count(*) FROM pg_attribute WHERE attname = 'notes')";
    let row = target.query_one(there, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2), row.get(3)), (100_i64, 1000_i64, "numeric(20,4)", 0_i64));

    target.batch_execute(&format!("CREATE ROLE {}", own("analyst", &fixture))).await.unwrap();
    target.batch_execute(&besides(&at_target)).await.unwrap();
    let reads = "SELECT has_table_privilege($1::text::name, 'shop_orders', 'SELECT')";
    assert!(target.query_one(reads, &[&own("analyst", &fixture)]).await.unwrap().get::<_, bool>(0));

    destination::open(&brief).await.unwrap().forget(true).await.unwrap();
    drop((source, target));
    end(fixture).await;
}

#[tokio::test]
async fn the_examples_other_rights_are_enough_for_publications_of_the_mirrors_own() {
    let fixture = Fixture::new().await;
    let source = fixture.at_source().await;
    let owner = own("shop_owner", &fixture);
    source
        .batch_execute(&format!("{SHOP} CREATE ROLE {owner}; ALTER TABLE customers OWNER TO {owner}; ALTER TABLE orders OWNER TO {owner}"))
        .await
        .unwrap();
    let at_source = example("source.sql", &fixture);
    source.batch_execute(&at_source).await.unwrap();

    let brief = Brief { publication: None, ..brief(&fixture) };
    let reasons = async || {
        let client = connect::connect(&brief.source, "test").await.unwrap();
        let tables = catalog::read(&client, &brief).await.unwrap().tables;
        let problems = preflight::check(&client, &brief, &tables).await.unwrap();
        problems.into_iter().map(|problem| problem.reason).collect::<Vec<_>>()
    };
    assert_eq!(reasons().await, ["SourcePermissionDenied"; 2]);
    source.batch_execute(&besides(&at_source)).await.unwrap();
    assert_eq!(reasons().await, Vec::<String>::new());
    drop(source);
    end(fixture).await;
}

/// Drops everything, and the roles, which belong to the whole server.
async fn end(fixture: Fixture) {
    let roles = ROLES.map(|role| ident(&own(role, &fixture))).join(", ");
    let servers = [&fixture.source, &fixture.destination].map(|at| Connection { database: "postgres".into(), ..at.clone() });
    fixture.end().await;
    for server in servers {
        connect::connect(&server, "test").await.unwrap().batch_execute(&format!("DROP ROLE IF EXISTS {roles}")).await.unwrap();
    }
}
