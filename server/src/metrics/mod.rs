//! What the server counts, in the form of Prometheus.
//!
//! What must stay true: a label takes one of few values, none of them chosen by a client; each metric is described in
//! `docs/operations/metrics.md`, which a test holds against the page, and its neighbours name no other.

mod figures;
mod page;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::gate::Full;
use crate::vitals::Overdue;

pub(crate) use figures::{CoreFigures, JobFigures, LogFigures, StoreFigures};
pub(crate) use page::Page;

/// Bounds of the buckets of request durations in seconds: a cached HEAD takes well under a millisecond, a large pull minutes.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    method: &'static str,
    status: u32,
}

/// Label of what is counted by route alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

/// Label of what is counted by reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Label of what is counted by its result.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// One finished request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished {
    /// Which kind of request, from a fixed list.
    pub(crate) route: &'static str,
    /// Its method, from a fixed list.
    pub(crate) method: &'static str,
    /// The answer's status; 499 when the client left before there was one.
    pub(crate) status: u16,
    /// From its head to the end of the answer.
    pub(crate) duration: Duration,
    /// Bytes of its body that were read.
    pub(crate) received_bytes: u64,
    /// Bytes of the answer's body.
    pub(crate) sent_bytes: u64,
}

/// All metrics.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabel, Histogram, fn() -> Histogram>,
    received: Family<RouteLabel, Counter>,
    sent: Family<RouteLabel, Counter>,
    /// Requests that are being answered.
    pub(crate) in_flight: Gauge,
    /// Handlers that panicked.
    pub(crate) panics: Counter,
    /// Connections that were let in.
    pub(crate) connections_accepted: Counter,
    refused: Family<ReasonLabel, Counter>,
    overdue: Family<ReasonLabel, Counter>,
    /// HTTP/2 connections that were ended for too many frames.
    pub(crate) http2_floods: Counter,
    /// HTTP/2 streams that were reset because the client took nothing.
    pub(crate) streams_stalled: Counter,
    /// Calls of `sendfile`.
    pub(crate) sendfile_calls: Counter,
    /// Open connections; set when the page is made.
    pub(crate) connections_open: Gauge,
    /// Failures of `accept`.
    pub(crate) accept_errors: Counter,
    /// TLS handshakes that came to nothing.
    pub(crate) tls_handshake_failures: Counter,
    certificate_loads: Family<ResultLabel, Counter>,
}

impl Metrics {
    /// Metrics that have counted nothing yet.
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("taffrail")),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            received: Family::default(),
            sent: Family::default(),
            in_flight: Gauge::default(),
            panics: Counter::default(),
            connections_accepted: Counter::default(),
            refused: Family::default(),
            overdue: Family::default(),
            http2_floods: Counter::default(),
            streams_stalled: Counter::default(),
            sendfile_calls: Counter::default(),
            connections_open: Gauge::default(),
            accept_errors: Counter::default(),
            tls_handshake_failures: Counter::default(),
            certificate_loads: Family::default(),
        };
        metrics.register_own();
        metrics
    }

    fn register_own(&self) {
        self.register("http_requests", "Requests that ended.", self.requests.clone());
        self.lock().register_with_unit(
            "http_request_duration",
            "Time from a request's head to the end of its answer",
            Unit::Seconds,
            self.durations.clone(),
        );
        self.register("http_received_bytes", "Bytes of request bodies.", self.received.clone());
        self.register("http_sent_bytes", "Bytes of answers' bodies.", self.sent.clone());
        self.register("http_requests_in_flight", "Requests that are being answered.", self.in_flight.clone());
        self.register("http_panics", "Requests whose handler panicked.", self.panics.clone());
        self.register(
            "connections_accepted",
            "Connections that were let in.",
            self.connections_accepted.clone(),
        );
        self.register("connections_refused", "Connections beyond a limit.", self.refused.clone());
        self.register("connections_timed_out", "Connections cut for want of progress.", self.overdue.clone());
        self.register("sendfile_calls", "Calls of sendfile for blobs.", self.sendfile_calls.clone());
        self.register(
            "http2_floods",
            "HTTP/2 connections ended for too many frames.",
            self.http2_floods.clone(),
        );
        self.register(
            "http2_streams_stalled",
            "HTTP/2 streams reset because the client took nothing.",
            self.streams_stalled.clone(),
        );
        self.register("connections_open", "Open connections.", self.connections_open.clone());
        self.register("accept_errors", "Failures to accept a connection.", self.accept_errors.clone());
        self.register(
            "tls_handshake_failures",
            "TLS handshakes that failed.",
            self.tls_handshake_failures.clone(),
        );
        self.register("tls_certificate_loads", "Changed certificates.", self.certificate_loads.clone());
        self.register("build", "The program that runs.", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    }

    /// The library ends the help text with a full stop, and adds `_total` and units to names.
    fn register(&self, name: &str, help: &str, metric: impl prometheus_client::registry::Metric) {
        self.lock().register(name, help.trim_end_matches('.'), metric);
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds figures that are read when the page is made.
    pub(crate) fn add(&self, collector: impl Collector) {
        self.lock().register_collector(Box::new(collector));
    }

    /// Counts a finished request.
    pub(crate) fn request_finished(&self, finished: &Finished) {
        let Finished { route, method, status, .. } = *finished;
        self.requests.get_or_create(&RequestLabels { route, method, status: u32::from(status) }).inc();
        let route = RouteLabel { route };
        self.durations.get_or_create(&route).observe(finished.duration.as_secs_f64());
        self.received.get_or_create(&route).inc_by(finished.received_bytes);
        self.sent.get_or_create(&route).inc_by(finished.sent_bytes);
    }

    /// Counts a connection that was refused.
    pub(crate) fn connection_refused(&self, full: Full) {
        self.refused.get_or_create(&ReasonLabel { reason: full.word() }).inc();
    }

    /// Counts a connection that was cut because nothing happened on it.
    pub(crate) fn connection_overdue(&self, why: Overdue) {
        self.overdue.get_or_create(&ReasonLabel { reason: why.word() }).inc();
    }

    /// Counts a certificate that was loaded again, or could not be.
    pub(crate) fn certificate_loaded(&self, well: bool) {
        self.certificate_loads
            .get_or_create(&ResultLabel { result: if well { "ok" } else { "error" } })
            .inc();
    }

    /// The page in the OpenMetrics text format 1.0.
    pub(crate) fn page(&self) -> String {
        let registry = self.lock();
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => text,
            Err(std::fmt::Error) => "# EOF\n".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use taffrail_blobstore::disk::threads::ThreadsDisk;
    use taffrail_blobstore::{Options, Store, Threading};

    use super::*;

    /// Names without the prefix, as they stand on the page.
    fn exported(page: &str) -> BTreeSet<&str> {
        let names = page.lines().filter_map(|line| line.strip_prefix("taffrail_")?.split(['{', ' ']).next());
        let parts = ["_bucket", "_count", "_sum"];
        names.map(|name| parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name)).collect()
    }

    #[test]
    fn every_metric_is_documented_and_every_documented_metric_exists() {
        let dir = tempfile::tempdir().unwrap();
        let disk = ThreadsDisk::open_or_create(dir.path()).unwrap();
        let options = Options {
            segment_bytes: 1 << 20,
            reserve_bytes: 0,
            threading: Threading::Inline,
            ..Options::new([7; 48])
        };
        let store = Arc::new(Store::open(Arc::new(disk), options, 0).unwrap());
        let metrics = Metrics::new();
        metrics.add(StoreFigures(Arc::downgrade(&store)));
        metrics.add(LogFigures(Arc::default()));
        metrics.add(JobFigures(Arc::default()));
        metrics.add(CoreFigures { password_hashes: Box::new(|| 1) });
        // A family without a sample is not on the page.
        metrics.connection_refused(Full::Total);
        metrics.connection_overdue(Overdue::Head);
        metrics.certificate_loaded(true);
        metrics.request_finished(&Finished {
            route: "base",
            method: "GET",
            status: 200,
            duration: Duration::from_millis(1),
            received_bytes: 0,
            sent_bytes: 2,
        });
        let page = metrics.page();
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations");
        let document = std::fs::read_to_string(folder.join("metrics.md")).unwrap();
        let documented: BTreeSet<&str> = document
            .lines()
            .filter_map(|line| line.strip_prefix("| `taffrail_")?.split('`').next())
            .collect();
        assert_eq!(exported(&page), documented);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for name in words.filter_map(|word| word.strip_prefix("taffrail_")) {
                // `log.level` takes names of crates.
                assert!(documented.contains(name) || name == "core", "{}: taffrail_{name}", path.display());
            }
        }
        assert!(page.ends_with("# EOF\n"));
    }
}
