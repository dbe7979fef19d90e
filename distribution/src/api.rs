//! The endpoints, one noun a file. Each takes a grant, never a name from the wire, and answers or returns an
//! [`crate::error::Error`].

pub(crate) mod base;
pub(crate) mod blobs;
pub(crate) mod extensions;
pub(crate) mod manifests;
pub(crate) mod referrers;
pub(crate) mod repositories;
pub(crate) mod tags;
pub(crate) mod uploads;
