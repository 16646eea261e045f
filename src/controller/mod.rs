//! The I/O shell of the operator: observe, plan, apply, tell. Three controllers in one process.

mod context;
mod ensure;
mod mirror;
mod observe;
mod peer;
mod refusal;
mod resync;
mod serve;

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        Controller,
        controller::{Action, Config},
        reflector::ObjectRef,
        watcher,
    },
};
use kube_lease_manager::LeaseManagerBuilder;
use tokio_util::sync::CancellationToken;

pub use context::{Context, Error};

use crate::api::{Mirror, MirrorResync, Peer};

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

    let peers = Controller::new(context.api::<Peer>(), all())
        .owns(context.api::<k8s_openapi::api::batch::v1::Job>(), owned())
        .with_config(config.clone())
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(peer::reconcile, retry, context.clone())
        .for_each(|_| async {});

    let mirrors = Controller::new(context.api::<Mirror>(), all());
    let readers = mirrors.store();
    let mirrors = mirrors
        .owns(context.api::<k8s_openapi::api::batch::v1::Job>(), owned())
        .owns(context.api::<k8s_openapi::api::apps::v1::StatefulSet>(), owned())
        .watches(context.api::<MirrorResync>(), all(), |r| Some(ObjectRef::new(&r.spec.mirror).within(&r.namespace().unwrap_or_default())))
        .watches(context.api::<Peer>(), all(), move |peer| {
            let (name, namespace) = (peer.name_any(), peer.namespace());
            let uses = move |m: &Arc<Mirror>| m.namespace() == namespace && (m.spec.source.peer == name || m.spec.destination.peer == name);
            readers.state().into_iter().filter(uses).map(|m| ObjectRef::from_obj(&*m)).collect::<Vec<_>>()
        })
        .with_config(config.clone())
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(mirror::reconcile, retry, context.clone())
        .for_each(|_| async {});

    let resyncs = Controller::new(context.api::<MirrorResync>(), all());
    let waiting = resyncs.store();
    let resyncs = resyncs
        .owns(context.api::<k8s_openapi::api::batch::v1::Job>(), owned())
        .watches(context.api::<Mirror>(), all(), move |mirror| {
            let (name, namespace) = (mirror.name_any(), mirror.namespace());
            let of = move |r: &Arc<MirrorResync>| {
                let waits = r.status.as_ref().is_none_or(|s| !s.phase.is_end()) || !r.finalizers().is_empty();
                r.namespace() == namespace && r.spec.mirror == name && waits
            };
            waiting.state().into_iter().filter(of).map(|r| ObjectRef::from_obj(&*r)).collect::<Vec<_>>()
        })
        .with_config(config)
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(resync::reconcile, retry, context.clone())
        .for_each(|_| async {});

    context.set_leading(true);
    tokio::join!(peers, mirrors, resyncs);
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
}
