//! Running the program and reading what it says.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::{fs, io, thread};

use serde_json::Value;

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The findings of one kind.
    pub(crate) fn findings(&self, kind: &str) -> Vec<Value> {
        let document = self.json();
        let all = document["findings"].as_array().unwrap().clone();
        all.into_iter().filter(|finding| finding["kind"] == kind).collect()
    }

    /// The one finding of a kind.
    pub(crate) fn finding(&self, kind: &str) -> Value {
        let found = self.findings(kind);
        assert_eq!(found.len(), 1, "one finding of kind {kind} in {}", self.stdout);
        found[0].clone()
    }

    /// The findings that are more than notes.
    pub(crate) fn harms(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let document = self.json();
        document["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|finding| finding["severity"] != "note")
            .map(|finding| (text(&finding["severity"]), text(&finding["kind"])))
            .collect()
    }
}

/// Runs a program to its end. One at a time begins: until exec is over a child has all descriptors of this process, and with them
/// the locks of stores that other tests have just closed.
pub(crate) fn output(command: &mut Command) -> io::Result<Output> {
    static BEGIN: Mutex<()> = Mutex::new(());
    let child = {
        let _turn = BEGIN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // `spawn` may return a moment before exec closes descriptors. A command line is set behind that, and is empty until then.
        let command_line = format!("/proc/{}/cmdline", child.id());
        while child.try_wait()?.is_none() && fs::read(&command_line).is_ok_and(|line| line.is_empty()) {
            thread::yield_now();
        }
        child
    };
    child.wait_with_output()
}

pub(crate) fn fsck(arguments: &[&str], folder: &Path) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taffrail-fsck"));
    let output = output(command.arg(arguments[0]).arg(folder).args(&arguments[1..])).unwrap();
    Run {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) fn check(folder: &Path) -> Run {
    fsck(&["check", "--json"], folder)
}
