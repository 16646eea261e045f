//! The pipeline pod: makes an epoch, holds its snapshot while workers load, and streams once the tables are swapped.
//!
//! What is next is read from the destination's ledger, never remembered: a pod that was restarted goes on wherever the last one stopped.

pub mod board;
mod changes;
pub mod handover;
pub mod hold;
pub mod http;
mod loops;
pub mod prepare;
mod retire;
mod sequences;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use board::Board;
use hold::Hold;

use crate::{
    api::mirror::Mode,
    brief::Brief,
    destination::{self, Destination, EpochState, Error as DestinationError},
    listen,
    postgres::connect,
    report::{Failure, Stage},
    source::{Error as SourceError, slot},
    stream::bound::Bound,
    trouble::Trouble,
    workload::PORT,
};

/// How often the ledger is read for the swap.
const SWAP_POLL: Duration = Duration::from_millis(200);
/// How often tables' reports are read while nothing else happens.
const REFRESH: Duration = Duration::from_secs(1);
/// Between tries after an error that may pass.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between tries after an error that people have to cure, once the tables are live.
const CURE: Duration = Duration::from_secs(30);

/// Runs the pod; whoever calls it ends it.
pub async fn run(brief: Brief) -> Result<(), Failure> {
    let cannot = |reason: &str, why: String| Failure { reason: reason.into(), message: why, permanent: false };
    let endless = CancellationToken::new();
    let listener = listen::everywhere(PORT).await.map_err(|error| cannot("Listen", format!("port {PORT}: {error}")))?;
    let destination = destination::open(&brief).await.map_err(|error| Trouble::from(error).failure())?;
    let board = Board::new(&brief);
    tokio::select! {
        lived = live(&brief, &*destination, &board, &endless) => lived,
        served = tokio::spawn(http::serve(listener, board.clone(), endless.clone())) => {
            let ended = served.map_err(|error| error.to_string()).and_then(|served| served.map_err(|error| error.to_string()));
            Err(cannot("Serve", ended.err().unwrap_or_else(|| "nothing is served any more".into())))
        }
    }
}

/// Goes through the stages until `shutdown`. Errors that may pass are tried again; a newer epoch leaves the pod idle but answering, and so do errors that
/// only people can end, unless the tables are live: those people may cure without knowing of this pod.
///
/// Errors: another pod of the epoch has taken the stream over. This process then never applies again, the next one may: Kubernetes starts it, later and
/// later should two pods take turns.
pub async fn live(brief: &Brief, destination: &dyn Destination, board: &Board, shutdown: &CancellationToken) -> Result<(), Failure> {
    let mut hold = Hold::default();
    let mut pause = FIRST_PAUSE;
    loop {
        let before = board.report().stage;
        let stepped = tokio::select! {
            stepped = step(brief, destination, board, &mut hold, shutdown) => stepped,
            () = shutdown.cancelled() => return Ok(()),
        };
        let Err(trouble) = stepped else {
            pause = FIRST_PAUSE;
            board.went_on();
            continue;
        };
        if let Some(newer) = trouble.superseded() {
            if may_return(brief, destination).await {
                board.update(|report| report.stream = None);
                board.waiting(format!("epoch {newer} takes the change stream over"));
                tokio::select! {
                    () = tokio::time::sleep(REFRESH) => continue,
                    () = shutdown.cancelled() => return Ok(()),
                }
            }
            hold.release();
            board.offer(None);
            board.stage(Stage::Superseded);
            board.waiting(format!("epoch {newer} has begun; this pod does nothing more"));
            shutdown.cancelled().await;
            return Ok(());
        }
        let failure = trouble.failure();
        if matches!(trouble, Trouble::Destination(DestinationError::Displaced)) {
            return Err(failure);
        }
        let permanent = failure.permanent;
        tracing::warn!(stage = ?board.report().stage, reason = %failure.reason, permanent, "{}", failure.message);
        board.failed(failure);
        if permanent {
            hold.release();
            board.offer(None);
            if !may_be_live(destination).await {
                shutdown.cancelled().await;
                return Ok(());
            }
            pause = CURE;
        } else if board.report().stage > before {
            // It got somewhere; this is another error.
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Whether the epoch that has fenced this one may still give the stream back, or has, or the ledger cannot be read.
async fn may_return(brief: &Brief, destination: &dyn Destination) -> bool {
    destination.state().await.map_or(true, |state| state.is_some_and(|s| s.may_return || s.newest_epoch <= brief.epoch))
}

/// Whether the ledger says that the tables are live, or cannot be read.
async fn may_be_live(destination: &dyn Destination) -> bool {
    destination.state().await.map_or(true, |state| state.is_some_and(|s| s.swapped))
}

/// One stage, chosen by what the ledger says.
async fn step(
    brief: &Brief,
    destination: &dyn Destination,
    board: &Board,
    hold: &mut Hold,
    shutdown: &CancellationToken,
) -> Result<(), Trouble> {
    match destination.state().await? {
        None => {
            board.stage(Stage::Checking);
            prepare::check(brief, destination).await?;
            // From here on the earlier epochs' writers are fenced.
            Ok(destination.begin().await?)
        }
        Some(state) if state.newest_epoch > brief.epoch => Err(DestinationError::Superseded(state.newest_epoch).into()),
        Some(state) if state.swapped => {
            hold.release();
            board.offer(None);
            match brief.mode {
                Mode::Continuous => stream(brief, destination, board, shutdown).await,
                Mode::SnapshotOnly => rest(brief, destination, board, shutdown).await,
            }
        }
        Some(state) if state.generation == 0 => {
            board.stage(Stage::Preparing);
            prepare::prepare(brief, destination, board, hold).await
        }
        Some(state) if !state.loaded => {
            // Whoever sees this stage finds the plan's size with it.
            board.refresh(destination).await?;
            board.stage(Stage::Loading);
            hold::load(brief, destination, board, hold, state).await
        }
        Some(state) if brief.is_live() && !state.caught_up => {
            hold.release();
            board.offer(None);
            board.stage(Stage::Loaded);
            let ended = handover::catch_up(brief, destination, board, shutdown).await;
            board.update(|report| report.stream = None);
            ended
        }
        Some(state) => {
            hold.release();
            board.offer(None);
            board.stage(if state.caught_up { Stage::CatchingUp } else { Stage::Loaded });
            await_swap(brief, destination, board, state).await
        }
    }
}

/// Waits for the swap Job.
async fn await_swap(brief: &Brief, destination: &dyn Destination, board: &Board, mut state: EpochState) -> Result<(), Trouble> {
    let mut refreshed: Option<tokio::time::Instant> = None;
    let mut source = None;
    while !state.swapped {
        if refreshed.is_none_or(|at| at.elapsed() >= REFRESH) {
            hold::verdict(look_at_slot(brief, &mut source).await)?;
            board.refresh(destination).await?;
            board.went_on();
            refreshed = Some(tokio::time::Instant::now());
        }
        tokio::time::sleep(SWAP_POLL).await;
        state = destination.state().await?.ok_or_else(|| Trouble::Waiting("the ledger no longer has this epoch".into()))?;
        if state.newest_epoch > brief.epoch {
            return Err(DestinationError::Superseded(state.newest_epoch).into());
        }
    }
    Ok(())
}

/// Whether the slot still holds what the stream will need, however long the swap is waited for.
async fn look_at_slot(brief: &Brief, source: &mut Option<tokio_postgres::Client>) -> Result<(), SourceError> {
    slot::refuse_lost(open_still(brief, source).await?, brief).await
}

/// A session at the source that is kept from look to look, made again if it has ended.
async fn open_still<'a>(brief: &Brief, source: &'a mut Option<tokio_postgres::Client>) -> Result<&'a tokio_postgres::Client, SourceError> {
    let client = match source.take().filter(|client| !client.is_closed()) {
        Some(client) => client,
        None => connect::connect(&brief.source, &slot::housekeeping(brief)).await?,
    };
    Ok(source.insert(client))
}

/// Nothing follows. Old tables that are to be kept stay until the next swap: this pod does not.
async fn rest(brief: &Brief, destination: &dyn Destination, board: &Board, shutdown: &CancellationToken) -> Result<(), Trouble> {
    board.refresh(destination).await?;
    if brief.keep_old_millis == 0
        && let Err(error) = destination.drop_retired().await
    {
        tracing::warn!(%error, "the old tables could not be dropped; the next swap does it");
    }
    let swap = destination.swapped().await?;
    board.update(|report| (report.swap, report.stage) = (swap, Stage::Done));
    board.went_on();
    shutdown.cancelled().await;
    Ok(())
}

/// Applies changes, drops the old tables when their time is over, and keeps sequences where the source's are.
async fn stream(brief: &Brief, destination: &dyn Destination, board: &Board, shutdown: &CancellationToken) -> Result<(), Trouble> {
    board.stage(Stage::Streaming);
    board.refresh(destination).await?;
    let swap = destination.swapped().await?;
    board.update(|report| report.swap = swap.clone());
    board.went_on();
    tokio::select! {
        ended = changes::stream(brief, destination, board, Bound::none(), shutdown) => ended,
        never = retire::when_due(brief, destination, swap.as_ref()) => match never {},
        never = sequences::follow(brief, destination, board) => match never {},
        never = handover::drop_earlier(brief) => match never {},
    }
}
