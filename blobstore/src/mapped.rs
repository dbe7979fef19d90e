//! Sealed files in memory: what of a file is there is checked and handed out in place, without a copy.
//!
//! What must stay true: bytes are handed out over one mapping and checked through another ([`crate::disk::mapping`] says why), each
//! time, and only when they are in memory: no thread waits for the disk here. A mapping over which a checksum failed is never used
//! again; the block is then read, and judged, in the ordinary way.

use bytes::Bytes;

use crate::disk::File;
use crate::disk::mapping::Mapping;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, lock};

/// Bytes of all files that are mapped. The system keeps eight bytes for each page that was read through a mapping until the mapping
/// goes, twice here: 128 MiB when all of it was read.
const MAPPED_BYTES_MAX: u64 = 32 << 30;

/// Bytes of files that are mapped in this process.
static MAPPED_BYTES: AtomicU64 = AtomicU64::new(0);

/// The place of a file's mapping, made when it is first asked for.
#[derive(Debug, Default)]
pub(crate) struct Mapped {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Untried,
    Made(Arc<Pair>),
    /// It could not be had, or it was damaged.
    Refused,
}

/// Two mappings of one file.
#[derive(Debug)]
pub(crate) struct Pair {
    checked: Mapping,
    sent: Mapping,
    _share: Share,
}

/// Bytes of [`MAPPED_BYTES_MAX`] that are taken.
#[derive(Debug)]
struct Share(u64);

impl Mapped {
    /// The mapping of the file, unless there can be none.
    pub(crate) fn pair(&self, file: &Arc<dyn File>) -> Option<Arc<Pair>> {
        let mut state = lock(&self.state);
        match &*state {
            State::Made(pair) => return Some(Arc::clone(pair)),
            State::Refused => return None,
            State::Untried => {}
        }
        let pair = Pair::of(&**file).map(Arc::new);
        *state = pair.as_ref().map_or(State::Refused, |pair| State::Made(Arc::clone(pair)));
        pair
    }

    /// Gives the mapping up for good.
    pub(crate) fn give_up(&self) {
        *lock(&self.state) = State::Refused;
    }
}

impl Pair {
    fn of(file: &dyn File) -> Option<Pair> {
        let share = Share::take(file.len_bytes().ok()?)?;
        Some(Pair { checked: file.map()?, sent: file.map()?, _share: share })
    }

    /// Whether the range of the file is in memory.
    pub(crate) fn is_resident(&self, from: usize, len: usize) -> bool {
        from + len <= self.checked.bytes().len() && self.checked.is_resident(from..from + len)
    }

    /// A range of the file that is in memory, to be sent, if `is_intact` says so of what is there.
    pub(crate) fn verified(
        &self,
        from: usize,
        len: usize,
        is_intact: impl FnOnce(&[u8]) -> bool,
    ) -> Option<Bytes> {
        let range = from..from + len;
        // Asked last: the check itself may have met a page that is missing.
        let is_whole = is_intact(self.checked.bytes().get(range.clone())?) && !self.checked.is_damaged();
        is_whole.then(|| self.sent.bytes().slice(range))
    }
}

impl Share {
    fn take(bytes: u64) -> Option<Share> {
        let add = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= MAPPED_BYTES_MAX);
        MAPPED_BYTES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok().map(|_| Share(bytes))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        MAPPED_BYTES.fetch_sub(self.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::threads::ThreadsDisk;
    use crate::disk::{Access, Disk as _};

    fn file(len: u64) -> (tempfile::TempDir, Arc<dyn File>) {
        let dir = tempfile::tempdir().unwrap();
        let file = ThreadsDisk::open(dir.path()).unwrap().create("a", len, Access::Cached).unwrap();
        (dir, file)
    }

    #[test]
    fn what_was_given_up_is_not_mapped_again_and_what_was_handed_out_stays() {
        let (_dir, file) = file(0);
        file.write_at(b"abcdef", 0).unwrap();
        let mapped = Mapped::default();
        let pair = mapped.pair(&file).unwrap();
        assert!(Arc::ptr_eq(&pair, &mapped.pair(&file).unwrap()), "it is made once");
        assert!(pair.is_resident(0, 6) && !pair.is_resident(0, 7));
        let sent = pair.verified(1, 2, |bytes| bytes == b"bc").unwrap();
        assert!(pair.verified(1, 2, |_| false).is_none());
        assert!(pair.verified(5, 2, |_| true).is_none(), "the file is not that long");
        mapped.give_up();
        drop(pair);
        assert!(mapped.pair(&file).is_none());
        assert_eq!(sent, &b"bc"[..]);
    }

    #[test]
    fn no_more_is_mapped_than_the_limit() {
        let (_dir, file) = file(4096);
        let first = Share::take(MAPPED_BYTES_MAX / 2).unwrap();
        assert!(Share::take(MAPPED_BYTES_MAX / 2 + 1).is_none());
        assert!(Share::take(u64::MAX).is_none());
        drop(first);
        assert!(Mapped::default().pair(&file).is_some());
    }
}
