//! What was read and is not yet at the destination.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{
    Streamed,
    advise::StreamError,
    fold::{Change, Fold, WriteFirst},
};
use crate::{
    destination::{Applier, Error, Position},
    postgres::Lsn,
    table::TableSchema,
};

/// A batch that holds more is handed on, whether or not its transaction is complete. Counted as it came from the source, since a change that
/// was folded away may share a buffer with one that was not.
const PIECE_BYTES: usize = 16 * 1024 * 1024;
/// The same in rows: each cell costs memory of its own.
const PIECE_ROWS: usize = 50_000;

/// How long changes are gathered where somebody waits for them: few are, but a backlog is not applied one by one.
const SOON: Duration = Duration::from_millis(20);

/// Changes since the last commit.
pub(super) struct Batch {
    folds: BTreeMap<u32, Fold>,
    /// In the folds.
    rows: usize,
    bytes: usize,
    /// Since the last commit.
    changes: usize,
    since: Option<Instant>,
    full_at: usize,
    interval: Duration,
}

impl Batch {
    pub fn new(full_at: u32, interval: Duration) -> Self {
        Self { folds: BTreeMap::new(), rows: 0, bytes: 0, changes: 0, since: None, full_at: full_at as usize, interval }
    }

    /// From now on somebody waits for each change.
    pub fn hasten(&mut self) {
        self.interval = self.interval.min(SOON);
    }

    /// Whether nothing is to be committed.
    pub fn is_empty(&self) -> bool {
        self.since.is_none()
    }

    /// When it is to be committed at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + self.interval)
    }

    /// Whether it is to be committed at the next transaction's end.
    pub fn is_due(&self) -> bool {
        self.changes >= self.full_at || self.deadline().is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Something other than rows is to be committed.
    pub fn touch(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Adds a change that came in so many bytes, made at `position`.
    pub async fn push(
        &mut self,
        table: &TableSchema,
        key: &[usize],
        change: Change,
        bytes: usize,
        to: &mut dyn Applier,
        position: Position,
    ) -> Streamed<()> {
        let at = position.commit;
        let fold = self.folds.entry(table.number).or_insert_with(|| Fold::new(key));
        fold.at(position);
        let before = fold.len();
        if let Err(WriteFirst(change)) = fold.push(change) {
            self.rows -= before;
            write(table, fold, to, at).await?;
            let again = fold.push(change);
            self.rows += fold.len();
            again.map_err(|_| StreamError::Nonsense { at, what: format!("a change of {}", table.source) })?;
        } else {
            self.rows += fold.len() - before;
        }
        self.bytes += bytes;
        self.changes += 1;
        self.touch();
        Ok(())
    }

    /// Whether it must be handed on now.
    pub fn is_large(&self) -> bool {
        self.bytes >= PIECE_BYTES || self.rows >= PIECE_ROWS
    }

    /// Hands everything on. It becomes visible with the commit.
    pub async fn write(&mut self, tables: &BTreeMap<u32, TableSchema>, to: &mut dyn Applier, at: Lsn) -> Streamed<()> {
        for (number, fold) in &mut self.folds {
            if let Some(table) = tables.get(number).filter(|_| !fold.is_empty()) {
                write(table, fold, to, at).await?;
            }
        }
        // A table whose columns change gets a new fold; its key's places may be others.
        self.folds.clear();
        (self.rows, self.bytes) = (0, 0);
        Ok(())
    }

    /// Everything is at the destination.
    pub fn committed(&mut self) {
        (self.changes, self.since) = (0, None);
    }
}

async fn write(table: &TableSchema, fold: &mut Fold, to: &mut dyn Applier, at: Lsn) -> Streamed<()> {
    let (changes, positions, counts) = fold.take();
    of_table(to.write(table, changes, positions, counts).await, table, at)
}

/// What the destination will refuse of one table again is that table's affair.
pub(super) fn of_table<T>(outcome: Result<T, Error>, table: &TableSchema, at: Lsn) -> Streamed<T> {
    match outcome {
        Ok(value) => Ok(value),
        Err(Error::Permanent(failure)) => Err(parked(table, at, &failure.message)),
        Err(error) => Err(error.into()),
    }
}

/// A table that cannot be kept up, in words.
pub(super) fn parked(table: &TableSchema, at: Lsn, cause: &str) -> StreamError {
    let why = format!(
        "{}: {cause} (in the transactions up to {at}). Its changes are passed over from here on; apply a MirrorResync",
        table.source
    );
    StreamError::Park { table: table.number, why }
}
