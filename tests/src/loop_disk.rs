//! An ext4 file system on a loop device, with a power switch.
//!
//! [`LoopDisk::cut_power`] asks the file system to stop at once without writing its log (`XFS_IOC_GOINGDOWN` with
//! `NOLOGFLUSH`, which ext4 takes as well): what was not made durable by then is gone, as with the plug pulled. The
//! commit interval is set far beyond a test's length, so that the kernel's own timer does not save what the server
//! forgot to.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::program::Program;
use crate::tools::Tool;

/// What a power cut needs.
pub const NEEDS: [Tool; 5] = [
    Tool::Root,
    Tool::LoopDevice,
    Tool::Program("mkfs.ext4"),
    Tool::Program("mount"),
    Tool::Program("xfs_io"),
];

/// Seconds between the kernel's own commits: longer than any round.
const COMMIT_SECONDS: u32 = 300;

/// Bytes of a block of the file system.
pub const BLOCK_BYTES: u64 = 4096;

/// What [`LoopDisk::make_sharing`] needs.
pub const NEEDS_TO_SHARE: [Tool; 4] =
    [Tool::Root, Tool::LoopDevice, Tool::Program("mkfs.xfs"), Tool::Program("mount")];

/// A mounted loop disk; unmounted and gone when dropped.
#[derive(Debug)]
pub struct LoopDisk {
    dir: TempDir,
    mounted: bool,
}

impl LoopDisk {
    /// Makes and mounts a file system of `mib` MiB.
    ///
    /// # Errors
    /// When the machine does not let us.
    pub fn make(mib: u64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("taffrail-disk-").tempdir()?;
        let mut disk = Self { dir, mounted: false };
        std::fs::File::create(disk.image())?.set_len(mib << 20)?;
        std::fs::create_dir(disk.mount_point())?;
        Program::new("mkfs.ext4")?
            .args(["-q", "-F", "-m", "0", "-b", &BLOCK_BYTES.to_string()])
            .arg(disk.image())
            .succeed()?;
        disk.mount()?;
        Ok(disk)
    }

    /// Makes and mounts a file system on which files can share extents: XFS, which takes 300 MiB at least.
    ///
    /// # Errors
    /// When the machine does not let us.
    pub fn make_sharing(mib: u64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("taffrail-disk-").tempdir()?;
        let mut disk = Self { dir, mounted: false };
        std::fs::File::create(disk.image())?.set_len(mib << 20)?;
        std::fs::create_dir(disk.mount_point())?;
        Program::new("mkfs.xfs")?.args(["-q", "-f", "-m", "reflink=1"]).arg(disk.image()).succeed()?;
        Program::new("mount")?
            .args(["-t", "xfs", "-o", "loop"])
            .arg(disk.image())
            .arg(disk.mount_point())
            .succeed()?;
        disk.mounted = true;
        Ok(disk)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// Mounts it; the file system replays its journal.
    ///
    /// # Errors
    /// When the mount fails.
    pub fn mount(&mut self) -> Result<()> {
        Program::new("mount")?
            .args(["-t", "ext4", "-o", &format!("loop,commit={COMMIT_SECONDS}")])
            .arg(self.image())
            .arg(self.mount_point())
            .succeed()?;
        self.mounted = true;
        Ok(())
    }

    /// Stops the file system without letting it write anything more.
    ///
    /// # Errors
    /// When the ioctl is refused.
    pub fn cut_power(&self) -> Result<()> {
        // Without -f the log is not flushed; -x lets xfs_io do it on a file system that is not XFS.
        Program::new("xfs_io")?.args(["-x", "-c", "shutdown"]).arg(self.mount_point()).succeed()?;
        Ok(())
    }

    /// Puts `right` where the image has `wrong`, `offset_bytes` behind the beginning of a block: below the file system and its page
    /// cache, which do not notice.
    ///
    /// # Errors
    /// When the image does not have `wrong` in exactly one such place, or they differ in length.
    pub fn replace(&self, offset_bytes: u64, wrong: &[u8], right: &[u8]) -> Result<()> {
        ensure!(wrong.len() == right.len(), "{} bytes instead of {}", right.len(), wrong.len());
        let file = std::fs::File::options().read(true).write(true).open(self.image())?;
        let (mut places, mut held) = (Vec::new(), vec![0; wrong.len()]);
        for block in 0..file.metadata()?.len() / BLOCK_BYTES {
            let place = block * BLOCK_BYTES + offset_bytes;
            file.read_exact_at(&mut held, place)?;
            if held == wrong {
                places.push(place);
            }
        }
        ensure!(places.len() == 1, "the disk has these bytes in {} places", places.len());
        file.write_all_at(right, places[0])?;
        Ok(file.sync_all()?)
    }

    /// Unmounts it.
    ///
    /// # Errors
    /// When it is still in use.
    pub fn unmount(&mut self) -> Result<()> {
        if self.mounted {
            Program::new("umount")?.arg(self.mount_point()).succeed().context("unmounting the loop disk")?;
            self.mounted = false;
        }
        Ok(())
    }

    /// Checks the unmounted file system, so that a loss is the server's and not the file system's.
    ///
    /// # Errors
    /// When `fsck` finds damage.
    pub fn check(&self) -> Result<()> {
        Program::new("fsck.ext4")?.args(["-n", "-f"]).arg(self.image()).succeed()?;
        Ok(())
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            crate::docker::unmount_below(Path::new(&self.mount_point()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_cut_keeps_what_was_synced_and_loses_the_rest() -> Result<()> {
        if !crate::tools::present(&NEEDS)? {
            return Ok(());
        }
        let mut disk = LoopDisk::make(64)?;
        let (synced, unsynced) = (disk.mount_point().join("synced"), disk.mount_point().join("unsynced"));
        let mut file = std::fs::File::create(&synced)?;
        file.write_all(b"kept")?;
        file.sync_all()?;
        std::fs::write(&unsynced, b"lost")?;
        drop(file);
        disk.cut_power()?;
        disk.unmount()?;
        disk.mount()?;
        assert_eq!(std::fs::read(&synced)?, b"kept");
        assert!(!unsynced.exists(), "the cut lost nothing, so it cuts nothing");
        disk.unmount()?;
        disk.check()
    }
}
