//! Objects made from the schemas: what the API server admits can be read, and what is written is admitted.

use std::fmt::Debug;

use kube::Resource;
use mirror_operator::api::{Mirror, MirrorResync, Peer};
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::select,
    string::string_regex,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::admit::{defaulted, refused, schema_of};

/// Values that a schema admits. Whether the API server checks the size of an integer by its `format` is not relied upon, but in a status, which nobody writes
/// but the operator.
fn admitted(schema: &Value, at: &str) -> BoxedStrategy<Value> {
    let some = if let Some(values) = schema["enum"].as_array() {
        select(values.clone()).boxed()
    } else {
        match schema["type"].as_str() {
            Some("object") => object(schema, at),
            Some("array") => {
                let least = schema["minItems"].as_u64().unwrap_or_default();
                let most = schema["maxItems"].as_u64().unwrap_or(u64::MAX).min(least + 2);
                vec(admitted(&schema["items"], at), least as usize..=most as usize).prop_map(Value::Array).boxed()
            }
            Some("string") => string(schema).prop_map(Value::String).boxed(),
            Some("boolean") => any::<bool>().prop_map(Value::Bool).boxed(),
            Some("integer") => integer(schema, at).prop_map(Value::from).boxed(),
            other => panic!("{at}: a type {other:?} is not known here"),
        }
    };
    if schema["nullable"] == true { prop_oneof![1 => Just(Value::Null), 3 => some].boxed() } else { some }
}

fn object(schema: &Value, at: &str) -> BoxedStrategy<Value> {
    if schema["additionalProperties"].is_object() {
        let values = admitted(&schema["additionalProperties"], at);
        return btree_map("[a-z]{1,9}", values, 0..3).prop_map(|fields| Value::Object(fields.into_iter().collect())).boxed();
    }
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let fields: Vec<BoxedStrategy<Option<(String, Value)>>> = schema["properties"]
        .as_object()
        .unwrap_or_else(|| panic!("{at} has no fields"))
        .iter()
        .map(|(name, inner)| {
            let (key, inner) = (name.clone(), admitted(inner, &format!("{at}.{name}")));
            let given = inner.prop_map(move |value| Some((key.clone(), value)));
            if required.contains(&json!(name)) { given.boxed() } else { prop_oneof![Just(None), given].boxed() }
        })
        .collect();
    fields.prop_map(|fields| Value::Object(fields.into_iter().flatten().collect::<Map<_, _>>())).boxed()
}

fn string(schema: &Value) -> BoxedStrategy<String> {
    let least = schema["minLength"].as_u64().unwrap_or_default() as usize;
    let most = schema["maxLength"].as_u64().map_or(usize::MAX, |most| most as usize);
    if schema["format"] == "date-time" {
        return select(vec!["2026-11-28T15:04:05Z", "2026-11-28T15:04:05.123456Z", "2026-11-28T23:59:59+05:30", "0001-01-01T00:00:00Z"])
            .prop_map(String::from)
            .boxed();
    }
    match schema["pattern"].as_str() {
        Some(pattern) => string_regex(pattern.trim_start_matches('^').trim_end_matches('$'))
            .unwrap()
            .prop_filter("its length", move |text| (least..=most).contains(&text.chars().count()))
            .boxed(),
        None => vec(any::<char>(), least..=most.min(least + 8)).prop_map(|chars| chars.into_iter().collect()).boxed(),
    }
}

fn integer(schema: &Value, at: &str) -> BoxedStrategy<i64> {
    let format = schema["format"].as_str().unwrap_or_default();
    let bound = |of: &str| schema[of].as_f64().map(|bound| bound as i64);
    let most = bound("maximum").unwrap_or_else(|| match format {
        "uint32" if at.contains(".status") => i64::from(u32::MAX),
        "int64" => i64::MAX,
        _ => panic!("{at} needs a maximum: its type {format} has one"),
    });
    let least = bound("minimum").unwrap_or(i64::MIN);
    prop_oneof![Just(least), Just(most), least..=most].boxed()
}

fn objects(kind: &'static str) -> impl Strategy<Value = Value> {
    let part = |part: &str| admitted(schema_of(kind, part).unwrap(), &format!("{kind}.{part}"));
    (part("spec"), proptest::option::of(part("status"))).prop_map(move |(spec, status)| {
        let mut object = json!({ "apiVersion": "mirror-operator.io/v1alpha1", "kind": kind, "metadata": { "name": "n", "namespace": "s" }, "spec": spec });
        if let Some(status) = status {
            object["status"] = status;
        }
        object
    })
}

/// Reads an object as it is and as the API server completes it, and writes it.
fn checked<K>(object: &Value) -> Result<(), TestCaseError>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + PartialEq + Debug,
{
    let kind = K::kind(&());
    let read = |object: &Value| serde_json::from_value::<K>(object.clone()).map_err(|e| TestCaseError::fail(format!("{e}: {object}")));
    let (mut complete, found) = (object.clone(), read(object)?);
    let written = serde_json::to_value(&found).unwrap();
    for part in ["spec", "status"] {
        let schema = schema_of(&kind, part).unwrap();
        let mut why = vec![];
        if !written[part].is_null() {
            refused(&written[part], schema, &format!("{kind}.{part}"), &mut why);
        }
        prop_assert!(why.is_empty(), "what was written would be refused: {why:?}");
        if !object[part].is_null() {
            complete[part] = defaulted(&object[part], schema);
        }
    }
    prop_assert_eq!(&read(&complete)?, &found, "a default of the schema is another one than that of the type");
    // A time is written in whole seconds.
    prop_assert_eq!(&serde_json::to_value(read(&written)?).unwrap(), &written, "what was written reads otherwise");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn a_peer_that_the_schema_admits_can_be_read_and_written(object in objects("Peer")) {
        checked::<Peer>(&object)?;
    }

    #[test]
    fn a_mirror_that_the_schema_admits_can_be_read_and_written(object in objects("Mirror")) {
        checked::<Mirror>(&object)?;
    }

    #[test]
    fn a_resync_that_the_schema_admits_can_be_read_and_written(object in objects("MirrorResync")) {
        checked::<MirrorResync>(&object)?;
    }
}
