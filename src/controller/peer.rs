//! Reconciles Peers.

use std::sync::Arc;

use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use kube::{ResourceExt, runtime::controller::Action};

use super::{Context, Error, context::KindLabels, ensure::owner, refusal::tell};
use crate::{
    api::Peer,
    peer::{CheckFacts, Effect, Observed, check_name, destination, plan},
    workload::check_job,
};

/// One pass over one Peer: reads, thinks, does, tells.
pub async fn reconcile(peer: Arc<Peer>, context: Arc<Context>) -> Result<Action, Error> {
    let uid = peer.uid().unwrap_or_default();
    if peer.metadata.deletion_timestamp.is_some() {
        context.forget(&uid);
        return Ok(Action::await_change());
    }
    context.metrics.reconciles.get_or_create(&KindLabels { kind: "Peer".into() }).inc();
    let seen = observe(&peer, &context).await?;
    let plan = plan(&peer, &seen, Timestamp::now());
    for effect in &plan.effects {
        if let Err(error) = apply(effect, &peer, &context).await {
            tell(&context, &*peer, &error, "Ready", |p| &mut p.status.get_or_insert_default().conditions).await?;
            return Err(error);
        }
    }
    if peer.status.as_ref() != Some(&plan.status) {
        context.write_status(&Peer { status: Some(plan.status), ..(*peer).clone() }).await?;
    }
    context.succeeded(&uid);
    Ok(plan.next_look.map_or_else(Action::await_change, Action::requeue))
}

async fn observe(peer: &Peer, context: &Context) -> Result<Observed, Error> {
    let namespace = peer.namespace().unwrap_or_default();
    let name = check_name(peer);
    let Some(job) = context.job(&namespace, &name, &peer.uid().unwrap_or_default()).await? else { return Ok(Observed::default()) };
    let pods = context.pods_of_job(&namespace, &name).await?;
    let ends = job.status.as_ref().and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    let mut ends = ends.filter(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed"));
    let ended = ends.next().map(|c| c.last_transition_time.as_ref().map_or_else(Timestamp::now, |t| t.0));
    Ok(Observed { check: Some(CheckFacts { ended, report: pods.words(&job).into_iter().next(), trouble: pods.trouble("check") }) })
}

async fn apply(effect: &Effect, peer: &Peer, context: &Context) -> Result<(), Error> {
    let namespace = peer.namespace().unwrap_or_default();
    match effect {
        Effect::StartCheck => {
            let Some(connection) = destination(peer, "peer") else { return Ok(()) };
            let roles: Vec<String> = peer.spec.roles.iter().map(|r| format!("{r:?}").to_lowercase()).collect();
            let job = check_job(
                &namespace,
                &check_name(peer),
                &peer.name_any(),
                &connection,
                &roles.join(","),
                &context.settings.image,
                &owner(peer),
            );
            context.create(&job).await?;
        }
        Effect::RemoveCheck => context.remove::<Job>(&namespace, &check_name(peer), &peer.uid().unwrap_or_default()).await?,
        Effect::Say(notice) => context.say(peer, notice).await,
    }
    Ok(())
}
