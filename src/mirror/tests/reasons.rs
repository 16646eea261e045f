//! Why a Mirror is not Ready, word for word.

use super::*;

/// The verdict of `Ready`, its reason and its message.
fn ready(mirror: &Mirror, seen: &Observed) -> (String, String, String) {
    let status = plan(mirror, seen, now()).status;
    let ready = condition::get(&status.conditions, "Ready").unwrap();
    (ready.status.clone(), ready.reason.clone(), ready.message.clone())
}

fn told(verdict: &str, reason: &str, message: &str) -> (String, String, String) {
    (verdict.into(), reason.into(), message.into())
}

#[test]
fn a_peer_that_lacks_the_role_is_named_with_what_it_lacks() {
    let m = mirror();
    let (source, destination) = (peer("a", json!(["Destination"])), peer("b", json!(["Destination"])));
    let made = brief(&m, None, 1, Some(&source), Some(&destination), None).map(Box::new);
    let refused = Observed { brief: Some(made), ..Observed::default() };
    let words = "Peer \"a\" does not have the role Source; add it to its spec.roles.";
    assert_eq!(ready(&m, &refused), told("False", "InvalidSpec", words));
    assert!(!plan(&m, &refused, now()).effects.iter().any(|e| matches!(e, Effect::CreateResync { .. })));
}

#[test]
fn a_stream_that_fails_says_whether_it_is_tried_again() {
    let (m, mut seen) = live();
    let failure = |permanent| Failure { reason: "SourceRefuses".into(), message: "no right.".into(), permanent };
    seen.report.as_mut().unwrap().failure = Some(failure(false));
    assert_eq!(ready(&m, &seen), told("False", "StreamFailing", "SourceRefuses: no right. Trying again."));
    seen.report.as_mut().unwrap().failure = Some(failure(true));
    assert_eq!(ready(&m, &seen), told("False", "StreamFailing", "SourceRefuses: no right."));
}

#[test]
fn a_mirror_that_was_paused_or_lost_its_stream_says_what_that_means() {
    let (mut m, seen) = live();
    m.spec.suspend = true;
    assert_eq!(ready(&m, &seen), told("False", "Suspended", "Paused by spec.suspend; the slot keeps the source's WAL."));
    m.spec.suspend = false;
    m.status.as_mut().unwrap().stream_dropped = true;
    let (verdict, reason, words) = ready(&m, &seen);
    assert_eq!((verdict.as_str(), reason.as_str()), ("False", "StreamDropped"));
    assert!(words.contains("stand still") && words.ends_with("Apply a MirrorResync."), "{words}");
}
