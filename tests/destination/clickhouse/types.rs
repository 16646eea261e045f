//! Values of every type, from a PostgreSQL server to a ClickHouse server, by the load and by the change stream.

use mirror_operator::{
    api::clickhouse::{ClickHouseTable, OutOfRange},
    destination::Error,
    postgres,
    table::Identity,
};
use proptest::test_runner::TestRunner;
use tokio_postgres::SimpleQueryMessage;

use super::pair::{Pair, pair};
use crate::{
    fixture::{Fixture, open},
    on_clickhouse::ask,
    values::{self, Drawn, Value},
};

#[tokio::test(flavor = "multi_thread")]
async fn every_type_reads_as_postgresql_prints_it() {
    let columns = "b bool, s smallint, l bigint, r real, d double precision, n numeric, m numeric(12,3), x numeric(3,-2), t text, v varchar(9), c char(5),
        j json, jb jsonb, y bytea, u uuid, da date, ts timestamp, tz timestamptz, ti time, iv interval, ip inet, mo mood, rg int4range, pa pair,
        po posint, ia int[], ta text[], na numeric(9,2)[], bx box[], bits bit(3), tsv tsvector, money money, o oid, mac macaddr, xm xml, bl blob, bs blobs, bd blob[]";
    let before = "CREATE TYPE public.mood AS ENUM ('sad', 'it''s \"ok\"'); CREATE TYPE public.pair AS (a int, b text);
        CREATE DOMAIN public.posint AS int CHECK (VALUE > 0); CREATE DOMAIN public.blob AS bytea; CREATE DOMAIN public.blobs AS bytea[]; SET search_path = public";
    let columns = columns
        .replace(" mood", " public.mood")
        .replace(" pair", " public.pair")
        .replace(" posint", " public.posint")
        .replace(" blob", " public.blob");
    let pair = pair(ClickHouseTable::default(), &columns, before).await;
    pair.source
        .run("INSERT INTO public.t VALUES
            (1, true, -32768, 9223372036854775807, 1.5, -0.1, 12345678901234567890.000000000012345, -1.005, 12300, E'tab\\tand \\\\ \\u00e9', 'v', 'c',
             '{\"a\": [1, null]}', '{\"b\": \"x\"}', '\\x00ff10', '936da01f-9abd-4d9d-80c7-02af85c822a8', '1900-01-01', '1999-12-31 23:59:59.123456',
             '2026-06-01 12:00:00+05:30', '24:00', '1 year 2 days 03:04:05', '10.0.0.1/8', 'it''s \"ok\"', '[1,5)', '(7,\"x y\")', 7, '{1,NULL,3}',
             '{a,NULL,\"q\\\"\",\"\"}', '{1.50,NULL}', '{(3,4),(1,2);(7,8),(5,6)}', '101', 'fat cat', '12.30', 4294967295, '08:00:2b:01:02:03', '<a/>', '\\x00ff27', ARRAY['\\x00ff'::bytea, NULL], ARRAY['\\x00ff']::public.blob[]),
            (2, false, 0, 0, 'NaN', 'Infinity', 0, 0, 0, '', '', '', '1', '1', '', '00000000-0000-0000-0000-000000000000', '2299-12-31',
             '1900-01-01', '2299-12-31 23:59:59.999999+00', '00:00:00.000001', '-1 day', '::1', 'sad', 'empty', NULL, 1, '{}', '{}', '{}', '{}', '000', '',
             '0', 0, '00:00:00:00:00:00', '', '', '{}', NULL); INSERT INTO public.t (id) VALUES (3)")
        .await;
    let at = pair.load().await.unwrap();
    let same = "id, s, l, t, v, c, j, jb, ti, iv, ip, mo, rg, pa, po, bx, bits, tsv, money, o, mac, xm, u, da";
    // Trailing zeros are not printed there; bytes are hex here.
    let ours = format!(
        "{same}, coalesce(n::numeric(70,15)::text, '∅'), trim_scale(m), x, r, d, encode(y, 'hex'), encode(bl, 'hex'), b, ts, tz AT TIME ZONE 'UTC', ia::text, ta::text"
    );
    let ours = ours.replace("coalesce(n::numeric(70,15)::text, '∅')", "trim_scale(n)");
    let theirs = format!(
        "{same}, n, m, x, r, d, lower(hex(y)), lower(hex(bl)), b, ts, tz, replace(replace(concat('{{', arrayStringConcat(arrayMap(i -> ifNull(toString(i), 'NULL'), ia), ','), '}}'), ' ', ''), ' ', ''), ta"
    );
    for round in ["the load", "the change stream"] {
        let (here, there) = pair.printed(&ours, &theirs).await;
        compare(round, &here, &there);
        let arrays = pair.place.rows("SELECT ta, na FROM public.t FINAL ORDER BY id").await;
        assert_eq!(arrays, [r#"['a',NULL,'q"','']|[1.5,NULL]"#, "[]|[]", "[]|[]"], "{round}");
        let blobs = pair.place.rows("SELECT arrayMap(b -> hex(b), bs), bd FROM public.t FINAL ORDER BY id").await;
        assert_eq!(blobs, [r"['00FF',NULL]|['\\x00ff']", "[]|[]", "[]|[]"], "{round}");
        if round == "the load" {
            pair.stream(&*at).await;
        }
    }
    let sql = format!(
        "SELECT name, type FROM system.columns WHERE database = '{}' AND table = 't' AND name IN ('n', 'x', 'mo', 'po', 'ia', 'iv') ORDER BY name",
        pair.place.to.database
    );
    assert_eq!(
        pair.place.rows(&sql).await,
        [
            "ia|Array(Nullable(Int32))",
            "iv|Nullable(String)",
            "mo|LowCardinality(Nullable(String))",
            "n|Nullable(Decimal(76, 38))",
            "po|Nullable(Int32)",
            "x|Nullable(Decimal(5, 0))"
        ]
    );
}

/// Line by line, value by value: what ClickHouse writes otherwise is turned into PostgreSQL's words.
fn compare(round: &str, here: &[String], there: &[String]) {
    assert_eq!(here.len(), there.len());
    for (here, there) in here.iter().zip(there) {
        let (here, there): (Vec<&str>, Vec<&str>) = (here.split('|').collect(), there.split('|').collect());
        for (place, (ours, theirs)) in here.iter().zip(&there).enumerate().take(here.len() - 1) {
            let unescaped = theirs.replace("\\t", "\t").replace("\\'", "'").replace("\\\\", "\\");
            let theirs = match unescaped.as_str() {
                "true" => "t",
                "false" => "f",
                "nan" => "NaN",
                "inf" => "Infinity",
                "-inf" => "-Infinity",
                "{}" if *ours == "∅" => "∅",
                other => other.trim_end_matches(".000000"),
            };
            let zeros = if ours.contains(':') { theirs } else { theirs.trim_end_matches(".0") };
            assert_eq!(ours.trim_end_matches(".000000"), zeros, "{round}: value {place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_of_range_follows_the_rule() {
    let columns = "da date, tz timestamptz";
    let rows =
        "INSERT INTO public.t VALUES (1, 'infinity', 'infinity'), (2, '-infinity', '-infinity'), (3, '0044-03-15 BC', '0044-03-15 BC'),
        (4, '2300-01-01', '294276-12-31')";
    for (rule, expected) in [
        (
            OutOfRange::Clamp,
            &[
                "2299-12-31|2299-12-31 23:59:59.999999",
                "1900-01-01|1900-01-01 00:00:00.000000",
                "1900-01-01|1900-01-01 00:00:00.000000",
                "2299-12-31|2299-12-31 23:59:59.999999",
            ],
        ),
        (
            OutOfRange::String,
            &["infinity|infinity", "-infinity|-infinity", "0044-03-15 BC|0044-03-15 00:00:00+00 BC", "2300-01-01|294276-12-31 00:00:00+00"],
        ),
    ] {
        let pair = pair(ClickHouseTable { out_of_range: rule, ..ClickHouseTable::default() }, columns, "SELECT 1").await;
        pair.source.run(rows).await;
        let at = pair.load().await.unwrap();
        for _ in 0..2 {
            assert_eq!(pair.printed("1", "da, tz").await.1, expected);
            pair.stream(&*at).await;
        }
    }
    let pair = pair(ClickHouseTable { out_of_range: OutOfRange::Error, ..ClickHouseTable::default() }, columns, "SELECT 1").await;
    pair.source.run("INSERT INTO public.t VALUES (1, '2000-01-01', NULL), (77, NULL, '0044-03-15 BC')").await;
    let Err(Error::Permanent(failure)) = pair.load().await.map(drop) else { panic!() };
    assert_eq!(failure.reason, "ValueRefused");
    assert!(
        failure.message.contains("column \"tz\" of the row with the key (77)") && !failure.message.contains("44-03"),
        "{}",
        failure.message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_differ_stay_different() {
    let columns = "day date NOT NULL, at timestamp NOT NULL, UNIQUE (day, at)";
    let mut pair = pair(ClickHouseTable::default(), columns, "SELECT 1").await;
    pair.schema.identity = Identity::Key(vec![1, 2]);
    let refused = async |pair: &Pair, rows: &str, column: &str| {
        pair.source.run(&format!("TRUNCATE public.t; INSERT INTO public.t VALUES {rows}")).await;
        let Err(Error::Permanent(failure)) = pair.load().await.map(drop) else { panic!("{rows}") };
        let words = &failure.message;
        assert!(words.contains(&format!("column {column:?}")) && words.contains("part of the key"), "{words}");
        open(&pair.brief).await.forget(true).await.unwrap();
    };
    // The nearest date that there is would be that of the other row.
    refused(&pair, "(1, 'infinity', '2000-01-01'), (2, '2299-12-31', '2000-01-01')", "day").await;
    pair.schema.columns[2].destination_type = "DateTime".into();
    pair.schema.columns[2].as_text = true;
    refused(&pair, "(1, '2000-01-01', '2000-01-01 00:00:00.1'), (2, '2000-01-01', '2000-01-01 00:00:00.2')", "at").await;
    pair.source.run("TRUNCATE public.t; INSERT INTO public.t VALUES (1, '2299-12-31', '2000-01-01')").await;
    pair.load().await.unwrap();
    pair.schema.columns[2].destination_type = "Float64".into();
    let found = open(&pair.brief).await.preflight(std::slice::from_ref(&pair.schema)).await.unwrap();
    assert_eq!(found.iter().map(|f| f.reason.as_str()).collect::<Vec<_>>(), ["TypeUnsupported"], "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn arrays_need_the_dimensions_of_their_column() {
    let mut pair = pair(ClickHouseTable::default(), "deep int[]", "SELECT 1").await;
    pair.source.run("INSERT INTO public.t VALUES (5, '{{1,2},{3,NULL}}')").await;
    let Err(Error::Permanent(failure)) = pair.load().await.map(drop) else { panic!() };
    assert!(failure.message.contains("\"deep\"") && failure.message.contains("Array(Array("), "{}", failure.message);
    open(&pair.brief).await.forget(true).await.unwrap();
    pair.schema.columns[1].destination_type = "Array(Array(Nullable(Int32)))".into();
    let at = pair.load().await.unwrap();
    pair.stream(&*at).await;
    assert_eq!(pair.printed("1", "deep").await.1, ["[[1,2],[3,NULL]]"]);
}

/// Years that ClickHouse's dates have.
const YEARS: std::ops::Range<i32> = 1900..2300;
/// Digits before the point of a Decimal(76, 38).
const DIGITS: usize = 38;

#[tokio::test(flavor = "multi_thread")]
async fn random_values_of_every_type_read_as_postgresql_prints_them() {
    let (mut drawn, grids) = (values::all(YEARS, DIGITS), values::grids());
    let lines = drawn.len();
    drawn.extend(grids);
    let columns = drawn.iter().enumerate().map(|(i, d)| format!("n{i} {0}, r{i} {0} NOT NULL", d.type_));
    let mut pair = pair(ClickHouseTable::default(), &columns.collect::<Vec<_>>().join(", "), values::USER_TYPES).await;
    for (i, _) in drawn.iter().enumerate().skip(lines) {
        for column in &mut pair.schema.columns[1 + 2 * i..3 + 2 * i] {
            column.destination_type = format!("Array({})", column.destination_type);
        }
    }
    let mut runner = TestRunner::deterministic();
    let rows: Vec<Vec<Value>> =
        (0..150).map(|_| drawn.iter().flat_map(|d| [true, false].map(|nullable| d.draw(&mut runner, nullable))).collect()).collect();
    let literal = |value: &Value| value.text().map_or("NULL".into(), |text| postgres::literal(&text));
    let line = |(id, row): (usize, &Vec<Value>)| format!("({id}, {})", row.iter().map(literal).collect::<Vec<_>>().join(", "));
    let lines: Vec<String> = rows.iter().enumerate().map(line).collect();
    pair.source.run(&format!("SET search_path = public; INSERT INTO public.t VALUES {}", lines.join(", "))).await;
    let type_of = |place: usize| drawn[place / 2].type_.as_str();
    for (row, printed) in rows.iter().zip(at_source(&pair).await) {
        for (place, (value, printed)) in row.iter().zip(printed).enumerate() {
            // Two numbers of as few digits may both read back.
            if !type_of(place).starts_with("real") && !type_of(place).starts_with("double") {
                assert_eq!(printed, value.text(), "{} is not what PostgreSQL prints", type_of(place));
            }
        }
    }
    let at = pair.load().await.unwrap();
    for round in ["the load", "the change stream"] {
        let found = there(&pair, &drawn).await;
        for (id, row) in rows.iter().enumerate() {
            for (place, value) in row.iter().enumerate() {
                // An array is never NULL there.
                let none = value == &Value::Null && type_of(place).ends_with("[]");
                let expected = if none { Value::Array(vec![]) } else { value.normal(type_of(place)) };
                assert_eq!(found[id][place], expected, "{round}: {} of row {id}", type_of(place));
            }
        }
        if round == "the load" {
            pair.stream(&*at).await;
        }
    }
}

/// What PostgreSQL prints of each column after the key.
async fn at_source(pair: &Pair) -> Vec<Vec<Option<String>>> {
    let messages = pair.source.client().await.simple_query("SELECT * FROM public.t ORDER BY id").await.unwrap();
    let rows = messages.iter().filter_map(|m| if let SimpleQueryMessage::Row(row) = m { Some(row) } else { None });
    rows.map(|row| (1..row.len()).map(|i| row.get(i).map(String::from)).collect()).collect()
}

/// What ClickHouse has of each column after the key. Bytes are read as digits: JSON has none.
async fn there(pair: &Pair, drawn: &[Drawn]) -> Vec<Vec<Value>> {
    let hex = |type_: &str, column: String| match type_ {
        "bytea" => format!("hex({column})"),
        "bytea[]" => format!("arrayMap(b -> hex(b), {column})"),
        _ => column,
    };
    let columns = drawn.iter().enumerate().flat_map(|(i, d)| ["n", "r"].map(|kind| hex(&d.type_, format!("{kind}{i}"))));
    let sql = format!(
        "SELECT {} FROM {}.t FINAL ORDER BY id FORMAT JSONCompactEachRow SETTINGS output_format_json_quote_64bit_integers = 1, \
         output_format_json_quote_64bit_floats = 1, output_format_json_quote_denormals = 1, output_format_json_quote_decimals = 1",
        columns.collect::<Vec<_>>().join(", "),
        pair.place.to.database
    );
    let answer = ask(&pair.place.to, &sql).await.unwrap();
    let row = |line: &str| -> Vec<Value> {
        let values: Vec<serde_json::Value> = serde_json::from_str(line).unwrap();
        values.iter().enumerate().map(|(place, value)| Value::read(value).normal(&drawn[place / 2].type_)).collect()
    };
    answer.lines().map(row).collect()
}
