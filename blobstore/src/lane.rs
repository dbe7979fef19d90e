//! The hash of an upload, computed beside its reception: full units are hashed in order on a thread of their own, while the next one
//! is received.
//!
//! What must stay true: the pieces of a lane are hashed one after the other, in the order in which they were handed over, each once.
//! A lane gets a thread only when one is free, and whoever finds none hashes himself: no upload waits for the hash of another.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::format::seal::Key;
use crate::format::solo::block_place;
use crate::format::{BLOCK_BYTES, SegmentId};
use crate::hasher::Hasher;
use crate::pool::Pool;
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, lock};
use crate::units::Unit;

/// Units of one upload that may wait for their hash or be hashed: one that is hashed and one that is next, so that the thread goes
/// on when the upload is late.
pub(crate) const HASHING_MAX: usize = 2;

/// The threads that hash.
pub(crate) struct HashThreads {
    pool: Pool,
    free: Arc<AtomicUsize>,
}

impl HashThreads {
    /// So many threads; with none, every caller hashes himself.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn start(threads: usize) -> std::io::Result<HashThreads> {
        let pool = if threads == 0 { Pool::inline() } else { Pool::named("taffrail-hash", threads)? };
        Ok(HashThreads { pool, free: Arc::new(AtomicUsize::new(threads)) })
    }

    /// Takes a thread, if one is free.
    fn take(&self) -> bool {
        let less = |free: usize| free.checked_sub(1);
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok()
    }
}

/// Which solo file the units go to: their checksums are bound to it.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) key: Key,
    pub(crate) segment: SegmentId,
    pub(crate) epoch: u32,
}

impl Target {
    /// The checksums of the blocks of `bytes`, of which the first is number `first_block` of the file.
    pub(crate) fn checksums(&self, first_block: u64, bytes: &[u8]) -> impl Iterator<Item = u32> {
        (first_block..)
            .zip(bytes.chunks(BLOCK_BYTES))
            .map(|(number, block)| self.key.block_crc(block_place(self.segment, self.epoch, number), block))
    }
}

/// What is to be hashed.
pub(crate) struct Piece {
    pub(crate) unit: Arc<Unit>,
    /// Where in the unit the bytes begin that are not hashed yet.
    pub(crate) from: usize,
    /// Number of the unit's first block, when it is full: then its checksums are wanted too.
    pub(crate) first_block: Option<u64>,
}

/// Units under way to the hash. Dropping it gives up what was not hashed yet.
pub(crate) struct Lane {
    shared: Arc<Shared>,
}

struct Shared {
    target: Target,
    state: Mutex<State>,
}

struct State {
    hasher: Hasher,
    /// Of the full units that were hashed, in order.
    crcs: Vec<u32>,
    waiting: VecDeque<Piece>,
    /// Pieces that were handed over and are not hashed.
    under_way: usize,
    /// Whether a thread is at work, or about to be.
    has_thread: bool,
    /// Who waits until fewer than so many are under way.
    waiter: Option<(usize, Waker)>,
}

impl Lane {
    /// A lane that goes on from `hasher`.
    pub(crate) fn new(hasher: Hasher, target: Target) -> Lane {
        let state = State {
            hasher,
            crcs: Vec::new(),
            waiting: VecDeque::new(),
            under_way: 0,
            has_thread: false,
            waiter: None,
        };
        Lane { shared: Arc::new(Shared { target, state: Mutex::new(state) }) }
    }

    /// Hands a piece over, or hashes it here when no thread is free.
    pub(crate) fn push(&self, threads: &HashThreads, piece: Piece) {
        let mut state = lock(&self.shared.state);
        let starts = !state.has_thread && threads.take();
        if !state.has_thread && !starts {
            let hasher = &mut state.hasher;
            let crcs = self.shared.hash(hasher, &piece);
            state.crcs.extend(crcs);
            return;
        }
        state.has_thread = true;
        state.under_way += 1;
        state.waiting.push_back(piece);
        drop(state);
        if starts {
            let (shared, free) = (Arc::clone(&self.shared), Arc::clone(&threads.free));
            drop(threads.pool.run(move || shared.work(&free)));
        }
    }

    /// Waits until fewer than `below` pieces are under way.
    pub(crate) async fn settle(&self, below: usize) {
        poll_fn(|context| {
            let mut state = lock(&self.shared.state);
            if state.under_way < below.max(1) {
                return Poll::Ready(());
            }
            state.waiter = Some((below.max(1), context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// The hash so far, and the checksums of the full units. Of a lane that is settled to the last piece.
    pub(crate) fn finish(self) -> (Hasher, Vec<u32>) {
        let mut state = lock(&self.shared.state);
        debug_assert!(state.under_way == 0, "nothing is under way");
        (state.hasher.clone(), std::mem::take(&mut state.crcs))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.under_way -= state.waiting.len();
        // Freed after the lock is released.
        let _given_up = std::mem::take(&mut state.waiting);
        drop(state);
    }
}

impl Shared {
    fn hash(&self, hasher: &mut Hasher, piece: &Piece) -> Vec<u32> {
        let bytes = piece.unit.as_slice();
        hasher.update(&bytes[piece.from..]);
        piece.first_block.map_or_else(Vec::new, |block| self.target.checksums(block, bytes).collect())
    }

    /// Hashes what waits, until nothing does, and frees the thread.
    fn work(&self, free: &AtomicUsize) {
        let mut state = lock(&self.state);
        while let Some(piece) = state.waiting.pop_front() {
            let mut hasher = state.hasher.clone();
            drop(state);
            let crcs = self.hash(&mut hasher, &piece);
            // Its memory is free before anybody is told.
            drop(piece);
            state = lock(&self.state);
            state.hasher = hasher;
            state.crcs.extend(crcs);
            state.under_way -= 1;
            let under_way = state.under_way;
            if let Some((_, waker)) = state.waiter.take_if(|(below, _)| under_way < *below) {
                drop(state);
                waker.wake();
                state = lock(&self.state);
            }
        }
        state.has_thread = false;
        free.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Wake};

    use super::*;
    use crate::digest::{Algorithm, Digest};
    use crate::disk::sim::SimDisk;
    use crate::solo::WRITE_BYTES;
    use crate::sync::thread;
    use crate::units::Units;

    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn wait<F: Future>(future: F) -> F::Output {
        let waker = Arc::new(Unpark(thread::current())).into();
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            thread::park();
        }
    }

    fn target() -> Target {
        Target { key: Key::new([4; 32], [3; 16]), segment: SegmentId(7), epoch: 1 }
    }

    fn full(units: &Arc<Units>, byte: u8) -> Arc<Unit> {
        let mut unit = units.lend(&SimDisk::new());
        unit.push(&[byte; WRITE_BYTES]);
        Arc::new(unit)
    }

    #[test]
    fn pieces_are_hashed_in_order_whoever_hashes_them() {
        let units = Arc::new(Units::default());
        let all: Vec<u8> = (0..20).flat_map(|byte| [byte; WRITE_BYTES]).collect();
        let crcs: Vec<u32> = target().checksums(0, &all).collect();
        for threads in [0, 1, 3] {
            let threads = HashThreads::start(threads).unwrap();
            let lane = Lane::new(Hasher::new(Algorithm::Sha256), target());
            for byte in 0..20_u8 {
                wait(lane.settle(HASHING_MAX));
                let first_block = Some(u64::from(byte) * (WRITE_BYTES / BLOCK_BYTES) as u64);
                lane.push(&threads, Piece { unit: full(&units, byte), from: 0, first_block });
            }
            wait(lane.settle(1));
            let (hasher, found) = lane.finish();
            assert_eq!(hasher.finish(), Digest::of(Algorithm::Sha256, &all));
            assert_eq!(found, crcs);
        }
    }

    #[test]
    fn a_lane_without_a_thread_hashes_at_once_and_a_freed_thread_is_taken_again() {
        let units = Arc::new(Units::default());
        let threads = HashThreads::start(1).unwrap();
        assert!(threads.take(), "it is free");
        let lane = Lane::new(Hasher::new(Algorithm::Sha512), target());
        lane.push(&threads, Piece { unit: full(&units, 1), from: 5, first_block: None });
        assert_eq!(lock(&lane.shared.state).under_way, 0);
        threads.free.fetch_add(1, Ordering::AcqRel);
        lane.push(&threads, Piece { unit: full(&units, 2), from: WRITE_BYTES - 3, first_block: None });
        wait(lane.settle(1));
        let (hasher, crcs) = lane.finish();
        let bytes = [&[1; WRITE_BYTES - 5][..], &[2; 3]].concat();
        assert_eq!(hasher.finish(), Digest::of(Algorithm::Sha512, &bytes));
        assert!(crcs.is_empty());
    }
}
