//! What a process has used, as `/proc` tells it.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Milliseconds of a clock tick in `/proc/PID/stat`: fixed on Linux, whatever the kernel's own rate.
const TICK_MS: u64 = 10;

/// Memory of the process that is backed by no file, in bytes: what it has asked for and touched.
///
/// # Errors
/// When there is no such process.
pub fn anonymous_bytes(pid: u32) -> Result<u64> {
    status_bytes(pid, "RssAnon:")
}

/// All memory of the process that is in the machine's, in bytes: the program's own text and mapped files, too.
///
/// # Errors
/// When there is no such process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, key: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| key.to_owned())?;
    let kib: u64 = line.trim_end_matches("kB").trim().parse()?;
    Ok(kib << 10)
}

/// Processor time of all threads, in user and system mode, since the process began.
///
/// # Errors
/// When there is no such process.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("a name")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * TICK_MS))
}
