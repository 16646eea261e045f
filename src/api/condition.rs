//! Conditions as the Kubernetes API conventions want them: a list-map by `type`, with the generation they speak of.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use schemars::{Schema, SchemaGenerator, json_schema};

/// What a condition says; `status` in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not decided yet.
    Unknown,
}

impl Verdict {
    /// As written in `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Sets the condition `kind`, keeping its transition time when its verdict stays.
pub fn set(
    conditions: &mut Vec<Condition>,
    kind: &str,
    verdict: Verdict,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) {
    let fresh = Condition {
        type_: kind.into(),
        status: verdict.as_str().into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(old) => {
            let since = if old.status == fresh.status { old.last_transition_time.clone() } else { fresh.last_transition_time.clone() };
            *old = Condition { last_transition_time: since, ..fresh };
        }
        None => conditions.push(fresh),
    }
}

/// Removes the condition `kind`.
pub fn clear(conditions: &mut Vec<Condition>, kind: &str) {
    conditions.retain(|c| c.type_ != kind);
}

/// The condition `kind`, if it was ever set.
pub fn get<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Whether the condition `kind` is True.
pub fn holds(conditions: &[Condition], kind: &str) -> bool {
    get(conditions, kind).is_some_and(|c| c.status == "True")
}

/// The schema of a condition list: a list-map by `type`, so that server-side apply merges by type.
pub fn schema(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<Condition>();
    json_schema!({
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_time_moves_only_when_the_verdict_does() {
        let (early, late) = (Timestamp::from_second(10).unwrap(), Timestamp::from_second(20).unwrap());
        let mut list = vec![];
        set(&mut list, "Ready", Verdict::False, "Starting", "", Some(1), early);
        set(&mut list, "Ready", Verdict::False, "Stuck", "still", Some(2), late);
        assert_eq!((list[0].last_transition_time.0, list[0].reason.as_str()), (early, "Stuck"));
        set(&mut list, "Ready", Verdict::True, "Running", "", Some(2), late);
        assert_eq!((list.len(), list[0].last_transition_time.0), (1, late));
        assert!(holds(&list, "Ready"));
    }
}
