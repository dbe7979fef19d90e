//! The table of goals, row by row, and how each row is measured (docs/performance.md).
//!
//! A row has one case or several; a case runs the same rounds on each of its subjects in turn. What cannot be measured
//! yet is in the table all the same, with the reason.

mod compaction;
mod engine;
mod images;
mod lookups;
mod memory;
mod mix;
mod mount;
mod opening;
mod pages;
mod pull;
mod push;
mod tokens;

use anyhow::{Result, anyhow};

use crate::goal::Goal;
use crate::plan::Plan;
use crate::sample::{Sample, Work};
use crate::target::{Kind, Subject};

/// One round after the other of one subject.
pub(crate) type Rounds<'a> = Box<dyn FnMut(u32) -> Result<Sample> + 'a>;

/// Fills a subject with what the rounds need.
pub(crate) type Prepare = for<'a> fn(&'a Plan, &'a Subject) -> Result<Rounds<'a>>;

/// How flushes are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flushes {
    /// Not at all.
    Uncounted,
    /// By our own counter of the store, in the rounds that are timed; the others' by strace in one more round. For what
    /// touches no database.
    Store,
    /// By strace in one more round, which is slower and not timed.
    All,
}

/// What is done to each subject.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) subjects: Vec<Kind>,
    pub(crate) goals: Vec<Goal>,
    pub(crate) flushes: Flushes,
    pub(crate) prepare: Prepare,
}

/// A goal of the table that this harness does not measure.
pub(crate) struct Unmeasured {
    pub(crate) goal: &'static str,
    pub(crate) why: &'static str,
}

/// A row of the table.
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) cases: Vec<Case>,
    pub(crate) unmeasured: Vec<Unmeasured>,
}

impl Row {
    fn new(what: &'static str, cases: Vec<Case>) -> Self {
        Self { what, cases, unmeasured: Vec::new() }
    }

    fn unmeasured(what: &'static str, goal: &'static str, why: &'static str) -> Self {
        Self { what, cases: Vec::new(), unmeasured: vec![Unmeasured { goal, why }] }
    }
}

/// The registries that a row compares with.
const REGISTRIES: [Kind; 3] = [Kind::Taffrail, Kind::Debian, Kind::V3];

/// All rows, in the order of the table.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = push::rows();
    rows.extend(images::rows());
    rows.extend(pull::rows());
    rows.extend(lookups::rows());
    rows.extend(mount::rows());
    rows.extend(engine::rows());
    rows.extend(opening::rows());
    rows.push(engine::collection());
    rows.extend(compaction::rows());
    rows.extend(memory::rows());
    rows.extend(pages::rows());
    rows.extend(tokens::rows());
    rows.push(Row::unmeasured(
        "acknowledged operations lost",
        "0 in 10^6 simulated crashes, 1,000 kill -9, 300 power cuts",
        "`cargo xtask crash`, `kill` and `powercut` count these",
    ));
    rows.extend(mix::rows());
    rows
}

/// Lets every client work at once, and adds up what they did.
fn at_once<C: Send>(clients: &mut [C], work: impl Fn(usize, &mut C) -> Result<Work> + Sync) -> Result<Work> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .enumerate()
            .map(|(index, client)| scope.spawn(move || work(index, client)))
            .collect();
        let mut all = Work::default();
        for thread in threads {
            all.add(thread.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_measures_what_its_goals_are_about() {
        let mut names = BTreeSet::new();
        for case in rows().iter().flat_map(|row| &row.cases) {
            assert!(names.insert(case.name), "{}", case.name);
            for goal in &case.goals {
                assert!(case.subjects.contains(&goal.of), "{}", case.name);
                let against = match goal.against {
                    crate::goal::Against::Nothing => Vec::new(),
                    crate::goal::Against::One(kind) => vec![kind],
                    crate::goal::Against::Best(kinds) => kinds.to_vec(),
                };
                assert!(against.iter().all(|kind| case.subjects.contains(kind)), "{}", case.name);
            }
        }
    }

    #[test]
    fn every_row_has_a_goal_or_a_reason_to_have_none() {
        for row in rows() {
            assert!(!row.cases.is_empty() || !row.unmeasured.is_empty(), "{}", row.what);
        }
    }
}
