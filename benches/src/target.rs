//! What is measured: how each server is started, what it is told, whether what it acknowledges is durable, how it ends.
//!
//! Every subject gets a fresh folder on the same file system. Taffrail runs with its defaults; the others as their
//! documentation recommends, with the access log off, which is what is best for them.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use taffrail_tests::crowd::Crowd;
use taffrail_tests::http::Registry;
use taffrail_tests::server::{ADMIN_PASSWORD, Options, Server};
use taffrail_tests::tools;

use crate::client::{Body, Connection, with_query};
use crate::content::{Blob, MANIFEST};
use crate::plan::{Other, Plan};
use crate::sample::{self, Processes, Sample, Work};

/// A server that does not answer by then never will.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long a server may take to end when asked.
const END_DEADLINE: Duration = Duration::from_secs(20);

const POLL: Duration = Duration::from_millis(10);

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The server of this repository.
    Taffrail,
    /// Debian's package of distribution 2.8.
    Debian,
    /// distribution v3, made by its Go module.
    V3,
    /// nginx with the same paths as static files.
    Nginx,
    /// nginx without sendfile.
    NginxCopy,
    /// The bare push, see [`crate::limits::receive`].
    Receive,
    /// Sequential reads past the page cache by fio.
    Fio,
    /// The engine alone, in this process: blobs of 4 KiB.
    Engine,
    /// The engine alone, in this process: mounts.
    EngineMount,
    /// The engine alone, in this process: small commits while its log is compacted.
    EngineCompacting,
    /// The bare small commit, in this process.
    GroupCommit,
    /// A registry that somebody else started: its number in the plan.
    Other(usize),
}

impl Kind {
    pub(crate) fn name(self, plan: &Plan) -> String {
        let name = match self {
            Self::Taffrail => "taffrail",
            Self::Debian => "docker-registry",
            Self::V3 => "distribution-v3",
            Self::Nginx => "nginx",
            Self::NginxCopy => "nginx-no-sendfile",
            Self::Receive => "receive-sha-direct",
            Self::Fio => "fio",
            Self::Engine => "engine",
            Self::EngineMount => "engine-mount",
            Self::EngineCompacting => "engine-compacting",
            Self::GroupCommit => "group-commit",
            Self::Other(index) => plan.others.get(index).map_or("other", |other| other.name.as_str()),
        };
        name.to_owned()
    }

    /// What an acknowledgement of a write means here. How many flushes that takes is measured.
    pub(crate) fn durability(self) -> &'static str {
        match self {
            Self::Taffrail
            | Self::Engine
            | Self::EngineMount
            | Self::EngineCompacting
            | Self::Debian
            | Self::V3
            | Self::Receive
            | Self::GroupCommit => "durable",
            Self::Nginx | Self::NginxCopy | Self::Fio => "-",
            Self::Other(_) => "unknown",
        }
    }
}

/// Who keeps the server running, and ends it.
enum Keeper {
    Taffrail(Box<Server>),
    Program(Program),
    /// Somebody else, who may have told us its process.
    Others(Option<u32>),
    /// It is this process.
    Us,
}

/// One running subject.
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// `address:port`; empty in this process.
    pub(crate) host: String,
    /// Its own folder.
    pub(crate) dir: PathBuf,
    keeper: Keeper,
    registry: Option<Registry>,
    metrics: Option<String>,
}

impl Subject {
    /// Starts it on a fresh folder below the plan's.
    pub(crate) fn start(kind: Kind, plan: &Plan) -> Result<Self> {
        let name = kind.name(plan);
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(&plan.dir)?.keep();
        let subject = |keeper, host: String, user: Option<(&str, &str)>| -> Result<Self> {
            let is_registry = matches!(kind, Kind::Taffrail | Kind::Debian | Kind::V3 | Kind::Other(_));
            let registry =
                is_registry.then(|| Registry::new(&format!("http://{host}"), user, None)).transpose()?;
            Ok(Self { kind, name: name.clone(), host, dir: dir.clone(), keeper, registry, metrics: None })
        };
        match kind {
            Kind::Taffrail => {
                let metrics = free_host()?;
                let options = Options { data_dir: Some(dir.join("data")), ..Options::default() }
                    .key("metrics", "listen", &metrics);
                let server = Server::start_with(options)?;
                let host = server.host();
                let admin = Some(("admin", ADMIN_PASSWORD));
                let running = subject(Keeper::Taffrail(Box::new(server)), host, admin)?;
                Ok(Self { metrics: Some(metrics), ..running })
            }
            Kind::Debian | Kind::V3 => {
                let program = if kind == Kind::Debian { "docker-registry" } else { "registry" };
                let (program, host) = start_distribution(program, &dir)?;
                subject(Keeper::Program(program), host, None)
            }
            Kind::Nginx | Kind::NginxCopy => {
                let (program, host) = start_nginx(&dir, kind == Kind::Nginx)?;
                subject(Keeper::Program(program), host, None)
            }
            Kind::Receive => {
                let (program, host) = start_receive(&dir)?;
                subject(Keeper::Program(program), host, None)
            }
            Kind::Fio => {
                tools::find("fio")?;
                subject(Keeper::Us, String::new(), None)
            }
            Kind::Engine | Kind::EngineMount | Kind::EngineCompacting | Kind::GroupCommit => {
                subject(Keeper::Us, String::new(), None)
            }
            Kind::Other(index) => {
                let Other { url, pid, user, .. } = plan.others.get(index).context("a named registry")?;
                let user = user.as_ref().map(|(name, password)| (name.as_str(), password.as_str()));
                let host = url.trim_start_matches("http://").to_owned();
                subject(Keeper::Others(*pid), host, user)
            }
        }
    }

    /// A connection without credentials.
    pub(crate) fn connect(&self) -> Result<Connection> {
        Connection::open(&self.host, "")
    }

    /// The `Authorization` for pulling from and pushing to these repositories; empty where nobody asks.
    pub(crate) fn authorization(&self, repositories: &[&str]) -> Result<String> {
        let Some(registry) = &self.registry else { return Ok(String::new()) };
        if self.connect()?.get("/v2/", "")?.status == 200 {
            return Ok(String::new());
        }
        let scopes: Vec<String> =
            repositories.iter().map(|repository| format!("repository:{repository}:pull,push")).collect();
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        Ok(format!("Bearer {}", registry.token(&scopes)?))
    }

    /// The `Authorization` of the administrator for these scopes; empty where nobody asks.
    pub(crate) fn bearer(&self, scopes: &[String]) -> Result<String> {
        let Some(registry) = &self.registry else { return Ok(String::new()) };
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        Ok(format!("Bearer {}", registry.token(&scopes)?))
    }

    /// Fills the catalog with very many names; gives the digest of the one manifest behind them.
    pub(crate) fn gather(&self, crowd: Crowd) -> Result<String> {
        match &self.keeper {
            Keeper::Taffrail(server) => crowd.gather(server),
            Keeper::Program(_) | Keeper::Others(_) | Keeper::Us => {
                bail!("only our own catalog can be filled like that")
            }
        }
    }

    /// So many connections with a token for these repositories.
    pub(crate) fn clients(&self, count: usize, repositories: &[&str]) -> Result<Vec<Connection>> {
        let authorization = self.authorization(repositories)?;
        (0..count).map(|_| Connection::open(&self.host, &authorization)).collect()
    }

    /// The processes whose time and memory count, as they are now.
    pub(crate) fn processes(&self) -> Result<Processes> {
        match &self.keeper {
            Keeper::Taffrail(server) => Processes::tree(server.pid().context("a running server")?),
            Keeper::Program(program) => Processes::tree(program.0.id()),
            Keeper::Others(pid) => pid.map_or_else(|| Ok(Processes::default()), Processes::tree),
            Keeper::Us => Ok(Processes::own()),
        }
    }

    /// Does the work and weighs it.
    pub(crate) fn measure(&self, work: impl FnOnce() -> Result<Work>) -> Result<Sample> {
        let sample = sample::measure(&self.processes()?, work)?;
        Ok(match self.keeper {
            // What this process holds is the load's: prepared content, buffers.
            Keeper::Us => Sample { memory_kib: None, ..sample },
            Keeper::Taffrail(_) | Keeper::Program(_) | Keeper::Others(_) => sample,
        })
    }

    /// The flushes of the store so far, where the server says. Those of the catalog's database are not among them.
    pub(crate) fn store_flushes(&self) -> Result<Option<u64>> {
        let Some(host) = &self.metrics else { return Ok(None) };
        let page = taffrail_tests::raw::get(host, "/metrics", "")?.text();
        let line = page.lines().find_map(|line| line.strip_prefix("taffrail_store_flushes_total "));
        Ok(Some(line.map_or(Ok(0), |number| number.trim().parse()).context("a count of flushes")?))
    }

    /// The process to count flushes of, where there is one.
    pub(crate) fn traceable(&self) -> Option<u32> {
        match &self.keeper {
            Keeper::Taffrail(server) => server.pid(),
            Keeper::Program(program) => Some(program.0.id()),
            Keeper::Others(_) | Keeper::Us => None,
        }
    }

    /// Puts a blob where pulls find it: a push, or a file.
    pub(crate) fn store_blob(&self, client: &mut Connection, repository: &str, blob: &Blob) -> Result<()> {
        let path = format!("/v2/{repository}/blobs/{}", blob.digest);
        if let Some(file) = self.static_file(&path) {
            std::fs::create_dir_all(file.parent().unwrap_or(&file))?;
            let mut out = std::fs::File::create(&file)?;
            for part in blob.parts() {
                std::io::Write::write_all(&mut out, part)?;
            }
            return Ok(());
        }
        let path = format!("/v2/{repository}/blobs/uploads/");
        let begun = client.request("POST", &path, "", Body::None)?.expect(202)?;
        let put = with_query(&begun.location.context("Location")?, &format!("digest={}", blob.digest));
        client.request("PUT", &put, OCTETS, Body::Blob(blob))?.expect(201)?;
        Ok(())
    }

    /// Puts a manifest where pulls find it.
    pub(crate) fn store_manifest(
        &self,
        client: &mut Connection,
        repository: &str,
        tag: &str,
        manifest: &[u8],
    ) -> Result<()> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        if let Some(file) = self.static_file(&path) {
            std::fs::create_dir_all(file.parent().unwrap_or(&file))?;
            return Ok(std::fs::write(file, manifest)?);
        }
        let header = format!("Content-Type: {MANIFEST}\r\n");
        client.request("PUT", &path, &header, Body::Bytes(manifest))?.expect(201)?;
        Ok(())
    }

    fn static_file(&self, path: &str) -> Option<PathBuf> {
        let is_static = matches!(self.kind, Kind::Nginx | Kind::NginxCopy);
        is_static.then(|| self.dir.join("www").join(path.trim_start_matches('/')))
    }

    /// Ends it and gives its space back, but not its files: ext4 avoids inodes that were freed in the last minutes, and
    /// whoever creates many files next would pay for that.
    pub(crate) fn end(self) -> Result<()> {
        let Self { keeper, dir, .. } = self;
        drop(keeper);
        release(&dir)
    }
}

/// Header of an upload's body.
pub(crate) const OCTETS: &str = "Content-Type: application/octet-stream\r\n";

/// Files from this length on give their space back at the end of a case.
const RELEASE_BYTES: u64 = 1 << 20;

fn release(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_dir() {
            release(&entry.path())?;
        } else if about.is_file() && about.len() >= RELEASE_BYTES {
            std::fs::File::options().write(true).open(entry.path())?.set_len(0)?;
        }
    }
    Ok(())
}

/// A program that ends with its owner.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // Asked first, because the children of nginx outlive a master that is killed.
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let asked = Instant::now();
        while asked.elapsed() < END_DEADLINE {
            if let Ok(Some(_)) = self.0.try_wait() {
                return;
            }
            std::thread::sleep(POLL);
        }
        // There is nobody left to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_distribution(program: &str, dir: &Path) -> Result<(Program, String)> {
    let host = free_host()?;
    let config = dir.join("config.yml");
    let root = dir.join("data");
    let text = format!(
        "version: 0.1\n\
         log: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage:\n  filesystem: {{rootdirectory: {root:?}}}\n  delete: {{enabled: true}}\n  \
         cache: {{blobdescriptor: inmemory}}\n\
         http: {{addr: {host}}}\n"
    );
    std::fs::write(&config, text)?;
    let mut command = Command::new(tools::find(program)?);
    command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
    let program = spawn(&mut command, dir)?;
    until_it_answers(program, host, "/v2/")
}

fn start_nginx(dir: &Path, sendfile: bool) -> Result<(Program, String)> {
    let host = free_host()?;
    let www = dir.join("www");
    std::fs::create_dir_all(&www)?;
    std::fs::write(www.join("ready"), "")?;
    // As root it would serve as nobody, who may not enter our folders.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let text = format!(
        "{user} daemon off; worker_processes auto; worker_rlimit_nofile 65536;\n\
         pid {dir}/nginx.pid; error_log {dir}/error.log crit;\n\
         events {{ worker_connections 16384; }}\n\
         http {{\n  access_log off; sendfile {sendfile}; tcp_nopush on; default_type application/octet-stream;\n  \
         keepalive_requests 100000000;\n  \
         client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n  \
         uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n  \
         server {{ listen {host} backlog=4096; root {dir}/www; }}\n}}\n",
        dir = dir.display(),
        sendfile = if sendfile { "on" } else { "off" },
    );
    let config = dir.join("nginx.conf");
    std::fs::write(&config, text)?;
    let mut command = Command::new(tools::find("nginx")?);
    command.arg("-p").arg(dir).arg("-c").arg(&config);
    let program = spawn(&mut command, dir)?;
    until_it_answers(program, host, "/ready")
}

fn start_receive(dir: &Path) -> Result<(Program, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("limit-receive").arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut program = Program(command.spawn().context("starting the bare push")?);
    let mut line = String::new();
    BufReader::new(program.0.stdout.take().context("its output")?).read_line(&mut line)?;
    ensure!(!line.trim().is_empty(), "the bare push did not start");
    Ok((program, line.trim().to_owned()))
}

fn spawn(command: &mut Command, dir: &Path) -> Result<Program> {
    let log = std::fs::File::create(dir.join("output.log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Program(command.spawn().with_context(|| format!("starting {command:?}"))?))
}

fn until_it_answers(mut program: Program, host: String, path: &str) -> Result<(Program, String)> {
    let started = Instant::now();
    loop {
        if Connection::open(&host, "").and_then(|mut client| client.get(path, "")).is_ok() {
            return Ok((program, host));
        }
        if let Some(status) = program.0.try_wait()? {
            bail!("the server at {host} ended with {status} before it answered");
        }
        ensure!(started.elapsed() < START_DEADLINE, "the server at {host} does not answer");
        std::thread::sleep(POLL);
    }
}

fn free_host() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
