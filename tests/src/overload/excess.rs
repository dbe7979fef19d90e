//! L-11: several times more requests than can be answered, for minutes.
//!
//! First some connections ask without a pause: what is answered then in a second is the capacity. Then requests are due at a
//! multiple of that, whether earlier ones were answered or not, as long as there is a connection to send them on.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use sha2::{Digest as _, Sha256};
use taffrail_tests::images::{Image, noise};
use taffrail_tests::server::Options;
use tokio::io::{AsyncWriteExt as _, copy, sink};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::{self, ms, quantile};
use crate::plan::Plan;
use crate::row::Row;
use crate::site::Site;

const REPOSITORY: &str = "library/excess";
const NUMBER: &str = "L-11";

/// How much more is offered than can be done.
const FACTOR: f64 = 4.0;
/// L-11: goodput against the capacity, the latency of what is let in, and how soon all is well again.
const GOODPUT_MIN: f64 = 0.8;
const ADMITTED_MAX: Duration = Duration::from_secs(2);
const HEAL_MAX: Duration = Duration::from_secs(5);
/// Connections that measure the capacity.
const AT_CAPACITY: usize = 64;
/// Connections of one address: the server allows 1,024.
const PER_ADDRESS: usize = 1_000;
/// Length of the blob that is pulled, and of those that are pushed.
const PULL_BYTES: usize = 1 << 20;
const PUSH_BYTES: usize = 16 << 10;
/// A request that has no answer by then is given up; its client would have gone.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How long a token is used; it lives 300 s.
const TOKEN_REUSE: Duration = Duration::from_secs(120);
/// How often requests become due.
const TICK: Duration = Duration::from_millis(2);

/// What happened to the requests of one phase.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

/// What the requests are made of.
struct Scene {
    host: SocketAddr,
    /// A header line. Tokens live 300 s, so it is renewed.
    token: RwLock<String>,
    pull: String,
    get: String,
    manifest: String,
    next: AtomicU64,
}

impl Scene {
    fn token(&self) -> String {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn get(&self, path: &str) -> Vec<u8> {
        client::head("GET", path, self.host, &self.token()).into_bytes()
    }
}

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let count = plan.excess_connections;
    let what = format!("{FACTOR} x what can be answered, for {} s", plan.excess_secs);
    if let Some(why) = plan.too_many(count) {
        return Ok(vec![Row::skipped(NUMBER, what, why)]);
    }
    let site = Site::start(plan, Options::default())?;
    let image = Image::unique(&[1_000])?;
    image.push(&site.admin, REPOSITORY, "first")?;
    let pull = site.push_noise(REPOSITORY, 11, PULL_BYTES)?;
    let host = site.host()?;
    let scene = Arc::new(Scene {
        host,
        pull,
        get: format!("/v2/{REPOSITORY}/manifests/first"),
        token: RwLock::new(site.token(REPOSITORY)?),
        manifest: String::from_utf8(image.manifest)?,
        next: AtomicU64::new(0),
    });
    let peak_time = plan.sample;
    let (peak, alone, calm) = plan.runtime.block_on(async {
        let (mut latencies, _) = phase(&scene, AT_CAPACITY, peak_time, None).await?;
        let peak = latencies.len() as f64 / peak_time.as_secs_f64();
        let mut alone =
            client::sample(host, &scene.get(&scene.get), 200, Instant::now() + peak_time / 4).await?;
        anyhow::Ok((peak, quantile(&mut alone, 0.99), quantile(&mut latencies, 0.99)))
    })?;
    let watch = site.watch_memory()?;
    let time = Duration::from_secs(plan.excess_secs);
    let over = AtomicBool::new(false);
    let (mut latencies, counts) = std::thread::scope(|scope| {
        let renewing = scope.spawn(|| renew(&site, &scene, &over));
        let outcome = plan.runtime.block_on(phase(&scene, count, time, Some(peak * FACTOR)));
        over.store(true, Ordering::Relaxed);
        renewing.join().map_err(|_| anyhow!("renewing tokens panicked"))??;
        outcome
    })?;
    let ended = Instant::now();
    let (healed, after) = plan.runtime.block_on(heal(&scene, alone))?;
    let highest = watch.highest()?;
    let goodput = latencies.len() as f64 / time.as_secs_f64() / peak;
    let p99 = quantile(&mut latencies, 0.99);
    let sent = counts.sent.load(Ordering::Relaxed);
    let (refused, failed) = (counts.refused.load(Ordering::Relaxed), counts.failed.load(Ordering::Relaxed));
    let in_time = ended.elapsed() <= time + GIVE_UP;
    Ok(vec![
        Row::new(
            NUMBER,
            format!("{what}: goodput against the {peak:.0}/s of {AT_CAPACITY} connections"),
            format!(">= {GOODPUT_MIN} x"),
            format!(
                "{goodput:.2} x ({} x sent, on {count} connections; {refused} answered 503, {failed} failed)",
                (sent as f64 / time.as_secs_f64() / peak * 100.0).round() / 100.0
            ),
            plan.figure(goodput >= GOODPUT_MIN),
        ),
        Row::held(
            NUMBER,
            "answers",
            "200, 201 or 503",
            format!("{failed} others or none"),
            failed == 0 && in_time,
        ),
        Row::new(
            NUMBER,
            "p99 of what was let in",
            format!("<= {ADMITTED_MAX:?}"),
            format!("{} (p50 {}; p99 at capacity {})", ms(p99), ms(quantile(&mut latencies, 0.5)), ms(calm)),
            plan.figure(p99 <= ADMITTED_MAX),
        ),
        Row::new(
            NUMBER,
            "until a small request is as quick as before",
            format!("<= {HEAL_MAX:?}"),
            format!("{healed:.2?} (then {}, before p99 {})", ms(after), ms(alone)),
            plan.figure(healed <= HEAL_MAX),
        ),
        Row::noted(NUMBER, "highest memory", highest.to_string()),
    ])
}

/// Gets a new token now and then, until it is over.
fn renew(site: &Site, scene: &Scene, over: &AtomicBool) -> Result<()> {
    let mut since = Instant::now();
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(TICK);
        if since.elapsed() > TOKEN_REUSE {
            since = Instant::now();
            let token = site.token(REPOSITORY)?;
            *scene.token.write().unwrap_or_else(PoisonError::into_inner) = token;
        }
    }
    Ok(())
}

/// So many connections ask, without a pause or at a rate. Gives the latencies of what was answered well.
async fn phase(
    scene: &Arc<Scene>,
    connections: usize,
    time: Duration,
    per_sec: Option<f64>,
) -> Result<(Vec<Duration>, Arc<Counts>)> {
    let counts = Arc::new(Counts::default());
    let due = Arc::new(Semaphore::new(if per_sec.is_some() { 0 } else { Semaphore::MAX_PERMITS >> 1 }));
    let began = Instant::now();
    let until = began + time;
    let mut clients = JoinSet::new();
    for index in 0..connections {
        let (scene, counts, due) = (Arc::clone(scene), Arc::clone(&counts), Arc::clone(&due));
        clients.spawn(async move { client(&scene, &counts, &due, index, until).await });
    }
    if let Some(per_sec) = per_sec {
        let mut added = 0.0;
        while Instant::now() < until {
            sleep(TICK).await;
            let now_due = began.elapsed().as_secs_f64() * per_sec;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "some thousands at most"
            )]
            let more = (now_due - added) as usize;
            added += more as f64;
            // What nobody could send by now is lost: its client went elsewhere.
            due.forget_permits(due.available_permits());
            due.add_permits(more);
        }
        due.close();
    }
    let mut latencies = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies.extend(client?);
    }
    Ok((latencies, counts))
}

async fn client(
    scene: &Scene,
    counts: &Counts,
    due: &Semaphore,
    index: usize,
    until: Instant,
) -> Vec<Duration> {
    let mut latencies = Vec::new();
    let mut open: Option<TcpStream> = None;
    while Instant::now() < until {
        let Ok(permit) = due.acquire().await else { break };
        permit.forget();
        counts.sent.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let asked = async {
            let mut stream = match open.take() {
                Some(stream) => stream,
                None => client::dial(scene.host, client::loopback(index / PER_ADDRESS)).await?,
            };
            let number = scene.next.fetch_add(1, Ordering::Relaxed);
            let (status, closes) = ask(scene, &mut stream, number).await?;
            anyhow::Ok((status, (!closes).then_some(stream)))
        };
        match timeout(GIVE_UP, asked).await {
            Ok(Ok((200 | 201, stream))) => {
                latencies.push(began.elapsed());
                open = stream;
            }
            Ok(Ok((503, stream))) => {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                open = stream;
            }
            Ok(Ok(_) | Err(_)) | Err(_) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    latencies
}

/// Of ten requests five pull a megabyte, three a manifest, one pushes a blob and one a manifest.
async fn ask(scene: &Scene, stream: &mut TcpStream, number: u64) -> Result<(u16, bool)> {
    match number % 10 {
        0..5 => {
            stream.write_all(&scene.get(&scene.pull)).await?;
            let begun = client::answer(stream, false).await?;
            let left = begun.length.saturating_sub(begun.first.len() as u64);
            let taken = copy(&mut tokio::io::AsyncReadExt::take(&mut *stream, left), &mut sink()).await?;
            ensure!(taken == left, "cut");
            Ok((begun.status, begun.closes()))
        }
        5..8 => whole(stream, &scene.get(&scene.get)).await,
        8 => {
            let bytes = noise(0x1100_0000 + number, PUSH_BYTES);
            let digest = hex::encode(Sha256::digest(&bytes));
            let path = format!("/v2/{REPOSITORY}/blobs/uploads/?digest=sha256:{digest}");
            let lines = format!(
                "{}Content-Type: application/octet-stream\r\nContent-Length: {PUSH_BYTES}\r\n",
                scene.token()
            );
            let head = client::head("POST", &path, scene.host, &lines);
            whole(stream, &[head.as_bytes(), &bytes].concat()).await
        }
        _ => {
            // Another document each time, under one of a few tags.
            let body = scene.manifest.replacen('{', &format!("{{\"annotations\":{{\"n\":\"{number}\"}},"), 1);
            let path = format!("/v2/{REPOSITORY}/manifests/t{}", number % 1_000);
            let lines = format!(
                "{}Content-Type: application/vnd.oci.image.manifest.v1+json\r\nContent-Length: {}\r\n",
                scene.token(),
                body.len()
            );
            whole(stream, (client::head("PUT", &path, scene.host, &lines) + &body).as_bytes()).await
        }
    }
}

async fn whole(stream: &mut TcpStream, request: &[u8]) -> Result<(u16, bool)> {
    let begun = client::ask(stream, request).await?;
    Ok((begun.status, begun.closes()))
}

/// How long it takes until ten small requests in a row are as quick as they were, or twice that.
async fn heal(scene: &Scene, before: Duration) -> Result<(Duration, Duration)> {
    const IN_A_ROW: usize = 10;
    let began = Instant::now();
    let mut quick: Vec<Duration> = Vec::new();
    while quick.len() < IN_A_ROW && began.elapsed() < GIVE_UP {
        let asked = Instant::now();
        let status = client::ask_anew(scene.host, client::loopback(99), &scene.get(&scene.get), 200).await;
        let took = asked.elapsed();
        // A new connection each time costs a little, too.
        if status.is_ok() && took <= before * 2 + Duration::from_millis(1) {
            quick.push(took);
        } else {
            quick.clear();
        }
    }
    Ok((began.elapsed(), quick.iter().max().copied().unwrap_or_default()))
}
