//! The progress bar: on a terminal, and only there.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on standard error, or nothing.
pub(crate) struct Progress(ProgressBar);

/// Whether a bar is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    OnTerminal,
    Never,
}

impl Progress {
    pub(crate) fn new(shown: Shown) -> Progress {
        let bar = if shown == Shown::OnTerminal && std::io::stderr().is_terminal() {
            ProgressBar::no_length()
        } else {
            ProgressBar::hidden()
        };
        Progress(bar)
    }

    /// A phase begins that has `total_bytes` to read.
    pub(crate) fn begin(&self, phase: &'static str, total_bytes: u64) {
        self.phase(phase, "{msg} {bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}", total_bytes);
    }

    /// A phase begins that has so many things to do.
    pub(crate) fn begin_count(&self, phase: &'static str, total: u64) {
        self.phase(phase, "{msg} {bar:40} {human_pos}/{human_len} {per_sec} {eta}", total);
    }

    fn phase(&self, phase: &'static str, template: &str, total: u64) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        self.0.set_message(phase);
        self.0.set_position(0);
        self.0.set_length(total);
    }

    /// So many bytes or things are done.
    pub(crate) fn advance(&self, done: u64) {
        self.0.inc(done);
    }

    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}
