//! The streams of a connection: what their answers hold, and the end of one whose client takes nothing.
//!
//! With HTTP/1.1 a client that takes nothing stops the socket, which [`crate::vitals`] sees. HTTP/2 has a window for each
//! stream: the socket goes on, and the library waits for the window for ever, with a block of the blob in its hands. So a
//! body is given out in pieces that tell when they are let go of. The task of a stream ends when none was for too long, and
//! the library then resets that stream alone.
//!
//! What must stay true: a body has not ended before its last piece was let go of, else nobody would watch that piece; and a
//! connection's bodies read a new block only while they hold fewer than [`BLOCKS_PER_CONNECTION`].

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use taffrail_distribution::body::{BoxError, ResponseBody};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::metrics::Metrics;

/// Blocks (256 KiB of a blob, or one smaller answer) that the answers of one connection hold to be sent, together: 8 MiB. Streams
/// beyond wait for others. It is four times what a client needs to fill a link of 200 MB/s over 10 ms. What was read ahead behind
/// these blocks is not counted here: `storage.read_ahead_bytes_max` bounds that for all connections.
const BLOCKS_PER_CONNECTION: usize = 32;
/// A client has to take so much within `limits.write_stall_secs`: with the default of 60 s, 1 KiB/s, as for what it sends.
const PIECE_BYTES: usize = 64 * 1024;

tokio::task_local! {
    /// The flow of the stream whose task this is.
    static FLOW: Arc<Flow>;
}

/// Runs the streams of all connections.
#[derive(Clone)]
pub(crate) struct Streams {
    patience: Duration,
    metrics: Arc<Metrics>,
}

impl Streams {
    /// Streams that end when their client takes nothing for so long.
    pub(crate) fn new(patience: Duration, metrics: Arc<Metrics>) -> Self {
        Self { patience, metrics }
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let flow = Arc::new(Flow::default());
        let Self { patience, metrics } = self.clone();
        // Owned by its connection: when that ends, every wait of the stream fails, and the task with it.
        tokio::spawn(FLOW.scope(Arc::clone(&flow), async move {
            tokio::select! {
                () = stream => {}
                // Dropping the stream makes the library reset it (CANCEL).
                () = flow.stalled(patience) => {
                    metrics.streams_stalled.inc();
                }
            }
        }));
    }
}

/// What of an answer the library has and the client has not.
#[derive(Debug, Default)]
struct Flow(Mutex<Outstanding>);

#[derive(Debug, Default)]
struct Outstanding {
    pieces: usize,
    /// When the first piece was given out, or the last one let go of.
    since: Option<Instant>,
    /// Who waits until there is none.
    ended: Option<Waker>,
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, Outstanding> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn given_out(&self) {
        let mut outstanding = self.lock();
        if outstanding.pieces == 0 {
            outstanding.since = Some(Instant::now());
        }
        outstanding.pieces += 1;
    }

    fn let_go(&self) {
        let mut outstanding = self.lock();
        outstanding.pieces -= 1;
        let waker = if outstanding.pieces == 0 {
            outstanding.since = None;
            outstanding.ended.take()
        } else {
            outstanding.since = Some(Instant::now());
            None
        };
        drop(outstanding);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready when no piece is outstanding.
    fn poll_none(&self, context: &Context<'_>) -> Poll<()> {
        let mut outstanding = self.lock();
        if outstanding.pieces == 0 {
            return Poll::Ready(());
        }
        outstanding.ended = Some(context.waker().clone());
        Poll::Pending
    }

    /// Completes when pieces were outstanding for so long and none was let go of.
    async fn stalled(&self, patience: Duration) {
        loop {
            let now = Instant::now();
            // What is given out from now on is not overdue before that either, so that nobody has to wake us for it.
            let end = self.lock().since.unwrap_or(now) + patience;
            if end <= now {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// Bytes with a library that has not let go of them.
struct Piece {
    bytes: Bytes,
    flow: Arc<Flow>,
    _block: Arc<Block>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.flow.let_go();
    }
}

/// The blocks that the answers of one connection may hold.
#[derive(Debug, Clone)]
pub(crate) struct Blocks(Arc<Semaphore>);

impl Blocks {
    /// Those of a connection that begins.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BLOCKS_PER_CONNECTION)))
    }

    /// Waits until one more block may be held.
    pub(crate) async fn one(&self) -> Block {
        // Nobody closes the semaphore; if somebody did: better a block too many than an answer too few.
        Block { _permit: Arc::clone(&self.0).acquire_owned().await.ok() }
    }

    /// The same body, as a part of what the connection may hold and watched by the task of its stream. `first` is leave to
    /// hold what the body holds already.
    pub(crate) fn hold(&self, body: ResponseBody, first: Option<Block>) -> ResponseBody {
        // Absent only where no library runs the stream, as in a test: then nobody watches.
        let flow = FLOW.try_with(Arc::clone).unwrap_or_default();
        let leave = first.map_or(Leave::None, Leave::Here);
        HeldBody { inner: body, flow, blocks: self.clone(), leave, rest: None, ended: false }.boxed_unsync()
    }
}

/// Leave to hold one block, until it is dropped.
#[derive(Debug)]
pub(crate) struct Block {
    _permit: Option<OwnedSemaphorePermit>,
}

/// Leave to read the next block.
enum Leave {
    /// Not asked for.
    None,
    /// Asked for.
    Awaited(Pin<Box<dyn Future<Output = Block> + Send>>),
    /// Given.
    Here(Block),
}

/// A body that reads a block when it has leave to hold it.
struct HeldBody {
    inner: ResponseBody,
    flow: Arc<Flow>,
    blocks: Blocks,
    leave: Leave,
    // What is left of the block under way.
    rest: Option<(Bytes, Arc<Block>)>,
    ended: bool,
}

impl HeldBody {
    /// The next piece of the block under way.
    fn piece(&mut self) -> Option<Bytes> {
        let (bytes, block) = self.rest.as_mut()?;
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        let piece = Piece { bytes: piece, flow: Arc::clone(&self.flow), _block: Arc::clone(block) };
        if bytes.is_empty() {
            self.rest = None;
        }
        self.flow.given_out();
        Some(Bytes::from_owner(piece))
    }

    /// Waits for leave to read one more block.
    fn poll_leave(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.leave {
                Leave::Here(_) => return Poll::Ready(()),
                Leave::Awaited(wait) => self.leave = Leave::Here(ready!(wait.as_mut().poll(context))),
                Leave::None => {
                    let blocks = self.blocks.clone();
                    self.leave = Leave::Awaited(Box::pin(async move { blocks.one().await }));
                }
            }
        }
    }

    /// The leave that was waited for.
    fn take_leave(&mut self) -> Block {
        match std::mem::replace(&mut self.leave, Leave::None) {
            Leave::Here(block) => block,
            Leave::None | Leave::Awaited(_) => Block { _permit: None },
        }
    }
}

impl Body for HeldBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.piece() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if this.ended || this.inner.is_end_stream() {
                this.leave = Leave::None;
                return this.flow.poll_none(context).map(|()| None);
            }
            ready!(this.poll_leave(context));
            match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                None => this.ended = true,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if bytes.is_empty() => {}
                    Ok(bytes) => this.rest = Some((bytes, Arc::new(this.take_leave()))),
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && (self.ended || self.inner.is_end_stream()) && self.flow.lock().pieces == 0
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before the first piece only, when nothing is under way.
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{Full, StreamBody};
    use hyper::rt::Executor as _;

    use super::*;

    fn full(bytes: usize) -> ResponseBody {
        Full::new(Bytes::from(vec![7; bytes])).map_err(|never| match never {}).boxed_unsync()
    }

    /// A body of so many blocks of 256 KiB.
    fn blocks(count: usize) -> ResponseBody {
        let blocks = (0..count).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![7; 256 * 1024]))));
        StreamBody::new(futures_util::stream::iter(blocks)).map_err(|never| match never {}).boxed_unsync()
    }

    async fn data(body: &mut ResponseBody) -> Option<Bytes> {
        body.frame().await.map(|frame| frame.unwrap().into_data().unwrap())
    }

    fn is_pending<T>(future: impl Future<Output = T>) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        std::pin::pin!(future).poll(&mut context).is_pending()
    }

    #[tokio::test]
    async fn a_body_comes_whole_in_pieces_and_ends_when_the_last_was_let_go_of() {
        let mut body = Blocks::new().hold(full(PIECE_BYTES * 2 + 1), None);
        assert!(!body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(PIECE_BYTES as u64 * 2 + 1));
        let mut pieces = Vec::new();
        for length in [PIECE_BYTES, PIECE_BYTES, 1] {
            let piece = data(&mut body).await.unwrap();
            assert_eq!(piece.len(), length);
            pieces.push(piece);
        }
        assert!(!body.is_end_stream());
        assert!(is_pending(body.frame()), "the pieces are still out");
        pieces.truncate(1);
        assert!(is_pending(body.frame()), "one is");
        pieces.clear();
        assert!(body.frame().await.is_none());
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn a_body_without_bytes_has_ended_before_it_is_asked() {
        assert!(Blocks::new().hold(full(0), None).is_end_stream());
    }

    #[tokio::test]
    async fn one_block_more_than_a_connection_may_hold_waits_for_another_to_go() {
        let connection = Blocks::new();
        let mut held = Vec::new();
        for _ in 0..BLOCKS_PER_CONNECTION {
            let mut body = connection.hold(blocks(2), None);
            // A part of a block holds it all.
            held.push((data(&mut body).await.unwrap(), body));
        }
        let mut next = connection.hold(blocks(1), None);
        assert!(is_pending(next.frame()));
        let mut elsewhere = Blocks::new().hold(blocks(1), None);
        assert!(data(&mut elsewhere).await.is_some(), "another connection has its own");
        assert!(is_pending(connection.one()));
        held.pop();
        assert_eq!(data(&mut next).await.unwrap().len(), PIECE_BYTES);
    }

    /// Runs a stream that takes a piece at each of these seconds, then nothing. Tells after how many seconds it ended, and
    /// whether that was a stall.
    async fn run(takes_at: &'static [u64]) -> (u64, bool) {
        let metrics = Arc::new(Metrics::new());
        let streams = Streams::new(Duration::from_secs(60), Arc::clone(&metrics));
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        let began = Instant::now();
        streams.execute(async move {
            let mut body = Blocks::new().hold(blocks(100), None);
            let mut out = data(&mut body).await;
            for second in takes_at {
                sleep_until(began + Duration::from_secs(*second)).await;
                drop(out.take());
                out = data(&mut body).await;
            }
            if takes_at.len() < 4 {
                std::future::pending::<()>().await;
            }
            drop((out, ended));
        });
        assert!(end.await.is_err());
        (began.elapsed().as_secs(), metrics.page().contains("taffrail_http2_streams_stalled_total 1"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_client_takes_nothing_ends_and_a_slow_one_does_not() {
        assert_eq!(run(&[]).await, (60, true));
        assert_eq!(run(&[50, 100, 155]).await, (215, true));
        assert_eq!(run(&[50, 100, 155, 210]).await, (210, false));
    }
}
