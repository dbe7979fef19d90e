//! L-03 and L-04: clients that send a byte now and then.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use reqwest::Method;
use taffrail_tests::http::{Extra, Registry, sha256};
use taffrail_tests::images::{Image, noise};
use taffrail_tests::server::Options;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::client::{self, ms, quantile};
use crate::plan::Plan;
use crate::row::Row;
use crate::site::Site;

const REPOSITORY: &str = "library/slow";
const OCTETS: &str = "application/octet-stream";

/// Connections of one address: the server allows 1,024.
const PER_ADDRESS: usize = 1_000;
/// L-03: how much longer than its time a head may last, and how much slower a good client may get.
const LATE_MAX: Duration = Duration::from_secs(1);
const SLOWER_MAX: f64 = 2.0;
/// A server that has not cut a connection by then, after it should have, never will.
const PATIENCE: Duration = Duration::from_secs(20);
/// Parts of a time between two bytes of a head.
const TRICKLES: u32 = 5;
/// Bytes of a body that come at once; one session stays in memory, the other has a file.
const FAST_BYTES: [usize; 2] = [300_000, 1_500_000];
/// Bytes of the whole body.
const BODY_BYTES: usize = 2_000_000;

/// L-03.
pub(crate) fn slow_heads(plan: &Plan) -> Result<Vec<Row>> {
    let (number, count) = ("L-03", plan.slow_heads);
    let what = format!("{count} heads that trickle");
    if let Some(why) = plan.too_many(count) {
        return Ok(vec![Row::skipped(number, what, why)]);
    }
    let site = Site::start(plan, Options::default().key("limits", "header_timeout_secs", plan.head_secs))?;
    let host = site.host()?;
    Image::unique(&[1_000])?.push(&site.admin, REPOSITORY, "good")?;
    let path = format!("/v2/{REPOSITORY}/manifests/good");
    let good = client::head("GET", &path, host, &site.token(REPOSITORY)?);
    let patience = Duration::from_secs(plan.head_secs);
    plan.runtime.block_on(async {
        let mut alone = client::sample(host, good.as_bytes(), 200, Instant::now() + plan.sample).await?;
        let slow: Vec<_> =
            (0..count).map(|index| tokio::spawn(trickle_head(host, index, patience))).collect();
        let beside = tokio::spawn(async move {
            client::sample(host, good.as_bytes(), 200, Instant::now() + patience).await
        });
        let mut lives = Vec::with_capacity(count);
        for life in slow {
            lives.push(life.await??);
        }
        let mut beside = beside.await??;
        let (longest, shortest) = (quantile(&mut lives, 1.0), quantile(&mut lives, 0.0));
        let (before, during) = (quantile(&mut alone, 0.99), quantile(&mut beside, 0.99));
        let slower = during.as_secs_f64() / before.as_secs_f64();
        let counted = site.metric("taffrail_connections_timed_out_total{reason=\"header_timeout\"}")?;
        Ok(vec![
            Row::held(
                number,
                what,
                "each cut by its timeout",
                format!("{counted} counted, {shortest:.1?} to {longest:.1?} after they began"),
                counted >= count as f64,
            ),
            Row::new(
                number,
                "the longest of them",
                format!("<= {:?}", patience + LATE_MAX),
                format!("{longest:.2?}"),
                plan.figure(longest <= patience + LATE_MAX),
            ),
            Row::new(
                number,
                "a good client's p99 beside them",
                format!("<= {SLOWER_MAX} x its p99 alone"),
                format!("{slower:.2} x ({} to {}, {} requests)", ms(before), ms(during), beside.len()),
                plan.figure(slower <= SLOWER_MAX && !beside.is_empty()),
            ),
        ])
    })
}

/// How long a connection lasts whose head does not end.
async fn trickle_head(host: SocketAddr, index: usize, patience: Duration) -> Result<Duration> {
    let mut stream = client::dial(host, client::loopback(index / PER_ADDRESS)).await?;
    let began = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await?;
    let mut byte = [0];
    loop {
        match timeout(patience / TRICKLES, stream.read(&mut byte)).await {
            Ok(Ok(0) | Err(_)) => return Ok(began.elapsed()),
            Ok(Ok(_)) => anyhow::bail!("half a head was answered"),
            // Whether this arrives shows at the next read.
            Err(_) => drop(stream.write_all(b"X-A: b\r\n").await),
        }
        ensure!(began.elapsed() < patience + PATIENCE, "a head may trickle for ever");
    }
}

/// L-04.
pub(crate) fn slow_bodies(plan: &Plan) -> Result<Vec<Row>> {
    let number = "L-04";
    let site =
        Site::start(plan, Options::default().key("limits", "body_window_secs", plan.body_window_secs))?;
    let host = site.host()?;
    let token = site.token(REPOSITORY)?;
    let window = Duration::from_secs(plan.body_window_secs);
    let bodies: Vec<(Vec<u8>, String)> = (0..plan.slow_bodies)
        .map(|index| Ok((noise(index as u64, BODY_BYTES), site.admin.begin_upload(REPOSITORY)?)))
        .collect::<Result<_>>()?;
    let steady_path = site.admin.begin_upload(REPOSITORY)?;
    let (slow, steady) = plan.runtime.block_on(async {
        let slow = bodies.iter().enumerate().map(|(index, (body, path))| {
            let head = client::head("PATCH", path, host, &patch_lines(&token, BODY_BYTES));
            trickle_body(host, head, body, FAST_BYTES[index % FAST_BYTES.len()], window)
        });
        let steady = steady_body(host, &steady_path, &token, window);
        tokio::join!(join_all(slow), steady)
    });
    let (mut refused, mut lost, mut resumed, mut last) = (0, 0, 0, Duration::ZERO);
    for (outcome, (body, path)) in slow.into_iter().zip(&bodies) {
        let Slow { status, sent, after } = outcome?;
        refused += usize::from(status == 408);
        last = last.max(after);
        let offset = resume(&site.admin, body, path)?;
        ensure!(offset <= sent, "the session stands at {offset}, and {sent} bytes were sent");
        lost = lost.max(sent - offset);
        resumed += 1;
    }
    let count = plan.slow_bodies;
    Ok(vec![
        Row::held(
            number,
            format!("{count} PATCH that stop half way and trickle"),
            "each answered 408",
            format!("{refused}, the last after {last:.1?} of trickling (window {window:?})"),
            refused == count,
        ),
        Row::held(
            number,
            "their uploads resumed where the session says",
            "each has its digest; at most the byte is lost that crossed the answer",
            format!("{resumed} of {count}, at most {lost} bytes sent again"),
            resumed == count && lost <= 1,
        ),
        Row::held(
            number,
            "a PATCH at twice the slowest pace, over three windows",
            "202",
            format!("{}", steady?),
            true,
        ),
    ])
}

fn patch_lines(token: &str, bytes: usize) -> String {
    format!("{token}Content-Type: {OCTETS}\r\nContent-Length: {bytes}\r\n")
}

/// What became of a body that trickles.
struct Slow {
    status: u16,
    sent: usize,
    after: Duration,
}

async fn trickle_body(
    host: SocketAddr,
    head: String,
    body: &[u8],
    fast: usize,
    window: Duration,
) -> Result<Slow> {
    let mut stream = client::dial(host, client::loopback(0)).await?;
    stream.write_all(head.as_bytes()).await?;
    let (at_once, rest) = body.split_at(fast);
    stream.write_all(at_once).await?;
    let (began, mut sent) = (Instant::now(), fast);
    for byte in rest.chunks(1) {
        if let Ok(answer) = timeout(window / TRICKLES, client::answer(&mut stream, false)).await {
            let status = answer?.status;
            return Ok(Slow { status, sent, after: began.elapsed() });
        }
        ensure!(began.elapsed() < window * 3 + PATIENCE, "a body may trickle for ever");
        stream.write_all(byte).await?;
        sent += 1;
    }
    anyhow::bail!("a trickle came to its end")
}

/// A body that is slow, and not too slow.
async fn steady_body(host: SocketAddr, path: &str, token: &str, window: Duration) -> Result<u16> {
    const STEPS_PER_SEC: u32 = 4;
    const STEP_BYTES: usize = 512;
    let steps = usize::try_from(window.as_secs() * 3 * u64::from(STEPS_PER_SEC))?;
    let mut stream = client::dial(host, client::loopback(1)).await?;
    let head = client::head("PATCH", path, host, &patch_lines(token, steps * STEP_BYTES));
    stream.write_all(head.as_bytes()).await?;
    for _ in 0..steps {
        stream.write_all(&[7; STEP_BYTES]).await?;
        sleep(Duration::from_secs(1) / STEPS_PER_SEC).await;
    }
    let status = client::answer(&mut stream, false).await?.status;
    ensure!(status == 202, "a steady PATCH was answered {status}");
    Ok(status)
}

/// Goes on where the session says, and ends the upload. Gives where that was.
fn resume(admin: &Registry, body: &[u8], path: &str) -> Result<usize> {
    let send = |method: Method, path: &str, extra: &Extra, status| {
        admin.send(&method, REPOSITORY, "pull,push", path, extra)?.expect(&[status])
    };
    let state = send(Method::GET, path, &Extra::default(), 204)?;
    let last: usize = state.header("range").strip_prefix("0-").context("a range")?.parse()?;
    let offset = last + 1;
    let rest = body.get(offset..).context("an offset within the body")?;
    let extra = Extra::body(OCTETS, rest).header("content-range", format!("{offset}-{}", body.len() - 1));
    let answer = send(Method::PATCH, &admin.location(&state)?, &extra, 202)?;
    let location = admin.location(&answer)?;
    let joint = if location.contains('?') { '&' } else { '?' };
    let digest = sha256(body);
    send(Method::PUT, &format!("{location}{joint}digest={digest}"), &Extra::default(), 201)?;
    Ok(offset)
}
