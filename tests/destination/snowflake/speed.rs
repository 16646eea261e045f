//! How fast rows become files: a table of ten columns, by one core, without a network. Run with `--release --ignored --nocapture`.

use std::{io::Write, time::Instant};

use mirror_operator::{
    api::snowflake::BeyondRange,
    destination::snowflake::encode::{CopyReader, RowEncoder},
    table::TableSchema,
};
use zstd::stream::write::Encoder;

use crate::fixture::table;

const ROWS: u64 = 1_000_000;

const COLUMNS: [(&str, &str); 10] = [
    ("bigint", "NUMBER(38,0)"),
    ("bigint", "NUMBER(38,0)"),
    ("integer", "NUMBER(38,0)"),
    ("double precision", "FLOAT"),
    ("numeric(12,2)", "NUMBER(12,2)"),
    ("text", "VARCHAR"),
    ("text", "VARCHAR"),
    ("date", "DATE"),
    ("timestamp with time zone", "TIMESTAMP_TZ(6)"),
    ("boolean", "BOOLEAN"),
];

fn schema() -> TableSchema {
    let names: Vec<String> = (0..COLUMNS.len()).map(|i| format!("c{i} text")).collect();
    let mut schema = table(0, "t", &names.iter().map(String::as_str).collect::<Vec<_>>());
    for (column, (source, destination)) in schema.columns.iter_mut().zip(COLUMNS) {
        (column.source_type, column.destination_type, column.binary) = (source.into(), destination.into(), true);
    }
    schema
}

/// What PostgreSQL's COPY sends.
fn tuples() -> Vec<u8> {
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    let mut seed = 0x1357_9bdf_2468_ace0u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for id in 0..ROWS {
        out.extend(10i16.to_be_bytes());
        let mut field = |bytes: &[u8]| {
            out.extend((bytes.len() as i32).to_be_bytes());
            out.extend(bytes);
        };
        field(&id.to_be_bytes());
        field(&(random() % 1_000_000).to_be_bytes());
        field(&((random() % 100_000) as i32).to_be_bytes());
        field(&((random() % 1_000_000) as f64 / 7.0).to_be_bytes());
        field(&[0, 3, 0, 1, 0, 0, 0, 2, 0, (random() % 100) as u8, 0x13, 0x88, 0x0b, 0xb8]);
        field(format!("{:016x}{:016x}", random(), random()).as_bytes());
        field(format!("note {}", id % 1000).as_bytes());
        field(&((random() % 10_000) as i32).to_be_bytes());
        field(&((random() % 800_000_000_000_000) as i64).to_be_bytes());
        field(&[(id % 2) as u8]);
    }
    out.extend((-1i16).to_be_bytes());
    out
}

#[test]
#[ignore = "measures"]
fn a_core_makes_files_of_a_million_rows_a_second() {
    let (schema, data) = (schema(), tuples());
    let encoder = RowEncoder::new(&schema, BeyondRange::Clamp).unwrap();
    let mut best = f64::MAX;
    for _ in 0..3 {
        let begun = Instant::now();
        let (mut reader, mut rows) = (CopyReader::new(&encoder, true), Vec::with_capacity(600 << 10));
        let mut packed = Encoder::new(Vec::with_capacity(64 << 20), 1).unwrap();
        for piece in data.chunks(64 << 10) {
            reader.push(piece);
            while reader.next_row(&mut rows).unwrap() {
                if rows.len() >= 256 << 10 {
                    packed.write_all(&rows).unwrap();
                    rows.clear();
                }
            }
        }
        packed.write_all(&rows).unwrap();
        let size = packed.finish().unwrap().len();
        let seconds = begun.elapsed().as_secs_f64();
        assert_eq!(reader.rows(), ROWS);
        println!("{:.2} M rows/s, {} MB read, {} MB written", ROWS as f64 / seconds / 1e6, data.len() >> 20, size >> 20);
        best = best.min(seconds);
    }
    assert!(best < ROWS as f64 / 1e6, "{best} s");
}
