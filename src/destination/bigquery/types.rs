//! Which type a source's column gets at BigQuery, and the types that rows can be written in. Pure.

use super::encode::reads_binary;
use crate::{
    api::bigquery::{BigQueryTable, NullElements, OutOfRange},
    destination::ColumnType,
    source::type_map::{Kind, SourceType},
};

/// A type of BigQuery, as far as rows are written in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// `BOOL`.
    Bool,
    /// `INT64`.
    Int64,
    /// `FLOAT64`.
    Float64,
    /// `NUMERIC`: digits before and after the point.
    Numeric(u8, u8),
    /// `BIGNUMERIC`: the same.
    BigNumeric(u8, u8),
    /// `STRING`.
    String,
    /// `BYTES`.
    Bytes,
    /// `DATE`.
    Date,
    /// `DATETIME`.
    Datetime,
    /// `TIME`.
    Time,
    /// `TIMESTAMP`.
    Timestamp,
    /// `JSON`, which travels as its text.
    Json,
    /// `ARRAY<T>`: neither it nor its elements are NULL, and it has one dimension.
    Array(Box<Type>),
}

/// What NUMERIC and BIGNUMERIC hold before and after the point (BigQuery docs, "Data types", "Decimal types").
const NUMERIC: (u8, u8) = (29, 9);
const BIGNUMERIC: (u8, u8) = (38, 38);

impl Type {
    /// Reads a type as people write it; `None` for what rows cannot be written in.
    pub fn parse(text: &str) -> Option<Self> {
        let upper = text.trim().to_uppercase();
        if let Some(inside) = upper.strip_prefix("ARRAY") {
            let inside = inside.trim().strip_prefix('<')?.strip_suffix('>')?;
            let element = Self::parse(inside)?;
            return (!matches!(element, Self::Array(_))).then(|| Self::Array(Box::new(element)));
        }
        let (name, arguments) = match upper.split_once('(') {
            Some((name, rest)) => (name.trim_end(), Some(numbers(rest.strip_suffix(')')?)?)),
            None => (upper.as_str(), None),
        };
        Some(match (name, arguments) {
            ("BOOL" | "BOOLEAN", None) => Self::Bool,
            ("INT64" | "INT" | "SMALLINT" | "INTEGER" | "BIGINT" | "TINYINT" | "BYTEINT", None) => Self::Int64,
            ("FLOAT64", None) => Self::Float64,
            ("NUMERIC" | "DECIMAL", arguments) => decimal(arguments, NUMERIC).map(|(whole, scale)| Self::Numeric(whole, scale))?,
            ("BIGNUMERIC" | "BIGDECIMAL", arguments) => {
                decimal(arguments, BIGNUMERIC).map(|(whole, scale)| Self::BigNumeric(whole, scale))?
            }
            // The service itself looks at the length.
            ("STRING", _) => Self::String,
            ("BYTES", _) => Self::Bytes,
            ("DATE", None) => Self::Date,
            ("DATETIME", None) => Self::Datetime,
            ("TIME", None) => Self::Time,
            ("TIMESTAMP", None) => Self::Timestamp,
            ("JSON", None) => Self::Json,
            _ => return None,
        })
    }

    /// Whether a table can be clustered by such a column (BigQuery docs, "Introduction to clustered tables").
    pub fn clusters(&self) -> bool {
        !matches!(self, Self::Float64 | Self::Bytes | Self::Time | Self::Json | Self::Array(_))
    }
}

fn numbers(text: &str) -> Option<Vec<u8>> {
    text.split(',').map(|n| n.trim().parse().ok()).collect()
}

/// Digits before and after the point of `(precision, scale)`, none of which means all that the type has.
fn decimal(arguments: Option<Vec<u8>>, (whole, scale): (u8, u8)) -> Option<(u8, u8)> {
    let (precision, wanted) = match arguments.as_deref() {
        None => return Some((whole, scale)),
        Some([precision]) => (*precision, 0),
        Some([precision, scale]) => (*precision, *scale),
        Some(_) => return None,
    };
    (precision > 0 && wanted <= scale && wanted <= precision && precision - wanted <= whole).then(|| (precision - wanted, wanted))
}

/// The type for a source's type. `source` is the column's, with domains resolved.
///
/// The rules are in docs/bigquery.md. A column whose binary form is not read here travels as text, by a cast in the source's `COPY`.
pub fn destination_type(source: &SourceType, wanted: Option<&str>, options: &BigQueryTable) -> ColumnType {
    let destination_type = match wanted {
        Some(wanted) => wanted.trim().to_string(),
        None if source.kind == Kind::Enum => "STRING".into(),
        None => natural(&source.text, options),
    };
    let as_text = Type::parse(&destination_type).is_none_or(|t| !reads_binary(&source.text, &t));
    ColumnType { destination_type, binary: true, as_text }
}

/// The type for one of PostgreSQL's own types, as `format_type` prints it. What users and extensions made is text.
fn natural(source: &str, options: &BigQueryTable) -> String {
    let times_as_text = options.out_of_range == OutOfRange::String;
    if let Some(element) = source.strip_suffix("[]") {
        let element = natural(element, options);
        return if options.null_elements == NullElements::String || element.starts_with("ARRAY") {
            "STRING".into()
        } else {
            format!("ARRAY<{element}>")
        };
    }
    let (name, modifiers) = modifiers(source);
    match name.as_str() {
        "boolean" => "BOOL".into(),
        "smallint" | "integer" | "bigint" | "oid" => "INT64".into(),
        "real" | "double precision" => "FLOAT64".into(),
        "numeric" => numeric(&modifiers),
        "bytea" => "BYTES".into(),
        "json" | "jsonb" => "JSON".into(),
        "date" if !times_as_text => "DATE".into(),
        "time without time zone" if !times_as_text => "TIME".into(),
        "timestamp without time zone" if !times_as_text => "DATETIME".into(),
        "timestamp with time zone" if !times_as_text => "TIMESTAMP".into(),
        _ => "STRING".into(),
    }
}

/// `numeric(p, s)` as the narrowest type that holds each of its values; one without bounds as the widest.
fn numeric(modifiers: &[i32]) -> String {
    let (whole, scale) = match *modifiers {
        [precision, scale] if scale < 0 => (precision - scale, 0),
        [precision, scale] => ((precision - scale).max(0), scale),
        [precision] => (precision, 0),
        _ => return "BIGNUMERIC".into(),
    };
    let fits = |(most, finest): (u8, u8)| whole <= i32::from(most) && scale <= i32::from(finest);
    match () {
        () if fits(NUMERIC) => format!("NUMERIC({}, {scale})", (whole + scale).max(1)),
        () if fits(BIGNUMERIC) => format!("BIGNUMERIC({}, {scale})", (whole + scale).max(1)),
        () => "STRING".into(),
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

    fn mapped(source: &str, wanted: Option<&str>, options: &BigQueryTable) -> (String, bool) {
        let base = SourceType { oid: 1, text: source.into(), kind: Kind::Base, element: None, sendable: true };
        let mapped = destination_type(&base, wanted, options);
        (mapped.destination_type, mapped.as_text)
    }

    #[test]
    fn every_kind_of_type_finds_its_place() {
        let table = [
            ("boolean", "BOOL", false),
            ("smallint", "INT64", false),
            ("oid", "INT64", false),
            ("real", "FLOAT64", false),
            ("numeric(10,2)", "NUMERIC(10, 2)", false),
            ("numeric(38,9)", "NUMERIC(38, 9)", false),
            ("numeric(38,10)", "BIGNUMERIC(38, 10)", false),
            ("numeric(30)", "BIGNUMERIC(30, 0)", false),
            ("numeric(3,5)", "NUMERIC(5, 5)", false),
            ("numeric(3,-2)", "NUMERIC(5, 0)", false),
            ("numeric(77,0)", "STRING", true),
            ("numeric", "BIGNUMERIC", false),
            ("character varying(10)", "STRING", false),
            ("jsonb", "JSON", false),
            ("bytea", "BYTES", false),
            ("date", "DATE", false),
            ("time(3) without time zone", "TIME", false),
            ("time with time zone", "STRING", true),
            ("timestamp(3) without time zone", "DATETIME", false),
            ("timestamp with time zone", "TIMESTAMP", false),
            ("uuid", "STRING", false),
            ("integer[]", "ARRAY<INT64>", false),
            ("numeric(10,2)[]", "ARRAY<NUMERIC(10, 2)>", false),
            ("interval", "STRING", true),
            ("tstzrange", "STRING", true),
            ("inet", "STRING", true),
            ("public.pair", "STRING", true),
        ];
        for (source, expected, as_text) in table {
            assert_eq!(mapped(source, None, &BigQueryTable::default()), (expected.to_string(), as_text), "{source}");
        }
    }

    #[test]
    fn what_the_mirror_wants_counts() {
        let text = BigQueryTable { out_of_range: OutOfRange::String, null_elements: NullElements::String, ..BigQueryTable::default() };
        assert_eq!(mapped("timestamp with time zone", None, &text), ("STRING".into(), true));
        assert_eq!(mapped("integer[]", None, &text), ("STRING".into(), true));
        assert_eq!(mapped("integer", Some(" NUMERIC "), &text), ("NUMERIC".into(), true));
        assert_eq!(mapped("jsonb", Some("STRING"), &text), ("STRING".into(), false));
    }

    #[test]
    fn types_are_read_as_people_write_them() {
        assert_eq!(Type::parse(" Numeric( 10 , 2 ) "), Some(Type::Numeric(8, 2)));
        assert_eq!(Type::parse("BIGNUMERIC"), Some(Type::BigNumeric(38, 38)));
        assert_eq!(Type::parse("ARRAY< string(10) >"), Some(Type::Array(Box::new(Type::String))));
        for wrong in
            ["NUMERIC(40, 9)", "NUMERIC(10, 10)", "NUMERIC(5, 6)", "ARRAY<ARRAY<INT64>>", "STRUCT<a INT64>", "GEOGRAPHY", "text", "ARRAY<>"]
        {
            assert_eq!(Type::parse(wrong), None, "{wrong}");
        }
    }
}
