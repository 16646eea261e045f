//! Decides what a Mirror needs next, and writes the brief of an epoch. Pure: no client, no clock.

mod brief;
mod plan;
#[cfg(test)]
mod tests;
mod words;

pub use brief::{brief, made_from, validate};
pub use plan::plan;

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use crate::{
    api::{Mirror, MirrorStatus, resync::Phase},
    brief::Brief,
    report::Report,
    resync::{JobFacts, Notice},
};

/// The finalizer of a Mirror: its slots must not outlive it, since a forgotten slot fills the source's disk.
pub const FINALIZER: &str = "mirror-operator.io/mirror";
/// An annotation that lets a Mirror go without removing anything at source or destination, for when they are gone for good.
pub const FORCE_ANNOTATION: &str = "mirror-operator.io/force-delete";

/// Whether a Mirror bears [`FORCE_ANNOTATION`].
pub fn forced(mirror: &Mirror) -> bool {
    mirror.metadata.annotations.as_ref().is_some_and(|a| a.get(FORCE_ANNOTATION).is_some_and(|v| v == "true"))
}

/// What is true of the world around one Mirror.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Its MirrorResyncs, oldest first.
    pub resyncs: Vec<ResyncFacts>,
    /// The brief of the live epoch; if none is live or the Mirror goes, that of the newest one. Or why there is none.
    pub brief: Option<Result<Box<Brief>, String>>,
    /// Epochs that have a pipeline StatefulSet, with its replicas.
    pub pipelines: Vec<(u32, i32)>,
    /// What the live epoch's pipeline pod says; `None` if it cannot be asked.
    pub report: Option<Report>,
    /// Why that pod does not run.
    pub pod_trouble: Option<String>,
    /// The Job that removes the Mirror's traces.
    pub forget_job: Option<JobFacts>,
    /// How many data pods of this Mirror exist, beside that Job's.
    pub pods: usize,
    /// The image of this operator.
    pub image: String,
    /// A Mirror that was made earlier and writes one of the same tables.
    pub conflict: Option<String>,
}

/// A MirrorResync as far as its Mirror needs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResyncFacts {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Where it stands.
    pub phase: Phase,
    /// The epoch it makes.
    pub epoch: Option<u32>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether somebody does not want it to begin: cancelled or suspended.
    pub held: bool,
    /// Whether the Mirror itself has made it.
    pub own: bool,
    /// Whether the old pipeline streams on until its swap.
    pub live: bool,
    /// Whether it dropped the old pipeline.
    pub old_pipeline_dropped: bool,
    /// Whether its tables bear the live names, however it ended.
    pub swapped: bool,
    /// When it began.
    pub started: Option<Time>,
    /// When it ended.
    pub ended: Option<Time>,
    /// Rows loaded.
    pub rows: i64,
    /// Bytes loaded.
    pub bytes: i64,
    /// What its condition `Succeeded` says, in a word and in words.
    pub reason: String,
    /// See `reason`.
    pub message: String,
}

/// Something to do. Each is safe to repeat.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Puts the finalizer on.
    AddFinalizer,
    /// Takes the finalizer off.
    RemoveFinalizer,
    /// Makes a MirrorResync that this Mirror owns.
    CreateResync {
        /// Its name; a resync of that name that exists is left alone.
        name: String,
    },
    /// Removes an ended MirrorResync that this Mirror owns.
    DeleteResync {
        /// Its name.
        name: String,
    },
    /// The live epoch's pipeline. An existing ConfigMap with the brief is left as it is.
    EnsurePipeline {
        /// The brief, should there be none yet.
        brief: Box<Brief>,
        /// The image.
        image: String,
        /// 1, or 0 while suspended.
        replicas: i32,
    },
    /// Removes a pipeline that nobody needs. Its brief stays, for those who have to remove more.
    DeletePipeline {
        /// Its epoch.
        epoch: u32,
    },
    /// Removes the brief of an epoch of which nothing is left.
    DeleteBrief {
        /// The epoch.
        epoch: u32,
    },
    /// Removes all Jobs of the Mirror's resyncs.
    DeleteJobs,
    /// The Job that removes all traces of the Mirror.
    EnsureForgetJob {
        /// The brief.
        brief: Box<Brief>,
        /// The image.
        image: String,
    },
    /// Removes a failed forget Job, so that another can start.
    DeleteForgetJob,
    /// An Event.
    Say(Notice),
}

/// What a reconcile does next.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order.
    pub effects: Vec<Effect>,
    /// The whole status as it should read now.
    pub status: MirrorStatus,
    /// When to look again.
    pub next_look: Option<Duration>,
}

pub(crate) struct Pass<'a> {
    mirror: &'a crate::api::Mirror,
    seen: &'a Observed,
    now: Timestamp,
}
