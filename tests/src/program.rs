//! Running somebody else's program: what went in, what came out, and never longer than its deadline.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::tools;

/// A client that has not finished by then hangs, and would hang the whole run.
const DEADLINE: Duration = Duration::from_secs(180);

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(5);

/// One run of a program.
#[derive(Debug)]
pub struct Program {
    command: Command,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
}

/// What a program printed.
#[derive(Debug)]
pub struct Printed {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Printed {
    /// Both streams, for a search that does not care which one a client chose.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl Program {
    /// The program called `name`, found as [`tools::find`] finds it.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn new(name: &str) -> Result<Self> {
        Ok(Self { command: Command::new(tools::find(name)?), stdin: None, deadline: DEADLINE })
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Gives the program this text to read. Without it, its standard input is empty.
    #[must_use]
    pub fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// Allows another time than the usual three minutes.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it cannot be started or passes its deadline (it is then killed).
    pub fn run(mut self) -> Result<Printed> {
        let name = format!("{:?}", self.command);
        // Files and not pipes: a program that fills a pipe nobody reads would wait for ever.
        let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let stdin = match &self.stdin {
            None => Stdio::null(),
            Some(text) => {
                let mut file = tempfile::tempfile()?;
                file.write_all(text)?;
                file.seek(SeekFrom::Start(0))?;
                Stdio::from(file)
            }
        };
        let mut child = self
            .command
            .stdin(stdin)
            .stdout(Stdio::from(out.try_clone()?))
            .stderr(Stdio::from(err.try_clone()?))
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > self.deadline {
                child.kill()?;
                child.wait()?;
                bail!(
                    "{name} did not finish within {:?}\n{}{}",
                    self.deadline,
                    text_of(&mut out)?,
                    text_of(&mut err)?
                );
            }
            std::thread::sleep(POLL);
        };
        Ok(Printed { status, stdout: text_of(&mut out)?, stderr: text_of(&mut err)? })
    }

    /// Runs it and demands success.
    ///
    /// # Errors
    /// As [`Program::run`], and when it ends with a failure; the error holds what it printed.
    pub fn succeed(self) -> Result<Printed> {
        let name = format!("{:?}", self.command);
        let printed = self.run()?;
        if !printed.status.success() {
            bail!("{name} ended with {}\n{}", printed.status, printed.all());
        }
        Ok(printed)
    }

    /// Runs it and demands that it fails, with one of `words` (compared without case) in what it prints.
    ///
    /// # Errors
    /// As [`Program::run`], and when it succeeds or fails for another reason.
    pub fn refused(self, words: &[&str]) -> Result<Printed> {
        let name = format!("{:?}", self.command);
        let printed = self.run()?;
        let all = printed.all();
        if printed.status.success() {
            bail!("{name} should have been refused\n{all}");
        }
        let lower = all.to_lowercase();
        if !words.iter().any(|word| lower.contains(&word.to_lowercase())) {
            bail!("{name} failed without saying any of {words:?}\n{all}");
        }
        Ok(printed)
    }
}

fn text_of(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
