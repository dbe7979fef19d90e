//! The goals: a figure, what it is held against, and the bound.

use crate::plan::Plan;
use crate::report::{Spread, median};
use crate::sample::Sample;
use crate::target::Kind;

/// What can be read from a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    MbPerSec,
    OpsPerSec,
    CpuPerGb,
    CpuPerOp,
    P50,
    P99,
    MemoryMib,
    FlushesPerOp,
    /// How long the round took.
    Seconds,
    /// Private memory for each operation, or thing that there is.
    PrivateEach,
    /// Bytes for each operation, or thing that there is.
    BytesEach,
    /// What the row computes itself.
    Extra,
}

impl Figure {
    /// Its value; `None` where it was not measured or says nothing.
    pub(crate) fn of(self, sample: &Sample) -> Option<f64> {
        let operations = (sample.operations > 0).then_some(sample.operations as f64);
        let bytes = (sample.bytes > 0).then_some(sample.bytes as f64);
        let value = match self {
            Self::MbPerSec => bytes? / 1e6 / sample.seconds,
            Self::OpsPerSec => operations? / sample.seconds,
            Self::CpuPerGb => sample.server_cpu_sec? / (bytes? / 1e9),
            Self::CpuPerOp => sample.server_cpu_sec? * 1e6 / operations?,
            Self::P50 => sample.p50_us? / 1e3,
            Self::P99 => sample.p99_us? / 1e3,
            Self::MemoryMib => sample.memory_kib? as f64 / 1024.0,
            Self::FlushesPerOp => sample.flushes? as f64 / operations?,
            Self::Seconds => sample.seconds,
            Self::PrivateEach => sample.memory_kib? as f64 * 1024.0 / operations?,
            Self::BytesEach => bytes? / operations?,
            Self::Extra => sample.extra?,
        };
        value.is_finite().then_some(value)
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::MbPerSec => "MB/s",
            Self::OpsPerSec => "op/s",
            Self::CpuPerGb => "CPU s/GB",
            Self::CpuPerOp => "CPU us/op",
            Self::P50 => "p50 ms",
            Self::P99 => "p99 ms",
            Self::MemoryMib => "MiB",
            Self::FlushesPerOp => "flushes/op",
            Self::Seconds => "s",
            Self::PrivateEach => "B private each",
            Self::BytesEach => "B each",
            Self::Extra => "ratio",
        }
    }
}

/// What a figure is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Against {
    /// Nothing: the figure stands for itself.
    Nothing,
    /// The same figure of another subject.
    One(Kind),
    /// The better of several, in the direction of the bound.
    Best(&'static [Kind]),
}

/// What is asked of the figure or the ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Between(f64, f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::Between(least, most) => (least..=most).contains(&value),
        }
    }
}

/// One goal of a case.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Goal {
    pub(crate) figure: Figure,
    pub(crate) of: Kind,
    pub(crate) against: Against,
    pub(crate) bound: Bound,
}

/// How a goal came out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) goal: String,
    /// The value with its spread over the rounds, or why there is none.
    pub(crate) value: Result<Spread, String>,
    pub(crate) met: Option<bool>,
}

/// The samples of one subject, or why there are none.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) kind: Kind,
    pub(crate) samples: Result<Vec<Sample>, String>,
}

impl Measured {
    /// The values of a figure, round by round: at least one, or the reason.
    pub(crate) fn values(&self, figure: Figure) -> Result<Vec<f64>, String> {
        let samples = self.samples.as_ref().map_err(Clone::clone)?;
        let values: Vec<f64> = samples.iter().filter_map(|sample| figure.of(sample)).collect();
        if values.is_empty() { Err(format!("{} not measured", figure.unit())) } else { Ok(values) }
    }
}

impl Goal {
    pub(crate) const fn ratio(figure: Figure, of: Kind, against: Kind, bound: Bound) -> Self {
        Self { figure, of, against: Against::One(against), bound }
    }

    pub(crate) const fn absolute(figure: Figure, of: Kind, bound: Bound) -> Self {
        Self { figure, of, against: Against::Nothing, bound }
    }

    /// The goal in words.
    pub(crate) fn text(&self, plan: &Plan) -> String {
        let against = match self.against {
            Against::Nothing => String::new(),
            Against::One(kind) => format!(" x {}", kind.name(plan)),
            Against::Best(kinds) => {
                let names: Vec<String> = kinds.iter().map(|kind| kind.name(plan)).collect();
                format!(" x the better of {}", names.join(", "))
            }
        };
        let bound = match self.bound {
            Bound::AtLeast(least) => format!(">= {least}"),
            Bound::AtMost(most) => format!("<= {most}"),
            Bound::Between(least, most) => format!("{least} to {most}"),
        };
        format!("{bound}{against} {}", self.figure.unit())
    }

    /// Holds the goal against what was measured.
    pub(crate) fn judge(&self, measured: &[Measured], plan: &Plan) -> Verdict {
        let value = self.value(measured, plan);
        let met = value.as_ref().ok().map(|spread| self.bound.holds(spread.median));
        Verdict { goal: self.text(plan), value, met }
    }

    fn value(&self, measured: &[Measured], plan: &Plan) -> Result<Spread, String> {
        let values = |kind: Kind| {
            let found = measured.iter().find(|measured| measured.kind == kind);
            let found = found.ok_or_else(|| format!("{} was left out", kind.name(plan)))?;
            found.values(self.figure).map_err(|why| format!("{}: {why}", kind.name(plan)))
        };
        let ours = values(self.of)?;
        let theirs = match self.against {
            Against::Nothing => return Ok(Spread::of(&ours)),
            Against::One(kind) => values(kind)?,
            Against::Best(kinds) => {
                let all = kinds.iter().map(|kind| values(*kind)).collect::<Result<Vec<_>, _>>()?;
                let by_median = |a: &Vec<f64>, b: &Vec<f64>| median(a).total_cmp(&median(b));
                let best = match self.bound {
                    Bound::AtLeast(_) | Bound::Between(..) => all.into_iter().max_by(by_median),
                    Bound::AtMost(_) => all.into_iter().min_by(by_median),
                };
                best.ok_or("nothing to compare with")?
            }
        };
        let mut spread = Spread::of(&ours);
        let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
        // The ratio of medians is the figure; that of single rounds, which ran next to each other, is its spread.
        spread.median /= median(&theirs);
        let of_rounds = Spread::of(&ratios);
        (spread.low, spread.high) = (of_rounds.low, of_rounds.high);
        Ok(spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(kind: Kind, speeds: &[u64]) -> Measured {
        let samples = speeds
            .iter()
            .map(|speed| Sample {
                seconds: 1.0,
                operations: *speed,
                server_cpu_sec: Some(1.0),
                ..Sample::default()
            })
            .collect();
        Measured { kind, samples: Ok(samples) }
    }

    fn plan() -> Plan {
        crate::plan::tests::plan()
    }

    #[test]
    fn a_ratio_is_that_of_medians_and_its_spread_that_of_rounds() {
        let goal = Goal::ratio(Figure::OpsPerSec, Kind::Taffrail, Kind::V3, Bound::AtLeast(2.0));
        let all = [measured(Kind::Taffrail, &[20, 40, 90]), measured(Kind::V3, &[10, 20, 30])];
        let verdict = goal.judge(&all, &plan());
        assert_eq!(verdict.value, Ok(Spread { median: 2.0, low: 2.0, high: 3.0 }));
        assert_eq!(verdict.met, Some(true));
        assert_eq!(verdict.goal, ">= 2 x distribution-v3 op/s");
    }

    #[test]
    fn the_better_is_the_faster_for_speed_and_the_cheaper_for_cost() {
        const BOTH: &[Kind] = &[Kind::Nginx, Kind::NginxCopy];
        let all =
            [measured(Kind::Taffrail, &[10]), measured(Kind::Nginx, &[10]), measured(Kind::NginxCopy, &[20])];
        let goal = |figure, bound| Goal { figure, of: Kind::Taffrail, against: Against::Best(BOTH), bound };
        let faster = goal(Figure::OpsPerSec, Bound::AtLeast(1.0)).judge(&all, &plan());
        assert_eq!((faster.value.unwrap().median, faster.met), (0.5, Some(false)));
        let cheaper = goal(Figure::CpuPerOp, Bound::AtMost(1.0)).judge(&all, &plan());
        assert_eq!((cheaper.value.unwrap().median, cheaper.met), (2.0, Some(false)));
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        let goal = Goal::ratio(Figure::OpsPerSec, Kind::Taffrail, Kind::V3, Bound::AtLeast(2.0));
        let absent = Measured { kind: Kind::V3, samples: Err("not installed".to_owned()) };
        let verdict = goal.judge(&[measured(Kind::Taffrail, &[1]), absent], &plan());
        assert_eq!(verdict.met, None);
        assert_eq!(verdict.value.unwrap_err(), "distribution-v3: not installed");
        let flushes = Goal::absolute(Figure::FlushesPerOp, Kind::Taffrail, Bound::AtMost(1.0));
        assert_eq!(flushes.judge(&[measured(Kind::Taffrail, &[1])], &plan()).met, None);
    }
}
