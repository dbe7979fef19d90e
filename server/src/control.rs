//! The control socket of a running server, `DIR/control.sock`: by it `taffrail backup` holds removals and learns which files the store is.
//!
//! One request a line, one JSON object each: `{"op":"hold"}`, then `{"op":"seal"}`, then `{"op":"end"}`, and before the last two any number
//! of `{"op":"alive"}`, which has no answer. What is held is let go when the connection ends, however that comes, and when the program
//! neither says for [`SILENCE_MAX`] that it gets on nor takes what it is told: one that was stopped, or waits for a dead disk, would hold
//! what is deleted without end. Whoever can reach the socket could read everything in the data directory anyway: it lies there,
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
pub(crate) const VERSION: u64 = 2;
/// Longest request in bytes.
const REQUEST_BYTES_MAX: u64 = 256;
/// Programs at the socket at once: one holds removals, the others are told so.
const CONVERSATIONS_MAX: usize = 8;
/// How long a client may take to say what it wants.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long a program may be silent while removals are held. The longest thing that it does without a word is to flush a file of some GiB to
/// a slow disk.
const SILENCE_MAX: Duration = Duration::from_secs(300);
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
        self.expect("hold", FIRST_REQUEST, Some(Instant::now() + FIRST_REQUEST)).await?;
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
        self.expect("seal", SILENCE_MAX, Some(begun + HOLD_MAX)).await?;
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
        self.flush().await?;
        // Links and copies take as long as they take.
        self.expect("end", SILENCE_MAX, None).await?;
        tracing::info!(
            took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "a backup was made"
        );
        self.answer(&json!({"ok": true})).await
    }

    /// Waits for that request: `silence` for each word of the program, and not past `until`.
    async fn expect(
        &mut self,
        op: &'static str,
        silence: Duration,
        until: Option<Instant>,
    ) -> Result<(), Broken> {
        loop {
            let mut line = String::new();
            let mut bounded = (&mut self.reader).take(REQUEST_BYTES_MAX);
            let patience = Instant::now() + silence;
            let patience = until.map_or(patience, |until| patience.min(until));
            let read = tokio::time::timeout_at(patience, bounded.read_line(&mut line)).await;
            if read.map_err(|_| Broken::Gone)?? == 0 {
                return Err(Broken::Gone);
            }
            let request: Value = serde_json::from_str(&line).unwrap_or_default();
            match request["op"].as_str() {
                Some("alive") => {}
                Some(asked) if asked == op => return Ok(()),
                asked => {
                    let asked = asked.unwrap_or("something else").to_owned();
                    let broken = Broken::Unexpected(asked, op);
                    self.answer(&json!({"error": broken.to_string()})).await?;
                    return Err(broken);
                }
            }
        }
    }

    async fn refuse(&mut self, why: String) -> Result<(), Broken> {
        self.answer(&json!({"error": why})).await?;
        Err(Broken::Refused(why))
    }

    async fn answer(&mut self, value: &Value) -> Result<(), Broken> {
        self.write_line(value).await?;
        self.flush().await
    }

    async fn write_line(&mut self, value: &Value) -> Result<(), Broken> {
        let line = format!("{value}\n");
        in_time(self.writer.write_all(line.as_bytes())).await
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        in_time(self.writer.flush()).await
    }
}

/// What is said to a program that may have stopped reading.
async fn in_time(write: impl Future<Output = std::io::Result<()>>) -> Result<(), Broken> {
    Ok(tokio::time::timeout(SILENCE_MAX, write).await.map_err(|_| Broken::Gone)??)
}

/// Bytes in lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use taffrail_blobstore::disk::sim::SimDisk;
    use taffrail_blobstore::{Options, Threading};
    use tokio::task::JoinHandle;
    use tokio::time::sleep;

    use super::*;

    /// Far more than anybody waits for here. Time is paused: it goes on when everybody waits.
    const LONG: Duration = Duration::from_secs(100_000);

    fn conversation() -> (Arc<Store>, UnixStream, JoinHandle<()>) {
        let mut options = Options::new([7; 48]);
        options.threading = Threading::Inline;
        options.reserve_bytes = 0;
        let store = Arc::new(Store::open(Arc::new(SimDisk::new()), options, 1).unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let conversation = tokio::spawn(converse(theirs, Arc::downgrade(&store)));
        (store, ours, conversation)
    }

    async fn say(stream: &mut UnixStream, op: &str) {
        stream.write_all(format!("{{\"op\":\"{op}\"}}\n").as_bytes()).await.unwrap();
    }

    async fn hear(stream: &mut UnixStream) -> Value {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(stream.read_u8().await.unwrap());
        }
        serde_json::from_slice(&line).unwrap()
    }

    async fn is_held(store: &Store) -> bool {
        matches!(store.hold_removals().await, Err(taffrail_blobstore::HoldError::Busy))
    }

    /// `backup` that was stopped by a signal held removals for as long as it stayed so.
    #[tokio::test(start_paused = true)]
    async fn a_program_that_falls_silent_holds_nothing_for_long() {
        for ops in [&["hold"][..], &["hold", "seal"]] {
            let (store, mut stream, conversation) = conversation();
            for op in ops {
                say(&mut stream, op).await;
                assert_eq!(hear(&mut stream).await["ok"], true);
            }
            assert!(is_held(&store).await);
            let ended = tokio::time::timeout(LONG, conversation).await;
            ended.expect("it is let go").unwrap();
            assert!(!is_held(&store).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_says_that_it_gets_on_may_take_its_time() {
        let (store, mut stream, conversation) = conversation();
        say(&mut stream, "hold").await;
        hear(&mut stream).await;
        for _ in 0..8 {
            say(&mut stream, "alive").await;
            sleep(SILENCE_MAX / 3).await;
        }
        say(&mut stream, "seal").await;
        assert_eq!(hear(&mut stream).await["ok"], true);
        for _ in 0..100 {
            say(&mut stream, "alive").await;
            sleep(SILENCE_MAX / 3).await;
        }
        assert!(is_held(&store).await);
        say(&mut stream, "end").await;
        assert_eq!(hear(&mut stream).await["ok"], true);
        conversation.await.unwrap();
        assert!(!is_held(&store).await);
    }

    #[tokio::test(start_paused = true)]
    async fn links_are_not_held_longer_than_a_catalog_may_take() {
        let (store, mut stream, conversation) = conversation();
        say(&mut stream, "hold").await;
        hear(&mut stream).await;
        let begun = Instant::now();
        while !conversation.is_finished() {
            assert!(begun.elapsed() < LONG, "links are held without end");
            let _ = stream.write_all(b"{\"op\":\"alive\"}\n").await;
            sleep(SILENCE_MAX / 3).await;
        }
        assert!(!is_held(&store).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_never_begins_is_let_go() {
        let (_store, mut stream, conversation) = conversation();
        let begun = Instant::now();
        while !conversation.is_finished() {
            assert!(begun.elapsed() < LONG, "it may say for ever that it gets on");
            let _ = stream.write_all(b"{\"op\":\"alive\"}\n").await;
            sleep(FIRST_REQUEST / 3).await;
        }
    }
}
