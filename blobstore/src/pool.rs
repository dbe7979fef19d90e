//! Storage threads: where blocking disk calls run, so that no caller's thread ever waits for a disk.
//!
//! The queue is bounded by its users: an upload has at most [`crate::solo::IN_FLIGHT_MAX`] writes and a flush in it, a reader one block
//! and two runs ahead, a commit one file sync, the log one piece of zeros. A write that the disk takes without a thread
//! ([`File::begin_write`]) takes none. With no threads ([`Pool::inline`]) every job runs at once on the caller's thread, which makes
//! the engine deterministic.

use std::collections::VecDeque;
use std::io;

use crate::completion::{Completion, completion};
use crate::disk::{File, Source, Write, Written};
use crate::sync::{AbortOnPanic, Arc, Condvar, Mutex, PoisonError, lock, thread};

type Job = Box<dyn FnOnce() + Send>;

/// A set of storage threads, joined when it is dropped.
pub(crate) struct Pool {
    queue: Arc<Queue>,
    threads: Vec<thread::JoinHandle<()>>,
}

struct Queue {
    jobs: Mutex<Jobs>,
    wake: Condvar,
    /// Signalled when the last write that was begun is over.
    settled: Condvar,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Writes that were begun and are not over.
    begun: usize,
    closed: bool,
}

/// A write that was begun, until it is over.
struct Begun {
    queue: Arc<Queue>,
}

impl Begun {
    fn new(queue: &Arc<Queue>) -> Begun {
        lock(&queue.jobs).begun += 1;
        Begun { queue: Arc::clone(queue) }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let left = {
            let mut jobs = lock(&self.queue.jobs);
            jobs.begun -= 1;
            jobs.begun
        };
        if left == 0 {
            self.queue.settled.notify_all();
        }
    }
}

impl Pool {
    /// A pool without threads.
    pub(crate) fn inline() -> Pool {
        let queue = Queue { jobs: Mutex::default(), wake: Condvar::new(), settled: Condvar::new() };
        Pool { queue: Arc::new(queue), threads: Vec::new() }
    }

    /// A pool of `threads` threads, at least one.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn threads(threads: usize) -> std::io::Result<Pool> {
        Pool::named("taffrail-io", threads)
    }

    /// The same, with threads of another name.
    pub(crate) fn named(name: &str, threads: usize) -> std::io::Result<Pool> {
        let mut pool = Pool::inline();
        for index in 0..threads.max(1) {
            let queue = Arc::clone(&pool.queue);
            let name = format!("{name}-{index}");
            pool.threads.push(thread::Builder::new().name(name).spawn(move || queue.work())?);
        }
        Ok(pool)
    }

    /// Runs `job`; the completion ends with `None` only when the pool is torn down before.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Completion<T> {
        let (completer, completion) = completion();
        let job = move || completer.complete(job());
        if self.threads.is_empty() {
            job();
        } else {
            self.queue.push(Box::new(job));
        }
        completion
    }

    /// Writes all of `source` to `offset_bytes`: without a thread where the disk can, else on a storage thread.
    pub(crate) fn write(
        &self,
        file: Arc<dyn File>,
        source: Source,
        offset_bytes: u64,
    ) -> Completion<io::Result<()>> {
        if self.threads.is_empty() {
            return self.run(move || file.write_at(source.as_slice(), offset_bytes));
        }
        let (completer, completion) = completion();
        let begun = Begun::new(&self.queue);
        let (queue, again) = (Arc::clone(&self.queue), Arc::clone(&file));
        let then = Box::new(move |written, source: Source| match written {
            Written::Done(outcome) => {
                drop((source, again));
                completer.complete(outcome);
                drop(begun);
            }
            Written::NotHere => queue.push(Box::new(move || {
                let outcome = again.write_at(source.as_slice(), offset_bytes);
                drop((source, again));
                completer.complete(outcome);
                drop(begun);
            })),
        });
        if let Err(write) = file.begin_write(Write::new(source, offset_bytes, then)) {
            let (source, _, then) = write.into_parts();
            then(Written::NotHere, source);
        }
        completion
    }
}

impl Queue {
    fn push(&self, job: Job) {
        lock(&self.jobs).waiting.push_back(job);
        self.wake.notify_one();
        // Whoever tears the pool down runs what comes now.
        self.settled.notify_all();
    }

    fn next(&self) -> Option<Job> {
        lock(&self.jobs).waiting.pop_front()
    }

    fn work(&self) {
        let _guard = AbortOnPanic;
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                drop(jobs);
                job();
                jobs = lock(&self.jobs);
            } else if jobs.closed {
                return;
            } else {
                jobs = self.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.queue.jobs).closed = true;
        self.queue.wake.notify_all();
        for thread in self.threads.drain(..) {
            // The last user of the engine may be a job itself; a thread cannot join itself.
            if thread.thread().id() != thread::current().id() {
                drop(thread.join());
            }
        }
        // It may also be the only one. What still waits is done before the store's lock goes, and what was begun is over: none of it
        // waits for this thread, because whoever ends a write only wakes the one who waits for it.
        loop {
            while let Some(job) = self.queue.next() {
                job();
            }
            let jobs = lock(&self.queue.jobs);
            if jobs.begun == 0 {
                return;
            }
            if jobs.waiting.is_empty() {
                drop(self.queue.settled.wait(jobs).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    /// Tells the process that this test starts to do what ends it.
    const PANICS: &str = "TAFFRAIL_POOL_PANICS";
    /// A process that has not ended by then does not end.
    const END_WAIT: Duration = Duration::from_secs(5);
    const SIGABRT: i32 = 6;

    /// The threads ended one after the other without a word, and with the last one everything that waits for the disk hung.
    #[test]
    fn a_job_that_panics_ends_the_process() {
        let name = "pool::tests::a_job_that_panics_ends_the_process";
        if std::env::vars_os().any(|(key, _)| key == PANICS) {
            let pool = Pool::threads(2).unwrap();
            drop(pool.run(|| panic!("as a job never should")));
            thread::sleep(END_WAIT);
            return;
        }
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program);
        child.args([name, "--exact"]).env(PANICS, "1").stdout(Stdio::null()).stderr(Stdio::null());
        let status = child.status().unwrap();
        assert_eq!(status.signal(), Some(SIGABRT), "{status}");
    }
}
