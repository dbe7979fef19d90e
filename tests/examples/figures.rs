//! The figures of one machine, side by side: a large blob pushed, pulled at once, pulled from the disk (cold) and from the page
//! cache (warm), the processor time that took, and the memory of a server at rest, for this server and for Debian's docker-registry (distribution
//! 2.8) in the same run.
//!
//! `TAFFRAIL_BIN=…/release/taffrail cargo run -p taffrail-tests --example figures [MIB] [ROUNDS]`. The client is curl
//! with a file that is in the page cache; the rounds of the two servers alternate, and the medians are printed.
#![expect(clippy::print_stdout, reason = "a command-line tool speaks on standard output")]

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use taffrail_tests::http::Registry;
use taffrail_tests::images::{Layer, sha256_of_file};
use taffrail_tests::program::Program;
use taffrail_tests::server::Server;
use taffrail_tests::tools;

const REPOSITORY: &str = "library/figures";

/// Clock ticks of `/proc/PID/stat` in a second: fixed on Linux, whatever the kernel's own rate.
const TICKS_PER_SEC: f64 = 100.0;

/// How long a server is left alone before it counts as at rest: allocators give freed memory back late.
const REST: Duration = Duration::from_secs(5);

/// A server under measurement.
struct Subject {
    name: &'static str,
    url: String,
    pid: u32,
    data: PathBuf,
    user: Option<(String, String)>,
    push: Vec<Sample>,
    /// Straight after the push: the page cache holds what that server's way of writing left there.
    first_pull: Vec<Sample>,
    cold_pull: Vec<Sample>,
    warm_pull: Vec<Sample>,
}

/// One transfer.
struct Sample {
    mb_per_sec: f64,
    cpu_sec_per_gb: f64,
}

struct Debian(Child);

impl Drop for Debian {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "a binary reads its own command line")]
fn main() -> Result<()> {
    let numbers: Vec<u64> = std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let (mib, rounds) = (numbers.first().copied().unwrap_or(1024), numbers.get(1).copied().unwrap_or(3));
    let dir = tempfile::tempdir()?;
    let ours = Server::start()?;
    let their_data = dir.path().join("docker-registry");
    let (theirs, their_url) = start_debian(dir.path(), &their_data)?;
    let admin = Some(("admin".to_owned(), taffrail_tests::server::ADMIN_PASSWORD.to_owned()));
    let mut subjects = [
        Subject::new(
            "taffrail",
            ours.url(),
            ours.pid().context("a running server")?,
            ours.data_dir().into(),
            admin,
        ),
        Subject::new("docker-registry", their_url, theirs.0.id(), their_data, None),
    ];
    std::thread::sleep(REST);
    for subject in &subjects {
        println!("{:<16} idle: {} KiB RssAnon", subject.name, rss_anon_kib(subject.pid)?);
    }
    let file = dir.path().join("blob");
    for round in 0..rounds {
        let mut out = BufWriter::new(File::create(&file)?);
        Layer { seed: rand::random(), bytes: mib << 20 }.write_to(&mut out)?;
        out.flush()?;
        drop(out);
        let (digest, bytes) = (sha256_of_file(&file)?, std::fs::metadata(&file)?.len());
        for subject in &mut subjects {
            subject.push(&file, &digest, bytes)?;
            let first = subject.pull(&digest, bytes)?;
            leave_the_page_cache(&subject.data)?;
            let cold = subject.pull(&digest, bytes)?;
            let warm = subject.pull(&digest, bytes)?;
            subject.first_pull.push(first);
            subject.cold_pull.push(cold);
            subject.warm_pull.push(warm);
        }
        println!("round {} of {rounds}", round + 1);
    }
    std::thread::sleep(REST);
    for subject in &mut subjects {
        println!(
            "{:<16} {mib} MiB: push {}, first pull {}, cold pull {}, warm pull {}; after: {} KiB RssAnon",
            subject.name,
            median(&mut subject.push),
            median(&mut subject.first_pull),
            median(&mut subject.cold_pull),
            median(&mut subject.warm_pull),
            rss_anon_kib(subject.pid)?
        );
    }
    Ok(())
}

impl Subject {
    fn new(name: &'static str, url: String, pid: u32, data: PathBuf, user: Option<(String, String)>) -> Self {
        let (push, first_pull) = (Vec::new(), Vec::new());
        let (cold_pull, warm_pull) = (Vec::new(), Vec::new());
        Self { name, url, pid, data, user, push, first_pull, cold_pull, warm_pull }
    }

    fn client(&self) -> Result<Registry> {
        let user = self.user.as_ref().map(|(name, password)| (name.as_str(), password.as_str()));
        Registry::new(&self.url, user, None)
    }

    fn curl(&self, client: &Registry) -> Result<Program> {
        let mut curl = Program::new("curl")?.args(["--silent", "--show-error", "--fail", "--noproxy", "*"]);
        if self.user.is_some() {
            let token = client.token(&[&format!("repository:{REPOSITORY}:pull,push")])?;
            curl = curl.arg("--header").arg(format!("Authorization: Bearer {token}"));
        }
        Ok(curl.args(["--output", "/dev/null"]))
    }

    fn push(&mut self, file: &Path, digest: &str, bytes: u64) -> Result<()> {
        let client = self.client()?;
        let location = client.begin_upload(REPOSITORY)?;
        let joint = if location.contains('?') { '&' } else { '?' };
        let curl = self
            .curl(&client)?
            .args(["--header", "Content-Type: application/octet-stream", "--upload-file"])
            .arg(file)
            .arg(format!("{}{location}{joint}digest={digest}", self.url));
        let sample = self.measure(curl, bytes)?;
        self.push.push(sample);
        Ok(())
    }

    fn pull(&self, digest: &str, bytes: u64) -> Result<Sample> {
        let client = self.client()?;
        let curl = self.curl(&client)?.arg(format!("{}/v2/{REPOSITORY}/blobs/{digest}", self.url));
        self.measure(curl, bytes)
    }

    fn measure(&self, curl: Program, bytes: u64) -> Result<Sample> {
        let (cpu, started) = (cpu_sec(self.pid)?, Instant::now());
        curl.succeed()?;
        #[expect(clippy::cast_precision_loss, reason = "a few gigabytes, for a figure of three digits")]
        let bytes = bytes as f64;
        Ok(Sample {
            mb_per_sec: bytes / 1e6 / started.elapsed().as_secs_f64(),
            cpu_sec_per_gb: (cpu_sec(self.pid)? - cpu) / (bytes / 1e9),
        })
    }
}

fn median(samples: &mut [Sample]) -> String {
    samples.sort_by(|a, b| a.mb_per_sec.total_cmp(&b.mb_per_sec));
    let (low, high) = (samples.first(), samples.last());
    match (samples.get(samples.len() / 2), low, high) {
        (Some(middle), Some(low), Some(high)) => format!(
            "{:.0} MB/s ({:.0} to {:.0}), {:.2} CPU s/GB",
            middle.mb_per_sec, low.mb_per_sec, high.mb_per_sec, middle.cpu_sec_per_gb
        ),
        _ => "nothing".to_owned(),
    }
}

/// Takes every file below `folder` out of the page cache.
fn leave_the_page_cache(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let (kind, path) = entry.and_then(|entry| Ok((entry.file_type()?, entry.path())))?;
        if kind.is_dir() {
            leave_the_page_cache(&path)?;
        } else if kind.is_file() {
            let file = File::open(&path)?;
            // What is not written yet would stay.
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
    }
    Ok(())
}

fn start_debian(dir: &Path, data: &Path) -> Result<(Debian, String)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let config = dir.join("docker-registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {:?}}}, delete: {{enabled: true}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
        data
    );
    std::fs::write(&config, text)?;
    let child = Command::new(tools::find("docker-registry")?)
        .args(["serve"])
        .arg(&config)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let (debian, url) = (Debian(child), format!("http://127.0.0.1:{port}"));
    let (client, started) = (Registry::new(&url, None, None)?, Instant::now());
    while !matches!(client.probe("/v2/"), Ok(200)) {
        if started.elapsed() > Duration::from_secs(20) {
            bail!("docker-registry does not start");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((debian, url))
}

/// Processor time of a process so far, user and system.
fn cpu_sec(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces; utime and stime are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(')').context("a stat line")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks =
        |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).context("a tick count");
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SEC)
}

fn rss_anon_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
    line.split_whitespace().next().and_then(|field| field.parse().ok()).context("a number")
}
