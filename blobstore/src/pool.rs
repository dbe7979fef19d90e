//! Storage threads: where blocking disk calls run, so that no caller's thread ever waits for a disk.
//!
//! The queue is bounded by its users: an upload has at most [`crate::solo::IN_FLIGHT_MAX`] writes in it, a reader one block and one
//! run ahead, a commit one file sync. With no threads ([`Pool::inline`]) every job runs at once on the caller's thread, which makes
//! the engine deterministic.

use std::collections::VecDeque;

use crate::completion::{Completion, completion};
use crate::sync::{Arc, Condvar, Mutex, lock, thread};

type Job = Box<dyn FnOnce() + Send>;

/// A set of storage threads, joined when it is dropped.
pub(crate) struct Pool {
    queue: Arc<Queue>,
    threads: Vec<thread::JoinHandle<()>>,
}

struct Queue {
    jobs: Mutex<Jobs>,
    wake: Condvar,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    closed: bool,
}

impl Pool {
    /// A pool without threads.
    pub(crate) fn inline() -> Pool {
        Pool { queue: Arc::new(Queue { jobs: Mutex::default(), wake: Condvar::new() }), threads: Vec::new() }
    }

    /// A pool of `threads` threads, at least one.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn threads(threads: usize) -> std::io::Result<Pool> {
        let mut pool = Pool::inline();
        for index in 0..threads.max(1) {
            let queue = Arc::clone(&pool.queue);
            let name = format!("taffrail-io-{index}");
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
            lock(&self.queue.jobs).waiting.push_back(Box::new(job));
            self.queue.wake.notify_one();
        }
        completion
    }
}

impl Queue {
    fn next(&self) -> Option<Job> {
        lock(&self.jobs).waiting.pop_front()
    }

    fn work(&self) {
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                drop(jobs);
                job();
                jobs = lock(&self.jobs);
            } else if jobs.closed {
                return;
            } else {
                jobs = self.wake.wait(jobs).unwrap_or_else(std::sync::PoisonError::into_inner);
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
        // It may also be the only one. What still waits is done before the store's lock goes.
        while let Some(job) = self.queue.next() {
            job();
        }
    }
}
