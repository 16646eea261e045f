//! Each of PostgreSQL's types, through the service and back.

use bytes::Bytes;
use mirror_operator::{
    api::bigquery::BigQueryTable,
    destination::{Cell, Counts, RowChange},
    postgres::Lsn,
    source::type_map::{Kind, SourceType},
};
use proptest::test_runner::TestRunner;

use crate::{
    fixture::{Fixture, column, made, open, table, whole},
    on_bigquery::OnBigQuery,
    values::{self, Drawn, Value},
};

/// Years that BigQuery's dates have.
const YEARS: std::ops::Range<i32> = 1..10_000;
/// Digits before the point that the emulator holds of a BIGNUMERIC, half of the service's.
const DIGITS: usize = 19;

/// How a value of a type is read, so that its text is the same whatever client reads it.
fn read(type_: &str, column: &str) -> String {
    if let Some(element) = type_.strip_suffix("[]") {
        let item = read(element, "item");
        return format!("ARRAY(SELECT {item} FROM UNNEST({column}) AS item WITH OFFSET AS place ORDER BY place)");
    }
    match type_ {
        "timestamp with time zone" => format!("FORMAT_TIMESTAMP('%E4Y-%m-%d %H:%M:%E6S+00', {column})"),
        "timestamp without time zone" => format!("FORMAT_DATETIME('%E4Y-%m-%d %H:%M:%E6S', {column})"),
        "time without time zone" => format!("FORMAT_TIME('%H:%M:%E6S', {column})"),
        "bytea" => format!("TO_HEX({column})"),
        "json" | "jsonb" => format!("IF({column} IS NULL, NULL, TO_JSON_STRING({column}))"),
        _ => format!("CAST({column} AS STRING)"),
    }
}

/// What becomes of a value there: no array is NULL, and none has NULL in it.
fn kept(value: &Value, type_: &str) -> Value {
    match value {
        Value::Null if type_.ends_with("[]") => Value::Array(vec![]),
        Value::Array(items) => Value::Array(items.iter().filter(|item| **item != Value::Null).cloned().collect()).normal(type_),
        other => other.normal(type_),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_values_of_every_type_read_back_whether_loaded_or_applied() {
    let place = OnBigQuery::new().await;
    let drawn: Vec<Drawn> = values::all(YEARS, DIGITS);
    let mut schema = table(0, "t", &["id bigint!"]);
    for (i, each) in drawn.iter().enumerate() {
        schema.columns.extend([("n", false), ("r", true)].map(|(name, not_null)| column(&format!("{name}{i}"), &each.type_, not_null)));
    }
    let schema = place.adapt(schema);
    let mut runner = TestRunner::deterministic();
    let rows: Vec<Vec<Value>> =
        (0..30).map(|_| drawn.iter().flat_map(|d| [true, false].map(|nullable| d.draw(&mut runner, nullable))).collect()).collect();
    let (loaded, applied) = rows.split_at(20);
    let escape = |text: &String| text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r");
    let field = |value: &Value| value.text().as_ref().map_or("\\N".to_string(), escape);
    let line = |(id, row): (usize, &Vec<Value>)| format!("{id}\t{}", row.iter().map(field).collect::<Vec<_>>().join("\t"));
    let lines: Vec<String> = loaded.iter().enumerate().map(line).collect();
    let at = open(&place.brief(1)).await;
    whole(&*at, &[(schema.clone(), &lines.iter().map(String::as_str).collect::<Vec<_>>())]).await;
    let cell = |value: &Value| value.text().map_or(Cell::Null, |text| Cell::Text(text.into()));
    let changes = applied.iter().enumerate().map(|(n, row)| {
        let id = Cell::Text(Bytes::from((loaded.len() + n).to_string()));
        RowChange::Upsert { row: std::iter::once(id).chain(row.iter().map(cell)).collect(), deleted: false }
    });
    let mut applier = at.applier().await.unwrap();
    applier.write(&schema, changes.collect(), vec![made(1500); applied.len()], Counts::default()).await.unwrap();
    applier.commit(Lsn(2000)).await.unwrap();
    for (nth, type_) in drawn.iter().map(|d| d.type_.as_str()).enumerate() {
        let sql = format!("SELECT {}, {} FROM public.t ORDER BY id", read(type_, &format!("n{nth}")), read(type_, &format!("r{nth}")));
        let found = place.rows(&sql).await;
        assert_eq!(found.len(), rows.len());
        for (id, (found, row)) in found.iter().zip(&rows).enumerate() {
            for (found, value) in found.split('|').zip(&row[2 * nth..]) {
                let found = match found {
                    "∅" => Value::Null,
                    array if type_.ends_with("[]") => items(array),
                    text => Value::Text(text.into()),
                };
                assert_eq!(found.normal(type_), kept(value, type_), "{type_} of row {id}");
            }
        }
    }
}

/// An array as the service answers it: `[{"v": …}, …]`.
fn items(answer: &str) -> Value {
    let items: Vec<serde_json::Value> = serde_json::from_str(answer).unwrap();
    Value::Array(items.iter().map(|item| Value::read(&item["v"])).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_of_range_is_the_nearest() {
    let place = OnBigQuery::new().await;
    let columns = ["id bigint!", "d date", "c time_without_time_zone", "at timestamp_without_time_zone", "tz timestamp_with_time_zone"];
    let mut schema = table(0, "t", &columns);
    schema.columns.iter_mut().for_each(|column| column.source_type = column.source_type.replace('_', " "));
    let lines = ["1\tinfinity\t24:00:00\tinfinity\t294276-12-31 00:00:00+00", "2\t-infinity\t00:00:00\t0044-03-15 00:00:00 BC\t-infinity"];
    whole(&*open(&place.brief(1)).await, &[(place.adapt(schema), &lines)]).await;
    let reads: Vec<String> =
        [("date", "d"), ("time without time zone", "c"), ("timestamp without time zone", "at"), ("timestamp with time zone", "tz")]
            .iter()
            .map(|(type_, column)| read(type_, column))
            .collect();
    assert_eq!(
        place.rows(&format!("SELECT {} FROM public.t ORDER BY id", reads.join(", "))).await,
        [
            "9999-12-31|23:59:59.999999|9999-12-31 23:59:59.999999|9999-12-31 23:59:59.999999+00",
            "0001-01-01|00:00:00.000000|0001-01-01 00:00:00.000000|0001-01-01 00:00:00.000000+00"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_arrays_and_bytes_go_through_and_back() {
    let place = OnBigQuery::new().await;
    let schema = place.adapt(table(0, "t", &["id bigint!", "j jsonb", "a text[]", "b bytea", "n numeric(10,2)[]"]));
    let lines = ["1\t{\"a\": [1, null]}\t{x,NULL,\"y z\"}\t\\\\x00ff\t{1.50,2}", "2\t\\N\t\\N\t\\N\t{}"];
    whole(&*open(&place.brief(1)).await, &[(schema, &lines)]).await;
    let sql = "SELECT JSON_VALUE(j, '$.a[0]'), ARRAY_TO_STRING(a, ','), TO_HEX(b), ARRAY_LENGTH(n) FROM public.t ORDER BY id";
    assert_eq!(place.rows(sql).await[0], "1|x,y z|00ff|2");
    assert_eq!(place.rows("SELECT j IS NULL, COALESCE(ARRAY_LENGTH(a), 0), b IS NULL FROM public.t WHERE id = 2").await, ["true|0|true"]);
}

#[test]
fn whatever_is_mapped_can_be_written() {
    use mirror_operator::destination::bigquery::types::{Type, destination_type};
    for type_ in values::all(YEARS, DIGITS).into_iter().map(|drawn| drawn.type_) {
        let source = SourceType { oid: 1, text: type_.clone(), kind: Kind::Base, element: None, sendable: true };
        let mapped = destination_type(&source, None, &BigQueryTable::default());
        assert!(Type::parse(&mapped.destination_type).is_some(), "{type_}: {mapped:?}");
    }
}
