//! The contract suite of destinations: every implementation goes through every part of it.

#[path = "../support/mod.rs"]
mod support;

mod carry;
mod contract;
mod fixture;
mod on_postgres;
mod proxy;
mod speed;
mod swap;
