//! A live handover: the old pipeline streams on until the swap.

use super::*;

fn live() -> World {
    World::new(json!({ "handover": "Live" }))
}

/// A world in which the new tables are catching up.
fn catching_up() -> World {
    let mut world = live();
    while world.phase() != Phase::CatchUp {
        world.step();
    }
    world.step();
    world
}

fn old_pipeline_deleted(plan: &Plan) -> bool {
    plan.effects.contains(&Effect::DeletePipeline { epoch: 1 })
}

#[test]
fn the_old_pipeline_goes_once_the_tables_are_swapped_and_not_before() {
    let mut world = live();
    let mut phases = vec![];
    while !world.phase().is_end() {
        let plan = world.plan();
        assert!(!old_pipeline_deleted(&plan) || plan.status.swap.is_some(), "in phase {:?}", world.phase());
        world.step();
        phases.push(world.phase());
    }
    phases.dedup();
    assert_eq!(phases, [Phase::Setup, Phase::Snapshot, Phase::CatchUp, Phase::Swap, Phase::Running]);
    let status = world.resync.status.clone().unwrap();
    assert!(status.old_pipeline_dropped && condition::holds(&status.conditions, "CaughtUp"));
    assert!(world.done.contains(&"DeletePipeline".to_string()), "{:?}", world.done);
    survives_every_crash(&json!({ "handover": "Live" }));
}

#[test]
fn the_swap_waits_until_the_new_tables_are_nearly_as_fresh() {
    for (bytes, seconds, connected) in
        [(None, Some(0), true), (Some(1 << 40), Some(0), true), (Some(1), Some(60), true), (Some(1), Some(0), false)]
    {
        let mut world = live();
        while world.phase() != Phase::CatchUp {
            world.step();
        }
        let stream = Stream { connected, lag_bytes: bytes, lag_seconds: seconds, ..Stream::default() };
        world.report(Stage::CatchingUp).stream = Some(stream);
        world.step();
        assert_eq!((world.phase(), world.verdict().1.as_str()), (Phase::CatchUp, "CatchUp"), "{bytes:?} {seconds:?} {connected}");
    }
}

#[test]
fn a_manual_swap_waits_for_approval_with_both_streaming() {
    let mut world = World::new(json!({ "handover": "Live", "swap": { "approval": "Manual" } }));
    for _ in 0..20 {
        world.step();
    }
    assert_eq!((world.phase(), world.verdict().1.as_str()), (Phase::CatchUp, "WaitingForApproval"));
    world.resync.spec.swap.approved = true;
    assert_eq!(world.run(), Phase::Running);
}

#[test]
fn a_failure_before_the_swap_leaves_the_old_stream_to_the_mirror() {
    let mut world = catching_up();
    let failure = Failure { reason: "VerificationFailed".into(), message: "public.t has 7 rows and 6.".into(), permanent: true };
    world.report(Stage::CatchingUp).failure = Some(failure);
    assert_eq!(world.run(), Phase::Failed);
    let status = world.resync.status.clone().unwrap();
    assert!(!status.old_pipeline_dropped && world.done.contains(&"EnsureCleanupJob".to_string()), "{:?}", world.done);
    assert!(!world.verdict().2.contains("stand still"), "{:?}", world.verdict());
}

#[test]
fn without_a_stream_to_hand_over_it_is_as_drop_first() {
    let mut world = live();
    let Some(Ok(brief)) = &mut world.seen.brief else { panic!() };
    brief.handover = Default::default();
    assert_eq!(world.run(), Phase::Running);
    assert!(!condition::holds(&world.resync.status.clone().unwrap().conditions, "CaughtUp"));
}

#[test]
fn one_that_cannot_begin_ends_and_makes_room_for_another() {
    let mut world = live();
    world.seen.brief = Some(Err("This Mirror does not stream.".into()));
    assert_eq!(world.run(), Phase::Failed);
    assert_eq!((world.verdict().1.as_str(), world.verdict().2.as_str()), ("InvalidMirror", "This Mirror does not stream."));
    assert!(!world.resync.status.clone().unwrap().old_pipeline_dropped && !world.done.contains(&"EnsurePipeline".to_string()));
}
