//! Buffers whose start is aligned for direct I/O, without unsafe code: a vector with room to skip to the boundary.

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

#[cfg(test)]
mod tests {
    use super::*;

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
