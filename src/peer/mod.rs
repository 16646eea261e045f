//! Decides what a Peer needs next, and turns a Peer into a connection. Pure.

mod connection;
mod plan;

pub use connection::{connection, destination};
pub use plan::{CheckFacts, Effect, Observed, Plan, check_name, plan};
