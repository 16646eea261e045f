//! Decides what a MirrorResync does next. Pure: observed facts in, effects and status out. No client, no clock.

mod dry;
mod ending;
mod plan;
mod status;
#[cfg(test)]
mod tests;

pub use plan::plan;
pub use status::human_bytes;

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::{
    api::{MirrorResync, MirrorResyncStatus, mirror::ActiveResync},
    brief::Brief,
    report::{Failure, JobReport, Report},
};

/// The finalizer of a MirrorResync that has made something.
pub const FINALIZER: &str = "mirror-operator.io/resync";

/// What is true of the world around one MirrorResync.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The Mirror, if it exists.
    pub mirror: Option<MirrorFacts>,
    /// The brief for the epoch that this resync makes (or would make), or why there is none, in words for people.
    pub brief: Option<Result<Box<Brief>, String>>,
    /// What the pipeline pod of this resync's epoch says; `None` if it cannot be asked.
    pub report: Option<Report>,
    /// Why that pod does not run, as the kubelet or scheduler says.
    pub pod_trouble: Option<String>,
    /// The snapshot Job.
    pub snapshot_job: Option<JobFacts>,
    /// The swap Job.
    pub swap_job: Option<JobFacts>,
    /// The cleanup Job.
    pub cleanup_job: Option<JobFacts>,
    /// The Job of a dry run.
    pub plan_job: Option<JobFacts>,
    /// The pods of this resync's pipeline, snapshot and swap that may still run.
    pub pods: Vec<String>,
    /// The image of this operator.
    pub image: String,
}

/// What a resync needs to know of its Mirror.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MirrorFacts {
    /// UID.
    pub uid: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it bears [`FORCE_ANNOTATION`](crate::mirror::FORCE_ANNOTATION): what cannot be removed is left behind.
    pub forced: bool,
    /// The resync that the Mirror has chosen.
    pub active: Option<ActiveResync>,
    /// The epoch whose tables are live.
    pub live_epoch: u32,
    /// How many workers may load at the same time, as its spec says now.
    pub max_parallel_workers: u16,
}

/// A Job as far as decisions need it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobFacts {
    /// Whether it has completed.
    pub completed: bool,
    /// Why it has failed for good, in Kubernetes' words.
    pub failed: Option<String>,
    /// Whether it has failed because a pod said, by [`EXIT_PERMANENT`](crate::report::EXIT_PERMANENT), that trying again is of no use.
    pub refused: bool,
    /// When it completed or failed.
    pub ended: Option<Timestamp>,
    /// Indexes that were given up.
    pub failed_indexes: u32,
    /// What its last finished pod left, or what one left that decides.
    pub report: Option<JobReport>,
    /// Why its pods do not run, as the kubelet or scheduler says.
    pub pod_trouble: Option<String>,
}

impl JobFacts {
    /// What the word of its pods is about, if something went wrong.
    pub fn failure(&self) -> Option<&Failure> {
        self.report.as_ref()?.failure.as_ref()
    }

    /// Whether it has failed and another one would fail too. All else passes: sources and destinations come back, readers let go.
    pub fn is_hopeless(&self) -> bool {
        self.failed.is_some() && (self.refused || self.failure().is_some_and(|f| f.permanent))
    }

    /// What is wrong with it, in its pods' own words if they left any, else in Kubernetes'.
    pub fn trouble(&self) -> Option<String> {
        let own = self.failure().map(|f| format!("{}: {}", f.reason, f.message));
        own.or_else(|| self.failed.clone()).or_else(|| self.pod_trouble.clone())
    }
}

/// Something to do. Each is safe to repeat; one that cannot be undone is listed only once its intent stands in the recorded status.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Puts the finalizer on the resync.
    AddFinalizer,
    /// Takes the finalizer off.
    RemoveFinalizer,
    /// The pipeline of this resync's epoch: ConfigMap with the brief, Service, StatefulSet.
    EnsurePipeline {
        /// The brief.
        brief: Box<Brief>,
        /// The image.
        image: String,
    },
    /// Removes a pipeline's StatefulSet, and with it its pod, and its Service. The brief stays: whoever has to remove more needs it.
    DeletePipeline {
        /// Its epoch.
        epoch: u32,
    },
    /// The Indexed Job that loads.
    EnsureSnapshotJob {
        /// The brief.
        brief: Box<Brief>,
        /// The image.
        image: String,
        /// Completions.
        partitions: u32,
        /// Pods at the same time.
        parallelism: u16,
        /// Whether it is paused.
        suspended: bool,
    },
    /// The Job that carries and swaps.
    EnsureSwapJob {
        /// The brief.
        brief: Box<Brief>,
        /// The image.
        image: String,
    },
    /// The Job that removes what this resync has made.
    EnsureCleanupJob {
        /// The brief.
        brief: Box<Brief>,
        /// The image.
        image: String,
    },
    /// Removes the snapshot and swap Jobs with their pods.
    DeleteJobs,
    /// Removes an ended cleanup Job, so that another can start.
    DeleteCleanupJob,
    /// The Job of a dry run, and its own copy of the brief.
    EnsurePlanJob {
        /// The brief.
        brief: Box<Brief>,
        /// The image.
        image: String,
    },
    /// Removes the Job of a dry run.
    DeletePlanJob,
    /// An Event.
    Say(Notice),
}

/// An Event: something people should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether something is wrong.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: String,
    /// In words, with the cure if something is wrong.
    pub message: String,
}

/// What a reconcile does next.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order.
    pub effects: Vec<Effect>,
    /// The whole status as it should read now.
    pub status: MirrorResyncStatus,
    /// When to look again, if nothing happens before.
    pub next_look: Option<Duration>,
}

/// How soon a resync that moves is looked at again; what a pipeline pod says is not watched but asked.
pub const SOON: Duration = Duration::from_millis(300);
/// How soon a resync that waits for others is looked at again.
pub const LATER: Duration = Duration::from_secs(5);

impl Notice {
    /// Something went as it should.
    pub fn normal(reason: &str, message: impl Into<String>) -> Self {
        Self { warning: false, reason: reason.into(), message: message.into() }
    }

    /// Something is wrong.
    pub fn warning(reason: &str, message: impl Into<String>) -> Self {
        Self { warning: true, reason: reason.into(), message: message.into() }
    }
}

/// Names of the Jobs of a resync.
pub fn job_name(resync: &str, role: &str) -> String {
    format!("{resync}-{role}")
}

/// The facts that every pass starts from.
pub(crate) struct Pass<'a> {
    resync: &'a MirrorResync,
    seen: &'a Observed,
    now: Timestamp,
}
