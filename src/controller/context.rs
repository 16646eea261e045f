//! What all reconcilers share.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kube::{
    Api, Client, Resource, ResourceExt,
    api::PostParams,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use serde::{Serialize, de::DeserializeOwned};

use super::Settings;
use crate::resync::Notice;

/// Why a reconcile could not finish.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error("Kubernetes API: {0}")]
    Kube(#[from] kube::Error),
    /// An object of the wanted name exists and is not ours, or not any more.
    #[error("{kind} {name:?} exists but belongs to something else; it must be removed first")]
    NotOurs {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
    },
    /// An object of the wanted name is still being deleted.
    #[error("{kind} {name:?} is still being deleted")]
    Going {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
    },
    /// The API server refuses an object that the operator wants: a quota, an admission webhook, a policy, missing rights.
    #[error("the API server refuses {kind} {name:?}: {why}. It is tried again")]
    Refused {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// Its words.
        why: String,
    },
    /// Leader election failed.
    #[error("leader election: {0}")]
    Lease(String),
    /// An object of our kinds does not fit its kind as this version has it.
    #[error("{kind} {name:?} cannot be read: {cause}. Correct that field, or go back to the operator that it was made for")]
    Unreadable {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// Why.
        cause: String,
    },
    /// A stored brief cannot be read.
    #[error(
        "the brief in ConfigMap {name:?} cannot be read: {cause}. Put back what it held, or go back to the operator that wrote it; to let the Mirror go without \
         removing anything, annotate it with {}=true",
        crate::mirror::FORCE_ANNOTATION
    )]
    Brief {
        /// Name of the ConfigMap.
        name: String,
        /// Why.
        cause: String,
    },
}

impl Error {
    /// Whether somebody else changed the object meanwhile.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.code == 409)
    }

    /// If people have to cure it: one CamelCase word for it.
    pub fn for_people(&self) -> Option<&'static str> {
        match self {
            Self::Refused { .. } => Some("WorkloadRefused"),
            Self::NotOurs { .. } => Some("NameTaken"),
            Self::Brief { .. } => Some("BriefUnreadable"),
            Self::Unreadable { .. } => Some("Unreadable"),
            _ => None,
        }
    }
}

/// What became of an object that the operator wanted to write. Only what will be refused again is [`Error::Refused`].
pub fn refusal(kind: &str, name: &str, error: kube::Error) -> Error {
    match error {
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 413 | 422) => {
            let why = status.message.trim_end_matches('.').to_string();
            Error::Refused { kind: kind.into(), name: name.into(), why }
        }
        other => Error::Kube(other),
    }
}

/// Labels of the metrics of one object.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ObjectLabels {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Labels of counters by kind.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabels {
    /// Kind.
    pub kind: String,
}

/// What `/metrics` shows.
#[derive(Default)]
pub struct Metrics {
    /// Passes of each kind.
    pub reconciles: Family<KindLabels, Counter>,
    /// Passes that failed.
    pub failures: Family<KindLabels, Counter>,
    /// Writes of status.
    pub status_writes: Family<KindLabels, Counter>,
    /// Writes of any kind, Events too; not the lease.
    pub api_writes: Family<KindLabels, Counter>,
    /// Lag of each mirror in bytes.
    pub lag: Family<ObjectLabels, Gauge>,
    /// The same in seconds, where it is known.
    pub lag_seconds: Family<ObjectLabels, Gauge>,
    /// Whether each mirror is Ready.
    pub ready: Family<ObjectLabels, Gauge>,
}

/// What all reconcilers share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// How this process runs.
    pub settings: Settings,
    /// Asks pipeline pods.
    pub http: reqwest::Client,
    /// Metrics.
    pub metrics: Metrics,
    recorder: Recorder,
    leading: AtomicBool,
    failures: Mutex<HashMap<String, u32>>,
    last_progress: Mutex<HashMap<String, Instant>>,
}

impl Context {
    /// A context for one process.
    pub fn new(client: Client, settings: Settings) -> Self {
        let reporter = Reporter { controller: "mirror-operator".into(), instance: Some(settings.identity.clone()) };
        let http = reqwest::Client::builder().timeout(Duration::from_secs(2)).no_proxy().build().unwrap_or_default();
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            settings,
            http,
            metrics: Metrics::default(),
            leading: AtomicBool::new(false),
            failures: Mutex::default(),
            last_progress: Mutex::default(),
        }
    }

    /// All metrics, registered.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("mirror_operator");
        registry.register("reconciles", "Passes over objects", self.metrics.reconciles.clone());
        registry.register("reconcile_failures", "Passes that failed", self.metrics.failures.clone());
        registry.register("status_writes", "Writes of status", self.metrics.status_writes.clone());
        registry.register("api_writes", "Writes to the API server, beside the lease's", self.metrics.api_writes.clone());
        registry.register("mirror_lag_bytes", "WAL written at the source and not applied yet", self.metrics.lag.clone());
        registry.register("mirror_lag_seconds", "Age of the oldest change received and not applied yet", self.metrics.lag_seconds.clone());
        registry.register("mirror_ready", "1 if the Mirror is Ready", self.metrics.ready.clone());
        registry
    }

    /// Counts a write to the API server.
    pub fn wrote<K: Resource<DynamicType = ()>>(&self) {
        self.metrics.api_writes.get_or_create(&KindLabels { kind: K::kind(&()).into_owned() }).inc();
    }

    /// Whether the controllers run.
    pub fn is_leading(&self) -> bool {
        self.leading.load(Ordering::Relaxed)
    }

    /// Notes that the controllers run.
    pub fn set_leading(&self, leading: bool) {
        self.leading.store(leading, Ordering::Relaxed);
    }

    /// Notes a failed pass; returns how long to wait: 0.5 s, doubled each time, at most a minute.
    pub fn failed(&self, uid: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(uid.into()).or_default();
        *count = (*count + 1).min(8);
        Duration::from_millis(250 << *count).min(Duration::from_secs(60))
    }

    /// Notes a pass that went well.
    pub fn succeeded(&self, uid: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Whether a mere change of numbers may be written again: not more often than `pause`.
    pub fn may_write_progress(&self, uid: &str, pause: Duration) -> bool {
        let mut last = self.last_progress.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if last.get(uid).is_some_and(|then| now.duration_since(*then) < pause) {
            return false;
        }
        last.insert(uid.into(), now);
        true
    }

    /// Forgets what is known of an object that is gone.
    pub fn forget(&self, uid: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.last_progress.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Takes the numbers of a Mirror that nobody looks at out of the metrics.
    pub fn forget_numbers(&self, namespace: &str, name: &str) {
        let of = ObjectLabels { namespace: namespace.into(), name: name.into() };
        self.metrics.lag.remove(&of);
        self.metrics.lag_seconds.remove(&of);
        self.metrics.ready.remove(&of);
    }

    /// Publishes an Event. A lost Event is no reason to stop: conditions carry the same words.
    pub async fn say<K: Resource<DynamicType = ()>>(&self, about: &K, notice: &Notice) {
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.clone(),
            note: Some(cut(&notice.message, 1000)),
            action: "Reconcile".into(),
            secondary: None,
        };
        self.wrote::<k8s_openapi::api::events::v1::Event>();
        if let Err(error) = self.recorder.publish(&event, &about.object_ref(&())).await {
            tracing::warn!(%error, reason = notice.reason, "an Event could not be published");
        }
    }

    /// Writes the whole status, on the condition that the object is still the one that was read.
    pub async fn write_status<K>(&self, object: &K) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        self.metrics.status_writes.get_or_create(&KindLabels { kind: K::kind(&()).into_owned() }).inc();
        self.wrote::<K>();
        api.replace_status(&object.name_any(), &PostParams::default(), object).await?;
        Ok(())
    }

    /// Puts a finalizer on or takes it off, on the condition that the object is still the one that was read.
    pub async fn set_finalizer<K>(&self, object: &K, finalizer: &str, wanted: bool) -> Result<K, Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let mut finalizers: Vec<String> = object.finalizers().iter().filter(|f| *f != finalizer).cloned().collect();
        if wanted {
            finalizers.push(finalizer.into());
        }
        self.wrote::<K>();
        let patch = serde_json::json!({ "metadata": { "finalizers": finalizers, "resourceVersion": object.resource_version() } });
        Ok(api.patch(&object.name_any(), &kube::api::PatchParams::default(), &kube::api::Patch::Merge(patch)).await?)
    }
}

/// Cuts a text at a character's border: the API server drops Events whose note has more than 1,024 bytes.
fn cut(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.into();
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_whose_passes_fail_is_tried_later_each_time_within_a_minute_until_one_goes_well() {
        let settings = Settings { watch_namespace: None, namespace: "o".into(), identity: "o-0".into(), image: "i".into(), port: 0 };
        let context = Context::new(Client::new(axum::Router::new(), "n"), settings);
        let pauses =
            |uid: &str, times: usize| -> Vec<u64> { (0..times).map(|_| u64::try_from(context.failed(uid).as_millis()).unwrap()).collect() };
        assert_eq!(pauses("a", 10), [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
        assert_eq!(pauses("b", 1), [500], "another object has its own");
        context.succeeded("a");
        assert_eq!(pauses("a", 2), [500, 1_000]);
        context.forget("a");
        assert_eq!((pauses("a", 1), pauses("b", 1)), (vec![500], vec![1_000]), "one that is gone leaves nothing");
    }
}
