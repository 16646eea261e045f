//! A resync beside a stream that goes on.

use super::*;

#[test]
fn a_resync_with_a_live_handover_leaves_the_mirror_streaming_until_its_swap() {
    let (mut m, mut facts) = live();
    let status = m.status.as_mut().unwrap();
    status.epoch = 2;
    status.active_resync = Some(crate::api::mirror::ActiveResync { name: "r".into(), uid: "r".into(), epoch: 2 });
    facts.pipelines = vec![(1, 1), (2, 1)];
    facts.resyncs = vec![ResyncFacts { phase: Phase::CatchUp, epoch: Some(2), live: true, ..waiting("r") }];
    let kept = |plan: &Plan| {
        let ensured =
            plan.effects.iter().find_map(|e| if let Effect::EnsurePipeline { replicas, .. } = e { Some(*replicas) } else { None });
        (ensured, plan.effects.iter().any(|e| matches!(e, Effect::DeletePipeline { .. })))
    };
    let beside = plan(&m, &facts, now());
    assert_eq!(kept(&beside), (Some(1), false));
    assert_eq!((said(&beside, "Ready").0.as_str(), beside.status.phase), ("True", MirrorPhase::Running));
    m.spec.suspend = true;
    assert_eq!(kept(&plan(&m, &facts, now())), (Some(0), false), "what is suspended stays so");
    m.spec.suspend = false;
    for swapped in [ResyncFacts { swapped: true, ..facts.resyncs[0].clone() }, ResyncFacts { live: false, ..facts.resyncs[0].clone() }] {
        let facts = Observed { resyncs: vec![swapped], ..facts.clone() };
        let resyncing = plan(&m, &facts, now());
        assert_eq!(kept(&resyncing), (None, false));
        assert_eq!(said(&resyncing, "Ready").1, "Resyncing");
    }
}
