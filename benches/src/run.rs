//! Running a case: start every subject, fill it, then one round of each in turn, so that what disturbs the machine
//! disturbs all alike.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal};
use taffrail_tests::tools;

use crate::goal::Measured;
use crate::plan::Plan;
use crate::sample::Sample;
use crate::target::{Kind, Subject};
use crate::workload::{Case, Flushes, Rounds};

/// How long strace may take to take hold of a process.
const TRACE_DEADLINE: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(20);

/// The calls that make the disk durable. The last one may also be a plain write; the engine uses it for durable ones alone.
const FLUSHES: [&str; 6] = ["fsync", "fdatasync", "syncfs", "sync", "msync", "pwritev2"];

/// Numbers of rounds that do not count begin here.
const UNCOUNTED_ROUND: u32 = 1 << 20;

/// The number of the round under strace.
const TRACED_ROUND: u32 = 1 << 21;

/// What is told after each round that counts.
pub(crate) type Tell<'t> = dyn FnMut(&str, u32, &Sample) -> Result<()> + 't;

/// One subject and its rounds; the rounds borrow the subject.
struct Lane<'a> {
    subject: &'a Subject,
    rounds: Result<Rounds<'a>, String>,
    samples: Vec<Sample>,
}

impl Lane<'_> {
    /// One round. A subject that fails once is out: its figures would not be those of the same work.
    fn run(&mut self, number: u32) -> Option<Sample> {
        let rounds = self.rounds.as_mut().ok()?;
        match rounds(number) {
            Ok(sample) => Some(sample),
            Err(error) => {
                self.rounds = Err(format!("failed: {error:#}"));
                None
            }
        }
    }
}

/// Runs a case on all its subjects. A subject that is not installed or fails is in the answer with the reason.
pub(crate) fn run(case: &Case, plan: &Plan, tell: &mut Tell<'_>) -> Result<Vec<Measured>> {
    let mut kinds = case.subjects.clone();
    // A registry that somebody named runs wherever registries are compared.
    if kinds.contains(&Kind::V3) {
        kinds.extend((0..plan.others.len()).map(Kind::Other));
    }
    let started: Vec<(Kind, Result<Subject, String>)> = kinds
        .into_iter()
        .map(|kind| (kind, Subject::start(kind, plan).map_err(|error| format!("{error:#}"))))
        .collect();
    let mut lanes: Vec<Lane<'_>> = started
        .iter()
        .filter_map(|(_, subject)| subject.as_ref().ok())
        .map(|subject| {
            let rounds = (case.prepare)(plan, subject).map_err(|error| format!("failed: {error:#}"));
            Lane { subject, rounds, samples: Vec::new() }
        })
        .collect();
    for number in 0..plan.warm_up {
        for lane in &mut lanes {
            lane.run(UNCOUNTED_ROUND + number);
        }
    }
    for number in 0..plan.rounds {
        // Nobody always comes after the same neighbour.
        let first = usize::try_from(number)? % lanes.len().max(1);
        for index in 0..lanes.len() {
            let at = (first + index) % lanes.len();
            if let Some(lane) = lanes.get_mut(at)
                && let Some(sample) = lane.run(number)
            {
                tell(&lane.subject.name, number, &sample)?;
                lane.samples.push(sample);
            }
        }
    }
    if case.flushes != Flushes::Uncounted {
        for lane in &mut lanes {
            count_flushes(lane, case.flushes)?;
        }
    }
    let measured = lanes
        .into_iter()
        .map(|lane| Measured { kind: lane.subject.kind, samples: lane.rounds.map(|_| lane.samples) });
    let mut all: Vec<Measured> = measured.collect();
    for (kind, subject) in started {
        match subject {
            Ok(subject) => subject.end()?,
            Err(why) => all.push(Measured { kind, samples: Err(why) }),
        }
    }
    Ok(all)
}

/// One more round under strace, whose flushes per operation go to every sample.
fn count_flushes(lane: &mut Lane<'_>, flushes: Flushes) -> Result<()> {
    let counted = lane.samples.iter().any(|sample| sample.flushes.is_some());
    if counted && flushes == Flushes::Store {
        return Ok(());
    }
    // What cannot be traced stays without the figure.
    let (Some(pid), Ok(_)) = (lane.subject.traceable(), tools::find("strace")) else { return Ok(()) };
    let report = lane.subject.dir.join("strace");
    let trace = Trace::start(pid, &report)?;
    let sample = lane.run(TRACED_ROUND);
    trace.end()?;
    let Some(traced) = sample else { return Ok(()) };
    let flushes = flushes_of(&std::fs::read_to_string(&report)?);
    for sample in &mut lane.samples {
        let share = flushes as f64 / traced.operations.max(1) as f64 * sample.operations as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of calls")]
        let share = share.round() as u64;
        sample.flushes = Some(share);
    }
    Ok(())
}

/// strace at work on one process and its threads.
struct Trace(Child);

impl Trace {
    fn start(pid: u32, report: &std::path::Path) -> Result<Self> {
        let child = Command::new(tools::find("strace")?)
            .args(["-f", "-c", "-e"])
            .arg(format!("trace={}", FLUSHES.join(",")))
            .arg("-o")
            .arg(report)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting strace")?;
        let mut trace = Self(child);
        let started = Instant::now();
        while !is_traced(pid)? {
            ensure!(trace.0.try_wait()?.is_none(), "strace may not trace process {pid}");
            ensure!(started.elapsed() < TRACE_DEADLINE, "strace does not take hold of process {pid}");
            std::thread::sleep(POLL);
        }
        Ok(trace)
    }

    /// Lets go of the process; the report is written then.
    fn end(mut self) -> Result<()> {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        rustix::process::kill_process(pid, Signal::INT)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // After a round that failed: nobody must stay traced. One that has ended is not harmed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether every thread of a process has a tracer.
fn is_traced(pid: u32) -> Result<bool> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the look.
        let Ok(status) = std::fs::read_to_string(task?.path().join("status")) else { continue };
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).map_or("0", str::trim);
        if tracer == "0" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The calls in strace's table: share, seconds, microseconds per call, calls, perhaps errors, name.
fn flushes_of(report: &str) -> u64 {
    report
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            FLUSHES.contains(words.last()?).then(|| words.get(3)?.parse::<u64>().ok())?
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload;

    /// The cases that need no server, so that the harness cannot rot unseen.
    #[test]
    fn the_engine_s_cases_run_and_their_goals_are_judged() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { dir: dir.path().to_path_buf(), items: 8, rounds: 2, ..crate::plan::tests::plan() };
        for name in ["engine-mount", "gc-large"] {
            let rows = workload::rows();
            let case = rows.iter().flat_map(|row| &row.cases).find(|case| case.name == name).unwrap();
            let mut told = Vec::new();
            let mut tell = |subject: &str, round: u32, sample: &Sample| {
                assert!(sample.operations > 0 && sample.seconds > 0.0, "{name} {subject}");
                told.push((subject.to_owned(), round));
                Ok(())
            };
            let measured = run(case, &plan, &mut tell).unwrap();
            assert_eq!(told.len(), case.subjects.len() * 2);
            // Who begins takes turns.
            assert_eq!(told.first().unwrap().0, case.subjects[0].name(&plan));
            assert_eq!(told.last().unwrap().0, case.subjects[0].name(&plan));
            for goal in &case.goals {
                assert!(goal.judge(&measured, &plan).value.is_ok(), "{name}");
            }
        }
    }

    #[test]
    fn a_subject_that_is_not_here_is_in_the_answer_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { dir: dir.path().to_path_buf(), ..crate::plan::tests::plan() };
        let rows = workload::rows();
        let case = rows.iter().flat_map(|row| &row.cases).find(|case| case.name == "tokens").unwrap();
        let case = Case {
            name: "other",
            about: case.about,
            subjects: vec![Kind::Other(0)],
            goals: Vec::new(),
            flushes: Flushes::Uncounted,
            prepare: case.prepare,
        };
        let measured = run(&case, &plan, &mut |_, _, _| Ok(())).unwrap();
        assert!(measured[0].samples.as_ref().is_err_and(|why| why.contains("a named registry")));
    }

    #[test]
    fn the_calls_of_strace_s_table_are_added_up() {
        let report = "% time     seconds  usecs/call     calls    errors syscall\n\
                      ------ ----------- ----------- --------- --------- ----------------\n \
                      90.00    0.040000          11      3000           fsync\n \
                      10.00    0.001000          11        50         2 fdatasync\n\
                      ------ ----------- ----------- --------- --------- ----------------\n\
                      100.00    0.041000          11      3050         2 total\n";
        assert_eq!(flushes_of(report), 3050);
        assert_eq!(flushes_of(""), 0);
    }
}
