//! A sandbox as container runtimes make one: `io_uring` is forbidden.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// `io_uring_setup`, `io_uring_enter` and `io_uring_register`, on every architecture.
const IO_URING: [i64; 3] = [425, 426, 427];

/// Forbids `io_uring` to the calling thread, and to the threads and processes that it starts from now on.
///
/// # Errors
/// When the system takes no filter.
pub fn forbid_io_uring(errno: Errno) -> Result<()> {
    let answer = SeccompAction::Errno(errno.raw_os_error().unsigned_abs());
    let rules: BTreeMap<i64, _> = IO_URING.iter().map(|call| (*call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().context("an architecture with a filter")?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, answer, arch).context("making the filter")?;
    let program = BpfProgram::try_from(filter).context("translating the filter")?;
    seccompiler::apply_filter(&program).context("applying the filter")
}
