//! End to end on a real Kubernetes with real PostgreSQL servers. Run by `make e2e`, on the cluster's node.
//!
//! Needs: KUBECONFIG, the chart installed, and two servers: E2E_SOURCE and E2E_DESTINATION as `host:port`, superuser `postgres`, password in PGPASSWORD.
//! Each test has a namespace and two databases of its own, so tests may run at the same time.

mod bad_input;
mod failures;
mod life;
mod rules;
mod stream;
mod world;
