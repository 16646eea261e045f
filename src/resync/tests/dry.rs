//! Dry runs.

use super::*;
use crate::report::PlanReport;

fn dry(more: serde_json::Value) -> (MirrorResync, Observed) {
    let mut spec = json!({ "dryRun": true });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mirror = MirrorFacts { uid: "m".into(), live_epoch: 1, max_parallel_workers: 2, ..MirrorFacts::default() };
    (
        resync(spec),
        Observed { mirror: Some(mirror), brief: Some(Ok(brief(&resync(json!({}))))), image: "i:1".into(), ..Observed::default() },
    )
}

/// One pass, whose status is recorded.
fn pass(resync: &mut MirrorResync, seen: &Observed) -> Vec<Effect> {
    let plan = plan(resync, seen, now());
    resync.status = Some(plan.status);
    plan.effects
}

fn said(resync: &MirrorResync) -> (Phase, String, String) {
    let status = resync.status.as_ref().unwrap();
    let succeeded = condition::get(&status.conditions, "Succeeded").unwrap();
    (status.phase, succeeded.status.clone(), succeeded.message.clone())
}

fn ended(report: JobReport) -> JobFacts {
    let failed = report.failure.as_ref().map(|_| "Job again-plan failed".to_string());
    JobFacts { completed: failed.is_none(), failed, report: Some(report), ..JobFacts::default() }
}

#[test]
fn a_dry_run_makes_one_job_and_tells_what_it_found() {
    let (mut r, mut seen) = dry(json!({}));
    assert_eq!(pass(&mut r, &seen), vec![]);
    for _ in 0..2 {
        let effects = pass(&mut r, &seen);
        assert_eq!(
            effects,
            [Effect::EnsurePlanJob { brief: brief(&resync(json!({}))), image: "i:1".into() }],
            "neither a finalizer nor anything of an epoch"
        );
    }
    assert_eq!(r.status.as_ref().unwrap().epoch, None);
    let plan = PlanReport { tables: 2, rows: 1000, bytes: 3 << 20, chunks: 9, partitions: 4 };
    seen.plan_job = Some(ended(JobReport { plan: Some(plan), ..JobReport::default() }));
    pass(&mut r, &seen);
    let (phase, verdict, message) = said(&r);
    assert_eq!((phase, verdict.as_str()), (Phase::Succeeded, "True"));
    assert!(message.contains("2 tables of about 1000 rows and 3.0 MiB, in 9 chunks and 4 partitions"), "{message}");
    let status = r.status.clone().unwrap();
    assert_eq!(status.plan.as_ref().map(|p| (p.tables, p.rows, p.bytes, p.chunks, p.partitions)), Some((2, 1000, 3 << 20, 9, 4)));
    assert!(status.completion_time.is_some());
    assert_eq!(pass(&mut r, &seen), vec![]);
    assert_eq!(r.status, Some(status), "an end is an end");
}

#[test]
fn what_stands_in_the_way_fails_a_dry_run_with_its_cure() {
    let (mut r, mut seen) = dry(json!({}));
    pass(&mut r, &seen);
    let failure = Failure { reason: "TableMissing".into(), message: "create it".into(), permanent: true };
    seen.plan_job = Some(ended(JobReport { failure: Some(failure), ..JobReport::default() }));
    let effects = pass(&mut r, &seen);
    assert_eq!(said(&r), (Phase::Failed, "False".into(), "create it".into()));
    assert_eq!(effects, [Effect::Say(Notice::warning("TableMissing", "create it"))]);
}

#[test]
fn a_job_whose_word_is_lost_is_made_again() {
    let (mut r, mut seen) = dry(json!({}));
    pass(&mut r, &seen);
    seen.plan_job = Some(JobFacts { completed: true, ..JobFacts::default() });
    assert_eq!(pass(&mut r, &seen), [Effect::DeletePlanJob]);
    seen.plan_job = None;
    assert!(matches!(pass(&mut r, &seen)[..], [Effect::EnsurePlanJob { .. }]));
}

#[test]
fn a_dry_run_waits_for_a_resync_that_is_active_for_its_mirror_and_for_people() {
    let (mut r, mut seen) = dry(json!({}));
    let mirror = seen.mirror.take();
    assert_eq!(pass(&mut r, &seen), vec![]);
    assert!(said(&r).2.contains("does not exist"));
    seen.mirror = mirror;
    seen.mirror.as_mut().unwrap().active = Some(ActiveResync { name: "other".into(), uid: "o".into(), epoch: 2 });
    pass(&mut r, &seen);
    assert_eq!(said(&r), (Phase::Pending, "Unknown".into(), "Waiting for MirrorResync other to end.".into()));
    seen.mirror.as_mut().unwrap().active = None;
    seen.brief = Some(Err("no such Peer".into()));
    pass(&mut r, &seen);
    assert_eq!(said(&r).2, "no such Peer");
    let (mut paused, seen) = dry(json!({ "suspend": true }));
    pass(&mut paused, &seen);
    assert_eq!(said(&paused).0, Phase::Pending);
}

#[test]
fn a_dry_run_that_is_cancelled_or_whose_mirror_goes_ends_and_removes_its_job() {
    let (mut r, seen) = dry(json!({}));
    pass(&mut r, &seen);
    r.spec.cancel = true;
    assert_eq!(pass(&mut r, &seen), [Effect::DeletePlanJob]);
    assert_eq!(said(&r).0, Phase::Cancelled);
    let (mut r, mut seen) = dry(json!({}));
    pass(&mut r, &seen);
    seen.mirror = None;
    assert_eq!(pass(&mut r, &seen), [Effect::DeletePlanJob]);
    assert_eq!(said(&r).0, Phase::Cancelled);
}
