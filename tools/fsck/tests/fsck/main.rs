//! `taffrail-fsck` from outside: stores made by the engine, damaged byte by byte, and what the program says and does.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes the functions that tests share for production code"
)]

mod clean;
mod damage;
mod decoders;
mod gc;
mod golden;
mod image;
mod program;
mod random;
mod read_only;
mod references;
mod repair;
mod stats;
