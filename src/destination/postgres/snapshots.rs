//! Readers whose snapshot is older than the new tables' rows: they would find the swapped-in tables empty.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::error::{At, permanent};
use crate::{api::resync::OnOldSnapshot, brief::Brief, destination::Error, name};

/// How often the sessions are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A transaction that may hold an old snapshot: who, and the horizon that it keeps as long as it keeps the snapshot.
#[derive(Clone, Debug, PartialEq)]
struct Holder {
    pid: i32,
    /// `None` where the role may not see it.
    begun: Option<String>,
    xmin: String,
    name: String,
}

/// Waits, bounded, until every transaction of this database that may have taken its snapshot before now is over, as CREATE INDEX CONCURRENTLY does.
/// Returns what people should know if the wait was given up.
///
/// A transaction that shows another horizon than at first has taken a new snapshot since, so it sees the rows.
pub(super) async fn wait(client: &Client, brief: &Brief) -> Result<Option<String>, Error> {
    // A transaction number of our own, used up: whatever snapshot is taken from now on has a later end, and shows all that was committed.
    client.batch_execute("SELECT pg_current_xact_id()").await.at("waiting for old snapshots")?;
    let mut old = holders(client, brief).await?;
    let end = Instant::now() + Duration::from_millis(brief.old_snapshot_wait_millis);
    while !old.is_empty() {
        let who: Vec<String> = old.iter().map(|h| format!("{} ({})", h.pid, h.name)).collect();
        let who = who.join(", ");
        if Instant::now() >= end {
            let waited = format!("waited {} ms for sessions with older snapshots, pid {who}", brief.old_snapshot_wait_millis);
            return match brief.on_old_snapshot {
                OnOldSnapshot::Proceed => Ok(Some(format!("{waited}; they may see empty tables until their transactions end"))),
                OnOldSnapshot::Fail => Err(permanent(
                    "OldSnapshot",
                    format!(
                        "{waited}: they would see empty tables. End these transactions, or set swap.onOldSnapshot to Proceed, and resync again"
                    ),
                )),
            };
        }
        tracing::debug!(%who, "waiting for transactions with old snapshots");
        sleep(LOOK).await;
        let now = holders(client, brief).await?;
        old.retain(|holder| now.contains(holder));
    }
    Ok(None)
}

/// Sessions of this database with a snapshot. Pid, application name and horizon are shown to every role, the rest only to some.
async fn holders(client: &Client, brief: &Brief) -> Result<Vec<Holder>, Error> {
    let sql = "SELECT pid, xact_start::text, backend_xmin::text, coalesce(nullif(application_name, ''), 'no name') FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL
                 AND coalesce(backend_type, 'client backend') NOT IN ('autovacuum worker', 'walsender', 'parallel worker')
                 AND application_name NOT LIKE $1";
    let own = format!("mo {} e%", name::short_uid(&brief.mirror_uid));
    let rows = client.query(sql, &[&own]).await.at("waiting for old snapshots")?;
    Ok(rows.iter().map(|r| Holder { pid: r.get(0), begun: r.get(1), xmin: r.get(2), name: r.get(3) }).collect())
}
