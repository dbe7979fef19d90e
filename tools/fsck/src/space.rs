//! Where the space of a store goes, by what the records say and what the files take.
//!
//! What must stay true: every byte of the store's folder is in exactly one line of [`Space::disk`].

use std::collections::BTreeMap;

use taffrail_blobstore::RepositoryKey;
use taffrail_blobstore::format::checkpoint::Location;
use taffrail_blobstore::format::partition::PartitionName;
use taffrail_blobstore::format::{
    INDEX_FOLDER, LOG_FOLDER, RESERVE_FOLDER, SOLO_FOLDER, SUPERBLOCK_NAMES, SegmentId,
};

use crate::contents::{Blob, Contents};
use crate::repair::KEPT_FOLDER;
use crate::survey::{Survey, payload_slot_bytes};
use crate::usage::{Usage, Used};

/// So many things, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

impl Count {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What one repository holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Blobs that it links.
    pub(crate) blobs: Count,
    /// Bytes of those that nobody else links: what a deletion of the repository would free.
    pub(crate) exclusive_bytes: u64,
    /// Open upload sessions, and the bytes that they have acknowledged.
    pub(crate) sessions: Count,
}

impl Held {
    /// Bytes of the blobs that others link as well.
    pub(crate) fn shared_bytes(&self) -> u64 {
        self.blobs.bytes - self.exclusive_bytes
    }
}

/// What the written part of the log consists of, in bytes. Payloads count with their headers and the zeros behind them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogSpace {
    pub(crate) segments: u64,
    /// Payloads of linked blobs.
    pub(crate) linked_bytes: u64,
    /// Payloads of blobs that nothing links and that are not deleted yet.
    pub(crate) garbage_bytes: u64,
    /// Payloads that no blob has any more: deleted, or pushed again elsewhere.
    pub(crate) dead_bytes: u64,
    /// Everything else up to the segments' ends: headers, records, and the zeros that fill batches up.
    pub(crate) record_bytes: u64,
    /// Behind the segments' ends: reserved for what comes, or not given back yet.
    pub(crate) unwritten_bytes: u64,
}

/// What the files take, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskSpace {
    pub(crate) log: Used,
    pub(crate) solo_linked: Used,
    pub(crate) solo_garbage: Used,
    pub(crate) solo_sessions: Used,
    /// Files that no record names.
    pub(crate) solo_unclaimed: Used,
    pub(crate) checkpoints: Used,
    /// Partitions of the index.
    pub(crate) partitions: Used,
    pub(crate) reserve: Used,
    pub(crate) superblocks: Used,
    /// What repairs replaced.
    pub(crate) kept: Used,
    /// The lock file, and whatever is not the store's.
    pub(crate) other: Used,
    pub(crate) total: Used,
}

/// Where the space goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Space {
    /// Blobs that something links.
    pub(crate) linked: Count,
    /// Blobs that nothing links.
    pub(crate) garbage: Count,
    /// Blobs in the log, linked or not.
    pub(crate) inline: Count,
    /// Blobs in files of their own, linked or not.
    pub(crate) solo: Count,
    /// Blobs that are set aside as damaged.
    pub(crate) quarantined: Count,
    /// Links, and the bytes that all repositories together would take if nothing were shared.
    pub(crate) links: Count,
    /// Open upload sessions, and the bytes that they have acknowledged.
    pub(crate) sessions: Count,
    pub(crate) repositories: BTreeMap<RepositoryKey, Held>,
    pub(crate) log: LogSpace,
    pub(crate) disk: DiskSpace,
}

/// What a solo file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Linked,
    Garbage,
    Session,
}

impl Space {
    pub(crate) fn of(survey: &Survey, usage: &Usage) -> Space {
        let mut space = Space::default();
        for blob in survey.served.blobs.values().filter(|blob| blob.location.is_some()) {
            space.count_blob(blob);
        }
        for session in survey.served.open_sessions() {
            let bytes = session.acknowledged.offset_bytes;
            space.sessions.add(bytes);
            space.repositories.entry(session.repository).or_default().sessions.add(bytes);
        }
        space.log = log_space(survey);
        space.disk = disk_space(&survey.served, usage);
        space
    }

    /// How many times larger the store would be if repositories shared nothing; `None` when nothing is linked.
    #[expect(clippy::cast_precision_loss, reason = "a ratio is shown with two decimals")]
    pub(crate) fn dedup_ratio(&self) -> Option<f64> {
        (self.linked.bytes > 0).then(|| self.links.bytes as f64 / self.linked.bytes as f64)
    }

    fn count_blob(&mut self, blob: &Blob) {
        let bytes = blob.len_bytes;
        let by_state = if blob.links.is_empty() { &mut self.garbage } else { &mut self.linked };
        by_state.add(bytes);
        let by_place = if blob.solo_file().is_some() { &mut self.solo } else { &mut self.inline };
        by_place.add(bytes);
        if blob.quarantined {
            self.quarantined.add(bytes);
        }
        for repository in blob.links.keys() {
            self.links.add(bytes);
            let held = self.repositories.entry(*repository).or_default();
            held.blobs.add(bytes);
            if blob.links.len() == 1 {
                held.exclusive_bytes += bytes;
            }
        }
    }
}

fn log_space(survey: &Survey) -> LogSpace {
    let mut payloads: BTreeMap<SegmentId, (u64, u64)> = BTreeMap::new();
    for blob in survey.served.blobs.values() {
        if let Some(Location::Inline(place)) = blob.location {
            let (linked, garbage) = payloads.entry(place.segment).or_default();
            let slot = if blob.links.is_empty() { garbage } else { linked };
            *slot += payload_slot_bytes(blob.len_bytes);
        }
    }
    let mut space = LogSpace::default();
    for (id, segment) in &survey.segments {
        let (linked, garbage) = payloads.get(id).copied().unwrap_or_default();
        // Where records are lost, a checkpoint may still know blobs whose BLOB record was not read.
        let dead = segment.payload_bytes.saturating_sub(linked + garbage);
        space.segments += 1;
        space.linked_bytes += linked;
        space.garbage_bytes += garbage;
        space.dead_bytes += dead;
        space.record_bytes += segment.end_bytes.saturating_sub(linked + garbage + dead);
        space.unwritten_bytes += segment.file_bytes.saturating_sub(segment.end_bytes);
    }
    space
}

fn disk_space(served: &Contents, usage: &Usage) -> DiskSpace {
    let mut purposes: BTreeMap<String, Purpose> = BTreeMap::new();
    for session in served.open_sessions() {
        purposes.insert(session.segment.solo_name(), Purpose::Session);
    }
    for blob in served.blobs.values() {
        if let Some(segment) = blob.solo_file() {
            let purpose = if blob.links.is_empty() { Purpose::Garbage } else { Purpose::Linked };
            purposes.insert(segment.solo_name(), purpose);
        }
    }
    let solo = |wanted: Option<Purpose>| -> Used {
        usage
            .names_below(SOLO_FOLDER)
            .filter(|name| purposes.get(*name).copied() == wanted)
            .map(|name| usage.of(name))
            .sum()
    };
    let is_superblock = |name: &str| SUPERBLOCK_NAMES.contains(&name);
    let folders = [LOG_FOLDER, SOLO_FOLDER, INDEX_FOLDER, RESERVE_FOLDER, KEPT_FOLDER];
    let is_other = |name: &str| {
        !is_superblock(name) && name.split_once('/').is_none_or(|(folder, _)| !folders.contains(&folder))
    };
    let is_indexed = |name: &str| name.split_once('/').is_some_and(|(folder, _)| folder == INDEX_FOLDER);
    let is_partition = |name: &str| {
        name.split_once('/').is_some_and(|(_, name)| PartitionName::from_file_name(name).is_some())
    };
    DiskSpace {
        log: usage.below(LOG_FOLDER),
        solo_linked: solo(Some(Purpose::Linked)),
        solo_garbage: solo(Some(Purpose::Garbage)),
        solo_sessions: solo(Some(Purpose::Session)),
        solo_unclaimed: solo(None),
        checkpoints: usage.sum(|name| is_indexed(name) && !is_partition(name)),
        partitions: usage.sum(|name| is_indexed(name) && is_partition(name)),
        reserve: usage.below(RESERVE_FOLDER),
        superblocks: usage.sum(is_superblock),
        kept: usage.below(KEPT_FOLDER),
        other: usage.sum(is_other),
        total: usage.total(),
    }
}
