//! A dry run: one Job that looks at everything and changes nothing. It makes no epoch, so the Mirror knows nothing of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Effect, JobFacts, LATER, Notice, Pass, Plan, SOON, human_bytes};
use crate::{
    api::{
        MirrorResyncStatus,
        condition::Verdict,
        resync::{Phase, PlanStatus},
    },
    report::PlanReport,
};

impl Pass<'_> {
    /// What a dry run does next.
    pub(super) fn rehearse(&self, mut status: MirrorResyncStatus) -> Plan {
        if status.phase.is_end() || self.deleting() {
            return Plan { effects: vec![], status, next_look: None };
        }
        if self.resync.spec.cancel {
            self.close(&mut status, Phase::Cancelled, Verdict::False, "Cancelled", "Cancelled by spec.cancel.");
            return Plan { effects: vec![Effect::DeletePlanJob], status, next_look: None };
        }
        match status.phase {
            Phase::Pending => self.await_turn(status),
            _ => self.await_plan(status),
        }
    }

    /// While another resync is active, what is at source and destination is not what a resync would find.
    fn await_turn(&self, mut status: MirrorResyncStatus) -> Plan {
        let name = &self.resync.spec.mirror;
        let waits = match (&self.seen.mirror, &self.seen.brief) {
            (None, _) => Some(("MirrorMissing", format!("Mirror {name:?} does not exist in this namespace; waiting for it."))),
            (Some(mirror), _) if mirror.active.is_some() => {
                let other = mirror.active.as_ref().map(|a| a.name.as_str()).unwrap_or_default();
                Some(("Waiting", format!("Waiting for MirrorResync {other} to end.")))
            }
            _ if self.resync.spec.suspend => Some(("Paused", "Paused by spec.suspend.".to_string())),
            (_, Some(Err(why))) => Some(("InvalidMirror", why.clone())),
            _ => None,
        };
        if let Some((reason, message)) = waits {
            self.says(&mut status, reason, &message);
            return Plan { effects: vec![], status, next_look: Some(LATER) };
        }
        status.mirror_uid = self.seen.mirror.as_ref().map(|m| m.uid.clone());
        status.image = Some(self.seen.image.clone());
        status.start_time = Some(Time(self.now));
        status.phase = Phase::Setup;
        self.says(&mut status, "Checking", "Checking source and destination; nothing is changed.");
        Plan { effects: vec![], status, next_look: Some(SOON) }
    }

    fn await_plan(&self, mut status: MirrorResyncStatus) -> Plan {
        let job = self.seen.plan_job.as_ref();
        if let Some(plan) = job.filter(|j| j.completed).and_then(|j| j.report.as_ref()?.plan.as_ref()) {
            return self.planned(status, plan);
        }
        if let Some(job) = job.filter(|j| j.failed.is_some()) {
            let reason = job.failure().map_or("PlanFailed", |f| f.reason.as_str());
            let message = job.failure().map(|f| f.message.clone()).or(job.trouble()).unwrap_or_default();
            self.close(&mut status, Phase::Failed, Verdict::False, reason, &message);
            return Plan { effects: vec![Effect::Say(Notice::warning(reason, message))], status, next_look: None };
        }
        if self.seen.mirror.as_ref().is_none_or(|m| m.deleting || Some(&m.uid) != status.mirror_uid.as_ref()) {
            self.close(&mut status, Phase::Cancelled, Verdict::False, "MirrorDeleted", "The Mirror was deleted.");
            return Plan { effects: vec![Effect::DeletePlanJob], status, next_look: None };
        }
        let mut effects = vec![];
        match (job, self.means(&status)) {
            // Its pod's word is lost; looking again changes nothing.
            (Some(job), _) if job.completed => effects.push(Effect::DeletePlanJob),
            (_, Some((brief, image))) => effects.push(Effect::EnsurePlanJob { brief, image }),
            (_, None) => {}
        }
        match (job.and_then(JobFacts::trouble), &self.seen.brief) {
            (Some(why), _) => self.news(&mut status, &mut effects, "Retrying", &format!("{why} Trying again.")),
            (None, Some(Err(why))) => self.news(&mut status, &mut effects, "InvalidMirror", why),
            (None, _) => self.says(&mut status, "Checking", "Checking source and destination; nothing is changed."),
        }
        Plan { effects, status, next_look: Some(SOON) }
    }

    fn planned(&self, mut status: MirrorResyncStatus, plan: &PlanReport) -> Plan {
        let PlanReport { tables, rows, bytes, chunks, partitions } = plan.clone();
        let words = format!(
            "Nothing stands in the way of a resync: {tables} tables of about {rows} rows and {}, in {chunks} chunks and {partitions} partitions. \
             Nothing was changed.",
            human_bytes(bytes)
        );
        status.plan = Some(PlanStatus { tables, rows, bytes, chunks, partitions });
        self.finished(&mut status, "Planned", &format!("{partitions} partitions."));
        self.close(&mut status, Phase::Succeeded, Verdict::True, "DryRun", &words);
        Plan { effects: vec![Effect::Say(Notice::normal("DryRun", words))], status, next_look: None }
    }
}
