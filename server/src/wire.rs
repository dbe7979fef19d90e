//! The byte stream of a connection, above TLS: guarded against what has two readings, and against floods.
//!
//! Between two requests the stream can be waited on without a buffer ([`Wire::wait_for_more`]), so that an idle connection costs
//! little more than its socket.
//!
//! What must stay true: no byte reaches the HTTP library that the guard has not followed, and after a refusal only what makes
//! the library itself end the connection, in its place in the order of answers: for HTTP/1.1 bytes that are valid nowhere in a
//! head or a trailer and are answered 400; for HTTP/2 frames that are answered `ENHANCE_YOUR_CALM`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::framing::{Guard, Verdict};
use crate::http2::{CALM, Frames};
use crate::vitals::Vitals;

/// What the library is given in place of the rest of a head or trailer that is refused. In a head the NUL ends its parse. A
/// trailer it takes any byte into, and looks at them when all are there; but what follows a CR must be a LF at once.
const POISON: &[u8] = b"\0\r\0";

/// A stream with its guard.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    stream: S,
    guard: Follows,
    refused: bool,
    // Bytes of the next request that ended a wait, which the guard has not seen yet; or what is left of a refusal.
    ahead: Option<Box<[u8]>>,
    vitals: Arc<Vitals>,
}

/// What a guard follows.
#[derive(Debug)]
enum Follows {
    /// The requests of HTTP/1.1.
    Requests(Guard),
    /// The frames of HTTP/2. In a box, so that a connection of HTTP/1.1 is no larger for it.
    Frames(Box<Frames>),
}

/// Bytes that end a wait, at most. A whole request of most clients, so that it costs no second read.
const AHEAD_BYTES_MAX: usize = 1024;

impl<S> Wire<S> {
    /// Watches a stream of HTTP/1.1.
    pub(crate) fn http1(stream: S, vitals: Arc<Vitals>) -> Self {
        Self::new(stream, Follows::Requests(Guard::default()), vitals)
    }

    /// Watches a stream of HTTP/2.
    pub(crate) fn http2(stream: S, vitals: Arc<Vitals>) -> Self {
        Self::new(stream, Follows::Frames(Box::new(Frames::new(Instant::now()))), vitals)
    }

    fn new(stream: S, guard: Follows, vitals: Arc<Vitals>) -> Self {
        Self { stream, guard, refused: false, ahead: None, vitals }
    }

    /// Whether the client may still be sending something that nobody will read.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.refused || matches!(&self.guard, Follows::Requests(guard) if !guard.is_between())
    }

    /// The stream itself.
    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// Waits for the first bytes of the next request. False at the end of the stream.
    ///
    /// # Errors
    /// Whatever the stream says.
    pub(crate) async fn wait_for_more(&mut self) -> io::Result<bool> {
        std::future::poll_fn(|context| {
            // On the stack for the length of the poll only.
            let mut bytes = [0; AHEAD_BYTES_MAX];
            let mut buffer = ReadBuf::new(&mut bytes);
            std::task::ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(false));
            }
            self.ahead = Some(buffer.filled().into());
            Poll::Ready(Ok(true))
        })
        .await
    }

    /// Bytes from the wait, else from the stream.
    fn poll_fill(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(ahead) = self.ahead.take() else {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        };
        let (now, later) = ahead.split_at(ahead.len().min(buffer.remaining()));
        buffer.put_slice(now);
        if !later.is_empty() {
            self.ahead = Some(later.into());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.refused && this.ahead.is_none() {
            // Not the end of the stream: that would cut an answer to an earlier request.
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        std::task::ready!(this.poll_fill(context, buffer))?;
        if this.refused {
            return Poll::Ready(Ok(()));
        }
        let came = buffer.filled().get(before..).unwrap_or_default();
        let (verdict, refusal) = match &mut this.guard {
            Follows::Requests(guard) => (guard.follow(came), POISON),
            Follows::Frames(frames) => (frames.follow(came), CALM),
        };
        if let Verdict::Refused(at) = verdict {
            buffer.set_filled(before + at);
            this.refused = true;
            this.ahead = Some(refusal.into());
            if matches!(this.guard, Follows::Frames(_)) {
                this.vitals.flooded();
            }
            if at == 0 || buffer.remaining() > 0 {
                std::task::ready!(this.poll_fill(context, buffer))?;
            }
        }
        if let Follows::Requests(guard) = &this.guard {
            this.vitals.head(guard.is_in_head());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> Wire<S> {
    /// What the client takes pays for what it sends.
    fn sent(&mut self, result: &Poll<io::Result<usize>>) {
        if let (Follows::Frames(frames), Poll::Ready(Ok(bytes))) = (&mut self.guard, result) {
            frames.earn(*bytes);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.sent(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.sent(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn wire(bytes: &'static [u8]) -> Wire<&'static [u8]> {
        Wire::http1(bytes, Arc::new(Vitals::new(Instant::now())))
    }

    #[tokio::test]
    async fn a_refused_head_ends_in_a_byte_that_no_head_may_hold() {
        let mut wire = wire(b"GET / HTTP/1.1\r\nHost: a\n\r\nSECRET");
        let mut buffer = [0; 64];
        let count = wire.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..count], b"GET / HTTP/1.1\r\nHost: a\0\r\0");
        assert!(wire.is_unfinished());
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut buffer = ReadBuf::new(&mut buffer);
        let next = Pin::new(&mut wire).poll_read(&mut context, &mut buffer);
        assert!(next.is_pending(), "nothing more comes, not even the end");
    }

    #[tokio::test]
    async fn bytes_that_ended_a_wait_are_guarded_like_any_other() {
        let mut wire = wire(b"GET / HTTP/1.1\r\nHost: a\n\r\n");
        assert!(wire.wait_for_more().await.unwrap());
        // In two parts, because the reader's buffer is smaller than what came.
        let mut first = [0; 10];
        assert_eq!(wire.read(&mut first).await.unwrap(), 10);
        let mut rest = [0; 64];
        let count = wire.read(&mut rest).await.unwrap();
        assert_eq!([&first, &rest[..count]].concat(), b"GET / HTTP/1.1\r\nHost: a\0\r\0");
        assert!(!super::Wire::http1(&b""[..], Arc::clone(&wire.vitals)).wait_for_more().await.unwrap());
    }

    #[tokio::test]
    async fn a_flood_of_frames_ends_in_the_frames_that_end_a_connection() {
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let preface = [0; 24];
        let flood = [&preface[..], &ping.repeat(3000)].concat();
        // Buffers that end within a ping, with one, and within the refusal.
        for size in [1, 10, 17, 1000, 1 << 20] {
            let vitals = Arc::new(Vitals::new(Instant::now()));
            let mut wire = Wire::http2(&flood[..], Arc::clone(&vitals));
            let mut all = Vec::new();
            let mut piece = vec![0; size];
            while let Some(count) = futures_util::FutureExt::now_or_never(wire.read(&mut piece)) {
                let count = count.unwrap();
                assert!(count > 0, "the end of the stream in buffers of {size}");
                all.extend_from_slice(&piece[..count]);
            }
            let pings = all.len() - CALM.len() - preface.len();
            assert_eq!(pings % ping.len(), 0, "in buffers of {size}");
            assert!((1001..1100).contains(&(pings / ping.len())), "{} pings", pings / ping.len());
            assert!(all.ends_with(CALM));
            assert!(vitals.was_flooded());
        }
    }

    #[tokio::test]
    async fn what_is_in_order_passes_unchanged() {
        let text = b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\na\nb";
        let mut wire = wire(text);
        let mut all = Vec::new();
        wire.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, text);
        assert!(!wire.is_unfinished());
    }
}
