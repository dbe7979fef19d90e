//! A `taffrail` of a test: started on a free port and a folder of its own, killed and waited for when dropped.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A server that has not started or ended by then never will.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often something that is to happen is looked at.
const POLL: Duration = Duration::from_millis(5);

/// The program under test.
pub(crate) const TAFFRAIL: &str = env!("CARGO_BIN_EXE_taffrail");

/// How a server is to be started.
#[derive(Default)]
pub(crate) struct Options {
    /// `TAFFRAIL__…` variables, by section and key.
    pub(crate) keys: Vec<(&'static str, String)>,
    /// Bound on open files.
    pub(crate) files_max: Option<u32>,
    /// Data directory; else one of its own.
    pub(crate) data_dir: Option<PathBuf>,
    /// Gives the server a pipe for its log that nobody reads, instead of a file.
    pub(crate) log_stalls: bool,
    /// More environment.
    pub(crate) env: Vec<(&'static str, String)>,
}

impl Options {
    /// Sets `section.key`.
    pub(crate) fn key(mut self, name: &'static str, value: impl ToString) -> Self {
        self.keys.push((name, value.to_string()));
        self
    }
}

/// A running server.
pub(crate) struct Server {
    child: Option<Child>,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) data_dir: PathBuf,
    log: PathBuf,
    _scratch: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// Starts a server and waits until it says that it is ready.
    pub(crate) fn start_with(options: Options) -> Self {
        let scratch = tempfile::Builder::new().prefix("taffrail-process-").tempdir().unwrap();
        let data_dir = options.data_dir.clone().unwrap_or_else(|| scratch.path().join("data"));
        let log = scratch.path().join("log");
        let (address, metrics) = (free_address(), free_address());
        let mut command = match options.files_max {
            None => Command::new(TAFFRAIL),
            Some(files) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\""), TAFFRAIL]);
                shell
            }
        };
        command
            .args(["serve", "--listen", &address.to_string(), "--data-dir"])
            .arg(&data_dir)
            .env("TAFFRAIL__METRICS__LISTEN", metrics.to_string())
            .env("TAFFRAIL__STORAGE__RESERVE_BYTES", "1048576")
            .env("TAFFRAIL__STORAGE__SEGMENT_BYTES", "1048576")
            .env("TAFFRAIL_ADMIN_PASSWORD", "Harbor-Light-7")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(if options.log_stalls { Stdio::piped() } else { File::create(&log).unwrap().into() })
            .envs(options.env.iter().map(|(name, value)| (name, value)));
        for (name, value) in &options.keys {
            command.env(format!("TAFFRAIL__{}", name.replace('.', "__").to_uppercase()), value);
        }
        let child = Some(command.spawn().unwrap());
        let mut server = Self { child, address, metrics, data_dir, log, _scratch: scratch };
        server.wait_for("the server is ready", |server| {
            if let Some(status) = server.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", server.log());
            }
            if options.log_stalls {
                return TcpStream::connect(server.address).is_ok();
            }
            server.log().contains(" ready ") || server.log().contains("\"ready\"")
        });
        server
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        self.wait_for("the server ends", |server| {
            status = server.child.as_mut().unwrap().try_wait().unwrap();
            status.is_some()
        });
        self.child = None;
        status.unwrap()
    }

    /// Waits until something holds.
    pub(crate) fn wait_for(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// A connection.
    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// Sends bytes on a new connection and reads until the server closes it.
    pub(crate) fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        exchange(self.address, bytes.as_ref())
    }

    /// `GET` of a path, on a connection of its own.
    pub(crate) fn get(&self, path: &str) -> String {
        self.exchange(get(path, "Connection: close\r\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A GET request.
pub(crate) fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends bytes and reads until the other side closes. A reset counts as a close: what was read before it stays.
pub(crate) fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    // The server may have closed its side by now; its answer is what counts.
    let _ = stream.write_all(bytes);
    read_all(&mut stream)
}

/// Reads until the other side closes.
pub(crate) fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads one answer without a body, or with one that comes in the same packet.
pub(crate) fn read_some(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 4096];
    let count = stream.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

/// The statuses of all answers in a text.
pub(crate) fn statuses(answers: &str) -> Vec<u16> {
    answers
        .match_indices("HTTP/1.1 ")
        .filter_map(|(at, word)| answers[at + word.len()..].get(..3)?.parse().ok())
        .collect()
}

/// Runs the program to its end; its exit code, and what it said on both streams.
pub(crate) fn run(args: &[&str], dir: &Path, env: &[(&str, &str)], input: &str) -> (Option<i32>, String) {
    let mut child = Command::new(TAFFRAIL)
        .args(args)
        .envs(env.iter().copied())
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
