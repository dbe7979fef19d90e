//! The process `taffrail` as an operator and a hostile client meet it: command line, listener, start and end.
//!
//! The registry's own answers are tested in `tests/`; what is here needs no image and no login.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test says by panicking that something is wrong")]

mod commands;
mod framing;
mod lifecycle;
mod listener;
mod server;
