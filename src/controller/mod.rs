//! The I/O shell of the operator: observe, plan, apply, tell. Three controllers in one process.

mod context;
mod ensure;
mod mirror;
mod observe;
mod peer;
mod refusal;
mod resync;
mod serve;
mod unreadable;

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        Controller,
        controller::{Action, Config},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use kube_lease_manager::LeaseManagerBuilder;
use tokio_util::sync::CancellationToken;

pub use context::{Context, Error};

use crate::api::{Mirror, MirrorResync, Peer};
use unreadable::readable;

/// How the operator runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace to watch; all if empty.
    pub watch_namespace: Option<String>,
    /// The namespace of the operator itself, for its lease.
    pub namespace: String,
    /// Who this process is; the pod's name.
    pub identity: String,
    /// The image that workloads get: the operator's own.
    pub image: String,
    /// Port of `/healthz`, `/readyz` and `/metrics`.
    pub port: u16,
}

/// Runs until `shutdown`, or until the lease is lost: another process may be the leader then, so this one ends.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> Result<(), Error> {
    let client = Client::try_default().await.map_err(Error::Kube)?;
    let context = Arc::new(Context::new(client.clone(), settings.clone()));
    let server = tokio::spawn(serve::run(settings.port, context.clone(), shutdown.clone()));
    let manager = LeaseManagerBuilder::new(client.clone(), "mirror-operator")
        .with_namespace(&settings.namespace)
        .with_identity(&settings.identity)
        .with_duration(10)
        .with_grace(3)
        .build()
        .await
        .map_err(|e| Error::Lease(e.to_string()))?;
    let (mut leader, lease) = manager.watch().await;
    tracing::info!("waiting for the lease");
    let won = tokio::select! {
        () = shutdown.cancelled() => false,
        won = leader.wait_for(|held| *held) => won.map(|held| *held).map_err(|e| Error::Lease(e.to_string()))?,
    };
    let mut outcome = Ok(());
    if won {
        tracing::info!("leading");
        let stop = shutdown.child_token();
        tokio::select! {
            () = controllers(&context, &stop) => {}
            _ = leader.wait_for(|held| !*held) => {
                stop.cancel();
                outcome = Err(Error::Lease("the lease was lost to another process".into()));
            }
        }
    }
    drop(leader);
    // The manager's task releases the lease once nobody listens, so that the next process need not wait for it to expire.
    let _ = tokio::time::timeout(Duration::from_secs(5), lease).await;
    server.abort();
    outcome
}

async fn controllers(context: &Arc<Context>, stop: &CancellationToken) {
    let config = Config::default().concurrency(16);
    let all = watcher::Config::default;
    let owned = || watcher::Config::default().labels("app.kubernetes.io/managed-by=mirror-operator");

    let peers = Controller::new(context.guarded::<Peer>(), all())
        .owns(context.api::<k8s_openapi::api::batch::v1::Job>(), owned())
        .with_config(config.clone())
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(|object, context| readable(object, context, peer::reconcile), retry, context.clone())
        .for_each(|_| async {});

    let mirrors = Controller::new(context.guarded::<Mirror>(), all());
    let readers = mirrors.store();
    let mirrors = mirrors
        .owns(context.api::<k8s_openapi::api::batch::v1::Job>(), owned())
        .owns(context.api::<k8s_openapi::api::apps::v1::StatefulSet>(), owned())
        .watches(context.guarded::<MirrorResync>(), all(), |resync| {
            let of = |r: MirrorResync| ObjectRef::new(&r.spec.mirror).within(&r.namespace().unwrap_or_default());
            resync.0.ok().map(of)
        })
        .watches(context.guarded::<Peer>(), all(), move |peer| {
            let (name, namespace) = (peer.name_any(), peer.namespace());
            let uses = move |m: &Mirror| m.namespace() == namespace && (m.spec.source.peer == name || m.spec.destination.peer == name);
            all_that(&readers, uses)
        })
        .with_config(config.clone())
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(|object, context| readable(object, context, mirror::reconcile), retry, context.clone())
        .for_each(|_| async {});

    let resyncs = Controller::new(context.guarded::<MirrorResync>(), all());
    let waiting = resyncs.store();
    let resyncs = resyncs
        .owns(context.api::<k8s_openapi::api::batch::v1::Job>(), owned())
        .watches(context.guarded::<Mirror>(), all(), move |mirror| {
            let (name, namespace) = (mirror.name_any(), mirror.namespace());
            let of = move |r: &MirrorResync| {
                let waits = r.status.as_ref().is_none_or(|s| !s.phase.is_end()) || !r.finalizers().is_empty();
                r.namespace() == namespace && r.spec.mirror == name && waits
            };
            all_that(&waiting, of)
        })
        .with_config(config)
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(|object, context| readable(object, context, resync::reconcile), retry, context.clone())
        .for_each(|_| async {});

    context.set_leading(true);
    tokio::join!(peers, mirrors, resyncs);
}

/// Of the objects that a controller knows and that can be read, those that fit.
fn all_that<K>(store: &Store<DeserializeGuard<K>>, fits: impl Fn(&K) -> bool) -> Vec<ObjectRef<DeserializeGuard<K>>>
where
    K: kube::Resource<DynamicType = ()> + Clone,
{
    store.state().iter().filter(|object| object.0.as_ref().is_ok_and(&fits)).map(|object| ObjectRef::from_obj(&**object)).collect()
}

/// An object whose reconcile failed is tried again, later each time; the others go on.
fn retry<K: kube::Resource<DynamicType = ()> + ResourceExt>(object: Arc<K>, error: &Error, context: Arc<Context>) -> Action {
    let uid = object.meta().uid.clone().unwrap_or_default();
    let pause = context.failed(&uid);
    let kind = K::kind(&()).into_owned();
    if error.is_conflict() {
        tracing::debug!(kind, name = object.name_any(), "changed meanwhile; looking again");
    } else {
        tracing::warn!(kind, namespace = object.namespace(), name = object.name_any(), error = %error, "reconcile failed; trying again");
    }
    Action::requeue(pause)
}

/// The API of a kind, in the watched namespace or all.
impl Context {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        match &self.settings.watch_namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn guarded<K>(&self) -> Api<DeserializeGuard<K>>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        self.api()
    }
}
