//! Checkpoints: what the log said up to a position, so that opening replays only what came after.
//!
//! A checkpoint is derived data: without it the log is replayed from its start. It may be taken while commits go on: an
//! entry may already show what a record behind the position says, and replaying that record again changes nothing.
//!
//! ```text
//! header (4096): 0 magic "TAFFCKP4"   8 u64 number   16 uuid[16]   32 u32 epoch   36 u32 frames   40 u64 next lsn
//!                48 u64 replay segment   56 u64 replay offset   64 u64 entries   4064 seal[32]
//! frame:         0 u32 magic "TFFR"   4 u32 body length   8 u32 index   12 u32 entries   32 seal[32]   64 body
//! ```

use super::partition::SHARDS;
use super::record::SessionRecord;
use super::seal::{Key, Kind, Place, SEAL_BYTES, Seal};
use super::wire::{Fields, put_digest};
use super::{ALIGN_BYTES, Lsn, SegmentId};
use crate::digest::Digest;
use crate::repository::RepositoryKey;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = ALIGN_BYTES;
/// Length of a frame's header in bytes.
pub const FRAME_HEADER_BYTES: usize = 64;
/// A frame is closed past this length of its body, in bytes.
pub const FRAME_BYTES_SOFT: usize = 512 * 1024;
/// No frame's body is longer, in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Most links or log segments in one entry; more go into further entries.
pub const ENTRY_LINKS_MAX: usize = 4096;

const MAGIC: [u8; 8] = *b"TAFFCKP4";
/// Of checkpoints from before there were partitions and sums: nothing can be told from them of what lives in each log segment.
/// No flipped bit makes the one in use one of these.
const MAGICS_OUTDATED: [[u8; 8]; 2] = [*b"TAFFCKP1", *b"TAFFCKP2"];
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"TFFR");
const SEAL_OFFSET: usize = HEADER_BYTES - SEAL_BYTES;

/// A validated checkpoint header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointHeader {
    /// The checkpoint's number, which is in its name.
    pub number: u64,
    /// The epoch of the opening that wrote it.
    pub epoch: u32,
    /// Number of frames.
    pub frames: u32,
    /// The LSN of the first record that is not covered.
    pub next_lsn: Lsn,
    /// The log segment from which to replay.
    pub replay_segment: SegmentId,
    /// The offset in it, in bytes.
    pub replay_offset_bytes: u64,
    /// Number of entries in all frames.
    pub entries: u64,
}

/// File name of a checkpoint, relative to the store.
pub fn file_name(number: u64) -> String {
    format!("{}/{number:016x}.ckp", super::INDEX_FOLDER)
}

/// The number in the file name of a checkpoint.
pub fn number_of(file_name: &str) -> Option<u64> {
    super::number_of_name(file_name.strip_suffix(".ckp")?)
}

/// Whether `bytes` begin a checkpoint of an earlier format. Such a one is not read: the log says the same.
pub fn is_outdated(bytes: &[u8]) -> bool {
    MAGICS_OUTDATED.iter().any(|magic| bytes.starts_with(magic))
}

impl CheckpointHeader {
    /// The bytes to write at offset 0, once all frames are written.
    pub fn encode(&self, key: &Key) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(key.uuid());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.frames.to_le_bytes());
        out.extend_from_slice(&self.next_lsn.to_le_bytes());
        out.extend_from_slice(&self.replay_segment.0.to_le_bytes());
        out.extend_from_slice(&self.replay_offset_bytes.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.resize(SEAL_OFFSET, 0);
        let seal = key.seal(Kind::CheckpointHeader, place(self.number, self.epoch, 0), &[&out]);
        out.extend_from_slice(&seal);
        out
    }

    /// Takes up and validates what was read from the checkpoint of that number.
    pub fn decode(bytes: &[u8], number: u64, key: &Key) -> Option<CheckpointHeader> {
        let (sealed, seal) = bytes.get(..HEADER_BYTES)?.split_at_checked(SEAL_OFFSET)?;
        let mut fields = Fields::new(sealed);
        if fields.array::<8>()? != MAGIC || fields.u64()? != number || fields.array::<16>()? != *key.uuid() {
            return None;
        }
        let header = CheckpointHeader {
            number,
            epoch: fields.u32()?,
            frames: fields.u32()?,
            next_lsn: fields.u64()?,
            replay_segment: SegmentId(fields.u64()?),
            replay_offset_bytes: fields.u64()?,
            entries: fields.u64()?,
        };
        let expected = key.seal(Kind::CheckpointHeader, place(number, header.epoch, 0), &[sealed]);
        (expected == seal).then_some(header)
    }
}

fn place(number: u64, epoch: u32, offset_bytes: u64) -> Place {
    Place { segment: SegmentId(number), epoch, offset_bytes }
}

/// An entry of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A log segment that exists and is replayed no more.
    Segment {
        /// Which.
        segment: SegmentId,
        /// The epoch in its header.
        epoch: u32,
        /// Offset behind its last batch, in bytes.
        end_bytes: u64,
        /// How many tombstones it holds.
        tombstones: u64,
    },
    /// A log segment that was dropped although an older one exists.
    Dropped {
        /// Which.
        segment: SegmentId,
    },
    /// A blob.
    Blob {
        /// Its digest.
        digest: Digest,
        /// Its length in bytes.
        len_bytes: u64,
        /// The log segment with its record.
        record_segment: SegmentId,
        /// LSN of that record.
        record_lsn: Lsn,
        /// Where its bytes lie.
        location: Location,
        /// Whether it is quarantined.
        quarantined: bool,
        /// Since when nothing links it, in milliseconds since 1970; 0 when something does.
        unlinked_since_ms: u64,
    },
    /// Links of the blob entry before.
    Links {
        /// The blob.
        digest: Digest,
        /// Who holds it, by the LSN of which record, in which log segment.
        links: Vec<(RepositoryKey, Lsn, SegmentId)>,
    },
    /// A blob of the partition that is gone.
    Gone {
        /// Its digest.
        digest: Digest,
    },
    /// What a shard is made of. The blobs behind it, up to the next shard, count instead of what its partition has of them.
    Shard {
        /// Which; below [`super::partition::SHARDS`].
        shard: u8,
        /// Number of its partition, and the seal of that one's header; `None` when there is none.
        partition: Option<(u64, Seal)>,
        /// Blobs, with those in the partition.
        blobs: u64,
        /// Their bytes.
        bytes: u64,
        /// Links.
        links: u64,
        /// Blobs without link.
        garbage: u64,
    },
    /// What the blobs and links of the shard before take of log segments.
    Live {
        /// Which log segment, how many records of it count, and what these take of it in bytes.
        segments: Vec<(SegmentId, u64, u64)>,
    },
    /// An upload session, or further checksums of the session entry before.
    Session {
        /// The log segment with the record.
        record_segment: SegmentId,
        /// What its records take of that segment, in bytes; 0 in an entry of further checksums.
        record_bytes: u64,
        /// As the log has it.
        session: SessionRecord,
    },
}

/// Where a blob's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// In a log segment: the place of its payload header.
    Inline(Place),
    /// In a solo file.
    Solo {
        /// Which.
        segment: SegmentId,
        /// The epoch in its header.
        epoch: u32,
        /// The seal of its trailer.
        trailer: Seal,
    },
}

impl Entry {
    /// Appends the entry to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        let number: u8 = match self {
            Entry::Segment { segment, epoch, end_bytes, tombstones } => {
                body.extend_from_slice(&segment.0.to_le_bytes());
                body.extend_from_slice(&epoch.to_le_bytes());
                body.extend_from_slice(&end_bytes.to_le_bytes());
                body.extend_from_slice(&tombstones.to_le_bytes());
                1
            }
            Entry::Dropped { segment } => {
                body.extend_from_slice(&segment.0.to_le_bytes());
                2
            }
            Entry::Blob {
                digest,
                len_bytes,
                record_segment,
                record_lsn,
                location,
                quarantined,
                unlinked_since_ms,
            } => {
                put_digest(&mut body, digest);
                body.extend_from_slice(&len_bytes.to_le_bytes());
                body.extend_from_slice(&record_segment.0.to_le_bytes());
                body.extend_from_slice(&record_lsn.to_le_bytes());
                body.push(u8::from(*quarantined));
                body.extend_from_slice(&unlinked_since_ms.to_le_bytes());
                put_location(&mut body, location);
                3
            }
            Entry::Links { digest, links } => {
                put_digest(&mut body, digest);
                for (repository, lsn, segment) in links {
                    body.extend_from_slice(&repository.number().to_le_bytes());
                    body.extend_from_slice(&lsn.to_le_bytes());
                    body.extend_from_slice(&segment.0.to_le_bytes());
                }
                4
            }
            Entry::Session { record_segment, record_bytes, session } => {
                body.extend_from_slice(&record_segment.0.to_le_bytes());
                body.extend_from_slice(&record_bytes.to_le_bytes());
                session.encode(&mut body);
                5
            }
            Entry::Gone { digest } => {
                put_digest(&mut body, digest);
                6
            }
            Entry::Shard { shard, partition, blobs, bytes, links, garbage } => {
                body.push(*shard);
                for figure in [blobs, bytes, links, garbage] {
                    body.extend_from_slice(&figure.to_le_bytes());
                }
                if let Some((number, seal)) = partition {
                    body.extend_from_slice(&number.to_le_bytes());
                    body.extend_from_slice(seal);
                }
                7
            }
            Entry::Live { segments } => {
                for (segment, records, bytes) in segments {
                    body.extend_from_slice(&segment.0.to_le_bytes());
                    body.extend_from_slice(&records.to_le_bytes());
                    body.extend_from_slice(&bytes.to_le_bytes());
                }
                8
            }
        };
        out.push(number);
        out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&body);
    }

    /// Takes up the entry at the start of `bytes`, and says how long it is.
    pub fn decode(bytes: &[u8]) -> Option<(Entry, usize)> {
        let mut fields = Fields::new(bytes);
        let number = fields.u8()?;
        let len = usize::try_from(fields.u32()?).ok()?;
        let mut body = Fields::new(fields.bytes(len)?);
        let entry = match number {
            1 => Entry::Segment {
                segment: SegmentId(body.u64()?),
                epoch: body.u32()?,
                end_bytes: body.u64()?,
                tombstones: body.u64()?,
            },
            2 => Entry::Dropped { segment: SegmentId(body.u64()?) },
            3 => Entry::Blob {
                digest: body.digest()?,
                len_bytes: body.u64()?,
                record_segment: SegmentId(body.u64()?),
                record_lsn: body.u64()?,
                quarantined: body.u8()? != 0,
                unlinked_since_ms: body.u64()?,
                location: location(&mut body)?,
            },
            4 => {
                let digest = body.digest()?;
                let mut links = Vec::new();
                while !body.is_empty() {
                    links.push((RepositoryKey::new(body.u64()?)?, body.u64()?, SegmentId(body.u64()?)));
                }
                Entry::Links { digest, links }
            }
            5 => Entry::Session {
                record_segment: SegmentId(body.u64()?),
                record_bytes: body.u64()?,
                session: SessionRecord::decode(&mut body)?,
            },
            6 => Entry::Gone { digest: body.digest()? },
            7 => Entry::Shard {
                shard: body.u8().filter(|shard| usize::from(*shard) < SHARDS)?,
                blobs: body.u64()?,
                bytes: body.u64()?,
                links: body.u64()?,
                garbage: body.u64()?,
                partition: if body.is_empty() { None } else { Some((body.u64()?, body.array()?)) },
            },
            8 => {
                let mut segments = Vec::new();
                while !body.is_empty() {
                    segments.push((SegmentId(body.u64()?), body.u64()?, body.u64()?));
                }
                Entry::Live { segments }
            }
            _ => return None,
        };
        body.is_empty().then_some((entry, 5 + len))
    }
}

fn put_location(out: &mut Vec<u8>, location: &Location) {
    match location {
        Location::Inline(place) => {
            out.push(1);
            out.extend_from_slice(&place.segment.0.to_le_bytes());
            out.extend_from_slice(&place.epoch.to_le_bytes());
            out.extend_from_slice(&place.offset_bytes.to_le_bytes());
        }
        Location::Solo { segment, epoch, trailer } => {
            out.push(2);
            out.extend_from_slice(&segment.0.to_le_bytes());
            out.extend_from_slice(&epoch.to_le_bytes());
            out.extend_from_slice(trailer);
        }
    }
}

/// The same, or one zero byte.
pub(super) fn put_optional_location(out: &mut Vec<u8>, location: Option<&Location>) {
    match location {
        Some(location) => put_location(out, location),
        None => out.push(0),
    }
}

fn location(fields: &mut Fields<'_>) -> Option<Location> {
    optional_location(fields)?
}

/// A location, or none where there is a zero byte.
pub(super) fn optional_location(fields: &mut Fields<'_>) -> Option<Option<Location>> {
    Some(Some(match fields.u8()? {
        0 => return Some(None),
        1 => Location::Inline(Place {
            segment: SegmentId(fields.u64()?),
            epoch: fields.u32()?,
            offset_bytes: fields.u64()?,
        }),
        2 => Location::Solo {
            segment: SegmentId(fields.u64()?),
            epoch: fields.u32()?,
            trailer: fields.array()?,
        },
        _ => return None,
    }))
}

/// Makes a frame of the encoded entries in `body`, to be written at `offset_bytes`.
pub fn encode_frame(
    key: &Key,
    number: u64,
    epoch: u32,
    offset_bytes: u64,
    index: u32,
    entries: u32,
    body: &[u8],
) -> Vec<u8> {
    assert!(body.len() <= FRAME_BYTES_MAX, "the writer closes frames before");
    let mut out = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
    out.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
    out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&entries.to_le_bytes());
    out.resize(FRAME_HEADER_BYTES - SEAL_BYTES, 0);
    let seal = key.seal(Kind::CheckpointFrame, place(number, epoch, offset_bytes), &[&out, body]);
    out.extend_from_slice(&seal);
    out.extend_from_slice(body);
    out
}

/// A frame header as read, not validated: it says how much more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawFrameHeader {
    /// Length of the body in bytes, at most [`FRAME_BYTES_MAX`].
    pub body_len: usize,
    index: u32,
    entries: u32,
    seal: Seal,
}

impl RawFrameHeader {
    /// Takes up what was read; `None` when it can be no frame header.
    pub fn decode(bytes: &[u8]) -> Option<RawFrameHeader> {
        let mut fields = Fields::new(bytes.get(..FRAME_HEADER_BYTES)?);
        if fields.u32()? != FRAME_MAGIC {
            return None;
        }
        let body_len = usize::try_from(fields.u32()?).ok().filter(|len| *len <= FRAME_BYTES_MAX)?;
        let (index, entries) = (fields.u32()?, fields.u32()?);
        fields.bytes(FRAME_HEADER_BYTES - SEAL_BYTES - 16)?;
        Some(RawFrameHeader { body_len, index, entries, seal: fields.array()? })
    }

    /// Validates header and body, which lie at `offset_bytes` of the checkpoint, and takes up the entries.
    pub fn validate(
        &self,
        header: &[u8],
        body: &[u8],
        key: &Key,
        checkpoint: &CheckpointHeader,
        offset_bytes: u64,
        index: u32,
    ) -> Option<Vec<Entry>> {
        let sealed = header.get(..FRAME_HEADER_BYTES - SEAL_BYTES)?;
        let place = place(checkpoint.number, checkpoint.epoch, offset_bytes);
        if self.index != index || key.seal(Kind::CheckpointFrame, place, &[sealed, body]) != self.seal {
            return None;
        }
        let mut entries = Vec::new();
        let mut rest = body;
        while !rest.is_empty() {
            let (entry, len) = Entry::decode(rest)?;
            rest = rest.get(len..)?;
            entries.push(entry);
        }
        (u32::try_from(entries.len()).ok()? == self.entries).then_some(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Body, tests::samples};
    use super::*;
    use crate::digest::Algorithm;

    fn entries() -> Vec<Entry> {
        let digest = Digest::of(Algorithm::Sha512, b"x");
        let inline = Location::Inline(Place { segment: SegmentId(4), epoch: 2, offset_bytes: 8320 });
        let solo = Location::Solo { segment: SegmentId(9), epoch: 1, trailer: [5; 32] };
        let blob = |location| Entry::Blob {
            digest,
            len_bytes: 17,
            record_segment: SegmentId(4),
            record_lsn: 77,
            location,
            quarantined: true,
            unlinked_since_ms: 3,
        };
        let session = samples()
            .into_iter()
            .find_map(|body| if let Body::Session(session) = body { Some(session) } else { None })
            .unwrap();
        vec![
            Entry::Segment { segment: SegmentId(1), epoch: 1, end_bytes: 4096, tombstones: 2 },
            Entry::Dropped { segment: SegmentId(2) },
            blob(inline),
            blob(solo),
            Entry::Links { digest, links: vec![(RepositoryKey::new(8).unwrap(), 5, SegmentId(3)); 3] },
            Entry::Session { record_segment: SegmentId(3), record_bytes: 300, session },
            Entry::Gone { digest },
            Entry::Shard {
                shard: 63,
                partition: Some((3, [4; 32])),
                blobs: 1,
                bytes: 2,
                links: 3,
                garbage: 4,
            },
            Entry::Shard { shard: 0, partition: None, blobs: 0, bytes: 0, links: 0, garbage: 0 },
            Entry::Live { segments: vec![(SegmentId(1), 2, 3), (SegmentId(4), 5, 6)] },
        ]
    }

    #[test]
    fn a_checkpoint_has_one_name() {
        let name = file_name(0xa1);
        assert_eq!(number_of(name.strip_prefix("index/").unwrap()), Some(0xa1));
        for other in ["00000000000000A1.ckp", "+0000000000000a1.ckp", "a1.ckp", "00000000000000a1.seg"] {
            assert_eq!(number_of(other), None, "{other}");
        }
    }

    #[test]
    fn frames_decode_to_what_was_encoded_and_find_damage() {
        let key = Key::new([1; 32], [2; 16]);
        let header = CheckpointHeader {
            number: 6,
            epoch: 2,
            frames: 1,
            next_lsn: 50,
            replay_segment: SegmentId(3),
            replay_offset_bytes: 8192,
            entries: 10,
        };
        let encoded = header.encode(&key);
        assert_eq!(CheckpointHeader::decode(&encoded, 6, &key).as_ref(), Some(&header));
        assert_eq!(CheckpointHeader::decode(&encoded, 7, &key), None);
        let mut body = Vec::new();
        entries().iter().for_each(|entry| entry.encode(&mut body));
        let frame = encode_frame(&key, 6, 2, 4096, 0, 10, &body);
        let decode = |frame: &[u8]| {
            let raw = RawFrameHeader::decode(frame)?;
            let body = frame.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + raw.body_len)?;
            raw.validate(&frame[..FRAME_HEADER_BYTES], body, &key, &header, 4096, 0)
        };
        assert_eq!(decode(&frame), Some(entries()));
        for bit in (0..frame.len() * 8).step_by(3) {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged), None, "bit {bit}");
        }
    }
}
