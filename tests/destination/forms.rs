//! The load reads what the source sends in binary, the change stream its texts: for the destinations that only a stand-in shows, a source says that the two agree.

use bytes::Bytes;
use futures::TryStreamExt;
use mirror_operator::{
    api::{
        bigquery::{BigQueryTable, NullElements, OutOfRange},
        snowflake::BeyondRange,
    },
    destination::{ColumnType, bigquery, snowflake},
    postgres,
    source::{
        copy,
        type_map::{Kind, SourceType},
    },
    table::TableSchema,
};
use proptest::test_runner::TestRunner;

use crate::{
    fixture::{Fixture, column, plan, table},
    on_postgres::OnPostgres,
    values::{self, Drawn, Value},
};

/// The source's table `t` with random values of every type, each NULL now and then; and its schema without a destination.
async fn source(mut drawn: Vec<Drawn>) -> (OnPostgres, TableSchema) {
    let place = OnPostgres::new().await;
    // Scales beyond the precision, and below zero, came with PostgreSQL 15.
    let old = place.rows("SELECT current_setting('server_version_num')::int < 150000").await == ["t"];
    drawn.retain(|d| !(old && d.type_.starts_with("numeric(3,")));
    let columns: Vec<String> = drawn.iter().enumerate().map(|(i, d)| format!("c{i} {}", d.type_)).collect();
    place.run(&format!("{}; CREATE TABLE public.t (id bigint PRIMARY KEY, {})", values::USER_TYPES, columns.join(", "))).await;
    let mut runner = TestRunner::deterministic();
    let literal = |value: Value| value.text().map_or("NULL".into(), |text| postgres::literal(&text));
    let row = |id: i32| {
        let values: Vec<String> = drawn.iter().map(|d| literal(d.draw(&mut runner, true))).collect();
        format!("({id}, {})", values.join(", "))
    };
    let rows: Vec<String> = (0..150).map(row).collect();
    place.run(&format!("SET search_path = public; INSERT INTO public.t VALUES {}", rows.join(", "))).await;
    let mut schema = table(0, "t", &["id bigint!"]);
    schema.columns.extend(drawn.iter().enumerate().map(|(i, d)| column(&format!("c{i}"), &d.type_, false)));
    (place, schema)
}

/// The schema with the types that a destination maps to, and what the source sends of it in binary or as text.
async fn sent(
    place: &OnPostgres,
    schema: &TableSchema,
    map: impl Fn(&SourceType) -> ColumnType,
    binary: bool,
) -> (TableSchema, Vec<Bytes>) {
    let mut schema = schema.clone();
    for column in &mut schema.columns {
        let mapped = map(&SourceType { oid: 1, text: column.source_type.clone(), kind: Kind::Base, element: None, sendable: true });
        (column.destination_type, column.as_text, column.binary) = (mapped.destination_type, mapped.as_text, binary);
    }
    let sql = copy::statement(&schema, "public.t", &plan(&[1]).chunks[0]);
    let pieces = place.client().await.copy_out(&sql).await.unwrap().try_collect().await.unwrap();
    (schema, pieces)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_file_is_the_same_from_binary_values_and_from_texts() {
    let (place, schema) = source(values::all(1..10_000, 29).into_iter().chain(values::grids()).collect()).await;
    let mut forms = Vec::new();
    for binary in [true, false] {
        let (schema, pieces) = sent(&place, &schema, |source| snowflake::types::destination_type(source, None), binary).await;
        let encoder = snowflake::encode::RowEncoder::new(&schema, BeyondRange::Error).unwrap();
        let (mut reader, mut rows) = (snowflake::encode::CopyReader::new(&encoder, binary), vec![]);
        pieces.iter().for_each(|piece| reader.push(piece));
        let mut row = vec![];
        while reader.next_row(&mut row).unwrap() {
            rows.push(String::from_utf8(std::mem::take(&mut row)).unwrap());
        }
        forms.push(rows);
    }
    assert_eq!(forms[0].len(), 150);
    for (id, (binary, text)) in forms[0].iter().zip(&forms[1]).enumerate() {
        assert_eq!(binary, text, "row {id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_stream_is_the_same_from_binary_values_and_from_texts() {
    let (place, schema) = source(values::all(1..10_000, 38)).await;
    let rules = bigquery::encode::Rules { out_of_range: OutOfRange::Error, null_elements: NullElements::Omit };
    let mut forms = Vec::new();
    for binary in [true, false] {
        let map = |source: &SourceType| bigquery::types::destination_type(source, None, &BigQueryTable::default());
        let (schema, pieces) = sent(&place, &schema, map, binary).await;
        let encoder = bigquery::encode::RowEncoder::new(&schema, rules, &[]).unwrap();
        let (mut reader, mut rows) = (bigquery::encode::CopyReader::new(&encoder, binary), vec![]);
        pieces.iter().for_each(|piece| reader.push(piece));
        let mut row = vec![];
        while reader.next_row(&mut row).unwrap() {
            rows.push(std::mem::take(&mut row));
        }
        forms.push(rows);
    }
    assert_eq!(forms[0].len(), 150);
    for (id, (binary, text)) in forms[0].iter().zip(&forms[1]).enumerate() {
        assert_eq!(binary, text, "row {id}");
    }
}
