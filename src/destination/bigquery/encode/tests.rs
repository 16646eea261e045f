use bytes::{BufMut, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::table::{Identity, TableName};

const RULES: Rules = Rules { out_of_range: OutOfRange::Clamp, null_elements: NullElements::Omit };

fn table(columns: &[(&str, &str)]) -> TableSchema {
    let column = |(i, (source, type_)): (usize, &(&str, &str))| Column {
        source: format!("c{i}"),
        destination: format!("c{i}"),
        source_type: source.to_string(),
        base_type: None,
        source_type_oid: 0,
        destination_type: type_.to_string(),
        not_null: false,
        generated: None,
        binary: true,
        as_text: Type::parse(type_).is_none_or(|t| !reads_binary(source, &t)),
    };
    let name = TableName { schema: "s".into(), name: "t".into() };
    let columns = columns.iter().enumerate().map(column).collect();
    TableSchema {
        number: 0,
        source: name.clone(),
        source_oid: 1,
        destination: name,
        columns,
        identity: Identity::Key(vec![0]),
        partition_key: None,
    }
}

/// A binary COPY of one row.
fn sent(fields: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_slice(b"PGCOPY\n\xff\r\n\0");
    out.put_u64(0);
    out.put_i16(fields.len() as i16);
    for field in fields {
        match field {
            None => out.put_i32(-1),
            Some(bytes) => {
                out.put_i32(bytes.len() as i32);
                out.put_slice(bytes);
            }
        }
    }
    out.put_i16(-1);
    out.to_vec()
}

fn binary(columns: &[(&str, &str)], rules: Rules, fields: &[Option<Vec<u8>>]) -> Result<Vec<u8>, CopyError> {
    let encoder = RowEncoder::new(&table(columns), rules, &[]).unwrap();
    let mut reader = CopyReader::new(&encoder, true);
    let mut out = Vec::new();
    // Pieces may end anywhere.
    for byte in sent(fields) {
        reader.push(&[byte]);
        reader.next_row(&mut out)?;
    }
    assert!(reader.is_whole() && reader.rows() == 1);
    Ok(out)
}

fn text(columns: &[(&str, &str)], rules: Rules, cells: &[Cell]) -> Result<Vec<u8>, Refused> {
    let encoder = RowEncoder::new(&table(columns), rules, &[]).unwrap();
    let mut out = Vec::new();
    for (place, cell) in cells.iter().enumerate() {
        encoder.cell(place, cell, &mut out)?;
    }
    Ok(out)
}

fn cell(text: &str) -> Cell {
    Cell::Text(text.to_string().into())
}

/// What both forms of a value give.
fn both(source: &str, type_: &str, bytes: Vec<u8>, written: &str) -> Vec<u8> {
    let columns = &[(source, type_)];
    let by_binary = binary(columns, RULES, &[Some(bytes)]).unwrap();
    assert_eq!(text(columns, RULES, &[cell(written)]).unwrap(), by_binary, "{source} {written}");
    by_binary
}

proptest! {
    #[test]
    fn numbers_are_the_same_in_both_forms(a: i64, b: i32, c: i16, d: u32, e: f64, f: f32) {
        both("bigint", "INT64", a.to_be_bytes().to_vec(), &a.to_string());
        both("integer", "INT64", b.to_be_bytes().to_vec(), &b.to_string());
        both("smallint", "INT64", c.to_be_bytes().to_vec(), &c.to_string());
        both("oid", "INT64", d.to_be_bytes().to_vec(), &d.to_string());
        both("double precision", "FLOAT64", e.to_be_bytes().to_vec(), &e.to_string());
        both("real", "FLOAT64", f.to_be_bytes().to_vec(), &f.to_string());
    }

    #[test]
    fn texts_and_bytes_are_the_same_in_both_forms(s in "\\PC{0,40}", b: Vec<u8>, u: [u8; 16]) {
        both("text", "STRING", s.clone().into_bytes(), &s);
        both("jsonb", "JSON", [&[1], s.as_bytes()].concat(), &s);
        let hex = b.iter().map(|b| format!("{b:02x}")).collect::<String>();
        both("bytea", "BYTES", b, &format!("\\x{hex}"));
        let hex = u.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let uuid = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        both("uuid", "STRING", u.to_vec(), &uuid);
    }

    #[test]
    fn moments_are_the_same_in_both_forms(seconds in -62_000_000_000i64..250_000_000_000, micros in 0i64..1_000_000) {
        let at = jiff::Timestamp::new(seconds, micros as i32 * 1000).unwrap_or_default();
        let written = at.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S.%6f").to_string();
        let since_2000 = at.as_microsecond() - 10_957 * 86_400_000_000;
        let bytes = since_2000.to_be_bytes().to_vec();
        both("timestamp with time zone", "TIMESTAMP", bytes.clone(), &format!("{written}+00"));
        let row = both("timestamp without time zone", "DATETIME", bytes, &written);
        prop_assert_eq!(&row[2..], written.as_bytes());
        let days = since_2000.div_euclid(86_400_000_000) as i32;
        both("date", "DATE", days.to_be_bytes().to_vec(), &written[..10]);
        let of_day = since_2000.rem_euclid(86_400_000_000);
        both("time without time zone", "TIME", of_day.to_be_bytes().to_vec(), &written[11..]);
    }
}

/// An array in binary, of bigint.
fn array_of(elements: &[Option<i64>]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_i32(1);
    out.put_i32(0);
    out.put_i32(20);
    out.put_i32(elements.len() as i32);
    out.put_i32(1);
    for element in elements {
        match element {
            None => out.put_i32(-1),
            Some(number) => {
                out.put_i32(8);
                out.put_i64(*number);
            }
        }
    }
    out.to_vec()
}

#[test]
fn a_row_is_what_protocol_buffers_make_of_it() {
    let columns = &[("bigint", "INT64"), ("text", "STRING"), ("boolean", "BOOL"), ("bigint[]", "ARRAY<INT64>")];
    let fields = [Some(150i64.to_be_bytes().to_vec()), Some(b"testing".to_vec()), None, Some(array_of(&[Some(1), None, Some(2)]))];
    // The first two are the examples of the documentation of protocol buffers, "Encoding".
    let expected = [&[0x08, 0x96, 0x01, 0x12, 0x07][..], b"testing", &[0x20, 1, 0x20, 2]].concat();
    assert_eq!(binary(columns, RULES, &fields).unwrap(), expected);
    let cells = [cell("150"), cell("testing"), Cell::Null, cell("{1,NULL,2}")];
    assert_eq!(text(columns, RULES, &cells).unwrap(), expected);
}

#[test]
fn own_fields_come_with_each_row() {
    let own = [("flag", Own::Flag(false)), ("at", Own::Time(1)), ("n", Own::Number(2))];
    let encoder = RowEncoder::new(&table(&[("text", "STRING")]), RULES, &own).unwrap();
    let mut reader = CopyReader::new(&encoder, false);
    reader.push(b"a\\tb\n\\N\n");
    let mut out = Vec::new();
    while reader.next_row(&mut out).unwrap() {}
    assert_eq!(out, [&[0x0a, 3][..], b"a\tb", &[0x10, 0, 0x18, 1, 0x20, 2], &[0x10, 0, 0x18, 1, 0x20, 2]].concat());
    let names: Vec<_> = encoder.descriptor().field.into_iter().map(|f| f.name.unwrap()).collect();
    assert_eq!(names, ["c0", "flag", "at", "n"]);
}

#[test]
fn what_does_not_fit_is_refused_without_its_value() {
    let strict = Rules { out_of_range: OutOfRange::Error, null_elements: NullElements::Error };
    for (source, type_, written) in [
        ("text", "INT64", "secret"),
        ("text", "INT64", "9223372036854775808"),
        ("numeric", "NUMERIC(3, 1)", "1.25"),
        ("date", "DATE", "infinity"),
        ("date", "DATE", "0044-03-15 BC"),
        ("time without time zone", "TIME", "24:00:00"),
        ("bigint[]", "ARRAY<INT64>", "{{1},{2}}"),
        ("bigint[]", "ARRAY<INT64>", "{1,NULL}"),
    ] {
        let refused = text(&[(source, type_)], strict, &[cell(written)]).unwrap_err();
        assert!(!refused.why.contains(written) && refused.column == 0, "{refused:?}");
    }
    let columns = &[("bigint", "INT64"), ("bigint[]", "ARRAY<INT64>")];
    let Err(CopyError::Value { refused, row }) = binary(columns, strict, &[Some(7i64.to_be_bytes().to_vec()), Some(array_of(&[None]))])
    else {
        panic!()
    };
    assert_eq!((refused.column, row.as_str()), (1, "with the key (7)"));
}

#[test]
fn what_is_out_of_range_is_clamped_if_wanted() {
    assert_eq!(text(&[("date", "DATE")], RULES, &[cell("infinity")]), text(&[("date", "DATE")], RULES, &[cell("9999-12-31")]));
    assert_eq!(text(&[("date", "DATE")], RULES, &[cell("0044-03-15 BC")]), text(&[("date", "DATE")], RULES, &[cell("0001-01-01")]));
}
