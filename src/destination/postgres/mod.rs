//! PostgreSQL as a destination.
