//! The first stages of an epoch: looking at everything before anything is changed, then slot, snapshot, shadows and plan.

use std::{future::Future, time::Duration};

use tokio_postgres::Client;

use super::{board::Board, handover, hold::Hold, loops};
use crate::{
    api::mirror::{Mode, Sequences},
    brief::Brief,
    destination::{self, Boundary, Destination},
    postgres::connect,
    report::{Failure, PlanReport},
    source::{
        Error, catalog, keys,
        partition::{self, Relation, Sizes},
        preflight, sequence, slot,
        snapshot::{self, Holder},
    },
    table::TableSchema,
    trouble::{Trouble, together},
    verify,
};

/// When to say whom the creation of a slot waits for.
const LONG: Duration = Duration::from_secs(2);

/// Looks for everything that would stop this epoch. Changes nothing.
pub async fn check(brief: &Brief, destination: &dyn Destination) -> Result<(), Trouble> {
    let client = connect::connect(&brief.source, &slot::housekeeping(brief)).await.map_err(Error::from)?;
    let catalog = catalog::read(&client, brief).await?;
    let tables = catalog.loaded(brief);
    // First, for whatever else is wrong may come of it.
    let mut problems = loops::check(brief, &client, &tables).await?;
    problems.extend(preflight::check(&client, brief, &catalog.tables).await?);
    problems.extend(handover::kept_problems(brief, &catalog).await?);
    problems.extend(catalog.problems);
    problems.extend(handover::problem(brief));
    problems.extend(verify::problem(brief));
    problems.extend(destination.preflight(&tables).await?);
    if brief.sequences == Sequences::Sync {
        let sequences = sequence::read(&client, &tables).await?;
        problems.extend(sequence::problems(brief, &sequences));
        problems.extend(destination.sequence_problems(&sequences).await?);
    }
    Ok(refuse(problems)?)
}

/// A dry run: [`check`], then how large a load would be. Changes nothing.
pub async fn rehearse(brief: &Brief) -> Result<PlanReport, Failure> {
    let destination = destination::open(brief).await.map_err(|error| Trouble::from(error).failure())?;
    check(brief, &*destination).await.map_err(|trouble| trouble.failure())?;
    let plan = async {
        let client = connect::connect(&brief.source, &slot::housekeeping(brief)).await?;
        let catalog = catalog::read(&client, brief).await?;
        let tables = catalog.loaded(brief);
        refuse(catalog.problems)?;
        let mut relations = relations(brief, &client, &tables).await?;
        keys::measure(&client, &tables, &mut relations).await?;
        let plan = partition::plan(&relations, sizes(brief, &relations));
        Ok::<_, Error>((tables.len(), plan))
    };
    let (tables, plan) = plan.await.map_err(|error| error.failure())?;
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let amount = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    Ok(PlanReport {
        tables: count(tables),
        rows: amount(plan.rows),
        bytes: amount(plan.bytes),
        chunks: count(plan.chunks.len()),
        partitions: plan.partitions,
    })
}

/// Makes the slot, its snapshot, the shadows and the plan. Nothing was loaded yet, so whatever an earlier try has left is dropped first.
pub async fn prepare(brief: &Brief, destination: &dyn Destination, board: &Board, hold: &mut Hold) -> Result<(), Trouble> {
    let client = connect::connect(&brief.source, &slot::housekeeping(brief)).await.map_err(Error::from)?;
    board.waiting("dropping the slots of earlier epochs");
    slot::drop_epochs(&client, brief, |epoch| brief.replaces(epoch)).await?;
    let before = catalog::read(&client, brief).await?;
    refuse(handover::kept_problems(brief, &before).await?)?;
    refuse(before.problems)?;
    slot::create_publication(&client, brief, &before.tables).await?;
    board.waiting("");

    let makes_slot = brief.mode == Mode::Continuous && brief.own_slot.is_none();
    let exported = match makes_slot {
        true => saying_blockers(brief, board, snapshot::create_slot(brief)).await?,
        false => saying_blockers(brief, board, snapshot::export_again(brief, 1)).await?,
    };
    slot::refuse_gap(&client, brief, exported.lsn).await?;
    let holder = Holder::import(brief, &exported.name, exported.lsn).await?;
    let boundary = Boundary { generation: 1, lsn: exported.lsn };
    let catalog = holder.look(catalog::read(holder.client(), brief)).await?;
    let tables = catalog.loaded(brief);
    let oids = |tables: &[TableSchema]| tables.iter().map(|t| t.source_oid).collect::<Vec<_>>();
    if oids(&catalog.tables) != oids(&before.tables) {
        // The publication was made for tables that are gone.
        return Err(Error::Passing("a table was replaced while the mirror was being prepared; beginning again".into()).into());
    }
    refuse(catalog.problems)?;
    let mut relations = holder.look(relations(brief, holder.client(), &tables)).await?;
    keys::measure(&client, &tables, &mut relations).await?;
    let plan = partition::plan(&relations, sizes(brief, &relations));
    tracing::info!(lsn = %boundary.lsn, tables = tables.len(), chunks = plan.chunks.len(), partitions = plan.partitions, "planned");
    destination.create_shadows(boundary, &tables, &plan).await?;
    // Another slot ends with its session, and would only keep the source's log.
    hold.keep(Some(exported).filter(|_| makes_slot), holder, boundary.generation);
    Ok(())
}

/// Waits for a slot to be made, and says on the board whom that waits for when it takes long.
pub async fn saying_blockers<T>(brief: &Brief, board: &Board, making: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::pin!(making);
    let mut looking = None;
    loop {
        tokio::select! {
            made = &mut making => {
                board.waiting("");
                return made;
            }
            () = tokio::time::sleep(LONG) => {}
        }
        if looking.is_none() {
            looking = connect::connect(&brief.source, &slot::housekeeping(brief)).await.ok();
        }
        let Some(client) = &looking else { continue };
        match slot::blockers(client, &snapshot::exporter(brief)).await {
            Ok(whom) if whom.is_empty() => board.waiting("the source creates the replication slot"),
            Ok(whom) => board.waiting(format!("the replication slot can be made when transactions that were running have ended: {whom}")),
            Err(_) => looking = None,
        }
    }
}

/// What is to be read.
async fn relations(brief: &Brief, client: &Client, tables: &[TableSchema]) -> Result<Vec<Relation>, Error> {
    if brief.load { catalog::relations(client, tables).await } else { Ok(vec![]) }
}

fn sizes(brief: &Brief, relations: &[Relation]) -> Sizes {
    let (partition, workers) = (brief.snapshot.partition_size.get(), brief.snapshot.max_parallel_workers);
    let pace = brief.snapshot.max_bytes_per_second.as_ref().map(|bytes| bytes.get());
    let best = || partition::chunk_size(relations, brief.destination.best_chunk(), partition, workers, pace);
    Sizes { chunk: brief.snapshot.chunk_size.as_ref().map_or_else(best, |given| given.get()), partition, workers }
}

fn refuse(problems: Vec<Failure>) -> Result<(), Error> {
    together(problems).map_or(Ok(()), |failure| Err(Error::Refused(failure)))
}
