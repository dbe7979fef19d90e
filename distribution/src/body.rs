//! Bodies: what comes in, at a pace that somebody must keep, and blobs that go out.
//!
//! What must stay true: a request body is read only by [`Incoming`], which judges its pace; a blob's bytes go out as the
//! engine hands them over, uncopied, and an answer whose bytes turn out to be damaged is cut, never completed.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use tokio::time::{Instant, timeout};

use crate::blobs::{BlobError, BlobReader};
use crate::limits::Limits;
use crate::range::ByteRange;

/// Shortest window that a body's pace is judged over; a shorter one would judge single packets.
const WINDOW_MIN: Duration = Duration::from_secs(1);

/// What a body fails with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of a request.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
/// The body of an answer.
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// Extension of a request whose answer is only sent: nobody encrypts or copies it on the way to the socket. Blobs may then be
/// memory of mapped files.
#[derive(Clone, Copy, Debug)]
pub struct OnlySent;

/// No bytes.
pub(crate) fn empty() -> ResponseBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// These bytes.
pub(crate) fn full(bytes: Bytes) -> ResponseBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Why no more of a body comes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Slower than [`Limits::body_bytes_per_s_min`].
    #[error("the body came too slowly")]
    Stalled,
    /// The connection or the framing broke.
    #[error("the body broke off: {0}")]
    Broken(BoxError),
}

/// Why a body was not collected.
#[derive(Debug)]
pub(crate) enum CollectError {
    /// Longer than allowed.
    TooLarge,
    /// See [`ReceiveError`].
    Receive(ReceiveError),
}

/// A request body while it is read.
pub(crate) struct Incoming {
    body: RequestBody,
    window: Duration,
    bytes_per_window_min: u64,
    // Time spent waiting for the client, and bytes received, in this window. Our own work is not held against the client.
    waited: Duration,
    window_bytes: u64,
}

impl Incoming {
    pub(crate) fn new(body: RequestBody, limits: &Limits) -> Incoming {
        let window = limits.body_window.max(WINDOW_MIN);
        Incoming {
            body,
            window,
            bytes_per_window_min: limits.body_bytes_per_s_min.saturating_mul(window.as_secs()),
            waited: Duration::ZERO,
            window_bytes: 0,
        }
    }

    /// The length that the client announced, if it did.
    pub(crate) fn announced_bytes(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ReceiveError> {
        loop {
            // A frame that is there already costs no timer.
            let ready =
                std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut self.body).poll_frame(context)));
            let frame = match ready.await {
                Poll::Ready(frame) => frame,
                Poll::Pending => self.wait().await?,
            };
            let Some(frame) = frame else { return Ok(None) };
            // Trailers carry nothing that we use.
            if let Ok(bytes) = frame.map_err(ReceiveError::Broken)?.into_data()
                && !bytes.is_empty()
            {
                self.window_bytes = self.window_bytes.saturating_add(bytes.len() as u64);
                return Ok(Some(bytes));
            }
        }
    }

    async fn wait(&mut self) -> Result<Option<Result<Frame<Bytes>, BoxError>>, ReceiveError> {
        loop {
            let began = Instant::now();
            let left = self.window.saturating_sub(self.waited);
            if let Ok(frame) = timeout(left, self.body.frame()).await {
                self.waited += began.elapsed();
                return Ok(frame);
            }
            if self.window_bytes < self.bytes_per_window_min {
                return Err(ReceiveError::Stalled);
            }
            self.waited = Duration::ZERO;
            self.window_bytes = 0;
        }
    }

    /// The whole body, if it has at most `limit_bytes`. Reads at most one frame beyond; nothing, when the announced
    /// length says that it is too long.
    pub(crate) async fn collect(mut self, limit_bytes: usize) -> Result<Bytes, CollectError> {
        if self.body.size_hint().lower() > limit_bytes as u64 {
            return Err(CollectError::TooLarge);
        }
        let Some(first) = self.next().await.map_err(CollectError::Receive)? else { return Ok(Bytes::new()) };
        if first.len() > limit_bytes {
            return Err(CollectError::TooLarge);
        }
        let Some(second) = self.next().await.map_err(CollectError::Receive)? else { return Ok(first) };
        let mut all = BytesMut::with_capacity(first.len() + second.len());
        all.extend_from_slice(&first);
        let mut next = Some(second);
        while let Some(bytes) = next {
            if all.len() + bytes.len() > limit_bytes {
                return Err(CollectError::TooLarge);
            }
            all.extend_from_slice(&bytes);
            next = self.next().await.map_err(CollectError::Receive)?;
        }
        Ok(all.freeze())
    }
}

/// A piece of an answer made from a blob.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Text between parts.
    Text(Bytes),
    /// A range of the blob.
    Blob(ByteRange),
}

impl Piece {
    /// Its length in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        match self {
            Piece::Text(bytes) => bytes.len() as u64,
            Piece::Blob(range) => range.len_bytes(),
        }
    }
}

type Reading = Pin<Box<dyn Future<Output = (Box<dyn BlobReader>, Result<Bytes, BlobError>)> + Send>>;

enum State {
    Idle(Box<dyn BlobReader>),
    Reading(Reading),
    Ended,
}

/// A body made of [`Piece`]s.
struct BlobBody {
    state: State,
    pieces: VecDeque<Piece>,
    first: Option<Bytes>,
    remaining_bytes: u64,
}

/// A body of the pieces. The first bytes of the blob are read before this returns, so that damage at its start becomes an
/// answer instead of a cut connection.
///
/// # Errors
/// What the first read fails with.
pub(crate) async fn of_blob(
    mut reader: Box<dyn BlobReader>,
    pieces: Vec<Piece>,
) -> Result<ResponseBody, BlobError> {
    let mut pieces: VecDeque<Piece> = pieces.into();
    let remaining_bytes = pieces.iter().map(Piece::len_bytes).sum();
    let mut first = None;
    if let Some(Piece::Blob(range)) = pieces.front_mut()
        && !range.is_empty()
    {
        let bytes = read(&mut *reader, *range).await?;
        range.start_bytes += bytes.len() as u64;
        if bytes.len() as u64 == remaining_bytes {
            return Ok(full(bytes));
        }
        first = Some(bytes);
    }
    Ok(BlobBody { state: State::Idle(reader), pieces, first, remaining_bytes }.boxed_unsync())
}

/// Reads the next bytes of a range and holds the reader to its contract: at least one byte, and none beyond.
async fn read(reader: &mut dyn BlobReader, range: ByteRange) -> Result<Bytes, BlobError> {
    let bytes = reader.read(range.start_bytes, range.end_bytes).await?;
    if bytes.is_empty() || bytes.len() as u64 > range.len_bytes() {
        return Err(BlobError::Unavailable("a reader broke its contract".to_owned()));
    }
    Ok(bytes)
}

impl Body for BlobBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(bytes) = this.first.take() {
            return this.emit(bytes);
        }
        loop {
            match std::mem::replace(&mut this.state, State::Ended) {
                State::Ended => return Poll::Ready(None),
                State::Idle(mut reader) => match this.pieces.front_mut() {
                    None => return Poll::Ready(None),
                    Some(Piece::Text(text)) => {
                        let text = std::mem::take(text);
                        this.pieces.pop_front();
                        this.state = State::Idle(reader);
                        return this.emit(text);
                    }
                    Some(Piece::Blob(range)) if range.is_empty() => {
                        this.pieces.pop_front();
                        this.state = State::Idle(reader);
                    }
                    Some(Piece::Blob(range)) => {
                        let range = *range;
                        this.state = State::Reading(Box::pin(async move {
                            let result = read(&mut *reader, range).await;
                            (reader, result)
                        }));
                    }
                },
                State::Reading(mut reading) => {
                    let Poll::Ready((reader, result)) = reading.as_mut().poll(context) else {
                        this.state = State::Reading(reading);
                        return Poll::Pending;
                    };
                    // The state stays `Ended` on an error: the answer is cut here.
                    let bytes = match result {
                        Ok(bytes) => bytes,
                        Err(error) => {
                            tracing::error!(%error, "an answer was cut");
                            return Poll::Ready(Some(Err(error.into())));
                        }
                    };
                    if let Some(Piece::Blob(range)) = this.pieces.front_mut() {
                        range.start_bytes += bytes.len() as u64;
                    }
                    this.state = State::Idle(reader);
                    return this.emit(bytes);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining_bytes == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining_bytes)
    }
}

impl BlobBody {
    fn emit(&mut self, bytes: Bytes) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.remaining_bytes = self.remaining_bytes.saturating_sub(bytes.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
