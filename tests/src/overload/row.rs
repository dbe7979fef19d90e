//! A row of the table: a demand, what was seen, and what that comes to.

use std::fmt;

/// What a row comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As demanded.
    Met,
    /// Not as demanded.
    NotMet,
    /// A figure that is not judged in this run.
    Noted,
    /// It could not be tested here; the figure says why.
    Skipped,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "NOT MET",
            Self::Noted => "noted",
            Self::Skipped => "SKIPPED",
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) number: &'static str,
    pub(crate) what: String,
    pub(crate) demand: String,
    pub(crate) figure: String,
    pub(crate) outcome: Outcome,
}

impl Row {
    /// A row of that outcome.
    pub(crate) fn new(
        number: &'static str,
        what: impl Into<String>,
        demand: impl Into<String>,
        figure: impl Into<String>,
        outcome: Outcome,
    ) -> Self {
        Self { number, what: what.into(), demand: demand.into(), figure: figure.into(), outcome }
    }

    /// A demand that is judged in every run.
    pub(crate) fn held(
        number: &'static str,
        what: impl Into<String>,
        demand: impl Into<String>,
        figure: impl Into<String>,
        met: bool,
    ) -> Self {
        Self::new(number, what, demand, figure, if met { Outcome::Met } else { Outcome::NotMet })
    }

    /// A figure without a demand.
    pub(crate) fn noted(number: &'static str, what: impl Into<String>, figure: impl Into<String>) -> Self {
        Self::new(number, what, "-", figure, Outcome::Noted)
    }

    /// What could not be tested, and why.
    pub(crate) fn skipped(number: &'static str, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(number, what, "-", why, Outcome::Skipped)
    }

    /// The row as one JSON object.
    pub(crate) fn json(&self) -> String {
        let Self { number, what, demand, figure, outcome } = self;
        serde_json::json!({
            "number": number, "what": what, "demand": demand, "figure": figure, "outcome": outcome.word(),
        })
        .to_string()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, what, demand, figure, outcome } = self;
        write!(f, "  {number}  {}: {what}: {figure} (demand: {demand})", outcome.word())
    }
}

/// All rows, in columns.
pub(crate) fn table(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        [
            row.number.to_owned(),
            row.what.clone(),
            row.demand.clone(),
            row.figure.clone(),
            row.outcome.word().to_owned(),
        ]
    };
    let head = ["no.", "what", "demand", "figure", ""].map(str::to_owned);
    let all: Vec<[String; 5]> = std::iter::once(head).chain(rows.iter().map(cells)).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    all.iter()
        .map(|row| {
            let line: String =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
            line.trim_end().to_owned() + "\n"
        })
        .collect()
}
