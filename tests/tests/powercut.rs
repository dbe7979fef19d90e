//! A power cut: the file system under the server stops at once, and what was not synced is gone. What was
//! acknowledged is there afterwards.
//!
//! The control runs the same with every sync answered and none done. It must lose something, or this test could not
//! see a server that forgets to sync.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use taffrail_tests::fsck::{self, Ended};
use taffrail_tests::ledger::Depth;
use taffrail_tests::load::{Fault, Load};
use taffrail_tests::loop_disk::{LoopDisk, NEEDS};
use taffrail_tests::server::{Options, Server};
use taffrail_tests::settings;
use taffrail_tests::tools::{self, Tool, say};

/// Room for the store's segments and its reserve.
const DISK_MIB: u64 = 3072;

/// A segment that a round fills, so that cuts fall on sealing too.
const SEGMENT_BYTES: u64 = 8 << 20;

/// The longest time between a start and the cut.
const ROUND_MS_MAX: u64 = 1_200;

/// Values of `storage.io` that share the rounds.
const BACK_ENDS: u64 = 2;

/// What a server says that was told to use a ring where there can be none, as in most containers.
const NO_RING: &str = "io_uring cannot be set up";

/// Rounds in which the control has to lose something; one is nearly always enough.
const CONTROL_ROUNDS_MAX: u64 = 5;

/// Every way of asking for durability, answered with success and not done; a write that is to be durable by itself is refused, and made
/// by a write and a flush. `-D` keeps the child's id the server's.
const NO_SYNC: [&str; 13] = [
    "-D",
    "-f",
    "-qq",
    "-o",
    "/dev/null",
    "--seccomp-bpf",
    "-e",
    "trace=fsync,fdatasync,pwritev2,sync_file_range,syncfs,sync,msync",
    "-e",
    "inject=pwritev2:error=EOPNOTSUPP",
    "-e",
    "inject=fsync,fdatasync,sync_file_range,syncfs,sync,msync:retval=0",
    "--",
];

struct PowerCut {
    // Before the disk: the server has to end before its file system goes.
    server: Server,
    load: Load,
    disk: LoopDisk,
}

impl PowerCut {
    /// A server whose data lie on a loop disk, with that `storage.io`. It is started once, in good order, so that the first round is
    /// not about the making of the store.
    fn prepare(seed: u64, io: &str) -> Result<Self> {
        let disk = LoopDisk::make(DISK_MIB)?;
        let data_dir = Some(disk.mount_point().join("data"));
        let options = Options { data_dir, ..Options::default() }
            .key("storage", "segment_bytes", SEGMENT_BYTES)
            .key("storage", "io", io);
        let server = Server::start_with(options)?;
        let load = Load::new(seed, || server.admin())?;
        Ok(Self { server, load, disk })
    }

    /// Load, cut, kill, and the file system as it comes back. Returns what was acknowledged.
    fn cut(&mut self, after: Duration) -> Result<u64> {
        let (server, disk) = (&mut self.server, &self.disk);
        let round = self.load.round(Fault::Disk, || {
            std::thread::sleep(after);
            // With the power everything stops at one instant, and nobody is told anything after it. A file system that
            // is shut down takes a tenth of a second over it, in which a flush that is under way may be answered with
            // success and not be durable (ext4 forgets the error of an extent conversion then). So no answer may
            // leave the server from here on.
            server.freeze()?;
            disk.cut_power()?;
            server.kill9()
        })?;
        ensure!(round.wrong.is_empty(), "{:#?}\n{}", round.wrong, self.server.log_tail());
        self.disk.unmount()?;
        self.disk.mount()?;
        // The journal was replayed by that mount; the file system itself must be sound, or the test proves nothing.
        self.disk.unmount()?;
        self.disk.check()?;
        self.disk.mount()?;
        Ok(round.acknowledged)
    }
}

#[test]
fn what_was_acknowledged_survives_a_power_cut() -> Result<()> {
    survives("threads")
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_with_large_writes_on_the_ring() -> Result<()> {
    survives("uring")
}

/// Half of the rounds, with that `storage.io`.
fn survives(io: &str) -> Result<()> {
    if !tools::present(&NEEDS)? {
        return Ok(());
    }
    let (rounds, seed) = (settings::powercut_rounds().div_ceil(BACK_ENDS), settings::seed());
    say(&format!("power cut: {io}, seed {seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let mut rig = match PowerCut::prepare(seed, io) {
        Err(error) if format!("{error:#}").contains(NO_RING) => return tools::skip(NO_RING),
        rig => rig?,
    };
    let (mut acknowledged, mut checked, mut traces) = (0, 0, BTreeSet::new());
    for round in 1..=rounds {
        acknowledged += rig.cut(Duration::from_millis(random.random_range(100..ROUND_MS_MAX)))?;
        let left = fsck::check(rig.server.data_dir(), Ended::ByCrash, fsck::Depth::Checksums)
            .with_context(|| format!("round {round}, seed {seed}"))?;
        traces.extend(left.traces.into_keys());
        rig.server.restart().with_context(|| format!("round {round}, seed {seed}"))?;
        let depth = if round == rounds { Depth::Full } else { Depth::Recent };
        let verdict = rig.load.check(depth)?;
        checked += verdict.checked;
        ensure!(
            verdict.broken.is_empty(),
            "round {round}, seed {seed}: {:#?}\n{}",
            verdict.broken,
            rig.server.log_tail()
        );
    }
    say(&format!(
        "power cut: {io}, {rounds} rounds, {acknowledged} acknowledged, {checked} promises checked, 0 lost"
    ));
    ensure!(acknowledged >= rounds, "the load hardly ran: {acknowledged} acknowledged");
    ensure!(rig.server.terminate()?.success(), "the server did not drain\n{}", rig.server.log_tail());
    let left = fsck::check(rig.server.data_dir(), Ended::InOrder, fsck::Depth::Digests)
        .with_context(|| format!("seed {seed}"))?;
    say(&format!(
        "power cut: {io}, the checker read {} blobs of the closed store; the cuts left traces of {traces:?}, the end of {:?}",
        left.blobs, left.traces
    ));
    Ok(())
}

#[test]
fn a_server_whose_syncs_do_nothing_loses_what_it_acknowledged() -> Result<()> {
    if !tools::present(&NEEDS)? || !tools::present(&[Tool::Program("strace")])? {
        return Ok(());
    }
    let seed = settings::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut rig = PowerCut::prepare(seed, "auto")?;
    let mut acknowledged = 0;
    for round in 1..=CONTROL_ROUNDS_MAX {
        // In good order, so that only the rounds without syncs are judged.
        rig.server.terminate()?;
        rig.server.set_wrapper(no_sync()?);
        rig.server.restart()?;
        acknowledged += rig.cut(Duration::from_millis(random.random_range(600..ROUND_MS_MAX)))?;
        // What comes back is judged by a server that syncs.
        rig.server.set_wrapper(Vec::new());
        let lost = match rig.server.restart() {
            Err(error) => format!("the store does not open: {}", first_line(&error)),
            Ok(_) => match rig.load.check(Depth::Full)?.broken.as_slice() {
                [] => continue,
                broken => format!("{} promises are broken, such as: {}", broken.len(), broken[0]),
            },
        };
        say(&format!(
            "power cut, control without syncs: {acknowledged} acknowledged in {round} rounds; {lost}"
        ));
        return Ok(());
    }
    anyhow::bail!("{acknowledged} acknowledged without one sync, and all survived: the test sees nothing")
}

fn no_sync() -> Result<Vec<String>> {
    let strace = tools::find("strace")?;
    let path: &Path = &strace;
    Ok(std::iter::once(path.to_string_lossy().into_owned()).chain(NO_SYNC.map(str::to_owned)).collect())
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}
