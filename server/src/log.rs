//! The log: lines on standard error, written by a thread of its own.
//!
//! What must stay true: a reader that stalls (a full pipe, a stopped terminal) never stalls a request; what does not fit the
//! queue is dropped and counted. One event is one line: control characters that a client put into a name are escaped, so
//! that nobody can forge a line or move an operator's cursor (reliability S-76, RUSTSEC-2025-0055).

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::sections::{Log, LogFormat};

/// Lines that wait for the writer. At some 300 bytes each, a megabyte.
const QUEUE_LINES_MAX: usize = 4096;
/// How long the end of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Threads of the storage engine, whose panic must not be survived (reliability F-40): a store that lost its appender would
/// go on acknowledging nothing for ever.
const ENGINE_THREADS: &str = "taffrail-";

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Where the lines go.
#[derive(Clone)]
struct Queue {
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

/// The running log. Lines still queued are written when it is dropped.
pub(crate) struct LogHandle {
    queue: Queue,
}

impl LogHandle {
    /// How many lines were dropped because the reader stalled.
    pub(crate) fn dropped_lines(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.queue.dropped)
    }
}

impl Drop for LogHandle {
    fn drop(&mut self) {
        let (done, wait) = sync_channel(1);
        if self.queue.sender.send(Message::Flush(done)).is_ok() {
            // When the reader still stalls, its lines are lost; there is nobody to tell.
            let _ = wait.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// Starts the log, and sends panics to it.
///
/// # Errors
/// When its thread cannot be started.
pub(crate) fn start(settings: &Log) -> io::Result<LogHandle> {
    let (sender, receiver) = sync_channel(QUEUE_LINES_MAX);
    let queue = Queue { sender, dropped: Arc::new(AtomicU64::new(0)) };
    let dropped = Arc::clone(&queue.dropped);
    std::thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(&receiver, &dropped))?;

    // The directives were checked when the configuration was read.
    let filter = EnvFilter::builder().parse_lossy(settings.level.directives());
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue.clone()).with_ansi(false);
    match settings.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).init(),
    }
    report_panics();
    Ok(LogHandle { queue })
}

fn write_lines(receiver: &Receiver<Message>, dropped: &AtomicU64) {
    let mut stderr = io::stderr();
    let mut told = 0;
    for message in receiver {
        match message {
            // Standard error that is closed is the operator's wish.
            Message::Line(line) => drop(stderr.write_all(&line)),
            Message::Flush(done) => {
                let _ = done.send(());
                return;
            }
        }
        let lost = dropped.load(Ordering::Relaxed);
        if lost > told {
            let _ = writeln!(stderr, "{} log lines were dropped because the reader stalled", lost - told);
            told = lost;
        }
    }
}

fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("no text");
        if name.starts_with(ENGINE_THREADS) {
            // Straight to the terminal: the queue would not be written any more.
            let _ = writeln!(io::stderr(), "panic in {name} at {place}: {text}; aborting");
            std::process::abort();
        }
        tracing::error!(thread = name, place, text, "panic");
    }));
}

/// One event while it is formatted.
struct Line {
    bytes: Vec<u8>,
    queue: Queue,
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.bytes.is_empty() {
            return;
        }
        match self.queue.sender.try_send(Message::Line(escape(&self.bytes))) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => {
                self.queue.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { bytes: Vec::new(), queue: self.clone() }
    }
}

/// The event as one line: every control character but its last line feed, and the separators that some readers take for a
/// line end, become `\u` escapes, which are valid inside JSON strings too.
fn escape(event: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(event);
    let body = text.strip_suffix('\n').unwrap_or(&text);
    let dangerous = |character: char| character.is_control() || matches!(character, '\u{2028}' | '\u{2029}');
    let mut line = String::with_capacity(body.len() + 1);
    for character in body.chars() {
        if dangerous(character) {
            // Control characters and the two separators are all below U+10000: four digits do.
            line.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_a_client_put_into_it() {
        let line = escape("a\r\nb\u{1b}[31m\u{2028}c\u{85}\u{7f}\n".as_bytes());
        assert_eq!(line, b"a\\u000d\\u000ab\\u001b[31m\\u2028c\\u0085\\u007f\n");
        assert_eq!(escape("å ok\n".as_bytes()), "å ok\n".as_bytes());
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_not_time() {
        let (sender, _receiver) = sync_channel(2);
        let queue = Queue { sender, dropped: Arc::new(AtomicU64::new(0)) };
        for _ in 0..5 {
            queue.make_writer().write_all(b"line\n").unwrap();
        }
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 3);
    }
}
