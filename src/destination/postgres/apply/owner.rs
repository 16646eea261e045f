//! Who may apply: of all processes that opened the applier of an epoch, the last one.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use tokio_postgres::{Client, SimpleQueryMessage};

use super::refusal::meaning;
use crate::{
    brief::Brief,
    destination::{Error, permanent},
    postgres::{Lsn, literal},
};

/// A process, as the ledger knows it. One for each process; it opens appliers one after the other.
#[derive(Debug)]
pub struct Owner {
    name: String,
    opened: AtomicU32,
    /// Whether an applier was once this process' own.
    owned: AtomicBool,
}

impl Default for Owner {
    fn default() -> Self {
        // The standard library's hasher is seeded from the system's random numbers.
        let random = || RandomState::new().build_hasher().finish();
        Self { name: format!("{:016x}{:016x}", random(), random()), opened: AtomicU32::new(0), owned: AtomicBool::new(false) }
    }
}

impl Owner {
    /// Makes the session's applier the one that may move the checkpoint, and ends the sessions of those before it. Returns its token and the checkpoint.
    /// `may`: condition of the epoch's row that must hold.
    pub(super) async fn take_over(&self, client: &Client, epoch: &str, may: &str, role: &str) -> Result<(String, Lsn), Error> {
        let doing = "opening the change stream";
        let turn = self.opened.fetch_add(1, Ordering::SeqCst);
        let token = format!("{}/{turn}", self.name);
        // Whoever has owned the stream once takes it back from nobody but himself.
        let owned = self.owned.load(Ordering::SeqCst);
        let mine = if owned { format!("split_part(applier, '/', 1) = {}", literal(&self.name)) } else { "true".into() };
        let end_others = format!(
            "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a, _mirror_operator.epoch WHERE {epoch} AND {mine} \
             AND a.application_name = {} AND a.datname = current_database() AND a.usename = current_user AND a.pid <> pg_backend_pid()",
            literal(role)
        );
        client.batch_execute(&end_others).await.map_err(|e| meaning(&e, doing))?;
        let claim = format!(
            "UPDATE _mirror_operator.epoch SET applier = {} WHERE {epoch} AND {mine} AND {may} \
             RETURNING coalesce(applied_lsn, start_lsn)",
            literal(&token)
        );
        let answers = client.simple_query(&claim).await.map_err(|e| meaning(&e, doing))?;
        match first_cell(&answers) {
            Some(position) => {
                self.owned.store(true, Ordering::SeqCst);
                let position = position.parse().map_err(|e: String| permanent("LedgerUnreadable", e))?;
                Ok((token, position))
            }
            None => Err(refused(client, epoch, owned).await),
        }
    }
}

async fn refused(client: &Client, epoch: &str, owned: bool) -> Error {
    let sql = format!("SELECT swapped_at IS NOT NULL FROM _mirror_operator.epoch WHERE {epoch}");
    match client.simple_query(&sql).await {
        Err(error) => meaning(&error, "opening the change stream"),
        Ok(answers) => match first_cell(&answers).as_deref() {
            None => permanent("EpochGone", "the destination's ledger does not know this epoch: it was removed. Start a new resync"),
            Some("t") if owned => Error::Displaced,
            Some("t") => permanent("LedgerUnreadable", "the destination's ledger has no position to stream from. Start a new resync"),
            Some(_) => Error::Transient("the tables are not swapped yet".into()),
        },
    }
}

/// Why the checkpoint did not move.
pub(super) async fn why_not(client: &Client, brief: &Brief, epoch: &str, token: &str) -> Error {
    let sql = format!(
        "SELECT (SELECT m.epoch FROM _mirror_operator.mirror m WHERE m.mirror = {}::uuid), \
         (SELECT applier = {} FROM _mirror_operator.epoch WHERE {epoch})",
        literal(&brief.mirror_uid),
        literal(token)
    );
    let answers = match client.simple_query(&sql).await {
        Err(error) => return meaning(&error, "reading the ledger"),
        Ok(answers) => answers,
    };
    let row = answers.iter().find_map(|m| if let SimpleQueryMessage::Row(row) = m { Some(row) } else { None });
    let newest = row.and_then(|r| r.get(0)).and_then(|e| e.parse().ok());
    match (newest, row.and_then(|r| r.get(1))) {
        (Some(newest), _) if newest > brief.epoch => Error::Superseded(newest),
        (Some(_), Some("t")) => Error::Transient("the checkpoint has moved meanwhile; going on from there".into()),
        (Some(_), Some(_)) => Error::Displaced,
        _ => permanent("EpochGone", "the destination's ledger does not know this epoch: it was removed. Start a new resync"),
    }
}

fn first_cell(answers: &[SimpleQueryMessage]) -> Option<String> {
    answers.iter().find_map(|m| if let SimpleQueryMessage::Row(row) = m { row.get(0).map(str::to_string) } else { None })
}
