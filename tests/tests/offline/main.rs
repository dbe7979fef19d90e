//! What an operator does besides serving: taking another registry over, backups, holding catalog and store against each other.

mod backup;
mod import;
mod references;
mod taffrail;
mod tree;
