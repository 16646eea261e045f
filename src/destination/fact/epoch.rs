//! What the facts of an epoch come to.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{Chunk, EpochState, Error, LedgerTable, gone},
    Applied, Begun, Carried, Counted, Done, Drifted, Fact, Facts, Gap, Parked, Planned, Sealed, Snapshot, Swapped, Table, Verified,
};
use crate::{
    brief::Brief,
    postgres::Lsn,
    report::{Load, SwapReport, TableReport},
    verify::Measure,
};

/// The kinds that [`Facts::state`] needs.
pub(in crate::destination) const STATE: &[&str] = &[Begun::KIND, Snapshot::KIND, Table::KIND, Sealed::KIND, Swapped::KIND, Applied::KIND];
/// The kinds that [`Facts::tables`] needs.
pub(in crate::destination) const TABLES: &[&str] = &[Table::KIND, Measure::KIND, Sealed::KIND, Verified::KIND, Parked::KIND, Drifted::KIND];
/// The kinds that [`Facts::pending`] needs.
pub(in crate::destination) const PENDING: &[&str] = &[Table::KIND, Planned::KIND, Done::KIND];

impl Facts {
    /// Whether all of the epoch's tables are loaded and sealed.
    fn is_loaded(&self) -> Result<bool, Error> {
        let mut loaded = self.get::<Snapshot>(0)?.is_some();
        for (number, _, table) in self.all::<Table>()? {
            loaded &= self.is_sealed(number, table.generation)?;
        }
        Ok(loaded)
    }

    /// How far the epoch is; `None` if it has not begun. `idle` is how far the stream came since the checkpoint without a change, if that is kept elsewhere.
    pub(in crate::destination) fn state(&self, newest_epoch: u32, idle: Option<Lsn>) -> Result<Option<EpochState>, Error> {
        if self.get::<Begun>(0)?.is_none() {
            return Ok(None);
        }
        let snapshot = self.versioned::<Snapshot>(0)?;
        let start_lsn = snapshot.as_ref().map(|(_, s)| s.start_lsn).unwrap_or_default();
        Ok(Some(EpochState {
            may_return: false,
            handed_over: false,
            live_lsn: Lsn(0),
            caught_up: false,
            generation: snapshot.as_ref().map_or(0, |(version, _)| *version as u32),
            snapshot_lsn: snapshot.map(|(_, s)| s.lsn).unwrap_or_default(),
            start_lsn,
            applied_lsn: self.applied(idle)?.unwrap_or(start_lsn),
            loaded: self.is_loaded()?,
            swapped: self.get::<Swapped>(0)?.is_some(),
            newest_epoch,
        }))
    }

    /// The checkpoint, if there is one.
    pub(in crate::destination) fn applied(&self, idle: Option<Lsn>) -> Result<Option<Lsn>, Error> {
        Ok(self.get::<Applied>(0)?.map(|a| a.lsn).max(idle))
    }

    /// The tables of the epoch.
    pub(in crate::destination) fn tables(&self) -> Result<Vec<LedgerTable>, Error> {
        let table = |(number, _, table): (u32, u64, Table)| {
            Ok(LedgerTable {
                gate: table.gate,
                sealed: self.is_sealed(number, table.generation)?,
                measured: self.measured(number, table.generation)?,
                verified: self.verified(number, table.generation)?.is_some(),
                parked: self.get::<Parked>(number)?.map(|p| p.why),
                drift: self.get::<Drifted>(number)?.map(|d| d.drift).unwrap_or_default(),
                schema: table.schema,
            })
        };
        self.all::<Table>()?.into_iter().map(table).collect()
    }

    /// The chunks of a partition that are not loaded.
    pub(in crate::destination) fn pending_of(&self, partition: u32) -> Result<Vec<Chunk>, Error> {
        Ok(self.pending()?.into_iter().filter(|chunk| chunk.partition == partition).collect())
    }

    /// How far load and stream are. Errors: [`gone`] when the epoch has not begun.
    pub(in crate::destination) fn progress(&self, brief: &Brief) -> Result<(Load, Vec<TableReport>), Error> {
        self.get::<Begun>(0)?.ok_or_else(|| gone(brief))?;
        let mut load = Load::default();
        if let Some((generation, snapshot)) = self.versioned::<Snapshot>(0)? {
            let waiting: BTreeSet<u32> = self.pending()?.iter().map(|chunk| chunk.partition).collect();
            load = Load {
                generation: generation as u32,
                snapshot_lsn: snapshot.lsn,
                partitions: snapshot.partitions,
                partitions_loaded: snapshot.partitions - waiting.len() as u32,
                total_rows: snapshot.rows as i64,
                total_bytes: snapshot.bytes as i64,
                ..load
            };
        }
        let planned: BTreeMap<u32, u32> = self.all::<Planned>()?.into_iter().map(|(number, _, chunk)| (number, chunk.table)).collect();
        let tables = self.all::<Table>()?;
        let generations: BTreeMap<u32, u64> = tables.iter().map(|(number, _, t)| (*number, u64::from(t.generation))).collect();
        let mut rows: BTreeMap<u32, i64> = BTreeMap::new();
        for (number, version, done) in self.all::<Done>()? {
            let Some(table) = planned.get(&number).filter(|table| generations.get(table) == Some(&version)) else { continue };
            *rows.entry(*table).or_default() += done.rows as i64;
            load.rows += done.rows as i64;
            load.bytes += done.bytes as i64;
        }
        let report = |(number, _, table): (u32, u64, Table)| self.report(number, &table, rows.get(&number).copied().unwrap_or(0));
        Ok((load, tables.into_iter().map(report).collect::<Result<_, _>>()?))
    }

    fn report(&self, number: u32, table: &Table, rows_loaded: i64) -> Result<TableReport, Error> {
        let (carried, counted) = (self.get::<Carried>(number)?, self.get::<Counted>(number)?);
        let drift = self.get::<Drifted>(number)?.map(|d| d.drift.into_iter().collect::<Vec<_>>());
        let verified = self.verified(number, table.generation)?;
        let gap = self.get::<Gap>(number)?;
        let notes = [
            self.get::<Sealed>(number)?.and_then(|s| s.note),
            carried.as_ref().and_then(|c| c.note.clone()),
            verified.as_ref().and_then(|v| v.note.clone()),
            gap.map(|_| "the destination cannot exchange tables: during the swap there was none for a moment".into()),
        ];
        let notes: Vec<String> = notes.into_iter().flatten().collect();
        Ok(TableReport {
            source: table.schema.source.to_string(),
            destination: table.schema.destination.to_string(),
            rows_loaded,
            carried_deleted: carried.as_ref().map_or(0, |c| c.deleted),
            carried_missing: carried.as_ref().map_or(0, |c| c.missing),
            rows_verified: verified.map(|v| v.rows as i64),
            note: (!notes.is_empty()).then(|| notes.join("; ")),
            sealed: self.is_sealed(number, table.generation)?,
            parked: self.get::<Parked>(number)?.map(|p| p.why),
            drift: drift.filter(|d| !d.is_empty()).map(|d| format!("{}. Apply a MirrorResync", d.join("; "))),
            inserts: counted.as_ref().map_or(0, |c| c.inserts as i64),
            updates: counted.as_ref().map_or(0, |c| c.updates as i64),
            deletes: counted.as_ref().map_or(0, |c| c.deletes as i64),
        })
    }

    /// What the swap did; `None` before it.
    pub(in crate::destination) fn swap_report(&self) -> Result<Option<SwapReport>, Error> {
        Ok(self.get::<Swapped>(0)?.map(|s| SwapReport { at: s.at, lock_millis: s.millis, retries: s.retries }))
    }
}
