//! Artifacts: manifests in a repository, with what they refer to, and the tags on them.

mod cache;
mod catalog;
mod store;

pub use catalog::{SqlCatalog, VisibilityOf};
