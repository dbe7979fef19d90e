//! Kill -9 at random moments under eight writers: what was acknowledged is there afterwards, and hashes right.
//!
//! A kill leaves the page cache alone, so this test is about order and recovery, not about syncing; `powercut.rs` is
//! about that.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use taffrail_tests::fsck::{self, Ended};
use taffrail_tests::images::noise;
use taffrail_tests::ledger::Depth;
use taffrail_tests::load::{Fault, Load};
use taffrail_tests::scene::PUBLIC;
use taffrail_tests::server::{Options, Server};
use taffrail_tests::settings;
use taffrail_tests::tools::say;

/// The longest time between a start and the kill.
const ROUND_MS_MAX: u64 = 900;

/// A segment that a few seconds of the load fill.
const SEGMENT_BYTES: u64 = 4 << 20;

/// Longer than any push of the load takes, so that no layer goes between its HEAD and its manifest.
const LEASE_SECS: u64 = 10;

/// One killed store in so many is checked as it lies; a check reads every blob.
const CHECKED_ONE_IN: u64 = 10;

/// The back end that is not the default has so many times fewer cycles.
const OTHER_ONE_IN: u64 = 10;

/// Acknowledgements that a cycle must average for the test to mean anything.
const ACKNOWLEDGED_MIN: u64 = 5;

#[test]
fn what_was_acknowledged_survives_kill_9() -> Result<()> {
    survives(settings::kill_cycles().max(1), restless())
}

#[test]
fn what_was_acknowledged_survives_kill_9_with_every_write_on_threads() -> Result<()> {
    survives(settings::kill_cycles().div_ceil(OTHER_ONE_IN), restless().key("storage", "io", "threads"))
}

fn survives(cycles: u64, options: Options) -> Result<()> {
    let seed = settings::seed();
    say(&format!("kill -9: seed {seed} (TAFFRAIL_SEED={seed} repeats the load, not its timing)"));
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::start_with(options)?;
    let mut load = Load::new(seed, || server.admin())?;
    let (mut reopens, mut acknowledged, mut checked) = (Vec::new(), 0, 0);
    for cycle in 1..=cycles {
        let pause = Duration::from_millis(random.random_range(20..ROUND_MS_MAX));
        let round = load.round(Fault::Crash, || {
            // The moment of the kill is what this test is about.
            std::thread::sleep(pause);
            server.kill9()
        })?;
        ensure!(
            round.wrong.is_empty(),
            "cycle {cycle}, seed {seed}: {:#?}\n{}",
            round.wrong,
            server.log_tail()
        );
        acknowledged += round.acknowledged;
        // Before anything puts right what the kill left.
        if cycle % CHECKED_ONE_IN == 0 || cycle == cycles {
            fsck::check(server.data_dir(), Ended::ByCrash, fsck::Depth::Checksums)
                .with_context(|| format!("cycle {cycle}, seed {seed}"))?;
        }
        // Every fifth start is killed as well, in the middle of its recovery if the moment is right.
        if cycle % 5 == 0 {
            interrupt_recovery(&mut server, &mut random)?;
        }
        reopens.push(server.restart()?);
        let depth = if cycle == cycles || cycle % 10 == 0 { Depth::Full } else { Depth::Recent };
        let verdict = load.check(depth)?;
        checked += verdict.checked;
        ensure!(
            verdict.broken.is_empty(),
            "cycle {cycle}, seed {seed}: {:#?}\n{}",
            verdict.broken,
            server.log()
        );
    }
    reopens.sort_unstable();
    say(&format!(
        "kill -9: {cycles} cycles, {acknowledged} acknowledged, {checked} promises checked, 0 lost; reopen p50 {:.0?}, \
         p99 {:.0?}, max {:.0?}",
        percentile(&reopens, 50),
        percentile(&reopens, 99),
        percentile(&reopens, 100)
    ));
    ensure!(acknowledged >= cycles * ACKNOWLEDGED_MIN, "the load hardly ran: {acknowledged} acknowledged");
    ensure!(server.terminate()?.success(), "the server did not drain\n{}", server.log_tail());
    let left = fsck::check(server.data_dir(), Ended::InOrder, fsck::Depth::Digests)
        .with_context(|| format!("seed {seed}"))?;
    say(&format!(
        "kill -9: the checker read {} blobs of the closed store; traces {:?}",
        left.blobs, left.traces
    ));
    Ok(())
}

/// The control: a checker that finds nothing wrong with a store that lost a batch would prove nothing above.
#[test]
fn a_batch_that_is_gone_is_no_trace_of_a_crash() -> Result<()> {
    let mut server = Server::start()?;
    let admin = server.admin()?;
    for number in 0..5 {
        admin.push_blob(&format!("{PUBLIC}/control"), &noise(number, 5_000))?;
    }
    server.kill9()?;
    fsck::check(server.data_dir(), Ended::ByCrash, fsck::Depth::Checksums)?;
    let segment = server.data_dir().join("store/log/0000000000000001.seg");
    // Header, and the first batch.
    std::fs::OpenOptions::new().write(true).open(segment)?.write_all_at(&[0; 4096], 4096)?;
    let checked = fsck::check(server.data_dir(), Ended::ByCrash, fsck::Depth::Checksums);
    ensure!(checked.is_err(), "a lost batch is called {checked:?}");
    Ok(())
}

/// Small segments and short times, so that sealing, collecting and reclaiming happen all the time.
fn restless() -> Options {
    Options::default()
        .key("storage", "segment_bytes", SEGMENT_BYTES)
        .key("storage", "lease_secs", LEASE_SECS)
        .key("storage", "grace_secs", 1)
}

/// Starts the server and kills it before it is ready.
fn interrupt_recovery(server: &mut Server, random: &mut StdRng) -> Result<()> {
    let after = Duration::from_millis(random.random_range(1..60));
    server.launch_unready()?;
    std::thread::sleep(after);
    server.kill9()
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}
