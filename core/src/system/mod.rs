//! What the registry says of itself.

pub mod api;
