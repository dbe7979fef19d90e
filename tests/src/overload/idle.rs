//! L-01 and L-02: connections that were used once and wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use taffrail_tests::server::{Options, Tls};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::client::{self, ms, quantile};
use crate::plan::Plan;
use crate::row::Row;
use crate::site::{Site, mib};

/// Connections of one address: the server allows 1,024.
const PER_ADDRESS: usize = 1_000;
/// Connections that are made at once, so that a queue of handshakes does not time out.
const AT_ONCE: usize = 200;
/// L-01: what one may take.
const BYTES_EACH_MAX: u64 = 12 << 10;
/// L-01: how long a small request beside them may take.
const BESIDE_MAX: Duration = Duration::from_millis(10);
/// L-01 and L-02: memory of the server.
const PLAIN_BYTES_MAX: u64 = 150 << 20;
const TLS_BYTES_MAX: u64 = 400 << 20;

/// L-01.
pub(crate) fn plain(plan: &Plan) -> Result<Vec<Row>> {
    run(plan, "L-01", Tls::Off)
}

/// L-02.
pub(crate) fn tls(plan: &Plan) -> Result<Vec<Row>> {
    run(plan, "L-02", Tls::Files)
}

/// A connection, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

fn run(plan: &Plan, number: &'static str, tls: Tls) -> Result<Vec<Row>> {
    let count = plan.idle_connections;
    let what = format!("{count} idle connections");
    if let Some(why) = plan.too_many(count) {
        return Ok(vec![Row::skipped(number, what, why)]);
    }
    let site = Site::start(plan, Options { tls, ..Options::default() })?;
    let host = site.host()?;
    let connector = match site.server.certificate() {
        None => None,
        Some(files) => Some(connector(&files.authority)?),
    };
    let authorization = site.token("library/idle")?;
    let request = client::head("GET", "/v2/", host, &authorization);
    let dial = async |number: usize| -> Result<Box<dyn Stream>> {
        let stream = client::dial(host, client::loopback(number / PER_ADDRESS)).await?;
        let mut stream: Box<dyn Stream> = match &connector {
            None => Box::new(stream),
            Some(connector) => Box::new(connector.connect(ServerName::try_from("127.0.0.1")?, stream).await?),
        };
        let begun = client::ask(&mut stream, request.as_bytes()).await?;
        ensure!(begun.status == 200, "answered {}", begun.status);
        Ok(stream)
    };
    // The hash of a password takes 19 MiB, which the allocator returns a little later.
    std::thread::sleep(plan.rest);
    let before = site.memory()?;
    let mut open = plan.runtime.block_on(async {
        let mut open = Vec::with_capacity(count);
        for from in (0..count).step_by(AT_ONCE) {
            open.extend(try_join_all((from..count.min(from + AT_ONCE)).map(&dial)).await?);
        }
        anyhow::Ok(open)
    })?;
    std::thread::sleep(plan.rest);
    let memory = site.memory()?;
    let each = memory.resident.saturating_sub(before.resident) / count as u64;
    let counted = site.metric("taffrail_connections_open")?;

    // The times of one more connection beside them, and then the sign that all of them are there still.
    let mut times = plan.runtime.block_on(async {
        let mut beside = dial(count).await?;
        let (mut times, until) = (Vec::new(), Instant::now() + plan.sample);
        while Instant::now() < until {
            let began = Instant::now();
            client::ask(&mut beside, request.as_bytes()).await?;
            times.push(began.elapsed());
        }
        anyhow::Ok(times)
    })?;
    let alive = plan.runtime.block_on(async {
        let mut alive = 0;
        for stream in &mut open {
            let answered = client::ask(stream, request.as_bytes()).await;
            alive += usize::from(answered.is_ok_and(|begun| begun.status == 200));
        }
        alive
    });

    let p99 = quantile(&mut times, 0.99);
    let (memory_max, each_max) = match tls {
        Tls::Off => (PLAIN_BYTES_MAX, BYTES_EACH_MAX),
        Tls::Files => (TLS_BYTES_MAX, u64::MAX),
    };
    let mut rows = vec![
        Row::held(
            number,
            format!("{what}: those that answer after a rest"),
            "all",
            format!("{alive} of {count}; the server counted {counted}"),
            alive == count && counted >= count as f64,
        ),
        Row::new(
            number,
            format!("{what}: memory"),
            format!("<= {}", mib(memory_max)),
            format!("{memory}; before {before}"),
            plan.figure(memory.resident <= memory_max),
        ),
        Row::new(
            number,
            "GET /v2/ beside them, p99",
            format!("<= {}", ms(BESIDE_MAX)),
            format!("{} (p50 {}, {} requests)", ms(p99), ms(quantile(&mut times, 0.5)), times.len()),
            plan.figure(p99 <= BESIDE_MAX),
        ),
    ];
    let each_figure = format!("{:.1} KiB", each as f64 / 1024.0);
    rows.push(match tls {
        Tls::Off => Row::new(
            number,
            "memory of each",
            format!("<= {} KiB", each_max >> 10),
            each_figure,
            plan.figure(each <= each_max),
        ),
        Tls::Files => Row::noted(number, "memory of each", each_figure),
    });
    Ok(rows)
}

fn connector(authority: &std::path::Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).context("the authority")?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
