//! The catalog's part of a backup: a copy of the database as it is at one moment, what a restored one must hold, and the list of what it
//! names for whoever holds a store against it.

pub mod store;

pub use store::{CatalogFigures, Line, copy_database, figures, list, mark_copy, problems};
