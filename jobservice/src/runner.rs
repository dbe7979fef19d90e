//! Runs a job until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use taffrail_blobstore::{Store, StoreState};
use tokio_util::sync::CancellationToken;

use crate::counters::Counters;
use crate::job::{Job, Round};

/// The longest pause after failures, whose pauses double.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// When a job is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Between two looks when there is nothing to do.
    pub(crate) pause: Duration,
    /// Before the first look.
    pub(crate) first: Duration,
}

/// Runs rounds of a job until `stop` is cancelled; a round under way is dropped then. Rests while the store takes no writes.
pub(crate) async fn run(
    mut job: impl Job,
    pace: Pace,
    store: Arc<Store>,
    counters: Arc<Counters>,
    stop: CancellationToken,
) {
    let mut pause = pace.first;
    let mut failures: u32 = 0;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        if !matches!(store.state(), StoreState::Writable) {
            pause = pace.pause;
            continue;
        }
        let round = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            round = job.round() => round,
        };
        match round {
            Ok(round) => {
                failures = 0;
                pause = match round {
                    Round::More => Duration::ZERO,
                    Round::After(rest) => rest,
                    Round::Idle => pace.pause,
                };
            }
            Err(error) => {
                counters.add_failures(1);
                failures = failures.saturating_add(1);
                pause = pace.pause.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX).max(pace.pause);
                tracing::warn!(job = job.name(), error = %error, failures, "a job failed; it is tried again");
            }
        }
    }
}
