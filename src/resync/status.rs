//! From a pipeline's report to the numbers in a resync's status.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use crate::{
    api::{
        MirrorResyncStatus,
        resync::{Amount, Partitions, SnapshotStatus, SwapStatus, TableProgress},
    },
    report::{Load, Report, SwapReport},
};

use super::Observed;

/// Takes over that the tables are swapped, whoever tells it: the pipeline, the swap Job, or a cleanup Job that came too late.
pub fn swapped(status: &mut MirrorResyncStatus, seen: &Observed) {
    let jobs = [&seen.swap_job, &seen.cleanup_job].into_iter().flatten();
    let told = jobs.filter_map(|job| job.report.as_ref()?.swapped.as_ref()).chain(seen.report.as_ref().and_then(|r| r.swap.as_ref()));
    if let Some(swap) = told.last() {
        status.swap = Some(swap_status(swap));
    }
}

fn swap_status(swap: &SwapReport) -> SwapStatus {
    SwapStatus { time: swap.at.parse::<Timestamp>().ok().map(Time), lock_millis: swap.lock_millis, retries: swap.retries }
}

/// Takes over what the pipeline says of load, swap and lag. Without a report everything stays as it was.
pub fn progress(status: &mut MirrorResyncStatus, report: Option<&Report>, now: Timestamp) {
    let Some(report) = report else { return };
    if let Some(load) = report.load.as_ref().filter(|l| l.generation > 0) {
        take_load(status, load, now);
    }
    if !report.tables.is_empty() {
        let swapped_at = report.swap.as_ref().and_then(|s| s.at.parse::<Timestamp>().ok()).map(Time);
        status.tables = report
            .tables
            .iter()
            .map(|t| TableProgress {
                source: t.source.clone(),
                destination: t.destination.clone(),
                rows_loaded: t.rows_loaded,
                soft_deleted_carried: t.carried_deleted,
                missing_carried: t.carried_missing,
                rows_verified: t.rows_verified,
                note: t.note.clone(),
                swapped_at: swapped_at.clone(),
            })
            .collect();
    }
    if let Some(stream) = &report.stream {
        status.lag = stream.lag_bytes.map(human_bytes);
    }
}

fn take_load(status: &mut MirrorResyncStatus, load: &Load, now: Timestamp) {
    let failed = status.partitions.as_ref().map_or(0, |p| p.failed);
    status.partitions = Some(Partitions { total: load.partitions, succeeded: load.partitions_loaded, failed });
    status.rows = Some(Amount { done: load.rows, total: load.total_rows.max(load.rows) });
    status.bytes = Some(Amount { done: load.bytes, total: load.total_bytes.max(load.bytes) });
    status.snapshot = Some(SnapshotStatus { lsn: load.snapshot_lsn.to_string(), exports: load.generation });
    let share = if load.partitions > 0 && load.partitions_loaded == load.partitions {
        1.0
    } else {
        (load.bytes as f64 / load.total_bytes.max(1) as f64).min(0.99)
    };
    status.progress = Some(format!("{}%", (share * 100.0).floor()));
    status.eta = status.start_time.as_ref().and_then(|start| eta(start.0, now, share)).map(Time);
}

/// When the load ends if it goes on as fast as so far; `None` while that is only a guess.
fn eta(start: Timestamp, now: Timestamp, share: f64) -> Option<Timestamp> {
    if !(0.02..1.0).contains(&share) {
        return None;
    }
    let elapsed = now.duration_since(start).as_secs_f64();
    now.checked_add(SignedDuration::try_from_secs_f64(elapsed * (1.0 - share) / share).ok()?).ok()
}

/// Bytes for people: `0 B`, `12 MiB`.
pub fn human_bytes(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes.max(0) as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 10.0 { format!("{value:.0} {}", UNITS[unit]) } else { format!("{value:.1} {}", UNITS[unit]) }
}
