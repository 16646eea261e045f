//! Telling people what they have to cure, where their object shows it.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

use super::{Context, Error, ensure::Owned};
use crate::{
    api::condition::{self, Verdict},
    resync::Notice,
};

/// Tells an error that people have to cure as an Event, and with the same words in the condition `kind`. Each once; other errors are only logged.
pub async fn tell<K: Owned>(
    context: &Context,
    object: &K,
    error: &Error,
    kind: &str,
    conditions: impl FnOnce(&mut K) -> &mut Vec<Condition>,
) -> Result<(), Error> {
    let mut told = object.clone();
    let generation = object.meta().generation;
    let Some(notice) = note(error, conditions(&mut told), kind, generation, Timestamp::now()) else { return Ok(()) };
    context.say(object, &notice).await;
    context.write_status(&told).await
}

/// Puts the error into the condition; `None` if it stands there already, or is none for people.
fn note(error: &Error, conditions: &mut Vec<Condition>, kind: &str, generation: Option<i64>, now: Timestamp) -> Option<Notice> {
    let (reason, message) = (error.for_people()?, format!("{error}."));
    if condition::get(conditions, kind).is_some_and(|c| c.message == message) {
        return None;
    }
    condition::set(conditions, kind, Verdict::Unknown, reason, &message, generation, now);
    Some(Notice::warning(reason, message))
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::controller::context::refusal;

    fn answered(code: u16) -> Error {
        let status = Status::failure("exceeded quota: pods, used: 0, limited: 0.", "Forbidden").with_code(code);
        refusal("Job", "again-snapshot", kube::Error::Api(status.boxed()))
    }

    #[test]
    fn what_the_api_server_refuses_is_told_once_with_its_own_words() {
        let (mut conditions, now) = (vec![], Timestamp::from_second(1_000).unwrap());
        for code in [400, 403, 413, 422] {
            conditions.clear();
            let notice = note(&answered(code), &mut conditions, "Succeeded", Some(1), now).unwrap();
            let words = "the API server refuses Job \"again-snapshot\": exceeded quota: pods, used: 0, limited: 0. It is tried again.";
            assert_eq!(notice, Notice::warning("WorkloadRefused", words));
            assert_eq!((conditions[0].message.as_str(), conditions[0].status.as_str()), (words, "Unknown"));
            assert_eq!(note(&answered(code), &mut conditions, "Succeeded", Some(1), now), None);
        }
    }

    #[test]
    fn a_brief_that_cannot_be_read_is_told_once_with_the_ways_out() {
        let (mut conditions, now) = (vec![], Timestamp::from_second(1_000).unwrap());
        let error = Error::Brief { name: "shop-e3".into(), cause: "expected value at line 1".into() };
        let notice = note(&error, &mut conditions, "Ready", Some(1), now).unwrap();
        assert_eq!(notice.reason, "BriefUnreadable");
        for words in ["\"shop-e3\" cannot be read: expected value", "mirror-operator.io/force-delete=true"] {
            assert!(conditions[0].message.contains(words), "{}", conditions[0].message);
        }
        assert_eq!(note(&error, &mut conditions, "Ready", Some(1), now), None);
    }

    #[test]
    fn an_object_that_is_in_the_way_is_told_by_its_name() {
        let (mut conditions, now) = (vec![], Timestamp::from_second(1_000).unwrap());
        let error = Error::NotOurs { kind: "Job".into(), name: "again-swap".into() };
        let words = "Job \"again-swap\" exists but belongs to something else; it must be removed first.";
        assert_eq!(note(&error, &mut conditions, "Succeeded", Some(1), now), Some(Notice::warning("NameTaken", words)));
        assert_eq!((conditions[0].reason.as_str(), conditions[0].message.as_str()), ("NameTaken", words));
    }

    #[test]
    fn what_passes_by_itself_is_not_told() {
        let mut conditions = vec![];
        let going = Error::Going { kind: "Job".into(), name: "again-snapshot".into() };
        for error in [answered(409), answered(429), answered(500), going] {
            assert_eq!(note(&error, &mut conditions, "Ready", None, Timestamp::from_second(1).unwrap()), None, "{error}");
        }
        assert!(conditions.is_empty());
    }
}
