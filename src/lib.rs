//! Kubernetes operator that resyncs change-data-capture mirrors of PostgreSQL.

pub mod api;
pub mod brief;
pub mod check;
pub mod controller;
pub mod destination;
pub mod finish;
pub mod generate;
pub mod listen;
pub mod mirror;
pub mod name;
pub mod peer;
pub mod pipeline;
pub mod postgres;
pub mod report;
pub mod resync;
pub mod snapshot;
pub mod source;
pub mod stream;
pub mod table;
pub mod termination;
pub mod trouble;
pub mod verify;
pub mod workload;
