//! What the API server admits, as far as types, lengths and bounds go. Patterns are not looked at, nor are rules.

use std::sync::LazyLock;

use mirror_operator::generate::crds;
use serde_json::{Map, Value};

/// What a schema refuses of a value: fields that are unknown or missing, other types, values outside of an enumeration or a length.
pub fn refused(value: &Value, schema: &Value, at: &str, found: &mut Vec<String>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    let mut refuse = |why: String| found.push(format!("{at} {why}"));
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64(),
        Some(other) => panic!("{at}: a type {other} is not known here"),
        None => true,
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
    if value.as_i64().is_some_and(|n| {
        schema["minimum"].as_f64().is_some_and(|min| (n as f64) < min) || schema["maximum"].as_f64().is_some_and(|max| n as f64 > max)
    }) {
        refuse(format!("is out of bounds: {value}"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).filter(|name| value.get(name).is_none()) {
        refuse(format!("lacks {name}"));
    }
    for (number, item) in value.as_array().into_iter().flatten().enumerate() {
        refused(item, &schema["items"], &format!("{at}[{number}]"), found);
    }
    if schema["additionalProperties"].is_object() {
        for (name, inner) in value.as_object().into_iter().flatten() {
            refused(inner, &schema["additionalProperties"], &format!("{at}.{name}"), found);
        }
    }
    let Some(properties) = schema["properties"].as_object() else { return };
    for (name, inner) in value.as_object().into_iter().flatten() {
        match properties.get(name) {
            Some(schema) => refused(inner, schema, &format!("{at}.{name}"), found),
            None => found.push(format!("{at} has an unknown field {name}")),
        }
    }
}

/// The schema of a kind's `spec` or `status`.
pub fn schema_of(kind: &str, part: &str) -> Option<&'static Value> {
    static CRDS: LazyLock<Vec<Value>> = LazyLock::new(|| crds().iter().map(|crd| serde_json::to_value(crd).unwrap()).collect());
    let crd = CRDS.iter().find(|crd| crd["spec"]["names"]["kind"] == kind)?;
    Some(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part])
}

/// A value with the defaults that the API server fills in: for fields that are absent, and for those that are null and may not be (Kubernetes docs,
/// "CustomResourceDefinitions", "Defaulting and Nullable").
pub fn defaulted(value: &Value, schema: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| defaulted(item, &schema["items"])).collect(),
        Value::Object(fields) => {
            let mut all: Map<String, Value> = fields.clone();
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                let absent = all.get(name).is_none_or(|v| v.is_null() && inner["nullable"] != true);
                if absent && !inner["default"].is_null() {
                    all.insert(name.clone(), inner["default"].clone());
                }
                if let Some(field) = all.get_mut(name) {
                    *field = defaulted(field, inner);
                }
            }
            Value::Object(all)
        }
        other => other.clone(),
    }
}
