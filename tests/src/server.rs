//! One running `taffrail`, started, watched and ended as an operator would: by its command line and by signals.
//!
//! A server that is dropped is killed and waited for, so no test leaves one behind.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::binary;
use crate::certificate::Certificate;
use crate::http::Registry;

/// The first administrator's password in tests. It meets the password rule, nothing more.
pub const ADMIN_PASSWORD: &str = "Harbor-Light-7";

/// A server that is not ready by then never will be.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// How long a server may take to end after SIGTERM.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);

/// Lines of the log in a message.
const LOG_TAIL_LINES: usize = 40;

/// How often a server that starts or ends is looked at.
const POLL: Duration = Duration::from_millis(2);

/// Another test may take the free port between the look and the bind; then we look again.
const PORT_TRIES: u32 = 4;

/// How a server is to be started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it keeps its data; `None` is a fresh folder that goes with the server.
    pub data_dir: Option<PathBuf>,
    /// Whether it speaks TLS, with a certificate of its own authority.
    pub tls: Tls,
    /// The first administrator's password; `None` lets the server draw one.
    pub admin_password: Option<String>,
    /// More environment, for instance `TAFFRAIL__SECTION__KEY`.
    pub env: Vec<(String, String)>,
    /// A command line to put before the server's own, such as `strace -D -f …`. The process that it leaves under
    /// our child's id must be the server.
    pub wrapper: Vec<String>,
}

/// The values of `server.pull_path`: the ways on which a large blob may leave.
pub const PULL_PATHS: [&str; 4] = ["sendfile", "mapped", "copy", "auto"];

/// Whether a server speaks TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Plain HTTP.
    Off,
    /// HTTPS, with a certificate file made for the test.
    Files,
}

impl Options {
    /// Sets a key of the configuration by its environment variable: `TAFFRAIL__SECTION__KEY`.
    #[must_use]
    pub fn key(mut self, section: &str, key: &str, value: impl ToString) -> Self {
        let name = format!("TAFFRAIL__{section}__{key}").to_uppercase();
        self.env.push((name, value.to_string()));
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            data_dir: None,
            tls: Tls::Off,
            admin_password: Some(ADMIN_PASSWORD.to_owned()),
            env: Vec::new(),
            wrapper: Vec::new(),
        }
    }
}

/// A running server, or one that has been ended and can be started again on the same data and port.
#[derive(Debug)]
pub struct Server {
    options: Options,
    port: u16,
    child: Option<Child>,
    data_dir: PathBuf,
    certificate: Option<Certificate>,
    ready_after: Duration,
    // Last, so that the folder goes after the process that writes to it.
    scratch: TempDir,
}

impl Server {
    /// Starts a server with the usual options and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be built, does not become ready, or exits; the error holds its log.
    pub fn start() -> Result<Self> {
        Self::start_with(Options::default())
    }

    /// Starts a server and waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(options: Options) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("taffrail-test-").tempdir()?;
        let data_dir = options.data_dir.clone().unwrap_or_else(|| scratch.path().join("data"));
        let certificate = match options.tls {
            Tls::Off => None,
            Tls::Files => Some(Certificate::make(&scratch.path().join("tls"))?),
        };
        let mut server = Self {
            options,
            port: 0,
            child: None,
            data_dir,
            certificate,
            ready_after: Duration::ZERO,
            scratch,
        };
        for attempt in 1.. {
            server.port = free_port()?;
            match server.launch() {
                Ok(()) => break,
                Err(_) if attempt < PORT_TRIES && server.log().contains("in use") => server.kill9()?,
                Err(error) => return Err(error),
            }
        }
        Ok(server)
    }

    /// Starts an ended server again, on the same data and the same port. Returns how long it took from the start of
    /// the process to the first 200 of `/readyz`.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn restart(&mut self) -> Result<Duration> {
        if self.child.is_some() {
            bail!("the server still runs");
        }
        self.launch()?;
        Ok(self.ready_after)
    }

    /// Starts an ended server again without waiting until it is ready.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn launch_unready(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("the server still runs");
        }
        self.spawn()
    }

    /// Replaces the command line that goes before the server's own at its next start.
    pub fn set_wrapper(&mut self, wrapper: Vec<String>) {
        self.options.wrapper = wrapper;
    }

    /// `127.0.0.1:port`, as a client writes it before a repository.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The base of every URL, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = match self.options.tls {
            Tls::Off => "http",
            Tls::Files => "https",
        };
        format!("{scheme}://{}", self.host())
    }

    /// The folder of the server's data.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The certificate files, if the server speaks TLS.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// How long the last start took until `/readyz` answered 200.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// The id of the running process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A client that trusts this server and signs in as `user`, or stays anonymous.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn client(&self, user: Option<(&str, &str)>) -> Result<Registry> {
        let authority = self.certificate.as_ref().map(|files| files.authority.as_path());
        Registry::new(&self.url(), user, authority)
    }

    /// A client of the administrator.
    ///
    /// # Errors
    /// As [`Server::client`].
    pub fn admin(&self) -> Result<Registry> {
        self.client(Some(("admin", self.options.admin_password.as_deref().unwrap_or(ADMIN_PASSWORD))))
    }

    /// What the server has logged since the test began, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of the log, for messages; the lines of single requests are left out.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" taffrail::request: ")).collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    /// Ends the server as a crash does. An ended server stays ended.
    ///
    /// # Errors
    /// When the process cannot be killed or waited for.
    pub fn kill9(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks the server to drain and end, and waits for it.
    ///
    /// # Errors
    /// When it does not run or does not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the server does not run")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        rustix::process::kill_process(pid, Signal::TERM)?;
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > DRAIN_DEADLINE {
                child.kill()?;
                child.wait()?;
                bail!("the server did not end within {DRAIN_DEADLINE:?} of SIGTERM\n{}", self.log_tail());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Stops the process where it stands (SIGSTOP) and waits until no thread of it runs any more. Threads that are in
    /// the middle of a flush stay there; what they come back with reaches nobody.
    ///
    /// # Errors
    /// When the server does not run or does not stop.
    pub fn freeze(&self) -> Result<()> {
        let id = self.pid().context("the server does not run")?;
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).context("a process id")?;
        rustix::process::kill_process(pid, Signal::STOP)?;
        let started = Instant::now();
        while !threads_of(id)?.iter().all(|state| matches!(state, 'T' | 't' | 'D' | 'Z' | 'X')) {
            if started.elapsed() > READY_DEADLINE {
                bail!("the server does not stop");
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Waits until the running process ends by itself.
    ///
    /// # Errors
    /// When it does not run, or does not end within `deadline`.
    pub fn wait_for_end(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        let child = self.child.as_mut().context("the server does not run")?;
        loop {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            if started.elapsed() > deadline {
                bail!("the server still runs after {deadline:?}");
            }
            std::thread::sleep(POLL);
        }
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("server.log")
    }

    fn config(&self) -> String {
        let mut text = format!("external_url: {}\nmetrics:\n  listen: 127.0.0.1:0\n", self.url());
        match &self.certificate {
            None => text.push_str("tls:\n  mode: off\n"),
            Some(files) => text.push_str(&format!(
                "tls:\n  mode: files\n  cert_file: {}\n  key_file: {}\n",
                files.certificate.display(),
                files.key.display()
            )),
        }
        text
    }

    fn spawn(&mut self) -> Result<()> {
        let config = self.scratch.path().join("taffrail.yaml");
        std::fs::write(&config, self.config())?;
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let binary = binary::server()?;
        let mut line = self.options.wrapper.iter().map(PathBuf::from).chain([binary.to_path_buf()]);
        let program = line.next().context("a command")?;
        let mut command = Command::new(program);
        command
            .args(line)
            .args(["serve", "--listen", &self.host(), "--data-dir"])
            .arg(&self.data_dir)
            .arg("--config")
            .arg(&config)
            .current_dir(self.scratch.path())
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log));
        match &self.options.admin_password {
            Some(password) => command.env("TAFFRAIL_ADMIN_PASSWORD", password),
            None => command.env_remove("TAFFRAIL_ADMIN_PASSWORD"),
        };
        self.child = Some(command.spawn().context("starting the server")?);
        Ok(())
    }

    fn launch(&mut self) -> Result<()> {
        let client = self.client(None)?;
        // Built before the clock runs: the first start of a test program may wait for that for minutes.
        binary::server()?;
        let started = Instant::now();
        self.spawn()?;
        loop {
            if let Ok(200) = client.probe("/readyz") {
                self.ready_after = started.elapsed();
                return Ok(());
            }
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.child = None;
                bail!("the server ended with {status} before it was ready\n{}", self.log_tail());
            }
            if started.elapsed() > READY_DEADLINE {
                self.kill9()?;
                bail!("the server was not ready within {READY_DEADLINE:?}\n{}", self.log_tail());
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // There is nobody left to tell; the temporary folder goes in any case.
        let _ = self.kill9();
    }
}

/// The states of a process's threads, as `/proc` abbreviates them.
fn threads_of(pid: u32) -> Result<Vec<char>> {
    let mut states = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the look.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
        states.extend(stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()));
    }
    Ok(states)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
