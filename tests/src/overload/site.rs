//! A server under test, with its figures at hand.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal};
use taffrail_tests::http::{Registry, sha256};
use taffrail_tests::images::noise;
use taffrail_tests::server::{Options, Server};
use taffrail_tests::usage;
use tempfile::TempDir;

use crate::plan::Plan;

/// How often something that is waited for is looked at, and memory is.
const POLL: Duration = Duration::from_millis(50);

/// A running server.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) server: Server,
    pub(crate) admin: Registry,
    metrics: String,
    // Last: the data go after the process.
    _dir: TempDir,
}

impl Site {
    /// Starts one.
    pub(crate) fn start(plan: &Plan, options: Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("taffrail-load-").tempdir_in(&plan.dir)?;
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let data_dir = Some(dir.path().join("data"));
        let server = Server::start_with(Options { data_dir, ..options }.key("metrics", "listen", &metrics))?;
        let admin = server.admin()?;
        Ok(Self { server, admin, metrics, _dir: dir })
    }

    /// Where it listens.
    pub(crate) fn host(&self) -> Result<SocketAddr> {
        Ok(self.server.host().parse()?)
    }

    /// A header line with a token for pulling from and pushing to a repository.
    pub(crate) fn token(&self, repository: &str) -> Result<String> {
        let token = self.admin.token(&[&format!("repository:{repository}:pull,push")])?;
        Ok(format!("Authorization: Bearer {token}\r\n"))
    }

    /// Pushes noise of that length; gives the path of the blob.
    pub(crate) fn push_noise(&self, repository: &str, seed: u64, bytes: usize) -> Result<String> {
        let bytes = noise(seed, bytes);
        self.admin.push_blob(repository, &bytes)?;
        Ok(format!("/v2/{repository}/blobs/{}", sha256(&bytes)))
    }

    /// A figure of the metrics page by its name and labels, 0 when it has not counted yet.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let page = taffrail_tests::raw::get(&self.metrics, "/metrics", "")?.text();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.map_or(Ok(0.0), str::parse)?)
    }

    /// The process.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.server.pid().context("the server runs no more")
    }

    /// Its memory now.
    pub(crate) fn memory(&self) -> Result<Memory> {
        Memory::of(self.pid()?)
    }

    /// Watches its memory for the highest.
    pub(crate) fn watch_memory(&self) -> Result<MemoryWatch> {
        let (pid, ended) = (self.pid()?, Arc::new(AtomicBool::new(false)));
        let theirs = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut highest = Memory::default();
            while !theirs.load(Ordering::Relaxed) {
                highest = highest.max(Memory::of(pid).unwrap_or_default());
                std::thread::sleep(POLL);
            }
            highest
        });
        Ok(MemoryWatch { ended, thread })
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()?).ok().and_then(Pid::from_raw).context("a process id")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }
}

/// What a server has of the machine's memory, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// All of it, which is what is bounded: mapped files count, although they are the page cache's.
    pub(crate) resident: u64,
    /// What no file backs.
    private: u64,
}

impl Memory {
    fn of(pid: u32) -> Result<Self> {
        Ok(Self { resident: usage::resident_bytes(pid)?, private: usage::anonymous_bytes(pid)? })
    }

    fn max(self, other: Self) -> Self {
        Self { resident: self.resident.max(other.resident), private: self.private.max(other.private) }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} private)", mib(self.resident), mib(self.private))
    }
}

/// Memory, watched.
#[derive(Debug)]
pub(crate) struct MemoryWatch {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Memory>,
}

impl MemoryWatch {
    /// The highest that was seen, each figure by itself.
    pub(crate) fn highest(self) -> Result<Memory> {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the watch panicked"))
    }
}

/// Waits until something holds; gives how long that took.
pub(crate) fn until(
    what: &str,
    deadline: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let began = Instant::now();
    while !holds()? {
        if began.elapsed() > deadline {
            bail!("in {deadline:?} not: {what}");
        }
        std::thread::sleep(POLL);
    }
    Ok(began.elapsed())
}

/// Mebibytes, for people.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
