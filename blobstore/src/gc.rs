//! Reclamation: blobs that nothing links, log segments in which nothing is live, files that nobody knows.
//!
//! The work is in proportion to what is dead, not to the store. What must stay true: a blob is condemned under its shard's lock, so
//! that a link, a lease or an open comes before and saves it, or after and sees it gone; its bytes go only when its DELETE is durable.

use bytes::Bytes;

use crate::digest::Digest;
use crate::engine::Engine;
use crate::error::Refusal;
use crate::format::SegmentId;
use crate::format::batch::NewRecord;
use crate::format::checkpoint::Location;
use crate::format::record::Body;
use crate::locator::SHARDS;
use crate::log::{Marks, Purpose, Ticket};
use crate::partition::PageError;
use crate::snapshot::Removals;
use crate::solo;
use crate::sync::{Arc, AtomicBool, Ordering, lock};

/// What a collection gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs deleted.
    pub blobs: u64,
    /// Their bytes. Those of inline blobs are free when their segment goes.
    pub bytes: u64,
    /// Log segments removed.
    pub segments: u64,
    /// Files removed that no record names.
    pub orphans: u64,
}

/// Log segments that were removed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dropped {
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
}

/// How many candidates are looked at for each that may be deleted in a round.
const LEASED_SHARE: usize = 16;

/// The right to do something that is done once at a time. It goes along with a job that removes files: who hangs up while the job is
/// queued does not give the turn back before it is done.
pub(crate) struct Turn {
    taken: Arc<AtomicBool>,
    removals: Arc<Removals>,
}

impl Turn {
    /// `None` while somebody has it, or removals are held.
    pub(crate) fn take(taken: &Arc<AtomicBool>, removals: &Arc<Removals>) -> Option<Turn> {
        // Made only when it was taken: dropping one gives it back.
        let turn = (!taken.swap(true, Ordering::AcqRel))
            .then(|| Turn { taken: Arc::clone(taken), removals: Arc::clone(removals) })?;
        // After it was taken: who holds removals looks for a turn that is taken, after saying so.
        (!removals.are_held()).then_some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.taken.store(false, Ordering::Release);
        self.removals.wake();
    }
}

impl Engine {
    /// Deletes up to `budget` blobs that lost their last link a grace time ago, then what became free by it.
    pub(crate) async fn collect(self: &Arc<Self>, now_ms: u64, budget: usize) -> Result<Collected, Refusal> {
        let mut collected = Collected::default();
        if let Some(refusal) = self.health.refusal() {
            return Err(refusal);
        }
        self.refill_reserve();
        let Some(turn) = Turn::take(&self.collecting, &self.removals).filter(|_| !self.is_fenced(now_ms))
        else {
            return Ok(collected);
        };
        self.load_garbage().map_err(|failed| self.index_failed(failed))?;
        self.redate_garbage(now_ms);
        let mut tickets = Vec::new();
        for (since_ms, digest) in self.candidates(now_ms, budget) {
            if tickets.len() >= budget {
                break;
            }
            if let Some((ticket, bytes)) = self.condemn(since_ms, &digest, now_ms)? {
                tickets.push(ticket);
                collected.blobs += 1;
                collected.bytes += bytes;
            }
        }
        for ticket in tickets {
            self.wait(ticket).await?;
        }
        collected.segments = self.drop_segments(now_ms).await?.segments;
        collected.orphans = self.sweep_orphans(turn).await;
        // What was given back may be what the reserve needs.
        self.refill_reserve();
        Ok(collected)
    }

    /// Once after an opening: lists what the partitions have without link.
    fn load_garbage(&self) -> Result<(), PageError> {
        if self.garbage_is_loaded.load(Ordering::Acquire) {
            return Ok(());
        }
        for index in 0..SHARDS {
            let partition = self.locator.shard(index).partition().cloned();
            for (since_ms, digest) in partition.map_or_else(|| Ok(Vec::new()), |it| it.garbage())? {
                if since_ms == 0 {
                    // No record says since when: its partition was made while the link was on its way, which then did not come; or
                    // those of its link are gone with their segments.
                    self.date_garbage(&digest, self.opened_ms)?;
                } else {
                    lock(&self.garbage).insert((since_ms, digest));
                }
            }
        }
        self.garbage_is_loaded.store(true, Ordering::Release);
        Ok(())
    }

    fn date_garbage(&self, digest: &Digest, since_ms: u64) -> Result<(), PageError> {
        let mut shard = self.locator.write(digest);
        let is_undated =
            shard.find(digest)?.is_some_and(|blob| blob.is_garbage() && blob.unlinked_since_ms == 0);
        if is_undated && let Some(blob) = shard.edit(digest)? {
            blob.unlinked_since_ms = since_ms.max(1);
            lock(&self.garbage).insert((since_ms.max(1), *digest));
        }
        Ok(())
    }

    /// Dates garbage no more than a grace time ahead. A clock that once ran ahead, or the log of that time, would hold it back
    /// for as long as the clock was ahead.
    fn redate_garbage(&self, now_ms: u64) {
        let latest_ms = now_ms.saturating_add(self.options.grace_ms).max(1);
        let is_ahead = |(since_ms, _): &&(u64, Digest)| *since_ms > latest_ms;
        let ahead: Vec<(u64, Digest)> =
            lock(&self.garbage).iter().rev().take_while(is_ahead).copied().collect();
        for (since_ms, digest) in ahead {
            let mut shard = self.locator.write(&digest);
            let mut garbage = lock(&self.garbage);
            garbage.remove(&(since_ms, digest));
            if let Some(Some(blob)) = self.indexed(shard.edit(&digest))
                && blob.links.is_empty()
                && blob.unlinked_since_ms == since_ms
            {
                blob.unlinked_since_ms = latest_ms;
                garbage.insert((latest_ms, digest));
            }
        }
    }

    /// The oldest garbage. More than will be deleted: some of it may be leased, and is passed over.
    fn candidates(&self, now_ms: u64, budget: usize) -> Vec<(u64, Digest)> {
        let until_ms = now_ms.saturating_sub(self.options.grace_ms);
        lock(&self.garbage)
            .iter()
            .take_while(|(since_ms, _)| *since_ms <= until_ms)
            .take(budget.saturating_mul(LEASED_SHARE))
            .copied()
            .collect()
    }

    fn condemn(&self, since_ms: u64, digest: &Digest, now_ms: u64) -> Result<Option<(Ticket, u64)>, Refusal> {
        let mut shard = self.locator.write(digest);
        let found = shard.find(digest).map_err(|failed| self.index_failed(failed))?;
        let Some(blob) = found.filter(|blob| blob.links.is_empty() && blob.unlinked_since_ms == since_ms)
        else {
            lock(&self.garbage).remove(&(since_ms, *digest));
            return Ok(None);
        };
        if blob.condemned || blob.links_coming > 0 || self.leases.stands(None, digest, now_ms) {
            return Ok(None);
        }
        let record = NewRecord { body: Body::Delete { digest: *digest }, payload: Bytes::new() };
        let marks = Marks { condemned: vec![*digest], ..Marks::default() };
        let ticket = self.log.enqueue(vec![record], Purpose::Reclaim, marks, now_ms)?;
        let len_bytes = blob.len_bytes;
        if let Some(Some(blob)) = self.indexed(shard.edit(digest)) {
            blob.condemned = true;
        }
        lock(&self.garbage).remove(&(since_ms, *digest));
        Ok(Some((ticket, len_bytes)))
    }

    /// Removes log segments in which nothing counts any more.
    pub(crate) async fn drop_segments(self: &Arc<Self>, now_ms: u64) -> Result<Dropped, Refusal> {
        let mut dropped = Dropped::default();
        // Collection and compaction would drop the same ones.
        let Some(mut turn) = Turn::take(&self.dropping, &self.removals) else { return Ok(dropped) };
        loop {
            let replay_from = SegmentId(self.replay_from.load(Ordering::Acquire));
            let Some(droppable) = self.segments.droppable(replay_from) else { return Ok(dropped) };
            if droppable.oldest {
                self.advance_oldest(droppable.id)?;
            } else {
                let record =
                    NewRecord { body: Body::SegmentDrop { segment: droppable.id }, payload: Bytes::new() };
                let ticket = self.log.enqueue(vec![record], Purpose::Reclaim, Marks::default(), now_ms)?;
                self.wait(ticket).await?;
            }
            let engine = Arc::clone(self);
            let removed = self.pool.run(move || engine.remove_segment(droppable.id).map(|()| turn));
            turn = removed.await.unwrap_or(Err(Refusal::Closing))?;
            dropped.segments += 1;
            dropped.bytes += droppable.bytes;
        }
    }

    /// Removes the file of a log segment that the log does not need any more. Blocks on the disk.
    fn remove_segment(&self, id: SegmentId) -> Result<(), Refusal> {
        // A file that stays is older than the oldest, or was dropped: the next opening removes it.
        drop(self.disk.remove(&id.log_name()));
        self.sync_segment_names()?;
        // Only now that it cannot come back. Until then the next older segment is not the oldest, and tombstones of what
        // is in this one are kept.
        self.segments.remove(id);
        if let Some(oldest) = self.segments.oldest() {
            self.segments.forget_drops_before(oldest);
        }
        Ok(())
    }

    /// Records that `id`, the oldest segment, is gone. In both superblocks, so that the loss of one does not bring it back.
    fn advance_oldest(&self, id: SegmentId) -> Result<(), Refusal> {
        let oldest = self
            .segments
            .snapshot()
            .into_iter()
            .map(|(id, _)| id)
            .find(|other| *other > id)
            .unwrap_or(SegmentId(id.0 + 1));
        for _ in 0..2 {
            let updated = self.superblocks.update(&*self.disk, |superblock| {
                superblock.oldest_segment = superblock.oldest_segment.max(oldest.0);
            });
            updated.map_err(|failed| self.health.failed("superblock", &failed))?;
        }
        Ok(())
    }

    /// Once after an opening: removes solo files of earlier epochs that neither a blob nor a session names.
    async fn sweep_orphans(self: &Arc<Self>, turn: Turn) -> u64 {
        if std::mem::replace(&mut *lock(&self.swept), true) {
            return 0;
        }
        let engine = Arc::clone(self);
        let swept = self.pool.run(move || {
            let _turn = turn;
            let wanted = engine.solo_files_in_use().map_err(|failed| engine.lookup_failed(failed))?;
            let current = u64::from(engine.epoch);
            solo::sweep(&*engine.disk, |segment| segment.0 >> 32 >= current || wanted.contains(&segment))
        });
        swept.await.and_then(Result::ok).map_or(0, |(files, _)| files)
    }

    /// Solo files that a blob or a session names, and some that one named a moment ago.
    ///
    /// A partition is gone through without the shard's lock: what it has and the delta has not is in use, and stays so or is removed
    /// by whoever ends that.
    fn solo_files_in_use(&self) -> Result<std::collections::HashSet<SegmentId>, PageError> {
        let mut wanted: std::collections::HashSet<SegmentId> =
            self.sessions.solo_segments().into_iter().collect();
        for index in 0..SHARDS {
            let partition = {
                let shard = self.locator.shard(index);
                for (_, blob) in shard.changed() {
                    if let Some(Location::Solo { segment, .. }) = blob.location {
                        wanted.insert(segment);
                    }
                }
                shard.partition().cloned()
            };
            for blob in partition.iter().flat_map(|partition| partition.walk()) {
                if let Location::Solo { segment, .. } = blob?.location {
                    wanted.insert(segment);
                }
            }
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::mpsc::channel;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::digest::Algorithm;
    use crate::disk::sim::SimDisk;
    use crate::options::{Options, Threading};
    use crate::repository::RepositoryKey;
    use crate::store::Store;

    const NOW_MS: u64 = 1_000_000;

    /// A turn was made for whoever asked, and dropped when it was not to be had, which gave back somebody else's.
    #[test]
    fn a_turn_that_is_refused_stays_with_who_has_it() {
        let (taken, removals) = (Arc::new(AtomicBool::new(false)), Arc::new(Removals::default()));
        let turn = Turn::take(&taken, &removals);
        assert!(turn.is_some());
        assert!(Turn::take(&taken, &removals).is_none());
        assert!(Turn::take(&taken, &removals).is_none(), "the one that was refused gave nothing back");
        drop(turn);
        assert!(Turn::take(&taken, &removals).is_some());
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return value;
            }
            std::thread::yield_now();
        }
    }

    /// The turn went back when whoever asked hung up, with the removal still queued: a backup listed the file, which then went.
    #[test]
    fn a_removal_that_nobody_waits_for_any_more_is_waited_for_by_a_backup() {
        let disk = SimDisk::new();
        let mut options = Options::new([7; 48]);
        options.threading = Threading::Pool { storage_threads: 1 };
        (options.lease_ms, options.grace_ms, options.reserve_bytes) = (0, 0, 0);
        let store = Store::open(std::sync::Arc::new(disk.clone()), options, NOW_MS).unwrap();
        let key = RepositoryKey::new(5).unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"gone");
        drop(wait(store.put(key, &digest, Bytes::from_static(b"gone"), &[], NOW_MS)).unwrap());
        let generation = store.link_generation(key, &digest).unwrap();
        wait(store.unlink(key, &digest, generation, NOW_MS)).unwrap();
        assert_eq!(wait(store.collect(NOW_MS + 1, 10)).unwrap().blobs, 1);
        // Ends the segment; another one follows, and behind the checkpoint nothing needs the first.
        wait(wait(store.hold_removals()).unwrap().snapshot()).unwrap();
        let kept = Digest::of(Algorithm::Sha256, b"kept");
        drop(wait(store.put(key, &kept, Bytes::from_static(b"kept"), &[], NOW_MS)).unwrap());
        wait(store.checkpoint()).unwrap();
        let first = SegmentId(1).log_name();
        assert!(disk.contents(&first).is_some());

        let engine = store.engine();
        let (go_on, busy) = channel::<()>();
        let blocked = engine.pool.run(move || busy.recv());
        {
            let mut dropping = pin!(engine.drop_segments(NOW_MS + 1));
            assert!(dropping.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        let mut holding = pin!(store.hold_removals());
        let is_held = holding.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(!is_held, "a removal is queued");
        go_on.send(()).unwrap();
        wait(blocked).unwrap().unwrap();
        let hold = wait(holding).unwrap();
        assert!(disk.contents(&first).is_none());
        let snapshot = wait(hold.snapshot()).unwrap();
        assert!(snapshot.files.iter().all(|file| disk.contents(&file.name).is_some()), "{snapshot:?}");
    }
}
