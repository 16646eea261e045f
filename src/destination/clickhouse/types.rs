//! Which type a source's column gets at ClickHouse, and the types that rows can be written in. Pure.

use super::encode::reads_binary;
use crate::{
    destination::ColumnType,
    source::type_map::{Kind, SourceType},
};

/// A type of ClickHouse, as far as rows are written in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// `Bool`.
    Bool,
    /// `Int8` to `Int256`, by the number of bytes.
    Int(u8),
    /// `UInt8` to `UInt256`, by the number of bytes.
    UInt(u8),
    /// `Float32`.
    Float32,
    /// `Float64`.
    Float64,
    /// `Decimal(precision, scale)`.
    Decimal(u8, u8),
    /// `String`.
    String,
    /// `UUID`.
    Uuid,
    /// `Date`: days since 1970 in 16 bits.
    Date,
    /// `Date32`: days since 1970, from 1900 to 2299.
    Date32,
    /// `DateTime`: seconds since 1970 in 32 bits.
    DateTime,
    /// `DateTime64(scale)`: ticks since 1970, from 1900 to 2299 (2262 for scale 9).
    DateTime64(u8),
    /// `IPv4`.
    Ipv4,
    /// `IPv6`.
    Ipv6,
    /// `JSON`, which travels as its text.
    Json,
    /// `Array(T)`.
    Array(Box<Type>),
    /// `Nullable(T)`.
    Nullable(Box<Type>),
    /// `LowCardinality(T)`, which travels as `T`.
    LowCardinality(Box<Type>),
}

impl Type {
    /// Reads a type as people write it; `None` for what rows cannot be written in.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (name, arguments) = match text.split_once('(') {
            Some((name, rest)) => (name.trim_end(), Some(rest.strip_suffix(')')?.trim())),
            None => (text, None),
        };
        let inner = || arguments.and_then(Self::parse).map(Box::new);
        let numbers = || -> Option<Vec<u8>> { arguments?.split(',').map(|n| n.trim().parse().ok()).collect() };
        Some(match (name, arguments) {
            ("Bool" | "Boolean", None) => Self::Bool,
            ("Float32", None) => Self::Float32,
            ("Float64", None) => Self::Float64,
            ("String", None) => Self::String,
            ("UUID", None) => Self::Uuid,
            ("Date", None) => Self::Date,
            ("Date32", None) => Self::Date32,
            ("DateTime", _) => Self::DateTime,
            ("DateTime64", Some(arguments)) => {
                let scale = arguments.split(',').next()?.trim().parse().ok()?;
                (scale <= 9).then_some(Self::DateTime64(scale))?
            }
            ("IPv4", None) => Self::Ipv4,
            ("IPv6", None) => Self::Ipv6,
            ("JSON", _) => Self::Json,
            ("Array", Some(_)) => Self::Array(inner()?),
            ("Nullable", Some(_)) => Self::Nullable(inner().filter(|t| t.may_be_nullable())?),
            ("LowCardinality", Some(_)) => Self::LowCardinality(inner()?),
            ("Decimal", Some(_)) => match numbers()?[..] {
                [precision] => decimal(precision, 0)?,
                [precision, scale] => decimal(precision, scale)?,
                _ => return None,
            },
            (name, None) => integer(name)?,
            _ => return None,
        })
    }

    /// The type without `Nullable` and `LowCardinality`.
    pub fn bare(&self) -> &Self {
        match self {
            Self::Nullable(inner) | Self::LowCardinality(inner) => inner.bare(),
            other => other,
        }
    }

    /// Whether a value may be NULL.
    pub fn is_nullable(&self) -> bool {
        match self {
            Self::Nullable(_) => true,
            Self::LowCardinality(inner) => inner.is_nullable(),
            _ => false,
        }
    }

    fn may_be_nullable(&self) -> bool {
        !matches!(self, Self::Array(_) | Self::Nullable(_) | Self::LowCardinality(_))
    }
}

fn decimal(precision: u8, scale: u8) -> Option<Type> {
    (1..=76).contains(&precision).then_some(())?;
    (scale <= precision).then_some(Type::Decimal(precision, scale))
}

fn integer(name: &str) -> Option<Type> {
    let (signed, bits) = match name.strip_prefix("UInt") {
        Some(bits) => (false, bits),
        None => (true, name.strip_prefix("Int")?),
    };
    let bytes = match bits {
        "8" => 1,
        "16" => 2,
        "32" => 4,
        "64" => 8,
        "128" => 16,
        "256" => 32,
        _ => return None,
    };
    Some(if signed { Type::Int(bytes) } else { Type::UInt(bytes) })
}

/// What decides a column's type beside the source's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes<'a> {
    /// The Mirror's own choice.
    pub wanted: Option<&'a str>,
    /// Whether values may be NULL there.
    pub nullable: bool,
    /// Whether dates and times are to be kept as text.
    pub times_as_text: bool,
}

/// The type for a source's type. `source` is the column's, with domains resolved.
///
/// The rules are in docs/clickhouse.md. A column whose binary form is not read here travels as text, by a cast in the source's `COPY`.
pub fn destination_type(source: &SourceType, wishes: Wishes<'_>) -> ColumnType {
    let own = match wishes.wanted {
        // Their text is split at commas.
        _ if source.element.as_ref().is_some_and(|element| element.separator != ',') => "String".into(),
        Some(wanted) => wanted.trim().to_string(),
        None if source.kind == Kind::Enum => "LowCardinality(String)".into(),
        None => natural(&source.text, wishes.times_as_text),
    };
    let destination_type = if wishes.nullable { nullable(own) } else { own };
    let as_text = Type::parse(&destination_type).is_none_or(|t| !reads_binary(&source.text, &t));
    ColumnType { destination_type, binary: true, as_text }
}

/// The type with `Nullable` where ClickHouse allows it: an array is never NULL.
pub(super) fn nullable(own: String) -> String {
    match Type::parse(&own) {
        Some(t) if t.is_nullable() => own,
        Some(Type::LowCardinality(_)) => match own.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')) {
            Some(inner) => format!("LowCardinality(Nullable({inner}))"),
            None => own,
        },
        Some(t) if t.may_be_nullable() => format!("Nullable({own})"),
        _ => own,
    }
}

/// The type for one of PostgreSQL's own types, as `format_type` prints it. What users and extensions made is text.
fn natural(source: &str, times_as_text: bool) -> String {
    if let Some(element) = source.strip_suffix("[]") {
        return format!("Array(Nullable({}))", natural(element, times_as_text));
    }
    let (name, modifiers) = modifiers(source);
    match name.as_str() {
        "boolean" => "Bool".into(),
        "smallint" => "Int16".into(),
        "integer" => "Int32".into(),
        "bigint" => "Int64".into(),
        "oid" => "UInt32".into(),
        "real" => "Float32".into(),
        "double precision" => "Float64".into(),
        "numeric" => numeric(&modifiers),
        "uuid" => "UUID".into(),
        "date" if !times_as_text => "Date32".into(),
        "timestamp without time zone" | "timestamp with time zone" if !times_as_text => "DateTime64(6, 'UTC')".into(),
        _ => "String".into(),
    }
}

/// `numeric(p, s)` as the decimal that holds each of its values; unbounded ones as the widest with room on both sides.
fn numeric(modifiers: &[i32]) -> String {
    let (precision, scale) = match *modifiers {
        [precision, scale] if scale < 0 => (precision - scale, 0),
        [precision, scale] => (precision.max(scale), scale),
        [precision] => (precision, 0),
        _ => (76, 38),
    };
    if precision <= 76 { format!("Decimal({precision}, {scale})") } else { "String".into() }
}

/// The name without its modifiers, and those: `timestamp(3) without time zone` is `timestamp without time zone` and 3.
pub(super) fn modifiers(source: &str) -> (String, Vec<i32>) {
    let Some((before, rest)) = source.split_once('(') else { return (source.into(), vec![]) };
    let Some((inside, after)) = rest.split_once(')') else { return (source.into(), vec![]) };
    match inside.split(',').map(|n| n.trim().parse().ok()).collect::<Option<Vec<i32>>>() {
        Some(numbers) => (format!("{before}{after}"), numbers),
        None => (source.into(), vec![]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::type_map::Element;

    fn mapped(source: &str, nullable: bool, wanted: Option<&str>) -> (String, bool) {
        let base = SourceType { oid: 1, text: source.into(), kind: Kind::Base, element: None, sendable: true };
        let mapped = destination_type(&base, Wishes { wanted, nullable, times_as_text: false });
        (mapped.destination_type, mapped.as_text)
    }

    #[test]
    fn every_kind_of_type_finds_its_place() {
        let table = [
            ("boolean", "Bool", false),
            ("smallint", "Int16", false),
            ("bigint", "Int64", false),
            ("real", "Float32", false),
            ("numeric(10,2)", "Decimal(10, 2)", false),
            ("numeric(3,5)", "Decimal(5, 5)", false),
            ("numeric(3,-2)", "Decimal(5, 0)", false),
            ("numeric", "Decimal(76, 38)", false),
            ("numeric(77,0)", "String", true),
            ("character varying(10)", "String", false),
            ("jsonb", "String", false),
            ("bytea", "String", false),
            ("date", "Date32", false),
            ("timestamp(3) without time zone", "DateTime64(6, 'UTC')", false),
            ("timestamp with time zone", "DateTime64(6, 'UTC')", false),
            ("uuid", "UUID", false),
            ("integer[]", "Array(Nullable(Int32))", false),
            ("numeric(10,2)[]", "Array(Nullable(Decimal(10, 2)))", false),
            ("inet", "String", true),
            ("interval", "String", true),
            ("int4range", "String", true),
            ("public.pair", "String", true),
            ("time without time zone", "String", true),
        ];
        for (source, expected, as_text) in table {
            assert_eq!(mapped(source, false, None), (expected.to_string(), as_text), "{source}");
        }
    }

    #[test]
    fn arrays_that_no_comma_separates_are_text() {
        let element = Element { oid: 603, text: "box".into(), separator: ';' };
        let boxes = SourceType { oid: 1020, text: "box[]".into(), kind: Kind::Base, element: Some(element), sendable: true };
        for wanted in [None, Some("Array(String)")] {
            let mapped = destination_type(&boxes, Wishes { wanted, nullable: true, times_as_text: false });
            assert_eq!((mapped.destination_type.as_str(), mapped.as_text), ("Nullable(String)", true));
        }
    }

    #[test]
    fn nullable_columns_are_nullable_where_clickhouse_allows_it() {
        assert_eq!(mapped("integer", true, None).0, "Nullable(Int32)");
        assert_eq!(mapped("integer[]", true, None).0, "Array(Nullable(Int32))");
        assert_eq!(mapped("text", true, Some("LowCardinality(String)")).0, "LowCardinality(Nullable(String))");
        assert_eq!(mapped("text", true, Some("Nullable(String)")).0, "Nullable(String)");
        assert_eq!(mapped("integer", false, Some("Int64")), ("Int64".to_string(), true));
    }

    #[test]
    fn types_are_read_as_people_write_them() {
        let decimal = |p, s| Some(Type::Decimal(p, s));
        assert_eq!(Type::parse(" Decimal( 10 , 2 ) "), decimal(10, 2));
        assert_eq!(Type::parse("Decimal(76)"), decimal(76, 0));
        assert_eq!(Type::parse("DateTime64(3, 'Europe/Berlin')"), Some(Type::DateTime64(3)));
        assert!(Type::parse("Array(Array(Nullable(UInt8)))").is_some());
        for wrong in
            ["Decimal(77, 1)", "Decimal(5, 6)", "Nullable(Array(Int8))", "Tuple(Int8)", "Int7", "Array()", "DateTime64(10)", "text"]
        {
            assert_eq!(Type::parse(wrong), None, "{wrong}");
        }
    }
}
