//! What Snowflake's errors mean here. The one place that says so.

use crate::destination::Error;
pub(super) use crate::destination::{failure, permanent};

/// The service's refusal, or why it was not heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Snowflake's error code, six digits; empty if the service did not speak: what became of the request is unknown.
    pub(super) code: String,
    /// Its words, which may hold values.
    pub(super) words: String,
}

/// The session's token has expired and is to be renewed.
pub(super) const TOKEN_EXPIRED: &str = "390112";

impl Refusal {
    pub(super) fn unheard(words: impl Into<String>) -> Self {
        Self { code: String::new(), words: words.into() }
    }

    /// Whether the session is of no use any more: not heard of, or gone. SESSION_TOKEN_EXPIRED, MASTER_TOKEN_*, SESSION_GONE, INVALID_TOKEN (codes of the
    /// official drivers, `constants.py`, "errors").
    pub(super) fn ends_session(&self) -> bool {
        matches!(
            self.code.as_str(),
            "" | "390101" | "390103" | "390104" | "390110" | "390111" | TOKEN_EXPIRED | "390113" | "390114" | "390115"
        )
    }

    /// Whether the user, the key or the password is wrong, or this user may not come in.
    pub(super) fn is_authentication(&self) -> bool {
        matches!(
            self.code.as_str(),
            "390100"
                | "390102"
                | "390106"
                | "390144"
                | "390186"
                | "390189"
                | "390190"
                | "390422"
                | "394300"
                | "394400"
                | "394501"
                | "395090"
        )
    }

    /// Whether an object does not exist, or may not be seen.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self.code.as_str(), "002003" | "002043")
    }

    /// Whether the account's edition, or the service, does not have what was asked for.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(self.code.as_str(), "000002" | "002140")
    }

    /// Whether an object of that name exists.
    pub(super) fn exists_already(&self) -> bool {
        self.code == "002002"
    }

    /// The service's sentence on one line.
    fn sentence(&self) -> String {
        let words = self.words.split_whitespace().collect::<Vec<_>>().join(" ");
        let words = words.strip_prefix("SQL compilation error: ").unwrap_or(&words);
        words.chars().take(400).collect()
    }
}

/// Sorts a refusal into retry or stop.
pub(super) fn meaning(refusal: &Refusal, doing: &str) -> Error {
    let said = refusal.sentence();
    match refusal.code.as_str() {
        "" => Error::Transient(format!("{doing}: {said}")),
        _ if refusal.is_authentication() => {
            Error::Transient(format!("{doing}: {said}. Correct the user, its key or its password in the Peer"))
        }
        "003001" | "003003" => permanent(
            "PermissionDenied",
            format!(
                "{doing}: {said}. Grant this right to the role that the destination's Peer names (docs/snowflake.md, \"Rights\"), then start a new resync"
            ),
        ),
        "000606" => permanent(
            "WarehouseMissing",
            format!("{doing}: no warehouse is in use. Name one in the Peer and grant USAGE on it to the Peer's role"),
        ),
        // A resource monitor has stopped it, or it may not be resumed.
        "090073" | "000607" | "090109" => {
            Error::Transient(format!("{doing}: {said}. Raise the quota of the resource monitor or resume the warehouse; it is tried again"))
        }
        "002003" | "002043" => permanent(
            "ObjectMissing",
            format!("{doing}: {said}. Create it at the destination, or grant the Peer's role the right to see it"),
        ),
        // Conversions, whose words quote values: of numbers, booleans, dates, times, JSON, binary, and texts that are too long.
        "100035" | "100037" | "100038" | "100039" | "100040" | "100041" | "100046" | "100048" | "100050" | "100051" | "100063"
        | "100069" | "100071" | "100078" | "100080" | "100082" | "100095" | "100097" | "100115" | "100132" | "100209" | "100316" => {
            permanent(
                "ValueRefused",
                format!("{doing}: the destination refuses a value (code {}). Give the column a type that holds it", refusal.code),
            )
        }
        "100072" => permanent(
            "ValueRefused",
            format!(
                "{doing}: NULL came for a column that is NOT NULL at the destination (code 100072). Run there: ALTER TABLE … ALTER COLUMN … DROP NOT NULL"
            ),
        ),
        // Of the statement itself: syntax, unknown names, wrong arguments, an object that exists, and what is not supported.
        "000002" | "000904" | "001003" | "001007" | "001011" | "001044" | "002002" | "002023" | "002140" | "002262" => {
            permanent("Refused", format!("{doing}: {said}"))
        }
        _ => Error::Transient(format!("{doing}: {said} (code {})", refusal.code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str, words: &str) -> Error {
        meaning(&Refusal { code: code.into(), words: words.into() }, "loading S.T")
    }

    #[test]
    fn errors_are_sorted_into_retry_and_stop() {
        for code in ["", "000625", "000630", "090073", "390100", "390112", "390144", "000603"] {
            assert!(matches!(of(code, "x"), Error::Transient(_)), "{code}");
        }
        for code in ["000606", "001003", "002003", "003001", "100038", "100072"] {
            assert!(matches!(of(code, "x"), Error::Permanent(_)), "{code}");
        }
    }

    #[test]
    fn values_stay_where_they_are() {
        for code in ["100035", "100038", "100069", "100072", "100078"] {
            assert!(!of(code, "Numeric value 'secret' is not recognized").to_string().contains("secret"), "{code}");
        }
    }

    #[test]
    fn the_services_sentence_is_told_on_one_line() {
        let words = "SQL compilation error:\nObject 'X' does not exist or not authorized.";
        assert!(of("002003", words).to_string().starts_with("loading S.T: Object 'X' does not exist or not authorized."));
    }
}
