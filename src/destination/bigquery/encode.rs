//! From PostgreSQL's values, in binary or as text, to rows of protocol buffers as the Storage Write API takes them. Pure.
//!
//! Both forms of a value give the same bytes, so that the load, which reads binary tuples, and the change stream, which reads text, agree.

mod copy;
mod decimal;
mod time;
mod wire;

use prost_types::DescriptorProto;

use super::types::{Type, modifiers};
use crate::{
    api::bigquery::{BigQueryTable, NullElements, OutOfRange},
    destination::{Cell, clickhouse::encode::array},
    table::{Column, TableSchema},
};
use wire::{Tag, put_bytes, put_varint};

pub use copy::{CopyError, CopyReader};

/// What becomes of values that the types alone do not decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Dates and times that BigQuery's types do not hold.
    pub out_of_range: OutOfRange,
    /// NULL among an array's elements.
    pub null_elements: NullElements,
}

impl From<&BigQueryTable> for Rules {
    fn from(options: &BigQueryTable) -> Self {
        Self { out_of_range: options.out_of_range, null_elements: options.null_elements }
    }
}

/// A value that its column cannot hold. Never tells the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Index among the copied columns.
    pub column: usize,
    /// Why.
    pub why: &'static str,
}

/// Writes rows of one table: its copied columns, and then the same own fields with each row.
pub struct RowEncoder {
    columns: Vec<ColumnEncoder>,
    /// Names and types of all fields.
    fields: Vec<(String, Type)>,
    /// Places of the key's columns.
    key: Vec<usize>,
    /// The own fields, written out.
    own: Vec<u8>,
}

/// A binary form that is read here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Binary {
    Bool,
    /// So many bytes, with a sign.
    Int(usize),
    /// Four bytes without a sign.
    Oid,
    Float4,
    Float8,
    Numeric,
    /// The bytes are the value.
    Raw,
    /// A version, then the text.
    Jsonb,
    Date,
    Time,
    Timestamp,
    Uuid,
    Array(Box<Binary>),
}

struct ColumnEncoder {
    tag: Tag,
    type_: Type,
    /// `None`: the column travels as text.
    binary: Option<Binary>,
    /// Whether the source's floats have four bytes: their text is the shortest that tells those apart.
    single: bool,
    rules: Rules,
}

const MALFORMED: &str = "the source's value is not of the form that is expected";
const RANGE: &str = "the number does not fit into the column's type";
const DIMENSIONS: &str = "the array has several dimensions, which BigQuery's arrays do not: give the column the type STRING or JSON";
const NULL_ELEMENT: &str = "an element of the array is NULL; nullElements: Omit or String lets it pass";

/// What tells the service how rows of these fields are written, numbered from 1.
pub(super) fn descriptor<'a>(fields: impl Iterator<Item = (&'a str, &'a Type)>) -> DescriptorProto {
    wire::descriptor(fields)
}

/// Whether binary values of `source`, a type as the catalog prints it, can be written as `to`.
pub fn reads_binary(source: &str, to: &Type) -> bool {
    binary(source, to).is_some()
}

fn binary(source: &str, to: &Type) -> Option<Binary> {
    if let Some(element) = source.strip_suffix("[]") {
        let Type::Array(inner) = to else { return None };
        return binary(element, inner).map(|b| Binary::Array(Box::new(b)));
    }
    Some(match (modifiers(source).0.as_str(), to) {
        ("boolean", Type::Bool) => Binary::Bool,
        ("smallint", Type::Int64) => Binary::Int(2),
        ("integer", Type::Int64) => Binary::Int(4),
        ("bigint", Type::Int64) => Binary::Int(8),
        ("oid", Type::Int64) => Binary::Oid,
        ("real", Type::Float64) => Binary::Float4,
        ("double precision", Type::Float64) => Binary::Float8,
        ("numeric", Type::Numeric(..) | Type::BigNumeric(..)) => Binary::Numeric,
        ("text" | "character varying" | "character" | "name" | "json" | "xml", Type::String) => Binary::Raw,
        ("json", Type::Json) | ("bytea", Type::Bytes) => Binary::Raw,
        ("jsonb", Type::String | Type::Json) => Binary::Jsonb,
        ("date", Type::Date) => Binary::Date,
        ("time without time zone", Type::Time) => Binary::Time,
        ("timestamp without time zone", Type::Datetime) | ("timestamp with time zone", Type::Timestamp) => Binary::Timestamp,
        ("uuid", Type::String) => Binary::Uuid,
        _ => return None,
    })
}

impl RowEncoder {
    /// For rows of a table's copied columns, by their own names, and these fields with each. The error names a column whose type rows cannot be written in.
    pub fn new(table: &TableSchema, rules: Rules, own: &[(&str, Own)]) -> Result<Self, String> {
        let columns: Vec<(&str, &Column)> = table.copied().map(|c| (c.destination.as_str(), c)).collect();
        Self::named(&columns, table.copied_key(), rules, own)
    }

    /// For rows of these columns under other names.
    pub fn named(columns: &[(&str, &Column)], key: Vec<usize>, rules: Rules, own: &[(&str, Own)]) -> Result<Self, String> {
        let mut encoder = Self { columns: Vec::new(), fields: Vec::new(), key, own: Vec::new() };
        for (name, column) in columns {
            let type_ = Type::parse(&column.destination_type).ok_or_else(|| {
                format!("column {:?} has type {}, in which rows cannot be written", column.destination, column.destination_type)
            })?;
            let binary = if column.as_text { None } else { binary(column.value_type(), &type_) };
            let tag = encoder.field(name, &type_);
            let single = column.value_type().starts_with("real");
            encoder.columns.push(ColumnEncoder { tag, type_, binary, single, rules });
        }
        for (name, value) in own {
            let tag = encoder.field(name, &value.type_());
            value.put(tag, &mut encoder.own);
        }
        Ok(encoder)
    }

    fn field(&mut self, name: &str, type_: &Type) -> Tag {
        self.fields.push((name.to_string(), type_.clone()));
        Tag::new(self.fields.len() as u32, type_)
    }

    /// What tells the service how the rows are written.
    pub fn descriptor(&self) -> DescriptorProto {
        wire::descriptor(self.fields.iter().map(|(name, type_)| (name.as_str(), type_)))
    }

    /// Writes the value of one column. `Unchanged` is left out.
    pub fn cell(&self, place: usize, cell: &Cell, out: &mut Vec<u8>) -> Result<(), Refused> {
        let Cell::Text(text) = cell else { return Ok(()) };
        let column = self.columns.get(place).ok_or(Refused { column: place, why: MALFORMED })?;
        column.put(Some(text), false, out).map_err(|why| Refused { column: place, why })
    }

    /// The own fields, written out: they go at the end of each row that was written cell by cell.
    pub fn own(&self) -> Vec<u8> {
        self.own.clone()
    }

    fn put_own(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.own);
    }

    /// The row for people: its key, as far as that is numbers or UUIDs.
    fn name_key<'b>(&self, field: impl Fn(usize) -> Option<&'b [u8]>, binary: bool) -> String {
        let part = |place: &usize| {
            let (column, bytes) = (self.columns.get(*place)?, field(*place)?);
            match (binary.then_some(column.binary.as_ref()).flatten(), &column.type_) {
                (Some(Binary::Int(_)), _) => signed(bytes).map(|n| n.to_string()),
                (Some(Binary::Uuid), _) => Some(bytes.iter().map(|b| format!("{b:02x}")).collect()),
                (None, Type::Int64) => std::str::from_utf8(bytes).ok().map(str::to_string),
                _ => None,
            }
        };
        let parts: Vec<String> = self.key.iter().map(|place| part(place).unwrap_or_else(|| "…".into())).collect();
        if parts.is_empty() { "without a key".into() } else { format!("with the key ({})", parts.join(", ")) }
    }
}

/// A value that every row has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// A BOOL.
    Flag(bool),
    /// A TIMESTAMP, in microseconds since 1970.
    Time(i64),
    /// An INT64.
    Number(i64),
}

impl Own {
    fn type_(self) -> Type {
        match self {
            Self::Flag(_) => Type::Bool,
            Self::Time(_) => Type::Timestamp,
            Self::Number(_) => Type::Int64,
        }
    }

    fn put(self, tag: Tag, out: &mut Vec<u8>) {
        tag.put(out);
        put_varint(
            match self {
                Self::Flag(flag) => flag.into(),
                Self::Time(number) | Self::Number(number) => number.cast_unsigned(),
            },
            out,
        );
    }
}

/// Two's complement of up to eight bytes.
fn signed(bytes: &[u8]) -> Option<i64> {
    let first = *bytes.first()?;
    (bytes.len() <= 8).then(|| bytes.iter().fold(if first & 0x80 == 0 { 0 } else { -1 }, |n, b| n << 8 | i64::from(*b)))
}

impl ColumnEncoder {
    /// Writes a value; NULL is a field that is not there, and so is an array without elements.
    #[inline]
    fn put(&self, value: Option<&[u8]>, binary: bool, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let Some(value) = value else { return Ok(()) };
        match self.binary.as_ref().filter(|_| binary) {
            Some(form) => self.put_binary(form, value, &self.type_, out),
            None => self.put_text(value, &self.type_, out),
        }
    }

    fn put_binary(&self, form: &Binary, value: &[u8], to: &Type, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let tag = self.tag;
        match form {
            Binary::Array(element) => return self.put_elements(element, value, to, out),
            _ => tag.put(out),
        }
        match (form, to) {
            (Binary::Bool, _) if value.len() == 1 => out.push(u8::from(value != [0])),
            (Binary::Int(width), _) if value.len() == *width => put_varint(signed(value).ok_or(MALFORMED)?.cast_unsigned(), out),
            (Binary::Oid, _) => put_varint(u32::from_be_bytes(value.try_into().map_err(|_| MALFORMED)?).into(), out),
            (Binary::Float4, _) => put_double(f32::from_be_bytes(value.try_into().map_err(|_| MALFORMED)?).into(), out),
            (Binary::Float8, _) => put_double(f64::from_be_bytes(value.try_into().map_err(|_| MALFORMED)?), out),
            (Binary::Numeric, Type::Numeric(whole, scale) | Type::BigNumeric(whole, scale)) => {
                put_short(out, |out| decimal::from_binary(value, (*whole, *scale), out))?;
            }
            (Binary::Raw, _) => put_bytes(value, out),
            (Binary::Jsonb, _) => put_bytes(value.strip_prefix(&[1]).ok_or(MALFORMED)?, out),
            (Binary::Date, _) => self.put_moment(time::date_from_binary(value).ok_or(MALFORMED)?, to, out)?,
            (Binary::Timestamp, _) => self.put_moment(time::timestamp_from_binary(value).ok_or(MALFORMED)?, to, out)?,
            (Binary::Time, _) => {
                let micros = time::clock_from_binary(value, self.rules.out_of_range)?;
                put_short(out, |out| {
                    time::put_clock(micros, out);
                    Ok(())
                })?;
            }
            (Binary::Uuid, _) if value.len() == 16 => put_short(out, |out| {
                put_uuid(value, out);
                Ok(())
            })?,
            _ => return Err(MALFORMED),
        }
        Ok(())
    }

    fn put_elements(&self, form: &Binary, value: &[u8], to: &Type, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let Type::Array(inner) = to else { return Err(MALFORMED) };
        let mut array = array::Binary::read(value).ok_or(MALFORMED)?;
        let length = match array.dimensions[..] {
            [] => 0,
            [length] => length,
            _ => return Err(DIMENSIONS),
        };
        for _ in 0..length {
            match array.element().ok_or(MALFORMED)? {
                Some(element) => self.put_binary(form, element, inner, out)?,
                None => self.put_null_element()?,
            }
        }
        Ok(())
    }

    fn put_null_element(&self) -> Result<(), &'static str> {
        if self.rules.null_elements == NullElements::Omit { Ok(()) } else { Err(NULL_ELEMENT) }
    }

    fn put_text(&self, text: &[u8], to: &Type, out: &mut Vec<u8>) -> Result<(), &'static str> {
        if let Type::Array(inner) = to {
            for item in array::read(text).ok_or(MALFORMED)? {
                match item {
                    array::Item::Element(text) => self.put_text(&text, inner, out)?,
                    array::Item::Null => self.put_null_element()?,
                    array::Item::Array(_) => return Err(DIMENSIONS),
                }
            }
            return Ok(());
        }
        self.tag.put(out);
        match to {
            Type::String | Type::Json => put_bytes(text, out),
            Type::Bytes => put_bytes(&unhex(text).ok_or(MALFORMED)?, out),
            Type::Bool => out.push(match text {
                b"t" | b"true" | b"1" => 1,
                b"f" | b"false" | b"0" => 0,
                _ => return Err(MALFORMED),
            }),
            Type::Int64 => {
                let number: i64 = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or(RANGE)?;
                put_varint(number.cast_unsigned(), out);
            }
            Type::Float64 => {
                let text = std::str::from_utf8(text).map_err(|_| MALFORMED)?;
                let number = if self.single { text.parse::<f32>().map(f64::from) } else { text.parse() };
                put_double(number.map_err(|_| MALFORMED)?, out);
            }
            Type::Numeric(whole, scale) | Type::BigNumeric(whole, scale) => {
                put_short(out, |out| decimal::from_text(text, (*whole, *scale), out))?;
            }
            Type::Date | Type::Datetime | Type::Timestamp => self.put_moment(time::from_text(text)?, to, out)?,
            Type::Time => {
                let micros = time::clock_from_text(text, self.rules.out_of_range)?;
                put_short(out, |out| {
                    time::put_clock(micros, out);
                    Ok(())
                })?;
            }
            Type::Array(_) => return Err(DIMENSIONS),
        }
        Ok(())
    }

    fn put_moment(&self, moment: time::Moment, to: &Type, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let rule = self.rules.out_of_range;
        match to {
            Type::Date => put_varint(i64::from(time::day(moment, rule)?).cast_unsigned(), out),
            Type::Timestamp => put_varint(time::micros(moment, rule)?.cast_unsigned(), out),
            Type::Datetime => {
                let micros = time::micros(moment, rule)?;
                put_short(out, |out| {
                    time::put_datetime(micros, out);
                    Ok(())
                })?;
            }
            _ => return Err(MALFORMED),
        }
        Ok(())
    }
}

/// Writes what has fewer than 128 bytes, with its length before it.
fn put_short(out: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>) -> Result<(), &'static str>) -> Result<(), &'static str> {
    let start = out.len();
    out.push(0);
    put(out)?;
    out[start] = u8::try_from(out.len() - start - 1).ok().filter(|length| *length < 0x80).ok_or(RANGE)?;
    Ok(())
}

fn put_double(number: f64, out: &mut Vec<u8>) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_uuid(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (place, byte) in bytes.iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// The text form of bytea: `\x` and two digits for each byte.
fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_prefix(b"\\x").filter(|d| d.len() % 2 == 0)?;
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests;
