//! The programs under test: those that were named, or those that cargo builds, once per test binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::settings;

/// `taffrail`, the server.
///
/// # Errors
/// When it does not build.
pub fn server() -> Result<&'static Path> {
    static BINARY: Built = OnceLock::new();
    built(&BINARY, settings::server_binary(), "taffrail-server", "taffrail")
}

/// `taffrail-fsck`, the checker of a closed store.
///
/// # Errors
/// When it does not build.
pub fn fsck() -> Result<&'static Path> {
    static BINARY: Built = OnceLock::new();
    built(&BINARY, settings::fsck_binary(), "taffrail-fsck", "taffrail-fsck")
}

type Built = OnceLock<std::result::Result<PathBuf, String>>;

fn built(binary: &'static Built, named: Option<PathBuf>, package: &str, name: &str) -> Result<&'static Path> {
    binary
        .get_or_init(|| match named {
            Some(path) => Ok(path),
            None => build(package, name).map_err(|error| format!("{error:#}")),
        })
        .as_ref()
        .map(PathBuf::as_path)
        .map_err(|text| anyhow!("{text}"))
}

fn build(package: &str, name: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's root")?;
    let output = Command::new("cargo")
        .current_dir(root)
        .args(["build", "--package", package, "--bin", name])
        .args(["--message-format=json-render-diagnostics", "--profile", &settings::build_profile()])
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    if !output.status.success() {
        bail!("{name} does not build");
    }
    // Cargo says where it put the binary; guessing the folder from a profile's name goes wrong for custom ones.
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo named no executable called {name}"))
}
