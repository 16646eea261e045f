//! When a Peer is checked and what its status says.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use crate::{
    api::{
        Peer, PeerStatus,
        condition::{self, Verdict},
    },
    report::PeerReport,
    resync::Notice,
};

/// What is true of the world around one Peer.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The check Job of this generation, if there is one.
    pub check: Option<CheckFacts>,
}

/// The check Job.
#[derive(Clone, Debug, Default)]
pub struct CheckFacts {
    /// When it ended, well or not: the time that the status tells, so that seeing it again changes nothing.
    pub ended: Option<Timestamp>,
    /// What it left.
    pub report: Option<PeerReport>,
    /// Why its pod does not run or left nothing.
    pub trouble: Option<String>,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Start the check Job of this generation.
    StartCheck,
    /// Remove an ended check Job, so that another can start.
    RemoveCheck,
    /// An Event.
    Say(Notice),
}

/// What a reconcile does next.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order.
    pub effects: Vec<Effect>,
    /// The whole status as it should read now.
    pub status: PeerStatus,
    /// When to look again.
    pub next_look: Option<Duration>,
}

/// How long after a failed check the next one starts: what was missing may be there by then.
const RECHECK: Duration = Duration::from_secs(30);

/// Name of the check Job of a generation.
pub fn check_name(peer: &Peer) -> String {
    format!("{}-check-{}", peer.metadata.name.as_deref().unwrap_or_default(), peer.metadata.generation.unwrap_or_default())
}

/// What a reconcile of one Peer does next.
pub fn plan(peer: &Peer, seen: &Observed, now: Timestamp) -> Plan {
    let mut status = peer.status.clone().unwrap_or_default();
    let generation = peer.metadata.generation;
    let ready = condition::get(&status.conditions, "Ready").cloned();
    let checked = status.observed_generation == generation && status.checked_at.is_some();
    let mut effects = vec![];
    let Some(check) = &seen.check else {
        let Some(wait) = due(&status, checked, ready.as_ref().is_some_and(|c| c.status == "True"), now) else {
            return Plan { effects, status, next_look: None };
        };
        if !wait.is_zero() {
            return Plan { effects, status, next_look: Some(wait) };
        }
        if !checked {
            status.observed_generation = generation;
            status.checked_at = None;
            condition::set(
                &mut status.conditions,
                "Ready",
                Verdict::Unknown,
                "Checking",
                "The connection is being checked.",
                generation,
                now,
            );
        }
        return Plan { effects: vec![Effect::StartCheck], status, next_look: Some(Duration::from_secs(5)) };
    };
    let Some(ended) = check.ended else {
        if let Some(why) = &check.trouble {
            let stands = condition::get(&status.conditions, "Ready").is_some_and(|c| c.message == *why);
            effects.extend((!stands).then(|| Effect::Say(Notice::warning("CheckNotRunning", why.clone()))));
            condition::set(&mut status.conditions, "Ready", Verdict::Unknown, "CheckNotRunning", why, generation, now);
        }
        return Plan { effects, status, next_look: Some(Duration::from_secs(2)) };
    };
    // Once is enough: the pod, and with it what the check has said, may be gone before the Job is.
    if !checked || status.checked_at != Some(Time(ended)) {
        effects.extend(take_down(peer, check, &mut status, now));
        status.checked_at = Some(Time(ended));
    }
    let ready = condition::holds(&status.conditions, "Ready");
    if !ready {
        effects.push(Effect::RemoveCheck);
    }
    Plan { effects, status, next_look: (!ready).then_some(RECHECK) }
}

/// Writes down what an ended check has said. It is told unless it was already.
fn take_down(peer: &Peer, check: &CheckFacts, status: &mut PeerStatus, now: Timestamp) -> Option<Effect> {
    status.observed_generation = peer.metadata.generation;
    status.type_ = Some(kind(peer).into());
    let (verdict, reason, message) = judge(check, status);
    let known = condition::get(&status.conditions, "Ready").is_some_and(|c| c.message == message && c.status == verdict.as_str());
    condition::set(&mut status.conditions, "Ready", verdict, &reason, &message, peer.metadata.generation, now);
    (!known).then(|| Effect::Say(Notice { warning: verdict != Verdict::True, reason, message }))
}

fn kind(peer: &Peer) -> &'static str {
    match &peer.spec {
        spec if spec.clickhouse.is_some() => "ClickHouse",
        spec if spec.bigquery.is_some() => "BigQuery",
        spec if spec.snowflake.is_some() => "Snowflake",
        _ => "PostgreSQL",
    }
}

/// How long until a check is due: at once for a new generation, after a while if the last one failed, never if it went well.
fn due(status: &PeerStatus, checked: bool, ready: bool, now: Timestamp) -> Option<Duration> {
    if !checked {
        return Some(Duration::ZERO);
    }
    if ready {
        return None;
    }
    let since = status.checked_at.as_ref().map_or(RECHECK, |t| Duration::try_from(now.duration_since(t.0)).unwrap_or_default());
    Some(RECHECK.saturating_sub(since))
}

fn judge(check: &CheckFacts, status: &mut PeerStatus) -> (Verdict, String, String) {
    let Some(report) = &check.report else {
        let why = check.trouble.clone().unwrap_or_else(|| "the check ended without a word; look at the logs of its pod".into());
        return (Verdict::Unknown, "CheckFailed".into(), why);
    };
    if !report.server_version.is_empty() {
        status.server_version = Some(report.server_version.clone());
        status.warehouse = report.warehouse.clone();
    }
    if !report.system_identifier.is_empty() {
        status.system_identifier = Some(report.system_identifier.clone());
    }
    match report.problems.as_slice() {
        [] => (Verdict::True, "Ready".into(), "Connected; nothing is missing.".into()),
        problems => {
            let words: Vec<&str> = problems.iter().map(|p| p.message.as_str()).collect();
            (Verdict::False, problems[0].reason.clone(), words.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Failure;

    fn peer(generation: i64, status: Option<PeerStatus>) -> Peer {
        let spec = serde_json::from_value(serde_json::json!({
            "roles": ["Source"], "postgres": {"host": "db", "database": "shop", "user": "mirror"}
        }))
        .unwrap();
        let mut peer = Peer::new("shop", spec);
        peer.metadata.generation = Some(generation);
        peer.status = status;
        peer
    }

    fn ended(problems: Vec<Failure>) -> Observed {
        let ended = Some(Timestamp::from_second(1_000).unwrap());
        let report = PeerReport { server_version: "15.18".into(), system_identifier: "7".into(), problems, ..PeerReport::default() };
        Observed { check: Some(CheckFacts { ended, report: Some(report), trouble: None }) }
    }

    #[test]
    fn a_new_peer_is_checked_and_a_good_one_left_alone() {
        let now = Timestamp::from_second(1_000).unwrap();
        let first = plan(&peer(1, None), &Observed::default(), now);
        assert_eq!(first.effects, [Effect::StartCheck]);
        let done = plan(&peer(1, Some(first.status)), &ended(vec![]), now);
        assert!(condition::holds(&done.status.conditions, "Ready"));
        let rest = plan(&peer(1, Some(done.status.clone())), &Observed::default(), now);
        assert!(rest.effects.is_empty() && rest.next_look.is_none());
        let later = Timestamp::from_second(1_600).unwrap();
        let again = plan(&peer(1, Some(done.status.clone())), &ended(vec![]), later);
        assert!(again.effects.is_empty() && again.status == done.status, "an ended check that is still there tells nothing new");
        let mut dumb = ended(vec![]);
        dumb.check.as_mut().unwrap().report = None;
        let gone = plan(&peer(1, Some(done.status.clone())), &dumb, later);
        assert!(gone.effects.is_empty() && gone.status == done.status, "nor does one whose pod is gone");
        let changed = plan(&peer(2, Some(done.status)), &Observed::default(), now);
        assert_eq!(changed.effects, [Effect::StartCheck]);
    }

    #[test]
    fn a_check_that_does_not_run_or_says_nothing_is_told_and_is_no_verdict() {
        let now = Timestamp::from_second(1_000).unwrap();
        let trouble = || Some("Pod x: ErrImagePull. ".to_string());
        for (ended, trouble, reason, words) in [
            (None, trouble(), "CheckNotRunning", "Pod x: ErrImagePull. "),
            (Some(now), trouble(), "CheckFailed", "Pod x: ErrImagePull. "),
            (Some(now), None, "CheckFailed", "the check ended without a word; look at the logs of its pod"),
        ] {
            let plan = plan(&peer(1, None), &Observed { check: Some(CheckFacts { ended, report: None, trouble }) }, now);
            let ready = condition::get(&plan.status.conditions, "Ready").unwrap();
            assert_eq!((ready.status.as_str(), ready.reason.as_str(), ready.message.as_str()), ("Unknown", reason, words));
            assert!(plan.effects.contains(&Effect::Say(Notice::warning(reason, words))), "{:?}", plan.effects);
        }
    }

    #[test]
    fn what_is_missing_is_named_and_looked_at_again_later() {
        let now = Timestamp::from_second(1_000).unwrap();
        let failure = Failure { reason: "WalLevel".into(), message: "wal_level is replica.".into(), permanent: true };
        let bad = plan(&peer(1, None), &ended(vec![failure]), now);
        let ready = condition::get(&bad.status.conditions, "Ready").unwrap();
        assert_eq!((ready.status.as_str(), ready.message.as_str()), ("False", "wal_level is replica."));
        assert!(bad.effects.contains(&Effect::RemoveCheck));
        let soon = plan(&peer(1, Some(bad.status.clone())), &Observed::default(), Timestamp::from_second(1_010).unwrap());
        assert_eq!((soon.effects.len(), soon.next_look), (0, Some(Duration::from_secs(20))));
        let later = plan(&peer(1, Some(bad.status)), &Observed::default(), Timestamp::from_second(1_031).unwrap());
        assert_eq!(later.effects, [Effect::StartCheck]);
    }
}
