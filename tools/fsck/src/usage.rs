//! What the files of a store take on the disk: their lengths, and what the file system gave them.
//!
//! It looks at names and lengths alone, so that it needs neither the store's lock nor a sound store.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::iter::Sum;
use std::ops::Add;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::{Value, json};

/// Unit of `st_blocks`, in bytes, whatever the file system's own is (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// What one or several files take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) files: u64,
    /// Lengths.
    pub(crate) len_bytes: u64,
    /// What the file system gave them: more than the length where space is reserved, less where there are holes.
    pub(crate) allocated_bytes: u64,
}

impl Add for Used {
    type Output = Used;

    fn add(self, other: Used) -> Used {
        Used {
            files: self.files + other.files,
            len_bytes: self.len_bytes + other.len_bytes,
            allocated_bytes: self.allocated_bytes + other.allocated_bytes,
        }
    }
}

impl Sum for Used {
    fn sum<I: Iterator<Item = Used>>(parts: I) -> Used {
        parts.fold(Used::default(), Add::add)
    }
}

impl Used {
    pub(crate) fn json(&self) -> Value {
        json!({ "files": self.files, "bytes": self.len_bytes, "allocated_bytes": self.allocated_bytes })
    }
}

/// Every file below a store's folder, by its name relative to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    files: BTreeMap<String, Used>,
}

impl Usage {
    /// Looks at every file. One that goes meanwhile is passed over: a server may be running.
    pub(crate) fn take(root: &Path) -> io::Result<Usage> {
        let mut usage = Usage::default();
        let mut open = vec![String::new()];
        while let Some(folder) = open.pop() {
            let entries = match fs::read_dir(root.join(&folder)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.is_empty() => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                let name = format!("{folder}{}", entry.file_name().to_string_lossy());
                let metadata = match fs::symlink_metadata(entry.path()) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    metadata => metadata?,
                };
                if metadata.is_dir() {
                    open.push(format!("{name}/"));
                } else {
                    let allocated_bytes = metadata.blocks().saturating_mul(BLOCK_BYTES);
                    usage.files.insert(name, Used { files: 1, len_bytes: metadata.len(), allocated_bytes });
                }
            }
        }
        Ok(usage)
    }

    /// What one file takes; nothing when there is none.
    pub(crate) fn of(&self, name: &str) -> Used {
        self.files.get(name).copied().unwrap_or_default()
    }

    /// What the files take whose name `wanted` says.
    pub(crate) fn sum(&self, wanted: impl Fn(&str) -> bool) -> Used {
        self.files.iter().filter(|(name, _)| wanted(name)).map(|(_, used)| *used).sum()
    }

    /// What the files directly and indirectly in a folder take.
    pub(crate) fn below(&self, folder: &str) -> Used {
        self.sum(|name| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Names of the files in a folder, relative to the store.
    pub(crate) fn names_below<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a str> {
        self.files
            .keys()
            .map(String::as_str)
            .filter(move |name| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
    }

    /// What all files take.
    pub(crate) fn total(&self) -> Used {
        self.files.values().copied().sum()
    }
}
