//! How a resync ends: with the tables swapped, or with everything removed that it made.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::SignedDuration};

use super::{Effect, JobFacts, LATER, MirrorFacts, Notice, Pass, Plan, SOON};
use crate::{
    api::{
        MirrorResyncStatus,
        condition::{self, Verdict},
        resync::{Ending, Outcome, Phase, Step, Verification},
    },
    mirror::FORCE_ANNOTATION,
    report::{Failure, Stage},
};

/// How long pods may take to end before that is worth a word.
const QUIET: SignedDuration = SignedDuration::from_secs(10);

/// How long they are waited for. Those of a node that is lost never end; the fence that a cleanup closes was made for such.
const PATIENCE: SignedDuration = SignedDuration::from_secs(60);

impl Pass<'_> {
    /// An end: nothing is left to do but to let the object go, once the Mirror has seen how it ended.
    pub(super) fn rest(&self, status: MirrorResyncStatus) -> Plan {
        let ours =
            self.seen.mirror.as_ref().and_then(|m| m.active.as_ref()).is_some_and(|a| Some(&a.uid) == self.resync.metadata.uid.as_ref());
        if ours && !self.mirror_gone(&status) {
            return Plan { effects: vec![], status, next_look: Some(LATER) };
        }
        let effects = if self.has_finalizer() { vec![Effect::RemoveFinalizer] } else { vec![] };
        Plan { effects, status, next_look: None }
    }

    /// Whether the Mirror is gone or going: its own end then removes everything, also what this resync has made.
    pub(super) fn mirror_gone(&self, status: &MirrorResyncStatus) -> bool {
        let other = |m: &MirrorFacts| m.deleting || status.mirror_uid.as_ref().is_some_and(|uid| *uid != m.uid);
        status.epoch.is_some() && self.seen.mirror.as_ref().is_none_or(other)
    }

    /// Whether somebody wants it to end. Once the tables are swapped it is too late.
    pub(super) fn wish_to_end(&self, status: &MirrorResyncStatus) -> Option<Ending> {
        let mirror_gone = self.mirror_gone(status);
        if status.swap.is_some() && !mirror_gone {
            return None;
        }
        let (reason, message) = if self.deleting() {
            ("Deleted", "The MirrorResync was deleted before its swap.")
        } else if self.resync.spec.cancel {
            ("Cancelled", "Cancelled by spec.cancel before its swap.")
        } else if mirror_gone {
            ("MirrorDeleted", "The Mirror was deleted.")
        } else {
            return None;
        };
        let checking = !status.old_pipeline_dropped && self.seen.report.as_ref().is_some_and(|r| r.stage == Stage::Checking);
        let untouched = !status.begun.contains(&Step::Pipeline) || checking;
        Some(Ending { outcome: Outcome::Cancelled, reason: reason.into(), message: message.into(), untouched, since: Some(Time(self.now)) })
    }

    /// `touched`: the pipeline was past its checks, so the old one is over.
    pub(super) fn fail(&self, mut status: MirrorResyncStatus, failure: &Failure, touched: bool) -> Plan {
        let ending = Ending {
            outcome: Outcome::Failed,
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            untouched: !touched,
            since: Some(Time(self.now)),
        };
        status.old_pipeline_dropped |= touched && !self.is_live(&status);
        status.ending = Some(ending.clone());
        self.wind_down(status, ending)
    }

    /// The tables turned out to be swapped when they were to be cleaned away: the reply was lost. Nothing was removed that the new ones need.
    pub(super) fn resume(&self, mut status: MirrorResyncStatus) -> Plan {
        let words = "The tables are swapped already, so the resync goes on to its end.";
        status.ending = None;
        status.phase = Phase::Swap;
        self.says(&mut status, "Swap", words);
        Plan { effects: vec![Effect::Say(Notice::normal("SwapFound", words))], status, next_look: Some(SOON) }
    }

    /// Removes what was made, then ends.
    pub(super) fn wind_down(&self, mut status: MirrorResyncStatus, ending: Ending) -> Plan {
        let recorded = self.resync.status.as_ref().is_some_and(|s| s.ending.is_some());
        let mut effects = vec![];
        let mut leftover = None;
        if self.begun(Step::Pipeline) {
            if !recorded {
                self.says(&mut status, "Ending", &removing(&ending));
                return Plan { effects, status, next_look: Some(SOON) };
            }
            effects.push(Effect::DeleteJobs);
            effects.push(Effect::DeletePipeline { epoch: status.epoch.unwrap_or_default() });
            let waited = ending.since.as_ref().map_or(SignedDuration::ZERO, |since| self.now.duration_since(since.0));
            if !self.seen.pods.is_empty() && waited < PATIENCE {
                if waited >= QUIET {
                    let words = format!("{} Waiting for its pods to end: {}.", ending.message, listed(&self.seen.pods));
                    self.news(&mut status, &mut effects, "PodsRemain", &words);
                }
                return Plan { effects, status, next_look: Some(SOON) };
            }
            // Also where nothing was seen to be made: a pod may have come further than it could tell.
            if !self.mirror_gone(&status) {
                match self.cleanup(&mut status, &ending, &mut effects) {
                    Cleanup::Going => return Plan { effects, status, next_look: Some(SOON) },
                    Cleanup::Done => {}
                    Cleanup::GivenUp(why) => leftover = Some(why).filter(|_| !ending.untouched),
                }
            }
        }
        self.end(status, ending, leftover, effects)
    }

    /// A failure that passes is waited out: a slot that is left behind fills the source's disk.
    fn cleanup(&self, status: &mut MirrorResyncStatus, ending: &Ending, effects: &mut Vec<Effect>) -> Cleanup {
        let job = self.seen.cleanup_job.as_ref();
        match job {
            // Without its pod's word nobody knows whether it found the tables swapped.
            Some(job) if job.completed && job.report.is_none() => {
                effects.push(Effect::DeleteCleanupJob);
                return Cleanup::Going;
            }
            Some(job) if job.completed => return Cleanup::Done,
            _ => {}
        }
        if self.seen.mirror.as_ref().is_some_and(|m| m.forced) {
            return Cleanup::GivenUp(format!("the Mirror is annotated with {FORCE_ANNOTATION}=true"));
        }
        let Some((brief, image)) = self.means(status) else {
            return Cleanup::GivenUp("the Mirror or one of its Peers is gone".into());
        };
        if let Some(job) = job.filter(|job| job.failed.is_some()) {
            if job.is_hopeless() || ending.untouched {
                return Cleanup::GivenUp(job.failure().map(|f| f.message.clone()).or(job.failed.clone()).unwrap_or_default());
            }
            effects.push(Effect::DeleteCleanupJob);
        } else if self.begun(Step::Cleanup) {
            effects.push(Effect::EnsureCleanupJob { brief, image });
        } else if !status.begun.contains(&Step::Cleanup) {
            status.begun.push(Step::Cleanup);
        }
        self.tell_of_cleanup(status, ending, effects);
        Cleanup::Going
    }

    /// What went wrong stays in the condition while the next Job starts.
    fn tell_of_cleanup(&self, status: &mut MirrorResyncStatus, ending: &Ending, effects: &mut Vec<Effect>) {
        let retrying = condition::get(&status.conditions, "Succeeded").is_some_and(|c| c.reason == "Retrying");
        match self.seen.cleanup_job.as_ref().and_then(JobFacts::trouble) {
            Some(why) => {
                let cure = format!("If source or destination are gone for good, annotate the Mirror with {FORCE_ANNOTATION}=true.");
                let why = why.trim_end_matches('.');
                let words = format!("{} What was made is not removed yet: {why}. Trying again. {cure}", ending.message);
                self.news(status, effects, "Retrying", &words);
            }
            None if retrying => {}
            None => self.says(status, "Ending", &removing(ending)),
        }
    }

    fn end(&self, mut status: MirrorResyncStatus, ending: Ending, leftover: Option<String>, mut effects: Vec<Effect>) -> Plan {
        let remark = leftover.map(|why| {
            format!(" Slot and _resync tables could not be removed ({why}); the next resync or the Mirror's deletion removes them.")
        });
        let stands_still = status.old_pipeline_dropped && self.seen.mirror.as_ref().is_some_and(|m| m.live_epoch > 0);
        let still = if stands_still {
            " The old pipeline was already dropped: the live tables stand still until a new resync succeeds."
        } else {
            ""
        };
        let message = format!("{}{still}{}", ending.message, remark.unwrap_or_default());
        let phase = if ending.outcome == Outcome::Cancelled { Phase::Cancelled } else { Phase::Failed };
        self.close(&mut status, phase, Verdict::False, &ending.reason, &message);
        effects.push(Effect::Say(Notice { warning: phase == Phase::Failed, reason: ending.reason, message }));
        Plan { effects, status, next_look: Some(SOON) }
    }

    /// Swapped, and changes are streamed, or none follow.
    pub(super) fn end_well(&self, mut status: MirrorResyncStatus, mut effects: Vec<Effect>) -> Plan {
        let millis = self.note_swap(&mut status);
        let (phase, reason, words) = match self.rests(&status) {
            true => (Phase::Succeeded, "Loaded", "Swapped; no changes follow."),
            false => (Phase::Running, "Running", "Swapped; the mirror streams changes again."),
        };
        self.close(&mut status, phase, Verdict::True, reason, words);
        let epoch = status.epoch.unwrap_or_default();
        let said = format!("{words} Epoch {epoch} is live; the tables were swapped within {millis} ms.");
        effects.push(Effect::Say(Notice::normal(reason, said)));
        Plan { effects, status, next_look: Some(SOON) }
    }

    /// Swapped, but the new tables get no changes. They are the live ones all the same, and the Mirror takes them as such.
    pub(super) fn end_without_stream(&self, mut status: MirrorResyncStatus, failure: Failure) -> Plan {
        self.note_swap(&mut status);
        let cause = failure.message.trim_end_matches('.');
        let message = format!("The tables are swapped, but the change stream cannot go on: {cause}. Apply a new MirrorResync.");
        self.close(&mut status, Phase::Failed, Verdict::False, &failure.reason, &message);
        Plan { effects: vec![Effect::Say(Notice::warning(&failure.reason, message))], status, next_look: Some(SOON) }
    }

    /// Returns how many milliseconds the swap took.
    fn note_swap(&self, status: &mut MirrorResyncStatus) -> i64 {
        let millis = status.swap.as_ref().map_or(0, |s| s.lock_millis);
        self.finished(status, "Swapped", &format!("The tables were swapped within {millis} ms."));
        status.progress = Some("100%".into());
        millis
    }

    /// The swap Job swaps nothing that it has not verified, where that is wanted.
    pub(super) fn note_verified(&self, status: &mut MirrorResyncStatus) {
        let verified: Option<Vec<i64>> = status.tables.iter().map(|t| t.rows_verified).collect();
        let Some(rows) = verified.filter(|rows| !rows.is_empty()) else { return };
        let (sum, tables) = (rows.iter().sum::<i64>(), rows.len());
        let checksums = if self.resync.spec.verification == Verification::Checksum { ", and so are their checksums" } else { "" };
        let words = format!("The rows of {tables} tables are as many as the source has in the snapshot, {sum} in all{checksums}.");
        self.finished(status, "Verified", &words);
    }

    pub(super) fn close(&self, status: &mut MirrorResyncStatus, phase: Phase, verdict: Verdict, reason: &str, message: &str) {
        status.phase = phase;
        status.eta = None;
        status.completion_time = Some(Time(self.now));
        condition::set(&mut status.conditions, "Succeeded", verdict, reason, message, self.resync.metadata.generation, self.now);
    }
}

fn removing(ending: &Ending) -> String {
    format!("{} Removing what was made.", ending.message)
}

/// The first few of some names.
fn listed(names: &[String]) -> String {
    const FEW: usize = 3;
    let first = names.iter().take(FEW).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > FEW { format!("{first} and {} more", names.len() - FEW) } else { first }
}

/// How far the removal of what was made is.
enum Cleanup {
    Going,
    Done,
    GivenUp(String),
}
