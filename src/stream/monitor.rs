//! Watches slot, lag and tables with a session of its own, however slow the stream is. I/O.

use std::time::Duration;

use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};
use tokio_postgres::{Client, types::PgLsn};

use super::{Drift, Health, lag};
use crate::{
    brief::Brief,
    destination::Destination,
    postgres::{self, Lsn},
    source::{present, slot},
};

const INTERVAL: Duration = Duration::from_secs(1);
/// How often the tables and their publication are looked at.
const TABLES_INTERVAL: Duration = Duration::from_secs(10);
/// A source that does not answer must not be taken for one that is idle.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the source says.
struct Seen {
    end_of_wal: Lsn,
    /// Why the slot is lost, if so.
    lost: Option<String>,
}

/// Keeps `health` and `found` up to date. Never ends.
pub(super) async fn watch(brief: &Brief, destination: &dyn Destination, health: &watch::Sender<Health>, found: &watch::Sender<Drift>) {
    let mut client = None;
    let mut progress = Progress { applied: Lsn(0), target: Lsn(u64::MAX), good: Instant::now() };
    let mut next_look_at_tables = Instant::now();
    loop {
        if let Some(seen) = patiently(look(brief, &mut client)).await {
            health.send_modify(|h| progress.note(&seen, h));
        } else {
            client = None;
        }
        if let Some(session) = client.as_ref().filter(|_| next_look_at_tables <= Instant::now()) {
            match patiently(look_at_tables(brief, destination, session)).await {
                Some(drift) => drop(found.send_if_modified(|known| std::mem::replace(known, drift.clone()) != drift)),
                None => client = None,
            }
            next_look_at_tables = Instant::now() + TABLES_INTERVAL;
        }
        health.send_modify(|h| {
            h.stream.idle_seconds = progress.good.elapsed().as_secs();
            h.stream.lag_seconds = lag::seconds(h.oldest, h.stream.connected, Timestamp::now());
        });
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What was seen, unless that failed or took too long.
async fn patiently<T>(look: impl Future<Output = Result<T, String>>) -> Option<T> {
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(seen)) => Some(seen),
        Ok(Err(cause)) => {
            tracing::debug!("cannot see slot and tables: {cause}");
            None
        }
        Err(_) => None,
    }
}

async fn look(brief: &Brief, client: &mut Option<Client>) -> Result<Seen, String> {
    let session = match client.take() {
        Some(session) if !session.is_closed() => session,
        _ => postgres::connect(&brief.source, &brief.application_name("monitor")).await.map_err(|e| e.to_string())?,
    };
    let session = client.insert(session);
    let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END";
    let row = session.query_one(sql, &[]).await.map_err(|e| postgres::connect::words(&e))?;
    let lost = slot::standing(session, &brief.slot()).await.map_err(|e| e.to_string())?.lost;
    Ok(Seen { end_of_wal: Lsn(row.get::<_, PgLsn>(0).into()), lost })
}

async fn look_at_tables(brief: &Brief, destination: &dyn Destination, session: &Client) -> Result<Drift, String> {
    let tables: Vec<_> = destination.tables().await.map_err(|e| e.to_string())?.into_iter().map(|t| t.schema).collect();
    present::drift(session, brief, &tables).await.map_err(|e| e.to_string())
}

/// When things were last seen to go well: the checkpoint moved, or it had reached all that there was a look ago.
struct Progress {
    applied: Lsn,
    target: Lsn,
    good: Instant,
}

impl Progress {
    fn note(&mut self, seen: &Seen, health: &mut Health) {
        let applied = health.stream.applied_lsn;
        if applied > self.applied || applied >= self.target {
            self.good = Instant::now();
        }
        self.applied = applied;
        self.target = seen.end_of_wal;
        let behind = seen.end_of_wal.0.saturating_sub(applied.0);
        health.stream.lag_bytes = (applied > Lsn(0)).then(|| i64::try_from(behind).unwrap_or(i64::MAX));
        // The stream knows of losses that the slot does not show, and says so until it is connected again.
        let told = health.failure.as_ref().is_some_and(|f| f.reason == "SlotLost");
        health.stream.slot_lost = seen.lost.clone().or(health.stream.slot_lost.take().filter(|_| told));
    }
}
