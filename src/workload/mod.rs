//! Builds the Kubernetes objects that do the work. Pure: no client.

mod job;
mod pipeline;
mod pod;

pub use job::{check_job, cleanup_job, forget_job, snapshot_job, swap_job};
pub use pipeline::{PORT, brief_map, pipeline_service, pipeline_set};
pub use pod::{EPOCH_LABEL, MIRROR_LABEL, RESYNC_LABEL, labels};

/// Who writes these objects, for server-side apply.
pub const MANAGER: &str = "mirror-operator";
