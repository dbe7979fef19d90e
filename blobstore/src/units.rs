//! Memory for uploads: buffers of one write each, filled from the network, then hashed and written from where they lie.
//!
//! Memory that is new to a process is dear: the system clears it, and under a hypervisor the first touch of each page costs more than
//! hashing it. So buffers are used again while anybody uploads, and given back when nobody does.
//!
//! What must stay true: an upload holds one buffer that it fills, and those that are under way to the disk or to its hash, which
//! [`crate::solo::IN_FLIGHT_MAX`] and [`crate::lane::HASHING_MAX`] bound.

use crate::buffer::AlignedBuffer;
use crate::disk::{Buffer, Disk};
use crate::solo::WRITE_BYTES;
use crate::sync::{Arc, Mutex, lock};

/// The buffers of a store's uploads.
#[derive(Default)]
pub(crate) struct Units {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lent: usize,
    /// The one used last at the end: it may still be in the processor's cache.
    free: Vec<AlignedBuffer>,
}

/// A buffer of [`WRITE_BYTES`], aligned for direct I/O, and how far it is filled. Dropping it gives it back.
pub(crate) struct Unit {
    // None only while it is dropped.
    buffer: Option<Buffer>,
    len: usize,
    lender: Arc<Units>,
}

impl Units {
    /// An empty unit. Behind its length lies what an earlier upload left.
    pub(crate) fn lend(self: &Arc<Self>, disk: &dyn Disk) -> Unit {
        let used = {
            let mut state = lock(&self.state);
            state.lent += 1;
            state.free.pop()
        };
        let buffer = used.map_or_else(|| disk.lend(WRITE_BYTES), Buffer::of_own);
        Unit { buffer: Some(buffer), len: 0, lender: Arc::clone(self) }
    }

    fn take_back(&self, buffer: Buffer) {
        // What a ring lent goes back to it.
        let buffer = buffer.into_own();
        // Freed after the lock is released.
        let _surplus: Vec<AlignedBuffer> = {
            let mut state = lock(&self.state);
            state.lent = state.lent.saturating_sub(1);
            state.free.extend(buffer);
            // As many as are in use may be wanted again soon; when nobody uploads, none.
            let surplus = state.free.len().saturating_sub(state.lent);
            state.free.drain(..surplus).collect()
        };
    }
}

impl Unit {
    /// How many more bytes it takes.
    pub(crate) fn room_bytes(&self) -> usize {
        WRITE_BYTES - self.len
    }

    /// Bytes in it.
    pub(crate) fn len_bytes(&self) -> usize {
        self.len
    }

    /// Appends bytes, at most [`Unit::room_bytes`].
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if let Some(buffer) = &mut self.buffer {
            buffer.as_mut_slice()[self.len..self.len + bytes.len()].copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    /// Forgets the bytes behind the first `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Its memory.
    #[cfg(feature = "uring")]
    pub(crate) fn buffer(&self) -> Option<&Buffer> {
        self.buffer.as_ref()
    }

    /// The bytes in it.
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.buffer.as_ref().map(|buffer| &buffer.as_slice()[..self.len]).unwrap_or_default()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.lender.take_back(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;

    #[test]
    fn a_unit_is_lent_again_and_all_are_freed_when_nobody_uploads() {
        let units = Arc::new(Units::default());
        let disk = SimDisk::new();
        let (mut first, second) = (units.lend(&disk), units.lend(&disk));
        first.push(b"left over");
        let place = first.as_slice().as_ptr();
        drop(first);
        let mut again = units.lend(&disk);
        assert_eq!((again.as_slice(), again.room_bytes()), (&b""[..], WRITE_BYTES), "it is empty");
        again.push(b"abc");
        assert_eq!(again.as_slice().as_ptr(), place, "it is the same memory");
        again.truncate(2);
        assert_eq!((again.as_slice(), again.len_bytes()), (&b"ab"[..], 2));
        drop((again, second));
        let state = lock(&units.state);
        assert_eq!((state.lent, state.free.len()), (0, 0));
    }
}
