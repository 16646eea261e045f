//! Which type a source's column gets at Snowflake, and the types that rows can be written in. Pure.

use std::fmt;

use super::encode::reads_binary;
use crate::{
    destination::ColumnType,
    source::type_map::{Kind, SourceType},
};

/// A type of Snowflake, as far as rows are written in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `BOOLEAN`.
    Boolean,
    /// `NUMBER(precision, scale)`.
    Number(u8, u8),
    /// `FLOAT`: 64 bits.
    Float,
    /// `VARCHAR`, or one of so many characters.
    Varchar(Option<u32>),
    /// `BINARY`.
    Binary,
    /// `DATE`.
    Date,
    /// `TIME(scale)`.
    Time(u8),
    /// `TIMESTAMP_NTZ(scale)`: a time of day on a day, wherever.
    TimestampNtz(u8),
    /// `TIMESTAMP_LTZ(scale)`: a moment.
    TimestampLtz(u8),
    /// `TIMESTAMP_TZ(scale)`: a moment with an offset, which is that of UTC.
    TimestampTz(u8),
    /// `VARIANT`: any JSON.
    Variant,
    /// `OBJECT`: a JSON object.
    Object,
    /// `ARRAY`: a JSON array.
    Array,
    /// `GEOGRAPHY`, from WKT, WKB in hex or GeoJSON.
    Geography,
    /// `GEOMETRY`, from the same.
    Geometry,
}

/// Digits of the widest NUMBER (Snowflake docs, "Numeric data types").
const DIGITS: u8 = 38;
/// Digits after the point of a `numeric` that says nothing of them.
const SCALE: u8 = 9;

impl Type {
    /// Reads a type as people write it; `None` for what rows cannot be written in.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_uppercase();
        let (name, arguments) = match text.split_once('(') {
            Some((name, rest)) => (name.trim_end(), Some(rest.strip_suffix(')')?)),
            None => (text.as_str(), None),
        };
        let numbers: Option<Vec<u32>> =
            arguments.map(|list| list.split(',').map(|n| n.trim().parse().ok()).collect::<Option<_>>()).unwrap_or(Some(vec![]));
        let numbers = numbers?;
        let seconds = || match numbers[..] {
            [] => Some(6),
            [scale @ 0..=9] => Some(scale as u8),
            _ => None,
        };
        let plain = |type_: Self| numbers.is_empty().then_some(type_);
        Some(match name {
            "BOOLEAN" => plain(Self::Boolean)?,
            "NUMBER" | "DECIMAL" | "DEC" | "NUMERIC" => match numbers[..] {
                [] => Self::Number(DIGITS, 0),
                [precision @ 1..=38] => Self::Number(precision as u8, 0),
                [precision @ 1..=38, scale @ 0..=37] if scale <= precision => Self::Number(precision as u8, scale as u8),
                _ => return None,
            },
            "INT" | "INTEGER" | "BIGINT" | "SMALLINT" | "TINYINT" | "BYTEINT" => plain(Self::Number(DIGITS, 0))?,
            "FLOAT" | "FLOAT4" | "FLOAT8" | "DOUBLE" | "DOUBLE PRECISION" | "REAL" => plain(Self::Float)?,
            "VARCHAR" | "STRING" | "TEXT" => match numbers[..] {
                [] => Self::Varchar(None),
                [length] if length > 0 => Self::Varchar(Some(length)),
                _ => return None,
            },
            "BINARY" | "VARBINARY" => plain(Self::Binary)?,
            "DATE" => plain(Self::Date)?,
            "TIME" => Self::Time(seconds()?),
            "TIMESTAMP_NTZ" | "DATETIME" => Self::TimestampNtz(seconds()?),
            "TIMESTAMP_LTZ" => Self::TimestampLtz(seconds()?),
            "TIMESTAMP_TZ" => Self::TimestampTz(seconds()?),
            "VARIANT" => plain(Self::Variant)?,
            "OBJECT" => plain(Self::Object)?,
            "ARRAY" => plain(Self::Array)?,
            "GEOGRAPHY" => plain(Self::Geography)?,
            "GEOMETRY" => plain(Self::Geometry)?,
            _ => return None,
        })
    }

    /// What becomes of a field's text, an expression, on its way into a column of this type.
    pub(super) fn of_text(self, field: &str) -> String {
        match self {
            // Objects of the type `json` may have two members of one name: the last one counts, as at PostgreSQL.
            Self::Variant => format!("PARSE_JSON({field}, 'd')"),
            Self::Object => format!("TO_OBJECT(PARSE_JSON({field}, 'd'))"),
            Self::Array => format!("TO_ARRAY(PARSE_JSON({field}))"),
            Self::Geography => format!("TO_GEOGRAPHY({field})"),
            Self::Geometry => format!("TO_GEOMETRY({field})"),
            _ => field.to_string(),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("BOOLEAN"),
            Self::Number(precision, scale) => write!(f, "NUMBER({precision},{scale})"),
            Self::Float => f.write_str("FLOAT"),
            Self::Varchar(None) => f.write_str("VARCHAR"),
            Self::Varchar(Some(length)) => write!(f, "VARCHAR({length})"),
            Self::Binary => f.write_str("BINARY"),
            Self::Date => f.write_str("DATE"),
            Self::Time(scale) => write!(f, "TIME({scale})"),
            Self::TimestampNtz(scale) => write!(f, "TIMESTAMP_NTZ({scale})"),
            Self::TimestampLtz(scale) => write!(f, "TIMESTAMP_LTZ({scale})"),
            Self::TimestampTz(scale) => write!(f, "TIMESTAMP_TZ({scale})"),
            Self::Variant => f.write_str("VARIANT"),
            Self::Object => f.write_str("OBJECT"),
            Self::Array => f.write_str("ARRAY"),
            Self::Geography => f.write_str("GEOGRAPHY"),
            Self::Geometry => f.write_str("GEOMETRY"),
        }
    }
}

/// The type for a source's type. `source` is the column's, with domains resolved, `wanted` the Mirror's own choice.
///
/// The rules are in docs/snowflake.md. A column whose binary form is not read here travels as text, by a cast in the source's `COPY`.
pub fn destination_type(source: &SourceType, wanted: Option<&str>) -> ColumnType {
    let chosen = match wanted {
        Some(wanted) => Type::parse(wanted),
        None if source.kind == Kind::Enum => Some(Type::Varchar(None)),
        None => Some(natural(&source.text)),
    };
    let as_text = chosen.is_none_or(|to| !reads_binary(&source.text, to));
    let destination_type = chosen.map_or_else(|| wanted.unwrap_or_default().trim().to_string(), |to| to.to_string());
    ColumnType { destination_type, binary: true, as_text }
}

fn natural(source: &str) -> Type {
    if source.ends_with("[]") {
        return Type::Array;
    }
    let (name, modifiers) = modifiers(source);
    match name.as_str() {
        "boolean" => Type::Boolean,
        "smallint" | "integer" | "bigint" | "oid" => Type::Number(DIGITS, 0),
        "real" | "double precision" => Type::Float,
        "numeric" => numeric(&modifiers),
        "bytea" => Type::Binary,
        "date" => Type::Date,
        "time without time zone" => Type::Time(6),
        "timestamp without time zone" => Type::TimestampNtz(6),
        "timestamp with time zone" => Type::TimestampTz(6),
        "json" | "jsonb" => Type::Variant,
        _ => Type::Varchar(None),
    }
}

/// `numeric(p, s)` as the number that holds each of its values; text if there is none.
fn numeric(modifiers: &[i32]) -> Type {
    let (precision, scale) = match *modifiers {
        [precision, scale] if scale < 0 => (precision - scale, 0),
        [precision, scale] => (precision.max(scale), scale),
        [precision] => (precision, 0),
        _ => return Type::Number(DIGITS, SCALE),
    };
    match (u8::try_from(precision), u8::try_from(scale)) {
        (Ok(precision @ 1..=DIGITS), Ok(scale @ 0..=37)) => Type::Number(precision, scale),
        _ => Type::Varchar(None),
    }
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

    fn mapped(source: &str, wanted: Option<&str>) -> (String, bool) {
        let base = SourceType { oid: 1, text: source.into(), kind: Kind::Base, element: None, sendable: true };
        let mapped = destination_type(&base, wanted);
        (mapped.destination_type, mapped.as_text)
    }

    #[test]
    fn every_kind_of_type_finds_its_place() {
        let table = [
            ("boolean", "BOOLEAN", false),
            ("smallint", "NUMBER(38,0)", false),
            ("bigint", "NUMBER(38,0)", false),
            ("oid", "NUMBER(38,0)", false),
            ("real", "FLOAT", false),
            ("double precision", "FLOAT", false),
            ("numeric(10,2)", "NUMBER(10,2)", false),
            ("numeric(3,5)", "NUMBER(5,5)", false),
            ("numeric(3,-2)", "NUMBER(5,0)", false),
            ("numeric", "NUMBER(38,9)", false),
            ("numeric(39,0)", "VARCHAR", true),
            ("character varying(10)", "VARCHAR", false),
            ("character(3)", "VARCHAR", false),
            ("jsonb", "VARIANT", false),
            ("json", "VARIANT", false),
            ("bytea", "BINARY", false),
            ("date", "DATE", false),
            ("time without time zone", "TIME(6)", false),
            ("time with time zone", "VARCHAR", true),
            ("timestamp(3) without time zone", "TIMESTAMP_NTZ(6)", false),
            ("timestamp with time zone", "TIMESTAMP_TZ(6)", false),
            ("uuid", "VARCHAR", false),
            ("integer[]", "ARRAY", false),
            ("inet[]", "ARRAY", true),
            ("inet", "VARCHAR", true),
            ("interval", "VARCHAR", true),
            ("int4range", "VARCHAR", true),
            ("public.pair", "VARCHAR", true),
            ("money", "VARCHAR", true),
        ];
        for (source, expected, as_text) in table {
            assert_eq!(mapped(source, None), (expected.to_string(), as_text), "{source}");
        }
    }

    #[test]
    fn types_are_read_as_people_write_them() {
        assert_eq!(Type::parse(" number( 10 , 2 ) "), Some(Type::Number(10, 2)));
        assert_eq!(Type::parse("timestamp_ltz"), Some(Type::TimestampLtz(6)));
        assert_eq!(Type::parse("String"), Some(Type::Varchar(None)));
        assert_eq!(mapped("integer", Some("varchar(20)")), ("VARCHAR(20)".to_string(), true));
        for wrong in ["NUMBER(39,1)", "NUMBER(5,6)", "TIME(10)", "VECTOR(FLOAT, 3)", "MAP(VARCHAR, INT)", "VARCHAR()", "FILE"] {
            assert_eq!(Type::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_type_reads_back() {
        for type_ in [Type::Number(38, 9), Type::Varchar(Some(3)), Type::TimestampTz(6), Type::Time(0), Type::Geography, Type::Object] {
            assert_eq!(Type::parse(&type_.to_string()), Some(type_));
        }
    }
}
