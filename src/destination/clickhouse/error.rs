//! What ClickHouse's errors mean here. The one place that says so.

use crate::destination::Error;
pub(super) use crate::destination::{failure, permanent};

/// The server's refusal, or why it was not heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// ClickHouse's error code; 0 if the server did not speak: what became of the request is unknown.
    pub(super) code: u32,
    /// Its words, which may hold values.
    pub(super) words: String,
}

pub(super) const UNKNOWN_TABLE: u32 = 60;
pub(super) const UNKNOWN_DATABASE: u32 = 81;
pub(super) const UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE: u32 = 286;
pub(super) const ACCESS_DENIED: u32 = 497;
/// The fence of a statement has thrown.
pub(super) const FENCED: u32 = 395;
/// A statement has thrown as rows are missing that it was to complete. No code of the server's own.
pub(super) const ROWS_MISSING: u32 = 20395;

/// Errors whose words are of connections, resources, rights, and of what things are called, and so hold nothing of a row.
const TELLING: &[u32] = &[
    0,
    10,
    15,
    16,
    42,
    46,
    47,
    48,
    50,
    UNKNOWN_TABLE,
    UNKNOWN_DATABASE,
    115,
    159,
    164,
    179,
    192,
    193,
    194,
    202,
    209,
    210,
    225,
    241,
    242,
    243,
    252,
    285,
    UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE,
    289,
    319,
    344,
    394,
    ACCESS_DENIED,
    516,
    999,
];

impl Refusal {
    pub(super) fn unsent(words: String) -> Self {
        Self { code: 0, words }
    }

    /// Whether the user or the password is wrong: UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, AUTHENTICATION_FAILED.
    pub(super) fn is_authentication(&self) -> bool {
        matches!(self.code, 192..=194 | 516)
    }

    /// The same of a statement that works on rows: what may quote one is left out of its words.
    pub(super) fn of_rows(self) -> Self {
        if TELLING.contains(&self.code) {
            return self;
        }
        let name = self.sentence().rsplit_once('(').and_then(|(_, name)| name.strip_suffix(')'));
        let name = name.filter(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')).unwrap_or("unknown");
        Self { words: format!("the destination answers with error {} ({name})", self.code), ..self }
    }

    /// The server's sentence without its own trailer.
    pub(super) fn sentence(&self) -> &str {
        let words = self.words.trim();
        let words = words.split_once("DB::Exception: ").map_or(words, |(_, rest)| rest);
        let words = words.split_once(" (version ").map_or(words, |(before, _)| before);
        // What follows is advice on how to reset a forgotten password.
        let words = words.split_once("\n\n").map_or(words, |(before, _)| before);
        let end = words.char_indices().nth(400).map_or(words.len(), |(at, _)| at);
        &words[..end]
    }
}

/// Sorts a refusal into retry or stop. The codes are those of ClickHouse's `src/Common/ErrorCodes.cpp`.
pub(super) fn meaning(refusal: &Refusal, doing: &str) -> Error {
    let (code, said) = (refusal.code, refusal.sentence());
    match code {
        0 => Error::Transient(format!("{doing}: {said}")),
        // READONLY
        164 | ACCESS_DENIED => permanent(
            "PermissionDenied",
            format!("{doing}: {said}. Grant this right to the user that the destination's Peer names, then start a new resync"),
        ),
        UNKNOWN_DATABASE => permanent("DatabaseMissing", format!("{doing}: {said}. Create it at the destination")),
        // Conversions, whose words quote values: CANNOT_PARSE_*, TYPE_MISMATCH, CANNOT_CONVERT_TYPE, ARGUMENT_OUT_OF_BOUND, VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE, INCORRECT_DATA, CANNOT_PARSE_UUID, UNKNOWN_ELEMENT_OF_ENUM …
        6 | 26 | 27 | 38 | 41 | 53 | 69 | 70 | 72 | 117 | 131 | 321 | 349 | 376 | 407 | 441 | 675 | 676 | 691 => permanent(
            "ValueRefused",
            format!("{doing}: the destination refuses a value (code {code}). Give the column a type that holds it"),
        ),
        // VIOLATED_CONSTRAINT: its words hold the row.
        469 => permanent(
            "RowRefused",
            format!("{doing}: a constraint of the destination's table refuses a row (code 469). Drop the constraint"),
        ),
        // HAVE_DEPENDENT_OBJECTS
        630 => permanent("DependentObject", format!("{doing}: {said}. Drop what depends on it, then try again")),
        // Of the statement itself: unknown columns, functions, types, settings, engines, policies and codecs, bad arguments, TTLs, syntax, what is not supported.
        10 | 15 | 16 | 36 | 42 | 43 | 44 | 46 | 47 | 48 | 50 | 56 | 57 | 62 | 115 | 179 | 182 | 344 | 431..=433 | 450 | 478 => {
            permanent("Refused", format!("{doing}: {said}"))
        }
        // TOO_MANY_PARTS: merges need time.
        252 => Error::Transient(format!("{doing}: the destination merges too slowly for the parts that it has; going on more slowly")),
        // NOT_ENOUGH_SPACE
        243 => Error::Transient(format!("{doing}: {said}. The destination's disk is full: make room, it is tried again")),
        _ => Error::Transient(format!("{doing}: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: u32, words: &str) -> Error {
        meaning(&Refusal { code, words: words.into() }, "loading d.t")
    }

    #[test]
    fn errors_are_sorted_into_retry_and_stop() {
        for code in [0, 159, 202, 209, 210, 241, 252, 394, 516] {
            assert!(matches!(of(code, "x"), Error::Transient(_)), "{code}");
        }
        for code in [44, 62, 81, 164, 497] {
            assert!(matches!(of(code, "x"), Error::Permanent(_)), "{code}");
        }
    }

    #[test]
    fn values_stay_where_they_are() {
        for code in [27, 321, 469] {
            assert!(!of(code, "Cannot parse 'secret'").to_string().contains("secret"), "{code}");
        }
    }

    #[test]
    fn of_rows_only_what_quotes_none_is_told() {
        let told = |code: u32, words: &str| meaning(&Refusal { code, words: words.into() }.of_rows(), "loading d.t").to_string();
        let words = "Code: 36. DB::Exception: Bad value 'secret (1)': while pushing to view d.v. (BAD_ARGUMENTS) (version 26.7.2.1)";
        assert_eq!(told(36, words), "loading d.t: the destination answers with error 36 (BAD_ARGUMENTS)");
        assert_eq!(told(9999, "secret (no name)"), "loading d.t: the destination answers with error 9999 (unknown)");
        assert!(told(241, "Query memory limit exceeded: maximum: 1.00 GiB").contains("1.00 GiB"));
        assert_eq!(told(0, "connection refused"), "loading d.t: connection refused");
    }

    #[test]
    fn the_servers_sentence_is_told_without_its_frame() {
        let words = "Code: 60. DB::Exception: Table d.t does not exist. (UNKNOWN_TABLE) (version 26.7.2.1)\n";
        assert_eq!(of(60, words).to_string(), "loading d.t: Table d.t does not exist. (UNKNOWN_TABLE)");
    }
}
