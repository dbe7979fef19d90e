//! A write that is begun and not waited for, and the memory that it is made from.

use std::fmt;
use std::io;

use crate::buffer::AlignedBuffer;
use crate::sync::Arc;
use crate::units::Unit;

/// Memory for one write of a file past the page cache: aligned, of fixed length.
pub struct Buffer {
    memory: Memory,
}

enum Memory {
    Own(AlignedBuffer),
    #[cfg(feature = "uring")]
    Ring(super::uring::Slot),
}

/// What came of a write that was begun.
#[derive(Debug)]
pub enum Written {
    /// It is over, as [`super::File::write_at`] would have ended.
    Done(io::Result<()>),
    /// It cannot be had in this way. Any part of it may have been written: it is to be made by [`super::File::write_at`].
    NotHere,
}

/// What a write is made from.
pub(crate) enum Source {
    Buffer(Buffer),
    /// Which others may be reading meanwhile.
    Unit(Arc<Unit>),
}

/// What is called after a write.
pub(crate) type Then = Box<dyn FnOnce(Written, Source) + Send>;

/// A write to be begun: all of its source, to `offset_bytes`.
pub struct Write {
    source: Source,
    offset_bytes: u64,
    then: Then,
}

impl Buffer {
    /// A zeroed buffer of the process's own memory; `len` is a multiple of [`super::DIRECT_ALIGN_BYTES`].
    pub(crate) fn own(len: usize) -> Buffer {
        Buffer { memory: Memory::Own(AlignedBuffer::zeroed(len)) }
    }

    #[cfg(feature = "uring")]
    pub(super) fn of_ring(slot: super::uring::Slot) -> Buffer {
        Buffer { memory: Memory::Ring(slot) }
    }

    /// The memory of the process, to be used again; `None` when a ring lent it and has it back.
    pub(crate) fn into_own(self) -> Option<AlignedBuffer> {
        match self.memory {
            Memory::Own(buffer) => Some(buffer),
            #[cfg(feature = "uring")]
            Memory::Ring(_) => None,
        }
    }

    /// A buffer of that memory.
    pub(crate) fn of_own(buffer: AlignedBuffer) -> Buffer {
        Buffer { memory: Memory::Own(buffer) }
    }

    /// The memory that a ring lent.
    #[cfg(feature = "uring")]
    pub(super) fn slot(&self) -> Option<&super::uring::Slot> {
        match &self.memory {
            Memory::Ring(slot) => Some(slot),
            Memory::Own(_) => None,
        }
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.memory {
            Memory::Own(buffer) => buffer.as_slice(),
            #[cfg(feature = "uring")]
            Memory::Ring(slot) => slot.as_slice(),
        }
    }

    /// Its bytes, to be filled. What they are at first is left over from an earlier write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Own(buffer) => buffer.as_mut_slice(),
            #[cfg(feature = "uring")]
            Memory::Ring(slot) => slot.as_mut_slice(),
        }
    }
}

impl Source {
    /// The bytes to be written.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Source::Buffer(buffer) => buffer.as_slice(),
            Source::Unit(unit) => unit.as_slice(),
        }
    }

    /// The memory that a ring lent for it.
    #[cfg(feature = "uring")]
    pub(super) fn slot(&self) -> Option<&super::uring::Slot> {
        match self {
            Source::Buffer(buffer) => buffer.slot(),
            Source::Unit(unit) => unit.buffer().and_then(Buffer::slot),
        }
    }
}

impl Write {
    /// A write after which `then` is called, once, on any thread. It must not block.
    pub(crate) fn new(source: Source, offset_bytes: u64, then: Then) -> Write {
        Write { source, offset_bytes, then }
    }

    /// What it is made from, where that goes, and what is to be called with it.
    pub(crate) fn into_parts(self) -> (Source, u64, Then) {
        (self.source, self.offset_bytes, self.then)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.as_slice().len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Write").field("offset_bytes", &self.offset_bytes).finish_non_exhaustive()
    }
}
