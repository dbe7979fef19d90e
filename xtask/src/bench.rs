//! The comparison with other registries, in release builds of both the server and the load.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::step::root;
use crate::tooling;

/// Installs what it compares with, builds, and measures. The data lies in the folder that cargo builds into, which is on
/// a disk where `/tmp` may be memory, unless `--dir` names another.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    for line in tooling::set_up_bench()? {
        println!("missing: {line}");
    }
    measure(arguments)
}

/// Makes a store of so many blobs in `dir`.
pub(crate) fn make_store(blobs: u64, dir: Option<String>) -> Result<()> {
    let blobs = blobs.to_string();
    let mut arguments = vec!["make-store".to_owned(), "--blobs".to_owned(), blobs];
    arguments.extend(dir.into_iter().flat_map(|dir| ["--dir".to_owned(), dir]));
    measure(&arguments)
}

fn measure(arguments: &[String]) -> Result<()> {
    let mut command = Command::new("cargo");
    command
        .current_dir(root()?)
        .args([
            "run",
            "--release",
            "--locked",
            "--package",
            "taffrail-benches",
            "--bin",
            "taffrail-bench",
            "--",
        ])
        .args(arguments)
        .env("TAFFRAIL_TEST_PROFILE", "release")
        .env("TAFFRAIL_TOOL_DIRS", tooling::tool_dir());
    let names_dir = arguments.iter().any(|argument| argument == "--dir" || argument.starts_with("--dir="));
    if !names_dir {
        let dir = tooling::tool_dir().with_file_name("bench");
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        command.arg("--dir").arg(dir);
    }
    ensure!(command.status().context("running cargo")?.success(), "the benchmark failed");
    Ok(())
}
