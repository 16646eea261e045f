//! Shadows: made, and made anew when their snapshot was lost.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    BigQuery,
    error::{meaning, permanent},
    ledger::{Entry, shadow_of},
    live::{self, Live},
    mark::{Mark, State},
    own::{self, Own},
    quote::literal,
};
use crate::{
    destination::{
        Boundary, Error, Plan,
        fact::{Begun, Done, Fact, Planned, Snapshot, Table},
        foreign_shadow, gone,
    },
    table::{TableName, TableSchema},
    verify::Measure,
};

/// See [`Destination::create_shadows`](crate::destination::Destination::create_shadows).
pub(super) async fn create(at: &BigQuery, boundary: Boundary, tables: &[TableSchema], plan: &Plan) -> Result<(), Error> {
    let facts = at.facts(&[Begun::KIND, Snapshot::KIND]).await?;
    facts.fence(at)?;
    facts.get::<Begun>(0)?.ok_or_else(|| gone(&at.brief))?;
    if facts.get::<Snapshot>(0)?.is_some() {
        return Ok(());
    }
    // What earlier epochs and an earlier try of this one have left; from here on their late writers find no tables.
    for found in live::marked(at).await?.iter().filter(|f| is_aside(f) && f.mark.as_ref().is_some_and(|m| m.epoch <= at.brief.epoch)) {
        live::drop_table(at, &found.name).await?;
    }
    let mut entries = Vec::with_capacity(tables.len() + plan.chunks.len() + 1);
    for table in tables {
        let fact = Table { schema: table.clone(), generation: boundary.generation, gate: boundary.lsn };
        create_one(at, &fact).await?;
        entries.push(at.entry(table.number, boundary.generation.into(), &fact)?);
    }
    for c in &plan.chunks {
        let planned = Planned {
            partition: c.partition,
            table: c.table,
            relation: c.relation,
            first_block: c.first,
            end_block: c.end,
            bytes: c.bytes,
        };
        entries.push(at.entry(c.number, 0, &planned)?);
    }
    let (partitions, rows, bytes) = (plan.partitions, plan.rows, plan.bytes);
    entries.push(snapshot(at, boundary, &Snapshot { lsn: boundary.lsn, start_lsn: boundary.lsn, partitions, rows, bytes })?);
    at.fence().await?;
    at.record(&entries).await
}

fn snapshot(at: &BigQuery, boundary: Boundary, fact: &Snapshot) -> Result<Entry, Error> {
    at.entry(0, boundary.generation.into(), fact)
}

/// See [`Destination::renew_snapshot`](crate::destination::Destination::renew_snapshot).
pub(super) async fn renew(at: &BigQuery, boundary: Boundary) -> Result<(), Error> {
    let facts = at.facts(&[Snapshot::KIND, Table::KIND, Planned::KIND, Done::KIND, Measure::KIND]).await?;
    facts.fence(at)?;
    let Some((current, of_epoch)) = facts.versioned::<Snapshot>(0)? else {
        return Err(permanent("NoShadows", "a snapshot cannot be renewed before the shadows are created"));
    };
    if current < u64::from(boundary.generation) {
        let incomplete = facts.incomplete(&at.brief)?;
        let mut entries = Vec::new();
        for (number, _, table) in facts.all::<Table>()?.into_iter().filter(|(number, ..)| incomplete.contains(number)) {
            let fact = Table { generation: boundary.generation, gate: boundary.lsn, ..table };
            create_one(at, &fact).await?;
            entries.push(at.entry(number, boundary.generation.into(), &fact)?);
        }
        entries.push(snapshot(at, boundary, &Snapshot { lsn: boundary.lsn, ..of_epoch })?);
        at.fence().await?;
        at.record(&entries).await?;
    }
    drop_replaced(at).await
}

/// Drops this epoch's shadows of snapshots that were lost.
async fn drop_replaced(at: &BigQuery) -> Result<(), Error> {
    let tables = at.facts(&[Table::KIND]).await?.all::<Table>()?;
    let current: BTreeSet<TableName> = tables.iter().map(|(_, _, table)| shadow_of(at, table)).collect();
    for found in live::marked(at).await?.iter().filter(|f| is_aside(f) && f.is_of(at) && !current.contains(&f.name)) {
        live::drop_table(at, &found.name).await?;
    }
    Ok(())
}

/// Creates a shadow, empty. Whatever bears its name and not this mirror's labels is somebody's own.
async fn create_one(at: &BigQuery, fact: &Table) -> Result<(), Error> {
    let (table, name) = (&fact.schema, shadow_of(at, fact));
    if let Some(found) = live::find(at, &name).await?
        && found.mark.as_ref().is_none_or(|mark| mark.mirror != at.brief.mirror_uid)
    {
        return Err(permanent("ForeignShadow", foreign_shadow(&name)));
    }
    let mark = Mark::of(&at.brief, table.number, State::Loaded(fact.generation));
    let labels: Vec<String> = mark.labels().iter().map(|(key, value)| format!("({}, {})", literal(key), literal(value))).collect();
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {} {} OPTIONS (labels = [{}])",
        at.quoted(&name),
        own::definition(table, &at.options(table), &Own::of(&at.brief)),
        labels.join(", ")
    );
    let doing = format!("creating {name}");
    at.jobs().await?.run(sql).await.map_err(|e| meaning(&e, &doing))?;
    // In another dataset than the Peer's a table may expire by default; ours do not.
    let expires = live::find(at, &name).await?.is_some_and(|found| !found.resource["expirationTime"].is_null());
    if expires {
        at.client()?.patch_table(&name, &json!({ "expirationTime": null })).await.map_err(|e| meaning(&e, &doing))?;
    }
    Ok(())
}

/// Whether a marked table bears a name of the time before its swap.
pub(super) fn is_aside(found: &Live) -> bool {
    match &found.mark {
        Some(Mark { epoch, state: State::Loaded(generation), .. }) => found.name.name.ends_with(&format!("_resync_e{epoch}g{generation}")),
        Some(Mark { state: State::Stage, .. }) => true,
        _ => false,
    }
}
