//! The change stream against real servers, named by MIRROR_TEST_SOURCE_URL and MIRROR_TEST_DESTINATION_URL.

#![allow(clippy::unwrap_used, missing_docs)]
#![allow(missing_docs, clippy::unwrap_used)]

mod changes;
mod clickhouse;
mod faults;
mod schema;
mod speed;
#[path = "../support/mod.rs"]
mod support;
mod wire;
mod world;
