//! How fast a core makes rows of what the source sends, for the destinations that take files or streams. Without a server or a network.
//!
//! Criterion measures: it warms up, takes samples, reports how they spread, and whether that differs from the last run.

use std::{fs, hint::black_box, io::Write, time::Duration};

use criterion::{Criterion, SamplingMode, Throughput};
use mirror_operator::{
    api::{
        bigquery::{NullElements, OutOfRange},
        snowflake::BeyondRange,
    },
    destination::{bigquery, snowflake},
    table::{Column, Identity, TableName, TableSchema},
};

use crate::book::{Book, Target, median};

/// The source's types, and what they become at Snowflake and BigQuery.
pub const COLUMNS: [Types; 10] = [
    ("bigint", "NUMBER(38,0)", "INT64"),
    ("bigint", "NUMBER(38,0)", "INT64"),
    ("integer", "NUMBER(38,0)", "INT64"),
    ("double precision", "FLOAT", "FLOAT64"),
    ("numeric(12,2)", "NUMBER(12,2)", "NUMERIC(12, 2)"),
    ("text", "VARCHAR", "STRING"),
    ("text", "VARCHAR", "STRING"),
    ("date", "DATE", "DATE"),
    ("timestamp with time zone", "TIMESTAMP_TZ(6)", "TIMESTAMP"),
    ("boolean", "BOOLEAN", "BOOL"),
];
/// Pieces as they come from the source's connection.
const PIECE: usize = 64 << 10;
/// What Snowflake's files are packed with.
const LEVEL: i32 = 1;
/// What a table of BigQuery has if the Mirror does not say otherwise.
pub const RULES: bigquery::encode::Rules = bigquery::encode::Rules { out_of_range: OutOfRange::Clamp, null_elements: NullElements::Omit };

/// As few as criterion takes: a sample is a million rows or more.
const SAMPLES: usize = 10;

/// Millions of rows that one core encodes in a second of its time, so that a busy machine counts less.
pub fn run(book: &mut Book, rows: u64) {
    let data = copied(rows);
    let mut criterion = Criterion::default();
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(rows)).sample_size(SAMPLES).sampling_mode(SamplingMode::Flat);
    let mut measure = |name: &str, encode: &dyn Fn() -> u64| {
        let mut speeds = Vec::new();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let before = busy();
                (0..times).for_each(|_| assert_eq!(encode(), rows, "every row was encoded"));
                let took = busy() - before;
                speeds.push((rows * times) as f64 / 1e6 / took.as_secs_f64());
                took
            });
        });
        book.put(&format!("encode.{name}"), median(&speeds), "Mrows/s", Target::AtLeast(1.0));
    };
    measure("snowflake", &|| files(&data, |piece| _ = black_box(piece)));
    measure("snowflake.packed", &|| {
        let mut packed = zstd::Encoder::new(std::io::sink(), LEVEL).expect("an encoder");
        let rows = files(&data, |piece| packed.write_all(piece).expect("a sink takes all"));
        packed.finish().expect("a sink takes all");
        rows
    });
    measure("bigquery", &|| streams(&data));
    group.finish();
}

/// The time that this thread has had a processor, as the kernel counts it (proc(5), `schedstat`).
fn busy() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel that counts");
    Duration::from_nanos(text.split(' ').next().and_then(|n| n.parse().ok()).expect("a number"))
}

/// Rows as Snowflake's files have them, a piece at a time; returns how many.
fn files(data: &[u8], mut take: impl FnMut(&[u8])) -> u64 {
    let encoder =
        snowflake::encode::RowEncoder::new(&schema(&COLUMNS, |column| column.1), BeyondRange::Clamp).expect("types that are written");
    let (mut reader, mut piece) = (snowflake::encode::CopyReader::new(&encoder, true), Vec::with_capacity(512 << 10));
    for read in data.chunks(PIECE) {
        reader.push(read);
        while reader.next_row(&mut piece).expect("a row") {
            if piece.len() >= 256 << 10 {
                take(&piece);
                piece.clear();
            }
        }
    }
    take(&piece);
    reader.rows()
}

/// Rows as BigQuery's streams have them, in requests; returns how many.
fn streams(data: &[u8]) -> u64 {
    let own = [("_PEERDB_IS_DELETED", bigquery::encode::Own::Flag(false)), ("_PEERDB_SYNCED_AT", bigquery::encode::Own::Time(1))];
    let encoder = bigquery::encode::RowEncoder::new(&schema(&COLUMNS, |column| column.2), RULES, &own).expect("types that are written");
    let mut reader = bigquery::encode::CopyReader::new(&encoder, true);
    let (mut batch, mut size, mut row) = (Vec::new(), 0, Vec::new());
    for read in data.chunks(PIECE) {
        reader.push(read);
        while reader.next_row(&mut row).expect("a row") {
            size += row.len();
            let room = row.len() + row.len() / 4;
            batch.push(std::mem::replace(&mut row, Vec::with_capacity(room)));
            if size >= 4 << 20 {
                size = 0;
                black_box(std::mem::take(&mut batch));
            }
        }
    }
    reader.rows()
}

/// A column's type at the source, at Snowflake and at BigQuery.
pub type Types = (&'static str, &'static str, &'static str);

/// A table of these columns that travel in their binary form.
pub fn schema(columns: &[Types], destination: impl Fn(&Types) -> &'static str) -> TableSchema {
    let column = |(place, types): (usize, &Types)| Column {
        source: format!("c{place}"),
        destination: format!("c{place}"),
        source_type: types.0.into(),
        base_type: None,
        source_type_oid: 1,
        destination_type: destination(types).into(),
        not_null: place == 0,
        generated: None,
        binary: true,
        as_text: false,
    };
    let name = TableName { schema: "public".into(), name: "t".into() };
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

/// What the source's COPY sends of these rows, in its binary form (PostgreSQL docs, "COPY", "Binary Format").
fn copied(rows: u64) -> Vec<u8> {
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    let mut seed = 0x1357_9bdf_2468_ace0u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for id in 0..rows {
        out.extend(10i16.to_be_bytes());
        let mut field = |bytes: &[u8]| {
            out.extend((bytes.len() as i32).to_be_bytes());
            out.extend(bytes);
        };
        field(&id.to_be_bytes());
        field(&random(1_000_000).to_be_bytes());
        field(&(random(100_000) as i32).to_be_bytes());
        field(&(random(1_000_000) as f64 / 7.0).to_be_bytes());
        // Three digits of base 10,000, of which the last is behind the point.
        field(&[0, 3, 0, 1, 0, 0, 0, 2, 0, random(100) as u8, 0x13, 0x88, 0x0b, 0xb8]);
        field(format!("{:016x}{:016x}", random(u64::MAX), random(u64::MAX)).as_bytes());
        field(format!("note {}", id % 1000).as_bytes());
        field(&(random(10_000) as i32).to_be_bytes());
        field(&(random(800_000_000_000_000) as i64).to_be_bytes());
        field(&[(id % 2) as u8]);
    }
    out.extend((-1i16).to_be_bytes());
    out
}
