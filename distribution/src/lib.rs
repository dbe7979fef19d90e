//! The OCI distribution-spec 1.1 and Docker Registry v2 API.
//!
//! Three boundaries: [`blobs::Blobs`] (bytes), [`catalog::Catalog`] (names) and [`access::AccessControl`] (who may). This
//! crate knows HTTP and the protocol; it knows no SQL, no roles and no file.
//!
//! A request enters at [`registry::Registry::handle`], is parsed by [`route`], authorised by what [`route::Endpoint::needs`]
//! says, and served by the file of `api/` that is named after its noun. Every refusal is an [`error::Error`], the only place
//! where a status and an OCI code are chosen.

pub mod access;
pub mod blobs;
pub mod body;
pub mod catalog;
pub mod engine;
pub mod error;
pub mod limits;
pub mod manifest;
pub mod name;
pub mod range;
pub mod registry;
pub mod route;

mod answer;
mod api;
mod conditional;
mod page;
mod query;
