//! Log segments: reading them front to back, and the table of those that exist.

pub mod scan;
pub(crate) mod table;
