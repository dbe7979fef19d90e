//! `taffrail-fsck check` on the store of a server that has ended. What an end by crash leaves is known; anything else is a
//! mistake of the server, or of the checker.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::binary;

/// How the server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It drained and closed its store.
    InOrder,
    /// It was killed, or its disk stopped.
    ByCrash,
}

/// How much of the blobs is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Their checksums.
    Checksums,
    /// Their digests as well (`--deep`).
    Digests,
}

/// What may be found after an end in order, although crashes went before: (severity, kind).
///
/// - `solo-orphan`: the file of an upload that a crash cut short. The first collection takes it, one lease after a start.
/// - `session`: an upload session whose file a power cut took before its first flush. It begins anew, or expires.
const LEFT_IN_ORDER: [(&str, &str); 2] = [("note", "solo-orphan"), ("note", "session")];

/// What may be found right after a crash besides those.
///
/// - `torn-tail`: the batch that was being written. Nobody was told of it.
/// - `segment-unused`: a log segment that was made and not gone over to.
/// - `superblock`: the copy that was being written. The other one is in force.
const LEFT_BY_CRASH: [(&str, &str); 3] =
    [("note", "torn-tail"), ("note", "segment-unused"), ("repairable", "superblock")];

/// What a check went over.
#[derive(Debug, Default)]
pub struct Checked {
    /// Blobs in the store.
    pub blobs: u64,
    /// How often each explained kind of finding was seen.
    pub traces: BTreeMap<String, u64>,
}

/// Checks the store of the server whose data lie in `data_dir`.
///
/// # Errors
/// When the checker does not run to its end, or finds anything that the end does not explain.
pub fn check(data_dir: &Path, ended: Ended, depth: Depth) -> Result<Checked> {
    let mut command = Command::new(binary::fsck()?);
    command.arg("check").arg("--json");
    if depth == Depth::Digests {
        command.arg("--deep");
    }
    let output = command.arg(data_dir.join("store")).output().context("running taffrail-fsck")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&printed)
        .with_context(|| format!("{printed}{}", String::from_utf8_lossy(&output.stderr)))?;
    let findings = report["findings"].as_array().context("findings")?;
    // Whatever it does not say in a finding, such as that neither superblock is readable, is an error.
    ensure!(report["error"].is_null(), "taffrail-fsck: {report:#}");
    let mut checked = Checked {
        blobs: report["totals"]["blobs"].as_u64().context("the number of blobs")?,
        traces: BTreeMap::new(),
    };
    for finding in findings {
        let (severity, kind) = (text(finding, "severity"), text(finding, "kind"));
        let explained = LEFT_IN_ORDER.contains(&(severity, kind))
            || ended == Ended::ByCrash && LEFT_BY_CRASH.contains(&(severity, kind));
        ensure!(explained, "taffrail-fsck, after an end {ended:?}: {report:#}");
        *checked.traces.entry(kind.to_owned()).or_default() += 1;
    }
    ensure!(
        checked.traces.get("superblock").is_none_or(|copies| *copies == 1),
        "one superblock is written at a time: {report:#}"
    );
    Ok(checked)
}

fn text<'a>(finding: &'a Value, field: &str) -> &'a str {
    finding[field].as_str().unwrap_or_default()
}
