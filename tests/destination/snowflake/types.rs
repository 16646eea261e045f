//! Every type, through the file format and COPY, in both of its forms.

use bytes::Bytes;
use futures::StreamExt;
use mirror_operator::{
    destination::{Applier, Cell, Counts, RowChange},
    postgres::Lsn,
    table::TableSchema,
};
use proptest::test_runner::TestRunner;

use crate::{
    fixture::{Fixture, boundary, column, from_loaded, made, open, plan, table},
    on_snowflake::OnSnowflake,
    values::{self, Drawn, Value},
};

/// Years that Snowflake's dates have.
const YEARS: std::ops::Range<i32> = 1..10_000;
/// Digits before the point of a NUMBER(38, 9).
const DIGITS: usize = 29;

/// How a column is read back as text, or as the JSON of an array.
fn read(type_: &str, column: &str) -> String {
    match type_ {
        array if array.ends_with("[]") => format!("TO_JSON({column})"),
        "json" | "jsonb" => format!("TO_JSON({column})"),
        "boolean" => format!("CASE WHEN {column} THEN 't' WHEN NOT {column} THEN 'f' END"),
        "bytea" => format!("HEX_ENCODE({column})"),
        "date" => format!("TO_VARCHAR({column}, 'YYYY-MM-DD')"),
        "time without time zone" => format!("TO_VARCHAR({column}, 'HH24:MI:SS.FF6')"),
        "timestamp without time zone" | "timestamp with time zone" => format!("TO_VARCHAR({column}, 'YYYY-MM-DD HH24:MI:SS.FF6')"),
        _ => format!("TO_VARCHAR({column})"),
    }
}

/// A line of COPY text.
fn copied(values: &[Option<String>]) -> String {
    let escape = |text: &String| text.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r");
    values.iter().map(|v| v.as_ref().map_or("\\N".to_string(), escape)).collect::<Vec<_>>().join("\t")
}

#[tokio::test(flavor = "multi_thread")]
async fn random_values_of_every_type_read_back_whether_loaded_or_applied() {
    let place = OnSnowflake::new().await;
    // The stand-in has numbers within arrays as floats, which hold few digits.
    let held = |d: &Drawn| !(d.type_.starts_with("numeric") && d.type_.ends_with("[]")) || d.type_.starts_with("numeric(9,");
    let drawn: Vec<Drawn> = values::all(YEARS, DIGITS).into_iter().chain(values::grids()).filter(held).collect();
    let mut schema = table(0, "typed", &["id bigint!"]);
    for (i, each) in drawn.iter().enumerate() {
        schema
            .columns
            .extend([false, true].map(|not_null| column(&format!("{}{i}", if not_null { "r" } else { "n" }), &each.type_, not_null)));
    }
    let schema = place.adapt(schema);
    let mut runner = TestRunner::deterministic();
    let rows: Vec<Vec<Value>> =
        (0..60).map(|_| drawn.iter().flat_map(|d| [true, false].map(|nullable| d.draw(&mut runner, nullable))).collect()).collect();
    let (loaded, applied) = rows.split_at(40);
    let at = open(&place.brief(1)).await;
    at.begin().await.unwrap();
    at.create_shadows(boundary(1), std::slice::from_ref(&schema), &plan(&[1])).await.unwrap();
    let line = |(id, row): (usize, &Vec<Value>)| {
        let values: Vec<Option<String>> = std::iter::once(Some(id.to_string())).chain(row.iter().map(Value::text)).collect();
        Ok(Bytes::from(copied(&values) + "\n"))
    };
    let lines: Vec<Result<Bytes, String>> = loaded.iter().enumerate().map(line).collect();
    at.load_chunk(&schema, &plan(&[1]).chunks[0], 1, futures::stream::iter(lines).boxed()).await.unwrap();
    from_loaded(&*at).await.unwrap();
    let mut applier = at.applier().await.unwrap();
    apply(&mut *applier, &schema, loaded.len(), applied).await;
    let reads: Vec<String> = schema.columns[1..].iter().map(|c| read(&c.source_type, &c.destination)).collect();
    let found = place.rows(&format!("SELECT {} FROM public.typed ORDER BY id", reads.join(", "))).await;
    assert_eq!(found.len(), rows.len());
    for (id, (row, found)) in rows.iter().zip(&found).enumerate() {
        let found: Vec<&str> = found.split('|').collect();
        assert_eq!(found.len(), row.len(), "row {id}");
        for (place, (found, value)) in found.iter().zip(row).enumerate() {
            let type_ = drawn[place / 2].type_.as_str();
            let found = match *found {
                "∅" => Value::Null,
                array if type_ == "double precision[]" => floats(array),
                array if type_.ends_with("[]") => Value::read(&serde_json::from_str(array).unwrap()),
                text => Value::Text(text.into()),
            };
            assert_eq!(found.normal(type_), value.normal(type_), "{type_} of row {id}");
        }
    }
}

/// JSON of floats, to their last digits: `serde_json` leaves that to a feature.
fn floats(array: &str) -> Value {
    let item = |item: &str| match item.trim_matches('"') {
        "null" => Value::Null,
        number => Value::Text(number.into()),
    };
    Value::Array(array.trim_matches(['[', ']']).split(',').filter(|text| !text.is_empty()).map(item).collect())
}

async fn apply(applier: &mut dyn Applier, schema: &TableSchema, first: usize, rows: &[Vec<Value>]) {
    let cell = |value: &Value| value.text().map_or(Cell::Null, |text| Cell::Text(text.into()));
    let changes = rows.iter().enumerate().map(|(n, row)| {
        let id = Cell::Text((first + n).to_string().into());
        RowChange::Upsert { row: std::iter::once(id).chain(row.iter().map(cell)).collect(), deleted: false }
    });
    applier.write(schema, changes.collect(), vec![made(1500); rows.len()], Counts::default()).await.unwrap();
    applier.commit(Lsn(2000)).await.unwrap();
}
