//! What a pipeline pod tells over HTTP (`GET /status`), and what short Jobs leave as their termination message. No I/O.

use serde::{Deserialize, Serialize};

use crate::postgres::Lsn;

/// What a pipeline pod knows of its epoch. Read from the destination's ledger and from the stream; nothing here is a guess.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// The Mirror's UID: a reader makes sure that it talks to the right pod.
    pub mirror_uid: String,
    /// The epoch.
    pub epoch: u32,
    /// What the pod is at.
    pub stage: Stage,
    /// What it waits for, in words; empty if it does not wait.
    pub waiting: String,
    /// Why it cannot go on, if so. A permanent failure is left to people or to a new resync; others are tried again.
    pub failure: Option<Failure>,
    /// The load.
    pub load: Option<Load>,
    /// The swap, once it is done.
    pub swap: Option<SwapReport>,
    /// The change stream.
    pub stream: Option<Stream>,
    /// How the last look at the sequences went, if the epoch's tables bring theirs.
    pub sequences: Option<SequencesReport>,
    /// Each table.
    pub tables: Vec<TableReport>,
}

/// What a pipeline pod is at. It moves down this list and never back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stage {
    /// Checking what can be checked. Nothing was changed.
    #[default]
    Checking,
    /// Dropping earlier epochs, creating slot, snapshot and shadows.
    Preparing,
    /// The snapshot is held; workers load.
    Loading,
    /// Every table is loaded and sealed; the snapshot is let go. Waiting for the swap.
    Loaded,
    /// Of a live handover: the same, and changes are applied to the shadows until it is to be swapped.
    CatchingUp,
    /// The tables bear their live names and changes are applied.
    Streaming,
    /// The tables bear their live names and no changes follow. The pod is of no more use.
    Done,
    /// A newer epoch has begun: this pod does nothing more.
    Superseded,
}

/// Why something cannot go on, with what cures it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// One CamelCase word for conditions, such as `TableMissing`.
    pub reason: String,
    /// What happened, where, and what cures it.
    pub message: String,
    /// Whether trying again is of no use.
    pub permanent: bool,
}

/// The load so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Load {
    /// Partitions: the completions of the snapshot Job.
    pub partitions: u32,
    /// Partitions whose chunks are all loaded.
    pub partitions_loaded: u32,
    /// Rows loaded.
    pub rows: i64,
    /// Estimate of all rows.
    pub total_rows: i64,
    /// Bytes loaded.
    pub bytes: i64,
    /// Estimate of all bytes.
    pub total_bytes: i64,
    /// Consistent point of the current snapshot.
    pub snapshot_lsn: Lsn,
    /// How often a snapshot was exported.
    pub generation: u32,
}

/// What the swap did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SwapReport {
    /// When, as RFC 3339.
    pub at: String,
    /// How long readers could have been blocked.
    pub lock_millis: i64,
    /// Attempts that gave way to readers.
    pub retries: u32,
}

/// The change stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Stream {
    /// The slot.
    pub slot: String,
    /// The checkpoint.
    pub applied_lsn: Lsn,
    /// The source's end of WAL minus the checkpoint, both read at the same time; `None` until both are known.
    pub lag_bytes: Option<i64>,
    /// Seconds since the commit of the oldest change that was received and is not applied; 0 if there is none; `None` if nobody listens.
    pub lag_seconds: Option<u64>,
    /// Seconds since the checkpoint last moved or the stream was last seen caught up.
    pub idle_seconds: u64,
    /// Whether a connection to the slot is open.
    pub connected: bool,
    /// Whether the slot was lost: gone, or invalidated.
    pub slot_lost: Option<String>,
}

/// The sequences that come with the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SequencesReport {
    /// What keeps them from following the source's.
    pub failure: Option<Failure>,
}

/// One table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TableReport {
    /// At the source.
    pub source: String,
    /// At the destination.
    pub destination: String,
    /// Rows loaded.
    pub rows_loaded: i64,
    /// Soft-deleted rows carried.
    pub carried_deleted: i64,
    /// Missing rows carried.
    pub carried_missing: i64,
    /// Rows that source and shadow both have, once that was found.
    pub rows_verified: Option<i64>,
    /// A remark, such as why nothing was carried.
    pub note: Option<String>,
    /// Whether load, key and indexes are complete.
    pub sealed: bool,
    /// Why the change stream passes it over.
    pub parked: Option<String>,
    /// What differs between the source's table and ours and wants a resync.
    pub drift: Option<String>,
    /// Counts of the change stream since the load.
    pub inserts: i64,
    /// See `inserts`.
    pub updates: i64,
    /// See `inserts`.
    pub deletes: i64,
}

/// What the check Job of a Peer leaves as its termination message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerReport {
    /// The server's version, as it states it.
    pub server_version: String,
    /// The cluster's system identifier.
    pub system_identifier: String,
    /// Of Snowflake, the warehouse in use.
    pub warehouse: Option<String>,
    /// What is missing, each with the statement that cures it; empty if nothing is.
    pub problems: Vec<Failure>,
}

/// What any other short Job leaves as its termination message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobReport {
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// Of swap and cleanup: what the swap did, if it was done.
    pub swapped: Option<SwapReport>,
    /// Of a dry run: what a resync would load.
    pub plan: Option<PlanReport>,
}

/// What a resync would load, from the source's statistics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanReport {
    /// Tables.
    pub tables: u32,
    /// Rows, estimated.
    pub rows: i64,
    /// Bytes at the source.
    pub bytes: i64,
    /// Units of commit.
    pub chunks: u32,
    /// Indexes of the snapshot Job.
    pub partitions: u32,
}

/// What a snapshot worker is told by `GET /snapshot` of the pipeline pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldSnapshot {
    /// Its generation.
    pub generation: u32,
    /// The name to import.
    pub name: String,
    /// Its consistent point.
    pub lsn: Lsn,
}

/// Exit code of a pod whose failure is permanent; Jobs do not try again after it (`podFailurePolicy`).
pub const EXIT_PERMANENT: u8 = 2;
