//! The log: lines on standard error, written by a thread of its own.
//!
//! What must stay true: a reader that stalls (a full pipe, a stopped terminal) never stalls a request; what does not fit the
//! queue is dropped and counted. One event is one line: control characters that a client put into a name are escaped, so
//! that nobody can forge a line or move an operator's cursor (S-76, RUSTSEC-2025-0055).

mod text;

use std::borrow::Cow;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::sections::{Log, LogFormat};

/// Bytes of lines that wait for the writer: some four thousand lines.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// How long lines gather after some were written, so that a busy server wakes the writer and calls the system for many at once.
/// The first line after a quiet time is written at once.
const GATHER: Duration = Duration::from_millis(5);
/// Room that the writer keeps for lines; more of it, from a burst, is given back.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long the end of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Threads of the storage engine, whose panic must not be survived (F-40): a store that lost its appender would
/// go on acknowledging nothing for ever.
const ENGINE_THREADS: &str = "taffrail-";

/// Where the lines go.
#[derive(Clone, Default)]
struct Queue {
    lines: Arc<Lines>,
    dropped: Arc<AtomicU64>,
}

/// Lines on their way to the writer.
#[derive(Default)]
struct Lines {
    state: Mutex<State>,
    /// The writer is to look.
    wake: Condvar,
    /// The writer has written everything, at the end.
    written: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// Whether the writer waits to be woken.
    is_idle: bool,
    is_ending: bool,
    has_ended: bool,
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
        self.queue.lines.end();
    }
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whatever panicked, what is there are whole lines.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line; false when there is no room for it.
    fn push(&self, line: &[u8]) -> bool {
        let mut state = self.lock();
        if state.bytes.len().saturating_add(line.len()) > QUEUE_BYTES_MAX {
            return false;
        }
        state.bytes.extend_from_slice(line);
        if std::mem::take(&mut state.is_idle) {
            drop(state);
            self.wake.notify_one();
        }
        true
    }

    /// Waits for lines and takes all there are. False when they are the last.
    fn take(&self, lines: &mut Vec<u8>) -> bool {
        lines.clear();
        lines.shrink_to(BUFFER_BYTES);
        let mut state = self.lock();
        while state.bytes.is_empty() && !state.is_ending {
            state.is_idle = true;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_idle = false;
        std::mem::swap(&mut state.bytes, lines);
        !state.is_ending
    }

    /// Waits while lines gather, or for the end.
    fn gather(&self) {
        drop(self.wake.wait_timeout_while(self.lock(), GATHER, |state| !state.is_ending));
    }

    /// Has the last lines written, and waits for that. When the reader still stalls they are lost; there is nobody to tell.
    fn end(&self) {
        let mut state = self.lock();
        state.is_ending = true;
        self.wake.notify_one();
        drop(self.written.wait_timeout_while(state, FLUSH_TIMEOUT, |state| !state.has_ended));
    }
}

/// Starts the log, and sends panics to it.
///
/// # Errors
/// When its thread cannot be started.
pub(crate) fn start(settings: &Log) -> io::Result<LogHandle> {
    let queue = Queue::default();
    let (lines, dropped) = (Arc::clone(&queue.lines), Arc::clone(&queue.dropped));
    let write = move || write_lines(&lines, &dropped, io::stderr());
    std::thread::Builder::new().name("log".to_owned()).spawn(write)?;

    // The directives were checked when the configuration was read.
    let filter = EnvFilter::builder().parse_lossy(settings.level.directives());
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue.clone()).with_ansi(false);
    match settings.format {
        LogFormat::Text => builder.fmt_fields(text::Fields).event_format(text::Text).init(),
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).init(),
    }
    report_panics();
    Ok(LogHandle { queue })
}

fn write_lines(queue: &Lines, dropped: &AtomicU64, mut out: impl io::Write) {
    let mut lines = Vec::new();
    let mut told = 0;
    loop {
        let is_more_to_come = queue.take(&mut lines);
        // Standard error that is closed is the operator's wish.
        drop(out.write_all(&lines));
        let lost = dropped.load(Ordering::Relaxed);
        if lost > told {
            let _ = writeln!(out, "{} log lines were dropped because the reader stalled", lost - told);
            told = lost;
        }
        if !is_more_to_come {
            queue.lock().has_ended = true;
            queue.written.notify_all();
            return;
        }
        queue.gather();
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

/// Takes formatted events, each in one piece.
struct Line<'a>(&'a Queue);

impl io::Write for Line<'_> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        if !self.0.lines.push(&escape(event)) {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// The event as one line: every control character but its last line feed, and the separators that some readers take for a
/// line end, become `\u` escapes, which are valid inside JSON strings too.
fn escape(event: &[u8]) -> Cow<'_, [u8]> {
    // Nearly every line is plain, and ends as it should.
    if let Some((b'\n', body)) = event.split_last()
        && text::is_plain(body)
    {
        return Cow::Borrowed(event);
    }
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
    Cow::Owned(line.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_a_client_put_into_it() {
        let line = escape("a\r\nb\u{1b}[31m\u{2028}c\u{85}\u{7f}\n".as_bytes());
        assert_eq!(&*line, b"a\\u000d\\u000ab\\u001b[31m\\u2028c\\u0085\\u007f\n");
        assert_eq!(&*escape("å ok\n".as_bytes()), "å ok\n".as_bytes());
        assert_eq!(&*escape(b"plain\n"), b"plain\n");
        assert_eq!(&*escape(b"plain"), b"plain\n");
        assert_eq!(&*escape(b""), b"\n");
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_not_time() {
        let queue = Queue::default();
        let line = vec![b'x'; QUEUE_BYTES_MAX / 2];
        for _ in 0..5 {
            queue.make_writer().write_all(&line[1..]).unwrap();
        }
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 3);
        assert!(queue.lines.lock().bytes.len() <= QUEUE_BYTES_MAX);
    }

    /// Where the lines of a test come out: each write by itself.
    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<Vec<u8>>>>);

    impl io::Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_in_order_and_the_last_ones_before_the_end() {
        let (queue, out) = (Queue::default(), Out::default());
        queue.dropped.store(2, Ordering::Relaxed);
        let writer = {
            let (lines, dropped, out) = (Arc::clone(&queue.lines), Arc::clone(&queue.dropped), out.clone());
            std::thread::spawn(move || write_lines(&lines, &dropped, out))
        };
        let mut expected = String::new();
        for number in 0..1000 {
            let line = format!("{number}\n");
            queue.make_writer().write_all(line.as_bytes()).unwrap();
            expected.push_str(&line);
        }
        drop(LogHandle { queue });
        writer.join().unwrap();
        let written = String::from_utf8(out.0.lock().unwrap().concat()).unwrap();
        let lost = "2 log lines were dropped because the reader stalled\n";
        assert!(written.contains(lost), "{written}");
        assert_eq!(written.replace(lost, ""), expected);
        assert!(out.0.lock().unwrap().len() < 100, "lines are written together");
    }
}
