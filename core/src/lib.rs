//! Harbor's nouns: projects, members, roles, users, tokens, the catalog of artifacts, and the REST API on them.
//!
//! One noun is one folder: what it is (`mod.rs`), how it is stored (`store.rs`), how it is served (`api.rs`). Every read and
//! write of a resource asks the authorizer.

pub mod api;
pub mod artifact;
pub mod authorizer;
pub mod backup;
pub mod context;
pub mod db;
pub mod facade;
pub mod identity;
pub mod member;
pub mod operator;
pub mod outbox;
pub mod project;
pub mod reconciliation;
pub mod repository;
pub mod scrub;
pub mod system;
pub mod token;
pub mod user;
