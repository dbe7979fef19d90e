//! `taffrail-bench`: registries side by side over HTTP, the engine beside what the disk can do, and the table of goals.
//!
//! No row special-cases a server, and every server runs with its defaults or what its documentation recommends.
#![expect(clippy::print_stdout, reason = "a command-line tool speaks on standard output")]

mod client;
mod content;
mod goal;
mod limits;
mod plan;
mod report;
mod run;
mod sample;
mod store;
mod target;
mod workload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use taffrail_blobstore::disk::uring::Ring;

use crate::plan::{Other, Plan};
use crate::report::Report;
use crate::store::{Opening, Phase};

/// The server's: what the engine keeps in memory depends on it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(
    name = "taffrail-bench",
    about = "Measures Taffrail, other registries and the machine's limits side by side"
)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Only cases whose name contains this; may be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Rounds of each server in each case.
    #[arg(long)]
    rounds: Option<u32>,
    /// Length of a large blob in MiB.
    #[arg(long, value_name = "MIB")]
    size: Option<u64>,
    /// A few seconds for each case, to see that everything works; its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Prints the table of goals at the end.
    #[arg(long)]
    goals: bool,
    /// Writes every round and verdict as a line of JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Another registry that runs already; may be repeated.
    #[arg(long, value_name = "NAME=URL[,pid=N][,user=NAME:PASSWORD]", value_parser = Other::parse)]
    target: Vec<Other>,
    /// The folder for all data: the file system that is measured.
    #[arg(long, value_name = "DIR", default_value = ".", global = true)]
    dir: PathBuf,
    /// Lists the cases.
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// The bare push, which the harness starts for itself.
    #[command(hide = true)]
    LimitReceive { path: PathBuf },
    /// Makes a store of very many small blobs in `--dir`.
    MakeStore {
        /// How many; one in a hundred is a large one.
        #[arg(long, default_value_t = 10_000_000)]
        blobs: u64,
    },
    /// Opens the store once, for the table of goals.
    #[command(hide = true)]
    OpenOnce { how: Opening },
    /// Measures opening and using the store that `make-store` made in `--dir`.
    OpenStore {
        /// One phase alone.
        #[arg(long)]
        phase: Option<Phase>,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.part {
        Some(Part::LimitReceive { path }) => return limits::receive(path),
        Some(Part::MakeStore { blobs }) => return store::make(&arguments.dir, *blobs),
        Some(Part::OpenOnce { how }) => return store::open_once(&arguments.dir, *how),
        Some(Part::OpenStore { phase: None }) => return store::measure(&arguments.dir),
        Some(Part::OpenStore { phase: Some(phase) }) => return store::measure_phase(&arguments.dir, *phase),
        None => {}
    }
    if arguments.list {
        for case in workload::rows().iter().flat_map(|row| &row.cases) {
            println!("{:<24} {}", case.name, case.about);
        }
        return Ok(());
    }
    measure(&arguments)
}

fn measure(arguments: &Arguments) -> Result<()> {
    raise_open_files()?;
    // Not in /tmp, which may be memory.
    let scratch = tempfile::Builder::new().prefix("taffrail-bench-").tempdir_in(&arguments.dir)?;
    let plan = plan(arguments, &scratch.path().canonicalize()?);
    let rows = workload::rows();
    let wanted =
        |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|part| name.contains(part));
    ensure!(
        rows.iter().flat_map(|row| &row.cases).any(|case| wanted(case.name)),
        "no case has such a name; --list names them"
    );
    let mut report = Report::new(arguments.json.as_deref())?;
    let mut facts = facts(&plan)?;
    if arguments.quick {
        facts.push(("quick", "only whether everything works; the figures mean nothing".to_owned()));
    }
    report.head(&plan, &facts)?;
    for row in &rows {
        for case in &row.cases {
            if wanted(case.name) {
                let mut tell =
                    |subject: &str, round: u32, sample: &_| report.round(case.name, subject, round, sample);
                let measured = run::run(case, &plan, &mut tell)?;
                report.case(row, case, &measured, &plan)?;
            } else {
                report.left_out(row, case, &plan);
            }
        }
        report.unmeasured(row);
    }
    if arguments.goals {
        report.goals();
    }
    Ok(())
}

fn plan(arguments: &Arguments, dir: &Path) -> Plan {
    let usual = Plan {
        rounds: 5,
        warm_up: 1,
        large_bytes: 1 << 30,
        round_time: Duration::from_secs(2),
        rest: Duration::from_secs(5),
        idle_connections: 10_000,
        concurrent_pulls: 1_000,
        items: 2_000,
        many_blobs: 10_000_000,
        dir: dir.to_path_buf(),
        others: arguments.target.clone(),
    };
    let plan = if arguments.quick {
        Plan {
            rounds: 1,
            warm_up: 0,
            large_bytes: 32 << 20,
            round_time: Duration::from_millis(200),
            rest: Duration::from_millis(200),
            idle_connections: 200,
            concurrent_pulls: 50,
            items: 40,
            many_blobs: 20_000,
            ..usual
        }
    } else {
        usual
    };
    Plan {
        rounds: arguments.rounds.unwrap_or(plan.rounds).max(1),
        large_bytes: arguments.size.map_or(plan.large_bytes, |mib| mib.max(1) << 20),
        ..plan
    }
}

/// What one must know of the machine to read the figures.
fn facts(plan: &Plan) -> Result<Vec<(&'static str, String)>> {
    let binary = taffrail_tests::binary::server()?;
    let is_debug = binary.components().any(|part| part.as_os_str() == "debug");
    let remark = if is_debug { " (a debug build: its figures mean nothing)" } else { "" };
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |rest| rest.trim_matches([' ', '\t', ':']));
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let memory =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).map_or("", str::trim).to_owned();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    Ok(vec![
        ("taffrail", format!("{}{remark}", binary.display())),
        ("processors", format!("{} x {model}", std::thread::available_parallelism()?)),
        ("memory", memory),
        ("kernel", kernel),
        ("file system", file_system(&plan.dir)?),
        ("storage.io of taffrail", back_end()),
    ])
}

/// What `storage.io: auto` comes to on this machine.
fn back_end() -> String {
    Ring::start().map_or_else(
        |reason| format!("threads ({reason})"),
        |ring| format!("uring, {} buffers", ring.buffers()),
    )
}

/// The type of the file system that holds `dir`.
fn file_system(dir: &Path) -> Result<String> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let holding = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_, point, kind) = (words.next()?, words.next()?, words.next()?);
            dir.starts_with(point).then_some((point.len(), kind))
        })
        .max_by_key(|(length, _)| *length);
    holding.map(|(_, kind)| kind.to_owned()).context("the file system of the data")
}

/// Very many connections need very many files; the servers inherit what is allowed here.
fn raise_open_files() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}
