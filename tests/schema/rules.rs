//! The rules that the API server applies. It alone can: that each does what it says is shown on a cluster, and here that none was left out there.

use std::{fs, path::Path};

use mirror_operator::generate::crds;
use serde_json::Value;

/// What the rules of a schema say when they refuse.
fn messages(schema: &Value, found: &mut Vec<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        found.push(rule["message"].as_str().unwrap_or_else(|| panic!("{rule} has no message")).to_string());
    }
    match schema {
        Value::Object(fields) => fields.values().for_each(|inner| messages(inner, found)),
        Value::Array(items) => items.iter().for_each(|inner| messages(inner, found)),
        _ => {}
    }
}

/// The texts in quotes of all files below a directory that are more than a word.
fn texts(directory: &Path, found: &mut Vec<String>) {
    for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            texts(&path, found);
        } else {
            let source = fs::read_to_string(path).unwrap();
            found.extend(source.split('"').skip(1).step_by(2).filter(|text| text.len() > 10 && text.contains(' ')).map(String::from));
        }
    }
}

#[test]
fn each_rule_has_a_test_on_the_cluster_that_expects_its_words() {
    let (mut rules, mut expected) = (vec![], vec![]);
    for crd in crds() {
        messages(&serde_json::to_value(&crd).unwrap(), &mut rules);
    }
    texts(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e"), &mut expected);
    assert!(rules.len() > 30, "{rules:?}");
    rules.retain(|message| !expected.iter().any(|words| message.contains(words.as_str())));
    assert_eq!(rules, Vec::<String>::new(), "no test names these");
}
