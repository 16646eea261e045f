//! The shadows' rows take the live tables' places, table by table.
//!
//! A copy job with WRITE_TRUNCATE replaces all rows of a table in one atomic step, and the table itself stays: who may read it, and what its views and policies
//! point to. Its id follows from epoch and table, so that the service runs it once: a copy that was asked for again, or late, cannot bring back rows that the change
//! stream has changed since. The old rows are kept in `<table>_old` before.

mod layout;

use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    BigQuery,
    error::{meaning, permanent},
    ledger::{self, shadow_of},
    live::{self, Live},
    mark::{self, Mark, State},
    retire, seal,
};
use crate::{
    destination::{
        Error,
        fact::{Carried, Fact, Facts, Sealed, Swapped, Table, Verified},
        foreign_shadow, gone,
    },
    report::SwapReport,
    table::TableName,
};

/// Tables that are copied at the same time.
const AT_ONCE: usize = 16;

/// See [`Destination::swap`](crate::destination::Destination::swap).
pub(super) async fn swap(at: &BigQuery) -> Result<SwapReport, Error> {
    let facts = at.facts(&[Table::KIND, Sealed::KIND, Carried::KIND, Verified::KIND, Swapped::KIND]).await?;
    if let Some(report) = facts.swap_report()? {
        return Ok(report);
    }
    facts.fence(at)?;
    let tables: Vec<Table> = facts.all::<Table>()?.into_iter().map(|(_, _, table)| table).collect();
    if tables.is_empty() {
        return Err(gone(&at.brief));
    }
    retire::drop_until(at, at.brief.epoch.saturating_sub(1)).await?;
    // Whatever refuses is found before the first table is touched.
    let mut swaps = Vec::new();
    for table in tables {
        swaps.push(prepare(at, &facts, table).await?);
    }
    each(&swaps, |swap| keep(at, swap).boxed()).await?;
    at.fence().await?;
    let started = Instant::now();
    each(&swaps, |swap| put(at, swap).boxed()).await?;
    let mixed = started.elapsed();
    each(&swaps, |swap| label(at, swap).boxed()).await?;
    record(at, mixed).await
}

async fn each<'a>(swaps: &'a [Swap], step: impl Fn(&'a Swap) -> BoxFuture<'a, Result<(), Error>>) -> Result<(), Error> {
    let steps: Vec<_> = swaps.iter().map(step).collect();
    futures::stream::iter(steps).buffer_unordered(AT_ONCE).try_collect::<()>().await
}

async fn record(at: &BigQuery, mixed: Duration) -> Result<SwapReport, Error> {
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default();
    at.record(&[at.entry(0, 0, &Swapped { at: now.to_string(), millis: mixed.as_millis() as i64, retries: 0 })?]).await?;
    ledger::swap_report(at).await?.ok_or_else(|| gone(&at.brief))
}

/// What is to be done for one table.
struct Swap {
    table: Table,
    shadow: Live,
    live: Option<Live>,
    old: TableName,
}

/// Looks whether the table is ready, and whether the names are free.
async fn prepare(at: &BigQuery, facts: &Facts, table: Table) -> Result<Swap, Error> {
    let (name, number) = (table.schema.destination.clone(), table.schema.number);
    let not_ready = |why: &str| Error::Transient(format!("{name} is not ready for the swap: {why}"));
    if !facts.is_sealed(number, table.generation)? || facts.get::<Carried>(number)?.is_none() {
        return Err(not_ready("it must be sealed and carried first"));
    }
    facts.refuse_unverified(&at.brief, &table)?;
    let live = live::find(at, &name).await?;
    if let Some(live) = &live {
        live::refuse(at, live, &table.schema)?;
    }
    let old = mark::retired(&name);
    if live::find(at, &old).await?.is_some_and(|found| found.mark.is_none_or(|mark| mark.mirror != at.brief.mirror_uid)) {
        return Err(permanent("ForeignShadow", foreign_shadow(&old)));
    }
    let Some(shadow) = live::find(at, &shadow_of(at, &table)).await? else { return Err(not_ready("its shadow is gone")) };
    // A copy leaves out what is not in the table's own storage yet; a count does not.
    let counted = seal::rows(at, &shadow.name).await?;
    if shadow.has_streaming_buffer() || shadow.rows() != counted {
        let (there, all) = (shadow.rows().unwrap_or(0), counted.unwrap_or(0));
        return Err(not_ready(&format!("{there} of {all} rows can be copied yet; BigQuery is still taking in the others")));
    }
    let swap = Swap { table, shadow, live, old };
    if let Some(live) = swap.live.as_ref().filter(|_| swap.changes_layout() && !swap.is_done(at)) {
        layout::prepare(at, live, &swap.shadow).await?;
    }
    Ok(swap)
}

impl Swap {
    /// The table of the live name was made by this swap, empty, for there was none.
    fn is_first(&self) -> bool {
        self.live.as_ref().is_none_or(|live| live.mark.as_ref().is_some_and(|mark| mark.epoch == 0))
    }

    fn is_done(&self, at: &BigQuery) -> bool {
        self.live.as_ref().is_some_and(|live| live.is_of(at))
    }

    /// Whether the live table is laid out in another way than the shadow.
    fn changes_layout(&self) -> bool {
        let differs = |live: &Live| layout::of(live) != layout::of(&self.shadow);
        !self.is_first() && (layout::is_known(&self.shadow) || self.live.as_ref().is_some_and(differs))
    }

    fn step(&self, what: &str) -> String {
        format!("t{}-{what}", self.table.schema.number)
    }
}

/// Keeps the old rows, or makes an empty table where there is none, so that there is something that bears this mirror's labels before it has rows.
async fn keep(at: &BigQuery, swap: &Swap) -> Result<(), Error> {
    let (name, number) = (&swap.table.schema.destination, swap.table.schema.number);
    let doing = format!("swapping {name}");
    if swap.is_done(at) {
        return Ok(());
    }
    let Some(live) = swap.live.as_ref().filter(|_| !swap.is_first()) else {
        let mark = Mark { epoch: 0, ..Mark::of(&at.brief, number, State::Loaded(0)) };
        return create_like(at, &swap.shadow, name, mark).await.map_err(|e| meaning(&e, &doing));
    };
    let mark = Mark::of(&at.brief, number, State::Retired);
    create_like(at, live, &swap.old, mark.clone()).await.map_err(|e| meaning(&e, &doing))?;
    copy(at, name, &swap.old, &swap.step("keep")).await?;
    let patch = json!({ "labels": mark.labels(), "requirePartitionFilter": false });
    at.client()?.patch_table(&swap.old, &patch).await.map_err(|e| meaning(&e, &doing))
}

async fn put(at: &BigQuery, swap: &Swap) -> Result<(), Error> {
    if swap.is_done(at) {
        return Ok(());
    }
    if swap.changes_layout() {
        return layout::replace(at, &swap.table.schema, &swap.shadow, &swap.step("put")).await;
    }
    copy(at, &swap.shadow.name, &swap.table.schema.destination, &swap.step("put")).await
}

/// Says what is live now, and what people have said of the table before.
async fn label(at: &BigQuery, swap: &Swap) -> Result<(), Error> {
    let mark = Mark::of(&at.brief, swap.table.schema.number, State::Loaded(swap.table.generation));
    let mut labels = Mark::others(&swap.shadow.resource["labels"]);
    labels.extend(swap.live.iter().flat_map(|live| Mark::others(&live.resource["labels"])));
    labels.extend(mark.labels());
    let required = at.options(&swap.table.schema).require_partition_filter;
    let mut patch = json!({ "labels": labels, "requirePartitionFilter": required });
    for given in ["description", "friendlyName"] {
        if let Some(value) = swap.shadow.resource.get(given).filter(|value| value.is_string()) {
            patch[given] = value.clone();
        }
    }
    let name = &swap.table.schema.destination;
    at.client()?.patch_table(name, &patch).await.map_err(|e| meaning(&e, &format!("labelling {name}")))
}

/// Creates an empty table with the columns and the layout of another; one that is there stays.
async fn create_like(at: &BigQuery, model: &Live, name: &TableName, mark: Mark) -> Result<(), super::error::Refusal> {
    let mut resource = json!({ "labels": mark.labels() });
    for part in ["schema", "timePartitioning", "rangePartitioning", "clustering", "encryptionConfiguration"] {
        if let Some(value) = model.resource.get(part).filter(|value| !value.is_null()) {
            resource[part] = value.clone();
        }
    }
    let client = at.client().map_err(|e| super::error::Refusal::unheard(e.to_string()))?;
    client.create_table(name, resource).await
}

/// Replaces all rows of a table by those of another, once for each step.
pub(super) async fn copy(at: &BigQuery, from: &TableName, to: &TableName, step: &str) -> Result<(), Error> {
    let client = at.client()?;
    let configuration: Value = json!({ "copy": {
        "sourceTable": client.reference(from),
        "destinationTable": client.reference(to),
        "writeDisposition": "WRITE_TRUNCATE",
        "createDisposition": "CREATE_NEVER",
    } });
    at.jobs().await?.step(&at.once(step).await?, &configuration).await.map(drop).map_err(|refusal| {
        let error = meaning(&refusal, &format!("copying {from} to {to}"));
        // A shadow that is gone went with its epoch: the fence says so at the next try.
        if refusal.is("notFound") { Error::Transient(error.to_string()) } else { error }
    })
}
