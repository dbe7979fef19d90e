//! What an operator does besides serving: taking another registry over.

mod import;
mod taffrail;
mod tree;
