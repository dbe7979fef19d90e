//! `taffrail restore`: a backup becomes a data directory.
//!
//! What must stay true: nothing that is there is written over; the superblock comes last, so that a restore that was interrupted leaves no
//! store that opens.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use indicatif::BinaryBytes;
use serde_json::json;
use taffrail_blobstore::format::SUPERBLOCK_NAMES;

use super::carrier::Carrier;
use super::shelf::{self, MARKER, Marker};
use super::source::Pulse;
use super::verify::{self, Verified};
use super::{EXIT_FAILED, say, sha256_of};
use crate::cli::{Carry, Restore};
use crate::config::Environment;
use crate::data_dir::DataDir;
use crate::progress::Progress;

/// Exit code when the restored registry lacks something.
const EXIT_DAMAGED: u8 = 2;

/// Restores a backup.
pub(crate) fn run(options: &Restore, environment: &Environment) -> ExitCode {
    match restore(options, environment) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(verified)) if verified.is_whole() => ExitCode::SUCCESS,
        Ok(Some(_)) => ExitCode::from(EXIT_DAMAGED),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "taffrail: restore: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn restore(options: &Restore, environment: &Environment) -> anyhow::Result<Option<Verified>> {
    let config = options.place.load(environment)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let target = &config.storage.data_dir;
    if target.exists() {
        look_at(target)?;
    }
    let backup = shelf::resolve(&options.dir)?;
    let marker = Marker::read(&backup)?;
    let catalog = backup.join("catalog/taffrail.db");
    let actual = sha256_of(&catalog).with_context(|| catalog.display().to_string())?;
    ensure!(
        actual == marker.catalog_sha256,
        "{} is damaged: it is not what was written; take another backup",
        catalog.display()
    );
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(target)
        .with_context(|| format!("cannot make {}", target.display()))?;
    let dir = look_at(target)?;
    let begun = Instant::now();
    let progress = Progress::new(options.says.quiet);
    progress.begin("restore", marker.bytes);
    let mut carrier = Carrier::new(options.mode, &progress, Pulse::default());
    carry(&backup, target, options.verify, &mut carrier)?;
    let took = begun.elapsed();
    let way = match carrier.way {
        Carry::Link => "link",
        Carry::Copy => "copy",
    };
    let (files, bytes) = (carrier.files, carrier.bytes);
    let verified =
        if options.verify { Some(verify::verify(&dir, &config, &marker, &progress)?) } else { None };
    progress.end();
    if options.says.json {
        let document = json!({
            "backup": backup.display().to_string(),
            "data_dir": dir.root().display().to_string(),
            "made": marker.made,
            "mode": way,
            "files": files,
            "bytes": bytes,
            "seconds": took.as_secs_f64(),
            "verified": verified.as_ref().map(Verified::json),
        });
        say(&format!("{document:#}\n"));
    } else {
        let mut text = format!(
            "{}: restored {} of {} by {way} in {:.1} s\n",
            dir.root().display(),
            backup.display(),
            BinaryBytes(bytes),
            took.as_secs_f64()
        );
        text.push_str(&verified.as_ref().map_or_else(
            || "not verified; `taffrail-fsck check --deep` reads every byte of the store\n".to_owned(),
            Verified::text,
        ));
        say(&text);
    }
    Ok(verified)
}

/// Finds the data directory empty, and nobody else's to write to: before hours of copying, not after them.
fn look_at(target: &Path) -> anyhow::Result<DataDir> {
    let dir = DataDir::open_own(target)?;
    if fs::read_dir(target)?.next().is_some() {
        bail!("{} is not empty; move what is in it away, or name another with --data-dir", target.display());
    }
    Ok(dir)
}

fn carry(backup: &Path, target: &Path, verify: bool, carrier: &mut Carrier<'_>) -> anyhow::Result<()> {
    for folder in ["store/log", "store/solo", "store/index", "catalog", "keys"] {
        carrier.folder(&target.join(folder))?;
    }
    let mut last = Vec::new();
    let mut open = vec![String::new()];
    while let Some(below) = open.pop() {
        let folder = backup.join(&below);
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let (kind, name) = (entry.file_type()?, entry.file_name());
            let name =
                name.to_str().with_context(|| format!("{} has an odd name", entry.path().display()))?;
            let name = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
            // What is verified is the log, not what a checkpoint says of it.
            if kind.is_dir() && !(verify && name == "store/index") {
                open.push(name);
            } else if kind.is_file() && name != MARKER {
                if SUPERBLOCK_NAMES.iter().any(|superblock| name == format!("store/{superblock}")) {
                    last.push(name);
                    continue;
                }
                let (from, to) = (backup.join(&name), target.join(&name));
                let is_sealed = name.starts_with("store/");
                let carried =
                    if is_sealed { carrier.sealed(&from, &to, None) } else { carrier.open(&from, &to) };
                carried.with_context(|| from.display().to_string())?;
            }
        }
    }
    carrier.flush()?;
    for name in last {
        let (from, to) = (backup.join(&name), target.join(&name));
        carrier.open(&from, &to).with_context(|| from.display().to_string())?;
    }
    Ok(carrier.flush()?)
}
