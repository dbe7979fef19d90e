//! Everything that the continuous integration checks, in the order in which a mistake is cheapest to find.
//!
//! A failed step does not stop the later ones: one run shows all there is to mend. The last line of the output is
//! `N passed, N failed, N skipped`, alone.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::fuzz;
use crate::step::{self, Count, Done, Step, Tally};
use crate::tooling;

/// Rounds of kill -9 in one run.
pub(crate) const KILL_CYCLES: u32 = 100;
/// Rounds of the power cut in one run, half on the ring and half on threads.
pub(crate) const POWERCUT_ROUNDS: u32 = 20;
/// Requests of the soak in one run.
pub(crate) const SOAK_EVENTS: u32 = 10_000;
/// Seconds for each check of the engine's protocol; there are a dozen.
pub(crate) const SHUTTLE_SECONDS: u32 = 4;
/// Samples of each side of a comparison of times.
pub(crate) const TIMING_SAMPLES: u32 = 400;
/// Seconds for each fuzz target.
pub(crate) const FUZZ_SECONDS: u32 = 20;

/// The engine with all of its back ends.
const ENGINE: [&str; 6] =
    ["--package", "taffrail-blobstore", "--features", "uring", "--locked", "--no-fail-fast"];

/// The tests of all packages but the two that have steps of their own.
const TESTS: [&str; 7] = [
    "--workspace",
    "--exclude",
    "taffrail-blobstore",
    "--exclude",
    "taffrail-tests",
    "--locked",
    "--no-fail-fast",
];

/// Tools whose absence is no failure, even where nothing may be skipped: the words in the `SKIPPED` line, and why.
const EXCUSED: [(&str, &str); 1] = [(
    "conformance is not installed",
    "not every module proxy has it; our own check of the same demands ran in its place",
)];

/// Sets the machine up and runs every check.
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    let missing = tooling::set_up()?;
    let mut steps = vec![
        Step::cargo("fmt", &["fmt", "--all", "--check"]),
        Step::cargo(
            "clippy",
            &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
        ),
        // Not the advisories: their database cannot be had by name from a package registry.
        Step::cargo("deny", &["deny", "check", "bans", "licenses", "sources"]),
        engine(),
        engine_without_ring("EPERM"),
        engine_without_ring("ENOSYS"),
        shuttle(SHUTTLE_SECONDS)?,
        Step::tests("tests", &TESTS),
        Step::tests(
            "whole server",
            &[
                "--package",
                "taffrail-tests",
                "--locked",
                "--no-fail-fast",
                "--lib",
                "--test",
                "server",
                "--test",
                "security",
                "--test",
                "poison",
                "--test",
                "io",
                "--test",
                "offline",
                "--test",
                "scrub",
                "--test",
                "rot",
            ],
        ),
        conformance(),
        clients(),
        kill(KILL_CYCLES),
        powercut(POWERCUT_ROUNDS),
        soak(SOAK_EVENTS),
        overload(),
    ];
    steps.extend(fuzz::steps(FUZZ_SECONDS)?);
    let done = run_all(&steps)?;
    for line in &missing {
        println!("missing: {line}");
    }
    println!("took {:.0?}", started.elapsed());
    finish(&done)
}

/// Runs a few steps and counts them.
pub(crate) fn run_some(steps: &[Step]) -> Result<()> {
    finish(&run_all(steps)?)
}

/// The engine's tests; they print their seeds and how many crash points they went through.
fn engine() -> Step {
    Step::tests("engine", &[&ENGINE[..], &["--", "--nocapture"]].concat())
}

/// The engine's tests where `io_uring` is forbidden, as container runtimes forbid it; the tests of the ring check that it is.
fn engine_without_ring(errno: &str) -> Step {
    let sandbox =
        ["run", "--quiet", "--package", "taffrail-tests", "--locked", "--example", "without_uring", "--"];
    let args = [&sandbox[..], &[errno, "cargo", "test"], &ENGINE[..]].concat();
    let step = Step::cargo(&format!("engine, {errno}"), &args).env("TAFFRAIL_RING", "forbidden");
    // The crash sweep runs on the simulated disk, with or without.
    Step { count: Count::Tests, ..step }.env("TAFFRAIL_CRASH_POINTS", 2_000)
}

/// The engine's protocol under the model checker: a build of its own, in a folder of its own, so that neither build undoes the other.
pub(crate) fn shuttle(seconds: u32) -> Result<Step> {
    let args = [
        "--package",
        "taffrail-blobstore",
        "--locked",
        "--test",
        "shuttle",
        "--no-fail-fast",
        "--",
        "--nocapture",
        "--test-threads=2",
    ];
    let step = Step::tests("shuttle", &args)
        .env("RUSTFLAGS", "--cfg shuttle")
        .env("CARGO_TARGET_DIR", step::target_dir()?.join("shuttle").display())
        .env("TAFFRAIL_SHUTTLE_SECONDS", seconds);
    Ok(step)
}

/// The engine's crash sweep, for as long as one likes.
pub(crate) fn crash(seconds: u32) -> Step {
    let args =
        ["--package", "taffrail-blobstore", "--locked", "--test", "engine", "crash", "--", "--nocapture"];
    Step::tests("crash", &args).env("TAFFRAIL_CRASH_SECONDS", seconds)
}

/// The OCI conformance program.
pub(crate) fn conformance() -> Step {
    whole_server("conformance", "conformance")
}

/// The real clients.
pub(crate) fn clients() -> Step {
    whole_server("clients", "clients")
}

/// Kill -9 under load.
pub(crate) fn kill(cycles: u32) -> Step {
    whole_server("kill -9", "kill").env("TAFFRAIL_KILL_CYCLES", cycles)
}

/// Collection without pause beside clients.
pub(crate) fn soak(events: u32) -> Step {
    let args = ["--package", "taffrail-tests", "--locked", "--test", "soak", "--", "--nocapture"];
    Step::tests("soak", &args).env("TAFFRAIL_SOAK_EVENTS", events)
}

/// Too much of everything, in small: what is no time, rate or memory is judged.
fn overload() -> Step {
    let args = ["run", "--package", "taffrail-tests", "--locked", "--bin", "taffrail-load", "--", "--quick"];
    Step::cargo("overload", &args).env("TAFFRAIL_TOOL_DIRS", tooling::tool_dir().to_string_lossy())
}

/// The power cut under load.
pub(crate) fn powercut(rounds: u32) -> Step {
    whole_server("power cut", "powercut").env("TAFFRAIL_POWERCUT_ROUNDS", rounds)
}

/// The times of answers, of an optimised server. No part of [`run`]: times are of an idle machine or of none.
pub(crate) fn timing(samples: u32) -> Step {
    let args = ["run", "--release", "--package", "taffrail-tests", "--locked", "--example", "timing", "--"];
    Step::cargo("timing", &[&args[..], &[&samples.to_string()]].concat())
        .env("TAFFRAIL_TEST_PROFILE", "release")
}

fn whole_server(name: &str, test: &str) -> Step {
    Step::tests(name, &["--package", "taffrail-tests", "--locked", "--test", test, "--no-fail-fast"])
        .env("TAFFRAIL_TOOL_DIRS", tooling::tool_dir().to_string_lossy())
}

fn run_all(steps: &[Step]) -> Result<Vec<Done>> {
    steps.iter().map(Step::run).collect()
}

/// Prints the summary; an error when something failed, or was skipped where nothing may be.
fn finish(done: &[Done]) -> Result<()> {
    for step in done.iter().filter(|step| !step.reason.is_empty()) {
        println!("\n=== why {} failed", step.name);
        for line in &step.reason {
            println!("{line}");
        }
    }
    println!("\n=== summary");
    let mut total = Tally::default();
    for step in done {
        let Tally { passed, failed, skipped } = step.tally;
        println!(
            "{:<16} {passed:>5} passed {failed:>3} failed {skipped:>3} skipped {:>7.1} s",
            step.name,
            step.took.as_secs_f64()
        );
        total = total + step.tally;
    }
    let mut unexcused = total.skipped;
    for line in done.iter().flat_map(|step| &step.skips) {
        match EXCUSED.iter().find(|(words, _)| line.contains(words)) {
            None => println!("{line}"),
            Some((_, why)) => {
                unexcused = unexcused.saturating_sub(1);
                println!("{line} (excused: {why})");
            }
        }
    }
    // Every skip of a tool is a check that was not made; on the machine that guards the branch that is a failure.
    let strict = tooling::on_ci() && unexcused > 0;
    if strict {
        println!("a skipped check counts as a failure when CI=true");
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    if total.failed > 0 || strict {
        // The count stays the last line of the output.
        std::process::exit(1);
    }
    if total.passed == 0 {
        bail!("nothing was checked");
    }
    Ok(())
}
