//! Kubernetes operator that resyncs change-data-capture mirrors of PostgreSQL.

pub mod api;
pub mod brief;
pub mod destination;
pub mod name;
pub mod postgres;
pub mod report;
pub mod source;
pub mod stream;
pub mod table;
