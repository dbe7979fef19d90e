//! The end of the process: first it says so, then it takes no more, then it waits, then it cuts.
//!
//! What must stay true: readiness fails before anything is refused; a second signal ends the process at once, and the store
//! then recovers as after any crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where the process is on its way out; shared by everything that has to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drain {
    begun: CancellationToken,
    abandoned: CancellationToken,
    connections: TaskTracker,
    failed: Arc<AtomicBool>,
}

/// How the wait for the connections ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Every request was answered.
    Completely,
    /// So many connections were cut.
    Cut(usize),
}

impl Drain {
    /// Begins: readiness fails, listeners close, idle connections end.
    pub(crate) fn begin(&self) {
        self.begun.cancel();
    }

    /// Begins because the store takes no more writes: the process is to end with an error.
    pub(crate) fn begin_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.begin();
    }

    /// Whether it was a failure that began it.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether it has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Completes when it begins.
    pub(crate) fn begun(&self) -> tokio_util::sync::WaitForCancellationFuture<'_> {
        self.begun.cancelled()
    }

    /// Completes when connections are to be cut.
    pub(crate) fn abandoned(&self) -> tokio_util::sync::WaitForCancellationFuture<'_> {
        self.abandoned.cancelled()
    }

    /// Runs a connection; the drain waits for it.
    pub(crate) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        self.connections.spawn(connection);
    }

    /// Waits for the connections, at most so long, then cuts the rest.
    pub(crate) async fn finish(&self, patience: Duration) -> Drained {
        self.connections.close();
        if tokio::time::timeout(patience, self.connections.wait()).await.is_ok() {
            return Drained::Completely;
        }
        let cut = self.connections.len();
        self.abandoned.cancel();
        self.connections.wait().await;
        Drained::Cut(cut)
    }
}

/// The signals that end the process.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from the operating system's default.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub(crate) fn take() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one, and names it.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ends_in_time_is_not_cut() {
        let drain = Drain::default();
        drain.spawn(tokio::time::sleep(Duration::from_secs(29)));
        drain.begin();
        assert_eq!(drain.finish(Duration::from_secs(30)).await, Drained::Completely);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_is() {
        let drain = Drain::default();
        let inner = drain.clone();
        drain.spawn(async move { inner.abandoned().await });
        drain.spawn(tokio::time::sleep(Duration::from_secs(1)));
        drain.begin();
        assert_eq!(drain.finish(Duration::from_secs(30)).await, Drained::Cut(1));
    }
}
