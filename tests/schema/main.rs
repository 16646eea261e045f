//! The schemas of the CRDs, by which the API server checks, against the Rust types and the examples. CEL rules are the API server's to apply:
//! `tests/e2e/rules.rs`.

#![allow(clippy::unwrap_used, missing_docs)]

mod admit;
mod examples;
mod generated;
mod rules;
