//! From PostgreSQL's values, in binary or as text, to ClickHouse's RowBinary and Native. Pure.
//!
//! Both forms of a value give the same bytes, so that the load, which reads binary tuples, and the change stream, which reads text, agree. The change stream
//! writes rows one by one; the load writes columns, which the server takes as they are.

pub(in crate::destination) mod array;
mod copy;
mod decimal;
mod native;
mod sink;
pub(in crate::destination) mod time;

use super::types::{Type, modifiers};
use crate::{api::clickhouse::OutOfRange, destination::Cell, table::TableSchema};

pub use copy::{CopyError, CopyReader};
pub use native::Block;
use sink::Sink;

/// What becomes of values that the types alone do not decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Dates and times that ClickHouse's types do not hold.
    pub out_of_range: OutOfRange,
    /// Whether NULL in a column that is not nullable is the type's default.
    pub null_as_default: bool,
}

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
    /// So many bytes, the highest first: turned around.
    Reversed(usize),
    Numeric,
    /// The bytes are the value.
    Raw,
    /// A version, then the text.
    Jsonb,
    Date,
    Timestamp,
    Uuid,
    Array(Box<Binary>),
}

struct ColumnEncoder {
    type_: Type,
    /// `None`: the column travels as text.
    binary: Option<Binary>,
    /// Whether the text form is that of bytea, or of an array of it.
    hex: bool,
    /// Of the key: values that differ must not become one.
    key: bool,
    rules: Rules,
}

const MALFORMED: &str = "the source's value is not of the form that is expected";
const NO_NULL: &str = "it is NULL, and the column is not nullable";
const DIMENSIONS: &str =
    "the array has another number of dimensions than the column's type: give the column the type String, or Array(Array(…))";

/// Whether binary values of `source`, a type as the catalog prints it, can be written as `to`.
pub fn reads_binary(source: &str, to: &Type) -> bool {
    binary(source, to).is_some()
}

fn binary(source: &str, to: &Type) -> Option<Binary> {
    let to = to.bare();
    if let Some(element) = source.strip_suffix("[]") {
        let mut inner = to;
        while let Type::Array(next) = inner {
            inner = next.bare();
        }
        return (inner != to).then(|| binary(element, inner)).flatten().map(|b| Binary::Array(Box::new(b)));
    }
    Some(match (modifiers(source).0.as_str(), to) {
        ("boolean", Type::Bool) => Binary::Reversed(1),
        ("smallint", Type::Int(2)) => Binary::Reversed(2),
        ("integer", Type::Int(4)) | ("oid", Type::UInt(4)) | ("real", Type::Float32) => Binary::Reversed(4),
        ("bigint", Type::Int(8)) | ("double precision", Type::Float64) => Binary::Reversed(8),
        ("numeric", Type::Decimal(..)) => Binary::Numeric,
        ("text" | "character varying" | "character" | "name" | "json" | "xml" | "bytea", Type::String) | ("json", Type::Json) => {
            Binary::Raw
        }
        ("jsonb", Type::String | Type::Json) => Binary::Jsonb,
        ("date", Type::Date32) => Binary::Date,
        ("timestamp without time zone" | "timestamp with time zone", Type::DateTime64(6)) => Binary::Timestamp,
        ("uuid", Type::Uuid) => Binary::Uuid,
        _ => return None,
    })
}

impl RowEncoder {
    /// For rows of a table's copied columns. The error names a column whose type rows cannot be written in.
    pub fn new(table: &TableSchema, rules: Rules) -> Result<Self, String> {
        let key = table.copied_key();
        let columns = table.copied().enumerate().map(|(place, column)| {
            let type_ = Type::parse(&column.destination_type).ok_or_else(|| {
                format!("column {:?} has type {}, in which rows cannot be written", column.destination, column.destination_type)
            })?;
            let binary = if column.as_text { None } else { binary(column.value_type(), &type_) };
            let hex = column.value_type().trim_end_matches("[]") == "bytea";
            Ok(ColumnEncoder { type_, binary, hex, key: key.contains(&place), rules })
        });
        Ok(Self { columns: columns.collect::<Result<_, String>>()?, key })
    }

    /// Writes the texts of a row. What was not sent is written as the type's default.
    pub fn cells(&self, row: &[Cell], out: &mut Vec<u8>) -> Result<(), Refused> {
        for place in 0..self.columns.len() {
            self.cell(place, row.get(place).unwrap_or(&Cell::Unchanged), out)?;
        }
        Ok(())
    }

    /// Writes the text of one column.
    pub fn cell(&self, place: usize, cell: &Cell, out: &mut Vec<u8>) -> Result<(), Refused> {
        let Some(column) = self.columns.get(place) else { return Ok(()) };
        let written = match cell {
            Cell::Text(text) => column.put(Some(text), false, out),
            Cell::Null => column.put(None, false, out),
            Cell::Unchanged => {
                put_default(&column.type_, out);
                Ok(())
            }
        };
        written.map_err(|why| Refused { column: place, why })
    }

    /// The key of a row's texts for people.
    pub fn key_of(&self, row: &[Cell]) -> String {
        let text = |place: usize| match row.get(place) {
            Some(Cell::Text(text)) => Some(text.as_ref()),
            _ => None,
        };
        self.name_key(text, false)
    }

    /// The key of a row for people: whole numbers and UUIDs as they are, nothing else.
    fn name_key<'a>(&self, field: impl Fn(usize) -> Option<&'a [u8]>, binary: bool) -> String {
        let part = |place: &usize| {
            let (column, bytes) = (self.columns.get(*place)?, field(*place)?);
            let text = match (binary.then_some(column.binary.as_ref()).flatten(), column.type_.bare()) {
                (Some(Binary::Reversed(_)), Type::Int(_) | Type::UInt(_)) => {
                    bytes.iter().fold(if bytes.first()? & 0x80 == 0 { 0i64 } else { -1 }, |n, b| n << 8 | i64::from(*b)).to_string()
                }
                (Some(Binary::Uuid), _) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
                (None, Type::Int(_) | Type::UInt(_) | Type::Uuid) => std::str::from_utf8(bytes).ok()?.to_string(),
                _ => return None,
            };
            Some(text)
        };
        let parts: Vec<String> = self.key.iter().map(|place| part(place).unwrap_or_else(|| "…".into())).collect();
        if parts.is_empty() { "without a key".into() } else { format!("with the key ({})", parts.join(", ")) }
    }
}

impl ColumnEncoder {
    fn put(&self, value: Option<&[u8]>, binary: bool, out: &mut impl Sink) -> Result<(), &'static str> {
        let Some(value) = value else { return self.put_null(out) };
        if self.type_.is_nullable() {
            out.null(false);
        }
        match self.binary.as_ref().filter(|_| binary) {
            Some(form) => self.put_binary(form, value, self.type_.bare(), out),
            None => self.put_text(value, self.type_.bare(), out),
        }
    }

    /// An array is never NULL: it is empty.
    fn put_null(&self, out: &mut impl Sink) -> Result<(), &'static str> {
        if self.type_.is_nullable() || self.rules.null_as_default || matches!(self.type_, Type::Array(_)) {
            put_default(&self.type_, out);
            return Ok(());
        }
        Err(NO_NULL)
    }

    fn put_binary(&self, form: &Binary, value: &[u8], to: &Type, out: &mut impl Sink) -> Result<(), &'static str> {
        let (Binary::Array(element), Type::Array(inner)) = (form, to) else { return self.put_scalar(form, value, to, out.values()) };
        let mut array = array::Binary::read(value).ok_or(MALFORMED)?;
        let dimensions = std::mem::take(&mut array.dimensions);
        if dimensions.is_empty() {
            out.length(0, 0);
            return Ok(());
        }
        self.put_elements(element, &mut array, (&dimensions, 0), inner, out)
    }

    fn put_scalar(&self, form: &Binary, value: &[u8], to: &Type, out: &mut Vec<u8>) -> Result<(), &'static str> {
        match (form, to) {
            (Binary::Reversed(width), _) if value.len() == *width => put_reversed(value, out),
            (Binary::Raw, _) => put_string(value, out),
            (Binary::Jsonb, _) => put_string(value.strip_prefix(&[1]).ok_or(MALFORMED)?, out),
            (Binary::Numeric, Type::Decimal(precision, scale)) => decimal::from_binary(value, *precision, *scale, out)?,
            (Binary::Date, _) => self.put_moment(time::date_from_binary(value).ok_or(MALFORMED)?, to, out)?,
            (Binary::Timestamp, _) => self.put_moment(time::timestamp_from_binary(value).ok_or(MALFORMED)?, to, out)?,
            (Binary::Uuid, _) if value.len() == 16 => put_uuid(value, out),
            _ => return Err(MALFORMED),
        }
        Ok(())
    }

    fn put_elements(
        &self,
        form: &Binary,
        array: &mut array::Binary<'_>,
        (dimensions, depth): (&[usize], usize),
        to: &Type,
        out: &mut impl Sink,
    ) -> Result<(), &'static str> {
        let [length, deeper @ ..] = dimensions else { return Err(DIMENSIONS) };
        out.length(depth, *length);
        for _ in 0..*length {
            match (to.bare(), deeper) {
                (Type::Array(inner), [_, ..]) => self.put_elements(form, array, (deeper, depth + 1), inner, out)?,
                (Type::Array(_), []) | (_, [_, ..]) => return Err(DIMENSIONS),
                (bare, []) => match array.element().ok_or(MALFORMED)? {
                    None => self.put_null_element(to, out)?,
                    Some(value) => {
                        if to.is_nullable() {
                            out.null(false);
                        }
                        self.put_scalar(form, value, bare, out.values())?;
                    }
                },
            }
        }
        Ok(())
    }

    fn put_null_element(&self, to: &Type, out: &mut impl Sink) -> Result<(), &'static str> {
        if !to.is_nullable() && !self.rules.null_as_default {
            return Err("an element is NULL, and the array's elements are not nullable");
        }
        put_default(to, out);
        Ok(())
    }

    fn put_text(&self, text: &[u8], to: &Type, out: &mut impl Sink) -> Result<(), &'static str> {
        if let Type::Array(inner) = to {
            return self.put_items(&array::read(text).ok_or(MALFORMED)?, 0, inner, out);
        }
        self.put_scalar_text(text, to, out.values())
    }

    fn put_scalar_text(&self, text: &[u8], to: &Type, out: &mut Vec<u8>) -> Result<(), &'static str> {
        match to {
            Type::String if self.hex => put_string(&bytea(text).ok_or(MALFORMED)?, out),
            Type::String | Type::Json => put_string(text, out),
            Type::Bool => out.push(match text {
                b"t" | b"true" | b"1" => 1,
                b"f" | b"false" | b"0" => 0,
                _ => return Err(MALFORMED),
            }),
            Type::Decimal(precision, scale) => decimal::from_text(text, *precision, *scale, out)?,
            Type::Date | Type::Date32 | Type::DateTime | Type::DateTime64(_) => self.put_moment(time::from_text(text)?, to, out)?,
            other => put_plain(std::str::from_utf8(text).map_err(|_| MALFORMED)?, other, out)?,
        }
        Ok(())
    }

    fn put_items(&self, items: &[array::Item], depth: usize, to: &Type, out: &mut impl Sink) -> Result<(), &'static str> {
        out.length(depth, items.len());
        for item in items {
            match (item, to.bare()) {
                (array::Item::Array(items), Type::Array(inner)) => self.put_items(items, depth + 1, inner, out)?,
                (array::Item::Array(_), _) | (_, Type::Array(_)) => return Err(DIMENSIONS),
                (array::Item::Null, _) => self.put_null_element(to, out)?,
                (array::Item::Element(text), bare) => {
                    if to.is_nullable() {
                        out.null(false);
                    }
                    self.put_scalar_text(text, bare, out.values())?;
                }
            }
        }
        Ok(())
    }

    fn put_moment(&self, moment: time::Moment, to: &Type, out: &mut Vec<u8>) -> Result<(), &'static str> {
        if self.key && !time::holds(moment, to) {
            return Err(time::NOT_IN_KEY);
        }
        if time::put(moment, to, self.rules.out_of_range, out)? { Ok(()) } else { Err(MALFORMED) }
    }
}

/// Whether values that differ at the source may become one in a type of floating point.
pub fn merges(source: &str, to: &Type) -> bool {
    match to.bare() {
        Type::Float32 => source != "real",
        Type::Float64 => !matches!(source, "real" | "double precision"),
        _ => false,
    }
}

/// Numbers, UUIDs and addresses from their text.
fn put_plain(text: &str, to: &Type, out: &mut Vec<u8>) -> Result<(), &'static str> {
    const RANGE: &str = "the number does not fit into the column's type";
    match to {
        Type::Int(bytes) => {
            let number: i128 = text.parse().map_err(|_| RANGE)?;
            let bits = u32::from(*bytes) * 8;
            if bits < 128 && !(-(1i128 << (bits - 1))..1i128 << (bits - 1)).contains(&number) {
                return Err(RANGE);
            }
            put_integer(number, *bytes, out);
        }
        Type::UInt(bytes) => {
            let number: i128 = text.parse().map_err(|_| RANGE)?;
            let bits = u32::from(*bytes) * 8;
            if number < 0 || bits < 127 && number >= 1i128 << bits {
                return Err(RANGE);
            }
            put_integer(number, *bytes, out);
        }
        Type::Float32 => out.extend_from_slice(&text.parse::<f32>().map_err(|_| MALFORMED)?.to_le_bytes()),
        Type::Float64 => out.extend_from_slice(&text.parse::<f64>().map_err(|_| MALFORMED)?.to_le_bytes()),
        Type::Uuid => {
            let digits: String = text.chars().filter(|c| *c != '-').collect();
            let bytes = unhex(&digits).filter(|b| b.len() == 16).ok_or(MALFORMED)?;
            put_uuid(&bytes, out);
        }
        Type::Ipv4 => {
            let host = text.strip_suffix("/32").unwrap_or(text);
            let address: std::net::Ipv4Addr = host.parse().map_err(|_| "it is not an IPv4 address of one host")?;
            out.extend(address.octets().iter().rev());
        }
        Type::Ipv6 => {
            const NETWORK: &str = "it is not an address of one host";
            let (host, mask) = text.split_once('/').unwrap_or((text, ""));
            let address = match (host.parse().map_err(|_| NETWORK)?, mask) {
                (std::net::IpAddr::V4(v4), "" | "32") => v4.to_ipv6_mapped(),
                (std::net::IpAddr::V6(v6), "" | "128") => v6,
                _ => return Err(NETWORK),
            };
            out.extend_from_slice(&address.octets());
        }
        _ => return Err(MALFORMED),
    }
    Ok(())
}

fn put_integer(number: i128, bytes: u8, out: &mut Vec<u8>) {
    let mut all = if number < 0 { [0xff; 32] } else { [0; 32] };
    all[..16].copy_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&all[..usize::from(bytes)]);
}

/// The widths by name: copying so few bytes by a loop takes longer than all else.
fn put_reversed(value: &[u8], out: &mut Vec<u8>) {
    match *value {
        [a, b] => out.extend_from_slice(&[b, a]),
        [a, b, c, d] => out.extend_from_slice(&[d, c, b, a]),
        [a, b, c, d, e, f, g, h] => out.extend_from_slice(&[h, g, f, e, d, c, b, a]),
        _ => out.extend(value.iter().rev()),
    }
}

/// Two halves, each the lowest byte first (ClickHouse docs, "RowBinary").
fn put_uuid(bytes: &[u8], out: &mut Vec<u8>) {
    let (high, low) = bytes.split_at(8);
    out.extend(high.iter().rev().chain(low.iter().rev()));
}

/// A length as a LEB128 number.
fn put_length(mut length: usize, out: &mut Vec<u8>) {
    while length >= 0x80 {
        out.push((length as u8) | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

pub(super) fn put_string(bytes: &[u8], out: &mut Vec<u8>) {
    put_length(bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// NULL, or zero, or what is empty. An element of an array is no array here: their dimensions have been compared.
fn put_default(to: &Type, out: &mut impl Sink) {
    if to.is_nullable() {
        out.null(true);
        if !out.null_has_value() {
            return;
        }
    }
    match to.bare() {
        Type::Array(_) => out.length(0, 0),
        bare => put_empty(bare, out.values()),
    }
}

/// Zero, or what is empty.
fn put_empty(to: &Type, out: &mut Vec<u8>) {
    let zeros = match to {
        Type::Nullable(inner) | Type::LowCardinality(inner) => return put_empty(inner, out),
        Type::Json => return put_string(b"{}", out),
        Type::Bool | Type::String | Type::Array(_) => 1,
        Type::Int(bytes) | Type::UInt(bytes) => usize::from(*bytes),
        Type::Decimal(precision, _) => decimal::width(*precision),
        Type::Date => 2,
        Type::Float32 | Type::Date32 | Type::DateTime | Type::Ipv4 => 4,
        Type::Float64 | Type::DateTime64(_) => 8,
        Type::Uuid | Type::Ipv6 => 16,
    };
    out.resize(out.len() + zeros, 0);
}

/// The text form of bytea: `\x` and two digits for each byte.
fn bytea(text: &[u8]) -> Option<Vec<u8>> {
    unhex(std::str::from_utf8(text.strip_prefix(b"\\x")?).ok()?)
}

/// The bytes of two hexadecimal digits each.
pub(super) fn unhex(digits: &str) -> Option<Vec<u8>> {
    let digits = Some(digits.as_bytes()).filter(|d| d.len() % 2 == 0)?;
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests;
