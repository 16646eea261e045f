//! From PostgreSQL's values, in binary or as text, to rows of CSV. Pure.
//!
//! NULL is an empty field, texts are in double quotes, and nothing else is escaped (Snowflake docs, "CREATE FILE FORMAT": with FIELD_OPTIONALLY_ENCLOSED_BY and
//! EMPTY_FIELD_AS_NULL an empty field is NULL and one of two quotes is the empty text). Every field ends with a comma, so that a row of one NULL is no empty line.
//! Both forms of a value give the same field, so that the load, which reads binary tuples, and the change stream, which reads text, agree.

mod copy;
mod json;
mod number;
mod time;

use super::types::{Type, modifiers};
use crate::{api::snowflake::BeyondRange, destination::Cell, table::TableSchema};

pub use copy::{CopyError, CopyReader};

/// What file formats say to read these rows (Snowflake docs, "CREATE FILE FORMAT").
pub(super) const FILE_FORMAT: &str = "FILE_FORMAT = (TYPE = CSV COMPRESSION = ZSTD FIELD_DELIMITER = ',' RECORD_DELIMITER = '\\n' SKIP_HEADER = 0 \
     FIELD_OPTIONALLY_ENCLOSED_BY = '\"' ESCAPE = NONE ESCAPE_UNENCLOSED_FIELD = NONE NULL_IF = () EMPTY_FIELD_AS_NULL = TRUE \
     ERROR_ON_COLUMN_COUNT_MISMATCH = FALSE TRIM_SPACE = FALSE REPLACE_INVALID_CHARACTERS = FALSE ENCODING = 'UTF8' BINARY_FORMAT = HEX \
     DATE_FORMAT = AUTO TIME_FORMAT = AUTO TIMESTAMP_FORMAT = AUTO)";

/// A value that its column cannot hold. Never tells the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Index among the copied columns.
    pub column: usize,
    /// Why.
    pub why: &'static str,
}

/// Writes rows of one table.
pub struct RowEncoder {
    columns: Vec<ColumnEncoder>,
    /// Places of the key's columns.
    key: Vec<usize>,
}

/// A binary form that is read here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Binary {
    Bool,
    /// A whole number of so many bytes.
    Int(usize),
    /// Of four bytes without a sign.
    Oid,
    Float4,
    Float8,
    Numeric,
    /// The bytes are the text.
    Text,
    /// A version, then the text.
    Jsonb,
    Json,
    Bytea,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Uuid,
    Array(Box<Binary>),
}

struct ColumnEncoder {
    type_: Type,
    /// `None`: the column travels as text.
    binary: Option<Binary>,
    /// What the value is at the source; of an array, what its elements are.
    element: json::Element,
    /// Whether the text form is that of bytea.
    hex: bool,
    rule: BeyondRange,
}

const MALFORMED: &str = "the source's value is not of the form that is expected";
const TOO_LONG: &str = "the text is longer than the column's type allows";

/// Whether binary values of `source`, a type as the catalog prints it, can be written as `to`.
pub fn reads_binary(source: &str, to: Type) -> bool {
    binary(source, to).is_some()
}

fn binary(source: &str, to: Type) -> Option<Binary> {
    if let Some(element) = source.strip_suffix("[]") {
        return (to == Type::Array).then(|| element_form(element)).flatten().map(|form| Binary::Array(Box::new(form)));
    }
    Some(match (modifiers(source).0.as_str(), to) {
        ("boolean", Type::Boolean) => Binary::Bool,
        ("smallint", Type::Number(38, 0)) => Binary::Int(2),
        ("integer", Type::Number(38, 0)) => Binary::Int(4),
        ("bigint", Type::Number(38, 0)) => Binary::Int(8),
        ("oid", Type::Number(38, 0)) => Binary::Oid,
        ("real", Type::Float) => Binary::Float4,
        ("double precision", Type::Float) => Binary::Float8,
        ("numeric", Type::Number(..)) => Binary::Numeric,
        ("text" | "character varying" | "character" | "name" | "xml", Type::Varchar(_)) => Binary::Text,
        ("json", Type::Variant | Type::Object | Type::Varchar(_)) => Binary::Json,
        ("jsonb", Type::Variant | Type::Object | Type::Varchar(_)) => Binary::Jsonb,
        ("bytea", Type::Binary) => Binary::Bytea,
        ("date", Type::Date) => Binary::Date,
        ("time without time zone", Type::Time(_)) => Binary::Time,
        ("timestamp without time zone", Type::TimestampNtz(_)) => Binary::Timestamp,
        ("timestamp with time zone", Type::TimestampTz(_) | Type::TimestampLtz(_)) => Binary::TimestampTz,
        ("uuid", Type::Varchar(_)) => Binary::Uuid,
        _ => return None,
    })
}

/// The binary form of an array's elements, which become JSON.
fn element_form(source: &str) -> Option<Binary> {
    Some(match modifiers(source).0.as_str() {
        "boolean" => Binary::Bool,
        "smallint" => Binary::Int(2),
        "integer" => Binary::Int(4),
        "bigint" => Binary::Int(8),
        "real" => Binary::Float4,
        "double precision" => Binary::Float8,
        "numeric" => Binary::Numeric,
        "text" | "character varying" | "character" | "name" => Binary::Text,
        "json" => Binary::Json,
        "jsonb" => Binary::Jsonb,
        "bytea" => Binary::Bytea,
        "date" => Binary::Date,
        "timestamp without time zone" => Binary::Timestamp,
        "timestamp with time zone" => Binary::TimestampTz,
        "uuid" => Binary::Uuid,
        _ => return None,
    })
}

impl RowEncoder {
    /// For rows of a table's copied columns. The error names a column whose type rows cannot be written in.
    pub fn new(table: &TableSchema, rule: BeyondRange) -> Result<Self, String> {
        let columns = table.copied().map(|column| {
            let type_ = Type::parse(&column.destination_type).ok_or_else(|| {
                format!("column {:?} has type {}, in which rows cannot be written", column.destination, column.destination_type)
            })?;
            let binary = if column.as_text { None } else { binary(column.value_type(), type_) };
            let element = json::Element::of(column.value_type().trim_end_matches("[]"));
            Ok(ColumnEncoder { type_, binary, element, hex: column.value_type() == "bytea", rule })
        });
        Ok(Self { columns: columns.collect::<Result<_, String>>()?, key: table.copied_key() })
    }

    /// Writes the fields of a row of texts. What was not sent is written as NULL.
    pub fn cells(&self, row: &[Cell], out: &mut Vec<u8>) -> Result<(), Refused> {
        for place in 0..self.columns.len() {
            self.cell(place, row.get(place).unwrap_or(&Cell::Unchanged), out)?;
        }
        Ok(())
    }

    /// Writes the field of one column from its text.
    pub fn cell(&self, place: usize, cell: &Cell, out: &mut Vec<u8>) -> Result<(), Refused> {
        let Some(column) = self.columns.get(place) else { return Ok(()) };
        let text = match cell {
            Cell::Text(text) => Some(text.as_ref()),
            Cell::Null | Cell::Unchanged => None,
        };
        column.put(text, false, out).map_err(|why| Refused { column: place, why })
    }

    /// The key of a row for people: whole numbers and UUIDs as they are, nothing else.
    fn name_key<'a>(&self, field: impl Fn(usize) -> Option<&'a [u8]>, binary: bool) -> String {
        let part = |place: &usize| {
            let (column, bytes) = (self.columns.get(*place)?, field(*place)?);
            match (binary.then_some(column.binary.as_ref()).flatten(), column.type_) {
                (Some(Binary::Int(_)), _) => number::whole(bytes).map(|n| n.to_string()),
                (Some(Binary::Uuid), _) => Some(bytes.iter().map(|b| format!("{b:02x}")).collect()),
                (None, Type::Number(_, 0)) => std::str::from_utf8(bytes).ok().map(str::to_string),
                _ => None,
            }
        };
        let parts: Vec<String> = self.key.iter().map(|place| part(place).unwrap_or_else(|| "…".into())).collect();
        if parts.is_empty() { "without a key".into() } else { format!("with the key ({})", parts.join(", ")) }
    }
}

impl ColumnEncoder {
    /// Writes a field and the comma after it.
    fn put(&self, value: Option<&[u8]>, binary: bool, out: &mut Vec<u8>) -> Result<(), &'static str> {
        if let Some(value) = value {
            match self.binary.as_ref().filter(|_| binary) {
                Some(form) => self.put_binary(form, value, out)?,
                None => self.put_text(value, out)?,
            }
        }
        out.push(b',');
        Ok(())
    }

    fn put_binary(&self, form: &Binary, value: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        match form {
            Binary::Bool => out.push(if *value.first().ok_or(MALFORMED)? == 0 { b'f' } else { b't' }),
            Binary::Int(_) => number::put_whole(number::whole(value).ok_or(MALFORMED)?, out),
            Binary::Oid => number::put_whole(i64::from(u32::from_be_bytes(value.try_into().map_err(|_| MALFORMED)?)), out),
            Binary::Float4 => number::put_float4(f32::from_be_bytes(value.try_into().map_err(|_| MALFORMED)?), out),
            Binary::Float8 => number::put_float(f64::from_be_bytes(value.try_into().map_err(|_| MALFORMED)?), out),
            Binary::Numeric => {
                let Type::Number(precision, scale) = self.type_ else { return Err(MALFORMED) };
                number::from_binary(value, precision, scale, out)?;
            }
            Binary::Text | Binary::Json => self.put_string(value, out)?,
            Binary::Jsonb => self.put_string(value.strip_prefix(&[1]).ok_or(MALFORMED)?, out)?,
            Binary::Bytea => put_hex(value, out),
            Binary::Date => time::put_date(time::date_from_binary(value).ok_or(MALFORMED)?, self.rule, out)?,
            Binary::Time => time::put_time(time::time_from_binary(value).ok_or(MALFORMED)?, self.rule, out)?,
            Binary::Timestamp => time::put_timestamp(time::timestamp_from_binary(value).ok_or(MALFORMED)?, false, self.rule, out)?,
            Binary::TimestampTz => time::put_timestamp(time::timestamp_from_binary(value).ok_or(MALFORMED)?, true, self.rule, out)?,
            Binary::Uuid => put_uuid(value, out)?,
            Binary::Array(element) => {
                let mut text = Vec::with_capacity(value.len());
                json::from_binary(element, value, self.rule, &mut text)?;
                put_quoted(&text, out);
            }
        }
        Ok(())
    }

    fn put_text(&self, text: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        match self.type_ {
            Type::Boolean => out.push(match text {
                b"t" | b"true" | b"1" => b't',
                b"f" | b"false" | b"0" => b'f',
                _ => return Err(MALFORMED),
            }),
            Type::Number(precision, scale) => number::from_text(text, precision, scale, out)?,
            Type::Float if self.element == json::Element::Float4 => number::put_float4(number::float4(text).ok_or(MALFORMED)?, out),
            Type::Float => number::put_float(number::float(text).ok_or(MALFORMED)?, out),
            Type::Binary if self.hex => put_hex_digits(text.strip_prefix(b"\\x").ok_or(MALFORMED)?, out)?,
            Type::Binary => put_hex(text, out),
            Type::Date => time::put_date(time::from_text(text)?, self.rule, out)?,
            Type::Time(_) => time::put_time(time::time_from_text(text).ok_or(MALFORMED)?, self.rule, out)?,
            Type::TimestampNtz(_) => time::put_timestamp(time::from_text(text)?, false, self.rule, out)?,
            Type::TimestampTz(_) | Type::TimestampLtz(_) => time::put_timestamp(time::from_text(text)?, true, self.rule, out)?,
            Type::Array => {
                let mut json = Vec::with_capacity(text.len() + 2);
                json::from_text(self.element, text, self.rule, &mut json)?;
                put_quoted(&json, out);
            }
            Type::Varchar(_) | Type::Variant | Type::Object | Type::Geography | Type::Geometry => self.put_string(text, out)?,
        }
        Ok(())
    }

    fn put_string(&self, text: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        if let Type::Varchar(Some(length)) = self.type_
            && text.len() > length as usize
            && text.iter().filter(|b| **b & 0xC0 != 0x80).count() > length as usize
        {
            return Err(TOO_LONG);
        }
        put_quoted(text, out);
        Ok(())
    }
}

/// A text in double quotes, with those inside of it doubled.
fn put_quoted(text: &[u8], out: &mut Vec<u8>) {
    out.reserve(text.len() + 3);
    out.push(b'"');
    let mut parts = text.split(|b| *b == b'"');
    if let Some(first) = parts.next() {
        out.extend_from_slice(first);
    }
    for part in parts {
        out.extend_from_slice(b"\"\"");
        out.extend_from_slice(part);
    }
    out.push(b'"');
}

/// Two digits for each byte. An empty value is two quotes: an empty field would be NULL.
fn put_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if bytes.is_empty() {
        out.extend_from_slice(b"\"\"");
    }
    out.extend(bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]));
}

/// Digits as PostgreSQL writes them.
fn put_hex_digits(digits: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(MALFORMED);
    }
    if digits.is_empty() {
        out.extend_from_slice(b"\"\"");
    }
    out.extend(digits.iter().map(u8::to_ascii_uppercase));
    Ok(())
}

fn put_uuid(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bytes: &[u8; 16] = bytes.try_into().map_err(|_| MALFORMED)?;
    let mut text = [b'-'; 38];
    (text[0], text[37]) = (b'"', b'"');
    let mut at = 1;
    for (place, byte) in bytes.iter().enumerate() {
        at += usize::from(matches!(place, 4 | 6 | 8 | 10));
        (text[at], text[at + 1]) = (DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]);
        at += 2;
    }
    out.extend_from_slice(&text);
    Ok(())
}

#[cfg(test)]
mod tests;
