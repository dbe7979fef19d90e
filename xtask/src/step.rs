//! One check: a command, run with its output passed on, a count of what passed in it, and what it said of a failure.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Lines of a failed step that the summary repeats. A log is often kept by its end only, and the reason of a failure
/// must be in it.
const REASON_LINES: usize = 120;

/// A check that has not been run.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// What the summary calls it.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: String,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// More environment.
    pub(crate) env: Vec<(String, String)>,
    /// How to count what it checked.
    pub(crate) count: Count,
    /// Whether what it writes to its standard error is shown only when it fails.
    pub(crate) quiet: bool,
}

/// How a step's checks are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// The step is one check.
    Step,
    /// The Rust test harness counts them in its `test result:` lines.
    Tests,
}

/// What a step, or all of them, came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Checks that passed.
    pub(crate) passed: u64,
    /// Checks that failed.
    pub(crate) failed: u64,
    /// Checks that could not be made here.
    pub(crate) skipped: u64,
}

/// A step that has been run.
#[derive(Debug)]
pub(crate) struct Done {
    /// What the summary calls it.
    pub(crate) name: String,
    /// What it came to.
    pub(crate) tally: Tally,
    /// How long it took.
    pub(crate) took: Duration,
    /// The `SKIPPED` lines of its tests.
    pub(crate) skips: Vec<String>,
    /// Why it failed: what its failed tests said, or else its last lines. Empty when nothing failed.
    pub(crate) reason: Vec<String>,
}

impl Step {
    /// A cargo command as one check.
    pub(crate) fn cargo(name: &str, args: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            program: "cargo".to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: Vec::new(),
            count: Count::Step,
            quiet: false,
        }
    }

    /// A `cargo test` command, counted test by test.
    pub(crate) fn tests(name: &str, args: &[&str]) -> Self {
        Self { count: Count::Tests, ..Self::cargo(name, &[&["test"], args].concat()) }
    }

    /// Adds a variable to its environment.
    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Runs it in the repository's root. A failure of the command is in the tally, not an error.
    pub(crate) fn run(&self) -> Result<Done> {
        println!("\n=== {}: {} {}", self.name, self.program, self.args.join(" "));
        let started = Instant::now();
        let skipped_file = tempfile::NamedTempFile::new()?;
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .current_dir(root()?)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("TAFFRAIL_SKIPPED_FILE", skipped_file.path())
            // Errors of tests are sentences; a backtrace under each would bury them.
            .env("RUST_LIB_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.program))?;
        let stderr = child.stderr.take().context("the step's standard error")?;
        let quiet = self.quiet;
        let complaints = thread::spawn(move || {
            let mut last = Tail::default();
            each_line(stderr, |line| {
                if !quiet {
                    eprintln!("{line}");
                }
                last.push(line);
            })
            .map(|()| last)
        });
        let mut counted = Tally::default();
        let mut failures = Failures::default();
        each_line(child.stdout.take().context("the step's output")?, |line| {
            println!("{line}");
            if let Some(result) = Tally::of_test_result(&line) {
                counted = counted + result;
            }
            failures.read(line);
        })?;
        let good = child.wait()?.success();
        let complaints =
            complaints.join().map_err(|_| anyhow::anyhow!("reading the standard error panicked"))??;
        let skips: Vec<String> =
            std::fs::read_to_string(skipped_file.path())?.lines().map(str::to_owned).collect();
        let reason = match (good, failures.said.is_empty()) {
            (true, _) => Vec::new(),
            (false, false) => failures.said.0.into(),
            (false, true) => complaints.0.into(),
        };
        Ok(Done {
            name: self.name.clone(),
            tally: self.tally(good, counted, skips.len() as u64),
            took: started.elapsed(),
            skips,
            reason,
        })
    }

    fn tally(&self, good: bool, counted: Tally, skipped: u64) -> Tally {
        match self.count {
            Count::Step => Tally { passed: u64::from(good), failed: u64::from(!good), skipped: 0 },
            Count::Tests => Tally {
                // A skipped test returns early, which the harness counts as passed.
                passed: counted.passed.saturating_sub(skipped),
                // A step that failed without a failed test did not build, or died.
                failed: counted.failed.max(u64::from(!good)),
                skipped: counted.skipped + skipped,
            },
        }
    }
}

/// The last [`REASON_LINES`] lines of something.
#[derive(Debug, Default)]
struct Tail(VecDeque<String>);

impl Tail {
    fn push(&mut self, line: String) {
        if self.0.len() == REASON_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What the Rust test harness says of failed tests: the lines between `failures:` and `test result:`.
#[derive(Debug, Default)]
struct Failures {
    inside: bool,
    said: Tail,
}

impl Failures {
    fn read(&mut self, line: String) {
        if line == "failures:" {
            self.inside = true;
        } else if line.starts_with("test result: ") {
            self.inside = false;
        } else if self.inside && !line.is_empty() {
            self.said.push(line);
        }
    }
}

/// Calls `take` for each line of `source`; bytes that are no UTF-8 are replaced.
fn each_line(source: impl Read, mut take: impl FnMut(String)) -> Result<()> {
    for line in BufReader::new(source).split(b'\n') {
        take(String::from_utf8_lossy(&line?).into_owned());
    }
    Ok(())
}

impl Tally {
    /// Reads `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
    fn of_test_result(line: &str) -> Option<Self> {
        let rest = line.trim_start().strip_prefix("test result: ")?;
        let number = |word: &str| -> Option<u64> {
            rest.split([';', '.']).find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
        };
        Some(Self { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
    }
}

impl std::ops::Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

/// The repository's root.
pub(crate) fn root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).context("the repository's root")
}

/// Where cargo builds.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked"])
        .current_dir(root()?)
        .output()
        .context("running cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    metadata["target_directory"].as_str().map(PathBuf::from).context("a target directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_s_line_is_counted_and_no_other() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.2s";
        assert_eq!(Tally::of_test_result(line), Some(Tally { passed: 3, failed: 1, skipped: 2 }));
        assert_eq!(Tally::of_test_result("test it_works ... ok"), None);
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one_and_a_broken_build_is_a_failure() {
        let step = Step::tests("x", &[]);
        let counted = Tally { passed: 5, failed: 0, skipped: 0 };
        assert_eq!(step.tally(true, counted, 2), Tally { passed: 3, failed: 0, skipped: 2 });
        assert_eq!(step.tally(false, Tally::default(), 0).failed, 1);
    }

    #[test]
    fn a_step_that_fails_is_counted_as_failed() {
        let step = Step { program: "false".to_owned(), ..Step::cargo("false", &[]) };
        assert_eq!(step.run().unwrap().tally, Tally { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn a_failed_step_says_why_and_a_good_one_says_nothing() {
        let shell = |script: &str| Step {
            program: "sh".to_owned(),
            args: vec!["-c".to_owned(), script.to_owned()],
            quiet: true,
            ..Step::tests("x", &[])
        };
        let failed = "echo failures:; echo; echo 'it broke'; echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored'; exit 1";
        assert_eq!(shell(failed).run().unwrap().reason, ["it broke"]);
        let died = "echo 'no such crate' >&2; exit 1";
        assert_eq!(shell(died).run().unwrap().reason, ["no such crate"]);
        assert!(shell("echo fine >&2").run().unwrap().reason.is_empty());
    }
}
