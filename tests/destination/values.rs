//! Values drawn at random of every type that the documentation maps, as PostgreSQL prints them.

use std::{
    collections::BTreeSet,
    net::Ipv6Addr,
    ops::{Range, RangeInclusive},
};

use proptest::{
    collection::{btree_set, vec},
    prelude::*,
    strategy::ValueTree,
    test_runner::TestRunner,
};

/// What types of users the table's columns have.
pub const USER_TYPES: &str =
    "CREATE TYPE public.mood AS ENUM ('sad', 'it''s \"ok\"', 'so, so'); CREATE TYPE public.pair AS (a int, b text);
    CREATE DOMAIN public.posint AS int CHECK (VALUE > 0)";

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    /// Of a type that is no array: its text.
    Text(String),
    Array(Vec<Value>),
}

/// A type as the catalog names it, and its values.
pub struct Drawn {
    pub type_: String,
    pub value: BoxedStrategy<Value>,
}

impl Drawn {
    fn new(type_: &str, text: impl Strategy<Value = String> + 'static) -> Self {
        Self { type_: type_.into(), value: text.prop_map(Value::Text).boxed() }
    }

    /// Arrays of such values, some of which are NULL.
    fn array(&self) -> Self {
        let element = prop_oneof![1 => Just(Value::Null), 4 => self.value.clone()];
        Self { type_: format!("{}[]", self.type_), value: vec(element, 0..5).prop_map(Value::Array).boxed() }
    }

    /// Arrays of arrays of such values.
    fn grid(&self) -> Self {
        let element = prop_oneof![1 => Just(Value::Null), 4 => self.value.clone()];
        let lines = (0..3usize, 1..4usize).prop_flat_map(move |(lines, width)| {
            let line = vec(element.clone(), width..=width).prop_map(Value::Array);
            vec(line, lines..=lines)
        });
        Self { type_: format!("{}[]", self.type_), value: lines.prop_map(Value::Array).boxed() }
    }

    /// One of them. If it may be NULL, a few are.
    pub fn draw(&self, runner: &mut TestRunner, nullable: bool) -> Value {
        let value = if nullable { prop_oneof![1 => Just(Value::Null), 5 => self.value.clone()].boxed() } else { self.value.clone() };
        value.new_tree(runner).unwrap().current()
    }
}

impl Value {
    /// As PostgreSQL prints it, `None` for NULL.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Text(text) => Some(text.clone()),
            Self::Array(items) => Some(format!("{{{}}}", items.iter().map(Self::item).collect::<Vec<_>>().join(","))),
        }
    }

    /// As an element (PostgreSQL docs, "Array Input and Output Syntax").
    fn item(&self) -> String {
        let Self::Text(text) = self else { return self.text().unwrap_or_else(|| "NULL".into()) };
        let plain = |c: char| !matches!(c, '"' | '\\' | '{' | '}' | ',' | ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c');
        if !text.is_empty() && text.chars().all(plain) && !text.eq_ignore_ascii_case("null") {
            return text.clone();
        }
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }

    /// What a destination answers.
    pub fn read(answer: &serde_json::Value) -> Self {
        match answer {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::String(text) => Self::Text(text.clone()),
            serde_json::Value::Array(items) => Self::Array(items.iter().map(Self::read).collect()),
            other => Self::Text(other.to_string()),
        }
    }

    /// The same for all ways to write one value of a type.
    pub fn normal(&self, type_: &str) -> Self {
        match self {
            Self::Null => Self::Null,
            Self::Text(text) => Self::Text(normal(type_.trim_end_matches("[]"), text)),
            Self::Array(items) => Self::Array(items.iter().map(|item| item.normal(type_)).collect()),
        }
    }
}

fn normal(type_: &str, text: &str) -> String {
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text.to_string(),
    };
    match type_.split('(').next().unwrap_or(type_) {
        "boolean" => text.chars().take(1).collect::<String>().to_lowercase(),
        "real" => format!("{:?}", text.parse::<f32>().unwrap_or_else(|e| panic!("{text}: {e}"))),
        "double precision" => format!("{:?}", text.parse::<f64>().unwrap_or_else(|e| panic!("{text}: {e}"))),
        "bytea" => text.trim_start_matches("\\x").to_lowercase(),
        "json" | "jsonb" => serde_json::from_str::<serde_json::Value>(text).map_or(text.to_string(), |json| json.to_string()),
        // Without a zero before the point: so DuckDB, on which the stand-ins stand.
        "numeric" if text.trim_start_matches('-').starts_with('.') => trimmed(&text.replacen('.', "0.", 1)),
        "numeric" | "time without time zone" | "timestamp without time zone" => trimmed(text),
        "timestamp with time zone" => trimmed(text.split('+').next().unwrap_or(text).trim_end()),
        _ => text.to_string(),
    }
}

/// Every type, with dates of these years and so many digits before the point of a `numeric` without bounds, and arrays of every type.
pub fn all(years: Range<i32>, digits: usize) -> Vec<Drawn> {
    let mut all = numbers(digits);
    all.extend(texts());
    all.extend(times(years));
    all.extend(others());
    let arrays: Vec<Drawn> = all.iter().map(Drawn::array).collect();
    all.extend(arrays);
    all
}

/// Arrays of two dimensions.
pub fn grids() -> Vec<Drawn> {
    [Drawn::new("integer", edges(i32::MIN, i32::MAX)), Drawn::new("text", text()), Drawn::new("numeric(9,2)", decimal(7, 2..=2))]
        .iter()
        .map(Drawn::grid)
        .collect()
}

fn numbers(digits: usize) -> Vec<Drawn> {
    vec![
        Drawn::new("boolean", any::<bool>().prop_map(|b| if b { "t" } else { "f" }.to_string())),
        Drawn::new("smallint", edges(i16::MIN, i16::MAX)),
        Drawn::new("integer", edges(i32::MIN, i32::MAX)),
        Drawn::new("bigint", edges(i64::MIN, i64::MAX)),
        Drawn::new("oid", edges(u32::MIN, u32::MAX)),
        Drawn::new("real", single()),
        Drawn::new("double precision", double()),
        Drawn::new("numeric(20,4)", decimal(16, 4..=4)),
        Drawn::new("numeric(9,2)", decimal(7, 2..=2)),
        Drawn::new("numeric", decimal(digits, 0..=9)),
        Drawn::new("numeric(3,5)", ("-?", "[1-9][0-9]{2}").prop_map(|(sign, digits)| format!("{sign}0.00{digits}"))),
        Drawn::new("numeric(3,-2)", "-?[1-9][0-9]{0,2}00"),
        // Which is more than any of their decimals holds.
        Drawn::new("numeric(80,2)", "-?[1-9][0-9]{0,77}\\.[0-9]{2}"),
        Drawn::new("public.posint", (1..i32::MAX).prop_map(|n| n.to_string())),
    ]
}

/// Numbers, and often the first and the last.
fn edges<T: Arbitrary + Clone + std::fmt::Display + 'static>(first: T, last: T) -> impl Strategy<Value = String> {
    prop_oneof![1 => Just(first), 1 => Just(last), 6 => any::<T>()].prop_map(|n| n.to_string())
}

/// `numeric` with up to so many digits before the point and so many after it.
fn decimal(whole: usize, scale: RangeInclusive<usize>) -> impl Strategy<Value = String> {
    (any::<bool>(), prop::string::string_regex(&format!("[0-9]{{0,{whole}}}")).unwrap(), "[0-9]{9}", scale).prop_map(
        |(negative, whole, fraction, scale)| {
            let whole = Some(whole.trim_start_matches('0')).filter(|digits| !digits.is_empty()).unwrap_or("0");
            let digits = if scale > 0 { format!("{whole}.{}", &fraction[..scale]) } else { whole.to_string() };
            let sign = if negative && digits.contains(|c: char| matches!(c, '1'..='9')) { "-" } else { "" };
            format!("{sign}{digits}")
        },
    )
}

fn single() -> impl Strategy<Value = String> {
    let edges = prop::sample::select(vec![
        f32::MIN,
        f32::MAX,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        -0.0,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ]);
    prop_oneof![1 => edges, 3 => prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL].prop_map(|n| float(&format!("{n:e}"), 6))
}

fn double() -> impl Strategy<Value = String> {
    let edges = prop::sample::select(vec![
        f64::MIN,
        f64::MAX,
        f64::MIN_POSITIVE,
        f64::from_bits(1),
        -0.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
    ]);
    prop_oneof![1 => edges, 3 => prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL].prop_map(|n| float(&format!("{n:e}"), 15))
}

/// The shortest digits that read back, with an exponent where PostgreSQL writes one: below -4, or from `digits` on (PostgreSQL source, d2s.c and f2s.c).
fn float(number: &str, digits: i32) -> String {
    let Some((mantissa, exponent)) = number.split_once('e') else {
        return number.replace("inf", "Infinity");
    };
    let exponent: i32 = exponent.parse().unwrap();
    if exponent < -4 || exponent >= digits {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    // Rust writes numbers of this size without an exponent.
    number.parse::<f64>().unwrap().to_string()
}

fn texts() -> Vec<Drawn> {
    let hex = |bytes: Vec<u8>| format!("\\x{}", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>());
    let document = || (text(), any::<i32>()).prop_map(|(text, number)| (serde_json::to_string(&text).unwrap(), number));
    vec![
        Drawn::new("text", text()),
        Drawn::new("character varying(9)", "[a-zäß\"',\\\\\n\t]{0,9}"),
        Drawn::new("character(5)", "[a-zä]{0,5}".prop_map(|text| format!("{text}{}", " ".repeat(5 - text.chars().count())))),
        Drawn::new("name", "[a-zA-Zä\" ]{0,20}"),
        Drawn::new("xml", "<a>[a-z ]{0,9}</a>"),
        Drawn::new("json", document().prop_map(|(text, number)| format!("{{\"b\":{number},  \"a\": [null, {text}]}}"))),
        Drawn::new("jsonb", document().prop_map(|(text, number)| format!("{{\"a\": [true, {text}], \"b\": {number}}}"))),
        Drawn::new("bytea", vec(any::<u8>(), 0..20).prop_map(hex)),
        Drawn::new("uuid", "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
        Drawn::new("public.mood", prop::sample::select(vec!["sad", "it's \"ok\"", "so, so"]).prop_map(String::from)),
    ]
}

/// Without what no PostgreSQL text has, and without what the suite puts between columns.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[ -~\n\t\r]{0,20}", Just("NULL".to_string())].prop_map(|text| text.replace(['\0', '|', '∅'], ""))
}

fn times(years: Range<i32>) -> Vec<Drawn> {
    let day = (years, 1..13, 1..29).prop_map(|(y, m, d)| format!("{y:04}-{m:02}-{d:02}"));
    let clock = (0..86_400_000_000i64).prop_map(clock);
    let moment = (day.clone(), clock.clone()).prop_map(|(day, clock)| format!("{day} {clock}"));
    let zone = prop::sample::select(vec!["+00", "+14", "-03:30", "-12"]);
    vec![
        Drawn::new("date", day),
        Drawn::new("time without time zone", clock.clone()),
        Drawn::new("timestamp without time zone", moment.clone()),
        Drawn::new("timestamp with time zone", moment.clone().prop_map(|at| format!("{at}+00"))),
        Drawn::new("time with time zone", (clock, zone).prop_map(|(clock, zone)| format!("{clock}{zone}"))),
        Drawn::new("interval", (-30..30, -40..40, -90_000_000_000..90_000_000_000i64).prop_map(interval)),
        Drawn::new("tstzrange", (moment, any::<bool>()).prop_map(|(at, open)| format!("{}\"{at}+00\",)", if open { '(' } else { '[' }))),
    ]
}

fn clock(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, format!(".{:06}", micros % 1_000_000));
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{:02}:{:02}:{:02}{fraction}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// In the style `postgres` (PostgreSQL source, `EncodeInterval`): a sign is written where it changes.
fn interval((months, days, micros): (i32, i32, i64)) -> String {
    let (mut parts, mut negative) = (Vec::new(), false);
    for (number, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if number != 0 {
            parts.push(format!("{}{number} {unit}{}", if negative && number > 0 { "+" } else { "" }, if number == 1 { "" } else { "s" }));
            negative = number < 0;
        }
    }
    if micros != 0 || parts.is_empty() {
        let sign = if micros < 0 {
            "-"
        } else if negative {
            "+"
        } else {
            ""
        };
        parts.push(format!("{sign}{}", clock(micros.abs())));
    }
    parts.join(" ")
}

fn others() -> Vec<Drawn> {
    let v4 = || any::<[u8; 4]>().prop_map(|[a, b, c, d]| format!("{a}.{b}.{c}.{d}"));
    let v6 = any::<[u16; 7]>().prop_map(|[a, b, c, d, e, f, g]| Ipv6Addr::from([0x2001, a, b % 2, c % 2, d % 2, e, f & g, g]).to_string());
    let network = (any::<u32>(), 0..=32u32).prop_map(|(bits, length)| {
        let kept = bits & u32::MAX.checked_shl(32 - length).unwrap_or(0);
        format!("{}/{length}", std::net::Ipv4Addr::from(kept))
    });
    let words = btree_set("[a-z]{3}", 0..4)
        .prop_map(|words: BTreeSet<String>| words.iter().map(|w| format!("'{w}'")).collect::<Vec<_>>().join(" "));
    let bounds = (any::<i16>(), 1..999i32, 0..5).prop_map(|(low, length, form)| match form {
        0 => "empty".to_string(),
        1 => format!("[{low},)"),
        2 => format!("(,{low})"),
        _ => format!("[{low},{})", i32::from(low) + length),
    });
    vec![
        Drawn::new("inet", prop_oneof![v4(), (v4(), 0..32).prop_map(|(host, length)| format!("{host}/{length}")), v6]),
        Drawn::new("cidr", network),
        Drawn::new("macaddr", "[0-9a-f]{2}(:[0-9a-f]{2}){5}"),
        Drawn::new("int4range", bounds),
        Drawn::new(
            "numrange",
            (any::<i16>(), "[\\[(]", "[\\])]").prop_map(|(low, from, to)| format!("{from}{low}.5,{}.25{to}", i32::from(low) + 40_000)),
        ),
        Drawn::new("bit(3)", "[01]{3}"),
        Drawn::new("bit varying", "[01]{0,9}"),
        Drawn::new("money", "-?\\$[1-9][0-9]{0,2}\\.[0-9]{2}"),
        Drawn::new("tsvector", words),
        Drawn::new("point", (any::<i16>(), any::<i16>()).prop_map(|(x, y)| format!("({x},{y})"))),
        Drawn::new("public.pair", (any::<i32>(), "[a-z]{1,5}").prop_map(|(a, b)| format!("({a},{b})"))),
    ]
}
