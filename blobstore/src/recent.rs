//! Small payloads that were read lately, in memory: manifests and small blobs are asked for again and again, and the way to a
//! storage thread and back costs more than everything else about them.
//!
//! What must stay true: an entry is the payload of one place on disk, put in after it was verified there. It is handed out to
//! whoever just learnt from the locator that the blob is theirs and lies at that place; so links, deletion and quarantine are
//! never asked here. Places are not used again: what was pushed anew or moved lies elsewhere, and an entry of before is never
//! found again. The checksum is compared for every answer, here as on disk.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::digest::Digest;
use crate::format::payload::{PAYLOAD_HEADER_BYTES, PayloadHeader};
use crate::format::seal::{Key, Place};
use crate::sync::{Arc, Mutex, lock};

/// Longest payload that is kept: longer ones cost more to send than to read.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Parts, each behind its lock, by the last byte of the digest: the locator takes the first.
const SHARDS: usize = 16;

/// What an entry takes beside its payload: the header as read and as validated, the entry itself, its turn. Rounded up.
const ENTRY_BYTES: usize = 3 * PAYLOAD_HEADER_BYTES;

/// The payloads.
pub(crate) struct Recent {
    shard_bytes_max: usize,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    bytes: usize,
    entries: HashMap<Digest, Entry>,
    /// Whose turn it is to go: the oldest first, but for those that were asked for since their last turn.
    turns: VecDeque<Digest>,
}

struct Entry {
    place: Place,
    header: Arc<PayloadHeader>,
    payload: Bytes,
    is_used: bool,
}

impl Entry {
    fn cost_bytes(&self) -> usize {
        self.payload.len() + ENTRY_BYTES
    }
}

impl Recent {
    /// Keeps payloads that take at most `bytes_max` together. What a shard has no room for is not kept.
    pub(crate) fn new(bytes_max: u64) -> Recent {
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        Recent { shard_bytes_max: bytes_max / SHARDS, shards: Default::default() }
    }

    /// The payload of the blob at that place and its header, intact.
    pub(crate) fn find(
        &self,
        key: &Key,
        digest: &Digest,
        place: Place,
    ) -> Option<(Bytes, Arc<PayloadHeader>)> {
        let (payload, header) = {
            let mut shard = lock(self.shard(digest));
            let entry = shard.entries.get_mut(digest).filter(|entry| entry.place == place)?;
            entry.is_used = true;
            (entry.payload.clone(), Arc::clone(&entry.header))
        };
        // Memory fails as well. What is then read from disk takes the entry's place.
        header.block_is_intact(key, place, 0, &payload).then_some((payload, header))
    }

    /// Keeps a payload of one block that was verified at that place.
    pub(crate) fn keep(&self, place: Place, header: &Arc<PayloadHeader>, payload: &Bytes) {
        let entry = Entry { place, header: Arc::clone(header), payload: payload.clone(), is_used: false };
        let cost_bytes = entry.cost_bytes();
        if payload.len() > PAYLOAD_BYTES_MAX || cost_bytes > self.shard_bytes_max {
            return;
        }
        let mut shard = lock(self.shard(&header.digest));
        match shard.entries.insert(header.digest, entry) {
            Some(before) => shard.bytes -= before.cost_bytes(),
            None => shard.turns.push_back(header.digest),
        }
        shard.bytes += cost_bytes;
        shard.shrink_to(self.shard_bytes_max);
    }

    fn shard(&self, digest: &Digest) -> &Mutex<Shard> {
        let last = digest.bytes().last().copied().unwrap_or(0);
        &self.shards[usize::from(last) % SHARDS]
    }
}

impl Shard {
    /// Ends, because nothing is spared twice: a turn takes the mark away or the entry.
    fn shrink_to(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            let Some(digest) = self.turns.pop_front() else { return };
            match self.entries.get_mut(&digest) {
                Some(entry) if entry.is_used => {
                    entry.is_used = false;
                    self.turns.push_back(digest);
                }
                Some(entry) => {
                    self.bytes -= entry.cost_bytes();
                    self.entries.remove(&digest);
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::format::SegmentId;

    const KEY_BYTES: ([u8; 32], [u8; 16]) = ([1; 32], [2; 16]);

    fn key() -> Key {
        Key::new(KEY_BYTES.0, KEY_BYTES.1)
    }

    fn place(segment: u64) -> Place {
        Place { segment: SegmentId(segment), epoch: 1, offset_bytes: 4096 }
    }

    /// A payload as it is read from `place`.
    fn payload(seed: u8, len: usize, place: Place) -> (Arc<PayloadHeader>, Bytes) {
        let payload = vec![seed; len];
        let digest = Digest::of(Algorithm::Sha256, &payload);
        let mut out = Vec::new();
        PayloadHeader::encode(&mut out, &key(), place, &digest, &payload);
        let header = PayloadHeader::decode(&out, &key(), place).unwrap();
        (Arc::new(header), Bytes::from(payload))
    }

    fn kept_bytes(recent: &Recent) -> usize {
        let payloads = |shard: &Mutex<Shard>| {
            let shard = lock(shard);
            assert_eq!(shard.turns.len(), shard.entries.len());
            assert_eq!(shard.bytes, shard.entries.values().map(Entry::cost_bytes).sum::<usize>());
            shard.bytes
        };
        recent.shards.iter().map(payloads).sum()
    }

    #[test]
    fn a_payload_is_found_at_the_place_where_it_was_verified_and_nowhere_else() {
        let recent = Recent::new(1 << 20);
        let (header, bytes) = payload(7, 4096, place(1));
        recent.keep(place(1), &header, &bytes);
        let found = recent.find(&key(), &header.digest, place(1));
        assert_eq!(found, Some((bytes.clone(), Arc::clone(&header))));
        assert_eq!(recent.find(&key(), &header.digest, place(2)), None);
        // Moved: the new place takes over.
        let (moved, bytes) = payload(7, 4096, place(2));
        recent.keep(place(2), &moved, &bytes);
        assert_eq!(recent.find(&key(), &header.digest, place(1)), None);
        assert_eq!(recent.find(&key(), &header.digest, place(2)), Some((bytes, moved)));
        assert_eq!(kept_bytes(&recent), 4096 + ENTRY_BYTES);
    }

    #[test]
    fn bytes_that_do_not_match_are_not_handed_out() {
        let recent = Recent::new(1 << 20);
        let (header, bytes) = payload(7, 4096, place(1));
        let mut damaged = bytes.to_vec();
        damaged[4_000] ^= 1;
        recent.keep(place(1), &header, &Bytes::from(damaged));
        assert_eq!(recent.find(&key(), &header.digest, place(1)), None);
    }

    #[test]
    fn the_memory_is_bounded_and_what_is_asked_for_stays() {
        let bytes_max = 16 * 10 * (1024 + ENTRY_BYTES);
        let recent = Recent::new(bytes_max as u64);
        let (asked, bytes) = payload(255, 1024, place(1));
        recent.keep(place(1), &asked, &bytes);
        for round in 0..10 {
            for seed in 0..250 {
                let (header, bytes) = payload(seed, 1024 - round, place(1));
                recent.keep(place(1), &header, &bytes);
                assert!(kept_bytes(&recent) <= bytes_max);
                assert!(recent.find(&key(), &asked.digest, place(1)).is_some(), "{round} {seed}");
            }
        }
        assert!(kept_bytes(&recent) > bytes_max / 2, "room is used");
    }

    #[test]
    fn what_is_too_long_is_not_kept() {
        let recent = Recent::new(u64::MAX);
        let (longest, bytes) = payload(1, PAYLOAD_BYTES_MAX, place(1));
        recent.keep(place(1), &longest, &bytes);
        assert!(recent.find(&key(), &longest.digest, place(1)).is_some());
        let (longer, bytes) = payload(2, PAYLOAD_BYTES_MAX + 1, place(1));
        recent.keep(place(1), &longer, &bytes);
        assert_eq!(recent.find(&key(), &longer.digest, place(1)), None);
        let none = Recent::new(0);
        let (header, bytes) = payload(1, 1, place(1));
        none.keep(place(1), &header, &bytes);
        assert_eq!(kept_bytes(&none), 0);
    }
}
