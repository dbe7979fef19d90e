//! Leases: "somebody was told that this blob exists", for one lease time after.
//!
//! They are kept as 64-bit fingerprints in buckets of a quarter lease each, so that granting costs a hash and expiry costs
//! nothing. Two blobs of one fingerprint share a lease, which only delays their collection.
//!
//! What must stay true: no lease ends before its time, also when the clock is set back by up to a lease time and then right
//! again; and none lasts longer than two lease times and two buckets from whatever the clock says now, although it may have run
//! ahead when the lease was granted.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

use crate::digest::Digest;
use crate::repository::RepositoryKey;
use crate::sync::{Mutex, lock};

/// The lease time is cut into so many buckets; a lease lives for the lease time and at most one bucket more.
const BUCKETS: u64 = 4;

/// Locks are taken per shard, so that HEADs on many cores do not meet.
const SHARDS: usize = 16;

/// The leases that stand.
pub(crate) struct Leases {
    lease_ms: u64,
    // The keys are digests, which clients choose; the random state keeps them from aiming at one bucket.
    hasher: RandomState,
    shards: Vec<Mutex<VecDeque<Bucket>>>,
}

struct Bucket {
    number: u64,
    fingerprints: HashSet<u64>,
}

impl Leases {
    pub(crate) fn new(lease_ms: u64) -> Leases {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Leases { lease_ms, hasher: RandomState::new(), shards }
    }

    /// Leases the blob for the repository, from `now_ms` on.
    pub(crate) fn grant(&self, repository: RepositoryKey, digest: &Digest, now_ms: u64) {
        if self.lease_ms == 0 {
            return;
        }
        let number = self.bucket(now_ms);
        let mut buckets = lock(&self.shards[shard(digest)]);
        self.settle(&mut buckets, now_ms);
        if buckets.back().is_none_or(|bucket| bucket.number < number) {
            buckets.push_back(Bucket { number, fingerprints: HashSet::new() });
        }
        // A clock that went back finds a younger bucket: the lease then lasts longer.
        if let Some(bucket) = buckets.back_mut() {
            bucket.fingerprints.insert(self.hasher.hash_one((Some(repository), digest)));
            bucket.fingerprints.insert(self.hasher.hash_one((None::<RepositoryKey>, digest)));
        }
    }

    /// Whether the repository has a lease on the blob; with `None`, whether any has.
    pub(crate) fn stands(&self, repository: Option<RepositoryKey>, digest: &Digest, now_ms: u64) -> bool {
        let fingerprint = self.hasher.hash_one((repository, digest));
        let mut buckets = lock(&self.shards[shard(digest)]);
        self.settle(&mut buckets, now_ms);
        buckets.iter().any(|bucket| bucket.fingerprints.contains(&fingerprint))
    }

    fn bucket(&self, now_ms: u64) -> u64 {
        now_ms / self.bucket_ms()
    }

    fn bucket_ms(&self) -> u64 {
        (self.lease_ms / BUCKETS).max(1)
    }

    /// Drops what has expired, and brings back what is dated further ahead than a lease time.
    fn settle(&self, buckets: &mut VecDeque<Bucket>, now_ms: u64) {
        let newest = self.bucket(now_ms.saturating_add(self.lease_ms)) + 1;
        while buckets.back().is_some_and(|bucket| bucket.number > newest) {
            let ahead = buckets.pop_back().map(|bucket| bucket.fingerprints).unwrap_or_default();
            match buckets.back_mut().filter(|bucket| bucket.number >= newest) {
                Some(bucket) => bucket.fingerprints.extend(ahead),
                None => buckets.push_back(Bucket { number: newest, fingerprints: ahead }),
            }
        }
        while let Some(oldest) = buckets.front() {
            // The youngest lease of a bucket was granted at its end.
            let last_ms = (oldest.number + 1).saturating_mul(self.bucket_ms()).saturating_add(self.lease_ms);
            if last_ms > now_ms {
                return;
            }
            buckets.pop_front();
        }
    }
}

fn shard(digest: &Digest) -> usize {
    usize::from(digest.bytes()[0]) % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn a_lease_lasts_its_time_and_little_longer() {
        let leases = Leases::new(1000);
        let repository = RepositoryKey::new(1).unwrap();
        let other = RepositoryKey::new(2).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        leases.grant(repository, &digest, 5000);
        for now_ms in [5000, 5500, 6000] {
            assert!(leases.stands(Some(repository), &digest, now_ms));
            assert!(leases.stands(None, &digest, now_ms));
            assert!(!leases.stands(Some(other), &digest, now_ms));
        }
        assert!(!leases.stands(Some(repository), &digest, 6250));
        assert!(!leases.stands(None, &Digest::of(Algorithm::Sha256, b"y"), 5000));
    }

    /// Leases of a clock that ran a year ahead stood for a year, and took all later ones into their bucket.
    #[test]
    fn a_clock_that_ran_ahead_holds_no_lease_for_that_long() {
        const AHEAD_MS: u64 = 365 * 24 * 3_600_000;
        let leases = Leases::new(1000);
        let repository = RepositoryKey::new(1).unwrap();
        let digests = [b"x", b"y", b"z"].map(|bytes| Digest::of(Algorithm::Sha256, bytes));
        for (digest, now_ms) in digests.iter().zip([AHEAD_MS + 5000, AHEAD_MS + 7000, 5000]) {
            leases.grant(repository, digest, now_ms);
        }
        // What a client was told shortly before the clock was set right stands for a lease time still.
        for now_ms in [5000, 5999] {
            assert!(digests.iter().all(|digest| leases.stands(Some(repository), digest, now_ms)));
        }
        assert!(digests.iter().all(|digest| !leases.stands(None, digest, 7500)));
        leases.grant(repository, &digests[0], 7500);
        assert!(!leases.stands(None, &digests[0], 8750), "and new leases are as ever");
    }

    #[test]
    fn a_clock_that_is_set_back_for_a_while_ends_no_lease_early() {
        let leases = Leases::new(1000);
        let repository = RepositoryKey::new(1).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        leases.grant(repository, &digest, 5000);
        for now_ms in [4000, 4500, 5000, 5999] {
            assert!(leases.stands(Some(repository), &digest, now_ms), "{now_ms}");
        }
        assert!(!leases.stands(None, &digest, 6250));
    }

    #[test]
    fn expired_leases_take_no_memory() {
        let leases = Leases::new(100);
        let repository = RepositoryKey::new(1).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        for now_ms in 0..10_000 {
            leases.grant(repository, &digest, now_ms);
        }
        let buckets: usize = leases.shards.iter().map(|shard| lock(shard).len()).sum();
        assert!(buckets <= 6, "{buckets}");
    }
}
