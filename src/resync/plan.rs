//! The decisions, phase by phase.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use super::{Effect, FINALIZER, JobFacts, LATER, Notice, Observed, Pass, Plan, SOON, status};
use crate::{
    api::{
        MirrorResync, MirrorResyncStatus,
        condition::{self, Verdict},
        mirror::Mode,
        resync::{Approval, Handover, Phase, Step},
    },
    brief::Brief,
    report::{Failure, Report, Stage},
    table::TableName,
};

/// How long after the snapshot Job's end the pipeline may take to see that everything is loaded.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

/// How far the new tables may be behind when a live handover begins, in bytes of the source's log.
const FRESH_BYTES: i64 = 64 << 20;

/// The same in seconds since the oldest change that is not applied.
const FRESH_SECONDS: u64 = 5;

const CATCHING_UP: &str = "Changes since the snapshot are applied to the _resync tables; the live tables get them too.";

/// How long a new resync may wait for its Mirror without saying so; creation times are whole seconds.
const YOUTH: SignedDuration = SignedDuration::from_secs(3);

/// What a reconcile of one MirrorResync does next. Computed from facts alone, so that every crash point can be tested as a table.
pub fn plan(resync: &MirrorResync, seen: &Observed, now: Timestamp) -> Plan {
    let pass = Pass { resync, seen, now };
    let mut status = resync.status.clone().unwrap_or_default();
    status.observed_generation = resync.metadata.generation;
    if resync.spec.dry_run {
        return pass.rehearse(status);
    }
    if status.phase.is_end() {
        return pass.rest(status);
    }
    status::swapped(&mut status, seen);
    if status.ending.is_some() && status.swap.is_some() && !pass.mirror_gone(&status) {
        return pass.resume(status);
    }
    if status.ending.is_none()
        && let Some(ending) = pass.wish_to_end(&status)
    {
        status.ending = Some(ending);
    }
    let mut plan = match (status.ending.clone(), status.phase) {
        (Some(ending), _) => pass.wind_down(status, ending),
        (None, Phase::Pending) => pass.pending(status),
        (None, Phase::Setup) => pass.setup(status),
        (None, Phase::Snapshot) => pass.snapshot(status),
        (None, Phase::CatchUp) => pass.catch_up(status),
        (None, _) => pass.swap(status),
    };
    if plan.effects.iter().all(|e| *e != Effect::RemoveFinalizer) && !pass.deleting() && !pass.has_finalizer() {
        plan.effects.insert(0, Effect::AddFinalizer);
    }
    plan
}

impl Pass<'_> {
    pub(super) fn deleting(&self) -> bool {
        self.resync.metadata.deletion_timestamp.is_some()
    }

    pub(super) fn has_finalizer(&self) -> bool {
        self.resync.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
    }

    /// What was recorded as begun before this pass: only that may be done now.
    pub(super) fn begun(&self, step: Step) -> bool {
        self.resync.status.as_ref().is_some_and(|s| s.begun.contains(&step))
    }

    pub(super) fn says(&self, status: &mut MirrorResyncStatus, reason: &str, message: &str) {
        condition::set(&mut status.conditions, "Succeeded", Verdict::Unknown, reason, message, self.resync.metadata.generation, self.now);
    }

    /// Puts what is wrong into the condition, and says it as an Event if it did not stand there.
    pub(super) fn news(&self, status: &mut MirrorResyncStatus, effects: &mut Vec<Effect>, reason: &str, message: &str) {
        if !self.stands(message) {
            effects.push(Effect::Say(Notice::warning(reason, message)));
        }
        self.says(status, reason, message);
    }

    /// The same where nothing is wrong, but somebody else is waited for.
    fn waits(&self, status: &mut MirrorResyncStatus, effects: &mut Vec<Effect>, reason: &str, message: &str) {
        if !self.stands(message) {
            effects.push(Effect::Say(Notice::normal(reason, message)));
        }
        self.says(status, reason, message);
    }

    /// Whether the condition has said so before this pass.
    fn stands(&self, message: &str) -> bool {
        let before = self.resync.status.as_ref().and_then(|s| condition::get(&s.conditions, "Succeeded"));
        before.is_some_and(|c| c.message == message)
    }

    pub(super) fn finished(&self, status: &mut MirrorResyncStatus, step: &str, message: &str) {
        condition::set(&mut status.conditions, step, Verdict::True, "Done", message, self.resync.metadata.generation, self.now);
    }

    fn pending(&self, mut status: MirrorResyncStatus) -> Plan {
        let name = &self.resync.spec.mirror;
        let uid = self.resync.metadata.uid.as_deref().unwrap_or_default();
        let waits = |mut status: MirrorResyncStatus, reason: &str, message: String| {
            let mut effects = vec![];
            self.news(&mut status, &mut effects, reason, &message);
            Plan { effects, status, next_look: Some(LATER) }
        };
        let Some(mirror) = &self.seen.mirror else {
            return waits(status, "MirrorMissing", format!("Mirror {name:?} does not exist in this namespace; waiting for it."));
        };
        match &mirror.active {
            Some(active) if active.uid == uid => {
                if let Some(Err(why)) = self.seen.brief.as_ref().filter(|_| self.resync.spec.handover == Handover::Live) {
                    // What cures it may be another resync, which would wait behind this one.
                    return self.fail(status, &Failure { reason: "InvalidMirror".into(), message: why.clone(), permanent: true }, false);
                }
                if let Some(Err(why)) = &self.seen.brief {
                    return waits(status, "InvalidMirror", why.clone());
                }
                status.epoch = Some(active.epoch);
                status.mirror_uid = Some(mirror.uid.clone());
                status.image = Some(self.seen.image.clone());
                status.start_time = Some(Time(self.now));
                status.phase = Phase::Setup;
                status.begun.push(Step::Pipeline);
                self.says(&mut status, "Setup", "Checking source and destination; nothing was changed yet.");
                let said = Notice::normal("Started", format!("Resync of Mirror {name} has begun as epoch {}.", active.epoch));
                Plan { effects: vec![Effect::Say(said)], status, next_look: Some(SOON) }
            }
            Some(other) => {
                let mut effects = vec![];
                self.waits(&mut status, &mut effects, "Waiting", &format!("Waiting for MirrorResync {} to end.", other.name));
                Plan { effects, status, next_look: Some(LATER) }
            }
            // Usually it is taken up at once, and that costs no write.
            None if self.young() => Plan { effects: vec![], status: self.resync.status.clone().unwrap_or_default(), next_look: Some(SOON) },
            None => {
                self.says(&mut status, "Waiting", &format!("Waiting for Mirror {name} to take this resync up."));
                Plan { effects: vec![], status, next_look: Some(LATER) }
            }
        }
    }

    fn young(&self) -> bool {
        self.resync.metadata.creation_timestamp.as_ref().is_some_and(|t| self.now.duration_since(t.0) < YOUTH)
    }

    /// The brief and the image of this resync's workloads, if they are known.
    pub(super) fn means(&self, status: &MirrorResyncStatus) -> Option<(Box<Brief>, String)> {
        let brief = self.seen.brief.as_ref()?.as_ref().ok()?;
        Some((brief.clone(), status.image.clone().unwrap_or_else(|| self.seen.image.clone())))
    }

    /// Whether no changes follow the swap.
    pub(super) fn rests(&self, status: &MirrorResyncStatus) -> bool {
        self.means(status).is_some_and(|(brief, _)| brief.mode == Mode::SnapshotOnly)
    }

    /// Whether the old pipeline streams on until the swap.
    pub(super) fn is_live(&self, status: &MirrorResyncStatus) -> bool {
        self.means(status).is_some_and(|(brief, _)| brief.is_live())
    }

    /// Takes over what the pipeline says. Tables that stay as they are are not this resync's.
    fn progress(&self, status: &mut MirrorResyncStatus) {
        status::progress(status, self.seen.report.as_ref(), self.now);
        let Some((brief, _)) = self.means(status).filter(|(brief, _)| !brief.kept.is_empty()) else { return };
        let kept: Vec<String> = brief.tables.iter().zip(0..).filter(|(_, n)| brief.keeps(*n)).map(|(t, _)| plain(&t.source)).collect();
        status.tables.retain(|table| !kept.contains(&table.source));
    }

    fn ensure_pipeline(&self, status: &MirrorResyncStatus) -> Option<Effect> {
        let (brief, image) = self.means(status)?;
        self.begun(Step::Pipeline).then_some(Effect::EnsurePipeline { brief, image })
    }

    /// In every phase: the pipeline must exist, and once it has begun, or with a live handover once it has swapped, the old one must not.
    fn keep_pipelines(&self, status: &mut MirrorResyncStatus) -> Vec<Effect> {
        let mut effects: Vec<Effect> = self.ensure_pipeline(status).into_iter().collect();
        let passed = match self.is_live(status) {
            true => status.swap.is_some(),
            false => self.seen.report.as_ref().is_some_and(|r| r.stage >= Stage::Preparing),
        };
        let old = self.means(status).map_or(0, |(brief, _)| brief.previous_epoch);
        if passed && !status.old_pipeline_dropped {
            status.old_pipeline_dropped = true;
            if old > 0 {
                effects.push(Effect::DeletePipeline { epoch: old });
                let what = if self.is_live(status) { "is dropped, its slot follows" } else { "and its slot were dropped" };
                effects.push(Effect::Say(Notice::normal("OldPipelineDropped", format!("The pipeline of epoch {old} {what}."))));
            }
        }
        effects
    }

    /// What the pipeline says is wrong, as an end or as a wait.
    fn trouble(&self) -> Option<(&'static str, String)> {
        let report = self.seen.report.as_ref();
        if let Some(failure) = report.and_then(|r| r.failure.as_ref()) {
            return Some(("Retrying", format!("{}: {} Trying again.", failure.reason, failure.message)));
        }
        if let Some(waiting) = report.map(|r| r.waiting.as_str()).filter(|w| !w.is_empty()) {
            return Some(("Waiting", waiting.to_string()));
        }
        if report.is_none() {
            return self.seen.pod_trouble.as_ref().map(|why| ("PipelineNotRunning", why.clone()));
        }
        None
    }

    /// What ends the resync: an error that stays, or a newer epoch at the destination, after which this one can do nothing more.
    pub(super) fn permanent(&self) -> Option<(Stage, Failure)> {
        let report = self.seen.report.as_ref()?;
        if report.stage == Stage::Superseded {
            let message = format!("A newer epoch than {} has begun at the destination. Apply a new MirrorResync.", report.epoch);
            return Some((report.stage, Failure { reason: "Superseded".into(), message, permanent: true }));
        }
        report.failure.clone().filter(|f| f.permanent).map(|f| (report.stage, f))
    }

    /// Puts what is wrong, or `usual`, into the condition, and says news as an Event.
    fn tell(&self, status: &mut MirrorResyncStatus, effects: &mut Vec<Effect>, reason: &str, usual: &str) {
        match self.trouble() {
            Some((reason, message)) => self.news(status, effects, reason, &message),
            None if reason == "Paused" => self.waits(status, effects, reason, usual),
            None => self.says(status, reason, usual),
        }
    }

    fn setup(&self, mut status: MirrorResyncStatus) -> Plan {
        if let Some((stage, failure)) = self.permanent() {
            return self.fail(status, &failure, stage > Stage::Checking);
        }
        let mut effects = self.keep_pipelines(&mut status);
        self.progress(&mut status);
        let stage = self.seen.report.as_ref().map(|r| r.stage).unwrap_or_default();
        if stage >= Stage::Loading && status.partitions.is_some() {
            let partitions = status.partitions.as_ref().map_or(0, |p| p.total);
            self.finished(&mut status, "Planned", &format!("{partitions} partitions."));
            status.phase = Phase::Snapshot;
            status.begun.push(Step::Snapshot);
            self.says(&mut status, "Snapshot", "The _resync tables are being loaded.");
            effects.push(Effect::Say(Notice::normal("Loading", format!("Loading the _resync tables in {partitions} partitions."))));
        } else {
            let usual = if stage == Stage::Preparing {
                "Creating slot, snapshot and _resync tables."
            } else {
                "Checking source and destination; nothing was changed yet."
            };
            self.tell(&mut status, &mut effects, "Setup", usual);
        }
        Plan { effects, status, next_look: Some(SOON) }
    }

    fn snapshot(&self, mut status: MirrorResyncStatus) -> Plan {
        let given_up = || self.seen.snapshot_job.as_ref().and_then(|job| job_failure(job, "SnapshotFailed"));
        if let Some(failure) = self.permanent().map(|(_, failure)| failure).or_else(given_up) {
            return self.fail(status, &failure, true);
        }
        let mut effects = self.keep_pipelines(&mut status);
        self.progress(&mut status);
        if let Some(job) = &self.seen.snapshot_job
            && let Some(partitions) = &mut status.partitions
        {
            partitions.failed = job.failed_indexes;
        }
        let loaded = self.seen.report.as_ref().is_some_and(|r| r.stage >= Stage::Loaded);
        if !loaded {
            if let Some(why) = self.needs_another_load() {
                // Room for another Job; its pods find what is left in the ledger.
                effects.push(Effect::DeleteJobs);
                self.news(&mut status, &mut effects, "LoadingAgain", &why);
                return Plan { effects, status, next_look: Some(SOON) };
            }
            effects.extend(self.snapshot_job(&status));
            let usual =
                if self.resync.spec.suspend { "The load is paused by spec.suspend." } else { "The _resync tables are being loaded." };
            let reason = if self.resync.spec.suspend { "Paused" } else { "Snapshot" };
            self.tell(&mut status, &mut effects, reason, usual);
            if let (None, Some(why)) = (self.trouble(), self.seen.snapshot_job.as_ref().and_then(|j| j.pod_trouble.as_ref())) {
                self.news(&mut status, &mut effects, "WorkerNotRunning", why);
            }
            return Plan { effects, status, next_look: Some(SOON) };
        }
        self.finished(&mut status, "Loaded", "Every table is loaded, with its key and indexes.");
        if self.is_live(&status) {
            status.phase = Phase::CatchUp;
            self.says(&mut status, "CatchUp", CATCHING_UP);
            effects.push(Effect::Say(Notice::normal("CatchingUp", format!("Loaded. {CATCHING_UP}"))));
            return Plan { effects, status, next_look: Some(SOON) };
        }
        self.approve(status, effects)
    }

    /// The old stream is ended only when the new tables are nearly as fresh, so that the live ones do not stand still for long.
    fn catch_up(&self, mut status: MirrorResyncStatus) -> Plan {
        if let Some((_, failure)) = self.permanent() {
            return self.fail(status, &failure, true);
        }
        let mut effects = self.keep_pipelines(&mut status);
        self.progress(&mut status);
        self.note_verified(&mut status);
        // Once they were, and only somebody's word is waited for, the swap's Job looks again.
        let were =
            condition::holds(&status.conditions, "CaughtUp") && self.seen.report.as_ref().is_some_and(|r| r.stage == Stage::CatchingUp);
        if !were && !self.seen.report.as_ref().is_some_and(is_fresh) {
            self.tell(&mut status, &mut effects, "CatchUp", CATCHING_UP);
            return Plan { effects, status, next_look: Some(SOON) };
        }
        self.finished(&mut status, "CaughtUp", "The new tables are nearly as fresh as the live ones.");
        self.approve(status, effects)
    }

    /// Begins the swap, unless somebody wants it to wait.
    fn approve(&self, mut status: MirrorResyncStatus, mut effects: Vec<Effect>) -> Plan {
        let waits_for_approval = self.resync.spec.swap.approval == Approval::Manual && !self.resync.spec.swap.approved;
        if self.resync.spec.suspend || waits_for_approval {
            let (reason, words) = if self.resync.spec.suspend {
                ("Paused", "Paused by spec.suspend before the swap.")
            } else {
                ("WaitingForApproval", "Loaded; set spec.swap.approved to true to swap.")
            };
            self.waits(&mut status, &mut effects, reason, words);
            return Plan { effects, status, next_look: Some(LATER) };
        }
        status.phase = Phase::Swap;
        status.begun.push(Step::Swap);
        self.says(&mut status, "Swap", "Soft-deleted rows are carried over, then the tables are swapped.");
        effects.push(Effect::Say(Notice::normal("Swapping", "Loaded. Carrying soft-deleted rows over and swapping the tables.")));
        Plan { effects, status, next_look: Some(SOON) }
    }

    /// Why the Job has ended and yet something is to be loaded, if so: its pods have tried often enough, or a snapshot that was lost late has emptied
    /// tables whose partitions are done.
    fn needs_another_load(&self) -> Option<String> {
        let job = self.seen.snapshot_job.as_ref()?;
        if job.failed.is_some() {
            return Some(format!("{} Starting the snapshot Job anew; what is loaded stays.", job.trouble()?));
        }
        let long_ago = job.completed && job.ended.is_some_and(|ended| self.now.duration_since(ended) >= GRACE);
        let left = long_ago && self.seen.report.as_ref().is_some_and(|r| r.stage == Stage::Loading);
        left.then(|| "The snapshot Job is complete, but some tables are not. Starting it anew.".into())
    }

    fn snapshot_job(&self, status: &MirrorResyncStatus) -> Option<Effect> {
        let (brief, image) = self.means(status)?;
        let partitions = status.partitions.as_ref().map_or(0, |p| p.total);
        let overrides = self.resync.spec.snapshot.as_ref().and_then(|s| s.max_parallel_workers);
        // Of now, not of the brief: it may be changed while the load runs.
        let parallelism =
            overrides.or(self.seen.mirror.as_ref().map(|m| m.max_parallel_workers)).unwrap_or(brief.snapshot.max_parallel_workers);
        let effect = Effect::EnsureSnapshotJob { brief, image, partitions, parallelism, suspended: self.resync.spec.suspend };
        (partitions > 0 && self.begun(Step::Snapshot)).then_some(effect)
    }

    fn swap(&self, mut status: MirrorResyncStatus) -> Plan {
        self.progress(&mut status);
        self.note_verified(&mut status);
        if status.swap.is_none() {
            let given_up = || self.seen.swap_job.as_ref().and_then(|job| job_failure(job, "SwapFailed"));
            if let Some(failure) = self.permanent().map(|(_, failure)| failure).or_else(given_up) {
                return self.fail(status, &failure, true);
            }
        } else if let Some(failure) = self.stream_lost() {
            return self.end_without_stream(status, failure);
        }
        let mut effects = self.keep_pipelines(&mut status);
        if status.swap.is_none() {
            if self.seen.swap_job.as_ref().is_some_and(|job| job.failed.is_some()) {
                // Its pods have tried often enough for one Job, but a finished load is not thrown away for what passes.
                effects.push(Effect::DeleteJobs);
            } else if let (Some((brief, image)), true) = (self.means(&status), self.begun(Step::Swap)) {
                effects.push(Effect::EnsureSwapJob { brief, image });
            }
            match self.seen.swap_job.as_ref().and_then(JobFacts::trouble) {
                Some(why) => self.news(&mut status, &mut effects, "Retrying", &format!("{why} Trying again.")),
                None => self.tell(&mut status, &mut effects, "Swap", "Soft-deleted rows are carried over, then the tables are swapped."),
            }
            return Plan { effects, status, next_look: Some(SOON) };
        }
        if self.rests(&status) {
            if self.seen.report.as_ref().is_some_and(|r| r.stage == Stage::Done) {
                return self.end_well(status, effects);
            }
            self.tell(&mut status, &mut effects, "Swap", "The tables are swapped; the old ones are being dropped.");
            return Plan { effects, status, next_look: Some(SOON) };
        }
        let connected = |r: &Report| r.stage == Stage::Streaming && r.stream.as_ref().is_some_and(|s| s.connected);
        if !self.seen.report.as_ref().is_some_and(connected) {
            self.tell(&mut status, &mut effects, "Connecting", "The tables are swapped; the change stream is being connected.");
            return Plan { effects, status, next_look: Some(SOON) };
        }
        self.end_well(status, effects)
    }

    /// Why the swapped tables will get no changes, if so.
    fn stream_lost(&self) -> Option<Failure> {
        let lost = |cause: &String| Failure { reason: "SlotLost".into(), message: cause.clone(), permanent: true };
        let stream = self.seen.report.as_ref().and_then(|r| r.stream.as_ref());
        stream.and_then(|s| s.slot_lost.as_ref()).map(lost).or_else(|| self.permanent().map(|(_, failure)| failure))
    }
}

/// A table's name as reports have it.
fn plain(source: &str) -> String {
    TableName::parse(source).map_or_else(|| source.to_string(), |name| name.to_string())
}

/// Whether the stream into the new tables is so near its end that the live ones may stand still for the rest.
fn is_fresh(report: &Report) -> bool {
    let near = report.stream.as_ref().is_some_and(|s| {
        s.connected
            && s.lag_bytes.is_some_and(|bytes| bytes <= FRESH_BYTES)
            && s.lag_seconds.is_some_and(|seconds| seconds <= FRESH_SECONDS)
    });
    report.stage == Stage::CatchingUp && near
}

/// Why a Job failed so that another would fail too: its own words if it left any, else Kubernetes'.
fn job_failure(job: &JobFacts, reason: &str) -> Option<Failure> {
    let why = job.failed.as_ref().filter(|_| job.is_hopeless())?;
    Some(job.failure().cloned().unwrap_or_else(|| Failure {
        reason: reason.into(),
        message: format!("{why}. Look at the logs of its pods, then apply a new MirrorResync."),
        permanent: true,
    }))
}
