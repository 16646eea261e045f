//! Kubernetes operator that resyncs change-data-capture mirrors of PostgreSQL.

pub mod api;
pub mod brief;
pub mod controller;
pub mod destination;
pub mod generate;
pub mod mirror;
pub mod name;
pub mod peer;
pub mod postgres;
pub mod report;
pub mod resync;
pub mod table;
pub mod workload;
