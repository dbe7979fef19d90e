//! The socket of a connection, below TLS: whether it takes what we have for the client.
//!
//! What must stay true: nothing but the socket says that the client takes something. TLS has a buffer of its own, and a write
//! that ends there would otherwise pass for progress.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::vitals::Vitals;

/// A stream whose writes are watched.
#[derive(Debug)]
pub(crate) struct Socket<S> {
    stream: S,
    vitals: Arc<Vitals>,
}

impl<S> Socket<S> {
    /// Watches a stream.
    pub(crate) fn new(stream: S, vitals: Arc<Vitals>) -> Self {
        Self { stream, vitals }
    }

    fn note<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.vitals.write_stalled(written.is_pending());
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Succeeds at once on a socket, and says nothing of a write that did not.
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::vitals::{Overdue, Patience};

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(10),
        keep_alive: Duration::from_secs(120),
        write_stall: Duration::from_secs(60),
        rest: Duration::from_secs(1),
    };

    #[tokio::test(start_paused = true)]
    async fn only_what_the_socket_takes_is_progress() {
        let vitals = Arc::new(Vitals::new(Instant::now()));
        vitals.request_begins();
        let (mut client, server) = duplex(10);
        let mut socket = Socket::new(server, Arc::clone(&vitals));
        socket.write_all(&[0; 10]).await.unwrap();
        assert_eq!(vitals.deadline(&PATIENCE), None);
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut socket).poll_write(&mut context, &[0]).is_pending());
        let stalled = Some((Instant::now() + PATIENCE.write_stall, Overdue::WriteStall));
        assert_eq!(vitals.deadline(&PATIENCE), stalled);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(Pin::new(&mut socket).poll_flush(&mut context).is_ready());
        assert!(Pin::new(&mut socket).poll_write(&mut context, &[0]).is_pending());
        assert_eq!(vitals.deadline(&PATIENCE), stalled, "nothing was taken since");
        client.read_u8().await.unwrap();
        socket.write_all(&[0]).await.unwrap();
        assert_eq!(vitals.deadline(&PATIENCE), None);
    }
}
