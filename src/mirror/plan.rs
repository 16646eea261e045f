//! The decisions about a Mirror.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::{
    Effect, FINALIZER, FORCE_ANNOTATION, Observed, Pass, Plan, ResyncFacts, forced, made_from,
    words::{cured, drift, plain},
};
use crate::{
    api::{
        Mirror, MirrorStatus,
        condition::{self, Verdict},
        mirror::{ActiveResync, MirrorPhase, Mode, OnSlotLost, PastResync, TableStatus},
        resync::{Outcome, Phase},
    },
    brief::Brief,
    name,
    report::{Report, Stage},
    resync::{Notice, human_bytes},
};

/// How often a running mirror is looked at.
const USUAL: Duration = Duration::from_secs(5);
/// How often one that is on the move is looked at.
const SOON: Duration = Duration::from_millis(500);
/// How many ended resyncs are remembered, and how many of its own the Mirror keeps.
const HISTORY: usize = 10;
/// A resync of the Mirror's own that failed is tried again after this, doubled each time, at most 32 min.
const RETRY: Duration = Duration::from_secs(30);

/// What a resync says while it goes on as it should.
const STEPS: [&str; 5] = ["Setup", "Snapshot", "CatchUp", "Swap", "Connecting"];

/// What a reconcile of one Mirror does next. Computed from facts alone.
pub fn plan(mirror: &Mirror, seen: &Observed, now: Timestamp) -> Plan {
    let pass = Pass { mirror, seen, now };
    let mut status = mirror.status.clone().unwrap_or_default();
    status.observed_generation = mirror.metadata.generation;
    status.table_count = u32::try_from(mirror.spec.tables.len()).unwrap_or(u32::MAX);
    if mirror.metadata.deletion_timestamp.is_some() {
        return pass.terminate(status);
    }
    let mut effects = vec![];
    if !pass.has_finalizer() {
        effects.push(Effect::AddFinalizer);
    }
    // Also of a Mirror that is refused by now.
    pass.release(&mut status, &mut effects);
    pass.prune(&status, &mut effects);
    if let Some(other) = &seen.conflict
        && status.live_epoch == 0
    {
        return pass.refuse(status, effects, "Conflict", other);
    }
    if let Some(Err(why)) = &seen.brief
        && status.live_epoch == 0
    {
        return pass.refuse(status, effects, "InvalidSpec", why);
    }
    pass.notice_fence(&mut status);
    pass.choose(&mut status, &mut effects);
    pass.keep_pipelines(&status, &mut effects);
    pass.describe(&mut status, &mut effects);
    pass.say_what_turned(&status, &mut effects);
    let next_look = if matches!(status.phase, MirrorPhase::Running | MirrorPhase::Loaded) || status.active_resync.is_some() {
        USUAL
    } else {
        SOON.max(Duration::from_secs(1))
    };
    Plan { effects, status, next_look: Some(next_look) }
}

impl Pass<'_> {
    fn has_finalizer(&self) -> bool {
        self.mirror.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
    }

    fn name(&self) -> &str {
        self.mirror.metadata.name.as_deref().unwrap_or_default()
    }

    fn set(&self, status: &mut MirrorStatus, kind: &str, verdict: Verdict, reason: &str, message: &str) {
        condition::set(&mut status.conditions, kind, verdict, reason, message, self.mirror.metadata.generation, self.now);
    }

    /// Sets `Ready` and says it as an Event when it is news.
    fn ready(&self, status: &mut MirrorStatus, effects: &mut Vec<Effect>, verdict: Verdict, reason: &str, message: &str) {
        let news = condition::get(&status.conditions, "Ready").is_none_or(|c| c.reason != reason || c.status != verdict.as_str());
        if news {
            effects.push(Effect::Say(Notice { warning: verdict == Verdict::False, reason: reason.into(), message: message.into() }));
        }
        self.set(status, "Ready", verdict, reason, message);
    }

    /// Says what turned out to be wrong besides `Ready`, and when it is right again.
    fn say_what_turned(&self, status: &MirrorStatus, effects: &mut Vec<Effect>) {
        let before = self.mirror.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        for kind in ["SchemaInSync", "SequencesInSync"] {
            let (Some(now), before) = (condition::get(&status.conditions, kind), condition::get(before, kind)) else { continue };
            let wrong = now.status == Verdict::False.as_str();
            let was_wrong = before.is_some_and(|c| c.status == Verdict::False.as_str());
            let is_news =
                if wrong { before.is_none_or(|c| c.message != now.message) } else { was_wrong && now.status == Verdict::True.as_str() };
            if is_news {
                effects.push(Effect::Say(Notice { warning: wrong, reason: now.reason.clone(), message: now.message.clone() }));
            }
        }
    }

    fn refuse(&self, mut status: MirrorStatus, mut effects: Vec<Effect>, reason: &str, why: &str) -> Plan {
        status.phase = MirrorPhase::Pending;
        self.ready(&mut status, &mut effects, Verdict::False, reason, why);
        Plan { effects, status, next_look: Some(USUAL) }
    }

    /// Takes leave of a resync that has ended, or that was deleted before it began.
    fn release(&self, status: &mut MirrorStatus, effects: &mut Vec<Effect>) {
        let Some(active) = status.active_resync.clone() else { return };
        let Some(resync) = self.seen.resyncs.iter().find(|r| r.uid == active.uid) else {
            status.active_resync = None;
            return;
        };
        let outcome = match resync.phase {
            Phase::Running | Phase::Succeeded => Outcome::Succeeded,
            Phase::Failed => Outcome::Failed,
            Phase::Cancelled => Outcome::Cancelled,
            _ => return,
        };
        status.active_resync = None;
        if outcome == Outcome::Succeeded || resync.swapped {
            // Of the epochs before it nothing is left.
            effects.extend((status.live_epoch.max(1)..active.epoch).map(|epoch| Effect::DeleteBrief { epoch }));
            status.live_epoch = active.epoch;
            status.stream_dropped = false;
            status.tables.clear();
        } else {
            status.stream_dropped |= resync.old_pipeline_dropped && status.live_epoch > 0 && !self.rests(status);
            // Beside the live epoch's brief the newest one is enough to remove whatever is left of any.
            let earlier = active.epoch.saturating_sub(1);
            effects.extend((resync.epoch.is_some() && earlier > status.live_epoch).then_some(Effect::DeleteBrief { epoch: earlier }));
        }
        let past = PastResync {
            name: resync.name.clone(),
            uid: resync.uid.clone(),
            started: resync.started.clone(),
            ended: resync.ended.clone(),
            outcome,
            rows: resync.rows,
            bytes: resync.bytes,
        };
        status.resyncs.retain(|r| r.uid != past.uid);
        status.resyncs.insert(0, past);
        status.resyncs.truncate(HISTORY);
        effects.push(Effect::Say(Notice::normal("ResyncEnded", format!("MirrorResync {} ended: {outcome:?}.", resync.name))));
    }

    /// Of the resyncs that the Mirror itself has made, the newest that ended are kept.
    fn prune(&self, status: &MirrorStatus, effects: &mut Vec<Effect>) {
        let active = status.active_resync.as_ref().map(|a| &a.uid);
        let ended = self.seen.resyncs.iter().rev().filter(|r| r.own && r.phase.is_end() && Some(&r.uid) != active);
        effects.extend(ended.skip(HISTORY).filter(|r| !r.deleting).map(|r| Effect::DeleteResync { name: r.name.clone() }));
    }

    /// A pipeline that was fenced by an epoch which never became live will not stream again. Nobody else says so if that resync ended unseen.
    fn notice_fence(&self, status: &mut MirrorStatus) {
        let fenced = self.seen.report.as_ref().is_some_and(|r| r.epoch == status.live_epoch && r.stage == Stage::Superseded);
        if fenced && status.active_resync.is_none() && self.mirror.status.as_ref().is_some_and(|s| s.active_resync.is_none()) {
            status.stream_dropped = true;
        }
    }

    /// Chooses the next resync: the oldest that waits. Makes one where the operator itself has cause to.
    fn choose(&self, status: &mut MirrorStatus, effects: &mut Vec<Effect>) {
        if status.active_resync.is_some() {
            return;
        }
        let waits = |r: &&ResyncFacts| !r.phase.is_end() && !r.deleting && !r.held;
        if let Some(next) = self.seen.resyncs.iter().find(waits) {
            status.epoch += 1;
            status.active_resync = Some(ActiveResync { name: next.name.clone(), uid: next.uid.clone(), epoch: status.epoch });
            return;
        }
        if self.mirror.spec.suspend || self.seen.resyncs.iter().any(|r| !r.phase.is_end()) {
            return;
        }
        let wanted = status.live_epoch == 0 || self.wants_automatic_resync(status);
        if wanted && self.patience_is_over() {
            effects.push(Effect::CreateResync { name: self.next_name(status) });
        }
    }

    /// The first load, and what replaces a lost slot, are resyncs that the Mirror owns.
    fn next_name(&self, status: &MirrorStatus) -> String {
        let (name, next) = (self.name(), status.epoch + 1);
        match (status.live_epoch, next) {
            (0, 1) => format!("{name}-initial"),
            (0, _) => format!("{name}-initial-{next}"),
            _ => format!("{name}-auto-{next}"),
        }
    }

    /// Failed resyncs are tried again with patience.
    fn patience_is_over(&self) -> bool {
        let failed: Vec<&ResyncFacts> =
            self.seen.resyncs.iter().rev().take_while(|r| !matches!(r.phase, Phase::Running | Phase::Succeeded)).collect();
        let Some(last) = failed.iter().filter_map(|r| r.ended.as_ref()).map(|t| t.0).max() else { return true };
        let pause = RETRY.saturating_mul(1 << failed.len().saturating_sub(1).min(6));
        Duration::try_from(self.now.duration_since(last)).unwrap_or_default() >= pause
    }

    /// The slot is lost; or a resync that was to replace it has dropped the stream, and failed.
    fn wants_automatic_resync(&self, status: &MirrorStatus) -> bool {
        let lost = self.stream_report(status).is_some_and(|r| r.stream.as_ref().is_some_and(|s| s.slot_lost.is_some()));
        let unhealed = || status.stream_dropped && self.seen.resyncs.last().is_some_and(|r| r.own && r.phase == Phase::Failed);
        self.mirror.spec.resync_policy.on_slot_lost == OnSlotLost::Automatic && (lost || unhealed())
    }

    /// While no resync is active: the live epoch's pipeline must run, and no other. An active resync keeps its own, and whether the live epoch's runs beside
    /// it depends on its handover.
    fn keep_pipelines(&self, status: &MirrorStatus, effects: &mut Vec<Effect>) {
        let before = self.mirror.status.as_ref();
        let beside = status.active_resync.as_ref().is_some_and(|active| self.streams_beside(status, active));
        if !beside && (status.active_resync.is_some() || before.is_some_and(|s| s.active_resync.is_some())) {
            return;
        }
        let wanted = (status.live_epoch > 0 && !status.stream_dropped && !self.rests(status)).then_some(status.live_epoch);
        for (epoch, _) in &self.seen.pipelines {
            if Some(*epoch) != wanted && !beside {
                effects.push(Effect::DeletePipeline { epoch: *epoch });
            }
        }
        if let (Some(_), Some(Ok(brief))) = (wanted, &self.seen.brief) {
            let replicas = i32::from(!self.mirror.spec.suspend);
            effects.push(Effect::EnsurePipeline { brief: self.with_pods_of_now(brief), image: self.seen.image.clone(), replicas });
        }
    }

    /// Whether the live tables were loaded to stay as they are.
    fn rests(&self, status: &MirrorStatus) -> bool {
        let live = self.seen.brief.as_ref().and_then(|b| b.as_ref().ok()).filter(|b| b.epoch == status.live_epoch);
        live.is_some_and(|brief| brief.mode == Mode::SnapshotOnly)
    }

    fn with_pods_of_now(&self, brief: &Brief) -> Box<Brief> {
        Box::new(brief.clone().with_pods_of(&self.mirror.spec))
    }

    fn stream_report(&self, status: &MirrorStatus) -> Option<&Report> {
        self.seen.report.as_ref().filter(|r| r.epoch == status.live_epoch && r.stage == Stage::Streaming)
    }

    fn describe(&self, status: &mut MirrorStatus, effects: &mut Vec<Effect>) {
        self.numbers(status);
        self.sequences(status);
        if let Some(active) = status.active_resync.clone().filter(|active| !self.streams_beside(status, active)) {
            // What is wrong with the old stream, and that its slot is gone by now, is what the resync is for.
            let resync = self.seen.resyncs.iter().find(|r| r.uid == active.uid);
            status.phase = match resync.map(|r| r.phase) {
                Some(Phase::Snapshot | Phase::CatchUp | Phase::Swap) => MirrorPhase::Snapshot,
                _ => MirrorPhase::Setup,
            };
            // Its usual steps stand in its own status; each would cost a write here too.
            let words = resync.filter(|r| !STEPS.contains(&r.reason.as_str())).map_or(String::new(), |r| format!(" {}", r.message));
            let words = words.trim_end();
            self.ready(status, effects, Verdict::False, "Resyncing", &format!("MirrorResync {} is active.{words}", active.name));
            return;
        }
        self.slot(status);
        self.schema(status);
        if status.live_epoch == 0 {
            status.phase = if status.epoch == 0 { MirrorPhase::Pending } else { MirrorPhase::Failed };
            let last = self.seen.resyncs.iter().rev().find(|r| r.phase == Phase::Failed);
            let words = last
                .map_or("Waiting for the first load.".into(), |r| format!("The first load failed and will be tried again. {}", r.message));
            let reason = if last.is_some() { "LoadFailed" } else { "Pending" };
            self.ready(status, effects, Verdict::False, reason, &words);
            return;
        }
        let (phase, verdict, reason, words) = self.health(status);
        status.phase = phase;
        self.ready(status, effects, verdict, reason, &words);
    }

    /// Whether the live tables get their changes while a resync is active.
    fn streams_beside(&self, status: &MirrorStatus, active: &ActiveResync) -> bool {
        let resync = self.seen.resyncs.iter().find(|r| r.uid == active.uid);
        let live = resync.is_some_and(|r| r.live && !r.old_pipeline_dropped && !r.swapped);
        live && status.live_epoch > 0 && !status.stream_dropped && !self.rests(status)
    }

    /// Health from progress, not from pods: connected, slot alive, every table applied.
    fn health(&self, status: &MirrorStatus) -> (MirrorPhase, Verdict, &'static str, String) {
        use MirrorPhase::{Failed, Loaded, Paused, Running};
        if self.rests(status) {
            return (Loaded, Verdict::True, "Loaded", "Loaded; no changes follow, as spec.mode said. A MirrorResync loads again.".into());
        }
        if status.stream_dropped {
            let words = "A resync dropped the change stream and did not finish: the live tables stand still. Apply a MirrorResync.";
            return (Failed, Verdict::False, "StreamDropped", words.into());
        }
        if self.mirror.spec.suspend {
            return (Paused, Verdict::False, "Suspended", "Paused by spec.suspend; the slot keeps the source's WAL.".into());
        }
        let Some(report) = self.stream_report(status) else {
            let failure = self.seen.report.as_ref().and_then(|r| r.failure.as_ref()).map(|f| format!("{}: {}", f.reason, f.message));
            return match (failure, &self.seen.pod_trouble) {
                (None, Some(trouble)) => (Running, Verdict::False, "PipelineNotRunning", trouble.clone()),
                (why, _) => {
                    let why = why.unwrap_or_else(|| "The pipeline pod is starting.".into());
                    (Running, Verdict::Unknown, "PipelineNotReachable", why)
                }
            };
        };
        let stream = report.stream.clone().unwrap_or_default();
        if let Some(lost) = &stream.slot_lost {
            return (Failed, Verdict::False, "SlotLost", self.healed(lost));
        }
        if let Some(failure) = &report.failure {
            let again = if failure.permanent { "" } else { " Trying again." };
            return (Running, Verdict::False, "StreamFailing", format!("{}: {}{again}", failure.reason, failure.message));
        }
        if let Some(parked) = report.tables.iter().find_map(|t| t.parked.as_ref()) {
            return (Running, Verdict::False, "TableParked", parked.clone());
        }
        if !stream.connected {
            return (Running, Verdict::Unknown, "Connecting", "The change stream is being connected.".into());
        }
        let required = condition::get(&status.conditions, "ResyncRequired").is_some_and(|c| c.status == Verdict::True.as_str());
        let words = if required { "Changes are streamed, but a resync is required: see ResyncRequired." } else { "Changes are streamed." };
        (Running, Verdict::True, "Streaming", words.into())
    }

    /// That the slot is lost, and who does something about it.
    fn healed(&self, lost: &String) -> String {
        match self.mirror.spec.resync_policy.on_slot_lost {
            OnSlotLost::Automatic => format!("{} resyncPolicy.onSlotLost has a MirrorResync made.", plain(std::slice::from_ref(lost))),
            OnSlotLost::Manual => cured(std::slice::from_ref(lost)),
        }
    }

    /// The slot that an epoch streams.
    fn slot_of(&self, epoch: u32) -> String {
        let brief = self.seen.brief.as_ref().and_then(|b| b.as_ref().ok()).filter(|b| b.epoch == epoch);
        brief.map_or_else(|| name::slot(self.name(), self.mirror.metadata.uid.as_deref().unwrap_or_default(), epoch), |b| b.slot())
    }

    fn numbers(&self, status: &mut MirrorStatus) {
        status.slot = (status.live_epoch > 0 && !status.stream_dropped).then(|| self.slot_of(status.live_epoch));
        if self.rests(status) {
            (status.slot, status.applied_lsn, status.lag_bytes, status.lag) = (None, None, None, None);
        }
        // Its age grows by itself: what was true when the stream last spoke is not true now.
        status.lag_seconds = None;
        let Some(report) = self.stream_report(status) else { return };
        if let Some(stream) = &report.stream {
            status.applied_lsn = stream.lag_bytes.map(|_| stream.applied_lsn.to_string());
            status.lag_bytes = stream.lag_bytes;
            status.lag_seconds = stream.lag_seconds.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX));
            status.lag = stream.lag_bytes.map(human_bytes);
            let idle = k8s_openapi::jiff::SignedDuration::from_secs(i64::try_from(stream.idle_seconds).unwrap_or_default());
            if let Ok(since) = self.now.checked_sub(idle) {
                status.last_progress_time = Some(Time(since));
            }
        }
        status.tables = report
            .tables
            .iter()
            .map(|t| TableStatus {
                source: t.source.clone(),
                destination: t.destination.clone(),
                rows_loaded: t.rows_loaded,
                inserts: t.inserts,
                updates: t.updates,
                deletes: t.deletes,
                parked: t.parked.clone(),
            })
            .collect();
    }

    fn slot(&self, status: &mut MirrorStatus) {
        if self.rests(status) {
            return self.set(status, "SlotHealthy", Verdict::True, "NotNeeded", "There is none: no changes follow.");
        }
        let Some(stream) = self.stream_report(status).and_then(|r| r.stream.clone()) else { return };
        match &stream.slot_lost {
            Some(why) => self.set(status, "SlotHealthy", Verdict::False, "Lost", why),
            None => self.set(status, "SlotHealthy", Verdict::True, "Healthy", "The slot keeps what is not applied yet."),
        }
    }

    /// Whether writers could be let go on at the destination; nothing of it where the tables bring no sequences. What was true while changes followed is not
    /// known to be any more when nobody says that they still do.
    fn sequences(&self, status: &mut MirrorStatus) {
        let follows = |report: &&Report| report.stream.as_ref().is_some_and(|stream| stream.connected);
        let Some(report) = self.stream_report(status).filter(follows) else {
            if condition::get(&status.conditions, "SequencesInSync").is_some() {
                self.set(
                    status,
                    "SequencesInSync",
                    Verdict::Unknown,
                    "NotFollowing",
                    "Changes do not follow at present, and sequences with them.",
                );
            }
            return;
        };
        match report.sequences.as_ref().map(|sequences| &sequences.failure) {
            None => condition::clear(&mut status.conditions, "SequencesInSync"),
            Some(None) => self.set(status, "SequencesInSync", Verdict::True, "InSync", "The sequences follow the source's."),
            Some(Some(failure)) => {
                let words = format!("{} It is tried again every 10 s.", failure.message);
                self.set(status, "SequencesInSync", Verdict::False, &failure.reason, &words);
            }
        }
    }

    /// Whether the live tables are what the source and the spec say, and whether only a resync makes them so.
    fn schema(&self, status: &mut MirrorStatus) {
        if status.live_epoch == 0 {
            return;
        }
        let mut causes = vec![];
        let live = self.seen.brief.as_ref().and_then(|b| b.as_ref().ok()).filter(|b| b.epoch == status.live_epoch);
        if live.is_some_and(|brief| !made_from(brief, &self.mirror.spec)) {
            causes.push("The Mirror's tables or columns were changed in its spec.".to_string());
        }
        if let Some(report) = self.stream_report(status) {
            causes.extend(drift(report));
        }
        if causes.is_empty() {
            self.set(status, "SchemaInSync", Verdict::True, "InSync", "The live tables are what source and spec say.");
        } else {
            self.set(status, "SchemaInSync", Verdict::False, "Drift", &cured(&causes));
        }
        if let Some(report) = self.stream_report(status) {
            causes.extend(report.tables.iter().filter_map(|t| t.parked.clone()));
            if let Some(lost) = report.stream.as_ref().and_then(|s| s.slot_lost.as_ref()) {
                if causes.is_empty() {
                    return self.set(status, "ResyncRequired", Verdict::True, "Required", &self.healed(lost));
                }
                causes.push(lost.clone());
            }
        }
        if status.stream_dropped {
            causes.push("The change stream was dropped by a resync that did not finish.".into());
        }
        if causes.is_empty() {
            self.set(status, "ResyncRequired", Verdict::False, "NotRequired", "No resync is needed.");
        } else {
            self.set(status, "ResyncRequired", Verdict::True, "Required", &cured(&causes));
        }
    }

    /// Removes slots, ledger and workloads, then lets the object go.
    fn terminate(&self, mut status: MirrorStatus) -> Plan {
        let mut effects = vec![];
        if !self.has_finalizer() {
            return Plan { effects, status, next_look: None };
        }
        status.phase = MirrorPhase::Terminating;
        let forced = forced(self.mirror);
        // A pod that outlived the Job may have made something again: then it is removed once more.
        let completed = self.seen.forget_job.as_ref().is_some_and(|j| j.completed);
        let forgotten = completed && self.seen.pods == 0;
        // No brief was ever stored and none can be written any more: then nothing was made either.
        let untouched = status.live_epoch == 0 && self.seen.pods == 0 && matches!(self.seen.brief, Some(Err(_)));
        if status.epoch == 0 || untouched || forced || forgotten {
            effects.push(Effect::RemoveFinalizer);
            return Plan { effects, status, next_look: None };
        }
        effects.push(Effect::DeleteJobs);
        effects.extend(self.seen.pipelines.iter().map(|(epoch, _)| Effect::DeletePipeline { epoch: *epoch }));
        let mut words = "Slots and ledger are being removed.".to_string();
        match (&self.seen.forget_job, &self.seen.brief) {
            _ if self.seen.pods > 0 && completed => effects.push(Effect::DeleteForgetJob),
            _ if self.seen.pods > 0 => {}
            (Some(job), _) if job.failed.is_some() => {
                effects.push(Effect::DeleteForgetJob);
                words = job.report.as_ref().and_then(|r| r.failure.as_ref()).map_or(words, |f| f.message.clone());
            }
            (Some(job), _) => words = job.report.as_ref().and_then(|r| r.failure.as_ref()).map_or(words, |f| f.message.clone()),
            (None, Some(Ok(brief))) => {
                effects.push(Effect::EnsureForgetJob { brief: self.with_pods_of_now(brief), image: self.seen.image.clone() })
            }
            (None, Some(Err(why))) => words = why.clone(),
            (None, None) => {}
        }
        let cure = format!(" If source or destination are gone for good, annotate the Mirror with {FORCE_ANNOTATION}=true.");
        self.ready(&mut status, &mut effects, Verdict::False, "Terminating", &format!("{words}{cure}"));
        Plan { effects, status, next_look: Some(SOON) }
    }
}
