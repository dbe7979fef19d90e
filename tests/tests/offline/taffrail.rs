//! `taffrail`, run as a command.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use taffrail_tests::binary;
use taffrail_tests::server::ADMIN_PASSWORD;

/// A command line, ready to run.
pub(crate) fn command(args: &[&str], data_dir: &Path) -> Result<Command> {
    let mut command = Command::new(binary::server()?);
    command.args(args).arg("--data-dir").arg(data_dir);
    command.env("TAFFRAIL_ADMIN_PASSWORD", ADMIN_PASSWORD).stdin(Stdio::null());
    Ok(command)
}

/// Runs a command; gives its exit code and what it printed.
pub(crate) fn run(args: &[&str], data_dir: &Path) -> Result<(i32, String)> {
    let output = command(args, data_dir)?.output().context("running taffrail")?;
    Ok((code(&output)?, text(&output)))
}

/// Runs a command that prints JSON, and demands its exit code.
pub(crate) fn json(args: &[&str], data_dir: &Path, expected: i32) -> Result<Value> {
    let output = command(args, data_dir)?.output().context("running taffrail")?;
    ensure!(code(&output)? == expected, "{args:?} ended with {}: {}", output.status, text(&output));
    serde_json::from_slice(&output.stdout).with_context(|| text(&output))
}

fn code(output: &Output) -> Result<i32> {
    output.status.code().context("an exit code")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
