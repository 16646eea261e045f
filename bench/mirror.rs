//! A mirror without a cluster: the same processes as the pods run, on this machine.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use mirror_operator::{
    api::{mirror::SoftDelete, resync::OnOldSnapshot},
    brief::{Brief, DestinationPeer},
    workload::KEEPS_MEMORY,
};
use serde_json::json;
use tokio_postgres::Client;

use crate::{
    Common,
    process::{self, Running},
    server::{ask, until},
};

const UID: &str = "bbbbbbbb-0000-4000-8000-000000000000";
const LIMIT: Duration = Duration::from_secs(300);

/// One epoch of a mirror of public.firenibble.
pub struct Epoch {
    binary: PathBuf,
    brief: PathBuf,
    log: PathBuf,
}

impl Epoch {
    /// Writes its brief. `more` is the Mirror's `snapshot`.
    pub fn new(common: &Common, source: &str, destination: DestinationPeer, more: serde_json::Value) -> Self {
        let own = |what: &str| format!("own_{what}");
        // At ClickHouse a schema is a database.
        let schema = match &destination {
            DestinationPeer::ClickHouse(peer) => peer.at.database.clone(),
            DestinationPeer::Snowflake(peer) => peer.schema.clone(),
            DestinationPeer::BigQuery(peer) => peer.at.database.clone(),
            _ => "public".into(),
        };
        let table = json!({ "source": "public.firenibble", "destination": format!("{schema}.firenibble") });
        let brief = Brief {
            namespace: "bench".into(),
            mirror: "bench".into(),
            mirror_uid: UID.into(),
            epoch: 1,
            previous_epoch: 0,
            resync: "bench".into(),
            resync_uid: UID.replace('b', "c"),
            pipeline_url: "http://127.0.0.1:8080".into(),
            source: common.source.connection(source),
            destination,
            publication: None,
            own_slot: None,
            tables: serde_json::from_value(json!([table])).expect("a table"),
            soft_delete: SoftDelete { column: own("deleted"), ..SoftDelete::default() },
            synced_at_column: own("synced_at"),
            snapshot: serde_json::from_value(more).expect("a snapshot"),
            replication: Default::default(),
            pods: Default::default(),
            kept: Vec::new(),
            handover: Default::default(),
            sequences: Default::default(),
            mode: Default::default(),
            load: true,
            carry: Default::default(),
            verification: Default::default(),
            old_snapshot_wait_millis: 0,
            on_old_snapshot: OnOldSnapshot::Proceed,
            keep_old_millis: 0,
        };
        let path = std::env::temp_dir().join(format!("mirror-bench-{}.json", std::process::id()));
        std::fs::write(&path, serde_json::to_string(&brief).expect("a brief")).expect("the temporary directory can be written");
        Self { binary: common.binary.clone(), brief: path, log: common.json.with_extension("log") }
    }

    fn command(&self, part: &str) -> Command {
        let mut command = Command::new(&self.binary);
        let log = std::fs::File::options().create(true).append(true).open(&self.log).expect("the log can be written");
        command.arg(part).arg("--brief").arg(&self.brief).args(["--result", "/dev/null"]).stdout(Stdio::null()).stderr(log);
        command
    }

    pub fn pipeline(&self) -> Running {
        Running::start(&mut self.command("pipeline"))
    }

    /// Runs the workers of all partitions to their end.
    pub async fn workers(&self, partitions: u32) {
        let all = (0..partitions).map(|partition| {
            let mut command = self.command("snapshot");
            let (name, value) = KEEPS_MEMORY;
            command.env("JOB_COMPLETION_INDEX", partition.to_string()).env(name, value);
            process::run(command)
        });
        futures::future::join_all(all).await;
    }

    pub async fn swap(&self) {
        process::run(self.command("swap")).await;
    }
}

/// Awaits the plan; how many partitions it has.
pub async fn planned(ledger: &Client) -> u32 {
    // The ledger's table does not exist at first.
    until("the plan", LIMIT, async || {
        let there = "SELECT to_regclass('_mirror_operator.epoch') IS NOT NULL";
        ask(ledger, there).await == "t" && ask(ledger, "SELECT count(*) FROM _mirror_operator.epoch WHERE generation > 0").await == "1"
    })
    .await;
    offered().await;
    ask(ledger, "SELECT partitions FROM _mirror_operator.epoch").await.parse().expect("a number")
}

/// Awaits that workers can have the snapshot.
pub async fn offered() {
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    until("the snapshot is offered", LIMIT, async || {
        http.get("http://127.0.0.1:8080/snapshot").send().await.is_ok_and(|answer| answer.status().is_success())
    })
    .await;
}

/// Awaits that the checkpoint reaches a position of the source.
pub async fn applied(ledger: &Client, position: &str) {
    let sql = format!("SELECT applied_lsn >= '{position}' FROM _mirror_operator.epoch");
    until("the checkpoint", LIMIT, async || ask(ledger, &sql).await == "t").await;
}
