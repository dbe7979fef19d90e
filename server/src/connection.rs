//! One connection, from its first byte to its last.
//!
//! What must stay true: HTTP/2 is spoken over TLS only, when ALPN has agreed on it; a connection on which nothing happens
//! ends (see [`crate::vitals`]); an answer that refuses a body can be read by a client that is still sending it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use taffrail_distribution::body::ResponseBody;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use crate::config::sections::{Limits, PullPath};
use crate::drain::Drain;
use crate::http2::{Blocks, Streams};
use crate::metrics::Metrics;
use crate::sendfile::Plain;
use crate::socket::Socket;
use crate::turns::Turns;
use crate::vitals::{Overdue, Patience, Vitals};
use crate::wire::Wire;

/// Room in which a request's head is collected, and the largest single read of a body. A head is bounded by the limits well
/// below; larger reads cost fewer system calls for each pushed gigabyte.
const READ_BUFFER_BYTES: usize = 256 * 1024;
/// How long we go on reading what nobody wants, so that the client can read why. Closing with unread bytes sends a reset,
/// which destroys the answer on its way (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(2);
/// A connection that idles for so long gives its buffers back (L-01). A busy client's next request comes sooner.
const REST_AFTER: Duration = Duration::from_secs(1);
/// First byte of a TLS record that carries a handshake (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// The answer to somebody who speaks plain HTTP to a TLS port.
const SPEAKS_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 34\r\n\
    Connection: close\r\n\r\nthis port speaks HTTPS, not HTTP.\n";

/// Whom a request came from.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The other end of the socket.
    pub(crate) peer: SocketAddr,
    /// Whether it came over TLS.
    pub(crate) secure: bool,
    /// What its connection is doing.
    pub(crate) vitals: Arc<Vitals>,
    /// What the answers of its connection may hold, over HTTP/2. Over HTTP/1.1 there is one answer at a time.
    pub(crate) blocks: Option<Blocks>,
}

/// An answer under way.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Response<ResponseBody>> + Send>>;

/// Answers requests. Two of them: the registry and the metrics.
pub(crate) trait Answers: Send + Sync + 'static {
    /// Answers one request.
    fn answer(self: Arc<Self>, request: Request<Incoming>, caller: Caller) -> Answer;
}

/// Everything that connections of one listener share.
pub(crate) struct Protocol {
    http1: http1::Builder,
    http2: http2::Builder<Streams>,
    tls: Option<TlsAcceptor>,
    pull_path: PullPath,
    patience: Patience,
    drain: Drain,
    metrics: Arc<Metrics>,
    answers: Arc<dyn Answers>,
}

impl Protocol {
    /// The protocol of a listener.
    pub(crate) fn new(
        limits: &Limits,
        tls: Option<TlsAcceptor>,
        drain: Drain,
        metrics: Arc<Metrics>,
        answers: Arc<dyn Answers>,
    ) -> Self {
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        // What a request may have in all. The limits themselves are held in `request.rs`, to the byte; beyond twice them
        // nobody collects a head at all.
        let head_bytes = size(limits.header_bytes_max + limits.request_line_bytes_max).saturating_mul(2);
        let mut http1 = http1::Builder::new();
        http1
            .max_buf_size(READ_BUFFER_BYTES.max(head_bytes))
            .max_header_size(head_bytes)
            .max_headers(size(limits.header_fields_max))
            // `vitals` times heads and idling, and tells them apart.
            .header_read_timeout(None)
            .timer(TokioTimer::new());
        let http2 = crate::http2::builder(limits, head_bytes, &metrics);
        let patience = Patience {
            head: Duration::from_secs(limits.header_timeout_secs),
            keep_alive: Duration::from_secs(limits.keep_alive_secs),
            write_stall: Duration::from_secs(limits.write_stall_secs),
            rest: REST_AFTER,
        };
        Self { http1, http2, tls, pull_path: PullPath::Copy, patience, drain, metrics, answers }
    }

    /// The same, with another way for blobs on connections without TLS than through memory of ours.
    pub(crate) fn pulls(self, pull_path: PullPath) -> Self {
        Self { pull_path, ..self }
    }

    /// Whether the listener speaks TLS.
    pub(crate) fn speaks_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Serves a connection until it ends.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // Answers are written whole; waiting for more to send would only delay their tails.
        let _ = stream.set_nodelay(true);
        let vitals = Arc::new(Vitals::new(Instant::now()));
        let caller = Caller { peer, secure: self.tls.is_some(), vitals, blocks: None };
        let Some(tls) = self.tls.clone() else {
            let plain = Plain::new(stream, self.pull_path, self.metrics.sendfile_calls.clone());
            let socket = Socket::new(plain, Arc::clone(&caller.vitals));
            return self.serve_http1(socket, &caller).await;
        };
        // In boxes, so that a plain connection does not pay for the size of one with TLS.
        let stream = Box::pin(self.handshake(tls, stream, &caller.vitals)).await;
        // The handshake had its own time.
        caller.vitals.begins();
        match stream {
            None => {}
            Some(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Box::pin(self.serve_http2(stream, caller)).await;
            }
            Some(stream) => Box::pin(self.serve_http1(stream, &caller)).await,
        }
    }

    async fn handshake(
        &self,
        tls: TlsAcceptor,
        mut stream: TcpStream,
        vitals: &Arc<Vitals>,
    ) -> Option<tokio_rustls::server::TlsStream<Socket<TcpStream>>> {
        let shaken = async {
            let mut first = [0];
            match stream.peek(&mut first).await {
                Ok(1) if first != [TLS_HANDSHAKE] => {
                    let _ = stream.write_all(SPEAKS_TLS).await;
                    linger(stream).await;
                    None
                }
                Ok(_) => tls.accept(Socket::new(stream, Arc::clone(vitals))).await.ok(),
                Err(_) => None,
            }
        };
        // A client that is not ready is no loss when the process ends.
        let shaken = tokio::select! {
            shaken = timeout(self.patience.head, shaken) => shaken.ok().flatten(),
            () = self.drain.begun() => None,
        };
        if shaken.is_none() {
            self.metrics.tls_handshake_failures.inc();
        }
        shaken
    }

    fn requests(&self, caller: Caller) -> Requests {
        Requests { answers: Arc::clone(&self.answers), caller }
    }

    async fn serve_http1<S>(&self, stream: S, caller: &Caller)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut wire = Wire::http1(stream, Arc::clone(&caller.vitals));
        loop {
            let requests = self.requests(caller.clone());
            // In a box that is gone while the connection rests.
            match Box::pin(self.converse(wire, requests, &caller.vitals)).await {
                Some(rested) => wire = rested,
                None => return,
            }
            if !self.rest(&mut wire, &caller.vitals).await {
                let _ = timeout(LINGER, wire.shutdown()).await;
                return;
            }
        }
    }

    /// Answers requests until the connection ends, or has nothing to do for a while: then its wire is given back.
    async fn converse<S>(&self, wire: Wire<S>, requests: Requests, vitals: &Vitals) -> Option<Wire<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut http = self.http1.serve_connection(TokioIo::new(wire), requests);
        let end = self
            .drive(vitals, &self.patience, |context, end_soon| {
                if end_soon {
                    Pin::new(&mut http).graceful_shutdown();
                }
                http.poll_without_shutdown(context)
            })
            .await;
        let failed = match end {
            End::Done(result) => result.is_err(),
            // Between two requests the library holds nothing but, at most, empty lines before the next one.
            End::Rest => return Some(http.into_parts().io.into_inner()),
            End::Cut => return None,
        };
        let wire = http.into_parts().io.into_inner();
        let unfinished = failed || wire.is_unfinished();
        let mut stream = wire.into_inner();
        if unfinished {
            linger(stream).await;
        } else {
            let _ = timeout(LINGER, stream.shutdown()).await;
        }
        None
    }

    /// Waits for the next request without holding anything for it. False when none is to come.
    async fn rest<S: AsyncRead + Unpin>(&self, wire: &mut Wire<S>, vitals: &Vitals) -> bool {
        let Some((end, why)) = vitals.end(&self.patience) else { return false };
        tokio::select! {
            more = wire.wait_for_more() => more.unwrap_or(false),
            () = self.drain.begun() => false,
            () = sleep_until(end) => {
                self.metrics.connection_overdue(why);
                false
            }
        }
    }

    async fn serve_http2<S>(&self, stream: S, caller: Caller)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let vitals = Arc::clone(&caller.vitals);
        let wire = TokioIo::new(Wire::http2(stream, Arc::clone(&vitals)));
        let caller = Caller { blocks: Some(Blocks::new()), ..caller };
        let mut http = pin!(self.http2.serve_connection(wire, self.requests(caller)));
        // HTTP/2 keeps state between requests, so it does not rest.
        let patience = Patience { rest: self.patience.keep_alive, ..self.patience };
        self.drive(&vitals, &patience, |context, end_soon| {
            if end_soon {
                http.as_mut().graceful_shutdown();
            }
            http.as_mut().poll(context)
        })
        .await;
        if vitals.was_flooded() {
            self.metrics.http2_floods.inc();
        }
    }

    /// Polls a connection until it is done, is overdue, or is cut because the process ends. `poll` is told once that it
    /// should end soon.
    async fn drive<E>(
        &self,
        vitals: &Vitals,
        patience: &Patience,
        mut poll: impl FnMut(&mut Context<'_>, bool) -> Poll<Result<(), E>>,
    ) -> End<E> {
        let mut begun = pin!(self.drain.begun());
        let mut abandoned = pin!(self.drain.abandoned());
        let mut timer = pin!(sleep_until(Instant::now() + patience.head));
        let mut draining = false;
        let turns = Turns::new();
        let overdue = std::future::poll_fn(|context| {
            let mut end_soon = !draining && begun.as_mut().poll(context).is_ready();
            draining |= end_soon;
            if abandoned.as_mut().poll(context).is_ready() {
                return Poll::Ready(End::Cut);
            }
            let turn = turns.poll(context, |context| poll(context, std::mem::take(&mut end_soon)));
            if let Poll::Ready(result) = turn {
                return Poll::Ready(End::Done(result));
            }
            loop {
                let Some((at, why)) = vitals.deadline(patience) else { return Poll::Pending };
                if Instant::now() >= at {
                    if why == Overdue::Rest {
                        return Poll::Ready(End::Rest);
                    }
                    self.metrics.connection_overdue(why);
                    return Poll::Ready(End::Cut);
                }
                // A timer that is set too early is left alone and asks again: resetting it for each request costs more.
                if timer.is_elapsed() || timer.deadline() > at {
                    timer.as_mut().reset(at);
                }
                ready!(timer.as_mut().poll(context));
            }
        });
        overdue.await
    }
}

/// How a connection ended.
enum End<E> {
    /// By itself.
    Done(Result<(), E>),
    /// Not yet: it has nothing to do.
    Rest,
    /// By us.
    Cut,
}

/// Ends our side of a stream and reads on for a while.
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let read_on = async {
        let _ = stream.shutdown().await;
        // Not in the future, which every connection would carry from its beginning.
        let mut waste = vec![0; 16 * 1024];
        while matches!(stream.read(&mut waste).await, Ok(1..)) {}
    };
    let _ = timeout(LINGER, read_on).await;
}

/// The requests of one connection.
struct Requests {
    answers: Arc<dyn Answers>,
    caller: Caller,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Infallibly;

    fn call(&self, request: Request<Incoming>) -> Infallibly {
        Infallibly(Arc::clone(&self.answers).answer(request, self.caller.clone()))
    }
}

/// An answer in the form that the library wants.
struct Infallibly(Answer);

impl Future for Infallibly {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context).map(Ok)
    }
}

impl Overdue {
    /// The word for it in metrics.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Head => "header_timeout",
            Self::KeepAlive => "keep_alive",
            Self::WriteStall => "write_stall",
            Self::Rest => "rest",
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};
    use tokio::io::duplex;

    use super::*;
    use crate::config::Config;

    const LARGE_BYTES: usize = 1024 * 1024;

    /// Answers everything with more bytes than any buffer on the way holds.
    struct Large;

    impl Answers for Large {
        fn answer(self: Arc<Self>, _request: Request<Incoming>, caller: Caller) -> Answer {
            caller.vitals.request_begins();
            let body = Full::new(bytes::Bytes::from(vec![b'x'; LARGE_BYTES]));
            caller.vitals.request_ends();
            Box::pin(std::future::ready(Response::new(body.map_err(|never| match never {}).boxed_unsync())))
        }
    }

    async fn serve(protocol: &Protocol, stream: tokio::io::DuplexStream, peer: SocketAddr) {
        let vitals = Arc::new(Vitals::new(Instant::now()));
        let socket = Socket::new(stream, Arc::clone(&vitals));
        protocol.serve_http1(socket, &Caller { peer, secure: false, vitals, blocks: None }).await;
    }

    fn protocol(metrics: &Arc<Metrics>) -> Protocol {
        let limits = Config::default().limits;
        Protocol::new(&limits, None, Drain::default(), Arc::clone(metrics), Arc::new(Large))
    }

    #[tokio::test]
    async fn l_01_a_plain_connection_is_small_until_it_speaks() {
        let metrics = Arc::new(Metrics::new());
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let peer = stream.peer_addr().unwrap();
        let serving = Arc::new(protocol(&metrics)).serve(stream, peer);
        let bytes = size_of_val(&serving);
        assert!(bytes <= 2048, "{bytes} bytes for a connection that does nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_rested_answers_the_next_request_and_ends_when_none_comes() {
        let metrics = Arc::new(Metrics::new());
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        let (mut client, server) = duplex(4096);
        let protocol = Arc::new(protocol(&metrics));
        let serving = tokio::spawn(async move { serve(&protocol, server, peer).await });
        for _ in 0..3 {
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(client.read_u8().await.unwrap());
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
            client.read_exact(&mut vec![0; LARGE_BYTES]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(100)).await;
        }
        let began = Instant::now();
        serving.await.unwrap();
        assert!((15..25).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        assert!(metrics.page().contains("timed_out_total{reason=\"keep_alive\"} 1"));
    }

    #[tokio::test(start_paused = true)]
    async fn l_05_a_reader_that_takes_nothing_is_cut_and_one_that_takes_a_little_is_not() {
        let metrics = Arc::new(Metrics::new());
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        let stalls = || metrics.page().contains("timed_out_total{reason=\"write_stall\"}");
        let (mut client, server) = duplex(4096);
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let protocol = Arc::new(protocol(&metrics));
        let serving = tokio::spawn(async move { serve(&protocol, server, peer).await });
        // One buffer every 50 s is slow, but it is progress.
        for _ in 0..5 {
            client.read_exact(&mut [0; 4096]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(50)).await;
        }
        assert!(!stalls(), "it was cut while it made progress");
        client.read_exact(&mut [0; 4096]).await.unwrap();
        let began = Instant::now();
        serving.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 60);
        assert!(stalls());
    }
}
