//! The control socket of a running server, `DIR/control.sock`: by it `taffrail backup` holds removals and learns which files the store is.
//!
//! One request a line, one JSON object each: `{"op":"hold"}`, then `{"op":"seal"}`, then `{"op":"end"}`. What is held is let go when the
//! connection ends, however that comes. Whoever can reach the socket could read everything in the data directory anyway: it lies there,
//! and is for root and the server's own user alone.

use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use serde_json::{Value, json};
use taffrail_blobstore::{RemovalHold, Store};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufWriter};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Version of the conversation: program and server may be of different releases.
pub(crate) const VERSION: u64 = 1;
/// Longest request in bytes.
const REQUEST_BYTES_MAX: u64 = 256;
/// Programs at the socket at once: one holds removals, the others are told so.
const CONVERSATIONS_MAX: usize = 8;
/// How long a client may take to say what it wants.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long links may be held while the catalog is copied: deletions wait. A catalog of 10 GiB takes a minute or two.
const HOLD_MAX: Duration = Duration::from_secs(900);

/// Listens until it is dropped; nothing when there can be no socket, of which a backup then complains.
pub(crate) fn listen(path: &Path, store: Weak<Store>) -> Option<impl Future<Output = ()> + Send + use<>> {
    // Left by an earlier process: we hold the store's lock, so that nobody listens there.
    let _ = std::fs::remove_file(path);
    let listener = match UnixListener::bind(path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no control socket: no backup while the server runs");
            return None;
        }
    };
    Some(async move {
        // Ends the conversations with the listener.
        let mut conversations = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    // Who comes while another holds removals is told so.
                    Ok((stream, _)) if conversations.len() < CONVERSATIONS_MAX => {
                        conversations.spawn(converse(stream, store.clone()));
                    }
                    Ok(_) => tracing::warn!("too many at the control socket"),
                    Err(error) => {
                        tracing::warn!(%error, "the control socket fails");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
                Some(_) = conversations.join_next() => {}
            }
        }
    })
}

async fn converse(stream: UnixStream, store: Weak<Store>) {
    let ours = rustix::process::geteuid().as_raw();
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == ours) {
        tracing::warn!("somebody else was at the control socket");
        return;
    }
    let (reader, writer) = stream.into_split();
    let mut conversation =
        Conversation { reader: BufReader::new(reader), writer: BufWriter::new(writer), store };
    if let Err(error) = conversation.hold().await {
        tracing::warn!(%error, "a backup ended early");
    }
}

struct Conversation {
    reader: BufReader<OwnedReadHalf>,
    writer: BufWriter<OwnedWriteHalf>,
    store: Weak<Store>,
}

/// Why a conversation ends.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the program that makes it went away, or fell silent")]
    Gone,
    #[error("{0} was asked for instead of {1}")]
    Unexpected(String, &'static str),
    #[error("{0}")]
    Refused(String),
}

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Broken {
        Broken::Gone
    }
}

impl Conversation {
    async fn hold(&mut self) -> Result<(), Broken> {
        self.expect("hold", Some(FIRST_REQUEST)).await?;
        let store = self.store.upgrade().ok_or(Broken::Gone)?;
        let held = store.hold_removals().await;
        let uuid = hex(&store.uuid());
        drop(store);
        let begun = Instant::now();
        match held {
            Ok(hold) => {
                tracing::info!("a backup begins: deletions wait");
                let answer =
                    json!({"ok": true, "version": VERSION, "uuid": uuid, "next_lsn": hold.next_lsn()});
                self.answer(&answer).await?;
                self.seal(&hold, begun).await
            }
            Err(error) => self.refuse(error.to_string()).await,
        }
    }

    async fn seal(&mut self, hold: &RemovalHold, begun: Instant) -> Result<(), Broken> {
        self.expect("seal", Some(HOLD_MAX)).await?;
        let sealing = Instant::now();
        let snapshot = match hold.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(refusal) => return self.refuse(refusal.to_string()).await,
        };
        let sealed_ms = u64::try_from(sealing.elapsed().as_millis()).unwrap_or(u64::MAX);
        let held_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(held_ms, sealed_ms, files = snapshot.files.len(), "links may go again, files stay");
        let (name, bytes) = &snapshot.superblock;
        let answer = json!({
            "ok": true, "next_lsn": snapshot.next_lsn, "held_ms": held_ms, "sealed_ms": sealed_ms,
            "superblock": {"name": name, "hex": hex(bytes)}, "files": snapshot.files.len(),
        });
        self.write_line(&answer).await?;
        for file in &snapshot.files {
            self.write_line(&json!({"name": file.name, "bytes": file.len_bytes})).await?;
        }
        self.writer.flush().await?;
        // Links and copies take as long as they take; a program that dies closes its end.
        self.expect("end", None).await?;
        tracing::info!(
            took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "a backup was made"
        );
        self.answer(&json!({"ok": true})).await
    }

    async fn expect(&mut self, op: &'static str, patience: Option<Duration>) -> Result<(), Broken> {
        let mut line = String::new();
        let mut bounded = (&mut self.reader).take(REQUEST_BYTES_MAX);
        let read = bounded.read_line(&mut line);
        let read = match patience {
            Some(patience) => tokio::time::timeout(patience, read).await.map_err(|_| Broken::Gone)?,
            None => read.await,
        };
        if read? == 0 {
            return Err(Broken::Gone);
        }
        let request: Value = serde_json::from_str(&line).unwrap_or_default();
        match request["op"].as_str() {
            Some(asked) if asked == op => Ok(()),
            asked => {
                let asked = asked.unwrap_or("something else").to_owned();
                let broken = Broken::Unexpected(asked, op);
                self.answer(&json!({"error": broken.to_string()})).await?;
                Err(broken)
            }
        }
    }

    async fn refuse(&mut self, why: String) -> Result<(), Broken> {
        self.answer(&json!({"error": why})).await?;
        Err(Broken::Refused(why))
    }

    async fn answer(&mut self, value: &Value) -> Result<(), Broken> {
        self.write_line(value).await?;
        Ok(self.writer.flush().await?)
    }

    async fn write_line(&mut self, value: &Value) -> Result<(), Broken> {
        Ok(self.writer.write_all(format!("{value}\n").as_bytes()).await?)
    }
}

/// Bytes in lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
