//! The socket of a connection without TLS: memory of mapped files may leave by `sendfile`, which copies none of it here.
//!
//! Such memory was checked just before, through another mapping of the same file. Its page may leave the page cache before it is
//! sent; then it comes from the disk once more, unchecked. A page that the disk cannot give is an error of the call in both ways, and
//! the answer is cut.
//!
//! What must stay true: no worker waits for the disk. A slice that was kept waiting by its client is looked at before it is tried
//! again, and brought back by a thread for such waits if it left memory meanwhile.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use taffrail_blobstore::disk::mapping;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::sections::PullPath;

/// Bytes of a mapped file that are looked at, after a wait, and sent in one call: a block of the store.
const STEP_BYTES: usize = 256 * 1024;
/// What waited for so long is looked at again. What was in memory a moment ago is there: looking each time costs a fiftieth of sending.
const LOOK_AFTER: Duration = Duration::from_millis(100);

impl PullPath {
    /// Whether blobs may be handed out over mapped files.
    pub(crate) const fn maps(self) -> bool {
        match self {
            Self::Auto | Self::Sendfile | Self::Mapped => true,
            Self::Copy => false,
        }
    }

    /// Whether they leave by `sendfile`. Of itself it was nowhere the cheaper way (docs/decisions/0012).
    const fn sends_files(self) -> bool {
        match self {
            Self::Sendfile => true,
            Self::Auto | Self::Mapped | Self::Copy => false,
        }
    }
}

/// The socket.
#[derive(Debug)]
pub(crate) struct Plain {
    stream: TcpStream,
    /// The count of `sendfile`, where that is what files leave by.
    calls: Option<Counter>,
    /// In a box, so that a connection that waits for nothing is small.
    wait: Option<Box<Wait>>,
}

/// A write that the client keeps waiting.
#[derive(Debug, Default)]
struct Wait {
    /// Since when the client takes nothing.
    since: Option<Instant>,
    /// Bytes that it kept waiting for long: they may have left memory.
    bytes: usize,
    /// Memory that is being brought back.
    brings: Option<JoinHandle<()>>,
}

impl Plain {
    /// The socket of a connection. `calls` counts `sendfile`.
    pub(crate) fn new(stream: TcpStream, path: PullPath, calls: Counter) -> Self {
        Self { stream, calls: path.sends_files().then_some(calls), wait: None }
    }

    /// Writes slices of which some may be memory of mapped files.
    fn poll_write_mapped(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let is_mapped = |slice: &IoSlice<'_>| mapping::find(slice).is_some();
        match slices.iter().position(is_mapped) {
            None => Pin::new(&mut self.stream).poll_write_vectored(context, slices),
            Some(0) => match slices.first() {
                Some(slice) => self.poll_write_slice(context, slice),
                None => Poll::Ready(Ok(0)),
            },
            Some(before) => {
                // What follows goes into the same packet.
                let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
                self.poll_send(context, |stream| {
                    let mut nothing = SendAncillaryBuffer::default();
                    rustix::net::sendmsg(
                        stream,
                        slices.get(..before).unwrap_or_default(),
                        &mut nothing,
                        flags,
                    )
                })
            }
        }
    }

    fn poll_write_slice(&mut self, context: &mut Context<'_>, slice: &[u8]) -> Poll<io::Result<usize>> {
        let has_waited = self.waited_bytes() > 0;
        let slice = if has_waited { slice.get(..STEP_BYTES).unwrap_or(slice) } else { slice };
        let Some(found) = mapping::find(slice) else {
            return Pin::new(&mut self.stream).poll_write(context, slice);
        };
        if has_waited {
            ready!(self.stream.poll_write_ready(context))?;
            ready!(self.poll_bring(context, slice));
        }
        let Some(calls) = &self.calls else {
            return Pin::new(&mut self.stream).poll_write(context, slice);
        };
        let sent = ready!(self.poll_send(context, |stream| {
            calls.inc();
            rustix::fs::sendfile(stream, &found, Some(&mut found.offset_bytes()), slice.len())
        }))?;
        // The file lost its end; 0 would mean a socket that takes nothing.
        Poll::Ready(if sent == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(sent) })
    }

    /// Ready when the slice is in memory, or was brought there as far as the disk gives it.
    fn poll_bring(&mut self, context: &mut Context<'_>, slice: &[u8]) -> Poll<()> {
        let wait = self.wait.get_or_insert_default();
        let brings = match &mut wait.brings {
            Some(brings) => brings,
            none => match mapping::find(slice).filter(|found| !found.is_resident(slice.len())) {
                Some(found) => {
                    let len = slice.len();
                    none.insert(tokio::task::spawn_blocking(move || found.bring(len)))
                }
                None => return Poll::Ready(()),
            },
        };
        // However it ended: what is not there is an error of the write.
        let _ = ready!(Pin::new(brings).poll(context));
        wait.brings = None;
        Poll::Ready(())
    }

    fn waited_bytes(&self) -> usize {
        self.wait.as_ref().map_or(0, |wait| wait.bytes)
    }

    /// Calls `send` when the socket takes something.
    fn poll_send(
        &self,
        context: &mut Context<'_>,
        send: impl Fn(&TcpStream) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_io(Interest::WRITABLE, || Ok(send(&self.stream)?)) {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(wait) = &mut this.wait
            && wait.since.is_some_and(|since| since.elapsed() >= LOOK_AFTER)
        {
            wait.bytes = slices.iter().map(|slice| slice.len()).sum();
        }
        let written = if this.calls.is_some() || this.waited_bytes() > 0 {
            let empty = slices.iter().take_while(|slice| slice.is_empty()).count();
            this.poll_write_mapped(context, slices.get(empty..).unwrap_or_default())
        } else {
            Pin::new(&mut this.stream).poll_write_vectored(context, slices)
        };
        match (&written, &mut this.wait) {
            (Poll::Pending, wait) => {
                wait.get_or_insert_default().since.get_or_insert_with(Instant::now);
            }
            (Poll::Ready(sent), Some(wait)) => {
                wait.since = None;
                wait.bytes = wait.bytes.saturating_sub(*sent.as_ref().unwrap_or(&0));
            }
            (Poll::Ready(_), None) => {}
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
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
    use std::sync::Arc;

    use bytes::Bytes;
    use taffrail_blobstore::disk::threads::ThreadsDisk;
    use taffrail_blobstore::disk::{Access, Disk as _, File};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// More than the buffers of two sockets hold.
    const LEN: usize = 24 * 1024 * 1024 + 5;

    fn file() -> (tempfile::TempDir, Arc<dyn File>, Vec<u8>) {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = ThreadsDisk::open(dir.path()).unwrap().create("a", 0, Access::Cached).unwrap();
        let bytes: Vec<u8> = (0..LEN).map(|at| u8::try_from(at % 251).unwrap()).collect();
        file.write_at(&bytes, 0).unwrap();
        file.sync().unwrap();
        (dir, file, bytes)
    }

    async fn sockets(path: PullPath) -> (TcpStream, Plain, Counter) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let calls = Counter::default();
        (client, Plain::new(server, path, calls.clone()), calls)
    }

    /// Writes as hyper does: what is left of all slices in each call.
    async fn write_all(plain: &mut Plain, pieces: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut slices = &mut slices[..];
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let written = plain.write_vectored(slices).await?;
            IoSlice::advance_slices(&mut slices, written);
        }
        plain.flush().await
    }

    #[tokio::test]
    async fn memory_of_mapped_files_and_other_memory_arrive_in_order() {
        let (_dir, file, bytes) = file();
        for (path, calls_sendfile) in [(PullPath::Sendfile, true), (PullPath::Mapped, false)] {
            let mapped: Bytes = file.map().unwrap().bytes().clone();
            let (mut client, mut plain, calls) = sockets(path).await;
            let (one, two) = mapped.split_at(1_000_001);
            let pieces = [b"head", &b""[..], one, b"between", two, &one[7..9], b"end"];
            let expected = pieces.concat();
            let reads = tokio::spawn(async move {
                let mut came = vec![0; expected.len()];
                client.read_exact(&mut came).await.unwrap();
                assert!(came == expected);
                client
            });
            write_all(&mut plain, &pieces).await.unwrap();
            let mut client = reads.await.unwrap();
            assert_eq!(calls.get() > 0, calls_sendfile, "{} calls", calls.get());
            // The connection goes on.
            write_all(&mut plain, &[b"again"]).await.unwrap();
            client.read_exact(&mut [0; 5]).await.unwrap();
            assert_eq!(mapped, bytes);
        }
    }

    #[tokio::test]
    async fn memory_that_left_while_the_client_let_it_wait_is_brought_back() {
        for path in [PullPath::Sendfile, PullPath::Mapped] {
            let (dir, file, bytes) = file();
            let (mut client, mut plain, _) = sockets(path).await;
            let mapping = file.map().unwrap();
            let mut writes = Box::pin({
                let bytes = mapping.bytes().clone();
                async move {
                    write_all(&mut plain, &[&bytes]).await.unwrap();
                    assert_eq!(plain.waited_bytes(), 0);
                }
            });
            assert!(futures_util::poll!(&mut writes).is_pending(), "more than a socket takes");
            tokio::time::pause();
            tokio::time::advance(LOOK_AFTER).await;
            tokio::time::resume();
            // What was not sent yet is not in the page table, and may go.
            let whole = std::fs::File::open(dir.path().join("a")).unwrap();
            rustix::fs::fadvise(&whole, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            assert!(!mapping.is_resident(LEN - 5..LEN));
            let reads = tokio::spawn(async move {
                let mut came = vec![0; LEN];
                client.read_exact(&mut came).await.unwrap();
                came
            });
            writes.await;
            assert!(reads.await.unwrap() == bytes);
        }
    }

    #[tokio::test]
    async fn what_the_disk_lost_is_an_error_and_no_zeros() {
        for path in [PullPath::Sendfile, PullPath::Mapped] {
            let (_dir, file, _) = file();
            let (mut client, mut plain, _) = sockets(path).await;
            let mapping = file.map().unwrap();
            file.truncate(1 << 20).unwrap();
            assert!(write_all(&mut plain, &[mapping.bytes()]).await.is_err());
            drop(plain);
            let mut came = Vec::new();
            client.read_to_end(&mut came).await.unwrap();
            assert!(came.len() <= 1 << 20, "{} bytes came", came.len());
        }
    }
}
