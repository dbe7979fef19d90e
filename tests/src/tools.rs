//! The programs a test needs that the workspace does not build: clients, daemons, mkfs.
//!
//! A test without its tool passes and says `SKIPPED`, so that `cargo test --workspace` passes on a bare machine. It
//! never does so silently: the line goes to stderr past the test harness's capture, and to a file that the summary of
//! `cargo xtask ci` prints.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::settings;

/// What a test may need and a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tool {
    /// A program on the search path.
    Program(&'static str),
    /// The rights of root: mounts, loop devices, daemons.
    Root,
    /// A free loop device.
    LoopDevice,
}

/// Where `name` is installed.
///
/// # Errors
/// When no searched folder has it.
pub fn find(name: &str) -> Result<PathBuf> {
    settings::tool_dirs()
        .into_iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not installed"))
}

/// Writes one line to stderr past the test harness's capture, which hides what a passing test prints.
pub fn say(line: &str) {
    // A closed stderr is no reason to fail a test.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Whether all `tools` are here; if one is not, says so as a skipped test.
///
/// # Errors
/// When one is absent and `TAFFRAIL_REQUIRE_TOOLS=1`, or when the skip cannot be recorded.
pub fn present(tools: &[Tool]) -> Result<bool> {
    match tools.iter().find_map(|tool| absence(*tool)) {
        None => Ok(true),
        Some(reason) => {
            skip(&reason)?;
            Ok(false)
        }
    }
}

/// Records that the running test is skipped, and why.
///
/// # Errors
/// With `TAFFRAIL_REQUIRE_TOOLS=1`, or when the record cannot be written.
pub fn skip(reason: &str) -> Result<()> {
    // The test harness names each test's thread after the test.
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    skip_part(&format!("{name}: {reason}"))
}

/// Records that a part of what runs is skipped: its name, and why.
///
/// # Errors
/// As [`skip`].
pub fn skip_part(name_and_reason: &str) -> Result<()> {
    if settings::tools_are_required() {
        bail!("may not be skipped here: {name_and_reason}");
    }
    let line = format!("SKIPPED {name_and_reason}");
    say(&line);
    if let Some(path) = settings::skipped_file() {
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        // One write, so that the lines of parallel tests do not mix.
        file.write_all(format!("{line}\n").as_bytes())?;
    }
    Ok(())
}

fn absence(tool: Tool) -> Option<String> {
    match tool {
        Tool::Program(name) => find(name).err().map(|error| error.to_string()),
        Tool::Root => (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned()),
        Tool::LoopDevice => {
            (!PathBuf::from("/dev/loop-control").exists()).then(|| "needs a loop device".to_owned())
        }
    }
}
