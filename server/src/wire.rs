//! The byte stream of a connection: guarded, counted, watched.
//!
//! Between two requests the stream can be waited on without a buffer ([`Wire::wait_for_more`]), so that an idle connection costs
//! little more than its socket.
//!
//! What must stay true: with a guard, no byte reaches the HTTP library that the guard has not followed, and after a refusal
//! only one more byte does: a NUL, which is valid nowhere in a head, so that the library itself answers 400 in its place in
//! the order of answers and ends the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::framing::{Guard, Verdict};
use crate::vitals::Vitals;

/// What the library is given in place of the rest of a head that is refused.
const POISON: &[u8] = b"\0";

/// A stream with its guard.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    stream: S,
    // None for HTTP/2, whose frames say where they end.
    guard: Option<Guard>,
    refused: bool,
    stalled: Option<Stalled>,
    // Bytes of the next request that ended a wait; the guard has not seen them yet.
    ahead: Option<Box<[u8]>>,
    vitals: Arc<Vitals>,
}

/// Bytes that end a wait, at most. A whole request of most clients, so that it costs no second read.
const AHEAD_BYTES_MAX: usize = 1024;

/// What the socket would not do last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stalled {
    Write,
    Flush,
}

impl<S> Wire<S> {
    /// Watches a stream of HTTP/1.1.
    pub(crate) fn http1(stream: S, vitals: Arc<Vitals>) -> Self {
        Self { stream, guard: Some(Guard::default()), refused: false, stalled: None, ahead: None, vitals }
    }

    /// Watches a stream of HTTP/2.
    pub(crate) fn http2(stream: S, vitals: Arc<Vitals>) -> Self {
        Self { stream, guard: None, refused: false, stalled: None, ahead: None, vitals }
    }

    /// Whether the client may still be sending something that nobody will read.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.refused || self.guard.as_ref().is_some_and(|guard| !guard.is_between())
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
        if this.refused {
            // Not the end of the stream: that would cut an answer to an earlier request.
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        std::task::ready!(this.poll_fill(context, buffer))?;
        let Some(guard) = &mut this.guard else { return Poll::Ready(Ok(())) };
        match guard.follow(buffer.filled().get(before..).unwrap_or_default()) {
            Verdict::Fine => {}
            Verdict::Refused(at) => {
                buffer.set_filled(before + at);
                buffer.put_slice(POISON);
                this.refused = true;
            }
        }
        this.vitals.head(guard.is_in_head());
        Poll::Ready(Ok(()))
    }
}

impl<S> Wire<S> {
    /// Notes what came of a write or flush. A flush of a plain socket always succeeds, so that it says nothing about a write
    /// that did not; one of TLS is where its buffer waits for the socket.
    fn note<T>(&mut self, operation: Stalled, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_pending() {
            self.stalled.get_or_insert(operation);
            self.vitals.write_stalled(true);
        } else if operation == Stalled::Write || self.stalled == Some(operation) {
            self.stalled = None;
            self.vitals.write_stalled(false);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(Stalled::Write, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(Stalled::Write, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.note(Stalled::Flush, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::time::Instant;

    use super::*;

    fn wire(bytes: &'static [u8]) -> Wire<&'static [u8]> {
        Wire::http1(bytes, Arc::new(Vitals::new(Instant::now())))
    }

    #[tokio::test]
    async fn a_refused_head_ends_in_a_byte_that_no_head_may_hold() {
        let mut wire = wire(b"GET / HTTP/1.1\r\nHost: a\n\r\nSECRET");
        let mut buffer = [0; 64];
        let count = wire.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..count], b"GET / HTTP/1.1\r\nHost: a\0");
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
        assert_eq!([&first, &rest[..count]].concat(), b"GET / HTTP/1.1\r\nHost: a\0");
        assert!(!super::Wire::http1(&b""[..], Arc::clone(&wire.vitals)).wait_for_more().await.unwrap());
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
