//! One connection to the slot, from its beginning to the error that ends it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use super::{
    Drift, Health, Never, Streamed,
    advise::StreamError,
    batch::{Batch, of_table, parked},
    bound::Bound,
    catalog::Catalog,
    lag::{self, Oldest},
    relation::{self, Mapping, Sent},
};
use crate::{
    brief::Brief,
    destination::{Applier, Destination, LedgerTable, Position, column_type},
    postgres::{
        self, Lsn,
        connect::words,
        wire::{Frame, ReplicationSession, ReplicationStream, StatusHandle, WireError},
    },
    source::{
        pgoutput::{self, Message, Relation},
        slot,
    },
    table::{Column, TableSchema},
};

/// How often an idle stream's position is made durable, which is what the slot is told: it must never be ahead of the ledger.
const IDLE_CHECKPOINT: std::time::Duration = std::time::Duration::from_secs(10);

struct Session<'a> {
    brief: &'a Brief,
    applier: Box<dyn Applier>,
    health: &'a watch::Sender<Health>,
    catalog: Catalog<'a>,
    status: StatusHandle,
    schemas: BTreeMap<u32, TableSchema>,
    rules: HashMap<u32, Rule>,
    relations: HashMap<u32, Known>,
    batch: Batch,
    /// The transaction that is being read.
    transaction: Option<Transaction>,
    /// Where the change that is being read was made.
    position: Lsn,
    /// Everything before this was read, and may be applied.
    reached: Lsn,
    /// Everything before this was read.
    heard: Lsn,
    bound: Bound,
    /// The oldest transaction of which the batch has something.
    oldest: Option<Oldest>,
    checkpoint: Instant,
}

/// What the ledger says of a table beside its schema.
struct Rule {
    gate: Lsn,
    parked: bool,
    drift: BTreeSet<String>,
}

struct Transaction {
    final_lsn: Lsn,
    committed: Timestamp,
    /// Whether the destination has it already.
    applied: bool,
}

/// A relation of the stream.
enum Known {
    /// Not one of ours.
    Foreign,
    /// Announced where no change of the table matters yet: it is read when the first one does. It may not be announced again before that.
    Unread { table: u32, announced: Relation },
    Ours {
        table: u32,
        mapping: Mapping,
        /// Whether it is the table itself, not a part of it.
        whole: bool,
    },
}

/// Opens the applier, parks what is to be parked, and streams until something fails.
pub(super) async fn stream(
    brief: &Brief,
    destination: &dyn Destination,
    health: &watch::Sender<Health>,
    bound: &Bound,
    to_park: &mut Vec<(u32, String)>,
    mut noticed: watch::Receiver<Drift>,
) -> Streamed<Never> {
    let mut applier = destination.applier().await?;
    let tables = destination.tables().await?;
    let rule = |t: &LedgerTable| Rule { gate: t.gate, parked: t.parked.is_some(), drift: t.drift.clone() };
    let mut rules: HashMap<_, _> = tables.iter().map(|t| (t.schema.number, rule(t))).collect();
    let schemas: BTreeMap<_, _> = tables.into_iter().map(|t| (t.schema.number, t.schema)).collect();
    for (number, why) in to_park.iter() {
        if let (Some(schema), Some(rule)) = (schemas.get(number), rules.get_mut(number)) {
            applier.park(schema, why).await?;
            rule.parked = true;
        }
    }
    let from = applier.position();
    if !to_park.is_empty() {
        applier.commit(from).await?;
        to_park.clear();
    }
    let mut frames = start(brief, from).await?;
    health.send_modify(|h| {
        (h.stream.connected, h.stream.slot_lost, h.failure) = (true, None, None);
        h.stream.applied_lsn = from;
    });
    let settings = &brief.replication;
    let mut batch = Batch::new(settings.batch_rows, settings.batch_interval.get());
    if bound.now().soon {
        batch.hasten();
    }
    let (status, relations, catalog) = (frames.status(), HashMap::new(), Catalog::new(brief));
    let checkpoint = Instant::now();
    let mut session = Session {
        brief,
        applier,
        health,
        catalog,
        status,
        schemas,
        rules,
        relations,
        batch,
        transaction: None,
        position: from,
        reached: from,
        heard: from,
        bound: bound.clone(),
        oldest: None,
        checkpoint,
    };
    // What was found before this session began has to be noted in it.
    noticed.mark_changed();
    session.read(&mut frames, noticed).await
}

/// Starts the stream. A session of ours that still holds the slot is that of a lost pod, for the applier is ours: it is ended.
async fn start(brief: &Brief, from: Lsn) -> Streamed<ReplicationStream> {
    let at_source = |e: crate::source::Error| StreamError::Source(e.to_string());
    let (slot, role) = (brief.slot(), brief.application_name("stream"));
    let client = postgres::connect(&brief.source, &brief.application_name("catalog")).await;
    let client = client.map_err(|e| StreamError::Source(e.to_string()))?;
    let before = slot::standing(&client, &slot).await.map_err(at_source)?;
    // The server would begin where the slot is, without a word (PostgreSQL source, CreateDecodingContext: "forwarding").
    if before.lost.is_none() && before.confirmed > from {
        return Err(StreamError::WentBack { slot, checkpoint: from, confirmed: before.confirmed });
    }
    let session = ReplicationSession::connect(&brief.source, &role).await?;
    match session.start(&slot, from, &brief.publication()).await {
        Err(WireError::Server { sqlstate, .. }) if sqlstate == "55000" && before.lost.is_some() => {
            Err(WireError::SlotLost { slot, cause: before.lost.unwrap_or_default() }.into())
        }
        Err(error @ WireError::SlotActive { .. }) => {
            let sql = "SELECT pg_terminate_backend(a.pid) FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
                       WHERE s.slot_name = $1 AND a.application_name = $2 AND a.usename = current_user";
            client.execute(sql, &[&slot, &role]).await.map_err(|e| StreamError::Source(words(&e)))?;
            Err(error.into())
        }
        other => Ok(other?),
    }
}

impl Session<'_> {
    async fn read(&mut self, frames: &mut ReplicationStream, mut noticed: watch::Receiver<Drift>) -> Streamed<Never> {
        loop {
            let deadline = self.batch.deadline().filter(|_| self.transaction.is_none());
            let frames = tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.commit().await?;
                    continue;
                }
                Ok(()) = noticed.changed() => {
                    let drift = noticed.borrow_and_update().clone();
                    for (table, words) in drift {
                        self.note_drift(table, words).await?;
                    }
                    continue;
                }
                () = self.bound.changed() => {
                    self.arrived(self.heard, false).await?;
                    if self.bound.now().soon {
                        self.batch.hasten();
                    }
                    continue;
                }
                frames = frames.next() => frames?,
            };
            for frame in frames {
                match frame {
                    Frame::Data(position, bytes) => {
                        self.position = position;
                        let size = bytes.len();
                        self.message(pgoutput::decode(bytes)?, size).await?;
                    }
                    Frame::Keepalive { end, answer } => self.arrived(end, answer).await?,
                }
            }
        }
    }

    async fn message(&mut self, message: Message, size: usize) -> Streamed<()> {
        match message {
            Message::Begin { final_lsn, time, .. } => {
                self.wait_for(final_lsn).await?;
                let (committed, applied) = (time_of(time), final_lsn < self.applier.position());
                self.transaction = Some(Transaction { final_lsn, committed, applied });
            }
            Message::Commit { end_lsn, .. } => {
                self.transaction = None;
                self.arrived(end_lsn, false).await?;
                if self.batch.is_due() {
                    self.commit().await?;
                }
            }
            Message::Relation(relation) => self.relation(relation).await?,
            Message::Insert { relation, row } => self.change(relation, Sent::Insert(row), size).await?,
            Message::Update { relation, old, row } => self.change(relation, Sent::Update(old, row), size).await?,
            Message::Delete { relation, old } => self.change(relation, Sent::Delete(old), size).await?,
            Message::Truncate { relations } => self.truncate(&relations).await?,
            Message::Other => {}
        }
        Ok(())
    }

    /// Everything that committed before `position` was read. A server that asks for an answer wants to hear of it at once: one that shuts down waits
    /// until all is confirmed.
    async fn arrived(&mut self, position: Lsn, asked: bool) -> Streamed<()> {
        if self.transaction.is_some() {
            return Ok(());
        }
        self.heard = self.heard.max(position);
        self.reached = self.reached.max(position.min(self.bound.now().before));
        if self.batch.is_empty() {
            if self.reached > self.applier.position() && (asked || self.checkpoint.elapsed() >= IDLE_CHECKPOINT) {
                return self.commit().await;
            }
            self.tell();
        }
        Ok(())
    }

    /// Waits until the transaction that commits there may be applied. What was read before it does not wait with it.
    async fn wait_for(&mut self, final_lsn: Lsn) -> Streamed<()> {
        while final_lsn >= self.bound.now().before {
            if !self.batch.is_empty() {
                self.commit().await?;
            }
            self.bound.changed().await;
            self.arrived(self.heard, false).await?;
        }
        Ok(())
    }

    async fn commit(&mut self) -> Streamed<()> {
        self.batch.write(&self.schemas, self.applier.as_mut(), self.reached).await?;
        self.applier.commit(self.reached).await?;
        self.batch.committed();
        self.oldest = None;
        self.checkpoint = Instant::now();
        self.tell();
        Ok(())
    }

    /// Nothing before `reached` is missing at the destination, but only what the ledger says of it would outlive the server: the slot is told no more.
    fn tell(&self) {
        self.status.flushed(self.applier.position());
        self.health.send_if_modified(|h| {
            let moved = h.stream.applied_lsn != self.reached;
            (h.stream.applied_lsn, h.oldest) = (self.reached, lag::oldest(self.oldest, h.oldest, self.reached));
            moved
        });
    }

    /// Something of the transaction was received, and is not applied yet.
    fn note_received(&mut self) {
        if self.oldest.is_none() {
            self.oldest = self.transaction.as_ref().map(|t| Oldest { commit: t.final_lsn, time: t.committed });
            self.health.send_if_modified(|h| {
                h.oldest = self.oldest;
                false
            });
        }
    }

    fn at(&self) -> Lsn {
        self.transaction.as_ref().map_or(self.reached, |t| t.final_lsn)
    }

    fn made(&self) -> Position {
        Position { commit: self.at(), change: self.position }
    }

    /// Whether the transaction's changes belong on top of the table's load.
    fn is_wanted(&self, table: u32) -> bool {
        match (&self.transaction, self.rules.get(&table)) {
            (Some(transaction), Some(rule)) => !transaction.applied && !rule.parked && transaction.final_lsn >= rule.gate,
            _ => false,
        }
    }

    async fn change(&mut self, relation: u32, sent: Sent, size: usize) -> Streamed<()> {
        let at = self.at();
        let unknown = || StreamError::Nonsense { at, what: format!("a change of relation {relation} that was not announced") };
        self.read_announced(relation).await?;
        let (table, mapping) = match self.relations.get(&relation).ok_or_else(unknown)? {
            Known::Foreign | Known::Unread { .. } => return Ok(()),
            Known::Ours { table, .. } if !self.is_wanted(*table) => return Ok(()),
            Known::Ours { table, mapping, .. } => (table, mapping),
        };
        let schema = self.schemas.get(table).ok_or_else(unknown)?;
        let made = self.made();
        let change = sent.read(mapping).ok_or_else(|| StreamError::Nonsense { at, what: format!("a row of {}", schema.source) })?;
        self.batch.push(schema, mapping.key(), change, size, self.applier.as_mut(), made).await?;
        self.note_received();
        if self.batch.is_large() {
            self.batch.write(&self.schemas, self.applier.as_mut(), at).await?;
        }
        Ok(())
    }

    async fn truncate(&mut self, relations: &[u32]) -> Streamed<()> {
        let mut emptied = Vec::new();
        for relation in relations {
            self.read_announced(*relation).await?;
            match self.relations.get(relation) {
                Some(Known::Ours { table, whole: true, .. }) if self.is_wanted(*table) => emptied.push(*table),
                Some(Known::Ours { table, whole: false, .. }) if self.is_wanted(*table) => {
                    let nonsense =
                        || StreamError::Nonsense { at: self.at(), what: format!("a TRUNCATE of table {table}, which has no schema") };
                    let schema = self.schemas.get(table).ok_or_else(nonsense)?;
                    return Err(parked(
                        schema,
                        self.at(),
                        "one partition or child of it was truncated, whose rows cannot be told apart here",
                    ));
                }
                _ => {}
            }
        }
        if emptied.is_empty() {
            return Ok(());
        }
        let (at, position) = (self.at(), self.made());
        self.note_received();
        self.batch.write(&self.schemas, self.applier.as_mut(), at).await?;
        self.batch.touch();
        for table in emptied.iter().filter_map(|number| self.schemas.get(number)) {
            of_table(self.applier.truncate(table, position).await, table, at)?;
        }
        Ok(())
    }

    /// The source announces how a table's rows look from now on.
    async fn relation(&mut self, relation: Relation) -> Streamed<()> {
        let Some((number, whole)) = self.find(&relation).await? else {
            self.relations.insert(relation.oid, Known::Foreign);
            return Ok(());
        };
        if !self.is_wanted(number) {
            self.relations.insert(relation.oid, Known::Unread { table: number, announced: relation });
            return Ok(());
        }
        let types = self.catalog.types(&relation).await?;
        let excluded = self.brief.tables.get(number as usize).map(|t| t.exclude_columns.as_slice()).unwrap_or_default();
        let Some(schema) = self.schemas.get(&number) else { return Ok(()) };
        let mut reading = relation::read(&relation, schema, excluded, &types);
        if !reading.added.is_empty() {
            let added = std::mem::take(&mut reading.added);
            let mut drift = self.add_columns(number, &relation, &added, &types).await?;
            if let Some(schema) = self.schemas.get(&number) {
                reading = relation::read(&relation, schema, excluded, &types);
            }
            drift.append(&mut reading.drift);
            reading.drift = drift;
        }
        if !whole {
            // A partition has an oid of its own.
            reading.drift.retain(|d| !d.starts_with("the table was made again"));
        }
        if let (Some(cause), Some(schema)) = (reading.unusable, self.schemas.get(&number)) {
            return Err(parked(schema, self.at(), &cause));
        }
        self.allow_nulls(number, &reading.gone).await?;
        self.note_drift(number, reading.drift).await?;
        self.relations.insert(relation.oid, Known::Ours { table: number, mapping: reading.mapping, whole });
        Ok(())
    }

    /// Reads what was announced of a relation once its changes matter.
    async fn read_announced(&mut self, oid: u32) -> Streamed<()> {
        if let Some(Known::Unread { table, announced }) = self.relations.get(&oid)
            && self.is_wanted(*table)
        {
            let announced = announced.clone();
            self.relation(announced).await?;
        }
        Ok(())
    }

    /// Which of our tables a relation is, or is a part of.
    async fn find(&mut self, relation: &Relation) -> Streamed<Option<(u32, bool)>> {
        let by_oid = |oid: u32| self.schemas.values().find(|s| s.source_oid == oid).map(|s| s.number);
        let by_name =
            || self.schemas.values().find(|s| s.source.schema == relation.schema && s.source.name == relation.name).map(|s| s.number);
        if let Some(number) = by_oid(relation.oid).or_else(by_name) {
            return Ok(Some((number, true)));
        }
        // A publication of the user's own may publish partitions under their own names.
        let ancestors = self.catalog.ancestors(relation.oid).await?;
        Ok(ancestors.iter().find_map(|oid| self.schemas.values().find(|s| s.source_oid == *oid)).map(|s| (s.number, false)))
    }

    /// Adds columns at the destination; returns what only a resync can bring.
    async fn add_columns(&mut self, number: u32, relation: &Relation, added: &[usize], types: &[String]) -> Streamed<Vec<String>> {
        // What was read before has the old columns.
        let at = self.at();
        self.batch.write(&self.schemas, self.applier.as_mut(), at).await?;
        let mut drift = Vec::new();
        for place in added {
            let Some(mut schema) = self.schemas.get(&number).cloned() else { continue };
            let (column, kind) = (&relation.columns[*place], types.get(*place).cloned().unwrap_or_default());
            let known = self.catalog.added(relation.oid, &column.name).await?;
            if known.unknown {
                drift.push(format!(
                    "column {:?} was added with a default that gave each row a value of its own; it needs a resync",
                    column.name
                ));
            }
            let Some(table) = self.brief.tables.get(number as usize) else { continue };
            let wanted = table.columns.iter().find(|c| c.source == column.name);
            let source = self.catalog.source_type(column).await?;
            // As the load would have it.
            let typed = column_type(self.brief, table, &column.name, &source, known.not_null);
            schema.columns.push(Column {
                source: column.name.clone(),
                destination: wanted.and_then(|w| w.destination.clone()).unwrap_or_else(|| column.name.clone()),
                base_type: source.base_of(&kind),
                source_type: kind,
                source_type_oid: column.type_oid,
                destination_type: typed.destination_type,
                not_null: known.not_null,
                generated: None,
                binary: false,
                as_text: false,
            });
            of_table(self.applier.add_column(&schema, schema.columns.len() - 1, known.fill.as_deref()).await, &schema, at)?;
            tracing::info!(table = %schema.destination, column = %column.name, "column added at the destination");
            self.schemas.insert(number, schema);
            self.batch.touch();
        }
        Ok(drift)
    }

    /// Lets new rows come without the columns that the source has dropped or renamed.
    async fn allow_nulls(&mut self, number: u32, gone: &[usize]) -> Streamed<()> {
        for place in gone {
            let Some(mut schema) = self.schemas.get(&number).filter(|s| s.columns[*place].not_null).cloned() else { continue };
            schema.columns[*place].not_null = false;
            let at = self.at();
            self.batch.write(&self.schemas, self.applier.as_mut(), at).await?;
            let relaxed = of_table(self.applier.allow_null(&schema, *place).await, &schema, at)?;
            self.schemas.insert(number, relaxed);
            self.batch.touch();
        }
        Ok(())
    }

    /// Adds to what wants a resync. It stays: the rows that came meanwhile differ even if the source's table is put back.
    async fn note_drift(&mut self, number: u32, drift: impl IntoIterator<Item = String>) -> Streamed<()> {
        let (Some(schema), Some(rule)) = (self.schemas.get(&number), self.rules.get_mut(&number)) else { return Ok(()) };
        let known = rule.drift.len();
        rule.drift.extend(drift);
        if rule.drift.len() > known {
            tracing::warn!(table = %schema.source, drift = ?rule.drift, "the source's table has changed");
            self.applier.drift(schema, &rule.drift).await?;
            self.batch.touch();
        }
        Ok(())
    }
}

/// A time of the protocol: microseconds since 2000-01-01 (PostgreSQL docs, "Logical Replication Message Formats").
fn time_of(micros: i64) -> Timestamp {
    const EPOCH: i64 = 946_684_800_000_000;
    Timestamp::from_microsecond(micros.saturating_add(EPOCH)).unwrap_or(Timestamp::MAX)
}
