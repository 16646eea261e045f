//! What BigQuery's errors mean here. The one place that says so.

use crate::destination::Error;
pub(super) use crate::destination::{failure, permanent};

/// The service's refusal, or why it was not heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The status of HTTP, or 200 for a job that has failed; 0 if the service did not speak: what became of the request is unknown.
    pub(super) status: u16,
    /// One of the reasons of BigQuery's docs, "Error messages"; for the Storage Write API the name of gRPC's code.
    pub(super) reason: String,
    /// Its words, which may hold values.
    pub(super) words: String,
}

/// What the statements of the change stream say when they were fenced off.
pub(super) const FENCED: &str = "mirror-operator: another has taken over";

/// Reasons that pass, but for `stopped`: a job that was cancelled was so by a newer epoch or applier, and its caller has to look at the fence first. BigQuery's docs, "Error messages" and "Troubleshoot quota errors", ask for the same again after a while that grows.
const PASSING: [&str; 11] = [
    "backendError",
    "internalError",
    "jobBackendError",
    "jobInternalError",
    "jobRateLimitExceeded",
    "rateLimitExceeded",
    "quotaExceeded",
    "tableUnavailable",
    "resourceInUse",
    "timeout",
    "concurrent",
];

impl Refusal {
    pub(super) fn unheard(words: impl Into<String>) -> Self {
        Self { status: 0, reason: String::new(), words: words.into() }
    }

    /// From the body of an answer, or the `errorResult` of a job.
    pub(super) fn read(status: u16, body: &serde_json::Value) -> Self {
        let error = body.get("error").unwrap_or(body);
        let text = |value: Option<&serde_json::Value>| value.and_then(|v| v.as_str()).unwrap_or_default().to_string();
        let first = error.get("errors").and_then(|e| e.get(0));
        let reason = text(error.get("reason").or_else(|| first?.get("reason")));
        let mut refusal = Self { status, reason, words: text(error.get("message")) };
        if refusal.words.contains("due to concurrent update") || refusal.words.contains("Could not serialize access") {
            refusal.reason = "concurrent".into();
        }
        refusal
    }

    /// Whether the same may go well after a while.
    pub(super) fn passes(&self) -> bool {
        PASSING.contains(&self.reason.as_str()) || matches!(self.status, 429 | 500 | 502 | 503 | 504)
    }

    pub(super) fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }

    pub(super) fn is_fence(&self) -> bool {
        self.words.contains(FENCED)
    }

    /// Whether its words may quote a value.
    fn quotes(&self) -> bool {
        const MARKS: [&str; 9] = [
            "Bad ",
            "Could not cast",
            "Invalid date",
            "Invalid time",
            "Invalid JSON",
            "out of range",
            "overflow",
            "Failed to parse",
            "onversion",
        ];
        self.is("invalidQuery") && MARKS.iter().any(|mark| self.words.contains(mark))
    }

    fn sentence(&self) -> &str {
        let words = self.words.trim();
        let end = words.char_indices().nth(400).map_or(words.len(), |(at, _)| at);
        &words[..end]
    }
}

/// Sorts a refusal into retry or stop.
pub(super) fn meaning(refusal: &Refusal, doing: &str) -> Error {
    let said = refusal.sentence();
    if refusal.passes() {
        return Error::Transient(format!("{doing}: {said} ({}); it is tried again more slowly", refusal.reason));
    }
    match refusal.reason.as_str() {
        "accessDenied" | "PermissionDenied" => permanent(
            "PermissionDenied",
            format!(
                "{doing}: {said}. Grant the Peer's account roles/bigquery.dataEditor on the dataset and roles/bigquery.jobUser on the project \
                 (docs/bigquery.md), then start a new resync"
            ),
        ),
        "billingNotEnabled" => permanent("BillingDisabled", format!("{doing}: {said}. Enable billing for the project")),
        "notFound" if said.contains("Dataset") => {
            permanent("DatasetMissing", format!("{doing}: {said}. Create it in the location that the Peer names"))
        }
        _ if refusal.quotes() => permanent(
            "ValueRefused",
            format!("{doing}: the destination refuses a value. Give the column a type that holds it, such as STRING"),
        ),
        "invalid"
        | "invalidQuery"
        | "notImplemented"
        | "billingTierLimitExceeded"
        | "blocked"
        | "resourcesExceeded"
        | "responseTooLarge" => permanent("Refused", format!("{doing}: {said}")),
        _ => Error::Transient(format!("{doing}: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, reason: &str, words: &str) -> Error {
        meaning(&Refusal { status, reason: reason.into(), words: words.into() }, "loading d.t")
    }

    #[test]
    fn errors_are_sorted_into_retry_and_stop() {
        for (status, reason) in
            [(0, ""), (403, "rateLimitExceeded"), (403, "quotaExceeded"), (503, "backendError"), (429, ""), (401, "authError")]
        {
            assert!(matches!(of(status, reason, "x"), Error::Transient(_)), "{reason}");
        }
        for reason in ["accessDenied", "invalidQuery", "billingNotEnabled"] {
            assert!(matches!(of(400, reason, "x"), Error::Permanent(_)), "{reason}");
        }
        assert!(matches!(of(403, "billingNotEnabled", "x"), Error::Permanent(f) if f.reason == "BillingDisabled"));
        assert!(matches!(of(404, "notFound", "Not found: Dataset p:d"), Error::Permanent(_)));
        assert!(matches!(of(404, "notFound", "Not found: Table p:d.t"), Error::Transient(_)));
    }

    #[test]
    fn transactions_that_collide_pass() {
        let refusal = Refusal::read(
            200,
            &serde_json::json!({"reason": "invalidQuery", "message": "Transaction is aborted due to concurrent update against table p:d.t"}),
        );
        assert!(refusal.passes());
    }

    #[test]
    fn values_stay_where_they_are() {
        assert!(!of(400, "invalidQuery", "Bad int64 value: secret").to_string().contains("secret"));
    }
}
