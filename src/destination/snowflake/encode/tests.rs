use proptest::prelude::*;

use super::*;
use crate::table::{Column, Identity, TableName};

fn encoder(source: &str, to: &str) -> RowEncoder {
    encoder_of(column(source, to))
}

fn column(source: &str, to: &str) -> Column {
    Column {
        source: "c".into(),
        destination: "C".into(),
        source_type: source.into(),
        base_type: None,
        source_type_oid: 1,
        destination_type: to.into(),
        not_null: false,
        generated: None,
        binary: true,
        as_text: false,
    }
}

fn encoder_of(column: Column) -> RowEncoder {
    let name = TableName { schema: "S".into(), name: "T".into() };
    let table = TableSchema {
        number: 0,
        source: name.clone(),
        source_oid: 1,
        destination: name,
        columns: vec![column],
        identity: Identity::Key(vec![0]),
        partition_key: None,
    };
    RowEncoder::new(&table, BeyondRange::Clamp).unwrap()
}

fn text(source: &str, to: &str, value: &str) -> Result<String, &'static str> {
    let mut out = Vec::new();
    let cell = Cell::Text(value.to_string().into());
    encoder(source, to).cell(0, &cell, &mut out).map(|()| String::from_utf8(out).unwrap()).map_err(|refused| refused.why)
}

fn binary_of(source: &str, to: &str, value: &[u8]) -> String {
    let mut out = Vec::new();
    encoder(source, to).columns[0].put(Some(value), true, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// A one-dimensional array as `array_send` writes it.
fn array(elements: &[Option<&[u8]>]) -> Vec<u8> {
    let mut out: Vec<u8> = [1i32, 1, 25, elements.len() as i32, 1].iter().flat_map(|n| n.to_be_bytes()).collect();
    for element in elements {
        out.extend((element.map_or(-1, |e| e.len() as i32)).to_be_bytes());
        out.extend(element.unwrap_or_default());
    }
    out
}

#[test]
fn values_of_a_domain_are_those_of_what_it_is_made_of() {
    let encoder = encoder_of(Column { base_type: Some("bytea".into()), ..column("public.blob", "BINARY") });
    let (mut by_text, mut by_binary) = (Vec::new(), Vec::new());
    encoder.cell(0, &Cell::Text("\\x0aff".to_string().into()), &mut by_text).unwrap();
    encoder.columns[0].put(Some(&[10, 255]), true, &mut by_binary).unwrap();
    assert_eq!((by_text.as_slice(), by_binary.as_slice()), (&b"0AFF,"[..], &b"0AFF,"[..]));
}

#[test]
fn both_forms_of_a_value_give_the_same_field() {
    let micros = 772_337_400_500_000i64.to_be_bytes();
    let table: &[(&str, &str, &str, &[u8], &str)] = &[
        ("boolean", "BOOLEAN", "t", &[1], "t,"),
        ("integer", "NUMBER(38,0)", "-7", &(-7i32).to_be_bytes(), "-7,"),
        ("real", "FLOAT", "0.1", &0.1f32.to_be_bytes(), "0.1,"),
        ("double precision", "FLOAT", "1e+300", &1e300f64.to_be_bytes(), "1e300,"),
        ("double precision", "FLOAT", "-Infinity", &f64::NEG_INFINITY.to_be_bytes(), "-inf,"),
        ("text", "VARCHAR", "a \"b\", c\n", b"a \"b\", c\n", "\"a \"\"b\"\", c\n\","),
        ("text", "VARCHAR", "", b"", "\"\","),
        ("jsonb", "VARIANT", "{\"a\": 1}", b"\x01{\"a\": 1}", "\"{\"\"a\"\": 1}\","),
        ("bytea", "BINARY", "\\x0aff", &[10, 255], "0AFF,"),
        ("bytea", "BINARY", "\\x", &[], "\"\","),
        ("date", "DATE", "2024-02-29", &8825i32.to_be_bytes(), "2024-02-29,"),
        ("time without time zone", "TIME(6)", "01:02:03", &3_723_000_000i64.to_be_bytes(), "01:02:03.000000,"),
        ("timestamp without time zone", "TIMESTAMP_NTZ(6)", "2024-06-22 02:10:00.5", &micros, "2024-06-22 02:10:00.500000,"),
        ("timestamp with time zone", "TIMESTAMP_TZ(6)", "2024-06-22 04:10:00.5+02", &micros, "2024-06-22 02:10:00.500000 +0000,"),
        (
            "uuid",
            "VARCHAR",
            "000102ff-0405-0607-0809-0a0b0c0d0e0f",
            &[0, 1, 2, 255, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            "\"000102ff-0405-0607-0809-0a0b0c0d0e0f\",",
        ),
        ("integer[]", "ARRAY", "{1,NULL}", &array(&[Some(&1i32.to_be_bytes()), None]), "\"[1,null]\","),
        ("text[]", "ARRAY", "{\"a\\\"\\\\b\",\"\"}", &array(&[Some(b"a\"\\b"), Some(b"")]), "\"[\"\"a\\\"\"\\\\b\"\",\"\"\"\"]\","),
        (
            "numeric[]",
            "ARRAY",
            "{1.50,NaN}",
            &array(&[Some(&[0, 2, 0, 0, 0, 0, 0, 2, 0, 1, 0x13, 0x88]), Some(&[0, 0, 0, 0, 0xC0, 0, 0, 0])]),
            "\"[1.50,\"\"NaN\"\"]\",",
        ),
        ("bytea[]", "ARRAY", "{\"\\\\x0a\",\"\\\\x\"}", &array(&[Some(&[10]), Some(&[])]), "\"[\"\"0A\"\",\"\"\"\"]\","),
        ("jsonb[]", "ARRAY", "{\"[1]\"}", &array(&[Some(b"\x01[1]")]), "\"[[1]]\","),
        ("real[]", "ARRAY", "{0.1,NaN}", &array(&[Some(&0.1f32.to_be_bytes()), Some(&f32::NAN.to_be_bytes())]), "\"[0.1,\"\"NaN\"\"]\","),
        ("boolean[]", "ARRAY", "{}", &[0; 12], "\"[]\","),
    ];
    for (source, to, as_text, as_binary, expected) in table {
        assert_eq!(text(source, to, as_text).as_deref(), Ok(*expected), "{source}");
        assert_eq!(binary_of(source, to, as_binary), *expected, "{source}");
    }
}

#[test]
fn arrays_of_arrays_stay_so() {
    assert_eq!(text("integer[]", "ARRAY", "{{1,2},{3,4}}").as_deref(), Ok("\"[[1,2],[3,4]]\","));
    let mut two: Vec<u8> = [2i32, 0, 23, 1, 1, 2, 1].iter().flat_map(|n| n.to_be_bytes()).collect();
    for n in [1i32, 2] {
        two.extend(4i32.to_be_bytes());
        two.extend(n.to_be_bytes());
    }
    assert_eq!(binary_of("integer[]", "ARRAY", &two), "\"[[1,2]]\",");
}

#[test]
fn what_does_not_fit_is_refused() {
    assert!(text("text", "VARCHAR(2)", "äö").is_ok());
    assert_eq!(text("text", "VARCHAR(2)", "abc"), Err(TOO_LONG));
    assert!(text("numeric", "NUMBER(38,9)", "NaN").is_err());
    assert!(text("text", "NUMBER(38,0)", "secret").is_err());
}

/// Reads a line of CSV as the file format says.
fn fields(line: &[u8]) -> Vec<Option<Vec<u8>>> {
    let (mut fields, mut at) = (Vec::new(), 0);
    while at < line.len() {
        let mut field = None;
        if line[at] == b'"' {
            let mut text = Vec::new();
            at += 1;
            loop {
                match (line[at], line.get(at + 1)) {
                    (b'"', Some(b'"')) => {
                        text.push(b'"');
                        at += 2;
                    }
                    (b'"', _) => break,
                    (byte, _) => {
                        text.push(byte);
                        at += 1;
                    }
                }
            }
            at += 1;
            field = Some(text);
        }
        assert_eq!(line[at], b',');
        at += 1;
        fields.push(field);
    }
    fields
}

proptest! {
    #[test]
    fn texts_read_back(values in proptest::collection::vec(proptest::option::of(any::<String>()), 1..5)) {
        let encoder = encoder("text", "VARCHAR");
        let mut out = Vec::new();
        for value in &values {
            encoder.columns[0].put(value.as_ref().map(|v| v.as_bytes()), true, &mut out).unwrap();
        }
        prop_assert_eq!(fields(&out), values.iter().map(|v| v.as_ref().map(|v| v.as_bytes().to_vec())).collect::<Vec<_>>());
    }
}
