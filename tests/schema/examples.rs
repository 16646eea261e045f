//! The examples are what the kinds take: by the Rust types, and by the schemas that the API server checks with. CEL rules are the API server's
//! to apply: `tests/e2e/rules.rs`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeSet, fs};

use mirror_operator::{
    api::{Mirror, MirrorResync, Peer},
    generate::crds,
};
use serde_json::Value;

/// The documents of all YAML files of the examples, each with its file.
fn documents() -> Vec<(String, Value)> {
    let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap();
    let mut found = vec![];
    for path in files.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "yaml")) {
        let (name, text) = (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap());
        for document in text.split("\n---").filter(|d| d.lines().any(|l| !l.is_empty() && !l.starts_with(['#', '-']))) {
            found.push((name.clone(), serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{name}: {e}"))));
        }
    }
    found
}

/// What a schema refuses of a value: fields that are unknown or missing, other types, values outside of an enumeration or a length.
fn refused(value: &Value, schema: &Value, at: &str, found: &mut Vec<String>) {
    let mut refuse = |why: String| found.push(format!("{at} {why}"));
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64(),
        _ => true,
    };
    if !fits {
        refuse(format!("is not of type {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|all| !all.contains(value)) {
        refuse(format!("is none of {}", schema["enum"]));
    }
    let length = value.as_str().map(|s| s.chars().count()).or(value.as_array().map(Vec::len)).unwrap_or_default() as u64;
    let bound = |of: &str| {
        schema[format!("min{of}")].as_u64().is_some_and(|min| length < min)
            || schema[format!("max{of}")].as_u64().is_some_and(|max| length > max)
    };
    if value.is_string() && bound("Length") || value.is_array() && bound("Items") {
        refuse(format!("has a length of {length}"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).filter(|name| value.get(name).is_none()) {
        refuse(format!("lacks {name}"));
    }
    for (number, item) in value.as_array().into_iter().flatten().enumerate() {
        refused(item, &schema["items"], &format!("{at}[{number}]"), found);
    }
    let Some(properties) = schema["properties"].as_object() else { return };
    for (name, inner) in value.as_object().into_iter().flatten() {
        match properties.get(name) {
            Some(schema) => refused(inner, schema, &format!("{at}.{name}"), found),
            None => found.push(format!("{at} has an unknown field {name}")),
        }
    }
}

/// The schema of a kind's `spec`.
fn schema_of(kind: &str) -> Option<Value> {
    let crd = crds().into_iter().find(|crd| crd.spec.names.kind == kind)?;
    Some(serde_json::to_value(crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone())
}

#[test]
fn every_example_is_what_its_kind_takes() {
    let mut seen = BTreeSet::new();
    for (file, document) in documents() {
        let kind = document["kind"].as_str().unwrap_or_else(|| panic!("{file}: a document without a kind")).to_string();
        let Some(schema) = schema_of(&kind) else { continue };
        let mut found = vec![];
        refused(&document["spec"], &schema, &kind, &mut found);
        assert!(found.is_empty(), "{file}: {found:?}");
        let parsed = match kind.as_str() {
            "Peer" => serde_json::from_value::<Peer>(document).map(drop),
            "Mirror" => serde_json::from_value::<Mirror>(document).map(drop),
            _ => serde_json::from_value::<MirrorResync>(document).map(drop),
        };
        parsed.unwrap_or_else(|e| panic!("{file}, {kind}: {e}"));
        seen.insert(kind);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["Mirror", "MirrorResync", "Peer"], "each kind has an example");
}

#[test]
fn a_field_that_the_kind_does_not_have_is_found() {
    let schema = schema_of("Mirror").unwrap();
    let refused = |spec: Value| {
        let mut found = vec![];
        refused(&spec, &schema, "Mirror", &mut found);
        found
    };
    let (source, destination) = (serde_json::json!({ "peer": "a" }), serde_json::json!({ "peer": "b" }));
    let spec = |tables: Value| serde_json::json!({ "source": source, "destination": destination, "tables": tables });
    assert!(refused(spec(serde_json::json!([{ "source": "public.t" }]))).is_empty());
    assert!(refused(spec(serde_json::json!([]))).concat().contains("tables has a length of 0"));
    assert!(
        refused(spec(serde_json::json!([{ "source": "public.t", "exclude": ["x"] }])))
            .concat()
            .contains("tables[0] has an unknown field exclude")
    );
    assert!(refused(spec(serde_json::json!([{}]))).concat().contains("tables[0] lacks source"));
}
