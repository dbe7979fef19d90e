//! What content-defined chunking would save over storing each blob once: an estimate, before anybody builds it.
//!
//! Blobs are taken in the order of their digests, which is as good as at random, until the sample is full. What the sample shares
//! with blobs outside of it is not seen, so that a sample that is not everything finds too little rather than too much.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, BufRead as _, BufReader, Read};
use std::num::NonZeroU64;

use fastcdc::v2020::StreamCDC;
use serde_json::{Value, json};
use taffrail_blobstore::disk::{Access, Disk};
use taffrail_blobstore::format::checkpoint::Location;
use taffrail_blobstore::format::payload::PAYLOAD_HEADER_BYTES;
use taffrail_blobstore::format::solo::PAYLOAD_OFFSET_BYTES;
use taffrail_blobstore::{Algorithm, Digest};

use crate::contents::{Blob, Contents};
use crate::progress::Progress;
use crate::window::Window;

/// Chunks of 64 KiB on average, a quarter of that at least and four times that at most: what casync, desync and zstd:chunked cut
/// layers into. Smaller chunks find a little more and cost an index in proportion.
pub(crate) const CHUNK_BYTES: (usize, usize, usize) = (16 * 1024, 64 * 1024, 256 * 1024);

/// Length of a chunk's fingerprint in bytes: two of the 2^34 chunks of a petabyte are then alike by chance once in 2^60 times.
const FINGERPRINT_BYTES: usize = 16;

/// Unit of reading, in bytes.
const READ_BYTES: usize = 1024 * 1024;

/// Default of the sample, in bytes: a minute or two of reading, and 8 MiB of memory for its fingerprints.
pub(crate) const SAMPLE_BYTES: NonZeroU64 = NonZeroU64::new(16 << 30).unwrap();

/// What a blob's bytes look like. Compressed layers share next to nothing, so the gain has to be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    Gzip,
    Zstd,
    Tar,
    Other,
}

impl Form {
    /// The names are part of the JSON form and do not change.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Form::Gzip => "gzip",
            Form::Zstd => "zstd",
            Form::Tar => "tar",
            Form::Other => "other",
        }
    }

    /// By the first bytes: RFC 1952 section 2.3.1, RFC 8878 section 3.1.1, and POSIX ustar, whose magic is at 257.
    fn of(head: &[u8]) -> Form {
        if head.starts_with(&[0x1f, 0x8b]) {
            Form::Gzip
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Form::Zstd
        } else if head.get(257..262) == Some(b"ustar") {
            Form::Tar
        } else {
            Form::Other
        }
    }
}

/// What chunking would save of some bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gain {
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
    /// Bytes in chunks that an earlier blob of the sample, or an earlier part of the same, has as well.
    pub(crate) saved_bytes: u64,
}

/// The estimate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Estimate {
    /// Linked blobs of the store, and their bytes.
    pub(crate) stored: (u64, u64),
    /// What the sample has of each form.
    pub(crate) forms: BTreeMap<Form, Gain>,
    pub(crate) chunks: u64,
    /// Blobs of the sample that could not be read to their end.
    pub(crate) unreadable: u64,
}

impl Estimate {
    /// Reads the sample, at most `sample_bytes`, and cuts it into chunks.
    pub(crate) fn take(
        disk: &dyn Disk,
        contents: &Contents,
        sample_bytes: NonZeroU64,
        progress: &Progress,
    ) -> Estimate {
        let mut blobs: Vec<(&Digest, &Blob)> = contents
            .blobs
            .iter()
            .filter(|(_, blob)| blob.location.is_some() && !blob.links.is_empty() && !blob.quarantined)
            .collect();
        blobs.sort_unstable_by_key(|(digest, _)| *digest);
        let stored = (blobs.len() as u64, blobs.iter().map(|(_, blob)| blob.len_bytes).sum());
        let sample = sample(&blobs, sample_bytes);
        progress.begin("reading the sample", sample.iter().map(|(_, len_bytes)| len_bytes).sum());
        let mut estimate = Estimate { stored, ..Estimate::default() };
        let mut seen = HashSet::new();
        for (location, len_bytes) in sample {
            if estimate.chunk(disk, location, len_bytes, &mut seen, progress).is_err() {
                estimate.unreadable += 1;
            }
        }
        progress.end();
        estimate
    }

    fn chunk(
        &mut self,
        disk: &dyn Disk,
        location: Location,
        len_bytes: u64,
        seen: &mut HashSet<[u8; FINGERPRINT_BYTES]>,
        progress: &Progress,
    ) -> io::Result<()> {
        let mut bytes = BufReader::with_capacity(READ_BYTES, BlobBytes::open(disk, location, len_bytes)?);
        let gain = self.forms.entry(Form::of(bytes.fill_buf()?)).or_default();
        gain.blobs += 1;
        let (least, average, most) = CHUNK_BYTES;
        for chunk in StreamCDC::new(bytes, least, average, most) {
            let chunk = chunk.map_err(io::Error::from)?.data;
            let len = chunk.len() as u64;
            let mut fingerprint = [0; FINGERPRINT_BYTES];
            fingerprint.copy_from_slice(&Digest::of(Algorithm::Blake3, &chunk).bytes()[..FINGERPRINT_BYTES]);
            self.chunks += 1;
            gain.bytes += len;
            if !seen.insert(fingerprint) {
                gain.saved_bytes += len;
            }
            progress.advance(len);
        }
        Ok(())
    }

    /// The sample as a whole.
    pub(crate) fn sample(&self) -> Gain {
        self.forms.values().fold(Gain::default(), |sum, gain| Gain {
            blobs: sum.blobs + gain.blobs,
            bytes: sum.bytes + gain.bytes,
            saved_bytes: sum.saved_bytes + gain.saved_bytes,
        })
    }

    /// Whether the sample is everything.
    pub(crate) fn is_whole(&self) -> bool {
        let sample = self.sample();
        (sample.blobs, sample.bytes) == self.stored
    }

    pub(crate) fn json(&self) -> Value {
        let gain = |gain: &Gain| json!({ "blobs": gain.blobs, "bytes": gain.bytes, "saved_bytes": gain.saved_bytes });
        let forms: serde_json::Map<String, Value> =
            self.forms.iter().map(|(form, gained)| (form.name().to_owned(), gain(gained))).collect();
        let (least, average, most) = CHUNK_BYTES;
        json!({
            "is_estimate": true,
            "sample_is_everything": self.is_whole(),
            "stored": { "blobs": self.stored.0, "bytes": self.stored.1 },
            "sample": gain(&self.sample()),
            "unreadable_blobs": self.unreadable,
            "chunks": self.chunks,
            "chunk_bytes": { "min": least, "average": average, "max": most },
            "forms": forms,
        })
    }
}

/// The first blobs that fill the sample, the last one in part, in the order of their places, so that the disk is read forwards.
fn sample(blobs: &[(&Digest, &Blob)], sample_bytes: NonZeroU64) -> Vec<(Location, u64)> {
    let mut left_bytes = sample_bytes.get();
    let mut sample = Vec::new();
    for (_, blob) in blobs {
        let Some(location) = blob.location else { continue };
        if left_bytes == 0 {
            break;
        }
        let len_bytes = blob.len_bytes.min(left_bytes);
        left_bytes -= len_bytes;
        sample.push((location, len_bytes));
    }
    sample.sort_by_key(|(location, _)| match location {
        Location::Inline(place) => (place.segment, place.offset_bytes),
        Location::Solo { segment, .. } => (*segment, 0),
    });
    sample
}

/// The bytes of a blob as they lie there. They are not held against their checksums: an estimate is not worth it.
struct BlobBytes {
    window: Window,
    offset_bytes: u64,
    left_bytes: u64,
}

impl BlobBytes {
    fn open(disk: &dyn Disk, location: Location, len_bytes: u64) -> io::Result<BlobBytes> {
        let (name, offset_bytes) = match location {
            Location::Inline(place) => {
                (place.segment.log_name(), place.offset_bytes + PAYLOAD_HEADER_BYTES as u64)
            }
            Location::Solo { segment, .. } => (segment.solo_name(), PAYLOAD_OFFSET_BYTES),
        };
        let window = Window::open(disk, &name, Access::Direct)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(BlobBytes { window, offset_bytes, left_bytes: len_bytes })
    }
}

impl Read for BlobBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left_bytes).unwrap_or(usize::MAX).min(buffer.len());
        let bytes = self.window.read(self.offset_bytes, len)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer[..len].copy_from_slice(&bytes);
        self.offset_bytes += len as u64;
        self.left_bytes -= len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_told_by_its_first_bytes() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, form) in [
            (&[0x1f, 0x8b, 8][..], Form::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Form::Zstd),
            (&tar, Form::Tar),
            (&tar[1..], Form::Other),
            (b"{}", Form::Other),
            (b"", Form::Other),
        ] {
            assert_eq!(Form::of(head), form, "{head:?}");
        }
    }
}
