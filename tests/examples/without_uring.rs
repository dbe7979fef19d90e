//! `without_uring EPERM|ENOSYS PROGRAM [ARGUMENT…]`: runs a program to which `io_uring` is forbidden, as container runtimes do.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use taffrail_tests::sandbox;

#[expect(clippy::disallowed_methods, reason = "a command-line tool reads its command line")]
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let errno = match arguments.next().as_deref() {
        Some("EPERM") => Errno::PERM,
        Some("ENOSYS") => Errno::NOSYS,
        Some(_) | None => bail!("usage: without_uring EPERM|ENOSYS PROGRAM [ARGUMENT…]"),
    };
    let program = arguments.next().context("a program to run")?;
    sandbox::forbid_io_uring(errno)?;
    Err(Command::new(&program).args(arguments).exec()).with_context(|| format!("running {program}"))
}
