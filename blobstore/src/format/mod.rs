//! The bytes on disk: pure encoders and decoders, without I/O, clock, or allocation sized by an unchecked length.
//!
//! `docs/format.md` draws the same layouts as tables. All integers are little-endian. Every structure but payload bytes is
//! authenticated by [`seal::Key`], bound to where it lies; payload bytes carry a CRC-32 per block of
//! [`BLOCK_BYTES`]. Decoders return `None` or a small error on anything odd; they never panic and never trust a length.

pub mod batch;
pub mod checkpoint;
pub mod footprint;
pub mod partition;
pub mod payload;
pub mod record;
pub mod seal;
pub mod segment;
pub mod solo;
pub mod superblock;
mod wire;

/// Unit of checksums and of reading, in bytes: small enough to verify before a byte leaves, large enough that a CRC
/// costs nothing (16 KiB of checksums per GiB).
pub const BLOCK_BYTES: usize = 256 * 1024;

/// Largest payload that lies inline in the main log, in bytes. Uploads become solo files past
/// [`UPLOAD_INLINE_BYTES_MAX`]; the larger bound is for manifests, which are committed with their links in one batch.
pub const INLINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// An upload session of more bytes than this becomes a solo file.
pub const UPLOAD_INLINE_BYTES_MAX: usize = 1024 * 1024;

/// Most blocks of an inline payload.
pub const INLINE_BLOCKS_MAX: usize = INLINE_BYTES_MAX / BLOCK_BYTES;

/// Alignment of batches, headers and trailers, in bytes: the unit of direct I/O.
pub const ALIGN_BYTES: usize = 4096;

const _: () =
    assert!(BLOCK_BYTES.is_multiple_of(ALIGN_BYTES) && INLINE_BYTES_MAX.is_multiple_of(BLOCK_BYTES));

/// `len` rounded up to a multiple of [`ALIGN_BYTES`].
pub const fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGN_BYTES)
}

/// A log sequence number: counts records from 1, over all segments. Copies keep theirs.
pub type Lsn = u64;

/// Names a segment: a log segment by its position in the log, a solo file by `epoch << 32 | counter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u64);

impl std::fmt::Display for SegmentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl SegmentId {
    /// File name of a log segment, relative to the store.
    pub fn log_name(self) -> String {
        format!("{LOG_FOLDER}/{self}.seg")
    }

    /// Folder of a solo file: 256 folders by the lowest byte, so that none grows large.
    pub fn solo_folder(self) -> String {
        format!("{SOLO_FOLDER}/{:02x}", self.0 & 0xff)
    }

    /// File name of a solo file, relative to the store.
    pub fn solo_name(self) -> String {
        format!("{}/{self}.seg", self.solo_folder())
    }

    /// The id in a file name `…16 hex digits….seg`.
    pub fn from_file_name(name: &str) -> Option<SegmentId> {
        number_of_name(name.strip_suffix(".seg")?).map(SegmentId)
    }
}

/// The number in a file name: exactly 16 lowercase hexadecimal digits, so that no two names are one number.
fn number_of_name(digits: &str) -> Option<u64> {
    let canonical =
        digits.len() == 16 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if canonical { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// Folder of the main log.
pub const LOG_FOLDER: &str = "log";
/// Folder of the solo folders.
pub const SOLO_FOLDER: &str = "solo";
/// Folder of checkpoints and partitions.
pub const INDEX_FOLDER: &str = "index";
/// File that a long replay makes and removes at once; only a crash between the two leaves it, empty.
pub const SCRATCH_NAME: &str = "index/replay.tmp";
/// Folder of the preallocated reserve.
pub const RESERVE_FOLDER: &str = "reserve";
/// The two superblocks, written in turn.
pub const SUPERBLOCK_NAMES: [&str; 2] = ["SUPER.0", "SUPER.1"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_id_is_found_again_in_its_file_name() {
        let id = SegmentId(0xa1_b23f);
        assert_eq!(id.solo_name(), "solo/3f/0000000000a1b23f.seg");
        assert_eq!(SegmentId::from_file_name("0000000000a1b23f.seg"), Some(id));
        for name in
            ["", "x.seg", "0000000000A1B23F.seg", "a1b23f.seg", "0000000000a1b23f", "+000000000a1b23f.seg"]
        {
            assert_eq!(SegmentId::from_file_name(name), None, "{name}");
        }
    }
}
