//! `taffrail serve`: from the configuration to the exit code.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use taffrail_blobstore::Store;
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;

use crate::config::Config;
use crate::config::values::MetricsListen;
use crate::connection::{Answers, Protocol};
use crate::data_dir::DataDir;
use crate::drain::{Drain, Drained, Signals};
use crate::gate::{Gate, connections_that_fit};
use crate::listen::Listener;
use crate::metrics::{LogFigures, Metrics, Page, StoreFigures};
use crate::request::Front;
use crate::tls::Certificate;
use crate::wiring::Parts;
use crate::{control, log, store, supervisor};

/// How long tasks that nobody waits for may take to notice the end.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(5);
/// How long a thread that hashed a password waits for another one. Its end is when the allocator, which holds freed memory back for a
/// second, returns the 19 MiB that the hash took.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Scrapers of the metrics, and whoever else looks at them.
const METRICS_CONNECTIONS_MAX: u64 = 64;
/// Connections that may wait to be accepted; the system allows `net.core.somaxconn` of them, 4096 by default. One that finds no room tries
/// again after seconds: with the library's 128 some of 4,000 clients that came at once waited for half a minute (L-03).
const BACKLOG: u32 = 16 << 10;
/// Exit code after a failure of the store, so that a supervisor starts us anew.
const EXIT_FAILED: u8 = 1;

/// Runs the registry until it is told to end, or must.
///
/// # Errors
/// When it cannot start.
pub(crate) fn run(config: &Config) -> anyhow::Result<ExitCode> {
    // Whatever is made from here on is ours alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let log = log::start(&config.log).context("cannot start the log")?;
    let dir = DataDir::open_or_create(&config.storage.data_dir)?;
    // First of all: it holds the lock of the data directory, and says who else does.
    let store = Arc::new(store::open(&dir.store(), config)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("worker")
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let served = runtime.block_on(serve(config, &dir, Arc::clone(&store), &log));
    if let Ok(End::AtOnce) = served {
        // Not even the store is closed: the next start recovers it as after a crash, which loses nothing acknowledged.
        drop(log);
        std::process::exit(EXIT_FAILED.into());
    }
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    store::close(store);
    Ok(match served? {
        End::Drained => ExitCode::SUCCESS,
        End::Failed | End::AtOnce => ExitCode::from(EXIT_FAILED),
    })
}

/// How the serving ended.
enum End {
    /// As it was told to.
    Drained,
    /// Because the store failed.
    Failed,
    /// It was told twice.
    AtOnce,
}

async fn serve(
    config: &Config,
    dir: &DataDir,
    store: Arc<Store>,
    log: &log::LogHandle,
) -> anyhow::Result<End> {
    let mut signals = Signals::take().context("cannot take signals over")?;
    let drain = Drain::default();
    let patience = Duration::from_secs(config.server.drain_secs);
    let metrics = Arc::new(Metrics::new());
    metrics.add(StoreFigures(Arc::downgrade(&store)));
    metrics.add(LogFigures(log.dropped_lines()));

    let certificate = Certificate::of(config, dir)?;
    let (parts, routes) = Parts::assemble(config, dir, &store, &drain).await?;
    parts.show(&metrics);
    let watch = tokio::spawn(store::watch(Arc::downgrade(&store), drain.clone(), patience));
    let controlled = control::listen(&dir.control_socket(), Arc::downgrade(&store)).map(tokio::spawn);
    drop(store);

    let connections_max = connections_that_fit(config.limits.connections_max);
    if connections_max < config.limits.connections_max {
        tracing::warn!(
            connections_max,
            wanted = config.limits.connections_max,
            "fewer connections than configured, because this process may not open more files"
        );
    }
    if config.server.external_url.is_none() && !config.server.listen.ip().to_canonical().is_loopback() {
        tracing::warn!(
            "server.external_url is not set: clients are sent to whatever Host they name for their tokens"
        );
    }
    let gate = Arc::new(Gate::new(
        connections_max,
        config.limits.connections_per_ip_max,
        config.server.trusted_proxies.clone(),
    ));
    let tls = match &certificate {
        None => None,
        Some(certificate) => Some(TlsAcceptor::from(certificate.server_config()?)),
    };
    let front: Arc<dyn Answers> = Arc::new(Front::new(routes, Arc::clone(&metrics), config));
    let protocol = Protocol::new(&config.limits, tls, drain.clone(), Arc::clone(&metrics), front)
        .pulls(config.server.pull_path);
    let socket = bind(config.server.listen)?;
    let address = socket.local_addr().context("a bound socket has an address")?;
    let listener =
        Listener::new(socket, Arc::new(protocol), Arc::clone(&gate), drain.clone(), Arc::clone(&metrics));
    let listening = tokio::spawn(listener.run());
    let scraping = listen_for_scrapers(config, &metrics, gate).await?.map(tokio::spawn);
    let following = certificate.map(|certificate| {
        let metrics = Arc::clone(&metrics);
        tokio::spawn(certificate.follow(move |result| metrics.certificate_loaded(result.is_ok())))
    });
    let watchdog = tokio::spawn(supervisor::keep_watchdog());

    tracing::info!(%address, tls = config.tls.mode.word(), data_dir = %dir.root().display(), "ready");
    supervisor::ready(&format!("listening on {address}"));
    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, patience_secs = config.server.drain_secs, "draining"),
        () = drain.begun() => tracing::error!("ending, because the store failed"),
    }
    supervisor::stopping(patience);
    drain.begin();
    // Failed stores have given reads their time already.
    let patience = if drain.has_failed() { Duration::ZERO } else { patience };
    tokio::select! {
        drained = drain.finish(patience) => match drained {
            Drained::Completely => tracing::info!("every request was answered"),
            Drained::Cut(connections) => tracing::warn!(connections, "connections were cut at the end of the drain"),
        },
        name = signals.next() => {
            tracing::warn!(signal = name, "told twice: ending at once; the next start recovers the store");
            return Ok(End::AtOnce);
        }
    }
    let _ = listening.await;
    parts.stop().await;
    for task in [Some(watch), Some(watchdog), controlled, scraping, following].into_iter().flatten() {
        task.abort();
        let _ = task.await;
    }
    Ok(if drain.has_failed() { End::Failed } else { End::Drained })
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    listen(address).with_context(|| format!("cannot listen on {address}"))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that is started again must not wait for the last connections of the one before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The listener of the metrics, when there is to be one.
async fn listen_for_scrapers(
    config: &Config,
    metrics: &Arc<Metrics>,
    gate: Arc<Gate>,
) -> anyhow::Result<Option<impl Future<Output = ()> + Send + use<>>> {
    let MetricsListen::At(address) = config.metrics.listen else { return Ok(None) };
    let socket = match listen(address) {
        // A second registry on one machine must not fail over a port that nobody chose.
        Err(error) if error.kind() == ErrorKind::AddrInUse && !config.is_given("metrics.listen") => {
            let socket = bind(SocketAddr::new(address.ip(), 0))?;
            tracing::warn!(wanted = %address, "the port of the metrics is taken; using another");
            socket
        }
        bound => bound.with_context(|| format!("cannot listen on {address} for metrics"))?,
    };
    let address = socket.local_addr().context("a bound socket has an address")?;
    tracing::info!(%address, "metrics");
    let page: Arc<dyn Answers> = Arc::new(Page { metrics: Arc::clone(metrics), gate });
    // Scrapes go on while the registry drains, so they have a drain of their own, and end with the process.
    let own_drain = Drain::default();
    let protocol = Protocol::new(&config.limits, None, own_drain.clone(), Arc::clone(metrics), page);
    let own_gate = Arc::new(Gate::new(METRICS_CONNECTIONS_MAX, METRICS_CONNECTIONS_MAX, Vec::new()));
    Ok(Some(Listener::new(socket, Arc::new(protocol), own_gate, own_drain, Arc::clone(metrics)).run()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More clients than the library lets wait, and fewer than the files of a test.
    const BURST: usize = 500;

    #[tokio::test]
    async fn l_03_a_burst_of_connections_waits_to_be_accepted() {
        let socket = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = socket.local_addr().unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2));
        let connected: Vec<_> = (0..BURST).map_while(|_| connect().ok()).collect();
        assert_eq!(connected.len(), BURST);
    }
}
