//! A folder of backups, and what is written on each: `TIME/backup.json`, last of all.
//!
//! What must stay true: a folder without that file, or called `….partial`, is no backup. It is written when everything else is
//! durable, and the folder gets its name after it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use indicatif::BinaryBytes;
use serde_json::{Value, json};

/// What makes a folder a backup.
pub(crate) const MARKER: &str = "backup.json";
/// End of the name of one that is being made.
const PARTIAL: &str = ".partial";
/// Version of the layout.
const FORMAT: u64 = 1;

/// A folder of backups, locked against others who would make one in it.
pub(crate) struct Shelf {
    path: PathBuf,
    _lock: File,
}

/// What is written on a backup.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Marker {
    /// When it was begun, RFC 3339.
    pub(crate) made: String,
    pub(crate) version: String,
    pub(crate) uuid: String,
    pub(crate) next_lsn: u64,
    pub(crate) mode: String,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) catalog_sha256: String,
    pub(crate) seconds: f64,
}

impl Shelf {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// When another backup is being made in it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Shelf> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        let lock = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        lock.try_lock().with_context(|| format!("another backup is being made in {}", path.display()))?;
        Ok(Shelf { path: path.to_path_buf(), _lock: lock })
    }

    /// Removes what interrupted backups left. Nobody else is at it: we have the lock.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub(crate) fn sweep(&self) -> anyhow::Result<()> {
        for name in names(&self.path)? {
            if is_time(name.strip_suffix(PARTIAL).unwrap_or_default()) {
                let path = self.path.join(&name);
                fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Makes the folder of a backup that is being made; gives it, and what it is to be called.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub(crate) fn begin(&self, time: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
        // Two in a second.
        for number in 0..100 {
            let name = if number == 0 { time.to_owned() } else { format!("{time}-{number}") };
            let (partial, whole) = (self.path.join(format!("{name}{PARTIAL}")), self.path.join(&name));
            if !whole.exists() {
                fs::DirBuilder::new()
                    .mode(0o700)
                    .create(&partial)
                    .with_context(|| format!("cannot make {}", partial.display()))?;
                return Ok((partial, whole));
            }
        }
        bail!("too many backups of {time} in {}", self.path.display())
    }

    /// Gives a backup its name, durably.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub(crate) fn finish(&self, partial: &Path, whole: &Path) -> io::Result<()> {
        fs::rename(partial, whole)?;
        File::open(&self.path)?.sync_all()
    }
}

impl Marker {
    /// As it is written.
    pub(crate) fn json(&self) -> Value {
        json!({
            "format": FORMAT,
            "made": self.made,
            "taffrail": self.version,
            "store_uuid": self.uuid,
            "next_lsn": self.next_lsn,
            "mode": self.mode,
            "files": self.files,
            "bytes": self.bytes,
            "catalog_sha256": self.catalog_sha256,
            "seconds": self.seconds,
        })
    }

    /// What is written on a backup.
    ///
    /// # Errors
    /// When it is none, or of a later release.
    pub(crate) fn read(backup: &Path) -> anyhow::Result<Marker> {
        let path = backup.join(MARKER);
        let text = fs::read(&path)
            .with_context(|| format!("{} is no whole backup: it has no {MARKER}", backup.display()))?;
        let value: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        let format = value["format"].as_u64();
        ensure!(format == Some(FORMAT), "{} is of another release ({format:?})", path.display());
        let missing = || format!("{} lacks something", path.display());
        let text = |name: &str| value[name].as_str().map(str::to_owned).with_context(missing);
        let number = |name: &str| value[name].as_u64().with_context(missing);
        Ok(Marker {
            made: text("made")?,
            version: text("taffrail")?,
            uuid: text("store_uuid")?,
            next_lsn: number("next_lsn")?,
            mode: text("mode")?,
            files: number("files")?,
            bytes: number("bytes")?,
            catalog_sha256: text("catalog_sha256")?,
            seconds: value["seconds"].as_f64().with_context(missing)?,
        })
    }
}

/// The backups in a folder, oldest first: their names and, of whole ones, what is written on them.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn list(path: &Path) -> anyhow::Result<Vec<(String, Option<Marker>)>> {
    let mut found = Vec::new();
    for name in names(path)? {
        let time = name.strip_suffix(PARTIAL).unwrap_or(&name);
        if is_time(time) {
            let marker = if time == name { Marker::read(&path.join(&name)).ok() } else { None };
            found.push((name, marker));
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

/// The list as one document.
pub(crate) fn list_json(path: &Path, found: &[(String, Option<Marker>)]) -> Value {
    let backups: Vec<Value> = found
        .iter()
        .map(|(name, marker)| {
            let mut value = marker.as_ref().map_or_else(|| json!({}), Marker::json);
            value["name"] = json!(name);
            value["whole"] = json!(marker.is_some());
            value
        })
        .collect();
    json!({"folder": path.display().to_string(), "backups": backups})
}

/// The list for people.
pub(crate) fn list_text(found: &[(String, Option<Marker>)]) -> String {
    if found.is_empty() {
        return "no backups\n".to_owned();
    }
    let line = |(name, marker): &(String, Option<Marker>)| match marker {
        Some(marker) => format!(
            "{name}  {:>12}  {:>9} files  {:<4}  record {}\n",
            BinaryBytes(marker.bytes).to_string(),
            marker.files,
            marker.mode,
            marker.next_lsn
        ),
        None => format!("{name}  not whole\n"),
    };
    found.iter().map(line).collect()
}

/// The backup that a path means: itself, or the newest whole one in it.
///
/// # Errors
/// When it means none.
pub(crate) fn resolve(path: &Path) -> anyhow::Result<PathBuf> {
    if path.join(MARKER).exists() || path.join("store").exists() {
        return Ok(path.to_path_buf());
    }
    let found = list(path)?;
    let newest = found.into_iter().rev().find(|(_, marker)| marker.is_some());
    let (name, _) = newest.with_context(|| format!("{} holds no whole backup", path.display()))?;
    Ok(path.join(name))
}

fn names(path: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// `20261121T164155Z`, and what may follow.
fn is_time(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() >= 16
        && bytes.get(8) == Some(&b'T')
        && bytes.get(15) == Some(&b'Z')
        && bytes[..8].iter().all(u8::is_ascii_digit)
}
