//! ClickHouse as a destination.

pub mod encode;
pub mod quote;
pub mod types;
