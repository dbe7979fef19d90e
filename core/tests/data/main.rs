//! The tables and the catalog over a real database file.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod catalog;
mod listing;
mod outbox;
mod pages;
mod reconciliation;
mod stores;
mod world;
