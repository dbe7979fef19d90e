//! The call table of the distribution API: requests against a registry whose three boundaries live in memory.
//!
//! Every row asserts status, headers and body, and what the call left behind in blobs, links, sessions and catalog.

#![expect(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

mod access_rules;
mod base;
mod blobs;
mod client;
mod faults;
mod listings;
mod manifests;
mod memory;
mod mounts;
mod oddities;
mod over_engine;
mod referrers;
mod revocation;
mod uploads;
