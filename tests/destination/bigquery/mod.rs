//! What only BigQuery has.

mod apply;
pub mod grpc;
mod swap;
mod types;
