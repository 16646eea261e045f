//! What only BigQuery has.

mod apply;
mod emulated;
pub mod grpc;
mod swap;
mod types;
