//! Where a backup comes from: a running server, by its control socket, or the data directory of a stopped one, under its lock.

use std::cell::Cell;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use taffrail_blobstore::format::{INDEX_FOLDER, LOG_FOLDER, SOLO_FOLDER, SUPERBLOCK_NAMES};
use taffrail_blobstore::{RemovalHold, SnapshotFile, Store};
use tokio::runtime::Runtime;

use crate::config::Config;
use crate::control;
use crate::data_dir::DataDir;
use crate::store;

const WENT_AWAY: &str = "the server went away, or let go, before the backup was whole; make another";

/// Removals are held as long as it lives.
pub(crate) enum Source {
    Running(Box<Running>),
    Stopped { store: Box<Store>, hold: RemovalHold },
}

/// A conversation with a server.
pub(crate) struct Running {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

/// How often the server is told that the backup gets on: ten times before it takes us for stuck.
const TOLD_EVERY: Duration = Duration::from_secs(30);

/// Tells a server, now and then, that the backup gets on: it lets go when it hears nothing for some minutes.
#[derive(Default)]
pub(crate) struct Pulse(Option<(UnixStream, Cell<Instant>)>);

impl Pulse {
    /// To be called whenever something was done, and only then.
    ///
    /// # Errors
    /// When the server went away.
    pub(crate) fn beat(&self) -> io::Result<()> {
        match &self.0 {
            Some((server, told)) if told.get().elapsed() >= TOLD_EVERY => {
                told.set(Instant::now());
                let mut server: &UnixStream = server;
                let alive = format!("{}\n", json!({"op": "alive"}));
                server.write_all(alive.as_bytes()).map_err(|error| io::Error::new(error.kind(), WENT_AWAY))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Waits for `work`, which gets on by itself.
    ///
    /// # Errors
    /// When the server went away.
    pub(crate) async fn beside<T>(&self, work: impl Future<Output = T>) -> io::Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(TOLD_EVERY, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) => self.beat()?,
            }
        }
    }
}

/// Which store it is, and how far it had come when removals were held.
pub(crate) struct Held {
    pub(crate) uuid: [u8; 16],
    pub(crate) next_lsn: u64,
}

/// What the store is.
pub(crate) struct Sealed {
    pub(crate) next_lsn: u64,
    pub(crate) superblock_name: String,
    pub(crate) superblock: Vec<u8>,
    pub(crate) files: Vec<SnapshotFile>,
}

impl Source {
    /// Holds removals.
    ///
    /// # Errors
    /// When there is no registry, or it cannot be backed up now.
    pub(crate) fn hold(dir: &DataDir, config: &Config, runtime: &Runtime) -> anyhow::Result<(Source, Held)> {
        let path = dir.control_socket();
        match UnixStream::connect(&path) {
            Ok(stream) => {
                let mut running = Running { reader: BufReader::new(stream.try_clone()?), writer: stream };
                let answer = running.ask("hold")?;
                let version = answer["version"].as_u64();
                ensure!(
                    version == Some(control::VERSION),
                    "the server that runs is of another release; use its own `taffrail backup`"
                );
                let held = Held { uuid: uuid(&answer["uuid"])?, next_lsn: number(&answer["next_lsn"])? };
                Ok((Source::Running(Box::new(running)), held))
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                let opened = store::open(&dir.store(), config)
                    .with_context(|| format!("no server answers at {}, and", path.display()));
                let store = opened?;
                let hold = runtime.block_on(store.hold_removals())?;
                let held = Held { uuid: store.uuid(), next_lsn: hold.next_lsn() };
                Ok((Source::Stopped { store: Box::new(store), hold }, held))
            }
            Err(error) => {
                Err(error).with_context(|| format!("cannot use {}; run as the server's user", path.display()))
            }
        }
    }

    /// Lets links go, and says what the store is.
    ///
    /// # Errors
    /// When the store takes no writes, or the server went away.
    pub(crate) fn seal(&mut self, runtime: &Runtime) -> anyhow::Result<Sealed> {
        match self {
            Source::Stopped { hold, .. } => {
                let snapshot = runtime.block_on(hold.snapshot())?;
                let (name, superblock) = snapshot.superblock;
                Ok(Sealed {
                    next_lsn: snapshot.next_lsn,
                    superblock_name: name.to_owned(),
                    superblock,
                    files: snapshot.files,
                })
            }
            Source::Running(running) => {
                let answer = running.ask("seal")?;
                let count = number(&answer["files"])?;
                let mut files = Vec::new();
                for _ in 0..count {
                    let line = running.line()?;
                    let name = text(&line["name"])?;
                    ensure!(is_store_file(&name), "the server names a file that no store has: {name:?}");
                    files.push(SnapshotFile { name, len_bytes: line["bytes"].as_u64() });
                }
                let superblock_name = text(&answer["superblock"]["name"])?;
                let is_superblock = SUPERBLOCK_NAMES.contains(&&*superblock_name);
                ensure!(
                    is_superblock,
                    "the server names a superblock that no store has: {superblock_name:?}"
                );
                Ok(Sealed {
                    next_lsn: number(&answer["next_lsn"])?,
                    superblock_name,
                    superblock: unhex(&text(&answer["superblock"]["hex"])?)?,
                    files,
                })
            }
        }
    }

    /// What tells the server that the backup gets on.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub(crate) fn pulse(&self) -> io::Result<Pulse> {
        match self {
            Source::Running(running) => {
                Ok(Pulse(Some((running.writer.try_clone()?, Cell::new(Instant::now())))))
            }
            Source::Stopped { .. } => Ok(Pulse(None)),
        }
    }

    /// Lets everything go. When this succeeds, it was held all the time.
    ///
    /// # Errors
    /// When the server went away.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        match self {
            Source::Stopped { store, hold } => {
                drop(hold);
                Ok(store.close()?)
            }
            Source::Running(mut running) => {
                running.ask("end").context(WENT_AWAY)?;
                Ok(())
            }
        }
    }
}

/// Whether a store may have a sealed file of that name. The server may be another program than it seems: what it says
/// must lead nowhere else.
fn is_store_file(name: &str) -> bool {
    let is_plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
    };
    let folders = [LOG_FOLDER, SOLO_FOLDER, INDEX_FOLDER];
    name.split_once('/')
        .is_some_and(|(folder, rest)| folders.contains(&folder) && rest.split('/').all(is_plain))
}

impl Running {
    fn ask(&mut self, op: &str) -> anyhow::Result<Value> {
        self.writer.write_all(format!("{}\n", json!({"op": op})).as_bytes())?;
        self.line()
    }

    fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the server ended the conversation");
        let answer: Value = serde_json::from_str(&line).context("the server's answer")?;
        if let Some(error) = answer["error"].as_str() {
            bail!("the server refuses: {error}");
        }
        Ok(answer)
    }
}

fn number(value: &Value) -> anyhow::Result<u64> {
    value.as_u64().context("the server's answer lacks a number that belongs to it")
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(value.as_str().context("the server's answer lacks a text that belongs to it")?.to_owned())
}

fn uuid(value: &Value) -> anyhow::Result<[u8; 16]> {
    unhex(&text(value)?)?.try_into().ok().context("the server names its store by something else than a UUID")
}

const NO_HEX: &str = "these are no pairs of hexadecimal digits";

/// The bytes of hexadecimal digits.
pub(crate) fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    ensure!(text.is_ascii() && text.len().is_multiple_of(2), NO_HEX);
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).context(NO_HEX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_told_now_and_then_and_its_end_is_noticed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let earlier = || Instant::now().checked_sub(TOLD_EVERY).unwrap();
        let pulse = Pulse(Some((ours, Cell::new(earlier()))));
        pulse.beat().unwrap();
        pulse.beat().unwrap();
        let mut line = String::new();
        let mut heard = BufReader::new(theirs);
        heard.read_line(&mut line).unwrap();
        assert_eq!(line, "{\"op\":\"alive\"}\n");
        assert!(heard.buffer().is_empty(), "once in {TOLD_EVERY:?}");
        drop(heard);
        pulse.beat().unwrap();
        if let Some((_, told)) = &pulse.0 {
            told.set(earlier());
        }
        assert!(pulse.beat().unwrap_err().to_string().contains("make another"));
        Pulse::default().beat().unwrap();
    }

    #[test]
    fn what_a_server_names_leads_nowhere_out_of_the_store() {
        let good = ["log/0000000000000001.seg", "solo/3f/00000001000000b2.seg", "index/0000000000000002.ckp"];
        assert!(good.iter().all(|name| is_store_file(name)));
        let bad = [
            "/etc/passwd",
            "log/../../etc/passwd",
            "log//x",
            "log/",
            "log",
            "SUPER.0",
            "keys/token.pem",
            "log/.hidden",
            "log/a b",
            "",
        ];
        assert!(bad.iter().all(|name| !is_store_file(name)));
    }
}
