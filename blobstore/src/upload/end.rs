//! The end of an upload session: by its blob, by its client, or by an error.
//!
//! What must stay true: a session that the log knows is over for everybody at once, and is kept in mind until the log knows that
//! it is; its file goes with the record of that, whether or not anybody waits.

use bytes::Bytes;

use crate::engine::Engine;
use crate::error::Refusal;
use crate::format::SegmentId;
use crate::format::batch::NewRecord;
use crate::format::record::Body;
use crate::log::{Ending, Fate, Marks, Purpose, Ticket};
use crate::repository::SessionId;
use crate::session::SessionData;
use crate::solo::SoloWriter;
use crate::sync::Arc;

/// A session whose blob is on its way: it is over, whether or not anybody waits for the log. What becomes of its file is up to
/// the log ([`Ending`]).
pub(super) struct Over {
    engine: Arc<Engine>,
    id: SessionId,
    data: Option<Box<SessionData>>,
    /// Whether the log is known to have taken in the end.
    pub(super) is_told: bool,
}

impl Over {
    pub(super) fn new(engine: &Arc<Engine>, id: SessionId, mut data: Option<Box<SessionData>>) -> Over {
        if let Some(solo) = data.as_mut().and_then(|data| data.solo.as_mut()) {
            solo.keep();
        }
        Over { engine: Arc::clone(engine), id, data, is_told: false }
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        let Some(data) = &self.data else { return };
        self.engine.sessions.sub_memory(data.memory_bytes());
        self.engine.sessions.end(self.id, data.is_logged && !self.is_told);
    }
}

/// Ends a session. When this returns without an error, no restart brings it back.
pub(super) async fn end(
    engine: &Arc<Engine>,
    id: SessionId,
    data: SessionData,
    now_ms: u64,
) -> Result<(), Refusal> {
    match end_unattended(engine, id, data, now_ms)? {
        Some(ticket) => engine.wait(ticket).await,
        None => Ok(()),
    }
}

/// The same without waiting: what to wait for, if anything. Nothing is awaited before the log has it.
pub(super) fn end_unattended(
    engine: &Arc<Engine>,
    id: SessionId,
    mut data: SessionData,
    now_ms: u64,
) -> Result<Option<Ticket>, Refusal> {
    engine.sessions.sub_memory(data.memory_bytes());
    engine.sessions.end(id, data.is_logged);
    // With the data goes the writer, and with the writer the file; its blocks go to nobody before the last write to them is over.
    if data.is_logged { tell_end(engine, id, data.solo.as_mut(), now_ms).map(Some) } else { Ok(None) }
}

/// Tells the log that a session is over; the file goes with the record.
pub(super) fn tell_end(
    engine: &Engine,
    id: SessionId,
    solo: Option<&mut SoloWriter>,
    now_ms: u64,
) -> Result<Ticket, Refusal> {
    let ticket = tell_end_of(engine, id, solo.as_ref().map(|solo| solo.segment), now_ms)?;
    if let Some(solo) = solo {
        solo.keep();
    }
    Ok(ticket)
}

/// The same of a session whose file nobody has open.
pub(super) fn tell_end_of(
    engine: &Engine,
    id: SessionId,
    file: Option<SegmentId>,
    now_ms: u64,
) -> Result<Ticket, Refusal> {
    let file = file.map(|segment| (segment, Fate::Surplus));
    let ending = Some(Ending { session: id, is_logged: true, file });
    let record = NewRecord { body: Body::SessionEnd { session: id }, payload: Bytes::new() };
    let marks = Marks { ending, ..Marks::default() };
    engine.log.enqueue(vec![record], Purpose::Reclaim, marks, now_ms)
}

impl Engine {
    /// Tells the log once more of sessions that are over, and that it could not take in then.
    pub(crate) async fn tell_ends(self: &Arc<Self>, now_ms: u64) {
        for id in self.sessions.over() {
            let told = match tell_end_of(self, id, None, now_ms) {
                Ok(ticket) => self.wait(ticket).await,
                Err(refusal) => Err(refusal),
            };
            if told.is_err() {
                return;
            }
        }
    }
}
