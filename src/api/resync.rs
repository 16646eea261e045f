//! MirrorResync: one resync of one Mirror, one-shot.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    condition,
    pod::Resources,
    quantity::{Bytes, Span, at_least, span},
};

/// Rebuilds the tables of a Mirror from scratch behind the readers' back, once.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "mirror-operator.io", version = "v1alpha1", kind = "MirrorResync", plural = "mirrorresyncs", shortname = "mresync", category = "cdc", namespaced,
    status = "MirrorResyncStatus", derive = "PartialEq", selectable = ".spec.mirror",
    doc = "Rebuilds the tables of a Mirror from scratch behind the readers' back, once.",
    validation = Rule::new("!self.metadata.name.contains('.')").message("the name of a MirrorResync may not hold a dot: the pods of its Jobs are named after it"),
    validation = Rule::new("size(self.metadata.name) <= 48").message("the name of a MirrorResync may have 48 characters at most: its Jobs are named after it"),
    validation = Rule::new("self.spec.verification == oldSelf.spec.verification || !has(oldSelf.status) || !has(oldSelf.status.epoch)").message("verification cannot be changed once the resync has begun: make a new MirrorResync"),
    printcolumn(name = "Mirror", type_ = "string", json_path = ".spec.mirror"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Rows", type_ = "integer", json_path = ".status.rows.done"),
    printcolumn(name = "Lag", type_ = "string", json_path = ".status.lag"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mirror == oldSelf.mirror").message("mirror cannot be changed: make a new MirrorResync"),
    validation = Rule::new("self.tables == oldSelf.tables").message("tables cannot be changed: make a new MirrorResync"),
    validation = Rule::new("size(self.tables) == 0 || self.handover == 'Live'").message("tables needs handover: Live, for the other tables are streamed all the while"),
    validation = Rule::new("self.handover == oldSelf.handover").message("handover cannot be changed: make a new MirrorResync"),
    validation = Rule::new("self.dryRun == oldSelf.dryRun").message("dryRun cannot be changed: make a new MirrorResync"),
    validation = Rule::new("self.carry == oldSelf.carry && self.keepOld == oldSelf.keepOld").message("carry and keepOld cannot be changed: make a new MirrorResync"),
    validation = Rule::new("self.swap.oldSnapshotWait == oldSelf.swap.oldSnapshotWait && self.swap.onOldSnapshot == oldSelf.swap.onOldSnapshot").message("swap.oldSnapshotWait and swap.onOldSnapshot cannot be changed: make a new MirrorResync"),
    validation = Rule::new("(has(self.snapshot) && has(self.snapshot.partitionSize) ? self.snapshot.partitionSize : '') == (has(oldSelf.snapshot) && has(oldSelf.snapshot.partitionSize) ? oldSelf.snapshot.partitionSize : '') && (has(self.snapshot) && has(self.snapshot.chunkSize) ? self.snapshot.chunkSize : '') == (has(oldSelf.snapshot) && has(oldSelf.snapshot.chunkSize) ? oldSelf.snapshot.chunkSize : '') && (has(self.snapshot) && has(self.snapshot.maxBytesPerSecond) ? self.snapshot.maxBytesPerSecond : '') == (has(oldSelf.snapshot) && has(oldSelf.snapshot.maxBytesPerSecond) ? oldSelf.snapshot.maxBytesPerSecond : '') && (has(self.snapshot) && has(self.snapshot.resources)) == (has(oldSelf.snapshot) && has(oldSelf.snapshot.resources)) && (!(has(self.snapshot) && has(self.snapshot.resources) && has(oldSelf.snapshot) && has(oldSelf.snapshot.resources)) || self.snapshot.resources == oldSelf.snapshot.resources)").message("of snapshot only maxParallelWorkers can be changed: make a new MirrorResync"),
    validation = Rule::new("!oldSelf.cancel || self.cancel").message("a cancelled resync cannot be taken up again: make a new MirrorResync")
)]
pub struct MirrorResyncSpec {
    /// Name of a Mirror in the same namespace.
    #[schemars(length(min = 1, max = 36))]
    pub mirror: String,
    /// The tables to rebuild, as the Mirror's `tables[].source` has them; all of them if empty. The others are not touched (but what `keepOld` has kept of them goes with the swap) and get their changes all the while, so
    /// that this needs `handover: Live`, and a mirror that streams. Tables that were added to the Mirror are loaded so too.
    #[serde(default)]
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "set"), inner(length(min = 3, max = 260)))]
    pub tables: Vec<String>,
    /// How the change stream passes from the old tables to the new ones. DropFirst: the old pipeline and its slot are dropped first, and the live tables stand still
    /// until the swap. Live: it streams on until then, while the new one loads and catches up; PostgreSQL destinations only, and a second slot is needed meanwhile.
    #[serde(default)]
    pub handover: Handover,
    /// Looks at everything that could stop a resync, reckons how large it would be, and ends. Nothing is changed at source or destination, and the mirror
    /// streams on.
    #[serde(default)]
    pub dry_run: bool,
    /// Stops the load after the chunks in hand while true.
    #[serde(default)]
    pub suspend: bool,
    /// Ends the resync before its swap: its slot, `_resync` tables and Jobs are removed.
    #[serde(default)]
    pub cancel: bool,
    /// The swap.
    #[serde(default)]
    pub swap: Swap,
    /// What is carried from the old tables into the new ones.
    #[serde(default)]
    pub carry: Carry,
    /// Whether the new tables are compared with the source before they are swapped. None: only as the load does by itself. RowCount: both sides count their
    /// rows. Checksum: and compute a checksum over all values, PostgreSQL destinations only. It can be changed until the resync begins.
    #[serde(default)]
    pub verification: Verification,
    /// How long the old tables are kept after the swap, as `<table>_old`. The next swap of the Mirror ends it.
    #[serde(default = "default_keep_old")]
    pub keep_old: Span,
    /// Overrides of the Mirror's `snapshot`, for this resync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotOverrides>,
}

/// How the change stream passes from the old tables to the new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Handover {
    /// The old pipeline and its slot are dropped first; the live tables stand still until the swap.
    #[default]
    DropFirst,
    /// The old pipeline streams into the live tables until the swap, while the new one loads and then streams into the `_resync` tables; the live tables
    /// stand still only while both are brought to the same point and swapped. Needs a second slot for that time. Destinations of the kind PostgreSQL only. Where
    /// nothing is streamed (the first load, after a resync that dropped the stream and failed, mode SnapshotOnly) there is nothing to hand over, and it is as DropFirst.
    Live,
}

/// The swap.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Swap {
    /// Automatic: swap as soon as the new tables are complete. Manual: wait until `approved` is true.
    pub approval: Approval,
    /// Lets a Manual swap go on.
    pub approved: bool,
    /// How long the swap waits for transactions at the destination whose snapshot is older than the new rows, and so would see empty tables.
    pub old_snapshot_wait: Span,
    /// What happens when such a transaction is still there after that.
    pub on_old_snapshot: OnOldSnapshot,
}

/// Who lets the swap go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Approval {
    /// It goes on by itself.
    #[default]
    Automatic,
    /// It waits for `approved`.
    Manual,
}

/// What happens when a transaction with an old snapshot outlasts the wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnOldSnapshot {
    /// Swap; that transaction may see empty tables.
    #[default]
    Proceed,
    /// The resync fails; the live tables stay as they are.
    Fail,
}

/// What is carried from the old tables into the new ones.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Carry {
    /// Rows that are flagged as deleted in the old table, with their flag and time.
    pub soft_deleted: bool,
    /// Rows that are live in the old table but gone from the source, flagged as deleted now. They are counted apart.
    pub missing: bool,
}

/// Whether the new tables are compared with the source before they are swapped. Each table is compared with the very snapshot that it was loaded from; rows
/// that were carried over do not count. A difference ends the resync as `VerificationFailed`, and the live tables stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verification {
    /// Only as the load does by itself.
    #[default]
    None,
    /// The source counts its rows, the destination those of the new table. Both read each table once more.
    RowCount,
    /// RowCount, and a checksum over all values, which both compute. Destinations of the kind PostgreSQL only.
    Checksum,
}

/// Overrides of the Mirror's `snapshot`.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotOverrides {
    /// See the Mirror's field.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub max_parallel_workers: Option<u16>,
    /// See the Mirror's field.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = at_least("1Mi")))]
    pub partition_size: Option<Bytes>,
    /// See the Mirror's field.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = at_least("64Ki")))]
    pub chunk_size: Option<Bytes>,
    /// See the Mirror's field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes_per_second: Option<Bytes>,
    /// See the Mirror's field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// Where a resync stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Waiting for its turn, or for something named in the message. Nothing was changed yet.
    #[default]
    Pending,
    /// The new pipeline checks what can be checked, drops the old slot, and makes slot, snapshot and `_resync` tables. Ends when the pipeline reports a plan.
    Setup,
    /// Snapshot Jobs fill the `_resync` tables. Ends when every chunk is loaded and every key and index is built.
    Snapshot,
    /// With `handover: Live`: changes are streamed into the `_resync` tables. Ends when those are nearly as fresh as the live tables.
    CatchUp,
    /// Soft-deleted rows are carried over and the tables are swapped. Ends when the new tables bear the live names and their change stream is connected.
    Swap,
    /// Swapped, and the mirror is in CDC. An end.
    Running,
    /// It ended with an error; the condition `Succeeded` says which. An end.
    Failed,
    /// It was cancelled before the swap. An end.
    Cancelled,
    /// A dry run found nothing in the way; or the tables are swapped and no changes follow, as the Mirror's mode is SnapshotOnly. An end.
    Succeeded,
}

impl Phase {
    /// Whether nothing happens any more.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Running | Self::Failed | Self::Cancelled | Self::Succeeded)
    }
}

/// How a resync ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Outcome {
    /// Swapped.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Cancelled before the swap.
    Cancelled,
}

/// What is known of a resync.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorResyncStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the resync stands.
    #[serde(default)]
    pub phase: Phase,
    /// The epoch that it makes. Recorded before anything of that epoch is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    /// UID of the Mirror that it was begun for: a Mirror of the same name that was made later is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_uid: Option<String>,
    /// The image that its workloads started with and keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// When it claimed the mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it ended, well or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// How much of the load is done, such as `42%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// When the load is expected to end, at the speed so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<Time>,
    /// Partitions of the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<Partitions>,
    /// Bytes loaded and estimated in total.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Amount>,
    /// Rows loaded and estimated in total.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Amount>,
    /// What a dry run found that a resync would load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// The change stream's lag after the swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<String>,
    /// The snapshot that the load reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotStatus>,
    /// The swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapStatus>,
    /// Each table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<TableProgress>,
    /// Steps that were begun and must not be begun again, whatever became of their Jobs: durable intent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begun: Vec<Step>,
    /// How it is going to end, once what it made is removed. Taken back only if the tables turn out to be swapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// Whether the old pipeline and its slot were dropped: from then on the live tables stand still until a resync succeeds.
    #[serde(default)]
    pub old_pipeline_dropped: bool,
    /// `Succeeded`, and one for each finished step: `Planned`, `Loaded`, `CaughtUp`, `Verified`, `Swapped`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "condition::schema")]
    pub conditions: Vec<Condition>,
}

/// A step whose beginning is recorded before it is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Step {
    /// The pipeline of the new epoch; it drops the old slot.
    Pipeline,
    /// The snapshot Job.
    Snapshot,
    /// The swap Job.
    Swap,
    /// The Job that removes what a failed or cancelled resync has made.
    Cleanup,
}

/// How a resync is going to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ending {
    /// Failed or Cancelled.
    pub outcome: Outcome,
    /// One CamelCase word.
    pub reason: String,
    /// What happened and what cures it.
    pub message: String,
    /// Whether nothing is known to have been made at source or destination.
    pub untouched: bool,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// What a resync would load, from the source's statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// Tables.
    pub tables: u32,
    /// Rows, estimated.
    pub rows: i64,
    /// Bytes at the source, without indexes.
    pub bytes: i64,
    /// Transactions that would load them.
    pub chunks: u32,
    /// Pods that would.
    pub partitions: u32,
}

/// Partitions of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Partitions {
    /// All of them.
    pub total: u32,
    /// Loaded completely.
    pub succeeded: u32,
    /// Given up.
    pub failed: u32,
}

/// How much is done of how much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Amount {
    /// Done.
    pub done: i64,
    /// Estimated in total, from the source's statistics.
    pub total: i64,
}

/// The snapshot that a load reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    /// The position that the snapshot stands for.
    pub lsn: String,
    /// How often a snapshot had to be exported: more than once if the source restarted, whoever held it was cut off, or a table was rewritten or truncated
    /// while it was loaded.
    pub exports: u32,
}

/// What the swap did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SwapStatus {
    /// When the new tables took the live names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// Milliseconds for which readers could have been blocked by the transaction that swapped. At ClickHouse nobody is blocked: there it is the time in which
    /// some tables were new and others old.
    pub lock_millis: i64,
    /// Attempts that gave way to readers.
    #[serde(default)]
    pub retries: u32,
}

/// One table of a resync.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TableProgress {
    /// The source's table.
    pub source: String,
    /// The destination's table.
    pub destination: String,
    /// Rows loaded.
    #[serde(default)]
    pub rows_loaded: i64,
    /// Soft-deleted rows carried over.
    #[serde(default)]
    pub soft_deleted_carried: i64,
    /// Rows gone from the source unnoticed, carried over as deleted.
    #[serde(default)]
    pub missing_carried: i64,
    /// Rows that source and new table both have, as the verification found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_verified: Option<i64>,
    /// Why nothing was carried, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// When it took its live name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swapped_at: Option<Time>,
}

fn default_keep_old() -> Span {
    span("0s")
}

impl Default for Swap {
    fn default() -> Self {
        Self { approval: Approval::Automatic, approved: false, old_snapshot_wait: span("30s"), on_old_snapshot: OnOldSnapshot::Proceed }
    }
}

impl Default for Carry {
    fn default() -> Self {
        Self { soft_deleted: true, missing: true }
    }
}
