//! The planner as a table, and a small world in which every crash point is tried.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::json;

mod dry;
mod ends;
mod live;
mod verify;

use super::*;
use crate::{
    api::{
        Mirror, Peer, condition,
        mirror::ActiveResync,
        resync::{Phase, Step},
    },
    report::{Failure, Load, Stage, Stream, SwapReport},
};

const UID: &str = "11111111-0000-4000-8000-000000000000";

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn resync(spec: serde_json::Value) -> MirrorResync {
    let mut all = json!({ "mirror": "shop" });
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let mut resync = MirrorResync::new("again", serde_json::from_value(all).unwrap());
    resync.metadata.uid = Some(UID.into());
    resync.metadata.namespace = Some("ns".into());
    resync.metadata.generation = Some(1);
    resync
}

fn brief(resync: &MirrorResync) -> Box<Brief> {
    let peer = |name: &str| {
        let spec = json!({ "roles": ["Source", "Destination"], "postgres": { "host": name, "database": "d", "user": "u" } });
        Peer::new(name, serde_json::from_value(spec).unwrap())
    };
    let spec = json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": [{ "source": "public.t" }] });
    let mut mirror = Mirror::new("shop", serde_json::from_value(spec).unwrap());
    mirror.status = Some(crate::api::MirrorStatus { live_epoch: 1, ..Default::default() });
    Box::new(crate::mirror::brief(&mirror, Some(resync), 2, Some(&peer("a")), Some(&peer("b")), None).unwrap())
}

/// A world that does what is asked of it, one effect at a time.
struct World {
    resync: MirrorResync,
    seen: Observed,
    /// How far the pipeline would have come if it ran.
    done: Vec<String>,
    gone: bool,
    /// What the ledger says of the swap.
    swapped: Option<SwapReport>,
}

impl World {
    fn new(spec: serde_json::Value) -> Self {
        let active = ActiveResync { name: "again".into(), uid: UID.into(), epoch: 2 };
        let mirror =
            MirrorFacts { uid: "m".into(), active: Some(active), live_epoch: 1, max_parallel_workers: 2, ..MirrorFacts::default() };
        let resync = resync(spec);
        let seen = Observed { mirror: Some(mirror), brief: Some(Ok(brief(&resync))), image: "i:1".into(), ..Observed::default() };
        Self { resync, seen, done: vec![], gone: false, swapped: None }
    }

    fn plan(&self) -> Plan {
        plan(&self.resync, &self.seen, now())
    }

    fn report(&mut self, stage: Stage) -> &mut Report {
        let report = self.seen.report.get_or_insert_with(|| Report { mirror_uid: "m".into(), epoch: 2, ..Report::default() });
        report.stage = report.stage.max(stage);
        report
    }

    /// Does one effect, as the cluster and the pods would.
    fn apply(&mut self, effect: &Effect) {
        let finalizers = self.resync.metadata.finalizers.get_or_insert_default();
        match effect {
            Effect::AddFinalizer => finalizers.push(FINALIZER.into()),
            Effect::RemoveFinalizer => {
                finalizers.clear();
                self.gone = self.resync.metadata.deletion_timestamp.is_some();
            }
            Effect::EnsurePipeline { .. } if self.swapped.is_some() => {
                self.seen.pods = vec!["shop-e2-0".into()];
                let swap = self.swapped.clone();
                let report = self.report(Stage::Streaming);
                (report.swap, report.stream) = (swap, Some(Stream { connected: true, ..Stream::default() }));
            }
            Effect::EnsurePipeline { brief, .. }
                if brief.is_live() && self.seen.report.as_ref().is_some_and(|r| r.stage >= Stage::Loaded) =>
            {
                let stream = Stream { connected: true, lag_bytes: Some(1), lag_seconds: Some(0), ..Stream::default() };
                self.report(Stage::CatchingUp).stream.get_or_insert(stream);
            }
            Effect::EnsurePipeline { .. } => {
                self.seen.pods = vec!["shop-e2-0".into()];
                let load = Load { partitions: 3, generation: 1, total_bytes: 100, ..Load::default() };
                self.report(Stage::Loading).load = Some(load);
            }
            Effect::EnsureSnapshotJob { partitions, suspended, .. } => {
                assert_eq!(*partitions, 3);
                self.seen.snapshot_job = Some(JobFacts::default());
                if !suspended {
                    self.report(Stage::Loaded);
                }
            }
            Effect::EnsureSwapJob { .. } => {
                self.seen.swap_job = Some(JobFacts { completed: true, ..JobFacts::default() });
                let report = self.report(Stage::Streaming);
                report.swap = Some(SwapReport { at: "2026-01-01T00:00:00Z".into(), lock_millis: 7, retries: 0 });
                report.stream = Some(Stream { connected: true, ..Stream::default() });
                self.swapped = report.swap.clone();
            }
            Effect::EnsureCleanupJob { .. } => {
                let report = JobReport { swapped: self.swapped.clone(), ..JobReport::default() };
                self.seen.cleanup_job = Some(JobFacts { completed: true, report: Some(report), ..JobFacts::default() });
            }
            Effect::DeletePipeline { epoch: 2 } => {
                self.seen.pods.clear();
                self.seen.report = None;
            }
            Effect::DeleteJobs => {
                self.seen.snapshot_job = None;
                self.seen.swap_job = None;
            }
            Effect::DeleteCleanupJob => self.seen.cleanup_job = None,
            Effect::DeletePipeline { .. } | Effect::Say(_) => {}
            Effect::EnsurePlanJob { .. } | Effect::DeletePlanJob => panic!("a dry run's"),
        }
        self.note(effect);
    }

    fn note(&mut self, effect: &Effect) {
        if !matches!(effect, Effect::Say(_)) {
            let name = format!("{effect:?}");
            let name = name.split([' ', '{']).next().unwrap().to_string();
            if self.done.last() != Some(&name) {
                self.done.push(name);
            }
        }
    }

    fn step(&mut self) {
        let plan = self.plan();
        for effect in &plan.effects {
            self.apply(effect);
        }
        self.resync.status = Some(plan.status);
        if let (true, Some(mirror)) = (self.phase().is_end(), &mut self.seen.mirror) {
            mirror.active = None;
        }
    }

    fn run(&mut self) -> Phase {
        for _ in 0..50 {
            self.step();
            if self.phase().is_end() {
                break;
            }
        }
        self.phase()
    }

    fn phase(&self) -> Phase {
        self.resync.status.as_ref().map(|s| s.phase).unwrap_or_default()
    }

    fn verdict(&self) -> (String, String, String) {
        let status = self.resync.status.clone().unwrap_or_default();
        let c = condition::get(&status.conditions, "Succeeded").unwrap();
        (c.status.clone(), c.reason.clone(), c.message.clone())
    }
}

#[test]
fn a_resync_goes_from_pending_to_running() {
    let mut world = World::new(json!({}));
    assert_eq!(world.run(), Phase::Running);
    let status = world.resync.status.clone().unwrap();
    assert_eq!(world.verdict().0, "True");
    assert!(status.completion_time.is_some() && status.old_pipeline_dropped);
    assert_eq!(status.swap.unwrap().lock_millis, 7);
    assert!(world.done.contains(&"DeletePipeline".to_string()), "{:?}", world.done);
}

#[test]
fn a_crash_after_any_effect_ends_the_same() {
    survives_every_crash(&json!({}));
}

fn survives_every_crash(spec: &serde_json::Value) {
    for crash in 0..60 {
        let mut world = World::new(spec.clone());
        let mut left = crash;
        for _ in 0..60 {
            let plan = world.plan();
            let mut died = false;
            for effect in &plan.effects {
                if left == 0 {
                    died = true;
                    break;
                }
                left -= 1;
                world.apply(effect);
            }
            if died || left == 0 {
                left = usize::MAX; // It died before the status was written; from now on all goes well.
                continue;
            }
            world.resync.status = Some(plan.status);
        }
        assert_eq!(world.phase(), Phase::Running, "crash after {crash} effects");
    }
}

#[test]
fn nothing_is_done_before_its_intent_is_recorded() {
    let mut world = World::new(json!({}));
    for _ in 0..50 {
        let plan = world.plan();
        let begun = world.resync.status.clone().unwrap_or_default().begun;
        for effect in &plan.effects {
            let needs = match effect {
                Effect::EnsurePipeline { .. } => Some(Step::Pipeline),
                Effect::EnsureSnapshotJob { .. } => Some(Step::Snapshot),
                Effect::EnsureSwapJob { .. } => Some(Step::Swap),
                Effect::EnsureCleanupJob { .. } => Some(Step::Cleanup),
                _ => None,
            };
            assert!(needs.is_none_or(|step| begun.contains(&step)), "{effect:?} before its intent");
        }
        world.step();
    }
    assert_eq!(world.phase(), Phase::Running);
}

#[test]
fn an_end_is_never_left_nor_touched_again() {
    let mut world = World::new(json!({}));
    world.run();
    let ended = world.resync.status.clone();
    world.seen = Observed::default();
    world.resync.spec.cancel = true;
    world.step();
    world.step();
    assert_eq!(world.resync.status, ended);
    assert!(world.plan().effects.is_empty());
}

#[test]
fn the_second_resync_waits_and_says_for_whom() {
    let mut world = World::new(json!({}));
    world.seen.mirror.as_mut().unwrap().active = Some(ActiveResync { name: "first".into(), uid: "other".into(), epoch: 2 });
    world.step();
    assert_eq!(world.phase(), Phase::Pending);
    assert!(world.verdict().2.contains("first"));
    assert_eq!(world.done, ["AddFinalizer"]);
}

#[test]
fn a_resync_that_its_mirror_has_not_taken_up_says_so_only_after_a_while() {
    let mut world = World::new(json!({}));
    world.seen.mirror.as_mut().unwrap().active = None;
    world.resync.metadata.creation_timestamp = Some(Time(now()));
    assert_eq!(world.plan().status, MirrorResyncStatus::default(), "nothing to write");
    world.resync.metadata.creation_timestamp = Some(Time(Timestamp::from_second(999_990).unwrap()));
    world.step();
    assert!(world.verdict().2.contains("take this resync up"));
}

#[test]
fn a_resync_of_a_mirror_that_does_not_exist_waits_and_says_so_once() {
    let mut world = World::new(json!({}));
    world.seen.mirror = None;
    let first = world.plan();
    assert!(first.effects.iter().any(|e| matches!(e, Effect::Say(n) if n.reason == "MirrorMissing")));
    world.step();
    assert!(world.plan().effects.iter().all(|e| !matches!(e, Effect::Say(_))));
    assert_eq!(world.phase(), Phase::Pending);
}

#[test]
fn a_transient_failure_is_told_and_waited_out() {
    let mut world = World::new(json!({}));
    world.step();
    world.report(Stage::Checking).failure = Some(Failure { reason: "Connect".into(), message: "refused.".into(), permanent: false });
    let plan = world.plan();
    let status = plan.status;
    assert_eq!(status.phase, Phase::Setup);
    assert_eq!(condition::get(&status.conditions, "Succeeded").unwrap().reason, "Retrying");
}

#[test]
fn deleting_before_the_swap_lets_the_object_go_only_after_cleanup() {
    let mut world = World::new(json!({}));
    world.step();
    world.step();
    world.resync.metadata.deletion_timestamp = Some(Time(now()));
    for _ in 0..20 {
        world.step();
        if world.gone {
            break;
        }
        assert!(world.resync.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty()));
    }
    assert!(world.gone && world.done.contains(&"EnsureCleanupJob".to_string()), "{:?}", world.done);
}

#[test]
fn a_mirror_that_goes_ends_its_resync_in_every_phase_even_if_another_takes_its_name() {
    for steps in 0..12 {
        for gone in 0..3 {
            let mut world = World::new(json!({}));
            for _ in 0..steps {
                world.step();
            }
            if world.phase().is_end() || world.resync.status.as_ref().is_none_or(|s| s.epoch.is_none()) {
                continue;
            }
            match gone {
                0 => world.seen.mirror = None,
                1 => world.seen.mirror.as_mut().unwrap().deleting = true,
                _ => world.seen.mirror.as_mut().unwrap().uid = "another".into(),
            }
            world.seen.pods.clear();
            assert_eq!(world.run(), Phase::Cancelled, "after {steps} steps");
            assert!(!world.done.contains(&"EnsureCleanupJob".to_string()), "the Mirror's own end removes everything");
        }
    }
}

#[test]
fn a_newer_epoch_ends_a_resync_that_waits_for_an_older_one() {
    let mut world = World::new(json!({}));
    world.step();
    world.step();
    world.report(Stage::Superseded);
    assert_eq!(world.run(), Phase::Failed);
    assert_eq!(world.verdict().1, "Superseded");
}

#[test]
fn a_manual_swap_waits_for_approval() {
    let mut world = World::new(json!({ "swap": { "approval": "Manual" } }));
    assert_eq!(world.run(), Phase::Snapshot);
    assert_eq!(world.verdict().1, "WaitingForApproval");
    world.resync.spec.swap.approved = true;
    assert_eq!(world.run(), Phase::Running);
}

#[test]
fn suspending_pauses_the_job_and_resuming_goes_on() {
    let mut world = World::new(json!({ "suspend": true }));
    assert_eq!(world.run(), Phase::Snapshot);
    assert_eq!(world.verdict().1, "Paused");
    world.resync.spec.suspend = false;
    assert_eq!(world.run(), Phase::Running);
}

#[test]
fn a_snapshot_job_that_failed_for_good_fails_the_resync_with_the_workers_own_words() {
    let mut world = World::new(json!({ "suspend": true }));
    world.run();
    let own = Failure { reason: "DataRefused".into(), message: "public.t: value out of range.".into(), permanent: true };
    let report = JobReport { failure: Some(own), ..JobReport::default() };
    world.seen.snapshot_job = Some(JobFacts { failed: Some("BackoffLimitExceeded".into()), report: Some(report), ..JobFacts::default() });
    world.step();
    assert_eq!(world.run(), Phase::Failed);
    let (_, reason, message) = world.verdict();
    assert_eq!(reason, "DataRefused");
    assert!(message.contains("stand still"), "{message}");
    assert!(world.done.contains(&"EnsureCleanupJob".to_string()));
}

#[test]
fn whatever_decides_or_builds_can_reach_neither_a_client_nor_a_clock() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![root.join("report.rs"), root.join("brief.rs"), root.join("name.rs")];
    for module in ["resync", "mirror", "peer", "workload"] {
        files.extend(std::fs::read_dir(root.join(module)).unwrap().map(|entry| entry.unwrap().path()));
    }
    files.retain(|file| file.is_file() && file.file_name().is_some_and(|name| name != "tests.rs"));
    assert!(files.len() > 15, "{files:?}");
    for file in files {
        let source = std::fs::read_to_string(&file).unwrap();
        for forbidden in ["tokio", "kube::", "::now()", "reqwest", "std::fs", "std::net"] {
            assert!(!source.contains(forbidden), "{} mentions {forbidden}", file.display());
        }
    }
}

#[test]
fn where_no_changes_follow_a_resync_ends_once_its_pod_is_done() {
    let mut world = World::new(json!({}));
    let mut brief = brief(&resync(json!({})));
    brief.mode = crate::api::mirror::Mode::SnapshotOnly;
    world.seen.brief = Some(Ok(brief));
    for _ in 0..50 {
        world.step();
    }
    assert_eq!(world.phase(), Phase::Swap, "the old tables are not dropped yet");
    world.report(Stage::Done);
    world.step();
    assert_eq!(world.phase(), Phase::Succeeded);
    let status = world.resync.status.as_ref().unwrap();
    assert_eq!(condition::get(&status.conditions, "Succeeded").map(|c| c.reason.as_str()), Some("Loaded"));
}
