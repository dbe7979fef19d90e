//! Files that replace others: written under a new name, flushed, and only then put in the place of the old one, which is kept.
//!
//! What must stay true: at every moment each name stands for the old file or for the whole new one, and the old one stays under
//! `damaged/`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Where what was replaced is kept.
pub(crate) const KEPT_FOLDER: &str = "damaged";

/// Ending of a file that is not whole yet. The engine knows no such name.
const UNFINISHED: &str = ".repair";

/// The store belongs to its user alone (as `disk::threads` has it).
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// Unit of copying, in bytes.
const COPY_BYTES: usize = 1024 * 1024;

/// The new form of a file.
#[derive(Debug, Default)]
pub(crate) struct NewFile {
    /// Relative to the store.
    pub(crate) name: String,
    /// Length of the file at least, in bytes.
    pub(crate) len_bytes: u64,
    /// What lies where, over what the old file has.
    pub(crate) overlays: Vec<(u64, Vec<u8>)>,
}

/// The store's folder, and the folder in it for what this run replaces.
pub(crate) struct Files {
    root: PathBuf,
    kept: PathBuf,
}

impl Files {
    /// `label` names this run's folder under `damaged/`.
    pub(crate) fn new(root: &Path, label: &str) -> Files {
        Files { root: root.to_owned(), kept: root.join(KEPT_FOLDER).join(label) }
    }

    /// Puts a new form of a file in its place; keeps the old one, when there is one.
    pub(crate) fn put(&self, new: &NewFile) -> io::Result<()> {
        let path = self.root.join(&new.name);
        let unfinished = self.root.join(format!("{}{UNFINISHED}", new.name));
        // Left over from a run that was interrupted.
        remove_if_there(&unfinished)?;
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(&unfinished)?;
        match File::open(&path) {
            Ok(mut old) => copy(&mut old, &mut file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if file.metadata()?.len() < new.len_bytes {
            file.set_len(new.len_bytes)?;
        }
        for (offset_bytes, bytes) in &new.overlays {
            file.write_all_at(bytes, *offset_bytes)?;
        }
        file.sync_all()?;
        drop(file);
        self.keep(&new.name)?;
        fs::rename(&unfinished, &path)?;
        sync_folder(parent(&path))
    }

    /// Takes a file away, and keeps it.
    pub(crate) fn set_aside(&self, name: &str) -> io::Result<()> {
        self.keep(name)?;
        let path = self.root.join(name);
        remove_if_there(&path)?;
        sync_folder(parent(&path))
    }

    /// Gives the file a second name under `damaged/`, or copies it where the file system has no links.
    fn keep(&self, name: &str) -> io::Result<()> {
        let (path, kept) = (self.root.join(name), self.kept.join(name));
        if !path.exists() {
            return Ok(());
        }
        let folder = parent(&kept);
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        match fs::hard_link(&path, &kept) {
            Ok(()) => {}
            // The first form is the one to keep.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => {
                let mut copied =
                    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&kept)?;
                copy(&mut File::open(&path)?, &mut copied)?;
                copied.sync_all()?;
            }
        }
        for folder in folder.ancestors().take_while(|folder| folder.starts_with(&self.root)) {
            sync_folder(folder)?;
        }
        Ok(())
    }

    /// Where what was replaced is kept.
    pub(crate) fn kept(&self) -> &Path {
        &self.kept
    }
}

/// Copies bytes rather than blocks: the copy must not share what is bad in the original.
fn copy(from: &mut File, to: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            // Holes stay holes: a log segment is reserved long before it is full.
            len if buffer[..len].iter().all(|byte| *byte == 0) => {
                let end = to.seek(SeekFrom::Current(i64::try_from(len).unwrap_or(0)))?;
                to.set_len(end)?;
            }
            len => to.write_all(&buffer[..len])?,
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
