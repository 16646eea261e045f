//! How resyncs end: cancelled, failed, and with a swap of which the reply was lost.

use k8s_openapi::jiff::SignedDuration;

use super::*;

fn failure(reason: &str) -> Failure {
    Failure { reason: reason.into(), message: "public.t is missing.".into(), permanent: true }
}

fn passing(reason: &str) -> Failure {
    Failure { reason: reason.into(), message: "The server is away.".into(), permanent: false }
}

/// A Job whose pods have tried as often as they may.
fn given_up(last: Option<Failure>) -> Option<JobFacts> {
    let report = last.map(|failure| JobReport { failure: Some(failure), ..JobReport::default() });
    Some(JobFacts { failed: Some("BackoffLimitExceeded".into()), report, ..JobFacts::default() })
}

fn events(plan: &Plan, reason: &str) -> usize {
    plan.effects.iter().filter(|e| matches!(e, Effect::Say(n) if n.reason == reason)).count()
}

impl World {
    /// A world in which a load was cancelled and its cleanup Job is about to start.
    fn cleaning() -> Self {
        let mut world = Self::new(json!({ "suspend": true }));
        world.run();
        world.resync.spec.cancel = true;
        while !world.resync.status.as_ref().is_some_and(|s| s.begun.contains(&Step::Cleanup)) {
            world.step();
        }
        world
    }

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
fn a_cleanup_that_cannot_ever_succeed_is_told_only_where_something_was_made() {
    for (stage, told) in [(Stage::Checking, false), (Stage::Preparing, true)] {
        let mut world = World::new(json!({}));
        world.step();
        world.report(stage).failure = Some(failure("TableMissing"));
        world.step();
        world.seen.cleanup_job = given_up(Some(failure("SourcePermissionDenied")));
        assert_eq!(world.run(), Phase::Failed);
        assert_eq!(world.verdict().2.contains("could not be removed (public.t is missing.)"), told, "{:?}", world.verdict());
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
            assert!(world.seen.pods.is_empty());
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
        let mut found = 0;
        match way {
            0 => world.resync.spec.cancel = true,
            1 => world.resync.metadata.deletion_timestamp = Some(Time(now())),
            _ => world.seen.swap_job = given_up(Some(failure("Refused"))),
        }
        while !world.phase().is_end() {
            found += events(&world.plan(), "SwapFound");
            world.step();
        }
        assert_eq!((world.phase(), found), (Phase::Running, 1), "way {way}");
        let status = world.resync.status.clone().unwrap();
        assert_eq!((status.ending, status.swap.unwrap().lock_millis), (None, 3));
        assert!(world.did("EnsureCleanupJob"));
    }
}

#[test]
fn a_cleanup_that_fails_for_the_time_being_is_started_anew_and_says_once_what_is_wrong() {
    for last in [Some(passing("AuthenticationFailed")), None] {
        let mut world = World::cleaning();
        let words = last.as_ref().map_or("BackoffLimitExceeded", |f| f.reason.as_str()).to_string();
        let job = given_up(last);
        for round in 0..3 {
            world.seen.cleanup_job = job.clone();
            let plan = world.plan();
            assert_eq!(events(&plan, "Retrying"), usize::from(round == 0), "said once");
            world.step();
            assert_eq!(world.seen.cleanup_job, None, "there is room for another Job");
            assert!(!world.phase().is_end() && world.resync.status.as_ref().unwrap().ending.is_some());
            let (_, reason, message) = world.verdict();
            assert!(reason == "Retrying" && message.contains(&words) && message.contains("force-delete"), "{message}");
        }
        assert_eq!(world.run(), Phase::Cancelled);
        assert!(!world.verdict().2.contains("could not be removed"));
    }
}

#[test]
fn a_cleanup_that_goes_on_trying_says_what_is_wrong() {
    let mut world = World::cleaning();
    world.seen.cleanup_job = Some(JobFacts { failed: None, ..given_up(Some(passing("AuthenticationFailed"))).unwrap() });
    let plan = world.plan();
    assert!(!plan.effects.contains(&Effect::DeleteCleanupJob), "Kubernetes starts its next pod");
    assert!(condition::get(&plan.status.conditions, "Succeeded").unwrap().message.contains("AuthenticationFailed"));
}

#[test]
fn a_cleanup_is_given_up_if_its_mirror_is_forced() {
    let mut world = World::cleaning();
    world.seen.cleanup_job = given_up(Some(passing("AuthenticationFailed")));
    world.seen.mirror.as_mut().unwrap().forced = true;
    // It may be forced because its brief cannot be read.
    world.seen.brief = None;
    assert_eq!(world.run(), Phase::Cancelled);
    assert!(world.verdict().2.contains("could not be removed (the Mirror is annotated"), "{:?}", world.verdict());
}

#[test]
fn a_resync_that_is_cancelled_at_its_checks_does_not_wait_for_servers_that_are_away() {
    let mut world = World::new(json!({}));
    world.step();
    world.report(Stage::Checking).failure = Some(passing("ConnectionRefused"));
    world.resync.spec.cancel = true;
    world.step();
    world.seen.cleanup_job = given_up(Some(passing("ConnectionRefused")));
    assert_eq!(world.run(), Phase::Cancelled);
}

#[test]
fn pods_that_do_not_end_are_named_and_after_a_minute_cleaned_up_behind() {
    let mut world = World::new(json!({ "suspend": true }));
    world.run();
    world.resync.spec.cancel = true;
    world.step();
    let stuck: Vec<String> = ["again-snapshot-0-x", "shop-e2-0"].map(Into::into).into();
    let at = |world: &World, seconds: i64| plan(&world.resync, &world.seen, now() + SignedDuration::from_secs(seconds));
    world.seen.pods = stuck;
    let said = |plan: &Plan| condition::get(&plan.status.conditions, "Succeeded").unwrap().message.clone();
    assert!(!said(&at(&world, 5)).contains("shop-e2-0"), "usually they end in no time");
    let waits = at(&world, 59);
    assert_eq!(
        (events(&waits, "PodsRemain"), condition::get(&waits.status.conditions, "Succeeded").unwrap().reason.as_str()),
        (1, "PodsRemain")
    );
    assert!(said(&waits).contains("again-snapshot-0-x, shop-e2-0") && !waits.status.begun.contains(&Step::Cleanup), "{}", said(&waits));
    let goes_on = at(&world, 60);
    assert!(goes_on.status.begun.contains(&Step::Cleanup));
    world.resync.status = Some(goes_on.status);
    assert!(at(&world, 61).effects.iter().any(|e| matches!(e, Effect::EnsureCleanupJob { .. })));
}

#[test]
fn a_swap_job_that_gave_up_for_what_passes_is_made_again_and_nothing_is_lost() {
    for last in [Some(passing("SwapBlocked")), None] {
        let mut world = World::swapping(json!({}));
        world.seen.swap_job = given_up(last);
        let plan = world.plan();
        assert!(plan.effects.contains(&Effect::DeleteJobs) && events(&plan, "Retrying") == 1);
        assert!(!plan.effects.iter().any(|e| matches!(e, Effect::EnsureSwapJob { .. })), "first the old one goes");
        world.resync.status = Some(plan.status);
        assert_eq!((world.phase(), world.verdict().1.as_str(), events(&world.plan(), "Retrying")), (Phase::Swap, "Retrying", 0));
        assert_eq!(world.run(), Phase::Running);
        assert!(world.did("EnsureSwapJob") && !world.did("EnsureCleanupJob"));
    }
}

#[test]
fn a_snapshot_job_that_gave_up_for_what_passes_is_made_again_and_what_is_loaded_stays() {
    let mut world = World::new(json!({ "suspend": true }));
    world.run();
    world.resync.spec.suspend = false;
    world.seen.snapshot_job = given_up(Some(passing("DestinationUnavailable")));
    let plan = world.plan();
    assert!(plan.effects.contains(&Effect::DeleteJobs) && events(&plan, "LoadingAgain") == 1);
    assert!(condition::get(&plan.status.conditions, "Succeeded").unwrap().message.contains("DestinationUnavailable"));
    assert_eq!(world.run(), Phase::Running);
    assert!(!world.did("EnsureCleanupJob"));
}

#[test]
fn a_job_that_ended_by_its_exit_code_fails_the_resync_also_without_a_word() {
    let mut world = World::swapping(json!({}));
    world.seen.swap_job = Some(JobFacts { refused: true, ..given_up(None).unwrap() });
    assert_eq!(world.run(), Phase::Failed);
    assert_eq!(world.verdict().1, "SwapFailed");
    let mut world = World::new(json!({ "suspend": true }));
    world.run();
    world.seen.snapshot_job = Some(JobFacts { refused: true, ..given_up(None).unwrap() });
    assert_eq!(world.run(), Phase::Failed);
    assert_eq!(world.verdict().1, "SnapshotFailed");
}

#[test]
fn what_keeps_pods_from_running_is_told_once_and_ends_nothing() {
    let trouble = || Some("Pod x cannot be scheduled: 0/1 nodes are available.".to_string());
    let mut world = World::new(json!({ "suspend": true }));
    world.step();
    world.seen.pod_trouble = trouble();
    world.seen.report = None;
    let told = |world: &World, reason: &str| {
        let plan = world.plan();
        let said = condition::get(&plan.status.conditions, "Succeeded").unwrap();
        assert_eq!((said.status.as_str(), said.reason.as_str(), Some(&said.message)), ("Unknown", reason, trouble().as_ref()));
        events(&plan, reason)
    };
    while world.phase() != Phase::Setup {
        world.step();
        world.seen.report = None;
    }
    assert_eq!(told(&world, "PipelineNotRunning"), 1);
    world.resync.status = Some(world.plan().status);
    assert_eq!(told(&world, "PipelineNotRunning"), 0);
    world.seen.pod_trouble = None;
    world.run();
    assert_eq!(world.phase(), Phase::Snapshot);
    world.seen.snapshot_job.as_mut().unwrap().pod_trouble = trouble();
    assert_eq!(told(&world, "WorkerNotRunning"), 1);
    assert_eq!(
        {
            world.resync.spec.suspend = false;
            world.run()
        },
        Phase::Running
    );
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
