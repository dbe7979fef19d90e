//! The progress bar of the offline commands: on a terminal, and only there.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on standard error, or nothing. Clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar, unless it is unwanted or there is no terminal.
    pub(crate) fn new(quiet: bool) -> Progress {
        let is_shown = !quiet && std::io::stderr().is_terminal();
        Progress(if is_shown { ProgressBar::no_length() } else { ProgressBar::hidden() })
    }

    /// A phase begins that has so many bytes to go through.
    pub(crate) fn begin(&self, phase: &'static str, total_bytes: u64) {
        let template = "{prefix} {bar:32} {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        self.0.set_prefix(phase);
        self.0.set_position(0);
        self.0.set_length(total_bytes);
    }

    /// So many bytes are done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// What stands behind the bar.
    pub(crate) fn say(&self, text: String) {
        self.0.set_message(text);
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}
