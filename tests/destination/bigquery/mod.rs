//! What only BigQuery has.

mod apply;
pub mod grpc;
mod speed;
mod swap;
mod types;
