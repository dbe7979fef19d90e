//! `taffrail-load`: too much of everything, and what the server makes of it (L-01 to L-11 and L-15 to L-19 of docs/requirements.md).
//!
//! `cargo xtask load`. Each test starts a server of its own, does to it what its number says, and gives rows of a table: what
//! was demanded, what was seen, and whether that is met. The program ends with an error when a row is not.
//!
//! What must stay true: with `--quick` no row is decided by a time, a rate or a memory: sizes are small, the server is the
//! debug build, and others use the machine. Those figures are shown and judged in the full run only.
#![expect(clippy::print_stdout, reason = "a command-line tool speaks on standard output")]

mod abandoned;
mod bodies;
mod client;
mod drained;
mod excess;
mod files;
mod flood;
mod heads;
mod idle;
mod pages;
mod plan;
mod pulls;
mod pushes;
mod readers;
mod row;
mod senders;
mod site;
mod stalled;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use plan::Plan;
use row::{Outcome, Row};

#[derive(Debug, Parser)]
#[command(name = "taffrail-load", about = "Overload tests of the whole server, each with its figure")]
struct Arguments {
    /// Only tests of these numbers, such as `L-03`; may be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Small sizes and short timeouts: about a minute in all. Times, rates and memory are then shown and not judged.
    #[arg(long)]
    quick: bool,
    /// Seconds of the overload of L-11; five minutes by default.
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Length of each push of L-10 in MiB; 50 by default. Two hundred of them lie on the disk at once.
    #[arg(long, value_name = "MIB")]
    push_mib: Option<usize>,
    /// Keep each row as a line of JSON in this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The folder for all data; a temporary one of the system by default.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Only list the tests.
    #[arg(long)]
    list: bool,
}

/// One test.
struct Case {
    number: &'static str,
    what: &'static str,
    run: fn(&Plan) -> Result<Vec<Row>>,
}

const CASES: [Case; 16] = [
    Case { number: "L-01", what: "idle connections", run: idle::plain },
    Case { number: "L-02", what: "idle connections over TLS 1.3", run: idle::tls },
    Case { number: "L-03", what: "heads that trickle in", run: senders::slow_heads },
    Case { number: "L-04", what: "bodies that trickle in", run: senders::slow_bodies },
    Case { number: "L-05", what: "readers that take nothing", run: readers::run },
    Case { number: "L-06", what: "bounds on heads", run: heads::run },
    Case { number: "L-07", what: "bounds on bodies", run: bodies::run },
    Case { number: "L-08", what: "a flood of connections from one address", run: flood::run },
    Case { number: "L-09", what: "pulls at once", run: pulls::run },
    Case { number: "L-10", what: "pushes at once", run: pushes::run },
    Case { number: "L-11", what: "several times more requests than can be answered", run: excess::run },
    Case { number: "L-15", what: "abandoned uploads", run: abandoned::run },
    Case { number: "L-16", what: "SIGTERM under load", run: drained::run },
    Case { number: "L-17", what: "a database that stalls", run: stalled::run },
    Case { number: "L-18", what: "pages of a large catalog", run: pages::run },
    Case { number: "L-19", what: "few files", run: files::run },
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let chosen: Vec<&Case> = CASES
        .iter()
        .filter(|case| arguments.only.is_empty() || arguments.only.iter().any(|only| only == case.number))
        .collect();
    ensure!(!chosen.is_empty(), "no test has such a number; --list shows them");
    if arguments.list {
        chosen.iter().for_each(|case| println!("{}  {}", case.number, case.what));
        return Ok(());
    }
    let plan = plan(&arguments)?;
    println!("server: {}; open files: {}", taffrail_tests::binary::server()?.display(), plan.files_max);
    let mut rows = Vec::new();
    for case in chosen {
        let began = Instant::now();
        let done = (case.run)(&plan).unwrap_or_else(|error| {
            vec![Row::held(case.number, case.what, "the test runs to its end", format!("{error:#}"), false)]
        });
        println!("{} {} took {:.1?}", case.number, case.what, began.elapsed());
        done.iter().for_each(|row| println!("{row}"));
        rows.extend(done);
    }
    println!("\n{}", row::table(&rows));
    if let Some(file) = &arguments.json {
        let lines: String = rows.iter().map(|row| format!("{}\n", row.json())).collect();
        std::fs::write(file, lines).with_context(|| file.display().to_string())?;
    }
    let count = |outcome| rows.iter().filter(|row| row.outcome == outcome).count();
    for row in rows.iter().filter(|row| row.outcome == Outcome::Skipped) {
        taffrail_tests::tools::skip_part(&format!("{} {}: {}", row.number, row.what, row.figure))?;
    }
    println!(
        "{} met, {} not met, {} skipped, {} noted",
        count(Outcome::Met),
        count(Outcome::NotMet),
        count(Outcome::Skipped),
        count(Outcome::Noted)
    );
    ensure!(count(Outcome::NotMet) == 0, "{} demands are not met", count(Outcome::NotMet));
    Ok(())
}

fn plan(arguments: &Arguments) -> Result<Plan> {
    // The servers inherit what is allowed here.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let files_max = limit.maximum.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let plan = if arguments.quick { Plan::quick(files_max)? } else { Plan::full(files_max)? };
    Ok(Plan {
        excess_secs: arguments.seconds.unwrap_or(plan.excess_secs),
        push_bytes: arguments.push_mib.map_or(plan.push_bytes, |mib| mib << 20),
        dir: arguments.dir.clone().unwrap_or(plan.dir),
        ..plan
    })
}
