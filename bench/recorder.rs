//! Writes down when what happens on a cluster: the resync's status, pods, and the ledger.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, runtime::watcher};
use mirror_operator::api::MirrorResync;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// What happened, and when.
#[derive(Clone, Default)]
pub struct Timeline(Arc<Mutex<Vec<(Instant, String)>>>);

impl Timeline {
    pub fn note(&self, what: impl Into<String>) {
        self.note_at(Instant::now(), what);
    }

    pub fn note_at(&self, at: Instant, what: impl Into<String>) {
        self.0.lock().expect("nobody panics with it").push((at, what.into()));
    }

    /// When something was first noted.
    pub fn at(&self, what: &str) -> Option<Instant> {
        self.0.lock().expect("nobody panics with it").iter().find(|(_, w)| w == what).map(|(at, _)| *at)
    }

    pub fn print(&self, begun: Instant) {
        let mut notes = self.0.lock().expect("nobody panics with it").clone();
        notes.sort();
        for (at, what) in notes {
            println!("    {:7.3} s  {what}", at.saturating_duration_since(begun).as_secs_f64());
        }
    }
}

/// Watches while it lives.
pub struct Recorder {
    pub timeline: Timeline,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Recorder {
    /// Watches one resync of one mirror.
    pub fn start(resyncs: Api<MirrorResync>, pods: Api<Pod>, ledger: Client, mirror: &str, resync: &str) -> Self {
        let timeline = Timeline::default();
        let status = tokio::spawn(follow_status(timeline.clone(), resyncs, resync.to_string()));
        let pods = tokio::spawn(follow_pods(timeline.clone(), pods, mirror.to_string(), resync.to_string()));
        let ledger = tokio::spawn(follow_ledger(timeline.clone(), ledger, mirror.to_string(), resync.to_string()));
        Self { timeline, tasks: vec![status, pods, ledger] }
    }
}

async fn follow_status(timeline: Timeline, api: Api<MirrorResync>, name: String) {
    let mut seen = BTreeSet::new();
    let mut events = watcher(api, watcher::Config::default().fields(&format!("metadata.name={name}"))).boxed();
    while let Some(event) = events.next().await {
        let Ok(watcher::Event::Apply(resync) | watcher::Event::InitApply(resync)) = event else { continue };
        let status = resync.status.unwrap_or_default();
        let phase = format!("phase {:?}", status.phase);
        let conditions = status.conditions.iter().filter(|c| c.status == "True").map(|c| format!("condition {}", c.type_));
        for what in std::iter::once(phase).chain(conditions) {
            if seen.insert(what.clone()) {
                timeline.note(what);
            }
        }
    }
}

async fn follow_pods(timeline: Timeline, api: Api<Pod>, mirror: String, resync: String) {
    let mut seen = BTreeSet::new();
    let mut events = watcher(api, watcher::Config::default().labels(&format!("mirror-operator.io/mirror={mirror}"))).boxed();
    while let Some(event) = events.next().await {
        let pod = match event {
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => pod,
            Ok(watcher::Event::Delete(pod)) => {
                timeline.note(format!("pod {} gone", pod.name_any()));
                continue;
            }
            _ => continue,
        };
        // Earlier epochs' workloads are not of interest.
        if pod.labels().get("mirror-operator.io/resync") != Some(&resync) {
            continue;
        }
        let status = pod.status.clone().unwrap_or_default();
        let state = status.container_statuses.iter().flatten().next().and_then(|c| c.state.clone()).unwrap_or_default();
        let mut now = vec!["created"];
        if pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()) {
            now.push("scheduled");
        }
        if state.running.is_some() {
            now.push("running");
        }
        if let Some(end) = state.terminated {
            now.push(if end.exit_code == 0 { "ended" } else { "failed" });
        }
        let component = pod.labels().get("app.kubernetes.io/component").cloned().unwrap_or_default();
        for what in now {
            if seen.insert(format!("{} {what}", pod.name_any())) {
                timeline.note(format!("{component} pod {what}"));
            }
        }
    }
}

async fn follow_ledger(timeline: Timeline, ledger: Client, mirror: String, resync: String) {
    let sql = format!(
        "SELECT e.begun_at IS NOT NULL, e.generation > 0,
                (SELECT bool_or(c.loaded_at IS NOT NULL) FROM _mirror_operator.chunk c WHERE (c.mirror, c.epoch) = (e.mirror, e.epoch)),
                (SELECT bool_and(c.loaded_at IS NOT NULL) FROM _mirror_operator.chunk c WHERE (c.mirror, c.epoch) = (e.mirror, e.epoch)),
                (SELECT bool_and(t.sealed_at IS NOT NULL) FROM _mirror_operator.table t WHERE (t.mirror, t.epoch) = (e.mirror, e.epoch)),
                e.carried_at IS NOT NULL, e.swapped_at IS NOT NULL
         FROM _mirror_operator.epoch e JOIN _mirror_operator.mirror m USING (mirror)
         WHERE m.name LIKE '%/{mirror}' AND e.resync = (SELECT max(resync::text)::uuid FROM _mirror_operator.epoch n WHERE n.mirror = e.mirror AND n.epoch = m.epoch)
           AND e.epoch = m.epoch"
    );
    let steps = ["epoch begun", "planned", "first chunk loaded", "all chunks loaded", "all tables sealed", "carried", "swapped"];
    let newest = format!("SELECT max(epoch)::text FROM _mirror_operator.mirror WHERE name LIKE '%/{mirror}'");
    let newest = async |client: &Client| match client.query_one(&newest, &[]).await {
        Ok(row) => row.get::<_, Option<String>>(0),
        Err(_) => None,
    };
    let _ = resync;
    let before = newest(&ledger).await;
    let mut done = 0;
    while done < steps.len() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if newest(&ledger).await == before {
            continue;
        }
        let Ok(Some(row)) = ledger.query_opt(&sql, &[]).await else { continue };
        while done < steps.len() && row.get::<_, Option<bool>>(done) == Some(true) {
            timeline.note(format!("ledger: {}", steps[done]));
            done += 1;
        }
    }
}
