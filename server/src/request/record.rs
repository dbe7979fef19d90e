//! The account of one request: how much came and went, how long it took, how it ended.
//!
//! What must stay true: every request is written down exactly once, when its answer has ended or is given up: that is when
//! its [`Record`] is dropped, wherever that happens.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use taffrail_distribution::body::{BoxError, ResponseBody};
use taffrail_distribution::route::Endpoint;
use tokio::time::{Instant, Sleep, sleep};

use crate::config::sections::Limits;
use crate::connection::Caller;
use crate::metrics::{Finished, Metrics};
use crate::request_id::RequestId;

/// Status in log and metrics of a request whose client left before there was an answer (nginx's number for it).
const CLIENT_GONE: u16 = 499;
/// Characters of a client's name that are logged.
const USER_AGENT_CHARS_MAX: usize = 200;

/// How fast a body has to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    window: Duration,
    bytes_per_window_min: u64,
}

impl Pace {
    /// The pace that is configured.
    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            window: Duration::from_secs(limits.body_window_secs),
            bytes_per_window_min: limits.body_bytes_per_sec_min.saturating_mul(limits.body_window_secs),
        }
    }
}

/// What is known of a request body from outside.
#[derive(Debug, Default)]
pub(crate) struct Received {
    bytes: AtomicU64,
    too_slow: AtomicBool,
    ended: AtomicBool,
}

impl Received {
    /// Whether all of it was taken in.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether it was ended for coming too slowly.
    pub(super) fn was_too_slow(&self) -> bool {
        self.too_slow.load(Ordering::Relaxed)
    }
}

/// A request body: counted, and ended when it comes too slowly. The registry judges the pace of uploads itself, because it
/// keeps what came; `judged` switches this off for it.
#[derive(Debug)]
pub(crate) struct ReceivedBody<B = Incoming> {
    inner: B,
    received: Arc<Received>,
    pace: Option<Pace>,
    // Only while we wait for the client.
    window: Option<Pin<Box<Sleep>>>,
    window_bytes: u64,
}

/// The body came too slowly.
#[derive(Debug, thiserror::Error)]
#[error("the body came too slowly")]
struct TooSlow;

impl ReceivedBody<()> {
    /// A body still without its bytes, and what is to be known of it.
    pub(super) fn new(pace: Pace) -> (Self, Arc<Received>) {
        let received = Arc::new(Received::default());
        let body = Self {
            inner: (),
            received: Arc::clone(&received),
            pace: Some(pace),
            window: None,
            window_bytes: 0,
        };
        (body, received)
    }

    /// Puts it around the bytes.
    pub(super) fn around<B>(self, inner: B) -> ReceivedBody<B> {
        ReceivedBody { inner, received: self.received, pace: self.pace, window: None, window_bytes: 0 }
    }
}

impl<B> ReceivedBody<B> {
    /// Leaves the judgement of its pace to whoever reads it.
    pub(crate) fn judged_by_reader(mut self) -> Self {
        self.pace = None;
        self
    }

    /// Waits with the client; ready when it has taken too long.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<TooSlow> {
        let Some(pace) = self.pace else { return Poll::Pending };
        loop {
            let window = self.window.get_or_insert_with(|| Box::pin(sleep(pace.window)));
            std::task::ready!(window.as_mut().poll(context));
            if self.window_bytes < pace.bytes_per_window_min {
                self.received.too_slow.store(true, Ordering::Relaxed);
                return Poll::Ready(TooSlow);
            }
            self.window = None;
            self.window_bytes = 0;
        }
    }
}

impl<B> Body for ReceivedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else {
            return self.wait(context).map(|slow| Some(Err(slow.into())));
        };
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
        {
            let count = bytes.len() as u64;
            self.window_bytes = self.window_bytes.saturating_add(count);
            self.received.bytes.fetch_add(count, Ordering::Relaxed);
        }
        if frame.is_none() || self.inner.is_end_stream() {
            self.received.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The account of one request.
pub(super) struct Record {
    id: RequestId,
    method: Method,
    path: String,
    user_agent: String,
    address: IpAddr,
    caller: Caller,
    began: Instant,
    metrics: Arc<Metrics>,
    received: Option<Arc<Received>>,
    status: Option<StatusCode>,
    route: &'static str,
    sent_bytes: u64,
    complete: bool,
}

impl Record {
    /// Opens the account.
    pub(super) fn new<B>(
        request: &Request<B>,
        id: RequestId,
        address: IpAddr,
        caller: Caller,
        metrics: Arc<Metrics>,
        began: Instant,
    ) -> Self {
        caller.vitals.request_begins();
        metrics.in_flight.inc();
        Self {
            id,
            method: request.method().clone(),
            // Without the query: tokens and passwords have been seen there.
            path: request.uri().path().to_owned(),
            user_agent: user_agent(request.headers()),
            address,
            caller,
            began,
            metrics,
            received: None,
            status: None,
            route: route_of(request.uri().path()),
            sent_bytes: 0,
            complete: false,
        }
    }

    /// Counts this body.
    pub(super) fn watch(&mut self, received: Arc<Received>) {
        self.received = Some(received);
    }

    /// Notes the head of the answer.
    pub(super) fn answered(&mut self, response: &Response<ResponseBody>) {
        self.status = Some(response.status());
        if let Some(endpoint) = response.extensions().get::<Endpoint>() {
            self.route = endpoint.name();
        }
        self.complete = self.method == Method::HEAD || response.body().is_end_stream();
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.caller.vitals.request_ends();
        self.metrics.in_flight.dec();
        let status = self.status.map_or(CLIENT_GONE, |status| status.as_u16());
        let duration = self.began.elapsed();
        let received_bytes = self.received.as_ref().map_or(0, |body| body.bytes.load(Ordering::Relaxed));
        self.metrics.request_finished(&Finished {
            route: self.route,
            method: method_word(&self.method),
            status,
            duration,
            received_bytes,
            sent_bytes: self.sent_bytes,
        });
        tracing::info!(
            target: "taffrail::request",
            id = self.id.as_str(),
            method = self.method.as_str(),
            path = self.path,
            route = self.route,
            status,
            duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            received_bytes,
            sent_bytes = self.sent_bytes,
            complete = self.complete,
            client = %self.address,
            secure = self.caller.secure,
            user_agent = self.user_agent,
            "request"
        );
    }
}

fn user_agent(headers: &HeaderMap) -> String {
    let text = headers.get(header::USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
    text.unwrap_or_default().chars().take(USER_AGENT_CHARS_MAX).collect()
}

/// The kind of request as far as the path tells; the registry names its endpoints more exactly.
fn route_of(path: &str) -> &'static str {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match first {
        "v2" => "v2_refused",
        "api" => "api",
        "service" => "token",
        "healthz" | "readyz" => "health",
        _ => "other",
    }
}

/// The method as a label: what a client makes up is one value.
fn method_word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// The body of an answer, with the account that ends with it.
pub(super) struct RecordedBody {
    inner: ResponseBody,
    record: Record,
}

impl RecordedBody {
    /// Puts the account around the body.
    pub(super) fn new(inner: ResponseBody, record: Record) -> Self {
        Self { inner, record }
    }
}

impl Body for RecordedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                self.record.sent_bytes += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
                // The library does not ask again once it has as many bytes as were announced.
                self.record.complete = self.inner.is_end_stream();
            }
            Some(Err(_)) => self.record.complete = false,
            None => self.record.complete = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    const PACE: Pace = Pace { window: Duration::from_secs(30), bytes_per_window_min: 300 };

    /// `count` pieces of `bytes` bytes, one each `every`.
    fn trickle(
        count: usize,
        bytes: usize,
        every: Duration,
    ) -> impl Body<Data = Bytes, Error = std::convert::Infallible> + Unpin {
        let pieces = futures_util::stream::unfold(0, move |index| async move {
            if index == count {
                return None;
            }
            tokio::time::sleep(every).await;
            Some((Ok(Frame::data(Bytes::from(vec![0; bytes]))), index + 1))
        });
        StreamBody::new(Box::pin(pieces))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_at_the_least_pace_arrives_and_a_slower_one_does_not() {
        let (body, received) = ReceivedBody::new(PACE);
        let collected = body.around(trickle(20, 101, Duration::from_secs(10))).collect().await.unwrap();
        assert_eq!(collected.to_bytes().len(), 2020);
        assert_eq!(received.bytes.load(Ordering::Relaxed), 2020);
        assert!(!received.was_too_slow());

        let (body, received) = ReceivedBody::new(PACE);
        assert!(body.around(trickle(20, 90, Duration::from_secs(10))).collect().await.is_err());
        assert!(received.was_too_slow());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_judges_by_itself_is_left_alone() {
        let (body, received) = ReceivedBody::new(PACE);
        let slow = body.around(trickle(3, 1, Duration::from_secs(100))).judged_by_reader();
        assert_eq!(slow.collect().await.unwrap().to_bytes().len(), 3);
        assert!(!received.was_too_slow());
    }

    #[test]
    fn labels_come_from_a_fixed_list() {
        assert_eq!(method_word(&Method::from_bytes(b"BREW").unwrap()), "other");
        assert_eq!(route_of("/anything/at/all"), "other");
        assert_eq!(route_of("//v2/x"), "v2_refused");
    }
}
