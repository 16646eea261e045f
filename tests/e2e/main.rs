//! End to end on a real Kubernetes with real PostgreSQL servers. Run by `make e2e`, on the cluster's node.
//!
//! Needs: KUBECONFIG, helm, IMAGE (a reference that the cluster has), and two servers: SOURCE_URL and DESTINATION_URL, superusers' URLs.
//! Tests with ClickHouse need a third one, CLICKHOUSE_URL; those with Snowflake a stand-in, SNOWFLAKE_URL.
//! Each test has a namespace and two databases of its own, so tests may run at the same time.

#![allow(clippy::unwrap_used, missing_docs)]

mod alone;
mod away;
mod bad_input;
mod bigquery;
mod clickhouse;
mod dry;
mod endings;
mod failures;
mod gate;
mod handover;
mod life;
mod obstacles;
mod pods;
mod rules;
mod snowflake;
mod stream;
#[path = "../support/tls.rs"]
mod tls;
mod verify;
mod visible;
mod world;
