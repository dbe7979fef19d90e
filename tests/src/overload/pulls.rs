//! L-09: very many pulls of one blob at once, beside nginx with sendfile.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal};
use sha2::{Digest as _, Sha256};
use taffrail_tests::images::noise;
use taffrail_tests::server::Options;
use taffrail_tests::tools;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::client;
use crate::plan::Plan;
use crate::row::Row;
use crate::site::{Site, mib, until};

const REPOSITORY: &str = "library/pulls";
const NUMBER: &str = "L-09";

/// Connections of one address: the server allows 1,024.
const PER_ADDRESS: usize = 250;
/// L-09: memory, the slowest client against the fastest, all against nginx.
const MEMORY_MAX: u64 = 512 << 20;
const FAIR_MIN: f64 = 0.5;
const OF_NGINX_MIN: f64 = 0.8;
/// Clients that hash what they get. All would be a test of the client's processor.
const HASHING: usize = 8;
/// Bytes that a client takes at once.
const BUFFER_BYTES: usize = 256 << 10;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let what = format!("{} pulls of {}", plan.pulls, mib(plan.pull_bytes as u64));
    if let Some(why) = plan.too_many(plan.pulls) {
        return Ok(vec![Row::skipped(NUMBER, what, why)]);
    }
    let site = Site::start(plan, Options::default())?;
    let path = site.push_noise(REPOSITORY, 9, plan.pull_bytes)?;
    let request = client::head("GET", &path, site.host()?, &site.token(REPOSITORY)?);
    let digest = path.rsplit(':').next().context("a digest")?.to_owned();
    let watch = site.watch_memory()?;
    let ours = pull_all(plan, site.host()?, &request, &digest)?;
    let highest = watch.highest()?;
    let mut rows = vec![
        Row::held(
            NUMBER,
            what,
            "no error, the right bytes",
            format!("{} of {} whole; {} hashed", ours.whole, plan.pulls, ours.hashed),
            ours.whole == plan.pulls && ours.hashed == HASHING.min(plan.pulls),
        ),
        Row::new(
            NUMBER,
            "highest memory",
            format!("<= {}", mib(MEMORY_MAX)),
            highest.to_string(),
            plan.figure(highest.resident <= MEMORY_MAX),
        ),
        Row::new(
            NUMBER,
            "slowest client against the fastest",
            format!(">= {FAIR_MIN}"),
            format!("{:.2}", ours.fair),
            plan.figure(ours.fair >= FAIR_MIN),
        ),
    ];
    drop(site);
    let beside = "their rate against nginx with sendfile";
    rows.push(match Nginx::start(plan) {
        Err(error) => Row::skipped(NUMBER, beside, format!("{error:#}")),
        Ok(nginx) => {
            let request = client::head("GET", "/blob", nginx.host, "");
            let theirs = pull_all(plan, nginx.host, &request, &digest)?;
            ensure!(theirs.whole == plan.pulls, "nginx served {} of {}", theirs.whole, plan.pulls);
            let ratio = ours.mb_per_sec / theirs.mb_per_sec;
            Row::new(
                NUMBER,
                beside,
                format!(">= {OF_NGINX_MIN} x"),
                format!(
                    "{ratio:.2} x ({:.0} and {:.0} MB/s; nginx is {:.2} fair)",
                    ours.mb_per_sec, theirs.mb_per_sec, theirs.fair
                ),
                plan.figure(ratio >= OF_NGINX_MIN),
            )
        }
    });
    Ok(rows)
}

/// What became of all pulls.
struct Pulled {
    whole: usize,
    hashed: usize,
    /// The rate of the slowest client, divided by that of the fastest.
    fair: f64,
    mb_per_sec: f64,
}

fn pull_all(plan: &Plan, host: SocketAddr, request: &str, digest: &str) -> Result<Pulled> {
    plan.runtime.block_on(async {
        let mut open = Vec::with_capacity(plan.pulls);
        for index in 0..plan.pulls {
            open.push(client::dial(host, client::loopback(index / PER_ADDRESS)).await?);
        }
        let began = Instant::now();
        let mut pulls = JoinSet::new();
        for (index, mut stream) in open.into_iter().enumerate() {
            let (request, digest, bytes) = (request.to_owned(), digest.to_owned(), plan.pull_bytes as u64);
            pulls.spawn(async move {
                stream.write_all(request.as_bytes()).await?;
                let begun = client::answer(&mut stream, false).await?;
                ensure!(begun.status == 200 && begun.length == bytes, "answered {}", begun.status);
                let mut hash = (index < HASHING).then(|| Sha256::new_with_prefix(&begun.first));
                let (mut buffer, mut left) = (vec![0; BUFFER_BYTES], bytes - begun.first.len() as u64);
                while left > 0 {
                    let count = stream.read(&mut buffer).await?;
                    ensure!(count > 0, "cut {left} bytes before the end");
                    left -= count as u64;
                    if let Some(hash) = &mut hash {
                        hash.update(buffer.get(..count).unwrap_or_default());
                    }
                }
                let right = hash.map(|hash| hex::encode(hash.finalize()) == digest);
                ensure!(right != Some(false), "the bytes have another digest");
                anyhow::Ok((began.elapsed(), right.is_some()))
            });
        }
        let (mut whole, mut hashed, mut times) = (0, 0, Vec::new());
        while let Some(pull) = pulls.join_next().await {
            match pull? {
                Err(error) => say_why(&error),
                Ok((time, did_hash)) => {
                    whole += 1;
                    hashed += usize::from(did_hash);
                    times.push(time);
                }
            }
        }
        let total = began.elapsed().as_secs_f64();
        let (fastest, slowest) = (client::quantile(&mut times, 0.0), client::quantile(&mut times, 1.0));
        Ok(Pulled {
            whole,
            hashed,
            fair: fastest.as_secs_f64() / slowest.as_secs_f64(),
            mb_per_sec: (whole * plan.pull_bytes) as f64 / 1e6 / total,
        })
    })
}

/// Why a pull failed, beside the count of those that did.
fn say_why(error: &anyhow::Error) {
    tools::say(&format!("a pull failed: {error:#}"));
}

/// nginx with the same bytes in a file.
struct Nginx {
    child: Child,
    host: SocketAddr,
    _dir: TempDir,
}

impl Nginx {
    fn start(plan: &Plan) -> Result<Self> {
        let program = tools::find("nginx")?;
        let temporary = tempfile::Builder::new().prefix("taffrail-load-").tempdir_in(&plan.dir)?;
        let dir = temporary.path().display();
        std::fs::write(temporary.path().join("blob"), noise(9, plan.pull_bytes))?;
        let host = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        // As root it would serve as nobody, who may not enter our folder.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let config = format!(
            "{user} daemon off; worker_processes auto; pid {dir}/pid; error_log {dir}/error.log crit;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {dir}/a;\n  \
             proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c; uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;\n  \
             server {{ listen {host} backlog=4096; root {dir}; }} }}\n"
        );
        let file = temporary.path().join("nginx.conf");
        std::fs::write(&file, config)?;
        let child = Command::new(program)
            .arg("-p")
            .arg(temporary.path())
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let nginx = Self { child, host, _dir: temporary };
        until("nginx listens", Duration::from_secs(10), || Ok(std::net::TcpStream::connect(host).is_ok()))?;
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Asked, because its workers outlive a master that is killed. There is nobody left to tell of an error.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
