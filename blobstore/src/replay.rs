//! Replaying by shard: one thread reads and validates what an opening takes up, several bring it into the locator.
//!
//! Each of them has some of the shards, and takes up what concerns those in the order in which it was read. That is enough:
//!
//! - BLOB, SOLO, LINK, UNLINK, DELETE and CORRUPT, and copies of them, change their digest's entry in its shard, and decide by that entry
//!   alone. What else they change are sets and sums that no record asks: garbage and quarantine by digest, the shard's tally, how many
//!   tombstones a segment has. The order between digests does not show in them.
//! - SESSION, SESSION_END and SEGMENT_DROP change sessions and the table of segments, and ask no blob. The reading thread applies them
//!   itself, in their order. That a blob has a session's file, and so ended it, is looked at when all are through.
//! - What lives in each segment is summed up from the tallies at the end.
//!
//! A long replay is sorted first. Digests come in no order, so that a shard whose delta is full again and again has its whole partition
//! written anew each time. Past [`SORT_RECORDS`] records each thread puts those of its shards into runs, one per shard, in a file that
//! has no name ([`runs`]); when the log is read it takes one shard after the other, applies the run, and writes the partition once. Per
//! digest that is the order of the log again. All sessions are known by then: whether a blob ended one is looked at before the blob goes
//! into the partition, as ever.
//!
//! If the file cannot be made, nothing is sorted; if it fails later, all is forgotten and replayed without it. It is never trusted:
//! the checksums of its blocks are in memory.
//!
//! Memory: a queue holds [`QUEUED`] portions; another makes the reading thread wait. While sorted, a shard holds a block of its run.
//! A shard whose run is applied holds [`SHARD_BYTES_MAX`], then what it has is written to its partition.

mod runs;

#[cfg(test)]
mod tests;

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::Builder;

use crate::digest::Digest;
use crate::engine::Engine;
use crate::format::batch::ValidBatch;
use crate::format::checkpoint::Entry;
use crate::format::partition::{SHARDS, shard_of};
use crate::format::record::{Body, Record};
use crate::merge::Threshold;
use crate::options::Threading;
use crate::replay::runs::{BLOCK_BYTES, BLOCK_BYTES_SMALL, Runs, Scratch};
use crate::sync::{AbortOnPanic, Arc, Ordering};

/// Most threads that apply: more would wait for the one that reads, and each has a shard in memory when a long replay ends.
const APPLIERS_MAX: usize = 2;

/// Records after which a replay is long: more than lie behind a checkpoint of a store that writes one every 64 MiB of log.
pub(crate) const SORT_RECORDS: usize = 512 * 1024;

/// The same for tests that ask for small deltas.
pub(crate) const SORT_RECORDS_SMALL: usize = 8;

/// What a shard may hold while its run is applied, in bytes: at ten million blobs a shard has two thirds of it, and its partition is
/// written once. While that is written, what goes into it is there twice.
const SHARD_BYTES_MAX: usize = 96 * 1024 * 1024;

/// Records of a portion, so that handing one over costs little beside applying it. A batch is not divided.
const PORTION_RECORDS: usize = 2048;

/// Portions that wait for a thread.
const QUEUED: usize = 4;

enum Job {
    /// Entries of a checkpoint, all of the thread's own shards.
    Load(Vec<Entry>),
    /// Batches of the log, of whose records those of its own shards are meant.
    Apply(Arc<Vec<ValidBatch>>),
    /// From here on batches are sorted.
    Sort(Arc<Scratch>),
    /// What was sorted is applied.
    Settle,
    /// To be answered when all before is done.
    Answer(SyncSender<()>),
}

/// What one thread does.
struct Applier<'a> {
    engine: &'a Engine,
    number: usize,
    count: usize,
    runs: Option<Runs>,
}

/// The threads that apply; none where everything runs on the caller's.
pub(crate) struct Appliers<'a> {
    engine: &'a Engine,
    queues: Vec<SyncSender<Job>>,
    /// Where there are no threads.
    inline: Applier<'a>,
    portion: Vec<ValidBatch>,
    portion_records: usize,
    is_sorting: bool,
}

impl Engine {
    /// Runs `work`, and returns when what it handed over is applied as well.
    pub(crate) fn with_appliers<T>(&self, work: impl FnOnce(&mut Appliers<'_>) -> T) -> T {
        let count = match self.options.threading {
            // The model checker would try every order in which they can run.
            _ if cfg!(shuttle) => 0,
            Threading::Inline => 0,
            Threading::Pool { storage_threads } => storage_threads.min(APPLIERS_MAX),
        };
        std::thread::scope(|scope| {
            let applier = |number, count| Applier { engine: self, number, count, runs: None };
            let mut appliers = Appliers {
                engine: self,
                queues: Vec::new(),
                inline: applier(0, 1),
                portion: Vec::new(),
                portion_records: 0,
                is_sorting: false,
            };
            let (queues, jobs): (Vec<_>, Vec<_>) = (0..count).map(|_| sync_channel(QUEUED)).unzip();
            let begun = jobs.into_iter().enumerate().try_for_each(|(number, jobs)| {
                let mut applier = applier(number, count);
                let run = move || {
                    let _guard = AbortOnPanic;
                    jobs.into_iter().for_each(|job| applier.run(job));
                };
                Builder::new().name(format!("taffrail-replay-{number}")).spawn_scoped(scope, run).map(drop)
            });
            // Where there is a limit of threads, this one does it all; those that were begun have nothing to wait for.
            appliers.queues = begun.map_or_else(|_| Vec::new(), |()| queues);
            let done = work(&mut appliers);
            appliers.hand_over();
            done
        })
    }
}

impl Applier<'_> {
    fn run(&mut self, job: Job) {
        match job {
            Job::Load(entries) => entries.into_iter().for_each(|entry| self.engine.load_changed(entry)),
            Job::Apply(batches) => batches.iter().for_each(|batch| self.apply(batch)),
            Job::Sort(scratch) => {
                let is_small = self.engine.options.index_delta_max.is_some();
                let block_bytes = if is_small { BLOCK_BYTES_SMALL } else { BLOCK_BYTES };
                self.runs = Some(Runs::new(scratch, block_bytes));
            }
            Job::Settle => self.settle(),
            // Whoever asked waits for it.
            Job::Answer(done) => drop(done.send(())),
        }
    }

    /// Applies what concerns its own shards, or sorts it.
    fn apply(&mut self, batch: &ValidBatch) {
        if self.runs.is_some() && self.engine.replay_unsorted.load(Ordering::Acquire) {
            // It will be read anew.
            return;
        }
        for record in &batch.records {
            let Some(shard) = digest_of(&record.body).map(shard_of) else { continue };
            if shard % self.count != self.number {
                continue;
            }
            match &mut self.runs {
                None => self.engine.apply(record, batch.place, batch.time_ms),
                Some(runs) => {
                    let put = runs.put(shard, record, batch.place, batch.time_ms);
                    put.unwrap_or_else(|_| self.engine.replay_unsorted.store(true, Ordering::Release));
                }
            }
        }
    }

    /// Applies what was sorted, shard by shard.
    fn settle(&mut self) {
        let Some(mut runs) = self.runs.take() else { return };
        let blobs_max = self.engine.options.index_delta_max;
        let mut may_spill = true;
        for shard in (self.number..SHARDS).step_by(self.count) {
            let mut records_since = 0;
            // What the last spill could not write, because it is only half known.
            let mut left_bytes = 0;
            let apply = |record: &Record, place, time_ms| self.engine.apply(record, place, time_ms);
            let drained = runs.drain(shard, apply, |records| {
                records_since += records;
                let held = self.engine.locator.shard(shard).delta_bytes(records_since);
                let held_max = blobs_max.map_or(SHARD_BYTES_MAX, |blobs| blobs * 1024);
                // Where one could not be written, the next would not be either: the rest stays in memory.
                if held > held_max.max(2 * left_bytes) && may_spill {
                    may_spill = self.engine.spill(shard);
                    left_bytes = self.engine.locator.shard(shard).delta_bytes(0);
                    records_since = 0;
                }
            });
            if drained.is_err() {
                self.engine.replay_unsorted.store(true, Ordering::Release);
            }
            // All of it is forgotten.
            let is_over = self.engine.replay_unsorted.load(Ordering::Acquire)
                || self.engine.locator.is_broken.load(Ordering::Acquire);
            if is_over {
                return;
            }
            // The next checkpoint finds it merged.
            let is_due = {
                let shard = self.engine.locator.shard(shard);
                let is_of_checkpoint = shard.partition().is_some_and(|it| self.engine.is_named(it));
                let usual = if is_of_checkpoint { Threshold::SERVING } else { Threshold::CLOSING };
                self.engine.threshold(usual).is_passed(shard.delta_len(), shard.partition())
            };
            if is_due && may_spill {
                may_spill = self.engine.spill(shard);
            }
        }
    }
}

impl Appliers<'_> {
    /// Takes up entries of a checkpoint that say what changed of blobs.
    pub(crate) fn load(&mut self, entries: Vec<Entry>) {
        if self.queues.is_empty() {
            return entries.into_iter().for_each(|entry| self.engine.load_changed(entry));
        }
        let mut by_thread: Vec<Vec<Entry>> = self.queues.iter().map(|_| Vec::new()).collect();
        for entry in entries {
            let shard = match &entry {
                Entry::Blob { digest, .. } | Entry::Links { digest, .. } | Entry::Gone { digest } => {
                    shard_of(digest)
                }
                Entry::Segment { .. }
                | Entry::Dropped { .. }
                | Entry::Shard { .. }
                | Entry::Live { .. }
                | Entry::Session { .. } => continue,
            };
            let thread = shard % by_thread.len();
            by_thread[thread].push(entry);
        }
        for (queue, entries) in self.queues.iter().zip(by_thread) {
            if !entries.is_empty() {
                drop(queue.send(Job::Load(entries)));
            }
        }
    }

    /// Applies a batch behind those before it.
    pub(crate) fn apply(&mut self, batch: ValidBatch) {
        for record in &batch.records {
            if digest_of(&record.body).is_none() {
                self.engine.apply(record, batch.place, batch.time_ms);
            }
        }
        if self.queues.is_empty() {
            return self.inline.apply(&batch);
        }
        self.portion_records += batch.records.len();
        self.portion.push(batch);
        if self.portion_records >= PORTION_RECORDS {
            self.hand_over();
        }
    }

    /// Whether what comes is sorted first.
    pub(crate) fn is_sorting(&self) -> bool {
        self.is_sorting
    }

    /// Begins to sort, if that can be.
    pub(crate) fn sort(&mut self) {
        let Ok(scratch) = Scratch::create(&*self.engine.disk) else { return };
        let scratch = Arc::new(scratch);
        self.is_sorting = true;
        self.hand_over();
        self.tell(|| Job::Sort(Arc::clone(&scratch)));
    }

    /// Applies what was sorted.
    pub(crate) fn settle(&mut self) {
        self.hand_over();
        self.tell(|| Job::Settle);
        self.wait();
    }

    fn tell(&mut self, job: impl Fn() -> Job) {
        if self.queues.is_empty() {
            self.inline.run(job());
        }
        for queue in &self.queues {
            drop(queue.send(job()));
        }
    }

    fn hand_over(&mut self) {
        self.portion_records = 0;
        if !self.portion.is_empty() {
            let portion = Arc::new(std::mem::take(&mut self.portion));
            for queue in &self.queues {
                drop(queue.send(Job::Apply(Arc::clone(&portion))));
            }
        }
    }

    /// Returns when everything before is applied.
    pub(crate) fn wait(&mut self) {
        self.hand_over();
        let (done, answers) = sync_channel(self.queues.len());
        for queue in &self.queues {
            drop(queue.send(Job::Answer(done.clone())));
        }
        drop(done);
        // Ends when each has answered.
        answers.into_iter().for_each(drop);
    }
}

/// The digest that a record speaks of; `None` for those that concern no blob.
fn digest_of(body: &Body) -> Option<&Digest> {
    match body.said() {
        Body::Blob { digest, .. }
        | Body::Solo { digest, .. }
        | Body::Link { digest, .. }
        | Body::Unlink { digest, .. }
        | Body::Delete { digest }
        | Body::Corrupt { digest, .. } => Some(digest),
        Body::Session(_)
        | Body::SessionEnd { .. }
        | Body::SegmentDrop { .. }
        | Body::Seal
        | Body::Repaired
        | Body::Copy(_) => None,
    }
}
