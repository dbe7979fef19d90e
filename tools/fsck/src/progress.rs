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
        let template = "{msg} {bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        self.0.set_message(phase);
        self.0.set_position(0);
        self.0.set_length(total_bytes);
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}
