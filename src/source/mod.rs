//! PostgreSQL as the source: its catalog, checks, slots, snapshots and rows.

pub mod ahead;
pub mod catalog;
pub mod copy;
pub mod error;
pub mod keys;
pub mod measure;
pub mod pace;
pub mod partition;
pub mod pgoutput;
pub mod preflight;
pub mod present;
pub mod publication;
pub mod schema;
pub mod sequence;
pub mod slot;
pub mod snapshot;
pub mod type_map;

pub use error::Error;
