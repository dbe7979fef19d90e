//! A check of the OCI distribution specification that needs nothing installed: the same demands as the conformance
//! program of opencontainers/distribution-spec (its main branch of July 2026), written anew.
//!
//! The program itself is run by `tests/conformance.rs` where it is installed, and it is the judge. This is for
//! machines that cannot have it, and for a quicker answer with the failed request at hand. The demands, their order
//! and their counting follow the program, so that the totals of the two can be held against each other. On distribution
//! 2.8.2 with its default validation and `storage.delete.enabled` they agree in every column: 703 passed, 99 failed, 44 skipped, 2 disabled for 1.1,
//! and 776, 153, 61, 0 for the development version. `cargo run -p taffrail-tests --example conformance` repeats that.
//!
//! A check ends as passed, failed, skipped (the registry chose not to have something optional) or disabled (the
//! chosen version of the specification does not have it).

mod blobs;
mod data;
mod run;
mod wire;

use std::fmt;

use anyhow::Result;

/// The version of the specification to hold a registry to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 1.1, as published.
    Published,
    /// The development version: digest headers are due, uploads can be cancelled, `?tag=` is known.
    Development,
}

/// How the checks came out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Totals {
    /// Met.
    pub passed: u64,
    /// Not met.
    pub failed: u64,
    /// Optional, and not there.
    pub skipped: u64,
    /// Not part of the chosen version.
    pub disabled: u64,
    /// What the failed and skipped ones said.
    pub said: Vec<String>,
}

impl Totals {
    /// All checks.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.passed + self.failed + self.skipped + self.disabled
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped, disabled, .. } = self;
        let all = self.all();
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped, {disabled} disabled, {all} in all")
    }
}

/// Where and how to check.
#[derive(Debug, Clone)]
pub struct Target {
    /// Scheme and host, such as `http://127.0.0.1:5000`.
    pub base: String,
    /// Name and password.
    pub user: (String, String),
    /// A repository to push to.
    pub repository: String,
    /// Another one, to mount from.
    pub other_repository: String,
    /// What to demand.
    pub version: Version,
}

/// Holds a registry against the specification.
///
/// # Errors
/// When the check itself goes wrong; what the registry does wrong is in the totals.
pub fn check(target: &Target) -> Result<Totals> {
    run::Run::new(target)?.all()
}
