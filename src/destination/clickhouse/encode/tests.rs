//! Values of every type in both forms.

use bytes::Bytes;
use proptest::prelude::*;

use super::{copy::CopyError, *};
use crate::table::{Column, Identity, TableName};

const RULES: Rules = Rules { out_of_range: OutOfRange::Error, null_as_default: false };

fn table(columns: &[(&str, &str)]) -> TableSchema {
    let name = TableName { schema: "d".into(), name: "t".into() };
    let column = |(i, (source, to)): (usize, &(&str, &str))| Column {
        source: format!("c{i}"),
        destination: format!("c{i}"),
        source_type: (*source).into(),
        base_type: None,
        source_type_oid: 1,
        destination_type: (*to).into(),
        not_null: i == 0,
        generated: None,
        binary: true,
        as_text: false,
    };
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

fn encoder(columns: &[(&str, &str)]) -> RowEncoder {
    RowEncoder::new(&table(columns), RULES).unwrap()
}

fn text(source: &str, to: &str, value: &str) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::new();
    let row = [Cell::Text(Bytes::copy_from_slice(value.as_bytes()))];
    encoder(&[(source, to)]).cells(&row, &mut out).map(|()| out).map_err(|r| r.why)
}

fn tuple(fields: &[Option<&[u8]>]) -> Vec<u8> {
    let mut out = (fields.len() as i16).to_be_bytes().to_vec();
    for field in fields {
        match field {
            None => out.extend_from_slice(&(-1i32).to_be_bytes()),
            Some(bytes) => {
                out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
                out.extend_from_slice(bytes);
            }
        }
    }
    out
}

fn stream(tuples: &[Vec<u8>]) -> Vec<u8> {
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    tuples.iter().for_each(|t| out.extend_from_slice(t));
    out.extend_from_slice(&(-1i16).to_be_bytes());
    out
}

fn binary(source: &str, to: &str, value: &[u8]) -> Result<Vec<u8>, CopyError> {
    let encoder = encoder(&[(source, to)]);
    let mut reader = CopyReader::new(&encoder, true);
    reader.push(stream(&[tuple(&[Some(value)])]).into());
    let mut out = Vec::new();
    reader.next_row(&mut out).map(|_| out)
}

proptest! {
    #[test]
    fn numbers_are_the_same_in_both_forms(int: i32, long: i64, float: f64, flag: bool) {
        prop_assert_eq!(binary("integer", "Int32", &int.to_be_bytes()).unwrap(), text("integer", "Int32", &int.to_string()).unwrap());
        prop_assert_eq!(binary("bigint", "Nullable(Int64)", &long.to_be_bytes()).unwrap(), text("bigint", "Nullable(Int64)", &long.to_string()).unwrap());
        let by_text = text("double precision", "Float64", &format!("{float:?}")).unwrap();
        prop_assert!(float.is_nan() || binary("double precision", "Float64", &float.to_be_bytes()).unwrap() == by_text);
        prop_assert_eq!(binary("boolean", "Bool", &[u8::from(flag)]).unwrap(), text("boolean", "Bool", if flag { "t" } else { "f" }).unwrap());
    }

    #[test]
    fn a_stream_may_be_cut_anywhere(rows in proptest::collection::vec((any::<i64>(), proptest::option::of(".*")), 0..8), cuts: Vec<u16>) {
        let encoder = encoder(&[("bigint", "Int64"), ("text", "Nullable(String)")]);
        let tuples: Vec<Vec<u8>> = rows.iter().map(|(id, s)| tuple(&[Some(&id.to_be_bytes()), s.as_ref().map(|s| s.as_bytes())])).collect();
        let whole = stream(&tuples);
        let mut expected = Vec::new();
        for (id, s) in &rows {
            let s = s.as_ref().map_or(Cell::Null, |s| Cell::Text(Bytes::copy_from_slice(s.as_bytes())));
            encoder.cells(&[Cell::Text(Bytes::from(id.to_string())), s], &mut expected).unwrap();
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|c| usize::from(*c) % (whole.len() + 1)).collect();
        cuts.extend([0, whole.len()]);
        cuts.sort_unstable();
        let (mut reader, mut out) = (CopyReader::new(&encoder, true), Vec::new());
        for pair in cuts.windows(2) {
            reader.push(Bytes::copy_from_slice(&whole[pair[0]..pair[1]]));
            while reader.next_row(&mut out).unwrap() {}
        }
        prop_assert_eq!(&out, &expected);
        prop_assert!(reader.is_whole());
        prop_assert_eq!(reader.rows(), rows.len() as u64);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, value: Vec<u8>) {
        for (source, to) in [("integer[]", "Array(Nullable(Int32))"), ("numeric", "Decimal(76, 38)"), ("jsonb", "String"), ("uuid", "UUID"),
            ("date", "Date32"), ("timestamp with time zone", "DateTime64(6)"), ("text[]", "Array(Array(String))"), ("bytea", "String"), ("inet", "IPv6")]
        {
            let _ = binary(source, to, &value);
            let mut out = Vec::new();
            let _ = encoder(&[(source, to)]).cells(&[Cell::Text(Bytes::from(value.clone()))], &mut out);
        }
        let encoder = encoder(&[("integer", "Int32")]);
        for form in [true, false] {
            let mut reader = CopyReader::new(&encoder, form);
            reader.push(bytes.clone().into());
            while reader.next_row(&mut Vec::new()).is_ok_and(|more| more) {}
        }
    }
}

#[test]
fn each_form_of_an_array_is_read() {
    let mut sent = Vec::new();
    // Two dimensions, with NULLs, of int4.
    for word in [2, 1, 23, 2, 1, 2, 1, 4, 7, -1, 4, 8, 4, 9] {
        sent.extend_from_slice(&i32::to_be_bytes(word));
    }
    let to = "Array(Array(Nullable(Int32)))";
    assert_eq!(binary("integer[]", to, &sent).unwrap(), text("integer[]", to, "{{7,NULL},{8,9}}").unwrap());
    assert!(
        matches!(binary("integer[]", "Array(Nullable(Int32))", &sent), Err(CopyError::Value { refused, .. }) if refused.why == DIMENSIONS)
    );
    assert_eq!(text("integer[]", "Array(Nullable(Int32))", "{{7}}"), Err(DIMENSIONS));
    assert_eq!(text("integer[]", "Array(Int32)", "{NULL}"), Err("an element is NULL, and the array's elements are not nullable"));
    assert_eq!(binary("integer[]", "Array(Int32)", &[0; 12]).unwrap(), text("integer[]", "Array(Int32)", "{}").unwrap());
    assert_eq!(text("bytea[]", "Array(Nullable(String))", "{\"\\\\x00ff\",NULL}").unwrap(), [2, 0, 2, 0, 0xff, 1]);
}

#[test]
fn values_of_a_domain_are_those_of_what_it_is_made_of() {
    for (base, to, sent, printed) in [("bytea", "String", &[0, 0xff][..], "\\x00ff"), ("integer", "Int32", &[0, 0, 0, 7], "7")] {
        let mut table = table(&[("public.own", to)]);
        table.columns[0].base_type = Some(base.into());
        let encoder = RowEncoder::new(&table, RULES).unwrap();
        let (mut reader, mut by_binary, mut by_text) = (CopyReader::new(&encoder, true), Vec::new(), Vec::new());
        reader.push(stream(&[tuple(&[Some(sent)])]).into());
        assert_eq!(reader.next_row(&mut by_binary), Ok(true));
        encoder.cells(&[Cell::Text(Bytes::from(printed))], &mut by_text).unwrap();
        assert_eq!(by_binary, text(base, to, printed).unwrap());
        assert_eq!(by_text, by_binary);
    }
}

#[test]
fn what_cannot_be_held_names_column_and_key_but_no_value() {
    let encoder = encoder(&[("integer", "Int32"), ("numeric", "Decimal(5, 2)")]);
    let one_and_half = [0, 2, 0, 0, 0, 0, 0, 3, 0, 1, 19, 136]; // 1.5000: 1, 5000
    let mut reader = CopyReader::new(&encoder, true);
    let too_fine = [0, 2, 0, 0, 0, 0, 0, 3, 0, 1, 0, 1]; // 1.0001
    reader.push(
        stream(&[tuple(&[Some(&[0, 0, 0, 1]), Some(&one_and_half)]), tuple(&[Some(&(-7i32).to_be_bytes()), Some(&too_fine)])]).into(),
    );
    let mut out = Vec::new();
    assert_eq!(reader.next_row(&mut out), Ok(true));
    let Err(CopyError::Value { refused, row }) = reader.next_row(&mut out) else { panic!() };
    assert_eq!((refused.column, row.as_str()), (1, "with the key (-7)"));
}

#[test]
fn null_needs_a_place() {
    let null = |to: &str, rules| {
        let mut out = Vec::new();
        RowEncoder::new(&table(&[("integer", to)]), rules).unwrap().cells(&[Cell::Null], &mut out).map(|()| out).map_err(|r| r.why)
    };
    assert_eq!(null("Int32", RULES), Err(NO_NULL));
    assert_eq!(null("Int32", Rules { null_as_default: true, ..RULES }), Ok(vec![0; 4]));
    assert_eq!(null("Nullable(Int32)", RULES), Ok(vec![1]));
    assert_eq!(null("LowCardinality(Nullable(String))", RULES), Ok(vec![1]));
    assert_eq!(null("Array(Int32)", RULES), Ok(vec![0]));
}

#[test]
fn numbers_out_of_range_are_refused() {
    for (to, value) in [("Int8", "128"), ("UInt8", "256"), ("UInt64", "-1"), ("Int64", "9223372036854775808")] {
        assert!(text("numeric", to, value).is_err(), "{to} {value}");
    }
    assert_eq!(text("numeric", "UInt8", "255"), Ok(vec![255]));
    assert_eq!(text("inet", "IPv4", "1.2.3.4/32"), Ok(vec![4, 3, 2, 1]));
    assert!(text("inet", "IPv4", "1.2.3.0/24").is_err());
    assert_eq!(text("cidr", "IPv6", "2001:db8::/128").map(|b| b.len()), Ok(16));
    assert_eq!(text("cidr", "IPv6", "1.2.3.4/32").map(|b| b[12..].to_vec()), Ok(vec![1, 2, 3, 4]));
    assert!(text("cidr", "IPv6", "2001:db8::/32").is_err());
}

#[test]
fn text_streams_are_unescaped() {
    let encoder = encoder(&[("integer", "Int32"), ("text", "Nullable(String)")]);
    let mut reader = CopyReader::new(&encoder, false);
    reader.push(Bytes::from_static(b"1\ta\\tb\\\\c\n2\t\\N\n"));
    let mut out = Vec::new();
    while reader.next_row(&mut out).unwrap() {}
    assert_eq!(out, [&[1, 0, 0, 0, 0, 5][..], b"a\tb\\c", &[2, 0, 0, 0, 1]].concat());
}

/// Reads a block back into rows of RowBinary: of an integer, a text that may be NULL, and an array of arrays of integers that may be NULL.
fn rows_of(block: &Block, encoder: &RowEncoder) -> Vec<u8> {
    let mut bytes = Vec::new();
    let names = ["i", "t", "a"].map(String::from);
    block
        .pieces(encoder, &names, |piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, ()>(())
        })
        .unwrap();
    let mut rest = bytes.as_slice();
    let mut take = |count: usize| rest.split_off(..count).unwrap();
    let rows = usize::from(take(2)[1]);
    let head = |name: &str, type_: &str, take: &mut dyn FnMut(usize) -> Vec<u8>| {
        let expected = [&[name.len() as u8], name.as_bytes(), &[type_.len() as u8], type_.as_bytes()].concat();
        assert_eq!(take(expected.len()), expected);
    };
    let mut owned = |count: usize| take(count).to_vec();
    head("i", "Int64", &mut owned);
    let integers: Vec<Vec<u8>> = (0..rows).map(|_| owned(8)).collect();
    head("t", "Nullable(String)", &mut owned);
    let nulls = owned(rows);
    let texts: Vec<Vec<u8>> = (0..rows)
        .map(|_| {
            let length = owned(1);
            [length.clone(), owned(usize::from(length[0]))].concat()
        })
        .collect();
    head("a", "Array(Array(Nullable(Int32)))", &mut owned);
    let mut ends = |count: usize| -> Vec<usize> { (0..count).map(|_| u64::from_le_bytes(owned(8).try_into().unwrap()) as usize).collect() };
    let outer = ends(rows);
    let inner = ends(outer.last().copied().unwrap_or(0));
    let elements = inner.last().copied().unwrap_or(0);
    let missing = owned(elements);
    let numbers: Vec<Vec<u8>> = (0..elements).map(|_| owned(4)).collect();
    assert!(rest.is_empty());
    let mut out = Vec::new();
    let start = |ends: &[usize], at: usize| if at == 0 { 0 } else { ends[at - 1] };
    for row in 0..rows {
        out.extend_from_slice(&integers[row]);
        out.push(nulls[row]);
        if nulls[row] == 0 {
            out.extend_from_slice(&texts[row])
        } else {
            assert_eq!(texts[row], [0])
        }
        let arrays = start(&outer, row)..outer[row];
        out.push(arrays.len() as u8);
        for array in arrays {
            let elements = start(&inner, array)..inner[array];
            out.push(elements.len() as u8);
            for element in elements {
                out.push(missing[element]);
                if missing[element] == 0 { out.extend_from_slice(&numbers[element]) } else { assert_eq!(numbers[element], [0; 4]) }
            }
        }
    }
    out
}

proptest! {
    #[test]
    fn columns_hold_the_same_values_as_rows(
        rows in proptest::collection::vec((any::<i64>(), proptest::option::of("[a-z]{0,9}"), proptest::collection::vec(proptest::option::of(any::<i32>()), 0..4)), 0..9)
    ) {
        let encoder = encoder(&[("bigint", "Int64"), ("text", "Nullable(String)"), ("integer[]", "Array(Array(Nullable(Int32)))")]);
        let (mut lines, mut expected) = (String::new(), Vec::new());
        for (id, text, numbers) in &rows {
            let numbers: Vec<String> = numbers.iter().map(|n| n.map_or("NULL".into(), |n| n.to_string())).collect();
            let array = if numbers.is_empty() { "{}".to_string() } else { format!("{{{{{0}}},{{{0}}}}}", numbers.join(",")) };
            lines += &format!("{id}\t{}\t{array}\n", text.as_deref().unwrap_or("\\N"));
            let cell = |text: &str| Cell::Text(Bytes::copy_from_slice(text.as_bytes()));
            encoder.cells(&[cell(&id.to_string()), text.as_deref().map_or(Cell::Null, cell), cell(&array)], &mut expected).unwrap();
        }
        let (mut reader, mut block) = (CopyReader::new(&encoder, false), Block::new(&encoder));
        // One that was used before.
        reader.push(Bytes::from_static(b"1\tx\t{{1}}\n"));
        while reader.next_row(&mut block).unwrap() {}
        block.clear();
        reader.push(lines.into());
        while reader.next_row(&mut block).unwrap() {}
        prop_assert_eq!(block.is_empty(), rows.is_empty());
        prop_assert_eq!(rows_of(&block, &encoder), expected);
    }
}
