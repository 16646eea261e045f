//! Random values, from a PostgreSQL server to a ClickHouse server, by the load and by the change stream.

use mirror_operator::postgres;
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};

use super::pair::{Pair, asked};
use crate::fixture::Fixture;

/// Columns whose values are text there, and how a random one is made of the numbers `{a}` to `{d}`, the fraction `{f}` and the text `{t}`.
const TEXTUAL: &[(&str, &str, &str)] = &[
    ("ip", "inet", "'{a}.{b}.0.{c}/{d}'::inet"),
    ("ip6", "inet", "('{x}:{y}::' || to_hex({c}) || '/' || ({a} % 129))::inet"),
    ("ips", "inet[]", "ARRAY['{a}.1.2.3', '{x}::{y}']::inet[]"),
    ("net", "cidr", "network('{a}.{b}.{c}.0/{d}'::inet)"),
    ("mac", "macaddr", "trunc('08:00:{m}:{m}:{n}:{n}'::macaddr)"),
    ("mac8", "macaddr8", "macaddr8_set7bit('08:00:{m}:{n}:{m}:{n}:{n}:01'::macaddr8)"),
    ("po", "point", "point({f}, -{f} / 3)"),
    ("li", "line", "line(point({f}, 0), point({f} + 1, {b}))"),
    ("ls", "lseg", "lseg(point({f}, {a}), point({b}, {f}))"),
    ("bo", "box", "box(point({f}, {a}), point({b}, -{f}))"),
    ("pa", "path", "popen(path '(({a},{b}),({f},{c}),(1e300,-0))')"),
    ("pc", "path", "path '(({a},{b}),({f},{c}))'"),
    ("pg", "polygon", "polygon '(({a},{b}),({f},{c}),(Infinity,0))'"),
    ("ci", "circle", "circle(point({f}, {a}), {b})"),
    ("ir", "int8range", "int8range({a}, {a} + {b}, '[]')"),
    ("nr", "numrange", "numrange({f}, NULL, '(]')"),
    ("tr", "tstzrange", "tstzrange('2000-01-01Z'::timestamptz + {f} * interval '1 s', 'infinity')"),
    ("dr", "daterange", "daterange(NULL, date '0001-01-01' + {a} - {b})"),
    ("im", "int4multirange", "int4multirange(int4range({a}, {a} + {b}), int4range(1000 + {c}, NULL))"),
    ("iv", "interval", "make_interval({a} - 128, {b} - 128, 0, {c} - 128, {d}, 0, {f})"),
    ("ivs", "interval[]", "ARRAY[make_interval(secs => -{f}), make_interval(days => {a})]"),
    ("co", "public.pair", "ROW({a}, {t}, ARRAY[{t}, NULL])::public.pair"),
    ("cos", "public.pair[]", "ARRAY[ROW({a}, {t}, NULL), ROW(NULL, NULL, NULL)]::public.pair[]"),
    ("js", "json", "json_build_object('k', {t}, 'n', {f}, 'a', ARRAY[{a}, NULL])"),
    ("jb", "jsonb", "jsonb_build_object({t}, {t}, 'n', {f}, 'o', jsonb_build_object('deep', {a}))"),
    ("jbs", "jsonb[]", "ARRAY[to_jsonb({t}), 'null', to_jsonb({f})]"),
    ("tsq", "tsquery", "plainto_tsquery('simple', {t})"),
    ("bits", "bit varying", "{a}::bit(8) || {b}::bit(9)"),
    ("tt", "timetz", "make_time({d} % 24, {a} % 60, {f} % 60) AT TIME ZONE '+05:30'"),
];

/// The values of each column of `columns` in 100 random rows, as the fields of a row.
fn random_rows(columns: &[(&str, &str, &str)]) -> Vec<String> {
    let mut runner = TestRunner::deterministic();
    let value =
        (proptest::num::u8::ANY, proptest::num::u8::ANY, proptest::num::u8::ANY, 0u8..33, 0u64..u64::MAX >> 12, "[ -~é¡\n\t]{0,12}");
    let mut rows = Vec::new();
    for _ in 0..100 {
        let (a, b, c, d, bits, t) = value.new_tree(&mut runner).unwrap().current();
        let fraction = bits as f64 / 4096.0 / 1e6;
        let fill = |template: &str| {
            let numbers = [("{a}", a), ("{b}", b), ("{c}", c), ("{d}", d)];
            let filled = numbers.iter().fold(template.to_string(), |text, (name, number)| text.replace(name, &number.to_string()));
            let filled = filled.replace("{x}", &format!("{:x}", 0x2001 + u32::from(a))).replace("{y}", &format!("{:x}", u32::from(b) << 8));
            let filled =
                filled.replace("{m}", &format!("{a:02x}")).replace("{n}", &format!("{b:02x}")).replace("{f}", &fraction.to_string());
            filled.replace("{t}", &format!("{}::text", postgres::literal(&t)))
        };
        rows.push(columns.iter().map(|(_, _, template)| fill(template)).collect::<Vec<_>>().join(", "));
    }
    rows
}

/// A source's table with such rows, and one of nothing but NULL.
async fn random(columns: &[(&str, &str, &str)], table: serde_json::Value) -> Pair {
    let before = "CREATE TYPE public.pair AS (a int, b text, c text[])";
    let names: Vec<String> = columns.iter().map(|(name, type_, _)| format!("{name} {type_}")).collect();
    let pair = asked(table, &names.join(", "), before).await;
    let rows: Vec<String> = random_rows(columns).iter().enumerate().map(|(id, row)| format!("({id}, {row})")).collect();
    pair.source.run(&format!("INSERT INTO public.t VALUES {}; INSERT INTO public.t (id) VALUES (1000)", rows.join(", "))).await;
    pair
}

#[tokio::test(flavor = "multi_thread")]
async fn random_values_that_are_text_there_read_as_postgresql_prints_them() {
    let pair = random(TEXTUAL, serde_json::json!({})).await;
    let at = pair.load().await.unwrap();
    for round in ["the load", "the change stream"] {
        for (name, type_, _) in TEXTUAL {
            // Told by a digest, as each side has its own way to write odd characters; elements of an array apart.
            let (ours, theirs) = if type_.ends_with("[]") {
                (
                    format!("(SELECT string_agg(md5(format('%s', {name}[n])), ' ' ORDER BY n) FROM generate_subscripts({name}, 1) n)"),
                    format!("if(empty({name}), NULL, arrayStringConcat(arrayMap(e -> lower(hex(MD5(assumeNotNull(e)))), {name}), ' '))"),
                )
            } else {
                (format!("CASE WHEN num_nulls({name}) = 0 THEN md5(format('%s', {name})) END"), format!("lower(hex(MD5({name})))"))
            };
            let (here, there) = pair.printed(&ours, &theirs).await;
            assert_eq!(here, there, "{name} by {round}");
            assert!(here.len() == 101 && here[100] == "∅" && here[0] != here[1], "{name}: {here:?}");
        }
        if round == "the load" {
            pair.stream(&*at).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_addresses_and_documents_keep_their_values_in_types_of_their_own() {
    let columns = [
        ("v4", "inet", "'{a}.{b}.{c}.{d}'::inet"),
        ("v6", "inet", "('{x}:{y}::' || to_hex({c}))::inet"),
        ("vx", "inet", "CASE WHEN {a} < 128 THEN '{a}.{b}.{c}.{d}' ELSE '::{x}' END::inet"),
        ("v4s", "inet[]", "ARRAY['{a}.1.2.3', '{b}.{c}.2.3']::inet[]"),
        (
            "js",
            "json",
            "json_build_object('k', {t}, 'n', {a}, 'a', ARRAY[{a}, {b}], 'o', json_build_object('deep', {t}, 'yes', {a} > {b}))",
        ),
        ("jb", "jsonb", "jsonb_build_object('f', {f}, 's', {t})"),
    ];
    let types = [("v4", "IPv4"), ("v6", "IPv6"), ("vx", "IPv6"), ("v4s", "Array(IPv4)"), ("js", "JSON"), ("jb", "JSON")];
    let wanted: Vec<serde_json::Value> =
        types.iter().map(|(source, type_)| serde_json::json!({ "source": source, "type": type_ })).collect();
    let pair = random(&columns, serde_json::json!({ "columns": wanted })).await;
    let at = pair.load().await.unwrap();
    let documents = |lines: &[String]| lines.iter().map(|line| serde_json::from_str(line).ok()).collect::<Vec<Option<serde_json::Value>>>();
    for round in ["the load", "the change stream"] {
        // An array is never NULL there.
        let theirs = "v4, v6, vx, if(empty(v4s), NULL, v4s[1]), if(empty(v4s), NULL, v4s[2])";
        let (here, there) = pair.printed("v4, v6, vx, v4s[1], v4s[2]", theirs).await;
        let read = |lines: Vec<String>| -> Vec<Vec<Option<std::net::IpAddr>>> {
            lines
                .iter()
                .map(|line| line.split('|').map(|text| Some(text.parse::<std::net::IpAddr>().ok()?.to_canonical())).collect())
                .collect()
        };
        assert_eq!(read(here), read(there), "{round}");
        for name in ["js", "jb"] {
            // As hexadecimal digits, so that nothing is written in another way on the way here.
            let (here, there) = pair
                .printed(
                    &format!("encode(convert_to({name}::text, 'UTF8'), 'hex')"),
                    &format!("if({name} IS NULL, NULL, lower(hex(toJSONString({name}))))"),
                )
                .await;
            let text = |lines: Vec<String>| -> Vec<String> {
                let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
                lines.iter().map(|l| l.as_bytes().chunks(2).map_while(byte).collect()).map(|b| String::from_utf8(b).unwrap()).collect()
            };
            assert_eq!(documents(&text(here)), documents(&text(there)), "{name} by {round}");
        }
        if round == "the load" {
            pair.stream(&*at).await;
        }
    }
}
