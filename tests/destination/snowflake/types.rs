//! Every type, through the file format and COPY, in both of its forms.

use bytes::Bytes;
use futures::StreamExt;
use mirror_operator::{
    destination::{Applier, Cell, Counts, RowChange},
    postgres::Lsn,
    table::TableSchema,
};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::{
    fixture::{Fixture, boundary, from_loaded, made, open, plan, table},
    on_snowflake::OnSnowflake,
};

/// Columns, how each is read back as text, and the value that PostgreSQL's text stands for.
struct Case {
    type_: &'static str,
    read: &'static str,
    value: BoxedStrategy<(String, String)>,
}

fn same(value: impl Strategy<Value = String> + 'static) -> BoxedStrategy<(String, String)> {
    value.prop_map(|v| (v.clone(), v)).boxed()
}

fn case(type_: &'static str, read: &'static str, value: BoxedStrategy<(String, String)>) -> Case {
    Case { type_, read, value }
}

/// A text without what no PostgreSQL text has, and without what the suite puts between columns.
fn any_text() -> impl Strategy<Value = String> {
    any::<String>().prop_map(|text| text.replace(['\0', '|'], ""))
}

fn cases() -> Vec<Case> {
    let day = (1i16..9999, 1i8..=12, 1i8..=28).prop_map(|(y, m, d)| format!("{y:04}-{m:02}-{d:02}"));
    let clock = (0..24u8, 0..60u8, 0..60u8, 0..1_000_000u32).prop_map(|(h, m, s, f)| format!("{h:02}:{m:02}:{s:02}.{f:06}"));
    let moment = (day.clone(), clock.clone()).prop_map(|(day, clock)| format!("{day} {clock}"));
    vec![
        case(
            "boolean",
            "CASE WHEN {} THEN 't' WHEN NOT {} THEN 'f' END",
            same(any::<bool>().prop_map(|b| if b { "t" } else { "f" }.to_string())),
        ),
        case("smallint", "TO_VARCHAR({})", same(any::<i16>().prop_map(|n| n.to_string()))),
        case("bigint", "TO_VARCHAR({})", same(any::<i64>().prop_map(|n| n.to_string()))),
        case("numeric(20,4)", "TO_VARCHAR({})", same((0..10i64.pow(15), 0..10_000u32).prop_map(|(a, b)| format!("{a}.{b:04}")))),
        case("text", "{}", same(any_text())),
        case("character varying(5)", "{}", same("[a-zäß\"',\\\\\n\t]{0,5}")),
        case("uuid", "{}", same("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}")),
        case(
            "bytea",
            "HEX_ENCODE({})",
            proptest::collection::vec(any::<u8>(), 0..20)
                .prop_map(|bytes| {
                    let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
                    (format!("\\x{digits}"), digits.to_uppercase())
                })
                .boxed(),
        ),
        case("date", "TO_VARCHAR({}, 'YYYY-MM-DD')", same(day)),
        case("time without time zone", "TO_VARCHAR({}, 'HH24:MI:SS.FF6')", same(clock)),
        case("timestamp without time zone", "TO_VARCHAR({}, 'YYYY-MM-DD HH24:MI:SS.FF6')", same(moment.clone())),
        case(
            "timestamp with time zone",
            "TO_VARCHAR({}, 'YYYY-MM-DD HH24:MI:SS.FF6')",
            moment.prop_map(|m| (format!("{m}+00"), m)).boxed(),
        ),
        case(
            "jsonb",
            "TO_JSON({}:a)",
            any_text()
                .prop_map(|text| {
                    let json = serde_json::to_string(&text).unwrap();
                    (format!("{{\"a\": {json}}}"), json)
                })
                .boxed(),
        ),
        case(
            "integer[]",
            "TO_JSON({})",
            proptest::collection::vec(proptest::option::of(any::<i32>()), 0..5)
                .prop_map(|items| {
                    let join =
                        |null: &str| items.iter().map(|i| i.map_or(null.to_string(), |n| n.to_string())).collect::<Vec<_>>().join(",");
                    (format!("{{{}}}", join("NULL")), format!("[{}]", join("null")))
                })
                .boxed(),
        ),
    ]
}

/// A line of COPY text.
fn copied(values: &[Option<String>]) -> String {
    let escape = |text: &String| text.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r");
    values.iter().map(|v| v.as_ref().map_or("\\N".to_string(), escape)).collect::<Vec<_>>().join("\t")
}

fn normal(value: &str, type_: &str) -> String {
    // The stand-in leaves zeros at the end of a second away, and has its own way to write JSON.
    match type_ {
        "time without time zone" | "timestamp without time zone" | "timestamp with time zone" => {
            let value = value.split('+').next().unwrap_or(value).trim();
            if value.contains('.') { value.trim_end_matches('0').trim_end_matches('.').to_string() } else { value.to_string() }
        }
        "jsonb" | "integer[]" => serde_json::from_str::<serde_json::Value>(value).map_or(value.to_string(), |json| json.to_string()),
        _ => value.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_reads_back_whether_loaded_or_applied() {
    let place = OnSnowflake::new().await;
    let cases = cases();
    let columns: Vec<String> = cases.iter().enumerate().map(|(i, case)| format!("c{i} {}", case.type_.replace(' ', "_"))).collect();
    let names: Vec<&str> = std::iter::once("id bigint!").chain(columns.iter().map(String::as_str)).collect();
    let mut schema = table(0, "typed", &names);
    for (column, case) in schema.columns[1..].iter_mut().zip(&cases) {
        column.source_type = case.type_.into();
    }
    let schema = place.adapt(schema);
    let mut runner = TestRunner::deterministic();
    let mut rows: Vec<Vec<Option<(String, String)>>> = vec![cases.iter().map(|_| None).collect()];
    for _ in 1..60 {
        rows.push(cases.iter().map(|case| Some(case.value.new_tree(&mut runner).unwrap().current())).collect());
    }
    let (loaded, applied) = rows.split_at(40);
    let at = open(&place.brief(1)).await;
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), std::slice::from_ref(&schema), &plan(&[1])).await.unwrap();
    let line = |(id, row): (usize, &Vec<Option<(String, String)>>)| {
        let values: Vec<Option<String>> =
            std::iter::once(Some(id.to_string())).chain(row.iter().map(|v| v.as_ref().map(|v| v.0.clone()))).collect();
        Ok(Bytes::from(copied(&values) + "\n"))
    };
    let lines: Vec<Result<Bytes, String>> = loaded.iter().enumerate().map(line).collect();
    at.load_chunk(&schema, &plan(&[1]).chunks[0], 1, futures::stream::iter(lines).boxed()).await.unwrap();
    from_loaded(&*at).await.unwrap();
    let mut applier = at.applier().await.unwrap();
    apply(&mut *applier, &schema, loaded.len(), applied).await;
    let reads: Vec<String> = cases.iter().enumerate().map(|(i, case)| case.read.replace("{}", &format!("c{i}"))).collect();
    let found = place.rows(&format!("SELECT {} FROM public.typed ORDER BY id", reads.join(", "))).await;
    assert_eq!(found.len(), rows.len());
    for (id, (row, found)) in rows.iter().zip(&found).enumerate() {
        let found: Vec<&str> = found.split('|').collect();
        assert_eq!(found.len(), cases.len(), "row {id}");
        for (case, (found, value)) in cases.iter().zip(found.iter().zip(row)) {
            let expected = value.as_ref().map_or("∅".to_string(), |v| normal(&v.1, case.type_));
            assert_eq!(normal(found, case.type_), expected, "{} of row {id}", case.type_);
        }
    }
}

async fn apply(applier: &mut dyn Applier, schema: &TableSchema, first: usize, rows: &[Vec<Option<(String, String)>>]) {
    let cell = |value: &Option<(String, String)>| value.as_ref().map_or(Cell::Null, |v| Cell::Text(v.0.clone().into()));
    let changes = rows.iter().enumerate().map(|(n, row)| {
        let id = Cell::Text((first + n).to_string().into());
        RowChange::Upsert { row: std::iter::once(id).chain(row.iter().map(cell)).collect(), deleted: false }
    });
    applier.write(schema, changes.collect(), vec![made(1500); rows.len()], Counts::default()).await.unwrap();
    applier.commit(Lsn(2000)).await.unwrap();
}
