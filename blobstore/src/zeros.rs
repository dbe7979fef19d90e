//! Zeros ahead of the end of the log: where they are, batches go past the page cache and over them.
//!
//! A flush of space that was only reserved writes the file system's journal as well; one of what was written over zeros does not
//! (`docs/decisions/0013-zeros-ahead-of-the-log.md`). What must stay true:
//!
//! - Zeros are written where no batch is or is being written, and none behind the space that the segment has reserved.
//! - At most one job is queued or under way in a store. It writes one piece.
//! - Zeros are not flushed and nothing relies on them: what a batch's own flush returns for is durable, whatever its place was before.
//!   No error of theirs is one of the store. After one, as after a batch that was refused, the segment gets no more of them, and its
//!   batches go through the page cache.
//! - [`Zeros::end`] comes before the segment is cut: a piece under way would make the file longer again.

use crate::buffer::AlignedBuffer;
use crate::disk::File;
use crate::format::ALIGN_BYTES;
use crate::sync::{Arc, Condvar, Mutex, PoisonError, lock};

/// Bytes of one piece. The first commit over a new piece waits for the journal, which learns of the piece with it: this is one in 64 of
/// the smallest commits. With longer pieces there are fewer that wait, and they wait longer.
const PIECE_BYTES: u64 = 512 * 1024;

/// Zeros are written at most so far ahead of the end of the log, in bytes: what commits of 64 writers take in 30 ms, as long as a job may
/// wait behind uploads. Also what an idle store has written for nothing.
const AHEAD_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A batch longer than this, in bytes, asks for no more zeros: the longer it is, the less of its time is the journal's, and it would be written
/// twice. So much is 55 commits of 4 KiB, and less than what compaction copies at once, which is to write each byte once.
const BATCH_BYTES_MAX: u64 = 256 * 1024;

const _: () = assert!(PIECE_BYTES.is_multiple_of(ALIGN_BYTES as u64) && PIECE_BYTES <= AHEAD_BYTES_MAX);

/// The zeros ahead of the end of the log.
#[derive(Default)]
pub(crate) struct Zeros {
    state: Mutex<State>,
    /// Signalled when a piece is written.
    written: Condvar,
}

#[derive(Default)]
struct State {
    /// The segment at the end of the log, when it is to have zeros.
    ahead: Option<Ahead>,
    /// Whether a job is queued or under way.
    has_job: bool,
    /// Whether it is writing.
    is_writing: bool,
}

struct Ahead {
    /// Past the page cache.
    file: Arc<dyn File>,
    /// Where the next batch goes.
    end_bytes: u64,
    /// Everything from there to here is zeros that were written; behind `end_bytes` or equal to it.
    zeros_end_bytes: u64,
    capacity_bytes: u64,
    /// Whether the last batch was a small one.
    wants_more: bool,
}

impl Ahead {
    /// The next piece, when there is room for it.
    fn piece(&self) -> Option<(u64, u64)> {
        let to_bytes = self.capacity_bytes.min(self.zeros_end_bytes + PIECE_BYTES);
        let is_near = to_bytes <= self.end_bytes.saturating_add(AHEAD_BYTES_MAX);
        (is_near && self.zeros_end_bytes < to_bytes).then_some((self.zeros_end_bytes, to_bytes))
    }
}

impl Zeros {
    /// Begins with a new segment, whose batches begin at `end_bytes`.
    pub(crate) fn begin(&self, file: Arc<dyn File>, end_bytes: u64, capacity_bytes: u64) {
        let mut state = lock(&self.state);
        debug_assert!(state.ahead.is_none(), "the segment before was ended");
        let capacity_bytes = capacity_bytes / ALIGN_BYTES as u64 * ALIGN_BYTES as u64;
        let zeros_end_bytes = end_bytes;
        state.ahead = Some(Ahead { file, end_bytes, zeros_end_bytes, capacity_bytes, wants_more: true });
    }

    /// Ends with the segment. When it returns, nobody writes zeros to it, or will.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        while state.is_writing {
            state = self.written.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.ahead = None;
    }

    /// How the next batch, which is so long, is to be written: past the page cache through this file, over zeros; through the page cache
    /// when there is none. Then no zeros are written in its place any more. Waits for a piece that is being written there.
    pub(crate) fn claim(&self, batch_bytes: u64) -> Option<Arc<dyn File>> {
        let mut state = lock(&self.state);
        loop {
            let is_writing = state.is_writing;
            let ahead = state.ahead.as_mut()?;
            let batch_end_bytes = ahead.end_bytes + batch_bytes;
            if batch_end_bytes <= ahead.zeros_end_bytes {
                return Some(Arc::clone(&ahead.file));
            }
            if !is_writing {
                ahead.zeros_end_bytes = batch_end_bytes;
                return None;
            }
            state = self.written.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The batch that was claimed is durable; the next one goes to `end_bytes`.
    pub(crate) fn advance(&self, end_bytes: u64) {
        if let Some(ahead) = &mut lock(&self.state).ahead {
            ahead.wants_more = end_bytes - ahead.end_bytes <= BATCH_BYTES_MAX;
            ahead.end_bytes = end_bytes;
        }
    }

    /// Whether a job is to be run now, which then must be.
    #[must_use]
    pub(crate) fn take_job(&self) -> bool {
        let mut state = lock(&self.state);
        let is_wanted = state.ahead.as_ref().is_some_and(|ahead| ahead.wants_more && ahead.piece().is_some());
        let is_taken = is_wanted && !state.has_job;
        state.has_job |= is_taken;
        is_taken
    }

    /// The job: writes the next piece.
    pub(crate) fn write_piece(&self) {
        let Some((file, from_bytes, to_bytes)) = self.begin_piece() else { return };
        let zeros = AlignedBuffer::zeroed(usize::try_from(to_bytes - from_bytes).unwrap_or(0));
        let written = file.write_at(zeros.as_slice(), from_bytes);
        let mut state = lock(&self.state);
        (state.has_job, state.is_writing) = (false, false);
        match (&mut state.ahead, written) {
            (Some(ahead), Ok(())) => ahead.zeros_end_bytes = to_bytes,
            // A full disk, a quota, a bad sector: batches go on as if there had never been zeros.
            (ahead, _) => *ahead = None,
        }
        drop(state);
        self.written.notify_all();
    }

    fn begin_piece(&self) -> Option<(Arc<dyn File>, u64, u64)> {
        let mut state = lock(&self.state);
        // The segment may be another one than when the job was queued, or have none any more.
        let next = state.ahead.as_ref().and_then(|ahead| Some((Arc::clone(&ahead.file), ahead.piece()?)));
        state.has_job = next.is_some();
        state.is_writing = next.is_some();
        next.map(|(file, (from_bytes, to_bytes))| (file, from_bytes, to_bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::disk::{Access, Disk as _};

    const HEADER: u64 = ALIGN_BYTES as u64;
    const CAPACITY: u64 = 24 * PIECE_BYTES;

    fn begun(file: Arc<dyn File>) -> Arc<Zeros> {
        let zeros = Arc::new(Zeros::default());
        zeros.begin(file, HEADER, CAPACITY);
        zeros
    }

    fn file() -> Arc<dyn File> {
        SimDisk::new().create("a", CAPACITY, Access::Direct).unwrap()
    }

    #[test]
    fn one_job_at_most_is_taken_and_each_writes_a_piece_up_to_the_window_and_the_capacity() {
        let zeros = begun(file());
        let mut end_bytes = HEADER;
        while end_bytes < CAPACITY {
            let mut pieces = 0;
            while zeros.take_job() {
                assert!(!zeros.take_job(), "one is taken");
                zeros.write_piece();
                pieces += 1;
            }
            let first = end_bytes == HEADER;
            assert!(pieces == if first { AHEAD_BYTES_MAX / PIECE_BYTES } else { pieces.min(1) });
            assert!(zeros.claim(HEADER).is_some(), "zeros at {end_bytes}");
            end_bytes += HEADER;
            zeros.advance(end_bytes);
        }
        assert!(!zeros.take_job());
        assert!(zeros.claim(HEADER).is_none(), "none behind the capacity");
    }

    #[test]
    fn a_job_that_was_queued_for_a_segment_that_ended_writes_to_the_one_that_there_is() {
        let (first, second) = (file(), file());
        let zeros = begun(Arc::clone(&first));
        assert!(zeros.take_job());
        zeros.end();
        zeros.begin(second, 3 * HEADER, CAPACITY);
        assert!(!zeros.take_job(), "the one that is queued serves");
        zeros.write_piece();
        assert!(zeros.claim(PIECE_BYTES).is_some());
        zeros.end();
        assert!(zeros.claim(HEADER).is_none());
        assert!(!zeros.take_job(), "there is no segment");
        zeros.write_piece();
    }

    #[test]
    fn zeros_begin_behind_a_batch_that_went_through_the_page_cache() {
        let file = file();
        let zeros = begun(Arc::clone(&file));
        assert!(zeros.take_job());
        assert!(zeros.claim(HEADER).is_none());
        // While the job was queued.
        let mut batch = AlignedBuffer::zeroed(ALIGN_BYTES);
        batch.as_mut_slice().fill(7);
        file.write_at(batch.as_slice(), HEADER).unwrap();
        zeros.write_piece();
        batch.as_mut_slice().fill(0);
        file.read_at(batch.as_mut_slice(), HEADER).unwrap();
        assert!(batch.as_slice().iter().all(|byte| *byte == 7));
    }

    /// A file whose writes last until they are let go on.
    #[derive(Debug, Default)]
    struct Slow {
        state: Mutex<Progress>,
        changed: Condvar,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
    enum Progress {
        #[default]
        Waiting,
        Begun,
        Released,
        Done,
    }

    impl Slow {
        fn reach(&self, progress: Progress) {
            *lock(&self.state) = progress;
            self.changed.notify_all();
        }

        fn await_progress(&self, progress: Progress) {
            let mut state = lock(&self.state);
            while *state < progress {
                state = self.changed.wait(state).unwrap();
            }
        }
    }

    impl File for Slow {
        fn read_at(&self, _buffer: &mut [u8], _offset_bytes: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn write_at(&self, _bytes: &[u8], _offset_bytes: u64) -> io::Result<()> {
            self.reach(Progress::Begun);
            self.await_progress(Progress::Released);
            self.reach(Progress::Done);
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn allocate(&self, _len_bytes: u64) -> io::Result<()> {
            Ok(())
        }

        fn truncate(&self, _len_bytes: u64) -> io::Result<()> {
            Ok(())
        }

        fn len_bytes(&self) -> io::Result<u64> {
            Ok(CAPACITY)
        }

        fn gains_from_zeros(&self) -> bool {
            true
        }
    }

    /// Calls `wait` while a piece is being written, and sees that it does not return before that is over.
    fn must_wait_for_a_piece(wait: impl Fn(&Zeros) + Send + Sync + 'static) {
        let slow = Arc::<Slow>::default();
        let file: Arc<dyn File> = Arc::<Slow>::clone(&slow);
        let zeros = begun(file);
        assert!(zeros.take_job());
        let job = {
            let zeros = Arc::clone(&zeros);
            std::thread::spawn(move || zeros.write_piece())
        };
        slow.await_progress(Progress::Begun);
        let waiting = {
            let (zeros, slow) = (Arc::clone(&zeros), Arc::clone(&slow));
            std::thread::spawn(move || {
                wait(&zeros);
                assert_eq!(*lock(&slow.state), Progress::Done);
            })
        };
        // Time to go wrong in.
        for _ in 0..10_000 {
            std::thread::yield_now();
            if waiting.is_finished() {
                break;
            }
        }
        slow.reach(Progress::Released);
        job.join().unwrap();
        waiting.join().unwrap();
    }

    /// A piece that was under way when the file was cut made it long again.
    #[test]
    fn a_segment_ends_when_the_piece_under_way_is_written() {
        must_wait_for_a_piece(Zeros::end);
    }

    /// The zeros would come over it.
    #[test]
    fn a_batch_does_not_go_where_a_piece_is_being_written() {
        must_wait_for_a_piece(|zeros| assert!(zeros.claim(HEADER).is_some(), "there are zeros then"));
        must_wait_for_a_piece(|zeros| assert!(zeros.claim(2 * PIECE_BYTES).is_none(), "not enough"));
    }
}
