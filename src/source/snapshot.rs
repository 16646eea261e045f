//! Keeping the exported snapshot alive, and finding it again.
//!
//! A snapshot lives as long as any session that holds it. Every holder exports it again under a name of its own and publishes that name, with the
//! snapshot's position, as its `application_name`; so it is found in `pg_stat_activity` by a pipeline pod that was restarted.

use tokio::task::JoinHandle;
use tokio_postgres::{Client, error::SqlState};

use super::{Error, slot};
use crate::{
    brief::Brief,
    name,
    postgres::{Lsn, connect, literal, wire::ReplicationSession},
};

/// A session that holds a snapshot and offers it under a name of its own.
pub struct Holder {
    client: Client,
    end: JoinHandle<()>,
    name: String,
    lsn: Lsn,
}

/// A snapshot just exported, held by the session that made its slot until that session is dropped.
pub struct Exported {
    /// The slot's session.
    pub session: ReplicationSession,
    /// Name to import.
    pub name: String,
    /// Its consistent point.
    pub lsn: Lsn,
}

impl Holder {
    /// Imports the snapshot `name` in a session of its own and offers it again. Errors: [`Error::SnapshotGone`].
    pub async fn import(brief: &Brief, name: &str, lsn: Lsn) -> Result<Self, Error> {
        let (client, end) = connect::connect_watched(&brief.source, &brief.application_name("holder")).await?;
        begin(&client, name, lsn).await?;
        let doing = || Error::query(format!("holding the snapshot at {lsn}"));
        let row = client.query_one("SELECT pg_export_snapshot()", &[]).await.map_err(doing())?;
        let own: String = row.get(0);
        let published = format!("SET application_name = {}", literal(&application_name(brief, lsn, &own)));
        client.batch_execute(&published).await.map_err(doing())?;
        Ok(Self { client, end, name: own, lsn })
    }

    /// The name to import from this session.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The snapshot's consistent point.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The session: queries see the snapshot.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Runs queries of the session, then gives back the locks that they took (PostgreSQL docs, "Explicit Locking"). Kept until the load ends, those would
    /// make whoever changes a table wait, and behind him whoever reads it. A query that fails must not end the transaction, which would end the snapshot: none is
    /// run but through this. Errors: those of the queries; [`Error::SnapshotGone`] if the transaction has failed before.
    pub async fn look<T>(&self, queries: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let doing = || Error::query(format!("looking at the snapshot at {}", self.lsn));
        self.client.batch_execute("SAVEPOINT look").await.map_err(|cause| match cause.code() {
            Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => Error::SnapshotGone { name: self.name.clone(), lsn: self.lsn },
            _ => doing()(cause),
        })?;
        let found = queries.await;
        let ended = self.client.batch_execute("ROLLBACK TO look; RELEASE look").await.map_err(doing());
        found.and_then(|found| ended.map(|()| found))
    }

    /// Whether the session is known to have ended.
    pub fn has_ended(&self) -> bool {
        self.client.is_closed()
    }

    /// Waits until the session ends, whoever ends it. May be called again.
    pub async fn ended(&mut self) {
        if !self.end.is_finished() {
            // An aborted driver has ended too.
            let _ = (&mut self.end).await;
        }
    }
}

/// Begins a read-only transaction that sees exactly the snapshot. Errors: [`Error::SnapshotGone`].
pub async fn begin(client: &Client, name: &str, lsn: Lsn) -> Result<(), Error> {
    client.batch_execute(&beginning(name)).await.map_err(|cause| match cause.code().is_some_and(|c| is_gone(c.code())) {
        true => Error::SnapshotGone { name: name.into(), lsn },
        false => Error::Query { doing: format!("importing the snapshot at {lsn}"), cause },
    })
}

/// The statements that begin such a transaction.
pub(super) fn beginning(name: &str) -> String {
    // Row security must fail rather than hide rows.
    format!("SET row_security = off; BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT {}", literal(name))
}

/// Whether they are refused with this SQLSTATE because of an unknown name, or one whose session has just ended.
pub(super) fn is_gone(sqlstate: &str) -> bool {
    matches!(sqlstate, "22023" | "55000" | "42704")
}

/// Names under which living sessions of this epoch hold the snapshot at `lsn`.
pub async fn living(client: &Client, brief: &Brief, lsn: Lsn) -> Result<Vec<String>, Error> {
    let query = "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%' \
                 AND application_name LIKE 'mo %' ORDER BY xact_start DESC";
    let rows = client.query(query, &[]).await.map_err(Error::query("looking for sessions that hold the snapshot"))?;
    Ok(rows.iter().filter_map(|row| held_name(brief, lsn, row.get(0)).map(str::to_string)).collect())
}

/// Holds the snapshot at `lsn` through any session that still does. `None` if none does.
pub async fn adopt(client: &Client, brief: &Brief, lsn: Lsn) -> Result<Option<Holder>, Error> {
    for name in living(client, brief, lsn).await? {
        match Holder::import(brief, &name, lsn).await {
            Ok(holder) => return Ok(Some(holder)),
            // It ended between being listed and being imported.
            Err(Error::SnapshotGone { .. }) => continue,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Creates the epoch's slot and exports its snapshot.
pub async fn create_slot(brief: &Brief) -> Result<Exported, Error> {
    export(brief, &brief.slot(), false).await
}

/// Exports a new snapshot with its exact position, which only the creation of a slot gives. The slot ends with the session; that of a pod that was killed
/// while it waited for the slot may not know of it yet, and is ended.
pub async fn export_again(brief: &Brief, generation: u32) -> Result<Exported, Error> {
    let slot = format!("mo_{}_e{}_s{generation}", name::short_uid(&brief.mirror_uid), brief.epoch);
    let client = connect::connect(&brief.source, &slot::housekeeping(brief)).await?;
    slot::drop_slot(&client, &slot).await?;
    export(brief, &slot, true).await
}

async fn export(brief: &Brief, slot: &str, temporary: bool) -> Result<Exported, Error> {
    let mut session = ReplicationSession::connect(&brief.source, &exporter(brief)).await?;
    let made = session.create_slot(slot, temporary).await?;
    Ok(Exported { session, name: made.snapshot, lsn: made.consistent_point })
}

/// The `application_name` of the session that creates slots.
pub fn exporter(brief: &Brief) -> String {
    brief.application_name("slot")
}

fn application_name(brief: &Brief, lsn: Lsn, name: &str) -> String {
    brief.application_name(&format!("s{lsn} {name}"))
}

/// The position tells snapshots apart, not the generation: a session left over from an attempt whose outcome never reached the ledger holds another one.
fn held_name<'a>(brief: &Brief, lsn: Lsn, application: &'a str) -> Option<&'a str> {
    application.strip_prefix(&application_name(brief, lsn, "")).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{mirror, peer::TlsMode, resync},
        brief::DestinationPeer,
        postgres::Connection,
    };

    fn brief(epoch: u32) -> Brief {
        let nowhere = Connection {
            peer: "p".into(),
            host: "h".into(),
            port: 1,
            database: "d".into(),
            user: "u".into(),
            password: None,
            tls: TlsMode::Disable,
            ca: None,
            client_certificate: None,
            connect_timeout_millis: 1,
        };
        Brief {
            namespace: "n".into(),
            mirror: "shop".into(),
            mirror_uid: "0a1b2c3d-0000-4000-8000-000000000000".into(),
            epoch,
            previous_epoch: 0,
            resync: "r".into(),
            resync_uid: "0a1b2c3d-0000-4000-8000-000000000001".into(),
            pipeline_url: String::new(),
            source: nowhere.clone(),
            destination: DestinationPeer::Postgres(nowhere),
            publication: None,
            own_slot: None,
            tables: Vec::new(),
            kept: Vec::new(),
            soft_delete: mirror::SoftDelete::default(),
            synced_at_column: String::new(),
            snapshot: mirror::Snapshot::default(),
            replication: mirror::Replication::default(),
            pods: Default::default(),
            handover: Default::default(),
            sequences: Default::default(),
            mode: Default::default(),
            load: true,
            carry: resync::Carry::default(),
            verification: Default::default(),
            old_snapshot_wait_millis: 0,
            on_old_snapshot: resync::OnOldSnapshot::Proceed,
            keep_old_millis: 0,
        }
    }

    #[test]
    fn a_published_name_fits_and_is_read_back_for_its_position_only() {
        let ours = brief(9_999);
        let (lsn, name) = (Lsn(0xFFFF_FFFF_FFFF_FFFF), "0000ABCD-0000ABCD-1");
        let published = application_name(&ours, lsn, name);
        assert!(published.len() <= 63, "{published} is cut by the server");
        assert_eq!(held_name(&ours, lsn, &published), Some(name));
        assert_eq!(held_name(&ours, Lsn(1), &published), None);
        assert_eq!(held_name(&brief(999), lsn, &published), None);
        assert_eq!(held_name(&ours, lsn, &ours.application_name("reader")), None);
    }
}
