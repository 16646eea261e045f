//! The brief: everything the pods of one epoch need to know, written by the operator as one file. It holds no secrets.

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        MirrorSpec,
        mirror::{Mode, Replication, Sequences, Snapshot, SoftDelete, Table},
        pod::Placement,
        resync::{Carry, Handover, OnOldSnapshot, Verification},
    },
    destination::{bigquery, clickhouse, snowflake},
    name,
    postgres::{Connection, connect::SecretFile},
    source::partition::LEAST_CHUNK,
};

/// Where the brief is mounted in every data pod.
pub const PATH: &str = "/etc/mirror-operator/brief/brief.json";

/// What the pods of one epoch need to know. Immutable for the life of the epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Brief {
    /// Namespace of the Mirror.
    pub namespace: String,
    /// Name of the Mirror.
    pub mirror: String,
    /// UID of the Mirror.
    pub mirror_uid: String,
    /// The epoch that these pods make and then stream.
    pub epoch: u32,
    /// The epoch whose tables were live when this one was begun; 0 for the first load.
    pub previous_epoch: u32,
    /// Name of the MirrorResync.
    pub resync: String,
    /// UID of the MirrorResync.
    pub resync_uid: String,
    /// Base URL of the pipeline pod, such as `http://shop-e2.default.svc:8080`.
    pub pipeline_url: String,
    /// The source.
    pub source: Connection,
    /// The destination.
    pub destination: DestinationPeer,
    /// A publication of the user's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publication: Option<String>,
    /// A slot of the user's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_slot: Option<String>,
    /// The tables, in the order of the Mirror. A table's number is its index here.
    pub tables: Vec<Table>,
    /// Numbers of the tables that stay as the epoch before this one has them, who has the same numbers for them. Only with a [live handover](Self::is_live).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<u32>,
    /// Deleted rows.
    pub soft_delete: SoftDelete,
    /// Column with the time of a row's last change; empty for none.
    pub synced_at_column: String,
    /// Whether changes follow the load.
    #[serde(default)]
    pub mode: Mode,
    /// Whether rows are loaded. Otherwise the tables begin empty.
    #[serde(default = "loads")]
    pub load: bool,
    /// How the change stream passes from the epoch whose tables are live to this one.
    #[serde(default)]
    pub handover: Handover,
    /// Sequences.
    #[serde(default)]
    pub sequences: Sequences,
    /// The load.
    pub snapshot: Snapshot,
    /// The change stream.
    pub replication: Replication,
    /// Where its pods may run.
    #[serde(default)]
    pub pods: Placement,
    /// What is carried.
    pub carry: Carry,
    /// Whether the new tables are compared with the source.
    #[serde(default)]
    pub verification: Verification,
    /// Milliseconds that the swap waits for old snapshots at the destination.
    pub old_snapshot_wait_millis: u64,
    /// What happens after that.
    pub on_old_snapshot: OnOldSnapshot,
    /// Milliseconds that the old tables are kept after the swap.
    pub keep_old_millis: u64,
}

/// What a brief of an earlier version means.
fn loads() -> bool {
    true
}

/// Where tables are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DestinationPeer {
    /// A PostgreSQL database.
    Postgres(Connection),
    /// A ClickHouse server.
    #[serde(rename = "clickhouse")]
    ClickHouse(clickhouse::Peer),
    /// A dataset of BigQuery.
    #[serde(rename = "bigquery")]
    BigQuery(bigquery::Peer),
    /// A Snowflake account.
    Snowflake(snowflake::Peer),
}

impl DestinationPeer {
    /// Server, user and secrets, which all kinds have.
    pub fn connection(&self) -> &Connection {
        match self {
            Self::Postgres(connection) => connection,
            Self::ClickHouse(peer) => &peer.at,
            Self::BigQuery(peer) => &peer.at,
            Self::Snowflake(peer) => &peer.at,
        }
    }

    /// The files that a pod reads to reach it.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretFile> {
        let stage = match self {
            Self::Snowflake(peer) => peer.stage.as_ref().and_then(|stage| stage.credentials.as_ref()),
            _ => None,
        };
        self.connection().secrets().chain(stage)
    }

    /// The label without which a pod gets no identity from the cloud (Microsoft docs, "Microsoft Entra Workload ID", "Pod labels").
    pub fn identity_label(&self) -> Option<(&'static str, &'static str)> {
        let Self::Snowflake(snowflake::Peer { stage: Some(stage), .. }) = self else { return None };
        (stage.credentials.is_none() && stage.url.starts_with("azure://")).then_some(("azure.workload.identity/use", "true"))
    }

    /// The bytes of a chunk that serve this kind best, where the Mirror names none.
    pub fn best_chunk(&self) -> u64 {
        match self {
            Self::Postgres(_) | Self::ClickHouse(_) => LEAST_CHUNK,
            // Each chunk costs queries of 10 MB and a DML statement, of which a table takes 25 in 10 s (docs/bigquery.md, "Quotas").
            Self::BigQuery(_) => 256 << 20,
            // Snowflake wants files of 100 to 250 MB, packed (Snowflake docs, "Preparing your data files"); rows pack to a sixth or to a third.
            Self::Snowflake(_) => 1 << 30,
        }
    }
}

impl Brief {
    /// With what `spec` says now of its pods: what they ask for and where they run changes no data, and may be what is wrong with them.
    pub fn with_pods_of(mut self, spec: &MirrorSpec) -> Self {
        self.replication.resources = spec.replication.resources.clone();
        self.pods = spec.pods.clone();
        self
    }

    /// The files that its pods read to reach source and destination.
    pub fn secrets(&self) -> Vec<&SecretFile> {
        self.source.secrets().chain(self.destination.secrets()).collect()
    }

    /// The slot that this epoch streams: its own, unless the user has one for all epochs.
    pub fn slot(&self) -> String {
        self.own_slot.clone().unwrap_or_else(|| self.derived())
    }

    /// The publication that this epoch streams.
    pub fn publication(&self) -> String {
        self.publication.clone().unwrap_or_else(|| self.derived())
    }

    /// The name of whatever this epoch makes at the source.
    fn derived(&self) -> String {
        name::slot(&self.mirror, &self.mirror_uid, self.epoch)
    }

    /// Whether the epoch before this one streams on until the swap.
    pub fn is_live(&self) -> bool {
        self.handover == Handover::Live
    }

    /// Whether a table stays as it is.
    pub fn keeps(&self, number: u32) -> bool {
        self.kept.contains(&number)
    }

    /// Whether an epoch's slot, publication and sessions are of no more use from the moment that this epoch makes its own.
    pub fn replaces(&self, epoch: u32) -> bool {
        epoch <= self.epoch && !(self.is_live() && epoch == self.previous_epoch)
    }

    /// The `application_name` of a session of these pods: `mo <short mirror uid> e<epoch> <role>`, found again in `pg_stat_activity`.
    pub fn application_name(&self, role: &str) -> String {
        format!("mo {} e{} {role}", name::short_uid(&self.mirror_uid), self.epoch)
    }
}
