//! PostgreSQL as a destination.

pub mod apply;
