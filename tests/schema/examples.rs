//! The examples are what the kinds take: by the Rust types, and by the schemas that the API server checks with.

use std::{collections::BTreeSet, fs};

use mirror_operator::api::{Mirror, MirrorResync, Peer};
use serde_json::Value;

use crate::admit::{refused, schema_of};

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

#[test]
fn every_example_is_what_its_kind_takes() {
    let mut seen = BTreeSet::new();
    for (file, document) in documents() {
        let kind = document["kind"].as_str().unwrap_or_else(|| panic!("{file}: a document without a kind")).to_string();
        let Some(schema) = schema_of(&kind, "spec") else { continue };
        let mut found = vec![];
        refused(&document["spec"], schema, &kind, &mut found);
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
    let schema = schema_of("Mirror", "spec").unwrap();
    let refused = |spec: Value| {
        let mut found = vec![];
        refused(&spec, schema, "Mirror", &mut found);
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
