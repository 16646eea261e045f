//! The stage Loading: the snapshot is held for workers, found again when a session was lost, and replaced when all were.

use std::{collections::HashSet, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{board::Board, prepare::saying_blockers};
use crate::{
    brief::Brief,
    destination::{Boundary, Destination, EpochState, Error as DestinationError},
    postgres::{connect, wire::ReplicationSession},
    report::HeldSnapshot,
    source::{
        Error, catalog, copy, slot,
        snapshot::{self, Exported, Holder},
    },
    table::TableSchema,
    trouble::Trouble,
};

/// How often progress is read.
const TICK: Duration = Duration::from_millis(250);
/// How often tables are looked at for having been rewritten.
const LOOK: Duration = Duration::from_secs(1);

/// The snapshot as this pod holds it. Outlives errors of the destination: what is held is only let go once it is of no use.
#[derive(Default)]
pub struct Hold {
    holder: Option<Holder>,
    /// The slot's own session and the name under which it exported the snapshot.
    slot: Option<(ReplicationSession, String)>,
    generation: u32,
}

impl Hold {
    /// Keeps the first snapshot, and the slot's own session if there is one to keep.
    pub fn keep(&mut self, exported: Option<Exported>, holder: Holder, generation: u32) {
        *self = Self { holder: Some(holder), slot: exported.map(|e| (e.session, e.name)), generation };
    }

    /// Lets everything go.
    pub fn release(&mut self) {
        *self = Self::default();
    }

    /// Whether a living session holds the snapshot that the ledger names.
    fn holds(&self, state: &EpochState) -> bool {
        self.generation == state.generation && self.holder.as_ref().is_some_and(|h| h.lsn() == state.snapshot_lsn && !h.has_ended())
    }

    /// Holds the snapshot again through any session that still does: the slot's own, or a worker's. False if none does.
    async fn find(&mut self, brief: &Brief, state: &EpochState) -> Result<bool, Error> {
        self.holder = None;
        if let Some((_, name)) = self.slot.as_ref().filter(|_| self.generation == state.generation) {
            match Holder::import(brief, name, state.snapshot_lsn).await {
                Ok(holder) => self.holder = Some(holder),
                Err(Error::SnapshotGone { .. }) => self.slot = None,
                Err(error) => return Err(error),
            }
        }
        if self.holder.is_none() {
            let client = connect::connect(&brief.source, &slot::housekeeping(brief)).await?;
            self.holder = snapshot::adopt(&client, brief, state.snapshot_lsn).await?;
        }
        self.generation = state.generation;
        Ok(self.holder.is_some())
    }

    fn offer(&self) -> Option<HeldSnapshot> {
        let holder = self.holder.as_ref()?;
        Some(HeldSnapshot { generation: self.generation, name: holder.name().into(), lsn: holder.lsn() })
    }
}

/// Holds the snapshot until every table is sealed.
pub async fn load(
    brief: &Brief,
    destination: &dyn Destination,
    board: &Board,
    hold: &mut Hold,
    mut state: EpochState,
) -> Result<(), Trouble> {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = Instant::now() + LOOK;
    loop {
        if !hold.holds(&state) {
            board.offer(None);
            if !hold.find(brief, &state).await? {
                board.waiting("the snapshot was lost with every session that held it; exporting a new one");
                renew(brief, destination, board, hold, &state).await?;
            }
            board.went_on();
        }
        if board.snapshot().is_none() {
            board.offer(hold.offer());
        }
        let Some(holder) = &mut hold.holder else { continue };
        tokio::select! {
            () = holder.ended() => {
                tracing::warn!(lsn = %holder.lsn(), "the session that held the snapshot ended");
                continue;
            }
            _ = tick.tick() => {}
        }
        match news(destination, board).await {
            Ok(Some(now)) if now.newest_epoch > brief.epoch => return Err(DestinationError::Superseded(now.newest_epoch).into()),
            Ok(Some(now)) if now.loaded => return Ok(()),
            Ok(Some(now)) => state = now,
            Ok(None) => return Err(Trouble::Waiting("the ledger no longer has this epoch".into())),
            // The snapshot is dear and the destination may be back soon: hold on.
            Err(DestinationError::Transient(why)) => board.waiting(format!("the destination does not answer: {why}")),
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= look {
            look = Instant::now() + LOOK;
            // The view of slots shows the present, whatever snapshot the session has.
            match holder.look(slot::refuse_lost(holder.client(), brief)).await {
                Err(Error::SnapshotGone { .. }) => {
                    hold.holder = None;
                    continue;
                }
                looked => verdict(looked)?,
            }
            if rewritten(destination, holder).await {
                board.waiting("a table was rewritten or truncated after the snapshot; exporting a new one");
                board.offer(None);
                renew(brief, destination, board, hold, &state).await?;
                board.offer(hold.offer());
                board.went_on();
            }
        }
    }
}

/// Only a slot that is seen to be lost ends an epoch; a source that cannot be asked may be back soon.
pub(super) fn verdict(looked: Result<(), Error>) -> Result<(), Trouble> {
    match looked {
        Err(error) if error.is_permanent() => Err(error.into()),
        _ => Ok(()),
    }
}

async fn news(destination: &dyn Destination, board: &Board) -> Result<Option<EpochState>, DestinationError> {
    let state = destination.state().await?;
    board.refresh(destination).await?;
    board.went_on();
    Ok(state)
}

/// Whether a table that is still being loaded was rewritten since the snapshot.
async fn rewritten(destination: &dyn Destination, holder: &Holder) -> bool {
    // Either side may be away for a moment; it is looked at again soon, and no worker keeps a chunk of a rewritten table.
    let Ok(tables) = destination.tables().await else { return false };
    let unsealed: Vec<TableSchema> = tables.into_iter().filter(|t| !t.sealed).map(|t| t.schema).collect();
    let Ok(relations) = holder.look(catalog::relations(holder.client(), &unsealed)).await else { return false };
    let relations: Vec<u32> = relations.iter().map(|r| r.oid).collect();
    holder.look(copy::rewritten(holder.client(), &relations)).await.unwrap_or(false)
}

/// Exports a new snapshot with its exact position. Tables that are not complete begin again on it; the others, and the slot, stay.
async fn renew(brief: &Brief, destination: &dyn Destination, board: &Board, hold: &mut Hold, state: &EpochState) -> Result<(), Trouble> {
    let generation = state.generation + 1;
    hold.release();
    let exported = saying_blockers(brief, board, snapshot::export_again(brief, generation)).await?;
    let holder = Holder::import(brief, &exported.name, exported.lsn).await?;
    // The temporary slot would keep the source's log; the snapshot now lives without it.
    drop(exported.session);
    same_tables(brief, destination, &holder).await?;
    destination.renew_snapshot(Boundary { generation, lsn: exported.lsn }).await?;
    same_partitions(destination, &holder).await?;
    tracing::info!(generation, lsn = %exported.lsn, "the snapshot was replaced");
    *hold = Hold { holder: Some(holder), slot: None, generation };
    Ok(())
}

/// The shadows and the plan were made for the tables of the first snapshot: those must still be as they were.
async fn same_tables(brief: &Brief, destination: &dyn Destination, holder: &Holder) -> Result<(), Trouble> {
    let now = holder.look(catalog::read(holder.client(), brief)).await?;
    for table in destination.tables().await?.into_iter().filter(|t| !t.sealed) {
        let found = now.tables.iter().find(|t| t.source_oid == table.schema.source_oid);
        if !found.is_some_and(|found| still_fits(&table.schema, found)) {
            let message = format!("{}: the table was changed at the source while it was loaded; apply a new resync", table.schema.source);
            return Err(Error::refused("SourceSchemaChanged", message).into());
        }
    }
    Ok(())
}

/// The plan names the relations that hold rows: one that came since the first snapshot would be missing from the load.
async fn same_partitions(destination: &dyn Destination, holder: &Holder) -> Result<(), Trouble> {
    let (load, _) = destination.progress().await?;
    let mut planned = HashSet::new();
    let mut again = HashSet::new();
    for partition in 0..load.partitions {
        for chunk in destination.pending(partition).await? {
            planned.insert(chunk.relation);
            again.insert(chunk.table);
        }
    }
    let tables: Vec<TableSchema> =
        destination.tables().await?.into_iter().map(|t| t.schema).filter(|t| again.contains(&t.number)).collect();
    let relations = holder.look(catalog::relations(holder.client(), &tables)).await?;
    match relations.iter().find(|r| !planned.contains(&r.oid)).and_then(|r| tables.iter().find(|t| t.number == r.table)) {
        None => Ok(()),
        Some(table) => {
            let message =
                format!("{}: a partition was added and the snapshot was lost while the table was loaded; apply a new resync", table.source);
            Err(Error::refused("SourceSchemaChanged", message).into())
        }
    }
}

/// Whether the columns are the same, of the same types, and the key too. A column that came since is in no row that is loaded, and its changes up to the new
/// snapshot are passed over by the stream: its values would be missing without a word.
fn still_fits(planned: &TableSchema, now: &TableSchema) -> bool {
    let key = |table: &TableSchema| table.key().iter().map(|c| table.columns[*c].source.clone()).collect::<Vec<_>>();
    let columns = planned.columns.iter().all(|column| {
        now.columns.iter().any(|c| c.source == column.source && c.source_type == column.source_type && c.generated == column.generated)
    });
    columns && planned.columns.len() == now.columns.len() && key(planned) == key(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Column, Identity, TableName};

    fn table(columns: &[(&str, &str)], key: &[usize]) -> TableSchema {
        let column = |(name, type_): &(&str, &str)| Column {
            source: (*name).into(),
            destination: (*name).into(),
            source_type: (*type_).into(),
            base_type: None,
            source_type_oid: 1,
            destination_type: (*type_).into(),
            not_null: false,
            generated: None,
            binary: true,
            as_text: false,
        };
        let name = TableName { schema: "public".into(), name: "t".into() };
        let columns = columns.iter().map(column).collect();
        TableSchema {
            number: 0,
            source: name.clone(),
            source_oid: 1,
            destination: name,
            columns,
            identity: Identity::Key(key.into()),
            partition_key: None,
        }
    }

    #[test]
    fn a_renewed_snapshot_serves_a_table_only_as_it_was_planned() {
        let planned = table(&[("id", "bigint"), ("note", "text")], &[0]);
        assert!(still_fits(&planned, &planned));
        assert!(still_fits(&planned, &table(&[("note", "text"), ("id", "bigint")], &[1])), "the order is no matter");
        for (what, now) in [
            ("added", table(&[("id", "bigint"), ("note", "text"), ("more", "text")], &[0])),
            ("dropped", table(&[("id", "bigint")], &[0])),
            ("renamed", table(&[("id", "bigint"), ("remark", "text")], &[0])),
            ("retyped", table(&[("id", "bigint"), ("note", "bytea")], &[0])),
            ("another key", table(&[("id", "bigint"), ("note", "text")], &[0, 1])),
        ] {
            assert!(!still_fits(&planned, &now), "{what}");
        }
    }
}
