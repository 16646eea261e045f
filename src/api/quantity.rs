//! Sizes and durations as people write them in a manifest.

use std::{fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A number of bytes, written as a Kubernetes quantity with a binary or decimal suffix (`512Mi`, `1Gi`, `64M`, `1048576`).
///
/// Kubernetes API conventions, "Quantities"; only whole non-negative amounts are accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes {
    text: String,
    bytes: u64,
}

/// A span of time, written as whole numbers with a unit (`500ms`, `30s`, `5m`, `24h`, `1h30m`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    text: String,
    span: Duration,
}

/// An amount of a resource, written as a Kubernetes quantity (`500m`, `2`, `512Mi`) and handed on as it is.
///
/// Kubernetes API conventions, "Quantities"; neither negative amounts nor exponents are accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Quantity(String);

/// The pattern of [`Quantity`], enforced by the API server.
const QUANTITY_PATTERN: &str = r"^[0-9]+(\.[0-9]+)?([numkMGTPE]|[KMGTPE]i)?$";
/// The pattern of [`Bytes`], enforced by the API server.
const BYTES_PATTERN: &str = "^[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)?$";
/// The pattern of [`Span`], enforced by the API server.
const SPAN_PATTERN: &str = "^([0-9]+(ms|s|m|h))+$";

/// What is larger counts as this. An object that the API server has accepted must never be unreadable: nobody could serve it.
const LARGEST: u64 = 1 << 60;
/// See [`LARGEST`]: 100 years.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A whole number of whatever length; `None` if there are no digits.
fn whole(digits: &str) -> Option<u64> {
    (!digits.is_empty()).then(|| digits.parse().unwrap_or(LARGEST))
}

impl Bytes {
    /// The number of bytes.
    pub fn get(&self) -> u64 {
        self.bytes
    }

    fn parse(text: &str) -> Option<u64> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number = whole(&text[..digits])?;
        let unit: u64 = match &text[digits..] {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return None,
        };
        Some(number.saturating_mul(unit).min(LARGEST)).filter(|bytes| *bytes > 0)
    }
}

impl Span {
    /// The span of time.
    pub fn get(&self) -> Duration {
        self.span
    }

    fn parse(text: &str) -> Option<Duration> {
        let mut rest = text;
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number = whole(&rest[..digits])?;
            rest = &rest[digits..];
            let (unit, part) = match rest {
                r if r.starts_with("ms") => (2, Duration::from_millis(number)),
                r if r.starts_with('s') => (1, Duration::from_secs(number)),
                r if r.starts_with('m') => (1, Duration::from_secs(number.saturating_mul(60))),
                r if r.starts_with('h') => (1, Duration::from_secs(number.saturating_mul(3600))),
                _ => return None,
            };
            rest = &rest[unit..];
            total = total.saturating_add(part);
        }
        (!text.is_empty()).then_some(total.min(LONGEST))
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bytes = Self::parse(&text).ok_or_else(|| format!("{text:?} is not a size such as 512Mi or 1Gi"))?;
        Ok(Self { text, bytes })
    }
}

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let span = Self::parse(&text).ok_or_else(|| format!("{text:?} is not a duration such as 30s or 24h"))?;
        Ok(Self { text, span })
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> String {
        quantity.0
    }
}

impl From<Bytes> for String {
    fn from(size: Bytes) -> String {
        size.text
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.text
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": QUANTITY_PATTERN, "maxLength": 20 })
    }
}

impl JsonSchema for Bytes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bytes".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": BYTES_PATTERN, "maxLength": 20 })
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": SPAN_PATTERN, "maxLength": 20 })
    }
}

/// The rule that a size is not smaller than `least`; CEL knows quantities since Kubernetes 1.29.
pub(crate) fn at_least(least: &str) -> serde_json::Value {
    serde_json::json!([{ "rule": format!("!quantity(self).isLessThan(quantity('{least}'))"), "message": format!("must be at least {least}") }])
}

/// Makes a quantity from a literal known to be valid; for defaults.
pub(crate) fn quantity(text: &'static str) -> Quantity {
    Quantity(text.into())
}

/// Makes a size from a literal known to be valid; for defaults.
pub(crate) fn bytes(text: &'static str) -> Bytes {
    Bytes { text: text.into(), bytes: Bytes::parse(text).unwrap_or_default() }
}

/// Makes a duration from a literal known to be valid; for defaults.
pub(crate) fn span(text: &'static str) -> Span {
    Span { text: text.into(), span: Span::parse(text).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_with_every_suffix() {
        for (text, bytes) in [("7", 7), ("2k", 2_000), ("3Mi", 3 << 20), ("1Gi", 1 << 30), ("1T", 1_000_000_000_000)] {
            assert_eq!(Bytes::try_from(text.to_string()).map(|b| b.get()), Ok(bytes));
        }
        for text in ["", "0", "0Gi", "Gi", "-1", "1.5Gi", "1 Gi", "99999999T99"] {
            assert!(Bytes::try_from(text.to_string()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_api_server_accepts_can_be_read(size in inner(BYTES_PATTERN), span in inner(SPAN_PATTERN)) {
            prop_assert!(Bytes::try_from(size).is_ok_and(|b| (1..=LARGEST).contains(&b.get())));
            prop_assert!(Span::try_from(span).is_ok_and(|s| s.get() <= LONGEST));
        }
    }

    /// A pattern without its anchors, as a strategy wants it.
    fn inner(pattern: &'static str) -> &'static str {
        pattern.trim_start_matches('^').trim_end_matches('$')
    }

    #[test]
    fn durations_are_read_with_every_unit() {
        for (text, millis) in [("5ms", 5), ("30s", 30_000), ("1h30m", 5_400_000), ("2m5s", 125_000)] {
            assert_eq!(Span::try_from(text.to_string()).map(|s| s.get().as_millis()), Ok(millis));
        }
        for text in ["", "5", "s", "5d", "-5s", "1.5h"] {
            assert!(Span::try_from(text.to_string()).is_err(), "{text}");
        }
    }
}
