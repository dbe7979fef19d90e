//! A docker daemon of our own: its data, socket and pid file in one temporary folder, no network set-up.
//!
//! Docker treats 127.0.0.0/8 as an insecure registry: it speaks TLS without a check if the port answers TLS, and plain
//! HTTP if not. So these tests need no file under `/etc/docker`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::program::{Printed, Program};
use crate::tools::{self, Tool};

/// What a docker test needs.
pub const NEEDS: [Tool; 4] =
    [Tool::Root, Tool::Program("dockerd"), Tool::Program("docker"), Tool::Program("containerd")];

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A running docker daemon, with one client configuration (its logins).
#[derive(Debug)]
pub struct Docker {
    child: Child,
    dir: TempDir,
}

impl Docker {
    /// Starts a daemon and waits until it answers. `None`, with a `SKIPPED` line, where the machine does not let one
    /// run (in a container without privileges, for instance).
    ///
    /// # Errors
    /// When files cannot be written, or a skip is not allowed.
    pub fn start() -> Result<Option<Self>> {
        let dir = tempfile::Builder::new().prefix("taffrail-docker-").tempdir()?;
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("config"))?;
        let log = File::create(at("log"))?;
        let child = Command::new(tools::find("dockerd")?)
            .arg("--data-root")
            .arg(at("root"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("--host")
            .arg(format!("unix://{}", at("docker.sock").display()))
            .args(["--iptables=false", "--bridge=none"])
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .spawn()
            .context("starting dockerd")?;
        let mut docker = Self { child, dir };
        let started = Instant::now();
        loop {
            if docker.cli()?.args(["version"]).run()?.status.success() {
                return Ok(Some(docker));
            }
            let ended = docker.child.try_wait()?.is_some();
            if ended || started.elapsed() > START_DEADLINE {
                let log = std::fs::read_to_string(docker.at("log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(2).collect();
                tools::skip(&format!("dockerd does not start here: {}", last.join(" | ")))?;
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }

    /// The docker command line, speaking to this daemon.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn cli(&self) -> Result<Program> {
        Ok(Program::new("docker")?
            .env("DOCKER_HOST", format!("unix://{}", self.at("docker.sock").display()))
            .env("DOCKER_CONFIG", self.at("config"))
            // `docker manifest` is experimental in older clients.
            .env("DOCKER_CLI_EXPERIMENTAL", "enabled"))
    }

    /// `docker ARGS…`, which must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn run(&self, args: &[&str]) -> Result<Printed> {
        self.cli()?.args(args).succeed()
    }

    /// `docker login`.
    ///
    /// # Errors
    /// When the registry refuses it.
    pub fn login(&self, host: &str, user: &str, password: &str) -> Result<Printed> {
        self.cli()?.args(["login", "--username", user, "--password-stdin", host]).stdin(password).succeed()
    }

    /// Where a test may put its own files.
    #[must_use]
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder of the client's configuration.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.at("config")
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Not SIGKILL at first: the daemon has a containerd and mounts of its own to take down.
        end(&mut self.child, STOP_DEADLINE);
        unmount_below(self.dir.path());
    }
}

/// Asks a daemon to end, and kills it at the deadline.
pub(crate) fn end(child: &mut Child, deadline: Duration) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended already.
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
    let started = Instant::now();
    while started.elapsed() < deadline {
        if let Ok(Some(_)) = child.try_wait() {
            return;
        }
        std::thread::sleep(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Unmounts what a daemon left mounted below `dir`, so that the folder can be removed.
pub(crate) fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(dir));
    // Inner mounts come later in the table.
    for point in points.collect::<Vec<_>>().into_iter().rev() {
        if let Ok(umount) = Program::new("umount") {
            let _ = umount.args(["--lazy", point]).run();
        }
    }
}

/// The digest in the last line of what `docker push` prints.
///
/// # Errors
/// When there is none.
pub fn pushed_digest(printed: &Printed) -> Result<String> {
    match printed.stdout.split("digest: ").nth(1).and_then(|rest| rest.split_whitespace().next()) {
        Some(digest) => Ok(digest.to_owned()),
        None => bail!("docker push printed no digest:\n{}", printed.all()),
    }
}
