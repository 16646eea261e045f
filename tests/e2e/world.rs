//! A namespace, two databases, and the words that tests are written in.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Event, Namespace, Pod, Secret};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use mirror_operator::api::{Mirror, MirrorResync, Peer, condition, resync::Phase};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How long anything may take that should take seconds.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Held by every test: together, or alone by one that others would notice, such as one that kills a server.
static TURN: RwLock<()> = RwLock::const_new(());

/// One test's part of the world.
pub struct World {
    pub client: Client,
    pub namespace: String,
    pub source: tokio_postgres::Client,
    pub destination: tokio_postgres::Client,
    database: String,
    _turn: Turn,
}

/// Ends with its test, however that ends.
enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

/// The server of one side: SOURCE or DESTINATION.
fn server(side: &str) -> tokio_postgres::Config {
    let variable = format!("{side}_URL");
    let url = std::env::var(&variable)
        .unwrap_or_else(|_| panic!("{variable} must be a superuser's URL of a PostgreSQL server; run the tests by `make e2e`"));
    url.parse().expect("a URL of the form postgres://user:password@host:port/database")
}

/// Host and port of one side.
pub fn address(side: &str) -> (String, u16) {
    let config = server(side);
    match config.get_hosts() {
        [tokio_postgres::config::Host::Tcp(host)] => (host.clone(), config.get_ports()[0]),
        other => panic!("{other:?} is not one host"),
    }
}

fn user(side: &str) -> (String, String) {
    let config = server(side);
    let password = String::from_utf8(config.get_password().expect("a password").to_vec()).expect("text");
    (config.get_user().expect("a user").to_string(), password)
}

/// Connects as the superuser.
pub async fn connect(side: &str, database: &str) -> tokio_postgres::Client {
    let mut config = server(side);
    config.dbname(database).application_name("e2e");
    let (client, driver) = config.connect(tokio_postgres::NoTls).await.expect("the test's server answers");
    tokio::spawn(driver);
    client
}

/// Of a test that does what only the testbed's cluster allows. `make e2e CLUSTER=existing` leaves such tests out: `testbed_tests` of the Makefile.
pub fn only_on_the_testbed(what: &str) {
    let elsewhere = std::env::var("CLUSTER").is_ok_and(|cluster| cluster == "existing");
    assert!(!elsewhere, "{what}: only the testbed's cluster allows that. Add this test to `testbed_tests` of the Makefile");
}

/// Asks until the answer is `Some`; panics with the last word on what was missing.
pub async fn until<T, F: Future<Output = Result<T, String>>>(what: &str, limit: Duration, mut ask: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(missing) if Instant::now() > deadline => panic!("{what}: not within {limit:?}: {missing}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

impl World {
    /// A namespace that enforces PodSecurity *restricted*, two empty databases, Secrets and Peers `source` and `destination`.
    pub async fn new(test: &str) -> Self {
        Self::at_its_turn(test, Turn::Shared { _guard: TURN.read().await }).await
    }

    /// The same, while no other test runs.
    pub async fn alone(test: &str) -> Self {
        Self::at_its_turn(test, Turn::Alone { _guard: TURN.write().await }).await
    }

    async fn at_its_turn(test: &str, turn: Turn) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_default().await.expect("a cluster");
        let namespace = format!("e2e-{test}");
        let database = format!("e2e_{}", test.replace('-', "_"));
        for side in ["SOURCE", "DESTINATION"] {
            let admin = connect(side, "postgres").await;
            drop_slots(&admin, &database).await;
            admin.batch_execute(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await.expect("an old database goes");
            admin.batch_execute(&format!("CREATE DATABASE {database}")).await.expect("a new database");
        }
        let world = Self {
            source: connect("SOURCE", &database).await,
            destination: connect("DESTINATION", &database).await,
            client,
            namespace,
            database,
            _turn: turn,
        };
        world.fresh_namespace().await;
        world.secret("postgres", &[("password", &user("SOURCE").1), ("destination", &user("DESTINATION").1)]).await;
        world.apply(world.peer("source", "SOURCE", json!({}))).await.expect("Peer source");
        world.apply(world.peer("destination", "DESTINATION", json!({}))).await.expect("Peer destination");
        world
    }

    /// Connects again, to servers that were restarted.
    pub async fn reconnect(&mut self) {
        self.source = connect("SOURCE", &self.database).await;
        self.destination = connect("DESTINATION", &self.database).await;
    }

    async fn fresh_namespace(&self) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let labels = [("pod-security.kubernetes.io/enforce".to_string(), "restricted".to_string())];
        let mut wanted = Namespace::default();
        wanted.metadata.name = Some(self.namespace.clone());
        wanted.metadata.labels = Some(labels.into());
        if api.get_opt(&self.namespace).await.expect("namespaces").is_some() {
            // Left by a run that was broken off; its objects may wait for databases that are gone.
            for mirror in self.api::<Mirror>().list(&ListParams::default()).await.expect("mirrors") {
                let patch = json!({ "metadata": { "annotations": { "mirror-operator.io/force-delete": "true" } } });
                let _ = self.api::<Mirror>().patch(&mirror.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
            }
            let _ = api.delete(&self.namespace, &DeleteParams::default()).await;
        }
        until("the namespace", LIMIT, || async {
            match api.create(&PostParams::default(), &wanted).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    pub async fn secret(&self, name: &str, data: &[(&str, &str)]) {
        let data: serde_json::Map<String, Value> = data.iter().map(|(k, v)| ((*k).to_string(), json!(v))).collect();
        let value = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": data });
        let api: Api<Secret> = self.api();
        api.patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(value)).await.expect("a Secret");
    }

    /// A Peer's manifest; `more` is merged over `spec.postgres`.
    pub fn peer(&self, name: &str, side: &str, more: Value) -> Value {
        let (host, port) = address(side);
        let key = if side == "SOURCE" { "password" } else { "destination" };
        let mut postgres = json!({
            "host": host, "port": port, "database": self.database, "user": user(side).0,
            "passwordSecretRef": { "name": "postgres", "key": key }
        });
        postgres.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let role = if side == "SOURCE" { "Source" } else { "Destination" };
        json!({ "kind": "Peer", "metadata": { "name": name }, "spec": { "roles": [role], "postgres": postgres } })
    }

    /// A Mirror's manifest of tables given as `schema.table`; `more` is merged over the spec.
    pub fn mirror(&self, name: &str, tables: &[&str], more: Value) -> Value {
        let tables: Vec<Value> = tables.iter().map(|t| json!({ "source": t })).collect();
        let mut spec = json!({ "source": { "peer": "source" }, "destination": { "peer": "destination" }, "tables": tables,
            "replication": { "batchInterval": "100ms" } });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "kind": "Mirror", "metadata": { "name": name }, "spec": spec })
    }

    pub fn resync(&self, name: &str, mirror: &str, more: Value) -> Value {
        let mut spec = json!({ "mirror": mirror });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "kind": "MirrorResync", "metadata": { "name": name }, "spec": spec })
    }

    /// `kubectl apply` of one of our kinds. The error is what a user would read.
    pub async fn apply(&self, mut manifest: Value) -> Result<(), String> {
        let kind = manifest["kind"].as_str().expect("kind").to_string();
        manifest["apiVersion"] = json!("mirror-operator.io/v1alpha1");
        let plural = format!("{}s", kind.to_lowercase());
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("mirror-operator.io", "v1alpha1", &kind), &plural);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        let name = manifest["metadata"]["name"].as_str().expect("a name").to_string();
        match api.patch(&name, &PatchParams::apply("e2e").force(), &Patch::Apply(manifest)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => Err(status.message.clone()),
            Err(other) => panic!("{other}"),
        }
    }

    pub async fn get<K>(&self, name: &str) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        self.api::<K>().get(name).await.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Awaits that a Mirror is Ready.
    pub async fn ready(&self, mirror: &str) -> Mirror {
        self.condition(mirror, "Ready", "True", LIMIT).await
    }

    /// Awaits a verdict of a Mirror's condition.
    pub async fn condition(&self, mirror: &str, kind: &str, verdict: &str, limit: Duration) -> Mirror {
        until(&format!("Mirror {mirror}: {kind}={verdict}"), limit, || async {
            let m: Mirror = self.get(mirror).await;
            let conditions = m.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default();
            let found = condition::get(&conditions, kind).cloned();
            found.as_ref().filter(|c| c.status == verdict).ok_or_else(|| format!("{conditions:?}"))?;
            Ok(m)
        })
        .await
    }

    /// Awaits a phase of a resync. An end that is another one fails at once.
    pub async fn phase(&self, resync: &str, phase: Phase) -> MirrorResync {
        self.phase_within(resync, phase, LIMIT).await
    }

    /// The same, of one that may take longer.
    pub async fn phase_within(&self, resync: &str, phase: Phase, limit: Duration) -> MirrorResync {
        until(&format!("MirrorResync {resync}: {phase:?}"), limit, || async {
            let r = self.api::<MirrorResync>().get_opt(resync).await.map_err(|e| e.to_string())?.ok_or("missing")?;
            let status = r.status.clone().unwrap_or_default();
            assert!(status.phase == phase || !status.phase.is_end(), "{resync} ended {:?}: {:?}", status.phase, status.conditions);
            if status.phase == phase { Ok(r) } else { Err(format!("{:?}: {:?}", status.phase, status.conditions)) }
        })
        .await
    }

    /// Awaits that a resync says `words` in its condition.
    pub async fn says(&self, resync: &str, words: &str) -> MirrorResync {
        until(&format!("MirrorResync {resync} says {words:?}"), LIMIT, || async {
            let r = self.api::<MirrorResync>().get_opt(resync).await.map_err(|e| e.to_string())?.ok_or("missing")?;
            let said = message(&r);
            if said.contains(words) { Ok(r) } else { Err(said) }
        })
        .await
    }

    /// Awaits that a Mirror says `words` in its condition `Ready`; returns its reason.
    pub async fn mirror_says(&self, mirror: &str, words: &str, limit: Duration) -> String {
        until(&format!("Mirror {mirror} says {words:?}"), limit, || async {
            let m: Mirror = self.get(mirror).await;
            let conditions = m.status.map(|s| s.conditions).unwrap_or_default();
            let ready = condition::get(&conditions, "Ready").cloned().ok_or("no condition")?;
            if ready.message.contains(words) { Ok(ready.reason) } else { Err(ready.message) }
        })
        .await
    }

    /// Awaits an Event about an object with this reason.
    pub async fn event(&self, name: &str, reason: &str) {
        until(&format!("an Event {reason} about {name}"), LIMIT, || async {
            let events: Api<Event> = self.api();
            let list =
                events.list(&ListParams::default().fields(&format!("involvedObject.name={name}"))).await.map_err(|e| e.to_string())?;
            let reasons: Vec<String> = list.iter().filter_map(|e| e.reason.clone()).collect();
            if reasons.iter().any(|r| r == reason) { Ok(()) } else { Err(format!("{reasons:?}")) }
        })
        .await;
    }

    /// Awaits a warning Event about one of these objects that says `words`.
    pub async fn warns(&self, names: &[&str], words: &str) {
        until(&format!("an Event about {names:?} says {words:?}"), LIMIT, || async {
            let events = self.api::<Event>().list(&ListParams::default().fields("type=Warning")).await.map_err(|e| e.to_string())?;
            let about = |e: &&Event| e.involved_object.name.as_deref().is_some_and(|n| names.contains(&n));
            let said: Vec<String> = events.iter().filter(about).filter_map(|e| e.message.clone()).collect();
            if said.iter().any(|s| s.contains(words)) { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
    }

    /// Awaits that a table reads the same on both sides: number of rows and an order-independent checksum of the given columns.
    pub async fn equal(&self, table: &str, columns: &str) {
        let source = format!("SELECT count(*), coalesce(sum(hashtextextended(ROW({columns})::text, 0)::numeric), 0)::text FROM {table}");
        let destination = format!("{source} WHERE NOT \"_PEERDB_IS_DELETED\"");
        until(&format!("{table} is equal on both sides"), LIMIT, || async {
            let row = |r: tokio_postgres::Row| (r.get::<_, i64>(0), r.get::<_, String>(1));
            let ours = row(self.source.query_one(&source, &[]).await.map_err(|e| e.to_string())?);
            let theirs = row(self.destination.query_one(&destination, &[]).await.map_err(|e| e.to_string())?);
            if ours == theirs { Ok(()) } else { Err(format!("source {ours:?}, destination {theirs:?}")) }
        })
        .await;
    }

    /// Pods of one component of a mirror.
    pub async fn pods(&self, component: &str) -> Vec<Pod> {
        let labels = format!("app.kubernetes.io/component={component}");
        self.api::<Pod>().list(&ListParams::default().labels(&labels)).await.expect("pods").items
    }

    /// Kills every running container of a component with SIGKILL, as the kernel's OOM killer would. Returns how many there were.
    pub async fn kill(&self, component: &str) -> usize {
        only_on_the_testbed("it kills containers by the node's containerd");
        let mut killed = 0;
        for pod in self.pods(component).await {
            for container in pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()) {
                if container.state.as_ref().is_none_or(|s| s.running.is_none()) {
                    continue;
                }
                let id = container.container_id.clone().unwrap_or_default().replace("containerd://", "");
                let status =
                    std::process::Command::new("ctr").args(["--namespace", "k8s.io", "task", "kill", "--signal", "SIGKILL", &id]).status();
                killed += usize::from(status.is_ok_and(|s| s.success()));
            }
        }
        killed
    }

    /// The slots of this test's database.
    pub async fn slots(&self) -> Vec<String> {
        let rows = self.source.query(
            "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() AND NOT temporary ORDER BY 1",
            &[],
        );
        rows.await.expect("slots").iter().map(|r| r.get(0)).collect()
    }

    /// Drops the one slot of this test's database under the pipeline's hands.
    pub async fn drop_slot(&self) {
        let slot = self.slots().await.remove(0);
        until("the slot is dropped", LIMIT, || async {
            let end =
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1::text AND active_pid IS NOT NULL";
            let _ = self.source.query(end, &[&slot]).await;
            self.source.query("SELECT pg_drop_replication_slot($1::text::name)", &[&slot]).await.map(|_| ()).map_err(|e| e.to_string())
        })
        .await;
    }

    /// Awaits that an object of ours is gone.
    pub async fn gone<K>(&self, name: &str)
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        until(&format!("{name} is gone"), LIMIT, || async {
            match self.api::<K>().get_opt(name).await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// The destination's tables of one schema.
    pub async fn tables(&self, schema: &str) -> Vec<String> {
        let sql = "SELECT relname::text FROM pg_class WHERE relnamespace = $1::text::regnamespace AND relkind IN ('r', 'p') ORDER BY 1";
        self.destination.query(sql, &[&schema]).await.expect("tables").iter().map(|r| r.get(0)).collect()
    }

    /// Removes everything; only a test that went well comes here, so that a failed one can be looked at.
    pub async fn end(self) {
        let mirrors: Api<Mirror> = self.api();
        let _ = mirrors.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
        until("the Mirrors are gone", LIMIT, || async {
            let left = mirrors.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
            if left.items.is_empty() { Ok(()) } else { Err(format!("{:?}", left.items[0].status)) }
        })
        .await;
        assert_eq!(self.slots().await, Vec::<String>::new(), "a deleted Mirror leaves no slot");
        let publications: i64 = self
            .source
            .query_one("SELECT count(*) FROM pg_publication WHERE pubname LIKE 'mo\\_%'", &[])
            .await
            .expect("publications")
            .get(0);
        assert_eq!(publications, 0, "a deleted Mirror leaves no publication");
        let _ = Api::<Namespace>::all(self.client.clone()).delete(&self.namespace, &DeleteParams::default()).await;
        let database = self.database.clone();
        drop((self.source, self.destination));
        for side in ["SOURCE", "DESTINATION"] {
            let _ = connect(side, "postgres").await.batch_execute(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await;
        }
    }
}

/// What the condition `Succeeded` says.
pub fn message(resync: &MirrorResync) -> String {
    let conditions = resync.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default();
    condition::get(&conditions, "Succeeded").map(|c| c.message.clone()).unwrap_or_default()
}

/// What the condition `Ready` of a Peer says, once it is no longer Unknown.
pub async fn judged(world: &World, peer: &str) -> (String, String, String) {
    until(&format!("Peer {peer} is judged"), LIMIT, || async {
        let peer: Peer = world.get(peer).await;
        let status = peer.status.clone().unwrap_or_default();
        let ready = condition::get(&status.conditions, "Ready").cloned().ok_or("no condition")?;
        if ready.status == "Unknown" { Err(ready.message) } else { Ok((ready.status, ready.reason, ready.message)) }
    })
    .await
}

async fn drop_slots(admin: &tokio_postgres::Client, database: &str) {
    let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active_pid IS NOT NULL";
    let _ = admin.query(sql, &[&database]).await;
    until("old slots are free", LIMIT, || async {
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1";
        admin.query(sql, &[&database]).await.map(|_| ()).map_err(|e| e.to_string())
    })
    .await;
}
