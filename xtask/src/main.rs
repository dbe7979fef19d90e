//! Repository tasks: `cargo xtask <task>`.
//!
//! `ci` is what the continuous integration runs, and nothing else is: what passes here passes there. The other tasks
//! are its parts, with numbers to choose.
#![expect(clippy::print_stdout, reason = "a command-line tool speaks on standard output")]

mod bench;
mod ci;
mod fuzz;
mod imports;
mod load;
mod step;
mod tidy;
mod tooling;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "xtask", about = "Tasks of this repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what is missing (as root) and run every check; the last line counts them.
    Ci,
    /// Install by name what the tests need and this machine lacks, or say what is missing.
    Setup,
    /// Run docker, skopeo, buildah, podman, ctr, crane, oras and helm against the server.
    Clients,
    /// Run the OCI conformance program against the server.
    Conformance,
    /// Kill the server with -9 under load, and check what it acknowledged.
    Kill {
        /// Rounds.
        #[arg(long, default_value_t = ci::KILL_CYCLES)]
        cycles: u32,
    },
    /// Push, mount, pull, move tags and delete while garbage is collected without pause, and check what was promised.
    Soak {
        /// Requests.
        #[arg(long, default_value_t = ci::SOAK_EVENTS)]
        events: u32,
    },
    /// Run the engine's protocol under a model checker, which chooses who goes on.
    Shuttle {
        /// Seconds for each check.
        #[arg(long, default_value_t = ci::SHUTTLE_SECONDS)]
        seconds: u32,
    },
    /// Cut the power of the server's disk under load, and check what it acknowledged.
    Powercut {
        /// Rounds.
        #[arg(long, default_value_t = ci::POWERCUT_ROUNDS)]
        rounds: u32,
    },
    /// Crash the engine at every write of random histories.
    Crash {
        /// Seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Measure Taffrail beside other registries and the machine's limits; `-- --help` says how to choose.
    Bench {
        /// What goes to `taffrail-bench`, such as `--goals`, `--quick`, `--only pull`, `--json FILE`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Make a store of very many small blobs, for `bench -- open-store`.
    MakeStore {
        /// How many.
        #[arg(long, default_value_t = 10_000_000)]
        blobs: u64,
        /// In which folder; by default the one of the other measurements.
        #[arg(long)]
        dir: Option<String>,
    },
    /// Overload the server in every way that docs/requirements.md numbers with an L, each with its figure; `-- --help` says how
    /// to choose.
    Load {
        /// What goes to `taffrail-load`, such as `--only L-03`, `--quick`, `--list`, `--json FILE`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure whether the time of an answer tells what its words do not: known names, hidden projects, blobs of others.
    Timing {
        /// Samples of each side of a comparison.
        #[arg(long, default_value_t = ci::TIMING_SAMPLES)]
        samples: u32,
    },
    /// Hold the source against the rules of docs/ARCHITECTURE.md: imports, and words in the wrong place.
    Tidy,
    /// Run every fuzz target.
    Fuzz {
        /// Seconds for each target.
        #[arg(long, default_value_t = ci::FUZZ_SECONDS)]
        seconds: u32,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Ci => ci::run(),
        Task::Setup => tooling::set_up().map(|_| ()),
        Task::Clients => ci::run_some(&[ci::clients()]),
        Task::Conformance => ci::run_some(&[ci::conformance()]),
        Task::Kill { cycles } => ci::run_some(&[ci::kill(cycles)]),
        Task::Powercut { rounds } => ci::run_some(&[ci::powercut(rounds)]),
        Task::Soak { events } => ci::run_some(&[ci::soak(events)]),
        Task::Shuttle { seconds } => ci::run_some(&[ci::shuttle(seconds)?]),
        Task::Crash { seconds } => ci::run_some(&[ci::crash(seconds)]),
        Task::Bench { arguments } => bench::run(&arguments),
        Task::MakeStore { blobs, dir } => bench::make_store(blobs, dir),
        Task::Load { arguments } => load::run(&arguments),
        Task::Timing { samples } => ci::run_some(&[ci::timing(samples)]),
        Task::Tidy => tidy(),
        Task::Fuzz { seconds } => ci::run_some(&fuzz::steps(seconds)?),
    }
}

fn tidy() -> Result<()> {
    let sentences = [imports::violations()?, tidy::violations()?].concat();
    sentences.iter().for_each(|sentence| println!("{sentence}"));
    anyhow::ensure!(sentences.is_empty(), "{} rules broken", sentences.len());
    Ok(())
}
