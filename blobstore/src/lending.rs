//! Memory for reading blobs: buffers of one block each, used again while anybody reads and given back when nobody does.
//!
//! Memory that is new to a process is dear: the system clears it, and the first touch of each page costs more than reading into it.
//!
//! What must stay true: reading ahead never takes the buffers that are lent beyond the limit. The block that a reader needs now is
//! always lent, so that nobody waits for memory that a slow client holds; those are bounded by the number of readers. Nor does a
//! handful of slow clients take all that there is for reading ahead.

use crate::buffer::AlignedBuffer;
use crate::format::BLOCK_BYTES;
use crate::sync::{Arc, Mutex, lock};

/// The buffers of a store.
pub(crate) struct Lending {
    lent_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whole blocks that are lent.
    lent: usize,
    /// Whole blocks to be lent again, the one used last at the end: it may still be in the processor's cache.
    free: Vec<AlignedBuffer>,
}

/// A buffer on loan, of [`BLOCK_BYTES`], aligned for direct I/O. Dropping it gives it back.
pub(crate) struct Loan {
    // None only while it is dropped.
    buffer: Option<AlignedBuffer>,
    lender: Arc<Lending>,
}

impl Lending {
    /// Buffers of which reading ahead takes as many as fit `bytes_max`, together with what is lent otherwise.
    pub(crate) fn new(bytes_max: u64) -> Lending {
        let lent_max = usize::try_from(bytes_max).unwrap_or(usize::MAX) / BLOCK_BYTES;
        Lending { lent_max, state: Mutex::default() }
    }

    /// A block. What it holds is left over from an earlier loan.
    pub(crate) fn lend(self: &Arc<Self>) -> Loan {
        let used = {
            let mut state = lock(&self.state);
            state.lent += 1;
            state.free.pop()
        };
        self.loan(used)
    }

    /// Blocks for a run that is read ahead: as many as the limit leaves, at most `count`. When less than half of it is left, one
    /// block, and none for a reader that has `runs` under way already: a few slow readers must not take all from everybody.
    pub(crate) fn lend_ahead(self: &Arc<Self>, count: usize, runs: usize) -> Vec<Loan> {
        let used: Vec<Option<AlignedBuffer>> = {
            let mut state = lock(&self.state);
            let left = self.lent_max.saturating_sub(state.lent);
            let fair = match (left < self.lent_max / 2, runs) {
                (false, _) => count,
                (true, 0) => count.min(1),
                (true, _) => 0,
            };
            let count = fair.min(left);
            state.lent += count;
            (0..count).map(|_| state.free.pop()).collect()
        };
        used.into_iter().map(|used| self.loan(used)).collect()
    }

    fn loan(self: &Arc<Self>, used: Option<AlignedBuffer>) -> Loan {
        let buffer = used.unwrap_or_else(|| AlignedBuffer::zeroed(BLOCK_BYTES));
        Loan { buffer: Some(buffer), lender: Arc::clone(self) }
    }

    fn take_back(&self, buffer: AlignedBuffer) {
        // Freed after the lock is released.
        let _surplus: Vec<AlignedBuffer> = {
            let mut state = lock(&self.state);
            state.lent = state.lent.saturating_sub(1);
            state.free.push(buffer);
            // As many as are in use may be wanted again soon; when nobody reads, none.
            let surplus = state.free.len().saturating_sub(state.lent);
            state.free.drain(..surplus).collect()
        };
    }
}

impl Loan {
    /// The buffer, to be filled.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map(AlignedBuffer::as_mut_slice).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().map(AlignedBuffer::as_slice).unwrap_or_default()
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.lender.take_back(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(lending: &Lending) -> (usize, usize) {
        let state = lock(&lending.state);
        (state.lent, state.free.len())
    }

    #[test]
    fn a_buffer_is_lent_again_and_all_are_freed_when_nobody_reads() {
        let lending = Arc::new(Lending::new(16 * BLOCK_BYTES as u64));
        let mut first = lending.lend();
        first.as_mut_slice()[0] = 7;
        let second = lending.lend();
        drop(first);
        assert_eq!(state(&lending), (1, 1));
        let again = lending.lend_ahead(1, 0);
        assert_eq!(again[0].as_ref()[0], 7, "it is the same memory");
        assert_eq!(state(&lending), (2, 0));
        drop(again);
        drop(second);
        assert_eq!(state(&lending), (0, 0));
    }

    #[test]
    fn of_the_second_half_a_reader_has_one_block_at_a_time() {
        let lending = Arc::new(Lending::new(8 * BLOCK_BYTES as u64));
        let first = lending.lend_ahead(5, 1);
        assert_eq!(first.len(), 5, "there was enough for all of it");
        assert_eq!(lending.lend_ahead(4, 1).len(), 0);
        let others: Vec<_> = (0..4).map(|_| lending.lend_ahead(4, 0)).collect();
        assert_eq!(others.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 0]);
        drop((first, others));
        assert_eq!(lending.lend_ahead(4, 1).len(), 4, "there is enough again");
    }

    #[test]
    fn reading_ahead_stays_within_the_limit_and_needed_blocks_are_lent_past_it() {
        let lending = Arc::new(Lending::new(4 * BLOCK_BYTES as u64));
        let ahead = lending.lend_ahead(3, 0);
        assert_eq!(ahead.len(), 3);
        let more = lending.lend_ahead(3, 0);
        assert_eq!(more.len(), 1);
        assert!(lending.lend_ahead(1, 0).is_empty());
        let needed = lending.lend();
        assert_eq!(needed.as_ref().len(), BLOCK_BYTES);
        assert_eq!(state(&lending), (5, 0));
        drop((ahead, more));
        assert_eq!(state(&lending), (1, 1), "no more is kept than is in use");
    }
}
