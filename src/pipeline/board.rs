//! What the pod tells over HTTP. Written by the stages, read at any time without waiting.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    brief::Brief,
    destination::Destination,
    report::{Failure, HeldSnapshot, Report, Stage},
};

/// The pod's report and the snapshot that it holds.
#[derive(Clone)]
pub struct Board {
    report: Arc<watch::Sender<Report>>,
    snapshot: Arc<watch::Sender<Option<HeldSnapshot>>>,
}

impl Board {
    /// An empty board.
    pub fn new(brief: &Brief) -> Self {
        let report = Report { mirror_uid: brief.mirror_uid.clone(), epoch: brief.epoch, ..Report::default() };
        Self { report: Arc::new(watch::Sender::new(report)), snapshot: Arc::new(watch::Sender::new(None)) }
    }

    /// The report of now.
    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    /// The snapshot that is held now.
    pub fn snapshot(&self) -> Option<HeldSnapshot> {
        self.snapshot.borrow().clone()
    }

    /// Changes the report.
    pub fn update(&self, change: impl FnOnce(&mut Report)) {
        self.report.send_modify(change);
    }

    /// A stage begins, or begins again after an error. The error stays readable until the stage has got somewhere ([`went_on`](Self::went_on)).
    pub fn stage(&self, stage: Stage) {
        self.update(|report| report.stage = stage);
    }

    /// Something worked: what was in the way no longer is.
    pub fn went_on(&self) {
        self.update(|report| {
            report.failure = None;
            report.waiting.clear();
        });
    }

    /// What is being waited for.
    pub fn waiting(&self, what: impl Into<String>) {
        self.update(|report| report.waiting = what.into());
    }

    /// Why it cannot go on.
    pub fn failed(&self, failure: Failure) {
        self.update(|report| report.failure = Some(failure));
    }

    /// Offers a snapshot to workers, or none any more.
    pub fn offer(&self, snapshot: Option<HeldSnapshot>) {
        self.snapshot.send_replace(snapshot);
    }

    /// Reads the destination's progress into the report.
    pub async fn refresh(&self, destination: &dyn Destination) -> Result<(), crate::destination::Error> {
        let (load, tables) = destination.progress().await?;
        self.update(|report| {
            report.load = Some(load);
            report.tables = tables;
        });
        Ok(())
    }
}
