//! Reads the whole store again, a little at a time: rot is to be found while somebody still has the bytes to push them again.
//!
//! What must stay true: never faster than the operator allows, and never more than a quarter of the time, so that a disk that is busy
//! with clients is left to them; where a pass stands survives a restart.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use taffrail_blobstore::{ScrubDepth, ScrubPosition, Scrubbed, Scrubber, Store};
use taffrail_core::context::Context;
use taffrail_core::scrub::{PassState, ScrubState, ScrubStore};

use crate::counters::Counters;
use crate::job::{Job, JobError, Round};

/// What a step may spend, in bytes: some milliseconds of a disk, so that whoever waits for it does not wait long.
const STEP_BYTES: u64 = 1024 * 1024;

/// A step is followed by a rest of so many times its length: the scrub has a quarter of the disk at most.
const REST_TIMES: u64 = 3;

/// What a step is taken to have lasted at most, in microseconds: a clock that was set forward meanwhile must not stop the scrub.
const TOOK_US_MAX: u64 = 20_000_000;

/// How often the position is kept, and a checkpoint written where the log is damaged, in microseconds. What was read since is read again
/// after a crash.
const SAVE_US: i64 = 30_000_000;

/// Damage of the log and unreadable blobs named one by one, per pass. The counters have the whole number.
const REPORTS_MAX: u64 = 100;

/// How often everything is read, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct ScrubOptions {
    /// Between the beginnings of two passes.
    pub period: Duration,
    /// Between two passes that hold blobs against their digests.
    pub digest_period: Duration,
    /// At most.
    pub bytes_per_s: u64,
}

/// The job.
pub(crate) struct Scrub {
    pub(crate) store: Arc<Store>,
    pub(crate) scrubs: ScrubStore,
    pub(crate) context: Context,
    pub(crate) counters: Arc<Counters>,
    pub(crate) options: ScrubOptions,
    pub(crate) pass: Option<Pass>,
}

/// The pass under way.
pub(crate) struct Pass {
    scrubber: Scrubber,
    state: ScrubState,
    saved_us: i64,
    /// Whether the log was found damaged since the last checkpoint, and when that was: a log that is damaged all over would have one
    /// written for each step.
    lacks_checkpoint: bool,
    checkpointed_us: Option<i64>,
    bad: u64,
    damage: u64,
    unreadable: u64,
}

#[async_trait]
impl Job for Scrub {
    fn name(&self) -> &'static str {
        "scrub"
    }

    async fn round(&mut self) -> Result<Round, JobError> {
        if self.pass.is_none() {
            self.pass = self.begin().await?;
        }
        let Some(pass) = &mut self.pass else { return Ok(Round::Idle) };
        let began_us = self.context.now_micros();
        let step = pass.scrubber.step(STEP_BYTES).await?;
        pass.report(&step, &self.counters);
        pass.lacks_checkpoint |= !step.damage.is_empty();
        let is_due = pass.checkpointed_us.is_none_or(|us| began_us < us || began_us - us >= SAVE_US);
        if pass.lacks_checkpoint && (is_due || step.is_complete) {
            // What the damaged records said is in memory, and now in a checkpoint: the next start does not need them. Where none can
            // be written now, the store's own checkpoints come later, and the pass goes on.
            let written = self.store.checkpoint().await;
            if let Err(refusal) = &written {
                tracing::warn!(%refusal, "the log is damaged, and no checkpoint makes up for it yet");
            }
            (pass.lacks_checkpoint, pass.checkpointed_us) = (written.is_err(), Some(began_us));
        }
        let now_us = self.context.now_micros();
        let took_us = u64::try_from(now_us.saturating_sub(began_us)).unwrap_or(0);
        if step.is_complete {
            let Some(pass) = self.pass.take() else { return Ok(Round::Idle) };
            self.complete(pass, now_us).await?;
            return Ok(Round::Idle);
        }
        if now_us.saturating_sub(pass.saved_us) >= SAVE_US || now_us < pass.saved_us {
            pass.save(&self.scrubs, now_us).await?;
        }
        Ok(Round::After(rest(self.options.bytes_per_s, step.cost_bytes, took_us)))
    }
}

/// How long to rest after a step.
fn rest(bytes_per_s: u64, cost_bytes: u64, took_us: u64) -> Duration {
    let due_us = cost_bytes.saturating_mul(1_000_000) / bytes_per_s.max(1);
    let took_us = took_us.min(TOOK_US_MAX);
    let rest_us = due_us.saturating_sub(took_us).max(took_us.saturating_mul(REST_TIMES));
    Duration::from_micros(rest_us)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Scrub {
    /// Goes on with the pass of before a restart, or begins one when it is time.
    async fn begin(&self) -> Result<Option<Pass>, JobError> {
        let mut state = self.scrubs.load().await?;
        self.counters
            .set_scrub_completed_us(state.completed_us.map_or(0, |us| u64::try_from(us).unwrap_or(0)));
        let now_us = self.context.now_micros();
        // Also when the clock ran ahead once: it would be waited for.
        let is_due = |since_us: Option<i64>, period: Duration| {
            since_us.is_none_or(|us| us > now_us || now_us.saturating_sub(us) >= micros(period))
        };
        let kept = state.pass.as_ref().and_then(|pass| Some((pass.position.parse().ok()?, pass.is_deep)));
        let (position, is_deep) = match kept {
            Some(kept) => kept,
            None if is_due(state.begun_us, self.options.period) => {
                state.begun_us = Some(now_us);
                (ScrubPosition::START, is_due(state.digests_us, self.options.digest_period))
            }
            None => return Ok(None),
        };
        let depth = if is_deep { ScrubDepth::Digests } else { ScrubDepth::Checksums };
        let Some(scrubber) = self.store.scrub(position, depth) else { return Ok(None) };
        tracing::info!(digests = is_deep, from = %position, "scrubbing");
        let mut pass = Pass {
            scrubber,
            state,
            saved_us: now_us,
            lacks_checkpoint: false,
            checkpointed_us: None,
            bad: 0,
            damage: 0,
            unreadable: 0,
        };
        pass.save(&self.scrubs, now_us).await?;
        Ok(Some(pass))
    }

    async fn complete(&self, pass: Pass, now_us: i64) -> Result<(), JobError> {
        let is_deep = pass.scrubber.depth() == ScrubDepth::Digests;
        let begun_us = pass.state.begun_us.unwrap_or(now_us);
        let state = ScrubState {
            begun_us: pass.state.begun_us,
            completed_us: Some(now_us),
            digests_us: if is_deep { Some(now_us) } else { pass.state.digests_us },
            pass: None,
        };
        self.scrubs.save(&state).await?;
        self.counters.set_scrub_completed_us(u64::try_from(now_us).unwrap_or(0));
        self.counters.set_scrub_permille(0);
        self.counters.set_scrub_log_damages(pass.damage);
        self.counters.set_scrub_unreadable(pass.unreadable);
        self.counters.add_scrub_passes(1);
        let took_us = now_us.saturating_sub(begun_us);
        tracing::info!(
            digests = is_deep,
            bad = pass.bad,
            unreadable = pass.unreadable,
            log_damages = pass.damage,
            took_secs = took_us / 1_000_000,
            "scrubbed the store"
        );
        if took_us > micros(self.options.period) {
            tracing::warn!("the scrub takes longer than scrub.period_secs; raise scrub.bytes_per_sec");
        }
        Ok(())
    }
}

impl Pass {
    fn report(&mut self, step: &Scrubbed, counters: &Counters) {
        counters.add_scrub_bytes(step.read_bytes);
        counters.add_scrub_blobs(step.blobs);
        counters.add_scrub_bad_blobs(step.bad.len() as u64);
        counters.set_scrub_permille(self.scrubber.position().permille());
        self.bad += step.bad.len() as u64;
        for damage in &step.damage {
            self.damage += 1;
            if self.damage <= REPORTS_MAX {
                tracing::error!(
                    %damage,
                    "the log rotted: what it says is known as long as the server runs, and a checkpoint keeps it; \
                     run `taffrail-fsck check`, and `repair` when the server is stopped"
                );
            }
        }
        for unreadable in &step.unreadable {
            self.unreadable += 1;
            if self.unreadable <= REPORTS_MAX {
                let digest = unreadable.digest.map(|digest| digest.to_string()).unwrap_or_default();
                tracing::error!(digest, reason = unreadable.reason, "the disk does not give what it holds");
            }
        }
        // Not less than the last complete pass found, before this one is over.
        counters.set_scrub_log_damages(counters.scrub_log_damages().max(self.damage));
        counters.set_scrub_unreadable(counters.scrub_unreadable().max(self.unreadable));
    }

    async fn save(&mut self, scrubs: &ScrubStore, now_us: i64) -> Result<(), JobError> {
        let is_deep = self.scrubber.depth() == ScrubDepth::Digests;
        self.state.pass = Some(PassState { position: self.scrubber.position().to_string(), is_deep });
        scrubs.save(&self.state).await?;
        self.saved_us = now_us;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_paid_for_by_a_rest_and_a_slow_disk_is_left_alone_for_longer() {
        let mib = 1024 * 1024;
        assert_eq!(rest(8 * mib, mib, 5_000), Duration::from_micros(120_000));
        assert_eq!(rest(8 * mib, mib, 50_000), Duration::from_micros(150_000));
        assert_eq!(rest(u64::MAX, mib, 1_000), Duration::from_micros(3_000));
        assert_eq!(rest(0, 0, 0), Duration::ZERO);
        assert_eq!(rest(8 * mib, mib, u64::MAX), Duration::from_secs(60), "the clock was set forward");
    }
}
