//! A mirror to BigQuery: load, change stream, and other clusters by a resync. Needs BIGQUERY_URL, that of the testbed's emulator.

use mirror_operator::api::{Mirror, Peer, resync::Phase};
use serde_json::{Value, json};

use crate::world::{LIMIT, World, judged, until};

const ORDERS: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint NOT NULL, total numeric(12,2), note text);
    INSERT INTO orders SELECT i, i % 100, i * 1.5, 'note ' || i FROM generate_series(1, 5000) i";

/// The service, as `http://host:port/project`; gRPC is at the next port.
struct Service {
    host: String,
    port: u16,
    project: String,
}

impl Service {
    fn new() -> Self {
        let url =
            std::env::var("BIGQUERY_URL").expect("BIGQUERY_URL must be the URL of an emulator of BigQuery; run the tests by `make e2e`");
        let (address, project) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("http://host:port/project");
        let (host, port) = address.rsplit_once(':').expect("host:port");
        Self { host: host.into(), port: port.parse().expect("a port"), project: project.into() }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value, String> {
        let answer = request.send().await.map_err(|e| e.to_string())?;
        let fine = answer.status().is_success();
        let text = answer.text().await.map_err(|e| e.to_string())?;
        if fine { Ok(serde_json::from_str(&text).unwrap_or_default()) } else { Err(text) }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}:{}/bigquery/v2/projects/{}{path}", self.host, self.port, self.project)
    }

    /// The first value of a query.
    async fn ask(&self, sql: &str) -> Result<String, String> {
        let request = reqwest::Client::new().post(self.url("/queries")).json(&json!({ "query": sql, "useLegacySql": false }));
        let answer = self.send(request).await?;
        Ok(answer["rows"][0]["f"][0]["v"].as_str().unwrap_or_default().to_string())
    }

    async fn make_dataset(&self, dataset: &str) {
        let reference = json!({ "projectId": self.project, "datasetId": dataset });
        let request = reqwest::Client::new().post(self.url("/datasets")).json(&json!({ "datasetReference": reference }));
        self.send(request).await.unwrap();
    }

    async fn drop_dataset(&self, dataset: &str) {
        let _ = self.send(reqwest::Client::new().delete(self.url(&format!("/datasets/{dataset}?deleteContents=true")))).await;
    }

    fn peer(&self, name: &str, dataset: &str) -> Value {
        json!({ "kind": "Peer", "metadata": { "name": name }, "spec": { "roles": ["Destination"], "bigquery": {
            "project": self.project, "dataset": dataset, "endpoint": format!("http://{}:{}", self.host, self.port),
            "storageEndpoint": format!("http://{}:{}", self.host, self.port + 1) } } })
    }
}

fn mirror(world: &World, cluster_by: &[&str]) -> Value {
    let table = json!({ "source": "public.orders", "bigquery": { "clusterBy": cluster_by } });
    world.mirror("orders", &["public.orders"], json!({ "destination": { "peer": "bigquery" }, "tables": [table] }))
}

/// Awaits that the live rows are the source's.
async fn equal(world: &World, service: &Service) {
    let here =
        "SELECT count(*)::text || ' ' || coalesce(sum(id), 0)::text || ' ' || coalesce(sum(total * 100)::bigint, 0)::text FROM orders";
    let there = format!(
        "SELECT CONCAT(COUNT(*), ' ', SUM(id), ' ', CAST(SUM(total * 100) AS INT64)) FROM {}.orders WHERE NOT _PEERDB_IS_DELETED",
        world.database()
    );
    until("orders are equal on both sides", LIMIT, || async {
        let ours: String = world.source.query_one(here, &[]).await.map_err(|e| e.to_string())?.get(0);
        let theirs = service.ask(&there).await?;
        if ours == theirs { Ok(()) } else { Err(format!("source {ours:?}, destination {theirs:?}")) }
    })
    .await;
}

#[tokio::test]
async fn other_clusters_come_with_a_resync_and_deleted_rows_are_carried() {
    let world = World::new("bigquery").await;
    let service = Service::new();
    let dataset = world.database().to_string();
    service.drop_dataset(&dataset).await;
    service.make_dataset(&dataset).await;
    world.apply(service.peer("bigquery", &dataset)).await.unwrap();
    let (ready, _, message) = judged(&world, "bigquery").await;
    assert_eq!(ready, "True", "{message}");
    let peer: Peer = world.get("bigquery").await;
    assert_eq!(peer.status.unwrap().type_.as_deref(), Some("BigQuery"));

    world.source.batch_execute(ORDERS).await.unwrap();
    world.apply(mirror(&world, &[])).await.unwrap();
    world.ready("orders").await;
    equal(&world, &service).await;
    let changes = "INSERT INTO orders VALUES (100001, 7, 1, NULL); UPDATE orders SET total = total + 1 WHERE id <= 500; DELETE FROM orders WHERE id BETWEEN 600 AND 699";
    world.source.batch_execute(changes).await.unwrap();
    equal(&world, &service).await;

    world.condition("orders", "SchemaInSync", "True", LIMIT).await;
    world.apply(mirror(&world, &["customer"])).await.unwrap();
    let _: Mirror = world.condition("orders", "ResyncRequired", "True", LIMIT).await;
    world.apply(world.resync("recluster", "orders", json!({}))).await.unwrap();
    let resync = world.phase("recluster", Phase::Running).await;
    let carried: i64 = resync.status.unwrap_or_default().tables.iter().map(|t| t.soft_deleted_carried).sum();
    assert_eq!(carried, 100);
    let flagged = format!("SELECT COUNT(*) FROM {dataset}.orders WHERE _PEERDB_IS_DELETED");
    assert_eq!(service.ask(&flagged).await.unwrap(), "100");
    world.condition("orders", "ResyncRequired", "False", LIMIT).await;
    world.source.batch_execute("UPDATE orders SET customer = customer + 1 WHERE id <= 50; DELETE FROM orders WHERE id = 51").await.unwrap();
    equal(&world, &service).await;

    world.end().await;
    service.drop_dataset(&dataset).await;
}

#[tokio::test]
async fn a_dataset_that_is_missing_is_named_with_its_cure() {
    let world = World::new("bigquery-peer").await;
    let service = Service::new();
    world.apply(service.peer("missing", "no_such_dataset")).await.unwrap();
    let (ready, reason, message) = judged(&world, "missing").await;
    assert_eq!((ready.as_str(), reason.as_str()), ("False", "DatasetMissing"), "{message}");
    assert!(message.contains("bq --location="), "{message}");
    world.end().await;
}
