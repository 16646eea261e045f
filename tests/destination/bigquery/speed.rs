//! How fast rows are encoded, on one core. Run with `--ignored --nocapture`, as a release.

use std::time::Instant;

use mirror_operator::{
    api::bigquery::{NullElements, OutOfRange},
    destination::bigquery::encode::{CopyReader, Own, RowEncoder, Rules},
    table::TableSchema,
};

use crate::fixture::{column, table};

const ROWS: i64 = 1_000_000;
const COLUMNS: [(&str, &str); 10] = [
    ("bigint", "INT64"),
    ("integer", "INT64"),
    ("text", "STRING"),
    ("character varying", "STRING"),
    ("boolean", "BOOL"),
    ("double precision", "FLOAT64"),
    ("numeric(12,2)", "NUMERIC(12, 2)"),
    ("timestamp with time zone", "TIMESTAMP"),
    ("date", "DATE"),
    ("uuid", "STRING"),
];

fn wide() -> TableSchema {
    let mut schema = table(0, "wide", &["id bigint!"]);
    schema.columns.clear();
    for (place, (source, destination)) in COLUMNS.iter().enumerate() {
        let mut column = column(&format!("c{place}"), source, false);
        (column.destination_type, column.binary) = (destination.to_string(), true);
        schema.columns.push(column);
    }
    schema
}

/// What PostgreSQL sends for a row.
fn tuple(n: i64, out: &mut Vec<u8>) {
    let field = |bytes: &[u8], out: &mut Vec<u8>| {
        out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
        out.extend_from_slice(bytes);
    };
    out.extend_from_slice(&10i16.to_be_bytes());
    field(&n.to_be_bytes(), out);
    field(&(n as i32).to_be_bytes(), out);
    field(b"0123456789abcdef0123456789abcdef", out);
    field(b"a shorter text", out);
    field(&[1], out);
    field(&(n as f64).to_be_bytes(), out);
    // 1234.56
    field(&[0, 2, 0, 0, 0, 0, 0, 2, 0x04, 0xd2, 0x15, 0xe0], out);
    field(&(n * 1_000_000).to_be_bytes(), out);
    field(&(n as i32 % 10_000).to_be_bytes(), out);
    field(&[7; 16], out);
}

#[test]
#[ignore = "measures"]
fn a_million_rows_are_encoded() {
    let mut copy = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    (0..ROWS).for_each(|n| tuple(n, &mut copy));
    copy.extend_from_slice(&(-1i16).to_be_bytes());
    let rules = Rules { out_of_range: OutOfRange::Clamp, null_elements: NullElements::Omit };
    let own = [("_PEERDB_IS_DELETED", Own::Flag(false)), ("_PEERDB_SYNCED_AT", Own::Time(1))];
    let encoder = RowEncoder::new(&wide(), rules, &own).unwrap();
    for _ in 0..3 {
        let started = Instant::now();
        let mut reader = CopyReader::new(&encoder, true);
        let (mut rows, mut bytes, mut row) = (Vec::new(), 0, Vec::new());
        for piece in copy.chunks(256 << 10) {
            reader.push(piece);
            while reader.next_row(&mut row).unwrap() {
                bytes += row.len();
                let room = row.len() + row.len() / 4;
                rows.push(std::mem::replace(&mut row, Vec::with_capacity(room)));
            }
            // As they go out.
            if rows.len() > 20_000 {
                rows.clear();
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        println!("{:.2} M rows/s, {bytes} bytes", ROWS as f64 / seconds / 1e6);
        assert_eq!(reader.rows(), ROWS as u64);
    }
}
