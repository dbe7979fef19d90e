//! The data directory: what lies where in it, and that it belongs to us alone.
//!
//! ```text
//! DIR/store/                    the storage engine (docs/format.md)
//! DIR/catalog/taffrail.db       SQLite: names, users, projects
//! DIR/keys/                     token signing keys
//! DIR/tls/                      a self-made certificate
//! DIR/initial-admin-password    until somebody has read it
//! DIR/control.sock              a running server, for `taffrail backup`
//! ```
//!
//! What must stay true: files are made 0600 and folders 0700; a directory that others may write to is refused (S-113). What
//! holds secrets and is open to others all the same, as a restore leaves it that kept no modes, is closed before it is used:
//! the database makes its further files with the mode of the first one.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use taffrail_blobstore::disk::threads::require_own;

/// Bits of a mode by which somebody else may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Bits of a mode by which somebody else may do anything.
const OPEN_TO_OTHERS: u32 = 0o077;
/// Bits of a mode by which anybody may read.
const OPEN_TO_ALL: u32 = 0o007;

/// Why the data directory is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DataDirError {
    /// Cannot be made or looked at.
    #[error("cannot use the data directory {path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Others may write to it.
    #[error(
        "the data directory {path} has mode {mode:04o}: others may write to it. Make it yours alone: chmod 700 {path}"
    )]
    Writable {
        /// Which.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Root was to work in the directory of another user.
    #[error("the data directory {0}")]
    Theirs(io::Error),
    /// There is nothing in it.
    #[error("{path} holds no registry; name another with --data-dir")]
    NoRegistry {
        /// Which.
        path: String,
    },
    /// A private file that all may read.
    #[error("the private key {path} has mode {mode:04o}: everybody may read it. chmod 600 {path}")]
    KeyOpen {
        /// Which.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
}

/// A data directory that has been looked at.
#[derive(Debug, Clone)]
pub(crate) struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Opens the directory, or makes it with its parents.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub(crate) fn open_or_create(root: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io { path: root.display().to_string(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
        let dir = Self::open(root)?;
        // After the look: nothing is made in a directory that is refused.
        for folder in ["catalog", "keys"] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir.root.join(folder))
                .map_err(failed)?;
        }
        Ok(dir)
    }

    /// Opens the directory of a registry, for a command beside the server or in its place.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub(crate) fn open_registry(root: &Path) -> Result<Self, DataDirError> {
        let dir = Self::open_own(root)?;
        if dir.database().exists() {
            Ok(dir)
        } else {
            Err(DataDirError::NoRegistry { path: dir.root.display().to_string() })
        }
    }

    /// Opens an existing directory that is not another user's.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub(crate) fn open_own(root: &Path) -> Result<Self, DataDirError> {
        Self::refuse_theirs(root)?;
        Self::open(root)
    }

    /// Refuses a directory that is there and another user's, when we are root.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub(crate) fn refuse_theirs(root: &Path) -> Result<(), DataDirError> {
        if root.exists() { require_own(root).map_err(DataDirError::Theirs) } else { Ok(()) }
    }

    /// Opens an existing directory, and takes from others what they may do with the secrets in it.
    ///
    /// # Errors
    /// See [`DataDirError`].
    pub(crate) fn open(root: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io { path: root.display().to_string(), source };
        let root = root.canonicalize().map_err(failed)?;
        let metadata = fs::metadata(&root).map_err(failed)?;
        if !metadata.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & WRITABLE_BY_OTHERS != 0 {
            return Err(DataDirError::Writable { path: root.display().to_string(), mode });
        }
        let dir = Self { root };
        dir.close_to_others()?;
        Ok(dir)
    }

    /// Folders first: what is made or moved in one that is closed is closed, too. What a symbolic link leads to is somebody else's
    /// business: root may serve a directory that another user owns.
    fn close_to_others(&self) -> Result<(), DataDirError> {
        let database = self.database();
        let beside = |suffix: &str| {
            let mut path = database.as_os_str().to_owned();
            path.push(suffix);
            PathBuf::from(path)
        };
        let mut paths = ["catalog", "keys", "store", "tls"].map(|name| self.root.join(name)).to_vec();
        if !self.root.join("catalog").is_symlink() {
            paths.extend([beside(""), beside("-wal"), beside("-shm")]);
        }
        paths.push(self.initial_admin_password());
        for path in paths {
            close(&path).map_err(|source| DataDirError::Io { path: path.display().to_string(), source })?;
        }
        Ok(())
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The storage engine's folder.
    pub(crate) fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// The catalog's file; its folder is made with the directory.
    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("catalog/taffrail.db")
    }

    /// The folder of the token signing keys.
    pub(crate) fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// The folder of the self-made certificate.
    pub(crate) fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }

    /// The socket by which a running server is controlled.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// The file of the first password.
    pub(crate) fn initial_admin_password(&self) -> PathBuf {
        self.root.join("initial-admin-password")
    }
}

/// Takes from others what they may do with a file or folder, if it is there and is one.
fn close(path: &Path) -> io::Result<()> {
    let open_to_others = |metadata: &fs::Metadata| metadata.permissions().mode() & OPEN_TO_OTHERS != 0;
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => {
            if fs::metadata(path).is_ok_and(|found| open_to_others(&found)) {
                tracing::warn!(path = %path.display(), "leads to what is open to others, who may read secrets in it");
            }
            return Ok(());
        }
        Ok(found) if (found.is_file() || found.is_dir()) && open_to_others(&found) => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => return Ok(()),
    }
    // By a handle: the name may be a link by now.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let handle = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let mode = handle.metadata()?.permissions().mode() & 0o7777;
    let closed = mode & !OPEN_TO_OTHERS;
    handle.set_permissions(fs::Permissions::from_mode(closed))?;
    tracing::warn!(
        path = %path.display(),
        mode = format_args!("{mode:04o}"),
        now = format_args!("{closed:04o}"),
        "was open to others, who may have read secrets in it; closed to them"
    );
    Ok(())
}

/// Writes a file that only we may read, whole or not at all: to a neighbour first, synced, then renamed.
///
/// # Errors
/// Whatever the operating system says.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut neighbour = path.as_os_str().to_owned();
    neighbour.push(".new");
    let neighbour = PathBuf::from(neighbour);
    // A leftover of a crash may have another mode; a mode is given at creation only.
    match fs::remove_file(&neighbour) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&neighbour)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&neighbour, path)?;
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Refuses a private key that everybody on the machine may read. Its group may: certificates are often shared that way.
///
/// # Errors
/// See [`DataDirError`].
pub(crate) fn check_key_mode(path: &Path) -> Result<(), DataDirError> {
    let metadata =
        fs::metadata(path).map_err(|source| DataDirError::Io { path: path.display().to_string(), source })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OPEN_TO_ALL != 0 {
        return Err(DataDirError::KeyOpen { path: path.display().to_string(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn s_113_a_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o777, 0o770, 0o720, 0o702] {
            chmod(dir.path(), mode);
            let error = DataDir::open(dir.path()).unwrap_err();
            assert!(matches!(error, DataDirError::Writable { .. }), "{mode:o}: {error}");
        }
        for mode in [0o700, 0o750, 0o755] {
            chmod(dir.path(), mode);
            DataDir::open(dir.path()).unwrap();
        }
    }

    #[test]
    fn what_a_restore_left_open_to_others_is_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        chmod(dir.path(), 0o755);
        let folders = ["catalog", "keys", "store", "tls"].map(|name| dir.path().join(name));
        for folder in &folders {
            fs::create_dir(folder).unwrap();
            chmod(folder, 0o755);
        }
        let files = ["catalog/taffrail.db", "catalog/taffrail.db-wal", "initial-admin-password"]
            .map(|name| dir.path().join(name));
        for file in &files {
            fs::write(file, "secret").unwrap();
            chmod(file, 0o664);
        }
        for open in [DataDir::open, DataDir::open_or_create] {
            open(dir.path()).unwrap();
            let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(folders.each_ref().map(mode), [0o700; 4]);
            assert_eq!(files.each_ref().map(mode), [0o600; 3]);
            assert_eq!(fs::read(&files[0]).unwrap(), b"secret");
            chmod(&folders[0], 0o770);
            chmod(&files[0], 0o640);
        }
    }

    /// Root took the permissions of whatever a link in the directory led to.
    #[test]
    fn what_a_link_in_the_directory_leads_to_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (data, outside) = (dir.path().join("data"), dir.path().join("outside"));
        for folder in [&data, &outside] {
            fs::create_dir(folder).unwrap();
            chmod(folder, 0o755);
        }
        let files = ["taffrail.db", "password"].map(|name| outside.join(name));
        for file in &files {
            fs::write(file, "theirs").unwrap();
            chmod(file, 0o644);
        }
        std::os::unix::fs::symlink(&outside, data.join("catalog")).unwrap();
        std::os::unix::fs::symlink(&files[1], data.join("initial-admin-password")).unwrap();
        DataDir::open(&data).unwrap();
        let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&outside), files.each_ref().map(mode)), (0o755, [0o644; 2]));
    }

    #[test]
    fn s_113_a_key_that_everybody_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        fs::write(&key, "k").unwrap();
        chmod(&key, 0o644);
        assert!(matches!(check_key_mode(&key), Err(DataDirError::KeyOpen { mode: 0o644, .. })));
        for mode in [0o600, 0o640, 0o400] {
            chmod(&key, mode);
            check_key_mode(&key).unwrap();
        }
    }

    #[test]
    fn a_private_file_is_private_also_when_a_crash_left_its_neighbour_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(dir.path().join("secret.new"), "old").unwrap();
        chmod(&dir.path().join("secret.new"), 0o644);
        write_private(&path, b"new").unwrap();
        write_private(&path, b"newer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_directory_is_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        DataDir::open_or_create(&root).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
