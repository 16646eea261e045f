//! The contract suite of destinations: every implementation goes through every part of it.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;
#[path = "../support/tls.rs"]
mod tls;

mod bigquery;
mod carry;
mod clickhouse;
mod contract;
mod fixture;
mod forms;
mod handover;
mod hanging;
mod on_bigquery;
mod on_clickhouse;
mod on_postgres;
mod on_snowflake;
mod peer;
mod proxy;
mod refused;
mod snowflake;
mod speed;
mod swap;
mod values;
mod verify;
