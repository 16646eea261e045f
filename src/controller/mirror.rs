//! Reconciles Mirrors.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{apps::v1::StatefulSet, batch::v1::Job},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, ObjectMeta},
    core::DeserializeGuard,
    runtime::controller::Action,
};

use super::{
    Context, Error,
    context::{KindLabels, ObjectLabels},
    ensure::owner,
    observe::job_facts,
    refusal::tell,
    unreadable::known,
};
use crate::{
    api::{Mirror, MirrorResync, MirrorStatus, Peer, condition, resync::Handover},
    brief::Brief,
    mirror::{Effect, FINALIZER, Observed, ResyncFacts, brief, forced, plan},
    resync::job_name,
    workload::{EPOCH_LABEL, MIRROR_LABEL, brief_map, forget_job, labels},
};

/// How often mere numbers of a running Mirror are written.
const NUMBERS: Duration = Duration::from_secs(10);

/// One pass over one Mirror: reads, thinks, does, tells.
pub async fn reconcile(mirror: Arc<Mirror>, context: Arc<Context>) -> Result<Action, Error> {
    context.metrics.reconciles.get_or_create(&KindLabels { kind: "Mirror".into() }).inc();
    let uid = mirror.uid().unwrap_or_default();
    let seen = match observe(&mirror, &context).await {
        Ok(seen) => seen,
        Err(error) => {
            tell(&context, &*mirror, &error, "Ready", |m| &mut m.status.get_or_insert_default().conditions).await?;
            return Err(error);
        }
    };
    let plan = plan(&mirror, &seen, Timestamp::now());
    let mut current = (*mirror).clone();
    for effect in &plan.effects {
        if matches!(effect, Effect::RemoveFinalizer) {
            context.set_finalizer(&current, FINALIZER, false).await?;
            context.forget(&uid);
            context.forget_numbers(&mirror.namespace().unwrap_or_default(), &mirror.name_any());
            return Ok(Action::await_change());
        }
        match apply(effect, &current, &seen, &context).await {
            Ok(Some(changed)) => current = changed,
            Ok(None) => {}
            Err(error) => {
                tell(&context, &current, &error, "Ready", |m| &mut m.status.get_or_insert_default().conditions).await?;
                return Err(error);
            }
        }
    }
    context.metrics.lag.get_or_create(&labels_of(&mirror)).set(plan.status.lag_bytes.unwrap_or_default());
    if let Some(seconds) = plan.status.lag_seconds {
        context.metrics.lag_seconds.get_or_create(&labels_of(&mirror)).set(seconds);
    } else {
        context.metrics.lag_seconds.remove(&labels_of(&mirror));
    }
    context.metrics.ready.get_or_create(&labels_of(&mirror)).set(condition::holds(&plan.status.conditions, "Ready").into());
    write(&current, plan.status, &context).await?;
    context.succeeded(&uid);
    Ok(plan.next_look.map_or_else(Action::await_change, Action::requeue))
}

fn labels_of(mirror: &Mirror) -> ObjectLabels {
    ObjectLabels { namespace: mirror.namespace().unwrap_or_default(), name: mirror.name_any() }
}

async fn observe(mirror: &Mirror, context: &Context) -> Result<Observed, Error> {
    let (namespace, name, uid) = (mirror.namespace().unwrap_or_default(), mirror.name_any(), mirror.uid().unwrap_or_default());
    let status = mirror.status.clone().unwrap_or_default();
    let mut seen = Observed { image: context.settings.image.clone(), resyncs: resyncs_of(mirror, context).await?, ..Observed::default() };
    let sets: Api<StatefulSet> = Api::namespaced(context.client.clone(), &namespace);
    for set in sets.list(&ListParams::default().labels(&format!("{MIRROR_LABEL}={name}"))).await? {
        let ours = set.owner_references().iter().any(|o| o.uid == uid) && set.metadata.deletion_timestamp.is_none();
        if let (true, Some(epoch)) = (ours, set.labels().get(EPOCH_LABEL).and_then(|e| e.parse().ok())) {
            seen.pipelines.push((epoch, set.spec.and_then(|s| s.replicas).unwrap_or(1)));
        }
    }
    let deleting = mirror.metadata.deletion_timestamp.is_some();
    // One that may go without removing anything needs no brief, and must not wait for one that cannot be read.
    if !(deleting && forced(mirror)) {
        seen.brief = Some(brief_of(mirror, deleting, context).await?);
    }
    if deleting {
        let forget = context.job(&namespace, &forget_name(mirror), &uid).await?;
        let pods = context.pods(&namespace, &name, None).await?;
        seen.pods = pods.alive(&["forget"]).len();
        seen.forget_job = job_facts(forget, "forget", &pods);
    } else if status.live_epoch > 0 {
        let pods = context.pods(&namespace, &name, Some(status.live_epoch)).await?;
        seen.pod_trouble = pods.trouble("pipeline");
        seen.report = context.ask_pipeline(&pods, &uid, status.live_epoch).await;
    } else {
        seen.conflict = conflict(mirror, context).await?;
    }
    Ok(seen)
}

/// The brief of the live epoch, or of the newest one if none is live or the Mirror goes. The Peers of a Mirror that goes may be gone before it: then
/// any brief that is stored serves, since everything is removed in the name of whichever epoch.
async fn brief_of(mirror: &Mirror, deleting: bool, context: &Context) -> Result<Result<Box<Brief>, String>, Error> {
    let (namespace, name, uid) = (mirror.namespace().unwrap_or_default(), mirror.name_any(), mirror.uid().unwrap_or_default());
    let status = mirror.status.clone().unwrap_or_default();
    let newest = status.epoch.max(1);
    let epoch = if status.live_epoch > 0 && !deleting { status.live_epoch } else { newest };
    let oldest = if deleting { status.live_epoch.max(1) } else { epoch };
    for epoch in (oldest..=epoch).rev() {
        if let Some(stored) = context.stored_brief(&namespace, &name, &uid, epoch).await? {
            return Ok(Ok(stored));
        }
    }
    let source = context.read::<Peer>(&namespace, &mirror.spec.source.peer).await?;
    let destination = context.read::<Peer>(&namespace, &mirror.spec.destination.peer).await?;
    Ok(brief(mirror, None, epoch, source.as_ref(), destination.as_ref(), None).map(Box::new))
}

fn forget_name(mirror: &Mirror) -> String {
    format!("{}-forget", mirror.name_any())
}

/// An older Mirror that writes one of this one's tables through the same Peer. One that cannot be read is not known to: what its tables hold tells
/// whose they are.
async fn conflict(mirror: &Mirror, context: &Context) -> Result<Option<String>, Error> {
    let mirrors: Api<DeserializeGuard<Mirror>> = Api::namespaced(context.client.clone(), &mirror.namespace().unwrap_or_default());
    let destination = |t: &crate::api::mirror::Table| t.destination.clone().unwrap_or_else(|| t.source.clone());
    let ours: Vec<String> = mirror.spec.tables.iter().map(destination).collect();
    for other in known(mirrors.list(&ListParams::default()).await?.items, |_| false)? {
        let older = (other.creation_timestamp(), other.uid()) < (mirror.creation_timestamp(), mirror.uid());
        if other.uid() == mirror.uid() || !older || other.spec.destination.peer != mirror.spec.destination.peer {
            continue;
        }
        if let Some(table) = other.spec.tables.iter().map(destination).find(|t| ours.contains(t)) {
            return Ok(Some(format!("Mirror {} already writes {table} through Peer {}.", other.name_any(), mirror.spec.destination.peer)));
        }
    }
    Ok(None)
}

/// Its resyncs. The Mirror waits for the active one even if that cannot be read: to take it for gone would begin another on top of it.
async fn resyncs_of(mirror: &Mirror, context: &Context) -> Result<Vec<ResyncFacts>, Error> {
    let api: Api<DeserializeGuard<MirrorResync>> = Api::namespaced(context.client.clone(), &mirror.namespace().unwrap_or_default());
    let list = api.list(&ListParams::default().fields(&format!("spec.mirror={}", mirror.name_any()))).await?.items;
    let active = mirror.status.as_ref().and_then(|s| s.active_resync.as_ref()).map(|a| a.uid.as_str());
    let goes = mirror.metadata.deletion_timestamp.is_some() && forced(mirror);
    let mut list = known(list, |uid| active == Some(uid) && !goes)?;
    // These make no epoch.
    list.retain(|r| !r.spec.dry_run);
    list.sort_by_key(|r| (r.creation_timestamp(), r.name_any()));
    Ok(list.into_iter().map(|r| facts(r, mirror)).collect())
}

fn facts(resync: MirrorResync, mirror: &Mirror) -> ResyncFacts {
    let status = resync.status.clone().unwrap_or_default();
    let (reason, message) =
        condition::get(&status.conditions, "Succeeded").map(|c| (c.reason.clone(), c.message.clone())).unwrap_or_default();
    ResyncFacts {
        name: resync.name_any(),
        uid: resync.uid().unwrap_or_default(),
        phase: status.phase,
        epoch: status.epoch,
        deleting: resync.metadata.deletion_timestamp.is_some(),
        held: resync.spec.cancel || resync.spec.suspend,
        own: resync.owner_references().iter().any(|o| Some(&o.uid) == mirror.metadata.uid.as_ref()),
        live: resync.spec.handover == Handover::Live,
        old_pipeline_dropped: status.old_pipeline_dropped,
        swapped: status.swap.is_some(),
        reason,
        message,
        started: status.start_time,
        ended: status.completion_time,
        rows: status.rows.map_or(0, |a| a.done),
        bytes: status.bytes.map_or(0, |a| a.done),
    }
}

/// Does one thing. Returns the object if that changed it.
async fn apply(effect: &Effect, mirror: &Mirror, seen: &Observed, context: &Context) -> Result<Option<Mirror>, Error> {
    let (namespace, name, uid) = (mirror.namespace().unwrap_or_default(), mirror.name_any(), mirror.uid().unwrap_or_default());
    match effect {
        Effect::AddFinalizer => return Ok(Some(context.set_finalizer(mirror, FINALIZER, true).await?)),
        Effect::RemoveFinalizer => {}
        Effect::Say(notice) => context.say(mirror, notice).await,
        Effect::CreateResync { name } => create_resync(name, mirror, context).await?,
        Effect::EnsurePipeline { brief, image, replicas } => context.ensure_pipeline(brief, image, *replicas, &owner(mirror)).await?,
        Effect::DeleteResync { name } => context.remove::<MirrorResync>(&namespace, name, &uid).await?,
        Effect::DeletePipeline { epoch } => context.delete_pipeline(&namespace, &name, *epoch, &uid).await?,
        Effect::DeleteBrief { epoch } => context.delete_brief(&namespace, &name, *epoch, &uid).await?,
        Effect::DeleteJobs => {
            for resync in seen.resyncs.iter().filter(|r| r.epoch.is_some()) {
                for role in ["snapshot", "swap", "cleanup"] {
                    context.remove::<Job>(&namespace, &job_name(&resync.name, role), &resync.uid).await?;
                }
            }
        }
        Effect::EnsureForgetJob { brief, image } => {
            context.create(&brief_map(brief, &owner(mirror))).await?;
            let drop_tables = mirror.spec.deletion_policy == crate::api::mirror::DeletionPolicy::Drop;
            context.create(&forget_job(brief, image, drop_tables, &owner(mirror))).await?;
        }
        Effect::DeleteForgetJob => context.remove::<Job>(&namespace, &forget_name(mirror), &uid).await?,
    }
    Ok(None)
}

async fn create_resync(name: &str, mirror: &Mirror, context: &Context) -> Result<(), Error> {
    let spec = serde_json::json!({ "mirror": mirror.name_any() });
    let mut resync = MirrorResync::new(name, serde_json::from_value(spec).map_err(|e| Error::Kube(kube::Error::SerdeError(e)))?);
    resync.metadata = ObjectMeta {
        name: Some(name.into()),
        namespace: mirror.namespace(),
        labels: Some(labels("resync", &[(MIRROR_LABEL, &mirror.name_any())])),
        owner_references: Some(vec![owner(mirror)]),
        ..ObjectMeta::default()
    };
    context.create(&resync).await.map(|_| ())
}

/// Writes the status if it changed; mere numbers not more often than [`NUMBERS`].
async fn write(mirror: &Mirror, status: MirrorStatus, context: &Context) -> Result<(), Error> {
    let old = mirror.status.clone().unwrap_or_default();
    if mirror.status.is_some() && old == status {
        return Ok(());
    }
    let real = mirror.status.is_none() || without_numbers(&old) != without_numbers(&status);
    if !context.may_write_progress(&mirror.uid().unwrap_or_default(), if real { Duration::ZERO } else { NUMBERS }) {
        return Ok(());
    }
    context.write_status(&Mirror { status: Some(status), ..mirror.clone() }).await
}

fn without_numbers(status: &MirrorStatus) -> MirrorStatus {
    MirrorStatus {
        applied_lsn: None,
        lag_bytes: None,
        lag_seconds: None,
        lag: None,
        last_progress_time: None,
        tables: vec![],
        ..status.clone()
    }
}
