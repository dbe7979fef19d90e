//! Durable points: where an upload that is under way is made durable, beside its reception, so that a power loss costs no more than
//! the bytes behind the newest.
//!
//! What must stay true: a point is the end of a unit. It counts only when the file was flushed after every write below it had ended,
//! and only the upload itself tells the log of it, in order with whatever else it tells; going back behind it gives it up.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::completion::Completion;
use crate::error::{Refusal, UploadError};
use crate::format::record::HashedOffset;
use crate::log::Ticket;
use crate::sync::Arc;

use super::{Upload, closing, solo_error};

/// After so many bytes the session is made durable on the way.
const DURABLE_EVERY_BYTES: u64 = 64 * 1024 * 1024;

/// A durable point on its way.
pub(crate) struct Point {
    hashed: HashedOffset,
    /// Blocks of the file below it.
    blocks: usize,
    stage: Stage,
}

enum Stage {
    /// The file is flushed.
    Flushing(Completion<io::Result<()>>),
    /// The log was told.
    Logging(Ticket),
}

/// How far to go with a point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// As far as it has come by itself.
    Now,
    /// Until the file is flushed; the log is told by whoever waits.
    Flushed,
    /// To the end.
    Logged,
}

impl Upload {
    /// At the end of a unit: sees to the point that is under way, and begins the next one when it is time.
    pub(super) async fn follow_point(&mut self, now_ms: u64) -> Result<(), UploadError> {
        self.advance_point(Until::Now, now_ms).await?;
        let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
        let newest_bytes =
            data.point.as_ref().map_or(data.durable.offset_bytes, |point| point.hashed.offset_bytes);
        if data.offset_bytes.saturating_sub(newest_bytes) < DURABLE_EVERY_BYTES {
            return Ok(());
        }
        // One at a time: a disk that cannot keep up holds the upload up.
        self.advance_point(Until::Logged, now_ms).await?;
        let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
        data.settle_hash().await;
        let Some(solo) = data.solo.as_mut() else { return Ok(()) };
        let flush = solo.flush(&self.engine).await.map_err(|error| solo_error(&self.engine, error))?;
        let hashed = HashedOffset { offset_bytes: data.offset_bytes, state: data.hasher.export() };
        let point = Point { hashed, blocks: solo.crcs.len(), stage: Stage::Flushing(flush) };
        data.point = Some(Box::new(point));
        // Without threads nothing happens beside anything.
        let until = if self.engine.is_inline() { Until::Logged } else { Until::Now };
        self.advance_point(until, now_ms).await
    }

    /// Waits until the point under way counts. The log is to be told by the caller.
    pub(super) async fn settle_point(&mut self) -> Result<(), UploadError> {
        self.advance_point(Until::Flushed, 0).await
    }

    async fn advance_point(&mut self, until: Until, now_ms: u64) -> Result<(), UploadError> {
        loop {
            let engine = Arc::clone(&self.engine);
            let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
            let Some(point) = data.point.as_mut() else { return Ok(()) };
            match &mut point.stage {
                Stage::Flushing(flush) => {
                    let flushed = match until {
                        Until::Now => match now(flush) {
                            Poll::Ready(flushed) => flushed,
                            Poll::Pending => return Ok(()),
                        },
                        Until::Flushed | Until::Logged => flush.await,
                    };
                    let (hashed, blocks) = (point.hashed.clone(), point.blocks);
                    data.point = None;
                    let flushed = flushed.unwrap_or_else(|| Err(closing()));
                    flushed.map_err(|error| solo_error(&engine, error))?;
                    if let Some(solo) = &mut data.solo {
                        solo.name_is_durable = true;
                    }
                    data.durable = hashed.clone();
                    // What is told must never be less than what the log holds already: that was acknowledged.
                    if until == Until::Flushed || hashed.offset_bytes < data.logged_bytes {
                        return Ok(());
                    }
                    let Some(ticket) = self.enqueue_state(&hashed, blocks, now_ms)? else { return Ok(()) };
                    let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
                    data.point = Some(Box::new(Point { hashed, blocks, stage: Stage::Logging(ticket) }));
                }
                Stage::Logging(ticket) => {
                    let logged = match until {
                        Until::Now => match now(ticket) {
                            Poll::Ready(logged) => logged.unwrap_or(Err(Refusal::Closing)),
                            Poll::Pending => return Ok(()),
                        },
                        Until::Flushed => return Ok(()),
                        Until::Logged => engine.wait_for(ticket).await,
                    };
                    let blocks = point.blocks;
                    data.point = None;
                    logged?;
                    // A later record may have come before this was noticed.
                    data.logged_blocks = data.logged_blocks.max(blocks);
                }
            }
        }
    }
}

/// The value, if it is there. A waker is registered by whoever waits.
fn now<T>(completion: &mut Completion<T>) -> Poll<Option<T>> {
    Pin::new(completion).poll(&mut Context::from_waker(Waker::noop()))
}
