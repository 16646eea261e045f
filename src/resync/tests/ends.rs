//! How resyncs end: cancelled, failed, and with a swap of which the reply was lost.

use k8s_openapi::jiff::SignedDuration;

use super::*;

fn failure(reason: &str) -> Failure {
    Failure { reason: reason.into(), message: "public.t is missing.".into(), permanent: true }
}

impl World {
    /// A world in which the swap Job was started but nobody has heard of its end.
    fn swapping(spec: serde_json::Value) -> Self {
        let mut world = Self::new(spec);
        while world.phase() != Phase::Swap {
            world.step();
        }
        world.seen.swap_job = Some(JobFacts::default());
        world
    }

    fn did(&self, effect: &str) -> bool {
        self.done.iter().any(|done| done == effect)
    }
}

#[test]
fn a_failed_check_ends_the_resync_after_a_cleanup_and_the_old_stream_goes_on() {
    let mut world = World::new(json!({}));
    world.step();
    world.report(Stage::Checking).failure = Some(failure("TableMissing"));
    assert_eq!(world.run(), Phase::Failed);
    assert_eq!(world.verdict(), ("False".into(), "TableMissing".into(), "public.t is missing.".into()));
    assert!(world.did("EnsureCleanupJob"), "a restarted pod may have begun meanwhile");
    assert!(!world.resync.status.clone().unwrap().old_pipeline_dropped);
}

#[test]
fn a_cleanup_that_fails_is_told_only_where_something_was_made() {
    for (stage, told) in [(Stage::Checking, false), (Stage::Preparing, true)] {
        let mut world = World::new(json!({}));
        world.step();
        world.report(stage).failure = Some(failure("TableMissing"));
        world.step();
        world.seen.cleanup_job = Some(JobFacts { failed: Some("BackoffLimitExceeded".into()), ..JobFacts::default() });
        assert_eq!(world.run(), Phase::Failed);
        assert_eq!(world.verdict().2.contains("could not be removed (BackoffLimitExceeded)"), told, "{:?}", world.verdict());
    }
}

#[test]
fn cancelling_at_any_point_before_the_swap_cleans_up_and_after_it_is_too_late() {
    for steps in 0..20 {
        let mut world = World::new(json!({}));
        for _ in 0..steps {
            world.step();
        }
        let too_late = world.swapped.is_some();
        let begun = world.resync.status.as_ref().is_some_and(|s| s.begun.contains(&Step::Pipeline));
        world.resync.spec.cancel = true;
        let end = world.run();
        assert_eq!(end, if too_late { Phase::Running } else { Phase::Cancelled }, "after {steps} steps");
        if !too_late {
            assert_eq!(world.seen.pods, 0);
            assert_eq!(world.did("EnsureCleanupJob"), begun);
        }
    }
}

#[test]
fn cancelling_while_the_swap_job_has_not_swapped_yet_cancels() {
    let mut world = World::swapping(json!({}));
    world.resync.spec.cancel = true;
    assert_eq!(world.run(), Phase::Cancelled);
    assert!(world.did("EnsureCleanupJob") && !world.did("EnsureSwapJob"));
}

#[test]
fn a_cleanup_that_finds_the_tables_swapped_leads_to_the_resyncs_good_end() {
    for way in 0..3 {
        let mut world = World::swapping(json!({}));
        world.swapped = Some(SwapReport { lock_millis: 3, ..SwapReport::default() });
        match way {
            0 => world.resync.spec.cancel = true,
            1 => world.resync.metadata.deletion_timestamp = Some(Time(now())),
            _ => world.seen.swap_job = Some(JobFacts { failed: Some("BackoffLimitExceeded".into()), ..JobFacts::default() }),
        }
        assert_eq!(world.run(), Phase::Running, "way {way}");
        let status = world.resync.status.clone().unwrap();
        assert_eq!((status.ending, status.swap.unwrap().lock_millis), (None, 3));
        assert!(world.did("EnsureCleanupJob"));
    }
}

#[test]
fn a_cleanup_whose_word_was_lost_is_asked_again() {
    let mut world = World::swapping(json!({}));
    world.resync.spec.cancel = true;
    world.swapped = Some(SwapReport::default());
    world.seen.cleanup_job = Some(JobFacts { completed: true, ..JobFacts::default() });
    assert_eq!(world.run(), Phase::Running);
    assert!(world.did("DeleteCleanupJob"));
}

#[test]
fn the_swap_jobs_own_word_is_enough_to_be_too_late_for_a_cancel() {
    let mut world = World::swapping(json!({}));
    world.seen.report = None;
    let report = JobReport { swapped: Some(SwapReport::default()), ..JobReport::default() };
    world.seen.swap_job = Some(JobFacts { completed: true, report: Some(report), ..JobFacts::default() });
    world.resync.spec.cancel = true;
    world.step();
    assert_eq!(world.phase(), Phase::Swap);
    assert!(!world.did("DeleteJobs") && world.resync.status.as_ref().unwrap().ending.is_none());
}

#[test]
fn a_resync_is_running_only_once_its_stream_is_connected() {
    let mut world = World::new(json!({}));
    while world.swapped.is_none() {
        world.step();
    }
    world.seen.report.as_mut().unwrap().stream = Some(Stream::default());
    world.step();
    assert_eq!((world.phase(), world.verdict().1.as_str()), (Phase::Swap, "Connecting"));
    world.seen.report.as_mut().unwrap().stream = Some(Stream { connected: true, ..Stream::default() });
    world.step();
    assert_eq!(world.phase(), Phase::Running);
}

#[test]
fn a_slot_that_is_lost_by_the_time_of_the_swap_fails_the_resync_but_leaves_its_tables_live() {
    let mut world = World::new(json!({}));
    while world.swapped.is_none() {
        world.step();
    }
    world.done.clear();
    world.seen.report.as_mut().unwrap().stream = Some(Stream { slot_lost: Some("The slot is gone.".into()), ..Stream::default() });
    assert_eq!(world.run(), Phase::Failed);
    let (_, reason, message) = world.verdict();
    assert_eq!(reason, "SlotLost");
    assert_eq!(message, "The tables are swapped, but the change stream cannot go on: The slot is gone. Apply a new MirrorResync.");
    assert!(world.resync.status.as_ref().unwrap().swap.is_some() && world.done.is_empty(), "{:?}", world.done);
}

#[test]
fn an_error_that_stays_fails_the_resync_before_its_swap_and_ends_it_after() {
    for (stage, cleaned) in [(Stage::Loaded, true), (Stage::Superseded, true), (Stage::Streaming, false)] {
        let mut world = World::swapping(json!({}));
        let report = world.report(stage);
        report.failure = Some(failure("Refused"));
        report.swap = (stage == Stage::Streaming).then(SwapReport::default);
        assert_eq!(world.run(), Phase::Failed, "{stage:?}");
        assert_eq!(world.did("EnsureCleanupJob"), cleaned, "{stage:?}");
    }
}

#[test]
fn a_snapshot_job_that_is_complete_with_chunks_left_is_started_anew() {
    let mut world = World::new(json!({ "suspend": true }));
    world.run();
    world.resync.spec.suspend = false;
    let job = |seconds: i64| {
        let ended = now().checked_sub(SignedDuration::from_secs(seconds)).unwrap();
        Some(JobFacts { completed: true, ended: Some(ended), ..JobFacts::default() })
    };
    let anew = |plan: &Plan| plan.effects.contains(&Effect::DeleteJobs);
    world.seen.snapshot_job = job(3);
    assert!(!anew(&world.plan()), "the pipeline may not have looked yet");
    world.seen.snapshot_job = job(30);
    let plan = world.plan();
    assert!(anew(&plan) && plan.effects.iter().any(|e| matches!(e, Effect::Say(n) if n.reason == "LoadingAgain")));
    world.seen.report = None;
    assert!(!anew(&world.plan()), "nobody says that something is left");
    world.seen.snapshot_job = None;
    assert_eq!(world.run(), Phase::Running);
}

#[test]
fn an_ended_resync_that_was_deleted_goes_only_once_its_mirror_has_seen_the_end() {
    let mut world = World::new(json!({}));
    world.run();
    world.resync.metadata.deletion_timestamp = Some(Time(now()));
    let active = Some(ActiveResync { name: "again".into(), uid: UID.into(), epoch: 2 });
    world.seen.mirror.as_mut().unwrap().active = active.clone();
    assert!(world.plan().effects.is_empty());
    world.seen.mirror.as_mut().unwrap().deleting = true;
    assert_eq!(world.plan().effects, [Effect::RemoveFinalizer], "a Mirror that goes takes leave of nobody");
    world.seen.mirror.as_mut().unwrap().deleting = false;
    world.seen.mirror.as_mut().unwrap().active = None;
    assert_eq!(world.plan().effects, [Effect::RemoveFinalizer]);
}
