//! What a collection would give back, told from the records alone.
//!
//! It follows the rules of `blobstore::gc` with no lease and no grace time, without its code, as the checker does. The tests hold
//! the two against each other.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use taffrail_blobstore::format::{SOLO_FOLDER, SegmentId};
use taffrail_blobstore::{Digest, RepositoryKey};

use crate::contents::Blob;
use crate::space::Count;
use crate::survey::{Survey, payload_slot_bytes};
use crate::usage::{Usage, Used};

/// As in `blobstore::compaction::victim`: dead bytes are worth copying more than they give back past one part in so many of all blobs.
const TOLERATED_SHARE: u64 = 20;
/// And even then a segment is left alone of which less than one part in so many is dead.
const WORTHWHILE_SHARE: u64 = 5;

/// A blob that nothing links.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Garbage {
    pub(crate) len_bytes: u64,
    /// Who let go of it last; `None` when the record of that is gone.
    pub(crate) last_holder: Option<RepositoryKey>,
}

/// What a collection would give back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) garbage: BTreeMap<Digest, Garbage>,
    /// Files of garbage.
    pub(crate) solo: Used,
    /// Solo files that no record names.
    pub(crate) orphans: Used,
    /// Log segments in which nothing would count any more.
    pub(crate) segments: Used,
    /// Log files that the opening removes: dropped or never used.
    pub(crate) leftover: Used,
    /// Bytes of payloads that stay, dead, in segments where something else counts.
    pub(crate) left_bytes: u64,
    /// Of these segments, those that compaction finds worth it, with what is dead in them. It weighs records as well, and so this is
    /// about what comes back.
    pub(crate) rewritten: Count,
}

impl Plan {
    pub(crate) fn of(survey: &Survey, usage: &Usage) -> Plan {
        let mut plan = Plan::default();
        let served = &survey.served;
        for (digest, blob) in served.blobs.iter().filter(|(_, blob)| is_garbage(blob)) {
            let last_holder = survey.logged.blobs.get(digest).and_then(|logged| logged.last_holder);
            plan.garbage.insert(*digest, Garbage { len_bytes: blob.len_bytes, last_holder });
            if let Some(file) = blob.solo_file() {
                plan.solo = plan.solo + usage.of(&file.solo_name());
            }
        }
        let mut named: HashSet<String> =
            served.blobs.values().filter_map(Blob::solo_file).map(SegmentId::solo_name).collect();
        named.extend(served.open_sessions().map(|session| session.segment.solo_name()));
        plan.orphans = usage
            .names_below(SOLO_FOLDER)
            .filter(|name| !named.contains(*name) && is_segment(name))
            .map(|name| usage.of(name))
            .sum();
        plan.leftover = leftover(survey).map(|id| usage.of(&id.log_name())).sum();
        let droppable = droppable(survey);
        plan.segments = droppable.iter().map(|id| usage.of(&id.log_name())).sum();
        let dead = dead_payloads(survey, &droppable);
        plan.left_bytes = dead.values().sum();
        plan.rewritten = rewritten(survey, &dead);
        plan
    }

    /// The blobs that would go, and their bytes.
    pub(crate) fn blobs(&self) -> Count {
        let mut count = Count::default();
        self.garbage.values().for_each(|garbage| count.add(garbage.len_bytes));
        count
    }

    /// What all files that would go take.
    pub(crate) fn freed(&self) -> Used {
        self.solo + self.orphans + self.segments + self.leftover
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.garbage.is_empty() && self.freed().files == 0 && self.rewritten.count == 0
    }

    /// The blobs by who let go of them last, without those that `stays` says.
    pub(crate) fn by_repository(
        &self,
        stays: impl Fn(&Digest) -> bool,
    ) -> BTreeMap<Option<RepositoryKey>, Count> {
        let mut counts: BTreeMap<Option<RepositoryKey>, Count> = BTreeMap::new();
        for (_, garbage) in self.garbage.iter().filter(|(digest, _)| !stays(digest)) {
            counts.entry(garbage.last_holder).or_default().add(garbage.len_bytes);
        }
        counts
    }
}

fn is_garbage(blob: &Blob) -> bool {
    blob.location.is_some() && blob.links.is_empty()
}

fn is_segment(name: &str) -> bool {
    name.rsplit_once('/').is_some_and(|(_, name)| SegmentId::from_file_name(name).is_some())
}

/// Log files that count no more already.
fn leftover(survey: &Survey) -> impl Iterator<Item = SegmentId> {
    let dropped = survey.served.dropped.iter().filter(|id| survey.segments.contains_key(id));
    survey.leftover.iter().chain(dropped).copied()
}

/// The log segments that would go: nothing in them counts, and their tombstones, if any, cancel nothing that is still there.
fn droppable(survey: &Survey) -> BTreeSet<SegmentId> {
    let served = &survey.served;
    let mut live: BTreeSet<SegmentId> = BTreeSet::new();
    for blob in served.blobs.values().filter(|blob| !blob.links.is_empty()) {
        live.extend(blob.record_segment);
        live.extend(blob.links.values().map(|link| link.segment));
    }
    for session in served.open_sessions() {
        live.extend(served.session_segments.get(&session.session).into_iter().flatten());
    }
    let left_over: BTreeSet<SegmentId> = leftover(survey).collect();
    let mut standing: BTreeSet<SegmentId> =
        survey.segments.keys().filter(|id| !left_over.contains(id)).copied().collect();
    // The last segment goes only when another one follows, and one follows when deletions are appended.
    let last = standing.last().copied();
    let appended = served.blobs.values().any(is_garbage);
    let mut dropped = BTreeSet::new();
    loop {
        let oldest = standing.first().copied();
        let next = standing.iter().copied().find(|id| {
            let has_tombstones = survey.segments.get(id).is_some_and(|segment| segment.tombstones > 0);
            !live.contains(id) && (!has_tombstones || Some(*id) == oldest) && (appended || Some(*id) != last)
        });
        let Some(next) = next else { return dropped };
        standing.remove(&next);
        dropped.insert(next);
    }
}

/// Payload bytes that no blob would have, in the segments that stay.
fn dead_payloads(survey: &Survey, droppable: &BTreeSet<SegmentId>) -> BTreeMap<SegmentId, u64> {
    let mut linked: BTreeMap<SegmentId, u64> = BTreeMap::new();
    for blob in
        survey.served.blobs.values().filter(|blob| !blob.links.is_empty() && blob.solo_file().is_none())
    {
        if let Some(segment) = blob.record_segment {
            *linked.entry(segment).or_default() += payload_slot_bytes(blob.len_bytes);
        }
    }
    let stays = survey.segments.iter().filter(|(id, _)| !droppable.contains(id));
    stays
        .map(|(id, segment)| {
            let linked = linked.get(id).copied().unwrap_or(0);
            (*id, segment.payload_bytes.saturating_sub(linked))
        })
        .collect()
}

/// The segments that would be rewritten: how many they are, and their dead payloads.
fn rewritten(survey: &Survey, dead: &BTreeMap<SegmentId, u64>) -> Count {
    let linked = survey.served.blobs.values().filter(|blob| !blob.links.is_empty());
    let blob_bytes: u64 = linked.map(|blob| blob.len_bytes).sum();
    let weighs = dead.values().sum::<u64>() > blob_bytes / TOLERATED_SHARE;
    let mut count = Count::default();
    for (id, dead_bytes) in dead.iter().filter(|(_, dead_bytes)| **dead_bytes > 0) {
        let end_bytes = survey.segments.get(id).map_or(0, |segment| segment.end_bytes);
        if *dead_bytes >= end_bytes.div_ceil(2) || weighs && *dead_bytes >= end_bytes / WORTHWHILE_SHARE {
            count.add(*dead_bytes);
        }
    }
    count
}
