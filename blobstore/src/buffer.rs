//! Buffers whose start is aligned for direct I/O, without unsafe code: a vector with room to skip to the boundary.

use std::ops::{Deref, DerefMut};

use crate::disk::DIRECT_ALIGN_BYTES;

/// A buffer of fixed length, zeroed, aligned to [`DIRECT_ALIGN_BYTES`].
pub(crate) struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// A zeroed buffer; `len` is a multiple of the alignment.
    pub(crate) fn zeroed(len: usize) -> AlignedBuffer {
        debug_assert!(len.is_multiple_of(DIRECT_ALIGN_BYTES), "direct I/O takes whole units");
        let bytes = vec![0_u8; len + DIRECT_ALIGN_BYTES];
        let start = bytes.as_ptr().align_offset(DIRECT_ALIGN_BYTES).min(DIRECT_ALIGN_BYTES);
        AlignedBuffer { bytes, start, len }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Bytes that are put together one after the other, the first of them aligned to [`DIRECT_ALIGN_BYTES`].
#[derive(Debug, Default)]
pub struct AlignedBytes {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBytes {
    /// Nothing, with room for `len_max` bytes: as long as there are no more, they stay where they are. The memory is that of `spare`
    /// where it suffices.
    pub(crate) fn with_room(len_max: usize, spare: AlignedBytes) -> AlignedBytes {
        let mut bytes = spare.bytes;
        bytes.clear();
        bytes.reserve(len_max + DIRECT_ALIGN_BYTES);
        let start = bytes.as_ptr().align_offset(DIRECT_ALIGN_BYTES).min(DIRECT_ALIGN_BYTES);
        bytes.resize(start, 0);
        AlignedBytes { bytes, start }
    }

    /// Appends what `write` appends to a vector.
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
    }

    /// Cuts to `len` bytes, or appends zeros.
    pub(crate) fn resize(&mut self, len: usize) {
        self.bytes.resize(self.start + len, 0);
    }

    /// Bytes of memory that it holds.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_put_together_stay_aligned_in_fresh_memory_and_in_memory_used_before() {
        let mut spare = AlignedBytes::default();
        for len in [5000, 1 << 20, 1, 4096] {
            let mut bytes = AlignedBytes::with_room(len, spare);
            assert!(bytes.is_empty());
            bytes.append(|out| out.push(7));
            bytes.resize(len);
            assert_eq!(bytes.as_ptr().align_offset(DIRECT_ALIGN_BYTES), 0);
            assert!(bytes.len() == len && bytes[0] == 7 && bytes[1..].iter().all(|byte| *byte == 0));
            bytes.fill(9);
            spare = bytes;
        }
        assert!(spare.capacity() >= 1 << 20);
    }

    #[test]
    fn a_buffer_is_aligned_and_zeroed() {
        for len in [0, 4096, 1 << 20] {
            let buffer = AlignedBuffer::zeroed(len);
            assert_eq!(buffer.as_slice().len(), len);
            assert!(buffer.as_slice().as_ptr().align_offset(DIRECT_ALIGN_BYTES) == 0);
            assert!(buffer.as_slice().iter().all(|byte| *byte == 0));
        }
    }
}
