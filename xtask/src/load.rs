//! The overload tests, in release builds of both the server and the load.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::step::root;
use crate::tooling;

/// Builds and runs. The data lies in the folder that cargo builds into, which is on a disk where `/tmp` may be memory, unless
/// `--dir` names another.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let mut command = Command::new("cargo");
    command
        .current_dir(root()?)
        .args(["run", "--release", "--locked", "--package", "taffrail-tests", "--bin", "taffrail-load", "--"])
        .args(arguments)
        .env("TAFFRAIL_TEST_PROFILE", "release")
        .env("TAFFRAIL_TOOL_DIRS", tooling::tool_dir())
        // A row is a sentence; a backtrace under the last line would bury the table.
        .env("RUST_LIB_BACKTRACE", "0");
    let names_dir = arguments.iter().any(|argument| argument == "--dir" || argument.starts_with("--dir="));
    if !names_dir {
        let dir = tooling::tool_dir().with_file_name("load");
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        command.arg("--dir").arg(dir);
    }
    ensure!(command.status().context("running cargo")?.success(), "a demand is not met");
    Ok(())
}
