//! Each of PostgreSQL's types, through the service and back.

use mirror_operator::{
    api::bigquery::BigQueryTable,
    source::type_map::{Kind, SourceType},
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

use crate::{
    fixture::{Fixture, open, table, whole},
    on_bigquery::OnBigQuery,
};

/// A type, a value's text at PostgreSQL, and how it reads at BigQuery when it is cast to a text.
type Case = (&'static str, String, String);

fn same(type_: &'static str, text: impl Into<String>) -> Case {
    let text = text.into();
    (type_, text.clone(), text)
}

/// Values of each type: the ends of its range, and some by chance.
fn cases() -> Vec<Case> {
    let mut all = vec![
        ("boolean", "t".into(), "true".into()),
        same("smallint", "-32768"),
        same("bigint", "9223372036854775807"),
        same("oid", "4294967295"),
        same("real", "1.5"),
        same("double precision", "-2.25"),
        same("text", "a 'quoted' \"text\" with ünï¢ødé and \u{1F600}"),
        same("uuid", "0a1b2c3d-0000-4000-8000-000000000001"),
        ("date", "0001-01-01".into(), "0001-01-01".into()),
        ("date", "infinity".into(), "9999-12-31".into()),
        ("timestamp with time zone", "2024-02-29 12:30:00.123456+02".into(), "2024-02-29 10:30:00.123456+00".into()),
        ("timestamp without time zone", "1969-12-31 23:59:59.999999".into(), "1969-12-31 23:59:59.999999".into()),
        ("time without time zone", "12:30:00.5".into(), "12:30:00.500000".into()),
        same("interval", "1 year 2 mons 3 days"),
        same("int4range", "[1,5)"),
        same("tstzrange", "(\"2024-01-01 00:00:00+00\",)"),
        same("inet", "10.0.0.1/8"),
    ];
    let mut runner = TestRunner::deterministic();
    for _ in 0..12 {
        let mut pick = |strategy: BoxedStrategy<String>| strategy.new_tree(&mut runner).unwrap().current();
        all.push(same("bigint", pick(any::<i64>().prop_map(|n| n.to_string()).boxed())));
        // Without what the suite puts between columns.
        all.push(same("text", pick("[ -{}-~¡-ÿΑ-ω一-三😀-😄]{1,30}".boxed())));
        all.push(same("numeric(20,4)", pick("-?[1-9][0-9]{0,15}\\.[0-9]{0,3}[1-9]".boxed())));
        all.push(same("date", pick((1i32..9999, 1u32..13, 1u32..29).prop_map(|(y, m, d)| format!("{y:04}-{m:02}-{d:02}")).boxed())));
    }
    all
}

/// What a cell is called in a query, so that its text is the same whatever client reads it.
fn as_text(type_: &str, column: &str) -> String {
    match type_ {
        "timestamp with time zone" => format!("FORMAT_TIMESTAMP('%F %H:%M:%E6S+00', {column})"),
        "timestamp without time zone" => format!("FORMAT_DATETIME('%F %H:%M:%E6S', {column})"),
        "time without time zone" => format!("FORMAT_TIME('%H:%M:%E6S', {column})"),
        "numeric(20,4)" => column.to_string(),
        _ => format!("CAST({column} AS STRING)"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_type_goes_through_and_back() {
    let place = OnBigQuery::new().await;
    let cases = cases();
    let names: Vec<String> = (0..cases.len()).map(|i| format!("c{i}")).collect();
    let mut schema = table(0, "t", &["id bigint!"]);
    for (name, (type_, ..)) in names.iter().zip(&cases) {
        schema.columns.push(crate::fixture::column(name, type_, false));
    }
    let schema = place.adapt(schema);
    let escape = |text: &str| text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n");
    let line = format!("1\t{}", cases.iter().map(|(_, text, _)| escape(text)).collect::<Vec<_>>().join("\t"));
    let nulls = format!("2{}", "\t\\N".repeat(cases.len()));
    whole(&*open(&place.brief(1)).await, &[(schema, &[&line, &nulls])]).await;
    let texts: Vec<String> = names.iter().zip(&cases).map(|(name, (type_, ..))| as_text(type_, name)).collect();
    let read = place.rows(&format!("SELECT {} FROM public.t WHERE id = 1", texts.join(", "))).await.remove(0);
    let read: Vec<&str> = read.split('|').collect();
    assert_eq!(read.len(), cases.len());
    for (read, (type_, text, expected)) in read.iter().zip(&cases) {
        assert_eq!(read, expected, "{type_} {text}");
    }
    let nothing: Vec<String> = names.iter().map(|name| format!("{name} IS NULL")).collect();
    assert_eq!(place.rows(&format!("SELECT {} FROM public.t WHERE id = 2", nothing.join(" AND "))).await, ["true"]);
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
    for (type_, ..) in cases() {
        let source = SourceType { oid: 1, text: type_.into(), kind: Kind::Base, element: None, sendable: true };
        let mapped = destination_type(&source, None, &BigQueryTable::default());
        assert!(Type::parse(&mapped.destination_type).is_some(), "{type_}: {mapped:?}");
    }
}
