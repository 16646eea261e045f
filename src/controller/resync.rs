//! Reconciles MirrorResyncs.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use kube::{ResourceExt, runtime::controller::Action};

use super::{Context, Error, context::KindLabels, ensure::owner, observe::job_facts, refusal::tell};
use crate::{
    api::{Mirror, MirrorResync, MirrorResyncStatus, Peer},
    mirror,
    resync::{Effect, FINALIZER, MirrorFacts, Observed, job_name, plan},
    workload::{brief_map, cleanup_job, plan_job, snapshot_job, swap_job},
};

/// One pass over one MirrorResync: reads, thinks, does, tells.
pub async fn reconcile(resync: Arc<MirrorResync>, context: Arc<Context>) -> Result<Action, Error> {
    context.metrics.reconciles.get_or_create(&KindLabels { kind: "MirrorResync".into() }).inc();
    let uid = resync.uid().unwrap_or_default();
    let (mirror, seen) = match look(&resync, &context).await {
        Ok(found) => found,
        Err(error) => return Err(told(&resync, error, &context).await?),
    };
    let plan = plan(&resync, &seen, Timestamp::now());
    let mut current = (*resync).clone();
    for effect in &plan.effects {
        if matches!(effect, Effect::RemoveFinalizer) {
            // The status is told before the object may go.
            write(&current, &plan.status, &context).await?;
            context.set_finalizer(&current, FINALIZER, false).await.map(|_| ()).or_else(gone)?;
            context.forget(&uid);
            return Ok(Action::await_change());
        }
        match apply(effect, &current, mirror.as_ref(), &context).await {
            Ok(Some(changed)) => current = changed,
            Ok(None) => {}
            Err(error) => return Err(told(&current, error, &context).await?),
        }
    }
    write(&current, &plan.status, &context).await?;
    context.succeeded(&uid);
    Ok(plan.next_look.map_or_else(Action::await_change, Action::requeue))
}

/// Tells an error that people have to cure. How a resync has ended stands: nobody would put that back.
async fn told(resync: &MirrorResync, error: Error, context: &Context) -> Result<Error, Error> {
    if !resync.status.as_ref().is_some_and(|status| status.phase.is_end()) {
        tell(context, resync, &error, "Succeeded", |r| &mut r.status.get_or_insert_default().conditions).await?;
    }
    Ok(error)
}

/// An object that is gone needs no finalizer taken off.
fn gone(error: Error) -> Result<(), Error> {
    match error {
        Error::Kube(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => Err(other),
    }
}

/// Its Mirror, and all else that a plan is made of.
async fn look(resync: &MirrorResync, context: &Context) -> Result<(Option<Mirror>, Observed), Error> {
    let mirror = context.read::<Mirror>(&resync.namespace().unwrap_or_default(), &resync.spec.mirror).await?;
    let seen = observe(resync, mirror.as_ref(), context).await?;
    Ok((mirror, seen))
}

async fn observe(resync: &MirrorResync, mirror: Option<&Mirror>, context: &Context) -> Result<Observed, Error> {
    let mut seen = Observed { image: context.settings.image.clone(), ..Observed::default() };
    let status = resync.status.clone().unwrap_or_default();
    let Some(mirror) = mirror else { return Ok(seen) };
    if status.mirror_uid.as_ref().is_some_and(|uid| mirror.metadata.uid.as_ref() != Some(uid)) {
        return Ok(seen);
    }
    let (namespace, mirror_uid, uid) =
        (resync.namespace().unwrap_or_default(), mirror.uid().unwrap_or_default(), resync.uid().unwrap_or_default());
    let mirror_status = mirror.status.clone().unwrap_or_default();
    seen.mirror = Some(MirrorFacts {
        uid: mirror_uid.clone(),
        deleting: mirror.metadata.deletion_timestamp.is_some(),
        forced: mirror::forced(mirror),
        active: mirror_status.active_resync.clone(),
        live_epoch: mirror_status.live_epoch,
        max_parallel_workers: mirror.spec.snapshot.max_parallel_workers,
    });
    if resync.spec.dry_run && !status.phase.is_end() {
        return observe_dry_run(resync, mirror, seen, context).await;
    }
    let active = mirror_status.active_resync.filter(|a| a.uid == uid);
    let Some(epoch) = status.epoch.or(active.map(|a| a.epoch)).filter(|_| !status.phase.is_end()) else { return Ok(seen) };
    seen.brief = match context.stored_brief(&namespace, &mirror.name_any(), &mirror_uid, epoch).await {
        Ok(Some(brief)) => Some(Ok(Box::new(brief.with_pods_of(&mirror.spec)))),
        Ok(None) => Some(fresh_brief(resync, mirror, epoch, context).await?),
        // Nobody waits for it any more.
        Err(Error::Brief { .. }) if mirror::forced(mirror) => None,
        Err(error) => return Err(error),
    };
    if status.epoch.is_none() {
        return Ok(seen);
    }
    let name = resync.name_any();
    let snapshot = context.job(&namespace, &job_name(&name, "snapshot"), &uid).await?;
    let swap = context.job(&namespace, &job_name(&name, "swap"), &uid).await?;
    let cleanup = context.job(&namespace, &job_name(&name, "cleanup"), &uid).await?;
    let pods = context.pods(&namespace, &mirror.name_any(), Some(epoch)).await?;
    seen.pods = pods.alive(&["cleanup", "forget"]);
    seen.pod_trouble = pods.trouble("pipeline");
    seen.snapshot_job = job_facts(snapshot, "snapshot", &pods);
    seen.swap_job = job_facts(swap, "swap", &pods);
    seen.cleanup_job = job_facts(cleanup, "cleanup", &pods);
    seen.report = context.ask_pipeline(&pods, &mirror_uid, epoch).await;
    Ok(seen)
}

/// A dry run has no epoch: it looks at what the next one would be.
async fn observe_dry_run(resync: &MirrorResync, mirror: &Mirror, mut seen: Observed, context: &Context) -> Result<Observed, Error> {
    let next = mirror.status.as_ref().map_or(0, |s| s.epoch) + 1;
    let (namespace, name) = (resync.namespace().unwrap_or_default(), job_name(&resync.name_any(), "plan"));
    seen.brief = Some(fresh_brief(resync, mirror, next, context).await?);
    let job = context.job(&namespace, &name, &resync.uid().unwrap_or_default()).await?;
    let pods = context.pods_of_job(&namespace, &name).await?;
    seen.plan_job = job_facts(job, "plan", &pods);
    Ok(seen)
}

async fn fresh_brief(
    resync: &MirrorResync,
    mirror: &Mirror,
    epoch: u32,
    context: &Context,
) -> Result<Result<Box<crate::brief::Brief>, String>, Error> {
    let namespace = resync.namespace().unwrap_or_default();
    let live_epoch = mirror.status.as_ref().map_or(0, |s| s.live_epoch);
    let live = match resync.spec.tables.is_empty() || live_epoch == 0 {
        true => None,
        false => context.stored_brief(&namespace, &mirror.name_any(), &mirror.uid().unwrap_or_default(), live_epoch).await?,
    };
    let source = context.read::<Peer>(&namespace, &mirror.spec.source.peer).await?;
    let destination = context.read::<Peer>(&namespace, &mirror.spec.destination.peer).await?;
    Ok(mirror::brief(mirror, Some(resync), epoch, source.as_ref(), destination.as_ref(), live.as_deref()).map(Box::new))
}

/// Does one thing. Returns the object if that changed it.
async fn apply(effect: &Effect, resync: &MirrorResync, mirror: Option<&Mirror>, context: &Context) -> Result<Option<MirrorResync>, Error> {
    let (namespace, uid, name) = (resync.namespace().unwrap_or_default(), resync.uid().unwrap_or_default(), resync.name_any());
    match effect {
        Effect::AddFinalizer => return Ok(Some(context.set_finalizer(resync, FINALIZER, true).await?)),
        Effect::RemoveFinalizer => {}
        Effect::Say(notice) => context.say(resync, notice).await,
        Effect::DeleteJobs => {
            for role in ["snapshot", "swap"] {
                context.remove::<Job>(&namespace, &job_name(&name, role), &uid).await?;
            }
        }
        Effect::EnsurePlanJob { brief, image } => {
            let (map, job) = plan_job(brief, image, &owner(resync));
            context.create(&map).await?;
            context.create(&job).await?;
        }
        Effect::DeletePlanJob => context.remove::<Job>(&namespace, &job_name(&name, "plan"), &uid).await?,
        Effect::DeleteCleanupJob => context.remove::<Job>(&namespace, &job_name(&name, "cleanup"), &uid).await?,
        Effect::DeletePipeline { epoch } => {
            if let Some(mirror) = mirror {
                context.delete_pipeline(&namespace, &mirror.name_any(), *epoch, &mirror.uid().unwrap_or_default()).await?;
            }
        }
        Effect::EnsurePipeline { brief, image } => {
            if let Some(mirror) = mirror {
                context.ensure_pipeline(brief, image, 1, &owner(mirror)).await?;
            }
        }
        Effect::EnsureSnapshotJob { brief, image, partitions, parallelism, suspended } => {
            context.ensure_snapshot_job(&snapshot_job(brief, image, *partitions, *parallelism, *suspended, &owner(resync))).await?;
        }
        Effect::EnsureSwapJob { brief, image } => {
            context.create(&swap_job(brief, image, &owner(resync))).await?;
        }
        Effect::EnsureCleanupJob { brief, image } => {
            if let Some(mirror) = mirror {
                context.create(&brief_map(brief, &owner(mirror))).await?;
            }
            context.create(&cleanup_job(brief, image, &owner(resync))).await?;
        }
    }
    Ok(None)
}

/// Writes the status if it changed; mere numbers less often the longer the resync takes, so that a long one costs few writes.
async fn write(resync: &MirrorResync, status: &MirrorResyncStatus, context: &Context) -> Result<(), Error> {
    let old = resync.status.clone().unwrap_or_default();
    if old == *status {
        return Ok(());
    }
    let uid = resync.uid().unwrap_or_default();
    let running = old.start_time.as_ref().map_or(0, |t| Timestamp::now().duration_since(t.0).as_secs().max(0));
    let pause = Duration::from_secs(u64::try_from(running / 10).unwrap_or_default().clamp(2, 60));
    let real = resync.status.is_none() || without_numbers(&old) != without_numbers(status);
    if !context.may_write_progress(&uid, if real { Duration::ZERO } else { pause }) {
        return Ok(());
    }
    context.write_status(&MirrorResync { status: Some(status.clone()), ..resync.clone() }).await
}

fn without_numbers(status: &MirrorResyncStatus) -> MirrorResyncStatus {
    let mut plain = MirrorResyncStatus { progress: None, eta: None, bytes: None, rows: None, lag: None, tables: vec![], ..status.clone() };
    if let Some(partitions) = &mut plain.partitions {
        partitions.succeeded = 0;
    }
    plain
}
