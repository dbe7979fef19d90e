//! A containerd of our own, for `ctr`.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::docker::{end, unmount_below};
use crate::program::Program;
use crate::tools::{self, Tool};

/// What a containerd test needs.
pub const NEEDS: [Tool; 3] = [Tool::Root, Tool::Program("containerd"), Tool::Program("ctr")];

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    dir: TempDir,
}

impl Containerd {
    /// Starts it and waits until it answers. `None`, with a `SKIPPED` line, where it cannot run.
    ///
    /// # Errors
    /// When files cannot be written, or a skip is not allowed.
    pub fn start() -> Result<Option<Self>> {
        let dir = tempfile::Builder::new().prefix("taffrail-ctr-").tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("sock")
        );
        std::fs::write(at("config.toml"), config)?;
        let log = File::create(at("log"))?;
        let child = Command::new(tools::find("containerd")?)
            .arg("--config")
            .arg(at("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .spawn()
            .context("starting containerd")?;
        let mut containerd = Self { child, dir };
        let started = Instant::now();
        loop {
            if containerd.at("sock").exists() && containerd.ctr()?.arg("version").run()?.status.success() {
                return Ok(Some(containerd));
            }
            if containerd.child.try_wait()?.is_some() || started.elapsed() > START_DEADLINE {
                let log = std::fs::read_to_string(containerd.at("log")).unwrap_or_default();
                let last = log.lines().next_back().unwrap_or_default();
                tools::skip(&format!("containerd does not start here: {last}"))?;
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }

    /// `ctr`, speaking to this containerd.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn ctr(&self) -> Result<Program> {
        Ok(Program::new("ctr")?.arg("--address").arg(self.at("sock")))
    }

    /// Where a test may put its own files.
    #[must_use]
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        end(&mut self.child, STOP_DEADLINE);
        unmount_below(self.dir.path());
    }
}
