//! Reading any range of a file past the page cache: after a failed flush, the cache shows what the disk does not hold.
//!
//! What must stay true: nothing is allocated by a length that was read from the disk before it was held against the file's own.

use std::io;
use std::sync::Arc;

use taffrail_blobstore::disk::{Access, DIRECT_ALIGN_BYTES, Disk, File};

const ALIGN: u64 = DIRECT_ALIGN_BYTES as u64;

/// A file that is read in whole, aligned units.
pub(crate) struct Window {
    pub(crate) file: Arc<dyn File>,
    pub(crate) len_bytes: u64,
}

impl Window {
    /// Opens a file for reading; `None` when there is none.
    pub(crate) fn open(disk: &dyn Disk, name: &str, access: Access) -> io::Result<Option<Window>> {
        match disk.open(name, access) {
            Ok(file) => {
                let len_bytes = file.len_bytes()?;
                Ok(Some(Window { file, len_bytes }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The `len` bytes at `offset_bytes`; `None` when the file ends before.
    pub(crate) fn read(&self, offset_bytes: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(end) = offset_bytes.checked_add(len as u64).filter(|end| *end <= self.len_bytes) else {
            return Ok(None);
        };
        let start = offset_bytes / ALIGN * ALIGN;
        let skipped = usize::try_from(offset_bytes - start).unwrap_or(0);
        let aligned_end = end.next_multiple_of(ALIGN);
        if aligned_end > self.len_bytes {
            // The file was cut at an odd length; the disk takes the unaligned read through the page cache.
            let mut bytes = vec![0_u8; len];
            self.file.read_at(&mut bytes, offset_bytes)?;
            return Ok(Some(bytes));
        }
        let wanted = usize::try_from(aligned_end - start).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut memory = vec![0_u8; wanted + DIRECT_ALIGN_BYTES];
        let shift = memory.as_ptr().align_offset(DIRECT_ALIGN_BYTES).min(DIRECT_ALIGN_BYTES);
        self.file.read_at(&mut memory[shift..shift + wanted], start)?;
        memory.copy_within(shift + skipped..shift + skipped + len, 0);
        memory.truncate(len);
        Ok(Some(memory))
    }
}
