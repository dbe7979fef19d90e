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
//! Memory: a queue holds [`QUEUED`] portions; another makes the reading thread wait.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::digest::Digest;
use crate::engine::Engine;
use crate::format::batch::ValidBatch;
use crate::format::checkpoint::Entry;
use crate::format::partition::shard_of;
use crate::format::record::Body;
use crate::options::Threading;
use crate::sync::{AbortOnPanic, Arc};

/// Most threads that apply: beyond, the one that reads is what they wait for.
const APPLIERS_MAX: usize = 4;

/// Records of a portion, so that handing one over costs little beside applying it. A batch is not divided.
const PORTION_RECORDS: usize = 2048;

/// Portions that wait for a thread.
const QUEUED: usize = 4;

enum Job {
    /// Entries of a checkpoint, all of the thread's own shards.
    Load(Vec<Entry>),
    /// Batches of the log, of whose records those of its own shards are meant.
    Apply(Arc<Vec<ValidBatch>>),
    /// To be answered when all before is done.
    Answer(SyncSender<()>),
}

/// The threads that apply; none where everything runs on the caller's.
pub(crate) struct Appliers<'a> {
    engine: &'a Engine,
    queues: Vec<SyncSender<Job>>,
    portion: Vec<ValidBatch>,
    portion_records: usize,
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
            let mut appliers =
                Appliers { engine: self, queues: Vec::new(), portion: Vec::new(), portion_records: 0 };
            let (queues, jobs): (Vec<_>, Vec<_>) = (0..count).map(|_| sync_channel(QUEUED)).unzip();
            for (number, jobs) in jobs.into_iter().enumerate() {
                scope.spawn(move || self.run_applier(number, count, &jobs));
            }
            appliers.queues = queues;
            let done = work(&mut appliers);
            appliers.hand_over();
            done
        })
    }

    fn run_applier(&self, number: usize, count: usize, jobs: &Receiver<Job>) {
        let _guard = AbortOnPanic;
        for job in jobs {
            match job {
                Job::Load(entries) => entries.into_iter().for_each(|entry| self.load_changed(entry)),
                Job::Apply(batches) => {
                    for batch in &*batches {
                        for record in &batch.records {
                            let is_own = |digest| shard_of(digest) % count == number;
                            if digest_of(&record.body).is_some_and(is_own) {
                                self.apply(record, batch.place, batch.time_ms);
                            }
                        }
                    }
                }
                // Whoever asked waits for it.
                Job::Answer(done) => drop(done.send(())),
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
        let inline = self.queues.is_empty();
        for record in &batch.records {
            if inline || digest_of(&record.body).is_none() {
                self.engine.apply(record, batch.place, batch.time_ms);
            }
        }
        if !inline {
            self.portion_records += batch.records.len();
            self.portion.push(batch);
            if self.portion_records >= PORTION_RECORDS {
                self.hand_over();
            }
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
