//! Leases: "somebody was told that this blob exists", for one lease time after.
//!
//! They are kept as 64-bit fingerprints in buckets of a quarter lease each, so that granting costs a hash and expiry costs
//! nothing. Two blobs of one fingerprint share a lease, which only delays their collection.

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
        self.expire(&mut buckets, now_ms);
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
        self.expire(&mut buckets, now_ms);
        buckets.iter().any(|bucket| bucket.fingerprints.contains(&fingerprint))
    }

    fn bucket(&self, now_ms: u64) -> u64 {
        now_ms / self.bucket_ms()
    }

    fn bucket_ms(&self) -> u64 {
        (self.lease_ms / BUCKETS).max(1)
    }

    fn expire(&self, buckets: &mut VecDeque<Bucket>, now_ms: u64) {
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
