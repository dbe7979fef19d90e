//! Figures for people and for programs: medians with their spread, tables, JSON lines.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::goal::{Figure, Goal, Measured, Verdict};
use crate::plan::Plan;
use crate::sample::Sample;
use crate::workload::{Case, Row};

/// The middle of some values and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: &[f64]) -> Self {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self { median: median(values), low, high }
    }
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => at(length / 2),
        length => f64::midpoint(at(length / 2 - 1), at(length / 2)),
    }
}

/// What a table of a case shows.
const COLUMNS: [Figure; 9] = [
    Figure::MbPerSec,
    Figure::OpsPerSec,
    Figure::P50,
    Figure::P99,
    Figure::CpuPerGb,
    Figure::CpuPerOp,
    Figure::MemoryMib,
    Figure::FlushesPerOp,
    Figure::Extra,
];

/// The record of one run.
pub(crate) struct Report {
    json: Option<File>,
    lines: Vec<Line>,
}

/// A line of the table of goals.
struct Line {
    what: &'static str,
    case: &'static str,
    verdict: Verdict,
}

impl Report {
    /// JSON lines go to the file, if there is one.
    pub(crate) fn new(json: Option<&Path>) -> Result<Self> {
        let json =
            json.map(|path| File::create(path).with_context(|| path.display().to_string())).transpose()?;
        Ok(Self { json, lines: Vec::new() })
    }

    fn json(&mut self, value: &Value) -> Result<()> {
        if let Some(file) = &mut self.json {
            writeln!(file, "{value}")?;
        }
        Ok(())
    }

    /// The machine and the sizes, before anything else.
    pub(crate) fn head(&mut self, plan: &Plan, facts: &[(&'static str, String)]) -> Result<()> {
        for (name, value) in facts {
            println!("{name}: {value}");
        }
        println!(
            "{} rounds after {} that do not count; large blobs of {} MiB, rounds of small operations of {:.1} s",
            plan.rounds,
            plan.warm_up,
            plan.large_bytes >> 20,
            plan.round_time.as_secs_f64()
        );
        println!(
            "client and servers share the processors: CPU per GB and per operation are the steadier figures"
        );
        let facts: serde_json::Map<String, Value> =
            facts.iter().map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str()))).collect();
        self.json(&json!({"run": facts, "rounds": plan.rounds, "large_bytes": plan.large_bytes}))
    }

    /// One round.
    pub(crate) fn round(&mut self, case: &str, subject: &str, round: u32, sample: &Sample) -> Result<()> {
        self.json(&json!({
            "case": case, "subject": subject, "round": round,
            "seconds": sample.seconds, "operations": sample.operations, "bytes": sample.bytes,
            "p50_us": sample.p50_us, "p99_us": sample.p99_us,
            "server_cpu_sec": sample.server_cpu_sec, "client_cpu_sec": sample.client_cpu_sec,
            "memory_kib": sample.memory_kib, "flushes": sample.flushes, "extra": sample.extra,
        }))
    }

    /// The table of a case, and how its goals came out.
    pub(crate) fn case(&mut self, row: &Row, case: &Case, measured: &[Measured], plan: &Plan) -> Result<()> {
        println!("\n{}: {}", case.name, case.about);
        for line in table(measured, plan) {
            println!("  {line}");
        }
        for subject in measured {
            let name = subject.kind.name(plan);
            let figures: serde_json::Map<String, Value> = COLUMNS
                .into_iter()
                .filter_map(|figure| {
                    let Spread { median, low, high } = Spread::of(&subject.values(figure).ok()?);
                    Some((figure.unit().to_owned(), json!([median, low, high])))
                })
                .collect();
            let why = subject.samples.as_ref().err();
            if let Some(why) = why {
                println!("  {name}: not measured: {why}");
            }
            self.json(&json!({
                "case": case.name, "subject": name, "median_low_high": figures, "why": why,
            }))?;
        }
        for verdict in case.goals.iter().map(|goal: &Goal| goal.judge(measured, plan)) {
            println!("  {}", sentence(&verdict));
            let (value, why) = match &verdict.value {
                Ok(spread) => (json!([spread.median, spread.low, spread.high]), None),
                Err(why) => (Value::Null, Some(why)),
            };
            self.json(&json!({
                "case": case.name, "goal": verdict.goal, "met": verdict.met, "median_low_high": value, "why": why,
            }))?;
            self.lines.push(Line { what: row.what, case: case.name, verdict });
        }
        Ok(())
    }

    /// Notes the goals of a row that nobody measures.
    pub(crate) fn unmeasured(&mut self, row: &Row) {
        for unmeasured in &row.unmeasured {
            let verdict = Verdict {
                goal: unmeasured.goal.to_owned(),
                value: Err(unmeasured.why.to_owned()),
                met: None,
            };
            self.lines.push(Line { what: row.what, case: "", verdict });
        }
    }

    /// Notes a case that was not asked for.
    pub(crate) fn left_out(&mut self, row: &Row, case: &Case, plan: &Plan) {
        for goal in &case.goals {
            let verdict =
                Verdict { goal: goal.text(plan), value: Err("not in this run".to_owned()), met: None };
            self.lines.push(Line { what: row.what, case: case.name, verdict });
        }
    }

    /// The table of goals.
    pub(crate) fn goals(&self) {
        println!("\n| what | case | goal | figure | spread | |\n|---|---|---|---|---|---|");
        for Line { what, case, verdict } in &self.lines {
            let (figure, spread) = match &verdict.value {
                Ok(spread) => {
                    (number(spread.median), format!("{} to {}", number(spread.low), number(spread.high)))
                }
                Err(why) => ("-".to_owned(), why.clone()),
            };
            println!("| {what} | {case} | {} | {figure} | {spread} | {} |", verdict.goal, met(verdict.met));
        }
        let count =
            |wanted: Option<bool>| self.lines.iter().filter(|line| line.verdict.met == wanted).count();
        println!("\n{} met, {} not met, {} not measured", count(Some(true)), count(Some(false)), count(None));
    }
}

fn met(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "met",
        Some(false) => "NOT met",
        None => "not measured",
    }
}

fn sentence(verdict: &Verdict) -> String {
    match &verdict.value {
        Ok(Spread { median, low, high }) => format!(
            "goal {}: {} ({} to {}): {}",
            verdict.goal,
            number(*median),
            number(*low),
            number(*high),
            met(verdict.met)
        ),
        Err(why) => format!("goal {}: not measured: {why}", verdict.goal),
    }
}

/// Three digits that say something, and never more than are needed.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

/// One line for each subject with the figures that any of them has: the median, and for the first the spread.
fn table(measured: &[Measured], plan: &Plan) -> Vec<String> {
    let samples_of = |subject: &Measured| subject.samples.as_ref().ok().cloned().unwrap_or_default();
    let values = |subject: &Measured, figure: Figure| subject.values(figure).unwrap_or_default();
    let columns: Vec<Figure> = COLUMNS
        .into_iter()
        .filter(|figure| measured.iter().any(|subject| !values(subject, *figure).is_empty()))
        .collect();
    let mut rows = vec![
        [
            vec!["".to_owned()],
            columns.iter().map(|figure| figure.unit().to_owned()).collect(),
            ["client CPU s", "acknowledged is"].map(str::to_owned).to_vec(),
        ]
        .concat(),
    ];
    for subject in measured.iter().filter(|subject| subject.samples.is_ok()) {
        let mut row = vec![subject.kind.name(plan)];
        for figure in &columns {
            let values = values(subject, *figure);
            let Spread { median, low, high } = Spread::of(&values);
            row.push(match figure {
                _ if values.is_empty() => "-".to_owned(),
                Figure::MbPerSec | Figure::OpsPerSec => {
                    format!("{} ({} to {})", number(median), number(low), number(high))
                }
                Figure::CpuPerGb
                | Figure::CpuPerOp
                | Figure::P50
                | Figure::P99
                | Figure::MemoryMib
                | Figure::FlushesPerOp
                | Figure::Seconds
                | Figure::PrivateEach
                | Figure::BytesEach
                | Figure::Extra => number(median),
            });
        }
        let client: Vec<f64> = samples_of(subject).iter().map(|sample| sample.client_cpu_sec).collect();
        row.push(if client.is_empty() { "-".to_owned() } else { number(median(&client)) });
        row.push(subject.kind.durability().to_owned());
        rows.push(row);
    }
    aligned(&rows)
}

fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    rows.iter()
        .map(|row| {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = width(column).unwrap_or(0);
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Kind;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn figures_have_three_digits() {
        let shown: Vec<String> =
            [1234.5, 56.78, 1.234, 0.0, 0.0123].iter().map(|value| number(*value)).collect();
        assert_eq!(shown, ["1234", "56.8", "1.23", "0.00", "1.2e-2"]);
    }

    #[test]
    fn a_table_has_the_columns_that_somebody_fills() {
        let sample = Sample { seconds: 2.0, operations: 10, client_cpu_sec: 1.0, ..Sample::default() };
        let measured = [
            Measured { kind: Kind::Taffrail, samples: Ok(vec![sample]) },
            Measured { kind: Kind::V3, samples: Err("not installed".to_owned()) },
        ];
        let lines = table(&measured, &crate::plan::tests::plan());
        assert_eq!(
            lines,
            [
                "                         op/s  client CPU s  acknowledged is",
                "taffrail  5.00 (5.00 to 5.00)          1.00          durable",
            ]
        );
    }
}
