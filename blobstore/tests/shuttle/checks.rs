//! Runs a check under many schedules.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// Time for each check.
const SECONDS: u64 = 4;

/// Changes of mind of the second way: most bugs of concurrency need no more than three.
const PCT_DEPTH: usize = 3;

/// No schedule of a check is so long, unless somebody goes round in circles.
const STEPS_MAX: usize = 200_000;

/// Engine and test frames, with room: the default is too little for either.
const STACK_BYTES: usize = 1 << 20;

/// Schedules of one way before it is the other one's turn.
const TURN_SCHEDULES: usize = 25;

#[expect(clippy::disallowed_methods, reason = "tests are told by the environment what to repeat")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str) -> Option<u64> {
    variable(name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Prints a line also when the test passes.
fn say(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| number("TAFFRAIL_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>())))
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.failure_persistence = FailurePersistence::Print;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.silence_warnings = true;
    config
}

fn run(scheduler: impl Scheduler + 'static, body: &Arc<impl Fn() + Send + Sync + 'static>) -> usize {
    let body = Arc::clone(body);
    Runner::new(scheduler, config()).run(move || body())
}

/// Runs `body` under one schedule, whichever it is.
pub(crate) fn once(body: impl Fn() + Send + Sync + 'static) {
    run(RandomScheduler::new_from_seed(0, 1), &Arc::new(body));
}

/// Runs `body` under random schedules, and under those with few changes of mind, in turns until the time is over.
pub(crate) fn check(name: &str, body: impl Fn() + Send + Sync + 'static) {
    let body = Arc::new(body);
    if let Some(schedule) = variable("TAFFRAIL_SCHEDULE") {
        run(ReplayScheduler::new_from_encoded(&schedule), &body);
        return;
    }
    let seed = seed();
    let time = Duration::from_secs(number("TAFFRAIL_SHUTTLE_SECONDS").unwrap_or(SECONDS));
    let checked = catch_unwind(AssertUnwindSafe(|| {
        let (started, mut turn, mut random, mut pct) = (Instant::now(), seed, 0, 0);
        while started.elapsed() < time {
            random += run(RandomScheduler::new_from_seed(turn, TURN_SCHEDULES), &body);
            pct += run(PctScheduler::new_from_seed(turn, PCT_DEPTH, TURN_SCHEDULES), &body);
            turn = turn.wrapping_add(1);
        }
        (random, pct)
    }));
    match checked {
        Ok((random, pct)) => say(&format!(
            "shuttle: {name}: {random} random schedules, {pct} of depth {PCT_DEPTH} (seed {seed})"
        )),
        Err(panic) => {
            say(&format!("shuttle: {name}: FAILED; TAFFRAIL_SEED={seed} repeats it"));
            resume_unwind(panic);
        }
    }
}
