//! What an opener chooses.

use crate::format::superblock::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};

/// How the engine waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threading {
    /// On the caller's thread, within the poll: deterministic, for tests and offline tools.
    Inline,
    /// On an appender thread and so many storage threads.
    Pool {
        /// At least 1.
        storage_threads: usize,
    },
}

/// What an opener chooses. Times are in milliseconds.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length of log segments of a store that is made now: a power of two from 1 MiB to 256 MiB. An existing store keeps its own.
    pub segment_bytes: u64,
    /// Space that is kept so that deletions work on a full disk.
    pub reserve_bytes: u64,
    /// How long a client may rely on having been told that a blob exists.
    pub lease_ms: u64,
    /// How long a blob without link stays before it is collected.
    pub grace_ms: u64,
    /// An upload session that nobody used for so long is ended.
    pub session_idle_ms: u64,
    /// Open upload sessions of one repository.
    pub sessions_per_repository_max: usize,
    /// Open upload sessions of one [`crate::Uploader`].
    pub sessions_per_uploader_max: usize,
    /// Open upload sessions in total.
    pub sessions_max: usize,
    /// What upload sessions that are not in files yet may hold in memory together, in bytes; past it they go to files early.
    pub session_memory_bytes_max: u64,
    /// Memory for reading blobs ahead of their readers, all together, in bytes. Readers for whom none is left read block by block.
    pub read_ahead_bytes_max: u64,
    /// Memory for small blobs and manifests that were read lately, in bytes.
    pub recent_bytes_max: u64,
    /// Longest blob in bytes.
    pub blob_bytes_max: u64,
    /// Changes of a part of the index (one of 64) that a checkpoint writes down one by one at most; more make a new file of the
    /// part. Set by tests; otherwise the engine decides by what is usual for its size.
    pub index_delta_max: Option<usize>,
    /// Random bytes: key (32) and uuid (16) of a store that is made now.
    pub entropy: [u8; 48],
    /// How to wait for the disk.
    pub threading: Threading,
}

impl Options {
    /// The defaults; `server/src/config/sections.rs` has the reasons.
    pub fn new(entropy: [u8; 48]) -> Options {
        Options {
            segment_bytes: SEGMENT_BYTES_MAX,
            reserve_bytes: 64 * 1024 * 1024,
            lease_ms: 3_600_000,
            grace_ms: 3_600_000,
            session_idle_ms: 24 * 3_600_000,
            sessions_per_repository_max: 1_000,
            sessions_per_uploader_max: 2_000,
            sessions_max: 10_000,
            session_memory_bytes_max: 64 * 1024 * 1024,
            // One half is 3 MiB for each of ten clients that are slower than the disk, the other a block ahead for 128 more; fast ones share it.
            read_ahead_bytes_max: 64 * 1024 * 1024,
            // Five thousand manifests or configurations of common size.
            recent_bytes_max: 32 * 1024 * 1024,
            blob_bytes_max: 1 << 40,
            index_delta_max: None,
            entropy,
            threading: Threading::Pool { storage_threads: 4 },
        }
    }

    pub(crate) fn segment_bytes_are_valid(&self) -> bool {
        self.segment_bytes.is_power_of_two()
            && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
    }
}
