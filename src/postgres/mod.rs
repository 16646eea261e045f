//! What source and destination share of PostgreSQL: connections, identifiers, positions.

pub mod connect;
pub mod copy;
pub mod lsn;
pub mod quote;
pub mod wire;

pub use connect::{ConnectError, Connection, connect};
pub use lsn::Lsn;
pub use quote::{ident, literal, qualified};
