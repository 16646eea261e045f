//! Mirror: the wanted pipeline from tables of a source to tables of a destination.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    condition,
    pod::{Placement, Resources},
    quantity::{Bytes, Span, at_least, bytes, span},
    resync::Outcome,
};

/// Copies tables of a PostgreSQL source to a destination and keeps them fresh with logical replication.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "mirror-operator.io", version = "v1alpha1", kind = "Mirror", plural = "mirrors", shortname = "mirror", category = "cdc", namespaced,
    status = "MirrorStatus", derive = "PartialEq",
    doc = "Copies tables of a PostgreSQL source to a destination and keeps them fresh with logical replication.",
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("the name of a Mirror must begin with a letter and hold no dot: its Service is named after it"),
    validation = Rule::new("size(self.metadata.name) <= 36").message("the name of a Mirror may have 36 characters at most: its workloads are named after it"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch"),
    printcolumn(name = "Tables", type_ = "integer", json_path = ".status.tableCount"),
    printcolumn(name = "Lag", type_ = "string", json_path = ".status.lag"),
    printcolumn(name = "Seconds", type_ = "integer", json_path = ".status.lagSeconds"),
    printcolumn(name = "Resync", type_ = "string", json_path = ".status.activeResync.name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.source.peer == oldSelf.source.peer").message("source.peer cannot be changed: make a new Mirror"),
    validation = Rule::new("self.destination.peer == oldSelf.destination.peer").message("destination.peer cannot be changed: make a new Mirror"),
    validation = Rule::new("self.source.peer != self.destination.peer").message("source and destination must be different Peers"),
    validation = Rule::new("self.mode != 'SnapshotOnly' || self.initialLoad").message("mode SnapshotOnly with initialLoad false would bring nothing"),
    validation = Rule::new("self.mode != 'SnapshotOnly' || !has(self.source.slot)").message("mode SnapshotOnly streams nothing: it has no use for source.slot"),
    validation = Rule::new("!self.softDelete.enabled || self.softDelete.column != self.syncedAtColumn").message("softDelete.column and syncedAtColumn must differ")
)]
pub struct MirrorSpec {
    /// Where the tables are read.
    pub source: Source,
    /// Where the tables are written.
    pub destination: Target,
    /// The tables to mirror.
    #[schemars(length(min = 1, max = 1000), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["source"]))]
    pub tables: Vec<Table>,
    /// What becomes of rows that are deleted at the source.
    #[serde(default)]
    pub soft_delete: SoftDelete,
    /// Name of the column that holds the time of each row's last change at the destination; empty for none.
    #[serde(default = "default_synced_at")]
    #[schemars(length(max = 63))]
    pub synced_at_column: String,
    /// Whether changes follow the load.
    #[serde(default)]
    pub mode: Mode,
    /// Whether the first epoch loads the rows that are there. Without it the tables begin empty and get what is changed from then on. A resync loads all rows
    /// in any case.
    #[serde(default = "default_initial_load")]
    pub initial_load: bool,
    /// What becomes of the sequences that mirrored columns own, if the destination is PostgreSQL.
    #[serde(default)]
    pub sequences: Sequences,
    /// The initial load of this mirror and of its resyncs.
    #[serde(default)]
    pub snapshot: Snapshot,
    /// The change stream.
    #[serde(default)]
    pub replication: Replication,
    /// Where the pods of this mirror may run: the pipeline's at once, which is restarted for it, those of Jobs with the next resync.
    #[serde(default)]
    pub pods: Placement,
    /// Stops the change stream while true. The slot stays, and with it the source's WAL.
    #[serde(default)]
    pub suspend: bool,
    /// When the operator starts a resync by itself.
    #[serde(default)]
    pub resync_policy: ResyncPolicy,
    /// What becomes of the destination's tables when the Mirror is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Where tables are read.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Name of a Peer in the same namespace with the role Source.
    #[schemars(length(min = 1, max = 253))]
    pub peer: String,
    /// A publication of one's own, used as it is and never dropped. It must cover the tables. Without it the mirror makes one for each epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub publication: Option<String>,
    /// A logical replication slot of one's own with the plugin pgoutput, used as it is and never dropped, such as one that fails over to a standby
    /// (`failover`). Without it the mirror makes one for each epoch. It keeps the source's log for as long as nothing streams, also when the Mirror is gone.
    /// A snapshot still needs a temporary slot beside it. No handover Live: there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9_]+$"))]
    pub slot: Option<String>,
}

/// Where tables are written.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Name of a Peer in the same namespace with the role Destination.
    #[schemars(length(min = 1, max = 253))]
    pub peer: String,
}

/// One mirrored table.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// The source's table as `schema.table`. The part before the first dot is the schema; a schema with a dot in its name is written in double quotes.
    #[schemars(length(min = 3, max = 260), regex(pattern = r#"^("([^"]|"")+"|[^".]+)\..+$"#))]
    pub source: String,
    /// The destination's table as `schema.table`; the same as the source's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 260), regex(pattern = r#"^("([^"]|"")+"|[^".]+)\..+$"#))]
    pub destination: Option<String>,
    /// Columns that are not mirrored. None of them may be part of the key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1600), extend("x-kubernetes-list-type" = "set"))]
    pub exclude_columns: Vec<String>,
    /// Columns that bear another name or type at the destination.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1600), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["source"]))]
    pub columns: Vec<Column>,
    /// A source's column of type smallint, integer or bigint: the load reads ranges of its values instead of blocks. Views and foreign tables, which have no
    /// blocks, can be mirrored with it (`mode: SnapshotOnly`). Its smallest and largest values are looked up before the load: have an index on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub partition_key: Option<String>,
    /// How the table is kept, if the destination is ClickHouse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clickhouse: Option<super::clickhouse::ClickHouseTable>,
    /// How the table is kept, if the destination is BigQuery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bigquery: Option<super::bigquery::BigQueryTable>,
    /// How the table is kept, if the destination is Snowflake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snowflake: Option<super::snowflake::SnowflakeTable>,
}

impl Table {
    /// Whether it takes over a table that is there, with its rows.
    pub fn is_adopted(&self) -> bool {
        let Self { clickhouse, bigquery, snowflake, .. } = self;
        clickhouse.as_ref().is_some_and(|t| t.adopt)
            || bigquery.as_ref().is_some_and(|t| t.adopt)
            || snowflake.as_ref().is_some_and(|t| t.adopt)
    }
}

/// A column that bears another name or type at the destination.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Column {
    /// Name at the source.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,
    /// Name at the destination; the same if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub destination: Option<String>,
    /// Type at the destination, in its own words; derived from the source's type if absent.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub type_: Option<String>,
}

/// What becomes of rows that are deleted at the source.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SoftDelete {
    /// True: the row stays and is flagged. False: the row is deleted.
    pub enabled: bool,
    /// Name of the flag's column.
    #[schemars(length(min = 1, max = 63))]
    pub column: String,
}

/// Whether changes follow the load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// The tables are loaded, then changes are streamed.
    #[default]
    Continuous,
    /// The tables are loaded once: no slot, publication or pipeline stays. A resync loads them again.
    SnapshotOnly,
}

/// What becomes of the sequences that mirrored columns own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Sequences {
    /// Nothing: the destination's columns have no defaults.
    #[default]
    Ignore,
    /// The destination gets sequences of the same names, from which the columns draw by default, so that the tables can be written to after a cut-over. They
    /// are brought to the source's places right before each swap and then every 10 seconds.
    Sync,
}

/// The initial load.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Snapshot {
    /// How many worker pods load at the same time, each with one connection to either side. May be changed while a load runs.
    #[schemars(range(min = 1, max = 256))]
    pub max_parallel_workers: u16,
    /// About how much of a table one pod loads, 1Mi or more: the unit of retry.
    #[schemars(extend("x-kubernetes-validations" = at_least("1Mi")))]
    pub partition_size: Bytes,
    /// About how much is written in one transaction, 64Ki or more: the unit of progress, never loaded twice. If absent, what serves the destination: 64Mi, or
    /// the share of each worker where that is more, up to 256Mi at BigQuery and up to 1Gi at Snowflake; not more than `partitionSize`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = at_least("64Ki")))]
    pub chunk_size: Option<Bytes>,
    /// Bound on the bytes that all workers together read from the source in a second. Each worker has its share by the workers that the resync begins with:
    /// a load whose `maxParallelWorkers` is changed reads in proportion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes_per_second: Option<Bytes>,
    /// What each worker pod asks for. It needs about three times the memory of the largest row.
    pub resources: Resources,
}

/// The change stream.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Replication {
    /// Row changes after which a batch is written, at the end of the transaction that reaches it.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub batch_rows: u32,
    /// Time after which a batch is written even if it is small.
    pub batch_interval: Span,
    /// What the pipeline pod asks for. It needs 24 MiB of memory, and four times that of the largest row that is changed. A change restarts the pod.
    pub resources: Resources,
}

/// When the operator starts a resync by itself.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResyncPolicy {
    /// What happens when the replication slot was lost: Manual only says so in the condition `ResyncRequired`, Automatic starts a resync, and another
    /// with growing patience if that one fails.
    pub on_slot_lost: OnSlotLost,
}

/// What happens when the replication slot was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnSlotLost {
    /// The condition `ResyncRequired` says so; people decide.
    #[default]
    Manual,
    /// A resync is started.
    Automatic,
}

/// What becomes of the destination's tables when the Mirror is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// They stay as they are.
    #[default]
    Retain,
    /// They are dropped.
    Drop,
}

/// Where a mirror stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MirrorPhase {
    /// Waiting for its peers or its first load.
    #[default]
    Pending,
    /// A resync prepares slot and tables.
    Setup,
    /// A resync loads rows.
    Snapshot,
    /// Changes are streamed.
    Running,
    /// Suspended by the spec.
    Paused,
    /// Loaded, with no changes to follow: mode SnapshotOnly.
    Loaded,
    /// It needs a resync or a cure; the condition `Ready` says which.
    Failed,
    /// The slot and workloads are being removed.
    Terminating,
}

/// What is known of a mirror.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the mirror stands.
    #[serde(default)]
    pub phase: MirrorPhase,
    /// The newest epoch that was begun: 1 is the initial load, each resync adds one. Recorded before anything of that epoch is made.
    #[serde(default)]
    pub epoch: u32,
    /// The epoch whose tables bear the live names; 0 before the first load.
    #[serde(default)]
    pub live_epoch: u32,
    /// Whether the live tables have no change stream any more: a resync has dropped it and did not finish. The next resync cures it.
    #[serde(default)]
    pub stream_dropped: bool,
    /// Number of tables.
    #[serde(default)]
    pub table_count: u32,
    /// The replication slot at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// The source's position up to which all changes stand in the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_lsn: Option<String>,
    /// WAL that the source has written past `appliedLsn`, both read at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<i64>,
    /// Seconds since the commit of the oldest change that was received from the source and is not yet applied at the destination; 0 if there is none, also
    /// while the first change of a transaction is still on its way, which `lagBytes` shows. By the clocks of source and pipeline pod, looked at once a
    /// second. Absent while the stream is not connected, unless such a change is known from before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<i64>,
    /// The lag for people, such as `0 B` or `12 MiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<String>,
    /// When `appliedLsn` last moved, or was last seen to be caught up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_progress_time: Option<Time>,
    /// The resync that has claimed this mirror, if one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_resync: Option<ActiveResync>,
    /// Counts of each table since the last resync.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<TableStatus>,
    /// The last resyncs, newest first, ten at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resyncs: Vec<PastResync>,
    /// `Ready`, `SlotHealthy`, `SchemaInSync`, `ResyncRequired`, and with `sequences: Sync` `SequencesInSync`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "condition::schema")]
    pub conditions: Vec<Condition>,
}

/// The resync that has claimed a mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActiveResync {
    /// Name of the MirrorResync.
    pub name: String,
    /// Its UID: an object of the same name that was made later is another resync.
    pub uid: String,
    /// The epoch that it makes.
    pub epoch: u32,
}

/// Counts of one table since the last resync.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TableStatus {
    /// The source's table.
    pub source: String,
    /// The destination's table.
    pub destination: String,
    /// Rows of the initial load.
    #[serde(default)]
    pub rows_loaded: i64,
    /// Rows inserted by the change stream.
    #[serde(default)]
    pub inserts: i64,
    /// Rows updated by the change stream.
    #[serde(default)]
    pub updates: i64,
    /// Rows deleted by the change stream.
    #[serde(default)]
    pub deletes: i64,
    /// Why the change stream passes this table over, and what cures it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<String>,
}

/// A resync that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PastResync {
    /// Name of the MirrorResync.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Time>,
    /// How it ended.
    pub outcome: Outcome,
    /// Rows loaded.
    #[serde(default)]
    pub rows: i64,
    /// Bytes loaded.
    #[serde(default)]
    pub bytes: i64,
}

fn default_initial_load() -> bool {
    true
}

fn default_synced_at() -> String {
    "_PEERDB_SYNCED_AT".into()
}

impl Default for SoftDelete {
    fn default() -> Self {
        Self { enabled: true, column: "_PEERDB_IS_DELETED".into() }
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            max_parallel_workers: 4,
            partition_size: bytes("1Gi"),
            chunk_size: None,
            max_bytes_per_second: None,
            resources: Resources::of("20m", "32Mi", "512Mi"),
        }
    }
}

impl Default for Replication {
    fn default() -> Self {
        Self { batch_rows: 50_000, batch_interval: span("1s"), resources: Resources::of("20m", "64Mi", "512Mi") }
    }
}
