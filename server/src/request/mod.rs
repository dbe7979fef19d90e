//! What happens to every request, whatever it asks for: bounds, an id, a line in the log, a count, and an answer even when
//! its handler panics.
//!
//! What must stay true: nothing here looks at rights. Handlers see a request in one form: the target is a path, the
//! authority stands in `Host`, and the client's address in the extensions.

mod head;
mod record;
mod refusal;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Method, Request, Response, Version};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use taffrail_distribution::access::ClientAddress;
use taffrail_distribution::body::{OnlySent, ResponseBody};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::config::Config;
use crate::config::values::Network;
use crate::connection::{Answer, Answers, Caller};
use crate::metrics::Metrics;
use crate::peer::client_address;
use crate::request_id::{RequestId, X_REQUEST_ID};

pub(crate) use head::HeadLimits;
pub(crate) use record::{Pace, ReceivedBody};
use record::{Record, RecordedBody};
pub(crate) use refusal::Refusal;

/// What is behind the front: the routes, or a handler of the tests that misbehaves.
pub(crate) trait Handles: Send + Sync + 'static {
    /// Answers a request that has passed the front.
    fn answer(&self, request: Request<ReceivedBody>) -> impl Future<Output = Response<ResponseBody>> + Send;
}

/// The registry's side of every connection.
pub(crate) struct Front<H> {
    handler: H,
    metrics: Arc<Metrics>,
    limits: HeadLimits,
    pace: Pace,
    trusted_proxies: Vec<Network>,
    /// Whether blobs may be handed to a socket over mapped files.
    maps: bool,
}

impl<H: Handles> Front<H> {
    /// A front before this handler.
    pub(crate) fn new(handler: H, metrics: Arc<Metrics>, config: &Config) -> Self {
        Self {
            handler,
            metrics,
            limits: HeadLimits::of(&config.limits),
            pace: Pace::of(&config.limits),
            trusted_proxies: config.server.trusted_proxies.clone(),
            maps: config.server.pull_path.maps(),
        }
    }

    async fn serve(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        caller: Caller,
    ) -> Response<ResponseBody> {
        let began = Instant::now();
        let id = RequestId::of(request.headers());
        let address = client_address(caller.peer.ip(), request.headers(), &self.trusted_proxies);
        let blocks = caller.blocks.clone();
        let caller_is_secure = caller.secure;
        let mut record = Record::new(&request, id.clone(), address, caller, Arc::clone(&self.metrics), began);
        let is_only_sent = self.maps && !caller_is_secure && request.version() <= Version::HTTP_11;
        let (version, is_head) = (request.version(), request.method() == Method::HEAD);
        let mut all_came = request.body().is_end_stream();

        // A handler has the first block of its answer, or all of it, before it answers.
        let block = match &blocks {
            Some(blocks) if request.method() == Method::GET => Some(blocks.one().await),
            Some(_) | None => None,
        };
        let checked = self.limits.check(&request).and_then(|()| head::normalise(&mut request));
        let mut response = match checked {
            Err(refusal) => refusal.into_response(),
            Ok(()) => {
                let (body, received) = ReceivedBody::new(self.pace);
                record.watch(Arc::clone(&received));
                let mut request = request.map(|incoming| body.around(incoming));
                request.extensions_mut().insert(ClientAddress(address));
                if is_only_sent {
                    request.extensions_mut().insert(OnlySent);
                }
                let span = tracing::info_span!("request", id = id.as_str());
                let handled = AssertUnwindSafe(self.handler.answer(request)).catch_unwind();
                let handled = handled.instrument(span).await;
                all_came |= received.has_ended();
                match handled {
                    Ok(_) if received.was_too_slow() => Refusal::BodyTooSlow.into_response(),
                    Ok(response) => response,
                    Err(_) => {
                        // The panic itself is in the log already.
                        self.metrics.panics.inc();
                        Refusal::Panicked.into_response()
                    }
                }
            }
        };
        if is_head {
            response = without_body(response);
        }
        response.headers_mut().insert(X_REQUEST_ID, id.header());
        if !all_came && version <= Version::HTTP_11 {
            // What is left of the body is not waited for, so nothing behind it can be read: the client is told not to send
            // its next request here.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        record.answered(&response);
        response.map(|body| {
            let body = match blocks {
                Some(blocks) => blocks.hold(body, block),
                None => body,
            };
            RecordedBody::new(body, record).boxed_unsync()
        })
    }
}

/// The answer to a HEAD: the headers of a GET and no body (RFC 9110 section 9.3.2). The library leaves the body out of HTTP/1.1
/// only; over HTTP/2 it would break the stream.
fn without_body(response: Response<ResponseBody>) -> Response<ResponseBody> {
    let (mut parts, body) = response.into_parts();
    if let Some(bytes) = body.size_hint().exact().filter(|bytes| *bytes > 0) {
        parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| bytes.into());
    }
    Response::from_parts(parts, Empty::new().map_err(|never| match never {}).boxed_unsync())
}

impl<H: Handles> Answers for Front<H> {
    fn answer(self: Arc<Self>, request: Request<Incoming>, caller: Caller) -> Answer {
        Box::pin(self.serve(request, caller))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::connection::Protocol;
    use crate::drain::Drain;

    /// Panics at `/panic`, answers elsewhere, and reads the body first.
    struct Clumsy;

    impl Handles for Clumsy {
        async fn answer(&self, request: Request<ReceivedBody>) -> Response<ResponseBody> {
            assert_ne!(request.uri().path(), "/panic", "told to");
            match request.into_body().collect().await {
                Ok(_) => {
                    Response::new(http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync())
                }
                Err(_) => Refusal::NotFound.into_response(),
            }
        }
    }

    async fn start(config: &Config) -> (SocketAddr, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new());
        let front: Arc<dyn Answers> = Arc::new(Front::new(Clumsy, Arc::clone(&metrics), config));
        let protocol =
            Arc::new(Protocol::new(&config.limits, None, Drain::default(), Arc::clone(&metrics), front));
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, peer)) = socket.accept().await {
                tokio::spawn(Arc::clone(&protocol).serve(stream, peer));
            }
        });
        (address, metrics)
    }

    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn f_40_a_panic_in_a_handler_is_a_500_that_is_counted_and_the_connection_lives() {
        let (address, metrics) = start(&Config::default()).await;
        let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n{more}\r\n");
        let both = get("/panic", "X-Request-ID: find-me\r\n") + &get("/", "Connection: close\r\n");
        let answers = exchange(address, &both).await;
        assert!(answers.starts_with("HTTP/1.1 500 "), "{answers}");
        assert!(answers.contains("x-request-id: find-me\r\n"), "{answers}");
        assert!(!answers.contains("told to"), "the panic's text is not for clients: {answers}");
        assert!(answers.contains("HTTP/1.1 200 "), "{answers}");
        assert_eq!(metrics.panics.get(), 1);
        assert_eq!(metrics.in_flight.get(), 0);
    }

    #[tokio::test]
    async fn a_body_that_comes_too_slowly_is_answered_408() {
        let mut config = Config::default();
        config.limits.body_window_secs = 1;
        let (address, _) = start(&config).await;
        let answer = exchange(address, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc").await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
}
