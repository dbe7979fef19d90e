//! Who is known, by what, and what they may do: tokens, passwords, roles, and the REST API over them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod accounts;
mod api;
mod harbour;
mod matrix;
mod service;
mod tokens;
mod world;
