//! Which log segment is compacted next.
//!
//! The cost is what is copied, the gain what is dead. A segment of which at most half counts costs no more than it gives back, and is
//! always worth it. Beyond that, garbage is spread too thin to be had for so little, and is left until it weighs something in the
//! whole store; then the best goes first, by cost and benefit, where the age says how likely it is that more of it dies soon.

use crate::format::SegmentId;
use crate::segment::table::Live;

/// What a copy takes more than its original, in bytes: LSN, time and type of that.
const COPY_BYTES: u64 = 24;

/// What the copy of a tombstone takes, in bytes: that of an UNLINK of a 32-byte digest.
const TOMBSTONE_BYTES: u64 = 88;

/// Garbage is worth copying more than it gives back when it is more than one part in so many of what the blobs have: the store then
/// takes 1.05 times the space of its blobs.
const TOLERATED_SHARE: u64 = 20;

/// Even then a segment is left alone when less than one part in so many of it is dead: more than four bytes would be copied for each
/// that is given back, and where dead bytes are spread evenly the next round would find as many.
const WORTHWHILE_SHARE: u64 = 5;

/// Tombstones that may still cancel something are tolerated up to one part in so many of the log. Beyond, the oldest segment is
/// compacted whatever counts in it: what older records no segment holds needs no cancelling.
const TOLERATED_TOMBSTONES_SHARE: u64 = 20;

/// A segment that may be compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) id: SegmentId,
    pub(super) bytes: u64,
    /// What counts in it.
    pub(super) live: Live,
    /// Tombstones that may have to be copied.
    pub(super) tombstones: u64,
    pub(super) is_oldest: bool,
    /// In segments that were begun since.
    pub(super) age: u64,
}

impl Candidate {
    /// What would have to be copied.
    fn kept_bytes(&self) -> u64 {
        let live_bytes = u64::try_from(self.live.bytes).unwrap_or(0);
        let records = u64::try_from(self.live.records).unwrap_or(0);
        (live_bytes + records * COPY_BYTES + self.tombstones * TOMBSTONE_BYTES).min(self.bytes)
    }

    /// What would be given back.
    pub(super) fn dead_bytes(&self) -> u64 {
        self.bytes - self.kept_bytes()
    }

    fn is_mostly_dead(&self) -> bool {
        self.kept_bytes() <= self.bytes / 2
    }

    fn is_worthwhile(&self) -> bool {
        self.dead_bytes() >= self.bytes / WORTHWHILE_SHARE
    }

    /// Benefit by cost, as a fraction: (1 - u) * age / (1 + u), where u is the share that is kept.
    fn merit(&self) -> (u128, u128) {
        let benefit = u128::from(self.dead_bytes()) * u128::from(self.age.max(1));
        (benefit, u128::from(self.bytes + self.kept_bytes()).max(1))
    }
}

/// The segment that is most worth it, in a store whose blobs take `blob_bytes`, in the log or in files of their own; `None` when none is.
pub(super) fn choose(candidates: &[Candidate], blob_bytes: u64) -> Option<SegmentId> {
    let best = |wanted: &dyn Fn(&Candidate) -> bool| {
        let wanted = candidates.iter().filter(|candidate| wanted(candidate));
        wanted.max_by(|one, other| {
            let ((benefit, cost), (other_benefit, other_cost)) = (one.merit(), other.merit());
            (benefit * other_cost).cmp(&(other_benefit * cost)).then(other.id.cmp(&one.id))
        })
    };
    let best = best(&Candidate::is_mostly_dead)
        .or_else(|| best(&|candidate| weighs(candidates, blob_bytes) && candidate.is_worthwhile()));
    best.or_else(|| candidates.iter().find(|it| it.is_oldest && has_many_tombstones(candidates)))
        .map(|candidate| candidate.id)
}

/// What is dead in the segments that would be chosen, one after the other.
pub(super) fn backlog_bytes(candidates: &[Candidate], blob_bytes: u64) -> u64 {
    let weighs = weighs(candidates, blob_bytes);
    let is_chosen = |it: &&Candidate| it.is_mostly_dead() || weighs && it.is_worthwhile();
    candidates.iter().filter(is_chosen).map(Candidate::dead_bytes).sum()
}

/// Whether what is dead is too much for the store.
fn weighs(candidates: &[Candidate], blob_bytes: u64) -> bool {
    let dead_bytes: u64 = candidates.iter().map(Candidate::dead_bytes).sum();
    dead_bytes > blob_bytes / TOLERATED_SHARE
}

fn has_many_tombstones(candidates: &[Candidate]) -> bool {
    let tombstones: u64 = candidates.iter().map(|candidate| candidate.tombstones).sum();
    let bytes: u64 = candidates.iter().map(|candidate| candidate.bytes).sum();
    tombstones * TOMBSTONE_BYTES > bytes / TOLERATED_TOMBSTONES_SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    /// Segment `id` of 100 MiB, of which so many count.
    fn segment(id: u64, live_mib: u64) -> Candidate {
        let bytes = i64::try_from(live_mib * MIB).unwrap();
        Candidate {
            id: SegmentId(id),
            bytes: 100 * MIB,
            live: Live { records: i64::from(live_mib > 0), bytes },
            tombstones: 0,
            is_oldest: id == 1,
            age: 100 - id,
        }
    }

    fn chosen(candidates: &[Candidate], blob_mib: u64) -> Option<u64> {
        choose(candidates, blob_mib * MIB).map(|id| id.0)
    }

    #[test]
    fn a_segment_of_which_half_is_dead_is_always_worth_it_and_the_deadest_goes_first() {
        assert_eq!(chosen(&[], 0), None);
        assert_eq!(chosen(&[segment(1, 100)], 0), None, "nothing is dead");
        assert_eq!(chosen(&[segment(1, 51)], 1 << 20), None);
        assert_eq!(chosen(&[segment(1, 90), segment(2, 49)], 1 << 20), Some(2));
        assert_eq!(chosen(&[segment(1, 40), segment(2, 10), segment(3, 30)], 1 << 20), Some(2));
    }

    #[test]
    fn what_is_less_dead_waits_until_it_weighs_something_in_the_whole_store() {
        let candidates = [segment(1, 70), segment(2, 70), segment(3, 60)];
        assert_eq!(chosen(&candidates, 3_000), None);
        assert_eq!(chosen(&candidates, 1_900), Some(3));
        let spread_thin = [segment(1, 85), segment(2, 85)];
        assert_eq!(chosen(&spread_thin, 0), None, "six bytes would be copied for each that is given back");
    }

    #[test]
    fn of_two_alike_the_older_one_goes_first() {
        assert_eq!(chosen(&[segment(3, 20), segment(2, 20)], 0), Some(2));
        let (young, old) = (Candidate { age: 1, ..segment(4, 30) }, Candidate { age: 50, ..segment(3, 40) });
        assert_eq!(chosen(&[young, old], 0), Some(3), "more of the young one may die by itself");
    }

    #[test]
    fn the_oldest_segment_goes_when_tombstones_take_too_much_although_it_is_live() {
        let tombstones = 5 * MIB * 3 / TOMBSTONE_BYTES;
        let full = Candidate { tombstones, ..segment(3, 80) };
        assert_eq!(chosen(&[segment(1, 99), segment(2, 99), full], 1 << 20), None, "five in a hundred");
        let fuller = Candidate { tombstones: tombstones + 2, ..full };
        assert_eq!(chosen(&[segment(1, 99), segment(2, 99), fuller], 1 << 20), Some(1));
        assert_eq!(chosen(&[segment(2, 99), fuller], 1 << 20), None, "the oldest cannot be had");
    }

    /// Tombstones were taken for dead: the segment was compacted, they were copied, and the next one was compacted for the same.
    #[test]
    fn a_segment_of_tombstones_that_are_needed_is_not_dead() {
        let tombstones = 90 * MIB / TOMBSTONE_BYTES;
        let candidate = Candidate { tombstones, ..segment(2, 0) };
        assert!(candidate.dead_bytes() <= 10 * MIB + TOMBSTONE_BYTES);
        assert_eq!(chosen(&[candidate], 1 << 20), None);
    }

    #[test]
    fn copies_of_small_records_are_not_dead_for_being_copies() {
        let records = 100_000_i64;
        let live = Live { records, bytes: records * 64 };
        let bytes = u64::try_from(records).unwrap() * (64 + COPY_BYTES);
        let candidate = Candidate { bytes, live, ..segment(1, 0) };
        assert_eq!(candidate.dead_bytes(), 0);
    }

    #[test]
    fn the_backlog_is_what_would_be_chosen() {
        let candidates = [segment(1, 40), segment(2, 70), segment(3, 90)];
        let backlog_mib = |blob_mib: u64| backlog_bytes(&candidates, blob_mib * MIB).div_ceil(MIB);
        assert_eq!(backlog_mib(1 << 20), 60);
        assert_eq!(backlog_mib(100), 60 + 30);
    }
}
