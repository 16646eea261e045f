//! The source's side against real servers: catalog, boundary, snapshot, and whole loads through pipeline and workers.
//!
//! `MIRROR_TEST_SOURCE_URL` and `MIRROR_TEST_DESTINATION_URL` name servers with `wal_level = logical` and a superuser; `make test` sets them.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod boundary;
mod catalog;
mod examples;
mod fixture;
mod guard;
mod handover;
mod holders;
mod keys;
mod load;
mod memory;
mod own_slot;
mod rehearsal;
mod sequences;
mod verify;
