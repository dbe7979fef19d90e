//! The other registry's files, read with suspicion: `docker/registry/v2` as distribution lays it out.
//!
//! ```text
//! blobs/<algorithm>/<first two digits>/<digits>/data
//! repositories/<name>/_manifests/revisions/<algorithm>/<digits>/link
//! repositories/<name>/_manifests/tags/<tag>/current/link
//! repositories/<name>/_layers/<algorithm>/<digits>/link
//! ```
//!
//! What must stay true: nothing outside of the tree is read, so that no symbolic link in it is followed; nothing that is no regular file
//! is read from, or waited for; a link is read up to a bound.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{self, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use taffrail_blobstore::Digest;

/// Longest link in bytes: a SHA-512 digest with its algorithm has 135.
const LINK_BYTES_MAX: u64 = 256;

/// Where a tree may begin below the folder that was named.
const ROOTS: [&str; 3] = ["docker/registry/v2", "registry/v2", "."];

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    path: PathBuf,
}

/// What is wrong with something in the tree.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Flaw {
    /// It is not there.
    #[error("is missing")]
    Missing,
    /// It, or a folder on the way to it, is a symbolic link.
    #[error("is a symbolic link, or lies behind one; links are not followed")]
    Symlink,
    /// A folder, a device, a pipe.
    #[error("is no regular file")]
    NotAFile,
    /// A link of too many bytes.
    #[error("has {0} bytes; a link has at most {LINK_BYTES_MAX}")]
    TooLong(u64),
    /// A link that holds something else.
    #[error("holds no digest: {0}")]
    NoDigest(String),
    /// A link under the name of another digest.
    #[error("names {0}, not what its folder is called")]
    OtherDigest(Digest),
    /// The operating system.
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

impl From<Errno> for Flaw {
    fn from(error: Errno) -> Flaw {
        match error {
            Errno::NOENT | Errno::NOTDIR => Flaw::Missing,
            Errno::LOOP => Flaw::Symlink,
            other => Flaw::Io(other.into()),
        }
    }
}

/// A name in a folder.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As text; what is no UTF-8 is shown with replacement characters.
    pub(crate) name: String,
    /// Whether the name is what it is shown as.
    pub(crate) is_text: bool,
    pub(crate) kind: FileType,
}

impl Tree {
    /// Opens the tree in `dir`, or below it. `dir` may be a symbolic link, which whoever named it meant; what lies below may not.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Tree> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for below in ROOTS {
            let path = if below == "." { dir.to_path_buf() } else { dir.join(below) };
            let opened = fs::open(dir, flags, Mode::empty());
            let above =
                opened.map_err(io::Error::from).with_context(|| format!("cannot open {}", dir.display()))?;
            let root = if below == "." { Ok(above) } else { walk(&above, below, flags) };
            let found = root.and_then(|root| {
                let tree = Tree { root, path: path.clone() };
                tree.folder("repositories").map(|_| tree)
            });
            match found {
                Ok(tree) => return Ok(tree),
                Err(Flaw::Missing) => {}
                Err(flaw) => bail!("{}/repositories {flaw}; name the folder that holds it", path.display()),
            }
        }
        bail!(
            "{0} holds no registry: there is no folder {0}/docker/registry/v2/repositories (nor registry/v2/repositories, nor \
             repositories)",
            dir.display()
        );
    }

    /// Where it begins.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The names in a folder, in their order; none when there is no such folder.
    pub(crate) fn names(&self, path: &str) -> Result<Vec<Entry>, Flaw> {
        let folder = match self.folder(path) {
            Err(Flaw::Missing) => return Ok(Vec::new()),
            opened => opened?,
        };
        let mut entries = Vec::new();
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let bytes = entry.file_name().to_bytes();
            if matches!(bytes, b"." | b"..") {
                continue;
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                let stat = fs::statat(&folder, entry.file_name(), fs::AtFlags::SYMLINK_NOFOLLOW)?;
                kind = FileType::from_raw_mode(stat.st_mode);
            }
            let name = OsStr::from_bytes(bytes);
            entries.push(Entry {
                name: name.to_string_lossy().into_owned(),
                is_text: name.to_str().is_some(),
                kind,
            });
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// The digest in a link.
    pub(crate) fn link(&self, path: &str) -> Result<Digest, Flaw> {
        let (file, len_bytes) = self.file(path)?;
        if len_bytes > LINK_BYTES_MAX {
            return Err(Flaw::TooLong(len_bytes));
        }
        let mut text = Vec::new();
        file.take(LINK_BYTES_MAX).read_to_end(&mut text).map_err(Flaw::Io)?;
        let text = String::from_utf8_lossy(&text);
        Digest::parse(text.trim_end()).map_err(|error| Flaw::NoDigest(error.to_string()))
    }

    /// The digest in a link below a folder that is called as the digest; nothing when there is no link (any more).
    pub(crate) fn named_link(&self, path: &str, digest: &Digest) -> Result<Option<()>, Flaw> {
        match self.link(path) {
            Ok(found) if found == *digest => Ok(Some(())),
            Ok(found) => Err(Flaw::OtherDigest(found)),
            Err(Flaw::Missing) => Ok(None),
            Err(flaw) => Err(flaw),
        }
    }

    /// The bytes of a blob, and how many there are.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<(File, u64), Flaw> {
        self.file(&blob_path(digest))
    }

    fn folder(&self, path: &str) -> Result<OwnedFd, Flaw> {
        self.walk(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn file(&self, path: &str) -> Result<(File, u64), Flaw> {
        // A pipe that nobody writes to would be waited for.
        let file = match self.walk(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Err(Flaw::Io(error)) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
                return Err(Flaw::NotAFile);
            }
            opened => File::from(opened?),
        };
        let metadata = file.metadata().map_err(Flaw::Io)?;
        if metadata.is_file() { Ok((file, metadata.len())) } else { Err(Flaw::NotAFile) }
    }

    fn walk(&self, path: &str, last: OFlags) -> Result<OwnedFd, Flaw> {
        walk(&self.root, path, last)
    }
}

/// Opens what lies at a path, step by step, so that a symbolic link in the place of a folder is found as well.
fn walk(root: &OwnedFd, path: &str, last: OFlags) -> Result<OwnedFd, Flaw> {
    let mut held: Option<OwnedFd> = None;
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_some() { OFlags::PATH | OFlags::DIRECTORY } else { last };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = held.as_ref().unwrap_or(root);
        let opened = match fs::openat(folder, part, flags, Mode::empty()) {
            // With O_DIRECTORY a symbolic link is said to be no folder.
            Err(Errno::NOTDIR) if is_symlink(folder, part) => return Err(Flaw::Symlink),
            opened => opened?,
        };
        held = Some(opened);
    }
    held.ok_or(Flaw::Missing)
}

fn is_symlink(folder: &OwnedFd, name: &str) -> bool {
    fs::statat(folder, name, fs::AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

/// Where a blob's bytes are, relative to the tree.
pub(crate) fn blob_path(digest: &Digest) -> String {
    let encoded = digest.encoded();
    format!("blobs/{}/{}/{encoded}/data", digest.algorithm().name(), encoded.get(..2).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use taffrail_blobstore::Algorithm;

    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("docker/registry/v2/repositories/app")).unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        (dir, tree)
    }

    #[test]
    fn a_tree_is_found_from_above_and_from_itself_and_anything_else_is_refused() {
        let (dir, _) = tree();
        for below in ["docker", "docker/registry/v2"] {
            Tree::open(&dir.path().join(below)).unwrap();
        }
        let error = Tree::open(&dir.path().join("docker/registry/v2/repositories")).unwrap_err();
        assert!(error.to_string().contains("holds no registry"), "{error}");
        assert!(Tree::open(&dir.path().join("nowhere")).is_err());
    }

    /// `docker`, `registry` and `v2` were followed wherever they led.
    #[test]
    fn a_tree_behind_a_symbolic_link_is_refused_unless_it_was_named() {
        let (dir, _) = tree();
        let at = |name: &str| dir.path().join(name);
        for name in ["a", "b/registry", "c/docker/registry", "d"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        let link = |from: &str, to: &str| std::os::unix::fs::symlink(at(from), at(to)).unwrap();
        link("docker", "a/docker");
        link("docker/registry/v2", "b/registry/v2");
        link("docker/registry/v2", "c/docker/registry/v2");
        link("docker/registry/v2/repositories", "d/repositories");
        for name in ["a", "b", "c", "d"] {
            let error = Tree::open(&at(name)).unwrap_err().to_string();
            assert!(error.contains("symbolic link"), "{name}: {error}");
        }
        link("docker", "named");
        Tree::open(&at("named")).unwrap();
    }

    #[test]
    fn a_link_is_a_digest_in_a_small_regular_file_and_nothing_else() {
        let (_dir, tree) = tree();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let at = |name: &str| tree.path().join("repositories/app").join(name);
        std::fs::write(at("good"), digest.to_string()).unwrap();
        std::fs::write(at("long"), vec![b'a'; 1 << 20]).unwrap();
        std::fs::write(at("empty"), "").unwrap();
        std::fs::write(at("noise"), [0xff, 0, 7]).unwrap();
        std::os::unix::fs::symlink(at("good"), at("symlink")).unwrap();
        std::os::unix::fs::symlink(at(""), at("loop")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        fs::mknodat(fs::CWD, at("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let link = |name: &str| tree.link(&format!("repositories/app/{name}"));
        assert_eq!(link("good").unwrap(), digest);
        assert!(matches!(link("long"), Err(Flaw::TooLong(_))));
        assert!(matches!(link("empty"), Err(Flaw::NoDigest(_))));
        assert!(matches!(link("noise"), Err(Flaw::NoDigest(_))));
        assert!(matches!(link("symlink"), Err(Flaw::Symlink)));
        assert!(matches!(link("loop/good"), Err(Flaw::Symlink)));
        assert!(matches!(link("folder"), Err(Flaw::NotAFile)));
        assert!(matches!(link("pipe"), Err(Flaw::NotAFile)));
        assert!(matches!(link("absent"), Err(Flaw::Missing)));
    }
}
