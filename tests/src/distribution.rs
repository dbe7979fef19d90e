//! docker-registry (distribution), as Debian packages it: the registry that people come from.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::http::Registry;
use crate::tools::{self, Tool};

/// What it takes.
pub const NEEDS: Tool = Tool::Program("docker-registry");

/// A registry that does not answer by then never will.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// How often it is looked at.
const POLL: Duration = Duration::from_millis(5);

/// A running docker-registry; killed when dropped. It acknowledges what is in its files.
#[derive(Debug)]
pub struct Distribution {
    child: Child,
    host: String,
    root: PathBuf,
}

impl Distribution {
    /// Starts it with its storage in `dir`, and deletions allowed.
    ///
    /// # Errors
    /// When it is not installed or does not answer.
    pub fn start(dir: &Path) -> Result<Self> {
        let host = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let (root, config) = (dir.join("registry"), dir.join("registry.yml"));
        let text = format!(
            "version: 0.1\n\
             log: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage:\n  filesystem: {{rootdirectory: {root:?}}}\n  delete: {{enabled: true}}\n\
             http: {{addr: {host}}}\n"
        );
        std::fs::write(&config, text)?;
        let log = File::create(dir.join("registry.log"))?;
        let mut command = Command::new(tools::find("docker-registry")?);
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut started = Self { child: command.spawn().context("starting docker-registry")?, host, root };
        let (client, began) = (started.client()?, Instant::now());
        while client.probe("/v2/").ok() != Some(200) {
            if let Some(status) = started.child.try_wait()? {
                bail!("docker-registry ended with {status}");
            }
            ensure!(began.elapsed() < READY_DEADLINE, "docker-registry does not answer");
            std::thread::sleep(POLL);
        }
        Ok(started)
    }

    /// A client of it.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn client(&self) -> Result<Registry> {
        Registry::new(&format!("http://{}", self.host), None, None)
    }

    /// Ends it; gives the folder that holds `docker/registry/v2`.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn stop(mut self) -> Result<PathBuf> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.root.clone())
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        // Ended already, or nobody is left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
