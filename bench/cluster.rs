//! Whole resyncs on a cluster: how long they take and where the time goes, what readers notice, what a killed pod costs, and memory.

use std::{
    fmt::Debug,
    io::Write,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client as Kube, ResourceExt,
    api::{DeleteParams, ListParams},
    runtime::wait::{Condition, await_condition},
};
use mirror_operator::api::{Mirror, MirrorResync, condition, resync::Phase};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::{
    Common,
    book::{Book, Target, median},
    process::MemoryWatch,
    recorder::Recorder,
    server::{ask, execute, fill, until},
};

const NAMESPACE: &str = "bench";
const DATABASE: &str = "bench_cluster";
const LIMIT: Duration = Duration::from_secs(180);
const SMALL: u64 = 1000;

struct World<'a> {
    common: &'a Common,
    kube: Kube,
    source: Client,
    destination: Client,
}

pub async fn run(book: &mut Book, common: &Common, large: u64, rounds: usize) {
    let kube = Kube::try_default().await.expect("a cluster");
    forget(&kube).await;
    let source = common.source.fresh(DATABASE).await;
    let destination = common.destination.fresh(DATABASE).await;
    fill(&source, "small", SMALL).await;
    fill(&source, "firenibble", large).await;
    let world = World { common, kube, source, destination };
    world.begin().await;

    let memory = MemoryWatch::start();
    let million = format!("{}M", large / 1_000_000);
    for (mirror, table, size) in [("small", "small", "1k"), ("large", "firenibble", million.as_str())] {
        let begun = Instant::now();
        kubectl(&[manifest("Mirror", mirror, json!({
            "source": { "peer": "source" }, "destination": { "peer": "destination" }, "tables": [{ "source": format!("public.{table}") }] }))])
        .await;
        world.ready(mirror).await;
        book.put(&format!("initial_load.{size}"), begun.elapsed().as_secs_f64(), "s", Target::None);
    }
    for (mirror, table, size, bound) in [("small", "small", "1k", 10.0), ("large", "firenibble", million.as_str(), 20.0)] {
        let (mut seconds, mut locks) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let (took, lock) = world.resync(&format!("{mirror}-{round}"), mirror).await;
            println!("    {mirror}-{round}: {took:.2} s, lock {lock} ms");
            seconds.push(took);
            locks.push(lock);
        }
        book.put(&format!("resync.{size}"), median(&seconds), "s", Target::AtMost(bound));
        // Another one, watched: who reads and writes down all the while takes a good part of two processors himself.
        let (longest_read, lock) = world.watched_resync(&format!("{mirror}-watched"), mirror, table).await;
        locks.push(lock);
        book.put(&format!("resync.{size}.longest_read"), longest_read.as_secs_f64() * 1000.0, "ms", Target::AtMost(50.0));
        // The worst of all rounds: a reader does not care for medians.
        book.put(&format!("resync.{size}.lock"), locks.iter().fold(0.0, |a: f64, b| a.max(*b)), "ms", Target::AtMost(50.0));
    }
    world.kill_stream(book).await;
    world.kill_operator(book).await;
    world.kill_worker_and_swap(book).await;
    for (part, peak) in memory.end() {
        let bound = match part.as_str() {
            "snapshot" | "operator" => Target::AtMost(64.0),
            "pipeline" => Target::AtMost(256.0),
            _ => Target::None,
        };
        book.put(&format!("memory.{part}"), peak, "MiB", bound);
    }
    forget(&world.kube).await;
}

impl World<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.kube.clone(), NAMESPACE)
    }

    async fn begin(&self) {
        let peer = |name: &str, role: &str, server: &crate::server::Server| {
            manifest(
                "Peer",
                name,
                json!({ "roles": [role], "postgres": {
                "host": server.host, "port": server.port, "database": DATABASE, "user": server.user,
                "passwordSecretRef": { "name": "postgres", "key": name } } }),
            )
        };
        let (source, destination) = (&self.common.source, &self.common.destination);
        kubectl(&[json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } })]).await;
        kubectl(&[
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "postgres", "namespace": NAMESPACE },
                "stringData": { "source": source.password, "destination": destination.password } }),
            peer("source", "Source", source),
            peer("destination", "Destination", destination),
        ])
        .await;
    }

    async fn ready(&self, mirror: &str) {
        let is_ready = |mirror: Option<&Mirror>| {
            let conditions = mirror.and_then(|m| m.status.as_ref()).map(|s| s.conditions.as_slice()).unwrap_or_default();
            condition::get(conditions, "Ready").is_some_and(|c| c.status == "True")
        };
        self.met(mirror, is_ready).await;
    }

    async fn running(&self, resync: &str) -> MirrorResync {
        let phase = |resync: Option<&MirrorResync>| resync.and_then(|r| r.status.as_ref()).map(|s| s.phase).unwrap_or_default();
        let found = self.met(resync, move |resync: Option<&MirrorResync>| phase(resync) == Phase::Running || phase(resync).is_end()).await;
        assert!(phase(Some(&found)) == Phase::Running, "{:?}", found.status);
        found
    }

    /// Waits by a watch: whoever asks the API server all the time takes from what is measured.
    async fn met<K>(&self, name: &str, condition: impl Condition<K>) -> K
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let met = tokio::time::timeout(LIMIT, await_condition(self.api::<K>(), name, condition)).await;
        let met = met.unwrap_or_else(|_| panic!("{} {name}: not within {LIMIT:?}", K::kind(&()))).expect("the API server answers");
        met.expect("it is there")
    }

    /// A resync that nobody watches: seconds from apply to Running, and milliseconds of the swap's lock.
    async fn resync(&self, name: &str, mirror: &str) -> (f64, f64) {
        execute(&self.destination, "CHECKPOINT").await;
        let begun = Instant::now();
        kubectl(&[resync(mirror, name, json!({}))]).await;
        let ended = self.running(name).await;
        let seconds = begun.elapsed().as_secs_f64();
        self.ready(mirror).await;
        (seconds, lock_millis(&ended))
    }

    /// A resync that is written down, and the longest read in the second before and the one after its swap.
    async fn watched_resync(&self, name: &str, mirror: &str, table: &str) -> (Duration, f64) {
        let ledger = self.common.destination.connect(DATABASE).await;
        let recorder = Recorder::start(self.api(), self.api(), ledger, mirror, name);
        let reader = Reader::start(self.common.destination.connect(DATABASE).await, table);
        let begun = Instant::now();
        kubectl(&[resync(mirror, name, json!({}))]).await;
        recorder.timeline.note("kubectl has ended");
        let ended = self.running(name).await;
        self.ready(mirror).await;
        recorder.timeline.note("the Mirror is Ready");
        let swapped = recorder.timeline.at("ledger: swapped").expect("the ledger was watched");
        let around = Duration::from_secs(1);
        tokio::time::sleep_until((swapped + around).into()).await;
        let (at, longest_read) = reader.longest_between(swapped - around, swapped + around);
        recorder.timeline.note_at(at, format!("the longest read around the swap begins, {:.1} ms", longest_read.as_secs_f64() * 1000.0));
        let (_, before) = reader.longest_between(begun, swapped - around);
        recorder.timeline.print(begun);
        println!("    the longest read of the time before: {:.1} ms", before.as_secs_f64() * 1000.0);
        (longest_read, lock_millis(&ended))
    }

    /// Kills the pod that streams; a row written right after that must arrive.
    async fn kill_stream(&self, book: &mut Book) {
        assert!(self.kill("pipeline", "small").await > 0, "a pipeline runs");
        let begun = Instant::now();
        execute(&self.source, "INSERT INTO small (f0, f1) VALUES (1000000, 1)").await;
        until("the row arrives", LIMIT, async || ask(&self.destination, "SELECT count(*) FROM small WHERE f0 = 1000000").await == "1")
            .await;
        book.put("killed.pipeline", begun.elapsed().as_secs_f64(), "s", Target::AtMost(15.0));
    }

    /// Kills the operator; a resync applied right after that must begin.
    async fn kill_operator(&self, book: &mut Book) {
        let pods: Api<Pod> = Api::all(self.kube.clone());
        let which = ListParams::default().labels("app.kubernetes.io/name=mirror-operator,app.kubernetes.io/component=operator");
        let killed = pods.list(&which).await.expect("pods").iter().map(kill).sum::<usize>();
        assert!(killed > 0, "an operator runs");
        let begun = Instant::now();
        kubectl(&[resync("small", "small-killed", json!({}))]).await;
        let api: Api<MirrorResync> = self.api();
        until("the resync begins", LIMIT, async || {
            api.get_opt("small-killed").await.is_ok_and(|r| r.and_then(|r| r.status).is_some_and(|s| s.epoch.is_some()))
        })
        .await;
        book.put("killed.operator", begun.elapsed().as_secs_f64(), "s", Target::AtMost(15.0));
        self.running("small-killed").await;
        self.ready("small").await;
    }

    /// Kills all workers in the middle of a load, and later the swap.
    async fn kill_worker_and_swap(&self, book: &mut Book) {
        kubectl(&[resync("large", "large-killed", json!({}))]).await;
        let newest = "(mirror, epoch) = (SELECT mirror, epoch FROM _mirror_operator.mirror WHERE name LIKE '%/large')";
        let loaded = format!(
            "SELECT count(*) FROM _mirror_operator.chunk WHERE {newest} AND loaded_at IS NOT NULL AND (SELECT count(*) FROM _mirror_operator.epoch WHERE {newest} AND swapped_at IS NULL) = 1"
        );
        let count = async || ask(&self.destination, &loaded).await.parse::<u64>().expect("a number");
        until("some chunks are loaded", LIMIT, async || count().await > 1).await;
        let killed = self.kill("snapshot", "large").await;
        let begun = Instant::now();
        // Sessions of the killed end before anybody takes their place.
        until("the killed workers' sessions end", LIMIT, async || {
            let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{DATABASE}' AND query LIKE 'COPY %FROM STDIN%'");
            ask(&self.destination, &sql).await == "0"
        })
        .await;
        let before = count().await;
        until("another chunk is loaded", LIMIT, async || count().await > before).await;
        println!("    killed {killed} workers after {before} chunks");
        book.put("killed.workers", begun.elapsed().as_secs_f64(), "s", Target::AtMost(15.0));
        let swapped = format!("SELECT count(*) FROM _mirror_operator.epoch WHERE {newest} AND swapped_at IS NOT NULL");
        let mut begun = None;
        until("the swap is killed, or done", LIMIT, async || {
            if self.kill("swap", "large").await > 0 {
                begun = Some(Instant::now());
            }
            begun.is_some() || ask(&self.destination, &swapped).await == "1"
        })
        .await;
        until("the tables are swapped", LIMIT, async || ask(&self.destination, &swapped).await == "1").await;
        match begun {
            Some(begun) => book.put("killed.swap", begun.elapsed().as_secs_f64(), "s", Target::AtMost(15.0)),
            None => println!("the swap was too fast to be killed"),
        }
        self.running("large-killed").await;
        self.ready("large").await;
    }

    /// Kills all running containers of a component of a mirror. Returns how many there were.
    async fn kill(&self, component: &str, mirror: &str) -> usize {
        let labels = format!("app.kubernetes.io/component={component},mirror-operator.io/mirror={mirror}");
        let pods = self.api::<Pod>().list(&ListParams::default().labels(&labels)).await.expect("pods");
        pods.iter().map(kill).sum()
    }
}

fn lock_millis(resync: &MirrorResync) -> f64 {
    let swap = resync.status.as_ref().and_then(|s| s.swap.as_ref());
    swap.expect("it has swapped").lock_millis as f64
}

/// SIGKILL to the containers of a pod, as the kernel's OOM killer would send it.
fn kill(pod: &Pod) -> usize {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let running = statuses.filter(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
    running
        .filter(|container| {
            let id = container.container_id.clone().unwrap_or_default().replace("containerd://", "");
            let mut command = Command::new("ctr");
            command.args(["--namespace", "k8s.io", "task", "kill", "--signal", "SIGKILL", &id]).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        })
        .count()
}

/// Reads the table every millisecond, in a session of its own.
struct Reader {
    reads: Arc<Mutex<Vec<(Instant, Duration)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Reader {
    fn start(client: Client, table: &str) -> Self {
        let reads = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&reads);
        let sql = format!("SELECT f1 FROM public.{table} LIMIT 1");
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(1));
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                tick.tick().await;
                let begun = Instant::now();
                assert!(!ask(&client, &sql).await.is_empty(), "a reader found the table empty");
                into.lock().expect("nobody panics with it").push((begun, begun.elapsed()));
            }
        });
        Self { reads, task }
    }

    /// The longest read that was under way in this time, and when it began.
    fn longest_between(&self, from: Instant, to: Instant) -> (Instant, Duration) {
        assert!(!self.task.is_finished(), "the reader met an error");
        let reads = self.reads.lock().expect("nobody panics with it");
        let meanwhile = reads.iter().filter(|(begun, took)| *begun + *took >= from && *begun <= to);
        *meanwhile.max_by_key(|(_, took)| *took).expect("the reader has read")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn manifest(kind: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "mirror-operator.io/v1alpha1", "kind": kind, "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec })
}

fn resync(mirror: &str, name: &str, more: Value) -> Value {
    let mut spec = json!({ "mirror": mirror });
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    manifest("MirrorResync", name, spec)
}

/// `kubectl apply`, as people do it.
async fn kubectl(manifests: &[Value]) {
    let text: Vec<String> = manifests.iter().map(Value::to_string).collect();
    let applied = tokio::task::spawn_blocking(move || {
        let mut child = Command::new("kubectl")
            .args(["apply", "--filename", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("kubectl is installed");
        child.stdin.take().expect("piped").write_all(text.join("\n").as_bytes()).expect("kubectl reads");
        assert!(child.wait().expect("kubectl ends").success(), "kubectl apply: {text:?}");
    });
    applied.await.expect("kubectl was waited for");
}

/// Removes what an earlier run has left on the cluster.
async fn forget(kube: &Kube) {
    let mirrors: Api<Mirror> = Api::namespaced(kube.clone(), NAMESPACE);
    let _ = mirrors.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
    let mut left = String::new();
    until("the Mirrors are gone", LIMIT, async || {
        let Ok(list) = mirrors.list(&ListParams::default()).await else { return false };
        left = list.iter().map(|m| m.name_any()).collect();
        left.is_empty()
    })
    .await;
    let namespaces: Api<Namespace> = Api::all(kube.clone());
    let _ = namespaces.delete(NAMESPACE, &DeleteParams::default()).await;
    until("the namespace is gone", LIMIT, async || namespaces.get_opt(NAMESPACE).await.is_ok_and(|n| n.is_none())).await;
}
