//! Tests that others would notice. Their names let them come first: one at a time, before the others run side by side.

mod operator;
mod random;
mod reader;
mod release;
mod servers;
mod unreadable;
