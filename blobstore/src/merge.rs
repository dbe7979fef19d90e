//! Merging what changed in a shard into a new partition.
//!
//! What must stay true: a shard goes over to a new partition only when a superblock names a checkpoint that names it; what changed after
//! the shard was looked at stays in its delta; the partitions of the last two checkpoints stay on the disk.

use std::collections::BTreeSet;

use crate::disk::Disk;
use crate::engine::Engine;
use crate::format::partition::PartitionName;
use crate::format::{INDEX_FOLDER, SCRATCH_NAME};
use crate::health::Failed;
use crate::locator::{SHARDS, Snapshot};
use crate::partition::{Partition, PartitionWriter};
use crate::sync::{Arc, Ordering, lock};

/// How much of a shard may have changed before a checkpoint makes a new partition of it. A merge writes the whole partition, so that
/// each change costs what the share says times an entry; what is not merged is written into every checkpoint, read by every
/// opening, and held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Threshold {
    /// Blobs that never make one.
    pub(crate) blobs: usize,
    /// Part of the partition's blobs above that.
    pub(crate) share: u64,
}

impl Threshold {
    /// While the store is in use: at 10 million blobs at most 312,000 are in memory, in 94 MB, and an opening takes 0.3 s for them.
    pub(crate) const SERVING: Threshold = Threshold { blobs: 1024, share: 32 };
    /// When it is closed: at 10 million blobs the next opening reads at most 39,000.
    pub(crate) const CLOSING: Threshold = Threshold { blobs: 256, share: 256 };

    pub(crate) fn is_passed(self, changed: usize, partition: Option<&Arc<Partition>>) -> bool {
        let blobs = partition.map_or(0, |partition| partition.header.blobs);
        changed > self.blobs && changed as u64 > blobs / self.share
    }
}

/// What a checkpoint has of a shard.
pub(crate) struct Held {
    pub(crate) snapshot: Snapshot,
    /// The partition that the checkpoint names.
    pub(crate) partition: Option<Arc<Partition>>,
    /// Whether that was made of the whole snapshot.
    pub(crate) is_merged: bool,
}

/// The merges of a checkpoint, which count when it does.
#[derive(Default)]
pub(crate) struct Merges(Vec<Merge>);

struct Merge {
    shard: usize,
    /// `None` while it is being written.
    partition: Option<Arc<Partition>>,
    stamp: u64,
}

impl Engine {
    /// The threshold, unless the options set another.
    pub(crate) fn threshold(&self, usual: Threshold) -> Threshold {
        self.options.index_delta_max.map_or(usual, |blobs| Threshold { blobs, share: u64::MAX })
    }

    /// Looks at a shard for a checkpoint, and makes a new partition of it if it is due.
    pub(crate) fn gather_shard(
        &self,
        index: usize,
        threshold: Threshold,
        merges: &mut Merges,
    ) -> Result<Held, Failed> {
        let snapshot = {
            let mut shard = self.locator.shard_mut(index);
            if !threshold.is_passed(shard.delta_len(), shard.partition()) {
                let snapshot = shard.snapshot();
                drop(shard);
                let partition = snapshot.partition.clone();
                partition.iter().try_for_each(|it| it.make_durable()).map_err(Failed::flush)?;
                return Ok(Held { snapshot, partition, is_merged: false });
            }
            shard.begin_merge()
        };
        let stamp = snapshot.stamp;
        merges.0.push(Merge { shard: index, partition: None, stamp });
        let partition = self.write_partition(index, &snapshot)?;
        partition.make_durable().map_err(Failed::flush)?;
        if let Some(merge) = merges.0.last_mut() {
            merge.partition = Some(Arc::clone(&partition));
        }
        Ok(Held { snapshot, partition: Some(partition), is_merged: true })
    }

    /// Writes a partition of all that a shard has. Nothing is flushed.
    fn write_partition(&self, index: usize, snapshot: &Snapshot) -> Result<Arc<Partition>, Failed> {
        let number = self.next_partition.fetch_add(1, Ordering::Relaxed);
        let name = PartitionName { number, shard: u8::try_from(index).unwrap_or(u8::MAX) };
        let written =
            PartitionWriter::create(&*self.disk, &self.key, name, self.epoch).and_then(|mut writer| {
                for blob in snapshot.blobs() {
                    writer.put(blob.map_err(|failed| self.lookup_failed(failed))?)?;
                }
                writer.finish()?;
                let opened = Partition::open(&*self.disk, &self.key, name, None)?;
                opened.ok_or_else(|| std::io::Error::other("the disk gives back what was not written"))
            });
        if written.is_err() {
            drop(self.disk.remove(&name.file_name()));
        }
        written.map(|partition| Arc::new(partition.volatile())).map_err(Failed::write)
    }

    /// Goes over to the new partitions.
    pub(crate) fn end_merges(&self, merges: Merges) {
        for merge in merges.0 {
            self.locator.shard_mut(merge.shard).end_merge(merge.partition, merge.stamp);
        }
    }

    /// Goes on with the old partitions, after a checkpoint that may or may not count.
    pub(crate) fn keep_old_partitions(&self, merges: Merges) {
        for merge in merges.0 {
            self.locator.shard_mut(merge.shard).end_merge(None, merge.stamp);
        }
    }

    /// The same, after a checkpoint that nothing names.
    pub(crate) fn give_up_merges(&self, merges: Merges) {
        for merge in &merges.0 {
            if let Some(partition) = &merge.partition {
                drop(self.disk.remove(&partition.header.name.file_name()));
            }
        }
        self.keep_old_partitions(merges);
    }

    /// The partitions that lookups go to.
    fn partitions_in_use(&self) -> BTreeSet<PartitionName> {
        let name_of = |index| self.locator.shard(index).partition().map(|partition| partition.header.name);
        (0..SHARDS).filter_map(name_of).collect()
    }

    /// Removes the partitions that neither this checkpoint nor the one before names. One that stays does no harm.
    pub(crate) fn remove_partitions(&self) {
        let in_use = self.partitions_in_use();
        let mut before = lock(&self.partitions_before);
        remove_partitions(&*self.disk, |name| in_use.contains(&name) || before.contains(&name));
        *before = in_use;
    }

    /// Whether the checkpoint of the opening, or the last one, names the partition.
    pub(crate) fn is_named(&self, partition: &Partition) -> bool {
        lock(&self.partitions_before).contains(&partition.header.name)
    }

    /// At an opening, when both superblocks name its checkpoint: removes the partitions that neither this one names nor the
    /// replay made, and the name of a replay's scratch file.
    pub(crate) fn sweep_partitions(&self) {
        let in_use = self.partitions_in_use();
        let before = lock(&self.partitions_before);
        drop(self.disk.remove(SCRATCH_NAME));
        remove_partitions(&*self.disk, |name| in_use.contains(&name) || before.contains(&name));
    }

    /// While the log is replayed: makes a partition of a delta that would take too much memory. One that cannot be written stays in
    /// memory; what only links speak of yet does so too. Says whether it was written.
    pub(crate) fn spill(&self, index: usize) -> bool {
        // They end by blobs that are in memory.
        self.forget_finished_sessions(index);
        let snapshot = self.locator.shard_mut(index).take_delta();
        let spilled = self.write_partition(index, &snapshot).ok();
        let is_written = spilled.is_some();
        let replaced = snapshot.partition.clone().filter(|partition| is_written && !self.is_named(partition));
        self.locator.shard_mut(index).end_spill(spilled, snapshot);
        if let Some(replaced) = replaced {
            drop(self.disk.remove(&replaced.header.name.file_name()));
        }
        is_written
    }
}

fn remove_partitions(disk: &dyn Disk, is_kept: impl Fn(PartitionName) -> bool) {
    for name in disk.list(INDEX_FOLDER).unwrap_or_default() {
        if let Some(name) = PartitionName::from_file_name(&name)
            && !is_kept(name)
        {
            drop(disk.remove(&name.file_name()));
        }
    }
}
