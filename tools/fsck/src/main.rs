//! `taffrail-fsck`: checks, inspects, measures, repairs and collects a store while no server runs on it.
//!
//! What must stay true: `check`, `inspect` and `stats` never open the store and never write; they read the format only, so that a
//! mistake of the engine cannot hide from them. `repair` writes new files and keeps what they replace; `gc` lets the engine delete
//! what nothing links.

mod blobs;
mod check;
mod checkpoint;
mod columns;
mod contents;
#[cfg(test)]
mod crash_tests;
mod estimate;
mod finding;
mod gc;
mod inspect;
mod progress;
mod references;
mod repair;
mod space;
mod stats;
mod superblocks;
mod survey;
mod usage;
mod window;

use std::io::{self, Write as _};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::format::SegmentId;

use crate::blobs::Depth;
use crate::check::{CheckError, Checked};
use crate::estimate::SAMPLE_BYTES;
use crate::finding::{Findings, Verdict};
use crate::inspect::{Form, Wanted};
use crate::progress::{Progress, Shown};
use crate::references::{Held, Names, References};
use crate::repair::{Mode, Repaired};

/// Could not check.
const EXIT_UNCHECKED: u8 = 3;

/// Checks, inspects, measures, repairs and collects a Taffrail store that no server uses.
///
/// Exit codes: 0 clean, 1 repaired or repairable, 2 damaged (something is lost), 3 could not check.
#[derive(Debug, Parser)]
#[command(name = "taffrail-fsck", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read everything and name every damage. Never writes.
    Check {
        /// The store's folder.
        dir: PathBuf,
        /// Hash every blob as well, and hold it against its digest.
        #[arg(long)]
        deep: bool,
        /// Hold the links against what a catalog names, both ways: the file that `taffrail admin references` prints, or lines of
        /// DIGEST or REPOSITORY-KEY DIGEST. `-` is standard input.
        #[arg(long, value_name = "FILE")]
        references: Option<PathBuf>,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
        /// No progress bar, even on a terminal.
        #[arg(long)]
        quiet: bool,
    },
    /// Make a damaged store one that opens and takes writes. Keeps every file that it replaces, under damaged/.
    Repair {
        /// The store's folder. No server may use it.
        dir: PathBuf,
        /// Say what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
        /// No progress bar, even on a terminal.
        #[arg(long)]
        quiet: bool,
    },
    /// Say where the space goes: blobs, repositories, log, files. Never writes.
    Stats {
        /// The store's folder.
        dir: PathBuf,
        /// Only so many repositories, those that hold most [default: 20, with --json all].
        #[arg(long, value_name = "N")]
        top: Option<usize>,
        /// Call repositories by the names in this file, which `taffrail admin references` prints; `-` is standard input.
        #[arg(long, value_name = "FILE")]
        names: Option<PathBuf>,
        /// Read blobs, and estimate what deduplication below the blob would save.
        #[arg(long)]
        estimate_dedup: bool,
        /// Read at most so much for the estimate.
        #[arg(long, value_name = "BYTES", default_value_t = SAMPLE_BYTES, requires = "estimate_dedup")]
        sample_bytes: NonZeroU64,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
        /// No progress bar, even on a terminal.
        #[arg(long)]
        quiet: bool,
    },
    /// Delete what nothing links, at once, and give its space back, also that of small blobs in the log. Waits for no lease and no grace time: a push that was under way
    /// when the server stopped may have to send a layer again.
    Gc {
        /// The store's folder. No server may use it.
        dir: PathBuf,
        /// Say what would be freed, and write nothing.
        #[arg(long)]
        dry_run: bool,
        /// Call repositories by the names in this file, which `taffrail admin references` prints; `-` is standard input.
        #[arg(long, value_name = "FILE")]
        names: Option<PathBuf>,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
        /// No progress bar, even on a terminal.
        #[arg(long)]
        quiet: bool,
    },
    /// Print superblocks, segments, batches and records.
    Inspect {
        /// The store's folder.
        dir: PathBuf,
        /// Only this log segment: a decimal number, or the 16 hex digits of its file's name.
        #[arg(long, value_parser = parse_segment)]
        segment: Option<SegmentId>,
        /// Only batches from this offset on, in bytes.
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        from_offset: u64,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
}

fn parse_segment(text: &str) -> Result<SegmentId, String> {
    let name = if text.ends_with(".seg") { text.to_owned() } else { format!("{text}.seg") };
    SegmentId::from_file_name(&name)
        .or_else(|| text.parse().ok().map(SegmentId))
        .ok_or_else(|| "neither a number nor 16 hex digits".to_owned())
}

fn main() -> ExitCode {
    // clap's own code for a wrong command line is 2, which means "damaged" here.
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_UNCHECKED } else { 0 };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let code = match arguments.command {
        Command::Check { dir, deep, references, json, quiet } => {
            let depth = if deep { Depth::Digests } else { Depth::Checksums };
            let shown = if quiet { Shown::Never } else { Shown::OnTerminal };
            run_check(&dir, depth, references.as_deref(), json, shown)
        }
        Command::Repair { dir, dry_run, json, quiet } => {
            let mode = if dry_run { Mode::DryRun } else { Mode::Write };
            let shown = if quiet { Shown::Never } else { Shown::OnTerminal };
            run_repair(&dir, mode, json, shown)
        }
        Command::Stats { dir, top, names, estimate_dedup, sample_bytes, json, quiet } => {
            let shown = if quiet { Shown::Never } else { Shown::OnTerminal };
            let sample_bytes = Some(sample_bytes).filter(|_| estimate_dedup);
            with_names(&dir, names.as_deref(), json, |names| {
                run_stats(&dir, sample_bytes, top, names, json, shown)
            })
        }
        Command::Gc { dir, dry_run, names, json, quiet } => {
            let mode = if dry_run { Mode::DryRun } else { Mode::Write };
            let shown = if quiet { Shown::Never } else { Shown::OnTerminal };
            with_names(&dir, names.as_deref(), json, |names| run_gc(&dir, mode, names, json, shown))
        }
        Command::Inspect { dir, segment, from_offset, json } => {
            let form = if json { Form::JsonLines } else { Form::Text };
            run_inspect(&dir, &Wanted { segment, from_bytes: from_offset, form })
        }
    };
    ExitCode::from(code)
}

/// Runs what needs names with those of a file, or with none.
fn with_names(dir: &Path, file: Option<&Path>, json: bool, run: impl FnOnce(&Names) -> u8) -> u8 {
    match file.map(References::load).transpose() {
        Ok(references) => run(&references.unwrap_or_default().names),
        Err(error) => {
            print_failure(dir, &error.to_string(), EXIT_UNCHECKED, json);
            EXIT_UNCHECKED
        }
    }
}

fn run_check(dir: &Path, depth: Depth, references: Option<&Path>, json: bool, shown: Shown) -> u8 {
    // Before the store, which may take hours.
    let references = match references.map(References::load).transpose() {
        Ok(references) => references,
        Err(error) => {
            print_failure(dir, &error.to_string(), EXIT_UNCHECKED, json);
            return EXIT_UNCHECKED;
        }
    };
    let checked = ThreadsDisk::open_read_only(dir)
        .map_err(CheckError::from)
        .and_then(|disk| check::check(&disk, depth, &Progress::new(shown)));
    match checked {
        Ok(mut checked) => {
            check::report_use(dir, &mut checked.findings);
            let (contents, findings) = (&checked.survey.served, &mut checked.findings);
            let held = references.map(|references| references.hold(contents, findings));
            print_report(dir, &checked, held.as_ref(), json);
            checked.findings.verdict().exit_code()
        }
        Err(error) => {
            print_failure(dir, &error.to_string(), error.exit_code(), json);
            error.exit_code()
        }
    }
}

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "this is a binary of its own; the clock enters here")]
fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

fn run_stats(
    dir: &Path,
    sample_bytes: Option<NonZeroU64>,
    top: Option<usize>,
    names: &Names,
    json: bool,
    shown: Shown,
) -> u8 {
    match stats::stats(dir, sample_bytes, &Progress::new(shown)) {
        Ok(stats) => {
            let text = if json {
                format!("{:#}", stats.json(dir, top, names))
            } else {
                stats.text(dir, top, names).join("\n")
            };
            say(&(text + "\n"));
            stats.verdict().exit_code()
        }
        Err(error) => {
            print_failure(dir, &error.to_string(), error.exit_code(), json);
            error.exit_code()
        }
    }
}

fn run_gc(dir: &Path, mode: Mode, names: &Names, json: bool, shown: Shown) -> u8 {
    match gc::gc(dir, mode, now_ms(), &Progress::new(shown)) {
        Ok(collection) => {
            let text = if json {
                format!("{:#}", collection.json(dir, names))
            } else {
                collection.text(dir, names).join("\n")
            };
            say(&(text + "\n"));
            collection.verdict().exit_code()
        }
        Err(error) => {
            print_failure(dir, &error.to_string(), error.exit_code(), json);
            error.exit_code()
        }
    }
}

fn run_repair(dir: &Path, mode: Mode, json: bool, shown: Shown) -> u8 {
    match repair::repair(dir, mode, now_ms(), &Progress::new(shown)) {
        Ok(repaired) => {
            print_repair(dir, &repaired, json);
            repair_verdict(&repaired).exit_code()
        }
        Err(error) => {
            print_failure(dir, &error.to_string(), error.exit_code(), json);
            error.exit_code()
        }
    }
}

/// 1 when something was repaired, whatever was lost before; else what the check says.
fn repair_verdict(repaired: &Repaired) -> Verdict {
    match &repaired.after {
        Some(after) if after.findings.verdict() == Verdict::Clean => Verdict::Repairable,
        Some(after) => after.findings.verdict(),
        None => repaired.before.findings.verdict(),
    }
}

fn print_repair(dir: &Path, repaired: &Repaired, json: bool) {
    let verdict = repair_verdict(repaired);
    let state = match &repaired.after {
        Some(_) if verdict == Verdict::Repairable => "repaired",
        Some(_) | None => verdict.name(),
    };
    let left = repaired.after.as_ref().map(|after| &after.findings);
    if json {
        let document = json!({
            "store": dir.display().to_string(),
            "verdict": state,
            "exit_code": verdict.exit_code(),
            "actions": repaired.actions,
            "kept": repaired.kept,
            "found": findings_json(&repaired.before.findings),
            "findings": left.map(findings_json),
        });
        say(&format!("{document:#}\n"));
        return;
    }
    let mut lines: Vec<String> = repaired.before.findings.list.iter().map(finding::Finding::text).collect();
    let verb = if repaired.after.is_some() { "done" } else { "to do" };
    lines.extend(repaired.actions.iter().map(|action| format!("{verb:<10}  {action}")));
    lines.extend(left.iter().flat_map(|left| &left.list).map(|finding| format!("now: {}", finding.text())));
    if let Some(kept) = &repaired.kept {
        lines.push(format!("what was replaced is kept in {kept}; remove it when you need it no more"));
    }
    lines.push(format!("{}: {state}", dir.display()));
    say(&(lines.join("\n") + "\n"));
}

fn run_inspect(dir: &Path, wanted: &Wanted) -> u8 {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let inspected = ThreadsDisk::open_read_only(dir)
        .map_err(CheckError::from)
        .and_then(|disk| inspect::inspect(&disk, wanted, &mut out))
        .and_then(|()| Ok(out.flush()?));
    match inspected {
        Ok(()) => 0,
        // The reader has seen enough.
        Err(CheckError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            print_failure(dir, &error.to_string(), error.exit_code(), false);
            error.exit_code()
        }
    }
}

fn print_report(dir: &Path, checked: &Checked, held: Option<&Held>, json: bool) {
    let verdict = checked.findings.verdict();
    let text = if json {
        let document = json!({
            "store": dir.display().to_string(),
            "verdict": verdict.name(),
            "exit_code": verdict.exit_code(),
            "totals": totals(checked),
            "references": held.map(Held::json),
            "findings": findings_json(&checked.findings),
        });
        format!("{document:#}\n")
    } else {
        let served = &checked.survey.served;
        let mut lines: Vec<String> = checked.findings.list.iter().map(finding::Finding::text).collect();
        lines.extend(held.map(Held::text));
        lines.push(format!(
            "{}: {} (format {}, epoch {}, {} log segments, {} batches, {} records, {} blobs, {} links, {} upload sessions)",
            dir.display(),
            verdict.name(),
            checked.current.format,
            checked.current.epoch,
            checked.survey.segments.len(),
            checked.survey.batches,
            checked.survey.records,
            served.blobs.len(),
            served.links(),
            served.sessions.len()
        ));
        lines.join("\n") + "\n"
    };
    say(&text);
}

fn totals(checked: &Checked) -> Value {
    let served = &checked.survey.served;
    json!({
        "format": checked.current.format,
        "epoch": checked.current.epoch,
        "log_segments": checked.survey.segments.len(),
        "log_bytes": checked.survey.segments.values().map(|segment| segment.file_bytes).sum::<u64>(),
        "batches": checked.survey.batches,
        "records": checked.survey.records,
        "next_lsn": checked.survey.next_lsn,
        "blobs": served.blobs.len(),
        "blob_bytes": served.blobs.values().map(|blob| blob.len_bytes).sum::<u64>(),
        "links": served.links(),
        "sessions": served.sessions.len(),
    })
}

fn findings_json(findings: &Findings) -> Vec<Value> {
    findings.list.iter().map(finding::Finding::json).collect()
}

fn print_failure(dir: &Path, error: &str, exit_code: u8, json: bool) {
    if json {
        let verdict = match exit_code {
            EXIT_UNCHECKED => Verdict::Unchecked,
            1 => Verdict::Repairable,
            _ => Verdict::Damaged,
        };
        let document = json!({
            "store": dir.display().to_string(),
            "verdict": verdict.name(),
            "exit_code": exit_code,
            "error": error,
            "findings": [],
        });
        say(&format!("{document:#}\n"));
    }
    drop(writeln!(io::stderr(), "taffrail-fsck: {}: {error}", dir.display()));
}

/// Standard output that is closed is the reader's own wish.
fn say(text: &str) {
    drop(io::stdout().lock().write_all(text.as_bytes()));
}
