//! PostgreSQL's arrays as JSON. Pure.

use super::{Binary, MALFORMED, number, put_hex, put_hex_digits, time};
use crate::{api::snowflake::BeyondRange, destination::clickhouse::encode::array};

/// How an element's text becomes JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Bool,
    /// Digits, as they are.
    Number,
    Float,
    Float4,
    /// JSON, as it is.
    Json,
    Bytea,
    Date,
    Timestamp,
    TimestampTz,
    /// A text.
    Text,
}

impl Element {
    /// By the element's type at the source.
    pub(super) fn of(source: &str) -> Self {
        match super::super::types::modifiers(source).0.as_str() {
            "boolean" => Self::Bool,
            "smallint" | "integer" | "bigint" | "oid" | "numeric" => Self::Number,
            "real" => Self::Float4,
            "double precision" => Self::Float,
            "json" | "jsonb" => Self::Json,
            "bytea" => Self::Bytea,
            "date" => Self::Date,
            "timestamp without time zone" => Self::Timestamp,
            "timestamp with time zone" => Self::TimestampTz,
            _ => Self::Text,
        }
    }
}

/// From the text form of an array.
pub(super) fn from_text(element: Element, text: &[u8], rule: BeyondRange, out: &mut Vec<u8>) -> Result<(), &'static str> {
    put_items(element, &array::read(text).ok_or(MALFORMED)?, rule, out)
}

fn put_items(element: Element, items: &[array::Item], rule: BeyondRange, out: &mut Vec<u8>) -> Result<(), &'static str> {
    out.push(b'[');
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        match item {
            array::Item::Null => out.extend_from_slice(b"null"),
            array::Item::Array(items) => put_items(element, items, rule, out)?,
            array::Item::Element(text) => put_text(element, text, rule, out)?,
        }
    }
    out.push(b']');
    Ok(())
}

fn put_text(element: Element, text: &[u8], rule: BeyondRange, out: &mut Vec<u8>) -> Result<(), &'static str> {
    match element {
        Element::Bool => out.extend_from_slice(if text == b"t" { b"true" } else { b"false" }),
        Element::Number => put_number(text, out),
        Element::Float => put_float(number::float(text).ok_or(MALFORMED)?, number::put_float, out),
        Element::Float4 => put_float(number::float4(text).ok_or(MALFORMED)?, number::put_float4, out),
        Element::Json => out.extend_from_slice(text),
        Element::Bytea => {
            return quoted(out, |out| match text.strip_prefix(b"\\x").ok_or(MALFORMED)? {
                [] => Ok(()),
                digits => put_hex_digits(digits, out),
            });
        }
        Element::Date => return quoted(out, |out| time::put_date(time::from_text(text)?, rule, out)),
        Element::Timestamp => return quoted(out, |out| time::put_timestamp(time::from_text(text)?, false, rule, out)),
        Element::TimestampTz => return quoted(out, |out| time::put_timestamp(time::from_text(text)?, true, rule, out)),
        Element::Text => put_string(text, out),
    }
    Ok(())
}

/// From the binary form of an array.
pub(super) fn from_binary(form: &Binary, value: &[u8], rule: BeyondRange, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let mut array = array::Binary::read(value).ok_or(MALFORMED)?;
    match std::mem::take(&mut array.dimensions).as_slice() {
        [] => out.extend_from_slice(b"[]"),
        dimensions => put_elements(form, &mut array, dimensions, rule, out)?,
    }
    Ok(())
}

fn put_elements(
    form: &Binary,
    array: &mut array::Binary<'_>,
    dimensions: &[usize],
    rule: BeyondRange,
    out: &mut Vec<u8>,
) -> Result<(), &'static str> {
    let [length, deeper @ ..] = dimensions else { return Err(MALFORMED) };
    out.push(b'[');
    for place in 0..*length {
        if place > 0 {
            out.push(b',');
        }
        if !deeper.is_empty() {
            put_elements(form, array, deeper, rule, out)?;
            continue;
        }
        match array.element().ok_or(MALFORMED)? {
            None => out.extend_from_slice(b"null"),
            Some(value) => put_binary(form, value, rule, out)?,
        }
    }
    out.push(b']');
    Ok(())
}

fn put_binary(form: &Binary, value: &[u8], rule: BeyondRange, out: &mut Vec<u8>) -> Result<(), &'static str> {
    match form {
        Binary::Bool => out.extend_from_slice(if value == [0] { b"false" } else { b"true" }),
        Binary::Int(_) => number::put_whole(number::whole(value).ok_or(MALFORMED)?, out),
        Binary::Float4 => put_float(f32::from_be_bytes(value.try_into().map_err(|_| MALFORMED)?), number::put_float4, out),
        Binary::Float8 => put_float(f64::from_be_bytes(value.try_into().map_err(|_| MALFORMED)?), number::put_float, out),
        Binary::Numeric => {
            let mut text = Vec::new();
            number::show(value, &mut text)?;
            put_number(&text, out);
        }
        Binary::Text => put_string(value, out),
        Binary::Json => out.extend_from_slice(value),
        Binary::Jsonb => out.extend_from_slice(value.strip_prefix(&[1]).ok_or(MALFORMED)?),
        Binary::Bytea if value.is_empty() => out.extend_from_slice(b"\"\""),
        Binary::Bytea => {
            return quoted(out, |out| {
                put_hex(value, out);
                Ok(())
            });
        }
        Binary::Date => return quoted(out, |out| time::put_date(time::date_from_binary(value).ok_or(MALFORMED)?, rule, out)),
        Binary::Timestamp | Binary::TimestampTz => {
            let moment = *form == Binary::TimestampTz;
            return quoted(out, |out| time::put_timestamp(time::timestamp_from_binary(value).ok_or(MALFORMED)?, moment, rule, out));
        }
        // Which is in quotes.
        Binary::Uuid => super::put_uuid(value, out)?,
        Binary::Oid | Binary::Time | Binary::Array(_) => return Err(MALFORMED),
    }
    Ok(())
}

fn quoted(out: &mut Vec<u8>, inside: impl FnOnce(&mut Vec<u8>) -> Result<(), &'static str>) -> Result<(), &'static str> {
    out.push(b'"');
    inside(out)?;
    out.push(b'"');
    Ok(())
}

/// NaN and the infinite ones are texts: JSON does not have them.
fn put_number(text: &[u8], out: &mut Vec<u8>) {
    if text.iter().any(u8::is_ascii_alphabetic) { put_string(text, out) } else { out.extend_from_slice(text) }
}

fn put_float<T>(number: T, put: impl FnOnce(T, &mut Vec<u8>), out: &mut Vec<u8>) {
    let start = out.len();
    put(number, out);
    if matches!(out.get(start..), Some(b"NaN" | b"inf" | b"-inf")) {
        out.insert(start, b'"');
        out.push(b'"');
    }
}

/// A JSON string.
fn put_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}
