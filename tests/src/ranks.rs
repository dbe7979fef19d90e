//! Whether two sides of a question take the same time: by ranks, because times have tails that no mean survives.

use std::time::Duration;

/// From this distance on, in standard deviations, two sides count as different: chance alone goes there once in 150,000
/// comparisons. The bound that leakage tests use for Student's t.
pub const Z_MAX: f64 = 4.5;

/// Two series of times, compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// The medians of both sides.
    pub medians: [Duration; 2],
    /// The distances between the quartiles of both sides.
    pub spreads: [Duration; 2],
    /// How far the ranks of the first side are from those that chance would give it, in standard deviations (Mann and Whitney's
    /// U). Positive when the first side takes longer.
    pub z: f64,
}

impl Comparison {
    /// Compares two series; neither may be empty.
    #[must_use]
    pub fn of(first: &[Duration], second: &[Duration]) -> Self {
        Self {
            medians: [quantile(first, 2), quantile(second, 2)],
            spreads: [first, second].map(|side| quantile(side, 3).saturating_sub(quantile(side, 1))),
            z: z(first, second),
        }
    }

    /// Whether more than chance tells the sides apart.
    #[must_use]
    pub fn differs(&self) -> bool {
        self.z.abs() >= Z_MAX
    }

    /// The larger median by the smaller, minus one: 0.1 is ten percent.
    #[must_use]
    pub fn excess(&self) -> f64 {
        let [first, second] = self.medians.map(|median| median.as_secs_f64());
        if first.min(second) > 0.0 { first.max(second) / first.min(second) - 1.0 } else { f64::INFINITY }
    }
}

/// The value below which so many quarters of the series lie.
fn quantile(series: &[Duration], quarters: usize) -> Duration {
    let mut sorted = series.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().saturating_sub(1) * quarters / 4).copied().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "thousands of samples, for a figure of two digits")]
fn z(first: &[Duration], second: &[Duration]) -> f64 {
    let mut all: Vec<(Duration, bool)> = first.iter().map(|time| (*time, true)).collect();
    all.extend(second.iter().map(|time| (*time, false)));
    all.sort_unstable();
    let (mut rank_sum, mut ties, mut at) = (0.0, 0.0, 0);
    while at < all.len() {
        let tied = all[at..].iter().take_while(|(time, _)| *time == all[at].0).count();
        // Equal times share the ranks that they take together.
        let shared = at as f64 + (tied as f64 + 1.0) / 2.0;
        rank_sum += shared * all[at..at + tied].iter().filter(|(_, is_first)| *is_first).count() as f64;
        ties += (tied as f64).powi(3) - tied as f64;
        at += tied;
    }
    let (n, m) = (first.len() as f64, second.len() as f64);
    let both = n + m;
    let u = rank_sum - n * (n + 1.0) / 2.0;
    let variance = n * m / 12.0 * ((both + 1.0) - ties / (both * (both - 1.0)).max(1.0));
    if variance > 0.0 { (u - n * m / 2.0) / variance.sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(micros: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        micros.into_iter().map(Duration::from_micros).collect()
    }

    #[test]
    fn sides_of_one_source_are_alike_whatever_their_tails() {
        let even = times((0..400).map(|n| 100 + n * 7919 % 100 + if n % 50 == 0 { 90_000 } else { 0 }));
        let odd = times((0..400).map(|n| 100 + (n + 13) * 7919 % 100));
        let compared = Comparison::of(&even, &odd);
        assert!(!compared.differs() && compared.excess() < 0.1, "{compared:?}");
        assert_eq!(Comparison::of(&even, &even).z, 0.0);
        assert_eq!(Comparison::of(&times([5; 9]), &times([5; 9])).z, 0.0);
    }

    #[test]
    fn a_side_that_takes_a_little_longer_is_found() {
        let short = times((0..400).map(|n| 100 + n * 7919 % 100));
        let long = times((0..400).map(|n| 120 + n * 7919 % 100));
        let compared = Comparison::of(&long, &short);
        assert!(compared.z > Z_MAX && compared.differs(), "{compared:?}");
        assert!((compared.excess() - 20.0 / 149.0).abs() < 0.01, "{compared:?}");
        assert!(Comparison::of(&short, &long).z < -Z_MAX);
    }

    /// Held against the tables: of 1 to 3 against 4 to 6, U is 0, its mean 4.5 and its deviation the root of 5.25.
    #[test]
    fn the_distance_is_that_of_the_books() {
        let compared = Comparison::of(&times([1, 2, 3]), &times([4, 5, 6]));
        assert!((compared.z + 4.5 / 5.25_f64.sqrt()).abs() < 1e-9, "{compared:?}");
    }
}
