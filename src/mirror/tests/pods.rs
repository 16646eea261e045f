//! Pods that do not run.

use super::*;

#[test]
fn a_pipeline_whose_pod_does_not_run_is_told_with_the_cause_and_one_that_starts_is_waited_for() {
    let (m, mut facts) = live();
    facts.report = None;
    assert_eq!(said(&plan(&m, &facts, now()), "Ready").1, "PipelineNotReachable");
    facts.pod_trouble = Some("Pod shop-e1-0 cannot be scheduled: 0/1 nodes are available".into());
    let told = plan(&m, &facts, now());
    let ready = condition::get(&told.status.conditions, "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "PipelineNotRunning"));
    assert_eq!(Some(&ready.message), facts.pod_trouble.as_ref());
    let warned = |e: &Effect| matches!(e, Effect::Say(notice) if notice.warning && notice.message == ready.message);
    assert!(told.effects.iter().any(warned), "{:?}", told.effects);
}
