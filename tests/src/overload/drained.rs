//! L-16: SIGTERM while pulls and pushes are under way, once and twice.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use taffrail_tests::fsck::{self, Depth, Ended};
use taffrail_tests::http::sha256;
use taffrail_tests::images::noise;
use taffrail_tests::server::Options;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client;
use crate::plan::Plan;
use crate::row::Row;
use crate::site::{Site, until};

const REPOSITORY: &str = "library/drained";
const NUMBER: &str = "L-16";

/// More than the buffers of a socket take, so that the server is at it until the client is.
const PULL_BYTES: usize = 24 << 20;
/// Past the mebibyte from which on an upload has a file.
const PUSH_BYTES: usize = 3 << 20;
/// Steps in which both are done.
const STEPS: u32 = 20;
/// A second signal: the process is gone by then.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Seconds that the server gives to drain; its default.
const DRAIN: Duration = Duration::from_secs(30);

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let mut site = Site::start(plan, Options::default())?;
    let path = site.push_noise(REPOSITORY, 16, PULL_BYTES)?;
    let mut rows = once(plan, &mut site, &path)?;
    site.server.restart()?;
    rows.extend(twice(plan, &mut site, &path)?);
    Ok(rows)
}

fn once(plan: &Plan, site: &mut Site, path: &str) -> Result<Vec<Row>> {
    let host = site.host()?;
    let mut transfers = begin(plan, site, path, 0)?;
    let under_way = transfers.len();
    site.signal(Signal::TERM)?;
    let signalled = Instant::now();
    let refused = until("new connections are refused", Duration::from_secs(5), || {
        Ok(std::net::TcpStream::connect(host).is_err())
    })?;
    let status = site.server.wait_for_end(DRAIN + Duration::from_secs(10))?;
    let took = signalled.elapsed();
    let (whole, cut) = plan.runtime.block_on(outcome(&mut transfers))?;
    Ok(vec![
        Row::held(
            NUMBER,
            format!("SIGTERM with {} pulls and {} pushes under way", plan.drained_pulls, plan.drained_pushes),
            "all finish",
            format!("{whole} of {under_way} finished{}", first_of(&cut)),
            whole == under_way,
        ),
        Row::held(
            NUMBER,
            "the process",
            "refuses new connections, exits with 0 within its time to drain",
            format!("refused after {refused:.1?}, {status} after {took:.1?}"),
            status.success() && took < DRAIN,
        ),
    ])
}

fn twice(plan: &Plan, site: &mut Site, path: &str) -> Result<Vec<Row>> {
    // What is acknowledged in front of the crash must be there behind it.
    let kept: Vec<String> =
        (0..20).map(|seed| site.push_noise(REPOSITORY, 1_600 + seed, 1_200_000)).collect::<Result<_>>()?;
    let mut transfers = begin(plan, site, path, plan.drained_pushes)?;
    site.signal(Signal::TERM)?;
    until("new connections are refused", Duration::from_secs(5), || {
        Ok(std::net::TcpStream::connect(site.host()?).is_err())
    })?;
    let signalled = Instant::now();
    site.signal(Signal::TERM)?;
    let status = site.server.wait_for_end(DRAIN)?;
    let took = signalled.elapsed();
    let (whole, cut) = plan.runtime.block_on(outcome(&mut transfers))?;
    let checked = fsck::check(site.server.data_dir(), Ended::ByCrash, Depth::Digests);
    let opened = site.server.restart()?;
    let host = site.host()?;
    let token = site.token(REPOSITORY)?;
    let mut found = 0;
    for path in &kept {
        let get = client::head("GET", path, host, &token);
        let pulled = plan.runtime.block_on(client::ask_anew(host, client::loopback(0), get.as_bytes(), 200));
        found += usize::from(pulled.is_ok());
    }
    Ok(vec![
        Row::held(
            NUMBER,
            "a second SIGTERM",
            "ends the process at once, with 1",
            format!("{status} after {took:.2?}; {whole} transfers had ended, {} were cut", cut.len()),
            took < AT_ONCE && status.code() == Some(1),
        ),
        Row::held(
            NUMBER,
            "the store after it",
            "the checker finds nothing but traces of a crash; all that was acknowledged is there",
            match &checked {
                Ok(checked) => format!(
                    "{} blobs checked, traces {:?}; open after {opened:.2?}, {found} of {} found",
                    checked.blobs,
                    checked.traces,
                    kept.len()
                ),
                Err(error) => format!("{error:#}"),
            },
            checked.is_ok() && found == kept.len(),
        ),
    ])
}

fn first_of(cut: &[String]) -> String {
    cut.first().map_or_else(String::new, |error| format!("; {error}"))
}

/// Transfers that each take a while.
type Transfers = JoinSet<Result<()>>;

/// Begins all of them, and waits until each has come some way.
fn begin(plan: &Plan, site: &Site, path: &str, seed: usize) -> Result<Transfers> {
    let host = site.host()?;
    let token = site.token(REPOSITORY)?;
    let pause = plan.drained_time / STEPS;
    let pushes: Vec<(Vec<u8>, String)> = (0..plan.drained_pushes)
        .map(|number| {
            let body = noise((16_000 + seed + number) as u64, PUSH_BYTES);
            let location = site.admin.begin_upload(REPOSITORY)?;
            let joint = if location.contains('?') { '&' } else { '?' };
            let path = format!("{location}{joint}digest={}", sha256(&body));
            Ok((body, path))
        })
        .collect::<Result<_>>()?;
    let mut transfers = JoinSet::new();
    let _runtime = plan.runtime.enter();
    for _ in 0..plan.drained_pulls {
        transfers.spawn(pull(host, client::head("GET", path, host, &token), pause));
    }
    for (body, path) in pushes {
        let lines =
            format!("{token}Content-Type: application/octet-stream\r\nContent-Length: {PUSH_BYTES}\r\n");
        transfers.spawn(push(host, client::head("PUT", &path, host, &lines), body, pause));
    }
    let under_way = transfers.len() as f64;
    until("every transfer is under way", Duration::from_secs(20), || {
        Ok(site.metric("taffrail_http_requests_in_flight")? >= under_way)
    })?;
    std::thread::sleep(pause * 3);
    Ok(transfers)
}

async fn outcome(transfers: &mut Transfers) -> Result<(usize, Vec<String>)> {
    let (mut whole, mut cut) = (0, Vec::new());
    while let Some(transfer) = transfers.join_next().await {
        match transfer? {
            Ok(()) => whole += 1,
            Err(error) => cut.push(format!("{error:#}")),
        }
    }
    Ok((whole, cut))
}

async fn pull(host: SocketAddr, request: String, pause: Duration) -> Result<()> {
    let mut stream = client::dial(host, client::loopback(1)).await?;
    stream.write_all(request.as_bytes()).await?;
    let begun = client::answer(&mut stream, false).await?;
    ensure!(begun.status == 200, "GET was answered {}", begun.status);
    let mut left = PULL_BYTES - begun.first.len();
    let mut buffer = vec![0; PULL_BYTES / STEPS as usize];
    while left > 0 {
        sleep(pause).await;
        let most = left.min(buffer.len());
        stream.read_exact(buffer.get_mut(..most).unwrap_or_default()).await.context("a pull was cut")?;
        left -= most;
    }
    Ok(())
}

async fn push(host: SocketAddr, head: String, body: Vec<u8>, pause: Duration) -> Result<()> {
    let mut stream = client::dial(host, client::loopback(2)).await?;
    stream.write_all(head.as_bytes()).await?;
    for part in body.chunks(PUSH_BYTES.div_ceil(STEPS as usize)) {
        stream.write_all(part).await.context("a push was cut")?;
        sleep(pause).await;
    }
    let begun = client::answer(&mut stream, false).await.context("a push was not answered")?;
    ensure!(begun.status == 201, "PUT was answered {}", begun.status);
    Ok(())
}
