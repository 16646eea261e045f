//! The Mirror's planner as a table.

mod beside;
mod pods;
mod reasons;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::json;

use super::*;
use crate::{
    api::{Mirror, Peer, condition, mirror::MirrorPhase},
    report::{Failure, SequencesReport, Stage, Stream, TableReport},
};

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn mirror() -> Mirror {
    let spec = json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": [{ "source": "public.t" }] });
    let mut mirror = Mirror::new("shop", serde_json::from_value(spec).unwrap());
    mirror.metadata.uid = Some("22222222-0000-4000-8000-000000000000".into());
    mirror.metadata.generation = Some(1);
    mirror.metadata.finalizers = Some(vec![FINALIZER.into()]);
    mirror
}

fn peer(name: &str, roles: serde_json::Value) -> Peer {
    let spec = json!({ "roles": roles, "postgres": { "host": name, "database": "d", "user": "u" } });
    Peer::new(name, serde_json::from_value(spec).unwrap())
}

fn seen(mirror: &Mirror) -> Observed {
    let (a, b) = (peer("a", json!(["Source"])), peer("b", json!(["Destination"])));
    Observed { brief: Some(brief(mirror, None, 1, Some(&a), Some(&b), None).map(Box::new)), image: "i:1".into(), ..Observed::default() }
}

fn waiting(name: &str) -> ResyncFacts {
    ResyncFacts { name: name.into(), uid: name.into(), ..ResyncFacts::default() }
}

fn live() -> (Mirror, Observed) {
    let mut mirror = mirror();
    let status = crate::api::MirrorStatus { epoch: 1, live_epoch: 1, ..Default::default() };
    mirror.status = Some(status);
    let mut seen = seen(&mirror);
    let stream = Stream { connected: true, ..Stream::default() };
    seen.report = Some(Report { epoch: 1, stage: Stage::Streaming, stream: Some(stream), ..Report::default() });
    (mirror, seen)
}

fn said(plan: &Plan, kind: &str) -> (String, String) {
    let c = condition::get(&plan.status.conditions, kind).unwrap();
    (c.status.clone(), c.reason.clone())
}

#[test]
fn a_new_mirror_makes_its_first_load_and_then_chooses_it() {
    let mut m = mirror();
    let mut facts = seen(&m);
    let first = plan(&m, &facts, now());
    assert!(first.effects.contains(&Effect::CreateResync { name: "shop-initial".into() }));
    assert_eq!(first.status.epoch, 0);
    facts.resyncs = vec![waiting("shop-initial")];
    m.status = Some(first.status);
    let second = plan(&m, &facts, now());
    assert_eq!(second.status.active_resync.as_ref().map(|a| (a.name.as_str(), a.epoch)), Some(("shop-initial", 1)));
    assert_eq!(second.status.epoch, 1);
}

#[test]
fn an_unknown_peer_is_named_and_nothing_is_made() {
    let m = mirror();
    let source = peer("a", json!(["Source"]));
    let facts = Observed { brief: Some(brief(&m, None, 1, Some(&source), None, None).map(Box::new)), ..Observed::default() };
    let refused = plan(&m, &facts, now());
    assert_eq!(said(&refused, "Ready"), ("False".into(), "InvalidSpec".into()));
    assert!(refused.effects.iter().all(|e| matches!(e, Effect::Say(n) if n.message.contains("\"b\""))));
}

#[test]
fn of_two_waiting_resyncs_the_older_is_chosen_and_held_ones_are_passed_over() {
    let (m, mut facts) = live();
    facts.resyncs = vec![ResyncFacts { held: true, ..waiting("held") }, waiting("older"), waiting("newer")];
    let plan = plan(&m, &facts, now());
    assert_eq!(plan.status.active_resync.unwrap().name, "older");
}

#[test]
fn a_resync_that_ended_well_makes_its_epoch_live_and_history() {
    let (mut m, mut facts) = live();
    let status = m.status.as_mut().unwrap();
    status.epoch = 2;
    status.active_resync = Some(crate::api::mirror::ActiveResync { name: "r".into(), uid: "r".into(), epoch: 2 });
    status.tables = vec![crate::api::mirror::TableStatus { inserts: 7, ..Default::default() }];
    facts.resyncs = vec![ResyncFacts { phase: Phase::Running, epoch: Some(2), ended: Some(Time(now())), rows: 5, ..waiting("r") }];
    let plan = plan(&m, &facts, now());
    assert!(plan.effects.contains(&Effect::DeleteBrief { epoch: 1 }) && !plan.effects.contains(&Effect::DeleteBrief { epoch: 2 }));
    assert!(plan.status.tables.is_empty(), "statistics start afresh");
    assert_eq!((plan.status.live_epoch, plan.status.active_resync, plan.status.resyncs.len()), (2, None, 1));
    assert_eq!(plan.status.resyncs[0].rows, 5);
}

#[test]
fn a_resync_that_swapped_and_then_lost_its_slot_makes_its_epoch_live_all_the_same() {
    let (mut m, mut facts) = live();
    let status = m.status.as_mut().unwrap();
    status.epoch = 2;
    status.active_resync = Some(crate::api::mirror::ActiveResync { name: "r".into(), uid: "r".into(), epoch: 2 });
    facts.resyncs = vec![ResyncFacts { phase: Phase::Failed, swapped: true, old_pipeline_dropped: true, ..waiting("r") }];
    let after = plan(&m, &facts, now()).status;
    assert_eq!((after.live_epoch, after.stream_dropped, after.resyncs[0].outcome), (2, false, crate::api::resync::Outcome::Failed));
}

#[test]
fn of_the_briefs_of_failed_epochs_only_the_newest_is_kept() {
    let table = [(0, 1, vec![]), (0, 3, vec![2]), (2, 3, vec![]), (2, 4, vec![3])];
    for (live, epoch, gone) in table {
        let mut m = mirror();
        let active = crate::api::mirror::ActiveResync { name: "r".into(), uid: "r".into(), epoch };
        m.status = Some(crate::api::MirrorStatus { epoch, live_epoch: live, active_resync: Some(active), ..Default::default() });
        let mut facts = seen(&m);
        let deletes = |facts: &Observed| -> Vec<u32> {
            let of = |e: Effect| if let Effect::DeleteBrief { epoch } = e { Some(epoch) } else { None };
            plan(&m, facts, now()).effects.into_iter().filter_map(of).collect()
        };
        facts.resyncs = vec![ResyncFacts { phase: Phase::Cancelled, epoch: None, ..waiting("r") }];
        assert_eq!(deletes(&facts), Vec::<u32>::new(), "epoch {epoch} was never begun");
        facts.resyncs = vec![ResyncFacts { phase: Phase::Failed, epoch: Some(epoch), ..waiting("r") }];
        assert_eq!(deletes(&facts), gone, "live {live}, failed {epoch}");
    }
}

#[test]
fn a_refused_mirror_still_takes_leave_of_a_resync_that_has_ended() {
    let mut m = mirror();
    let active = crate::api::mirror::ActiveResync { name: "r".into(), uid: "r".into(), epoch: 1 };
    m.status = Some(crate::api::MirrorStatus { epoch: 1, active_resync: Some(active), ..Default::default() });
    let resyncs = vec![ResyncFacts { phase: Phase::Failed, epoch: Some(1), ..waiting("r") }];
    let refused = plan(&m, &Observed { resyncs, conflict: Some("Mirror other already writes it.".into()), ..seen(&m) }, now());
    assert_eq!(said(&refused, "Ready").1, "Conflict");
    assert_eq!((refused.status.active_resync, refused.status.resyncs.len()), (None, 1));
}

#[test]
fn of_its_own_resyncs_the_mirror_keeps_the_ten_newest_that_ended() {
    let (m, mut facts) = live();
    let own = |i: usize| ResyncFacts { own: true, phase: Phase::Failed, ended: Some(Time(now())), ..waiting(&format!("own-{i}")) };
    facts.resyncs = (0..12).map(own).collect();
    facts.resyncs.insert(0, ResyncFacts { own: false, phase: Phase::Failed, ..waiting("a-users") });
    facts.resyncs[1].deleting = true;
    let gone: Vec<Effect> = plan(&m, &facts, now()).effects.into_iter().filter(|e| matches!(e, Effect::DeleteResync { .. })).collect();
    assert_eq!(gone, [Effect::DeleteResync { name: "own-1".into() }]);
}

#[test]
fn a_resync_that_failed_after_dropping_the_old_pipeline_leaves_the_mirror_failed_until_the_next() {
    let (mut m, mut facts) = live();
    let status = m.status.as_mut().unwrap();
    status.epoch = 2;
    status.active_resync = Some(crate::api::mirror::ActiveResync { name: "r".into(), uid: "r".into(), epoch: 2 });
    facts.resyncs = vec![ResyncFacts { phase: Phase::Failed, old_pipeline_dropped: true, ..waiting("r") }];
    facts.report = None;
    let after = plan(&m, &facts, now());
    assert_eq!((after.status.live_epoch, after.status.phase), (1, MirrorPhase::Failed));
    assert_eq!(said(&after, "ResyncRequired").0, "True");
    m.status = Some(after.status);
    facts.pipelines = vec![(1, 1), (2, 1)];
    let next = plan(&m, &facts, now());
    assert!(next.effects.contains(&Effect::DeletePipeline { epoch: 1 }) && next.effects.contains(&Effect::DeletePipeline { epoch: 2 }));
    assert!(!next.effects.iter().any(|e| matches!(e, Effect::EnsurePipeline { .. })));
}

#[test]
fn a_failed_first_load_is_tried_again_with_patience() {
    let mut m = mirror();
    m.status = Some(crate::api::MirrorStatus { epoch: 1, ..Default::default() });
    let mut facts = seen(&m);
    let failed = |at: i64| ResyncFacts {
        phase: Phase::Failed,
        ended: Some(Time(Timestamp::from_second(at).unwrap())),
        message: "why".into(),
        ..waiting("shop-initial")
    };
    facts.resyncs = vec![failed(999_990)];
    let early = plan(&m, &facts, now());
    assert!(!early.effects.iter().any(|e| matches!(e, Effect::CreateResync { .. })));
    assert_eq!(said(&early, "Ready"), ("False".into(), "LoadFailed".into()));
    facts.resyncs = vec![failed(999_960)];
    assert!(plan(&m, &facts, now()).effects.contains(&Effect::CreateResync { name: "shop-initial-2".into() }));
}

#[test]
fn health_is_progress_not_pods() {
    let (m, mut facts) = live();
    assert_eq!(said(&plan(&m, &facts, now()), "Ready"), ("True".into(), "Streaming".into()));
    facts.report.as_mut().unwrap().stream.as_mut().unwrap().slot_lost = Some("The slot is gone.".into());
    let lost = plan(&m, &facts, now());
    assert_eq!(
        (said(&lost, "Ready").1, said(&lost, "SlotHealthy").0, said(&lost, "ResyncRequired").0),
        ("SlotLost".into(), "False".into(), "True".into())
    );
    let failure = crate::report::Failure { reason: "DestinationUnavailable".into(), message: "refused.".into(), permanent: false };
    facts.report = Some(Report { epoch: 1, stage: Stage::Checking, failure: Some(failure), ..Report::default() });
    let starting = plan(&m, &facts, now()).status.conditions;
    assert_eq!(condition::get(&starting, "Ready").unwrap().message, "DestinationUnavailable: refused.");
    facts.report = None;
    assert_eq!(said(&plan(&m, &facts, now()), "Ready").0, "Unknown");
}

#[test]
fn a_lost_slot_starts_a_resync_only_if_the_policy_says_so() {
    let (mut m, mut facts) = live();
    facts.report.as_mut().unwrap().stream.as_mut().unwrap().slot_lost = Some("gone".into());
    let creates = |plan: &Plan| plan.effects.iter().any(|e| matches!(e, Effect::CreateResync { .. }));
    let words = |plan: &Plan, kind: &str| condition::get(&plan.status.conditions, kind).unwrap().message.clone();
    let asked = plan(&m, &facts, now());
    assert!(!creates(&asked) && words(&asked, "ResyncRequired") == "gone. Apply a MirrorResync.", "{asked:?}");
    m.spec.resync_policy.on_slot_lost = crate::api::mirror::OnSlotLost::Automatic;
    let automatic = plan(&m, &facts, now());
    assert!(creates(&automatic) && words(&automatic, "ResyncRequired").starts_with("gone. resyncPolicy"), "{automatic:?}");
}

#[test]
fn an_old_stream_whose_slot_its_resync_has_dropped_raises_no_alarm() {
    let (m, mut facts) = live();
    let mut m = Mirror { status: Some(plan(&m, &facts, now()).status), ..m };
    facts.resyncs = vec![waiting("again")];
    m.status = Some(plan(&m, &facts, now()).status);
    assert!(m.status.as_ref().unwrap().active_resync.is_some());
    facts.report.as_mut().unwrap().stream.as_mut().unwrap().slot_lost = Some("gone".into());
    let during = plan(&m, &facts, now());
    assert_eq!((said(&during, "SlotHealthy").0, said(&during, "ResyncRequired").0), ("True".into(), "False".into()));
}

#[test]
fn an_automatic_resync_that_fails_is_tried_again_with_patience_even_if_it_dropped_the_stream() {
    let (mut m, mut facts) = live();
    m.spec.resync_policy.on_slot_lost = crate::api::mirror::OnSlotLost::Automatic;
    m.status.as_mut().unwrap().stream_dropped = true;
    facts.report = None;
    let failed = |name: &str, own: bool, ago: i64| {
        let ended = Some(Time(Timestamp::from_second(1_000_000 - ago).unwrap()));
        ResyncFacts { own, phase: Phase::Failed, ended, ..waiting(name) }
    };
    let creates = |facts: &Observed| plan(&m, facts, now()).effects.iter().any(|e| matches!(e, Effect::CreateResync { .. }));
    let table = [
        (vec![failed("auto", true, 29)], false),
        (vec![failed("auto", true, 31)], true),
        (vec![failed("auto", true, 200), failed("auto-2", true, 31)], false),
        (vec![failed("auto", true, 200), failed("auto-2", true, 61)], true),
        (vec![failed("a-users", false, 1000)], false),
        (vec![ResyncFacts { phase: Phase::Cancelled, ..failed("auto", true, 1000) }], false),
    ];
    for (resyncs, wanted) in table {
        facts.resyncs = resyncs;
        assert_eq!(creates(&facts), wanted, "{:?}", facts.resyncs);
    }
}

#[test]
fn tables_that_were_changed_while_a_resync_ran_ask_for_another() {
    let (mut m, mut facts) = live();
    m.spec.tables.push(serde_json::from_value(json!({ "source": "public.added" })).unwrap());
    assert_eq!(said(&plan(&m, &facts, now()), "SchemaInSync").0, "False", "the live epoch's brief does not have the table");
    let status = m.status.as_mut().unwrap();
    status.epoch = 2;
    status.active_resync = Some(crate::api::mirror::ActiveResync { name: "r".into(), uid: "r".into(), epoch: 2 });
    facts.resyncs = vec![ResyncFacts { phase: Phase::Running, epoch: Some(2), ..waiting("r") }];
    let released = plan(&m, &facts, now());
    assert_eq!(said(&released, "SchemaInSync").0, "True", "the new epoch's brief was not read yet");
    m.status = Some(released.status);
    let Some(Ok(brief)) = &mut facts.brief else { panic!() };
    brief.epoch = 2;
    assert_eq!(said(&plan(&m, &facts, now()), "ResyncRequired").0, "True");
}

/// How many Events say this.
fn said_of(plan: &Plan, message: &str) -> usize {
    plan.effects.iter().filter(|e| matches!(e, Effect::Say(notice) if notice.message == message)).count()
}

#[test]
fn what_turns_out_to_be_wrong_with_the_schema_is_an_event_and_so_is_its_end() {
    let (mut m, mut facts) = live();
    m.status = Some(plan(&m, &facts, now()).status);
    let drifted = TableReport { source: "public.t".into(), drift: Some("made again".into()), ..TableReport::default() };
    facts.report.as_mut().unwrap().tables = vec![drifted];
    let told = plan(&m, &facts, now());
    let words = condition::get(&told.status.conditions, "SchemaInSync").unwrap().message.clone();
    assert!(words.contains("public.t: made again") && said_of(&told, &words) == 1, "{words}");
    m.status = Some(told.status);
    assert_eq!(said_of(&plan(&m, &facts, now()), &words), 0, "and not again");
    facts.report.as_mut().unwrap().tables.clear();
    let cured = plan(&m, &facts, now());
    assert_eq!(said_of(&cured, &condition::get(&cured.status.conditions, "SchemaInSync").unwrap().message), 1);
}

#[test]
fn what_keeps_sequences_from_following_is_told_and_stops_nothing_else() {
    let (m, mut facts) = live();
    let verdict = |facts: &Observed| condition::get(&plan(&m, facts, now()).status.conditions, "SequencesInSync").cloned();
    assert_eq!(verdict(&facts), None, "the tables bring none");
    let failure = Failure { reason: "NameConflict".into(), message: "s is somebody's own.".into(), permanent: true };
    facts.report.as_mut().unwrap().sequences = Some(SequencesReport { failure: Some(failure) });
    let told = verdict(&facts).unwrap();
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("False", "NameConflict"));
    assert_eq!(told.message, "s is somebody's own. It is tried again every 10 s.");
    let events = |facts: &Observed| said_of(&plan(&m, facts, now()), &told.message);
    assert_eq!(events(&facts), 1, "once, as an Event too");
    assert_eq!(said(&plan(&m, &facts, now()), "Ready").0, "True");
    facts.report.as_mut().unwrap().sequences = Some(SequencesReport::default());
    assert_eq!(verdict(&facts).unwrap().status, "True");
}

#[test]
fn sequences_are_not_called_in_sync_while_nothing_follows() {
    let (mut m, mut facts) = live();
    facts.report.as_mut().unwrap().sequences = Some(SequencesReport::default());
    let verdict = |m: &Mirror, facts: &Observed| said(&plan(m, facts, now()), "SequencesInSync");
    m.status = Some(plan(&m, &facts, now()).status);
    assert_eq!(verdict(&m, &facts), ("True".into(), "InSync".into()));
    let unknown = ("Unknown".to_string(), "NotFollowing".to_string());
    let mut resynced = m.clone();
    resynced.status.as_mut().unwrap().active_resync =
        Some(crate::api::mirror::ActiveResync { name: "r".into(), uid: "r".into(), epoch: 2 });
    let resyncs = vec![ResyncFacts { phase: Phase::Snapshot, epoch: Some(2), ..waiting("r") }];
    let (none, broken) = (facts.clone(), Stream { connected: false, ..Stream::default() });
    for (what, m, facts) in [
        ("a resync", &resynced, Observed { resyncs, report: None, ..none.clone() }),
        ("no pod", &m, Observed { report: None, ..none.clone() }),
        ("no stream", &m, Observed { report: facts.report.clone().map(|r| Report { stream: Some(broken), ..r }), ..none }),
    ] {
        assert_eq!(verdict(m, &facts), unknown, "{what}");
    }
}

#[test]
fn a_changed_table_list_and_drift_at_the_source_ask_for_a_resync() {
    let (mut m, mut facts) = live();
    m.spec.tables[0].exclude_columns = vec!["x".into()];
    assert_eq!(said(&plan(&m, &facts, now()), "ResyncRequired").0, "True");
    m.spec.tables[0].exclude_columns.clear();
    assert_eq!(said(&plan(&m, &facts, now()), "ResyncRequired").0, "False");
    let table = |source: &str, drift: &str| TableReport { source: source.into(), drift: Some(drift.into()), ..TableReport::default() };
    let report = facts.report.as_mut().unwrap();
    report.tables =
        vec![table("public.t", "no longer published"), table("public.u", "made again"), table("public.v", "no longer published")];
    let drifted = plan(&m, &facts, now());
    assert_eq!(said(&drifted, "SchemaInSync").0, "False");
    let required = condition::get(&drifted.status.conditions, "ResyncRequired").unwrap();
    assert_eq!(required.message, "public.t, public.v: no longer published. public.u: made again. Apply a MirrorResync.");
    assert!(condition::get(&drifted.status.conditions, "Ready").unwrap().message.contains("see ResyncRequired"));
}

#[test]
fn suspending_scales_the_pipeline_to_nothing() {
    let (mut m, facts) = live();
    m.spec.suspend = true;
    let paused = plan(&m, &facts, now());
    assert!(paused.effects.iter().any(|e| matches!(e, Effect::EnsurePipeline { replicas: 0, .. })));
    assert_eq!(paused.status.phase, MirrorPhase::Paused);
}

#[test]
fn a_deleted_mirror_goes_only_after_its_slots_are_dropped_unless_forced() {
    let (mut m, mut facts) = live();
    m.metadata.deletion_timestamp = Some(Time(now()));
    facts.pods = 1;
    let first = plan(&m, &facts, now());
    assert!(first.effects.contains(&Effect::DeleteJobs) && !first.effects.contains(&Effect::RemoveFinalizer));
    facts.pods = 0;
    assert!(plan(&m, &facts, now()).effects.iter().any(|e| matches!(e, Effect::EnsureForgetJob { .. })));
    facts.forget_job = Some(JobFacts { completed: true, ..JobFacts::default() });
    assert_eq!(plan(&m, &facts, now()).effects, [Effect::RemoveFinalizer]);
    facts.forget_job = None;
    m.metadata.annotations = Some([(FORCE_ANNOTATION.to_string(), "true".to_string())].into());
    assert_eq!(plan(&m, &facts, now()).effects, [Effect::RemoveFinalizer]);
    facts.brief = None;
    assert_eq!(plan(&m, &facts, now()).effects, [Effect::RemoveFinalizer], "a brief that cannot be read is in nobody's way");
}

#[test]
fn a_deleted_mirror_that_made_nothing_goes_even_if_its_peers_are_gone() {
    let mut m = mirror();
    m.metadata.deletion_timestamp = Some(Time(now()));
    m.status = Some(crate::api::MirrorStatus { epoch: 1, ..Default::default() });
    let mut facts = Observed { brief: Some(Err("Peer \"a\" does not exist.".into())), ..Observed::default() };
    assert_eq!(plan(&m, &facts, now()).effects, [Effect::RemoveFinalizer]);
    facts.pods = 1;
    assert!(!plan(&m, &facts, now()).effects.contains(&Effect::RemoveFinalizer));
    facts.pods = 0;
    m.status.as_mut().unwrap().live_epoch = 1;
    let stays = plan(&m, &facts, now());
    assert!(!stays.effects.contains(&Effect::RemoveFinalizer));
    assert!(condition::get(&stays.status.conditions, "Ready").unwrap().message.contains("Peer \"a\""));
}

#[test]
fn two_tables_with_one_destination_and_names_too_long_are_refused_by_name() {
    let mut m = mirror();
    m.spec.tables =
        serde_json::from_value(json!([{ "source": "a.t", "destination": "x.y" }, { "source": "b.t", "destination": "x.y" }])).unwrap();
    assert!(validate(&m).unwrap_err().contains("same destination"));
    m.spec.tables = serde_json::from_value(json!([{ "source": format!("public.{}", "x".repeat(64)) }])).unwrap();
    assert!(validate(&m).unwrap_err().contains("64 bytes"));
}

#[test]
fn a_live_pipelines_pod_is_what_the_spec_says_now_and_its_data_what_the_epoch_was_begun_with() {
    let (mut m, facts) = live();
    let spec = json!({ "source": { "peer": "a" }, "destination": { "peer": "b" }, "tables": [{ "source": "public.u" }],
        "replication": { "batchRows": 7, "resources": { "limits": { "memory": "2Gi" } } }, "pods": { "nodeSelector": { "disk": "ssd" } } });
    m.spec = serde_json::from_value(spec).unwrap();
    let plan = plan(&m, &facts, now());
    let brief = plan.effects.iter().find_map(|e| if let Effect::EnsurePipeline { brief, .. } = e { Some(brief) } else { None }).unwrap();
    assert_eq!((&brief.replication.resources, &brief.pods), (&m.spec.replication.resources, &m.spec.pods));
    assert_eq!((brief.tables[0].source.as_str(), brief.replication.batch_rows), ("public.t", 50_000));
}

/// A mirror of mode SnapshotOnly whose first epoch is live.
fn resting() -> (Mirror, Observed) {
    let (mut m, _) = live();
    m.spec.mode = crate::api::mirror::Mode::SnapshotOnly;
    let facts = seen(&m);
    (m, facts)
}

#[test]
fn a_mirror_that_was_loaded_to_stay_so_has_no_pipeline_and_says_so() {
    let (m, mut facts) = resting();
    facts.pipelines = vec![(1, 1)];
    let plan = plan(&m, &facts, now());
    assert_eq!(plan.effects.iter().filter(|e| !matches!(e, Effect::Say(_))).collect::<Vec<_>>(), [&Effect::DeletePipeline { epoch: 1 }]);
    assert_eq!((plan.status.phase, said(&plan, "Ready")), (MirrorPhase::Loaded, ("True".into(), "Loaded".into())));
    assert_eq!((plan.status.slot.as_deref(), said(&plan, "SlotHealthy").1.as_str()), (None, "NotNeeded"));
    assert_eq!(said(&plan, "SchemaInSync").0, "True");
}

#[test]
fn another_mode_takes_effect_with_the_next_resync() {
    let (mut m, facts) = resting();
    m.spec.mode = crate::api::mirror::Mode::Continuous;
    let plan = plan(&m, &facts, now());
    assert_eq!((plan.status.phase, said(&plan, "ResyncRequired").0.as_str()), (MirrorPhase::Loaded, "True"));
}

#[test]
fn a_resync_that_failed_leaves_a_loaded_mirror_as_it_was() {
    let (mut m, mut facts) = resting();
    let status = m.status.as_mut().unwrap();
    (status.epoch, status.active_resync) = (2, Some(crate::api::mirror::ActiveResync { name: "r".into(), uid: "r".into(), epoch: 2 }));
    facts.resyncs = vec![ResyncFacts { phase: Phase::Failed, epoch: Some(2), old_pipeline_dropped: true, ..waiting("r") }];
    let plan = plan(&m, &facts, now());
    assert!(!plan.status.stream_dropped, "there was none");
    assert_eq!((plan.status.phase, plan.status.live_epoch), (MirrorPhase::Loaded, 1));
}

#[test]
fn a_load_that_no_changes_follow_counts_as_a_resync_that_ended_well() {
    let (mut m, mut facts) = resting();
    let status = m.status.as_mut().unwrap();
    (status.epoch, status.active_resync) = (2, Some(crate::api::mirror::ActiveResync { name: "r".into(), uid: "r".into(), epoch: 2 }));
    facts.resyncs = vec![ResyncFacts { phase: Phase::Succeeded, epoch: Some(2), ..waiting("r") }];
    let plan = plan(&m, &facts, now());
    assert_eq!((plan.status.live_epoch, plan.status.active_resync.is_none()), (2, true));
}

#[test]
fn the_lag_in_seconds_is_told_only_while_the_stream_tells_it() {
    let (mut m, mut facts) = live();
    let mut tells = |seconds: Option<u64>| {
        facts.report.as_mut().unwrap().stream.as_mut().unwrap().lag_seconds = seconds;
        let plan = plan(&m, &facts, now());
        m.status = Some(plan.status.clone());
        plan.status.lag_seconds
    };
    assert_eq!([tells(Some(0)), tells(Some(7)), tells(None), tells(Some(u64::MAX))], [Some(0), Some(7), None, Some(i64::MAX)]);
    facts.report = None;
    assert_eq!(plan(&m, &facts, now()).status.lag_seconds, None, "nobody knows how old it is by now");
}
