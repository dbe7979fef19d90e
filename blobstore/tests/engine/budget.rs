//! How long and from which seed the randomised tests run.

use std::io::Write as _;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::world::Outcome;

/// Crash points of an ordinary test run.
const CRASH_POINTS: u64 = 20_000;

/// Attempts at making a failing history smaller. A sweep of a small history takes milliseconds.
const SHRINKS: u32 = 3_000;
const SHRINK_MS: u32 = 60_000;

#[expect(
    clippy::disallowed_methods,
    reason = "tests are told by the environment how long to run and what to repeat"
)]
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// Prints a line also when the test passes: the harness keeps `println!` to itself, and a run whose seed nobody saw
/// cannot be repeated.
pub(crate) fn say(line: &str) {
    let mut line = line.to_owned();
    line.push('\n');
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

/// The seed of this run, the same for all tests; a new one unless `TAFFRAIL_SEED` says which.
pub(crate) fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| number("TAFFRAIL_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>())))
}

/// `ordinary` rounds, or as many times more as `TAFFRAIL_CRASH_POINTS` asks for more crash points.
pub(crate) fn rounds(ordinary: u64) -> u64 {
    number("TAFFRAIL_CRASH_POINTS").map_or(ordinary, |points| ordinary * points.div_ceil(CRASH_POINTS))
}

/// When a sweep has done enough.
pub(crate) struct Budget {
    points: u64,
    until: Option<Instant>,
}

impl Budget {
    /// What the environment says, or `share` percent of the ordinary number of crash points.
    pub(crate) fn crash_points(share: u64) -> Budget {
        let until =
            number("TAFFRAIL_CRASH_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let points = match (number("TAFFRAIL_CRASH_POINTS"), until) {
            (Some(points), _) => points * share / 100,
            (None, Some(_)) => u64::MAX,
            (None, None) => CRASH_POINTS * share / 100,
        };
        Budget { points, until }
    }

    pub(crate) fn is_spent(&self, points: u64) -> bool {
        points >= self.points || self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// Draws one value of `strategy` from `seed` and tests it. A failing value is made smaller and printed, with the seed.
///
/// # Panics
/// When the test fails.
pub(crate) fn check_one<S: Strategy>(
    name: &str,
    seed: u64,
    strategy: &S,
    mut test: impl FnMut(&S::Value) -> Outcome,
) where
    S::Value: Clone,
{
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: SHRINKS,
        max_shrink_time: SHRINK_MS,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let test = std::cell::RefCell::new(&mut test);
    let outcome = runner.run(strategy, |value| {
        let mut test = test.borrow_mut();
        test(&value).map_err(TestCaseError::fail)
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, value)) => {
            panic!("{name} failed: {reason}\nrepeat with TAFFRAIL_SEED={seed}\nsmallest found: {value:?}")
        }
        Err(TestError::Abort(reason)) => panic!("{name}: {reason}"),
    }
}
