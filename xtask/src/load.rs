//! The overload tests: release builds of both the server and the load by hand, debug builds of small sizes in every run.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::step::{Step, root};
use crate::tooling;

/// The program, as cargo is asked to run it.
const RUN: [&str; 7] = ["run", "--locked", "--package", "taffrail-tests", "--bin", "taffrail-load", "--"];

/// What every run makes: each test, small, without a look at times, rates and memory.
pub(crate) fn quick() -> Step {
    Step::cargo("load", &[&RUN[..], &["--quick"]].concat())
        .env("TAFFRAIL_TOOL_DIRS", tooling::tool_dir().to_string_lossy())
}

/// Builds and runs. The data lies in the folder that cargo builds into, which is on a disk where `/tmp` may be memory, unless
/// `--dir` names another.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let mut command = Command::new("cargo");
    command.current_dir(root()?).args([&["run", "--release"], &RUN[1..]].concat()).args(arguments);
    command
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
