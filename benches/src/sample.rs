//! What one round cost: time, processor time of server and client, memory, flushes, and how long each operation took.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Clock ticks of `/proc/PID/stat` in a second: fixed on Linux, whatever the kernel's own rate.
const TICKS_PER_SEC: f64 = 100.0;

/// How often memory is looked at while a round runs.
const MEMORY_INTERVAL: Duration = Duration::from_millis(50);

/// What a round did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    /// Operations that were answered as they should be.
    pub(crate) operations: u64,
    /// Bytes of content moved.
    pub(crate) bytes: u64,
    /// Microseconds that single operations took, in no order; empty where that says nothing.
    pub(crate) latencies_us: Vec<f64>,
}

impl Work {
    /// One more operation, which began at `since`.
    pub(crate) fn count(&mut self, since: Instant, bytes: u64) {
        self.operations += 1;
        self.bytes += bytes;
        self.latencies_us.push(since.elapsed().as_secs_f64() * 1e6);
    }

    /// Takes another worker's share in.
    pub(crate) fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.latencies_us.extend(other.latencies_us);
    }
}

/// One round of one subject.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// Processor seconds of the server and its children; `None` where it is not ours to look at.
    pub(crate) server_cpu_sec: Option<f64>,
    /// Processor seconds of this process.
    pub(crate) client_cpu_sec: f64,
    /// Highest `RssAnon` seen.
    pub(crate) memory_kib: Option<u64>,
    /// Calls of `fsync`, `fdatasync` and their like, where they were counted.
    pub(crate) flushes: Option<u64>,
    /// A figure of its own that a row compares, such as one latency over another.
    pub(crate) extra: Option<f64>,
}

/// The processes of one server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Processes(Vec<u32>);

impl Processes {
    /// `pid` and all that descends from it now.
    pub(crate) fn tree(pid: u32) -> Result<Self> {
        let mut parents = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // A process may end between the listing and the look.
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{child}/stat")) else { continue };
            if let Ok(parent) = field(&stat, 1) {
                parents.push((child, parent));
            }
        }
        let mut found = vec![pid];
        let mut next = 0;
        while let Some(parent) = found.get(next).copied() {
            found.extend(parents.iter().filter(|(_, of)| *of == f64::from(parent)).map(|(child, _)| *child));
            next += 1;
        }
        Ok(Self(found))
    }

    /// This process.
    pub(crate) fn own() -> Self {
        Self(vec![std::process::id()])
    }

    /// Processor seconds so far, user and system, of all threads that are and were.
    pub(crate) fn cpu_sec(&self) -> Result<f64> {
        let mut ticks = 0.0;
        for pid in &self.0 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .with_context(|| format!("process {pid} is gone"))?;
            ticks += field(&stat, 11)? + field(&stat, 12)?;
        }
        Ok(ticks / TICKS_PER_SEC)
    }

    /// Private memory in KiB.
    pub(crate) fn memory_kib(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in &self.0 {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
                .with_context(|| format!("process {pid} is gone"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            sum += number.context("RssAnon")?;
        }
        Ok(sum)
    }
}

/// A field of a stat line, counted from the one after the name, which may hold spaces: the state is 0, the parent 1,
/// utime and stime are 11 and 12.
fn field(stat: &str, index: usize) -> Result<f64> {
    let (_, rest) = stat.rsplit_once(')').context("a stat line")?;
    rest.split_whitespace().nth(index).and_then(|field| field.parse().ok()).context("a number in a stat line")
}

/// Does the work and weighs it. `server` is empty when it is not ours to look at.
pub(crate) fn measure(server: &Processes, work: impl FnOnce() -> Result<Work>) -> Result<Sample> {
    let own = Processes::own();
    let known = !server.0.is_empty();
    let (done, peak_kib) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        if known {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    // A server that ended shows in the work itself.
                    peak_kib.fetch_max(server.memory_kib().unwrap_or(0), Ordering::AcqRel);
                    std::thread::park_timeout(MEMORY_INTERVAL);
                }
            });
        }
        let weighed = weigh(server, &own, work);
        done.store(true, Ordering::Release);
        let mut sample = weighed?;
        let last = if known { server.memory_kib()? } else { 0 };
        sample.memory_kib = known.then(|| peak_kib.load(Ordering::Acquire).max(last));
        Ok(sample)
    })
}

fn weigh(server: &Processes, own: &Processes, work: impl FnOnce() -> Result<Work>) -> Result<Sample> {
    let (server_before, own_before) = (server.cpu_sec()?, own.cpu_sec()?);
    let started = Instant::now();
    let Work { operations, bytes, mut latencies_us } = work()?;
    let seconds = started.elapsed().as_secs_f64();
    let server_cpu = server.cpu_sec()? - server_before;
    latencies_us.sort_by(f64::total_cmp);
    Ok(Sample {
        seconds,
        operations,
        bytes,
        p50_us: quantile(&latencies_us, 0.50),
        p99_us: quantile(&latencies_us, 0.99),
        server_cpu_sec: (!server.0.is_empty()).then_some(server_cpu),
        client_cpu_sec: own.cpu_sec()? - own_before,
        ..Sample::default()
    })
}

/// The value below which that part of `sorted` lies.
pub(crate) fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index below the length")]
    let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().checked_sub(1)?);
    sorted.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), Some(51.0));
        assert_eq!(quantile(&values, 0.99), Some(100.0));
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_child_belongs_to_its_parent_s_processes_and_busy_time_is_counted() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let tree = Processes::tree(std::process::id()).unwrap();
        assert!(tree.0.contains(&child.id()) && tree.0.contains(&std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
        let sample = measure(&Processes::own(), || {
            let started = Instant::now();
            let mut work = Work::default();
            while started.elapsed() < Duration::from_millis(120) {
                std::hint::black_box(work.operations);
            }
            work.count(started, 5);
            Ok(work)
        })
        .unwrap();
        assert!(sample.seconds >= 0.12 && sample.client_cpu_sec > 0.0 && sample.memory_kib > Some(0));
        assert_eq!((sample.operations, sample.bytes), (1, 5));
        assert!(sample.p50_us >= Some(120_000.0));
    }

    #[test]
    fn the_name_in_a_stat_line_may_hold_anything() {
        let stat = "7 (a) b) c) S 3 0 0 0 0 0 0 0 0 0 12 34 0 0";
        assert_eq!(
            (field(stat, 1).unwrap(), field(stat, 11).unwrap(), field(stat, 12).unwrap()),
            (3.0, 12.0, 34.0)
        );
    }
}
