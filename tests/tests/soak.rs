//! Collection without pause beside clients who need what is being collected (P-06): nothing that was promised goes, and in the end
//! everything that was deleted is given back.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use taffrail_tests::fsck::{self, Ended};
use taffrail_tests::server::{Options, Server};
use taffrail_tests::settings;
use taffrail_tests::soak::Soak;
use taffrail_tests::tools::say;

const CLIENTS: u64 = 6;

/// The shortest that there is.
const LEASE_SECS: u64 = 1;

const COLLECTION_PAUSE_MS: u64 = 10;

/// Small, so that log segments come and go.
const SEGMENT_BYTES: u64 = 1 << 20;

/// What of the dead bytes must come back, in percent.
const GIVEN_BACK_MIN: u64 = 95;

/// Whether the dead bytes of log segments in which something lives come back: that is compaction's work.
const LOG_IS_COMPACTED: bool = true;

/// A link that was leased when it was to go is tried again after ten seconds, and twice that.
const RECLAIM_DEADLINE: Duration = Duration::from_secs(60);

/// Images of this many are kept for a while when the others go.
const KEPT_ONE_IN: usize = 10;

#[test]
fn nothing_promised_goes_while_garbage_is_collected_without_pause_and_all_of_it_comes_back() -> Result<()> {
    let (events, seed) = (settings::soak_events().max(100), settings::seed());
    say(&format!("soak: seed {seed} (TAFFRAIL_SEED={seed} repeats the load, not its timing)"));
    let mut server = Server::start_with(restless())?;
    let soak = Soak::new(seed, Duration::from_secs(LEASE_SECS))?;
    let started = Instant::now();
    let ended = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (soak, server) = (&soak, &server);
                scope.spawn(move || soak.work(number, seed, &server.admin()?, events))
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|_| bail!("a client panicked")))
            .collect::<Vec<_>>()
    });
    let took = started.elapsed();
    let (tally, broken) = (&soak.tally, soak.tally.broken());
    ensure!(broken.is_empty(), "seed {seed}: {broken:#?}\n{}", server.log_tail());
    ended.into_iter().collect::<Result<Vec<()>>>()?;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let collected = collected(&server);
    say(&format!(
        "soak: {} requests in {took:.0?}: {} images pushed ({} blobs spared, {} mounted), {} pulled and verified, {} tags moved, \
         {} deleted; {} gone meanwhile, {} pushes outlived their lease; {} blobs of {} bytes and {} segments collected beside them; \
         0 promises broken",
        count(&tally.events),
        count(&tally.pushes),
        count(&tally.spared),
        count(&tally.mounts),
        count(&tally.pulls),
        count(&tally.moves),
        count(&tally.deletions),
        count(&tally.gone),
        count(&tally.late),
        collected.blobs,
        collected.bytes,
        collected.segments,
    ));
    ensure!(collected.blobs > events / 200, "collection hardly ran");
    ensure!(
        count(&tally.pulls) > 0 && count(&tally.mounts) > 0 && count(&tally.spared) > 0,
        "the load was idle"
    );
    give_back(&mut server, &soak)?;
    let log = server.log();
    ensure!(!log.contains("a blob is damaged"), "the scrub set aside what is whole\n{}", server.log_tail());
    ensure!(log.contains("scrubbed the store"), "the scrub did not run\n{}", server.log_tail());
    ensure!(server.terminate()?.success(), "the server did not drain\n{}", server.log_tail());
    fsck::check(server.data_dir(), Ended::InOrder, fsck::Depth::Digests)?;
    Ok(())
}

/// Deletes most images and then all, and measures what the disk has back.
fn give_back(server: &mut Server, soak: &Soak) -> Result<()> {
    let store = server.data_dir().join("store");
    let before = Used::of(&store)?;
    soak.delete_all(&server.admin()?, |image| image % KEPT_ONE_IN != 0)?;
    restart(server)?;
    let most = settle(&store)?;
    say(&format!(
        "soak: nine of ten images deleted: {} bytes of log and {} of files are left of {} and {}",
        most.log, most.solo, before.log, before.solo
    ));
    let given_back = |left: u64, of: u64| 100 - left.min(of) * 100 / of.max(1);
    if LOG_IS_COMPACTED {
        // What lives is a tenth of what the images have, and the segment at hand is not compacted.
        let room = before.log / 10 + 2 * SEGMENT_BYTES;
        ensure!(
            given_back(most.log.saturating_sub(room), before.log) >= GIVEN_BACK_MIN,
            "{most:?} is left of {before:?}"
        );
    }
    soak.delete_all(&server.admin()?, |_| true)?;
    restart(server)?;
    let left = settle(&store)?;
    // The segment that is being written is reserved whole.
    let log = left.log.saturating_sub(SEGMENT_BYTES);
    say(&format!(
        "soak: everything deleted: {} bytes of log and {} of files are left; {} and {} percent are given back",
        left.log,
        left.solo,
        given_back(log, before.log),
        given_back(left.solo, before.solo)
    ));
    ensure!(given_back(left.solo, before.solo) >= GIVEN_BACK_MIN, "{left:?} is left of {before:?}");
    ensure!(given_back(log, before.log) >= GIVEN_BACK_MIN, "{left:?} is left of {before:?}");
    Ok(())
}

/// A clean stop writes a checkpoint: what lies before it may go.
fn restart(server: &mut Server) -> Result<()> {
    ensure!(server.terminate()?.success(), "the server did not drain\n{}", server.log_tail());
    server.restart()?;
    Ok(())
}

/// Waits until nothing more was given back for longer than a link is put off.
fn settle(store: &Path) -> Result<Used> {
    let started = Instant::now();
    let (mut least, mut since) = (Used::of(store)?, Instant::now());
    while started.elapsed() < RECLAIM_DEADLINE && since.elapsed() < Duration::from_secs(12) {
        std::thread::sleep(Duration::from_millis(100));
        let now = Used::of(store)?;
        if now != least {
            (least, since) = (now, Instant::now());
        }
    }
    Ok(least)
}

/// Bytes that the disk has given to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Used {
    log: u64,
    solo: u64,
}

impl Used {
    fn of(store: &Path) -> Result<Used> {
        Ok(Used { log: bytes_in(&store.join("log"))?, solo: bytes_in(&store.join("solo"))? })
    }
}

/// What the files in a folder and those below it take. A file may go while it is looked at.
fn bytes_in(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(found) if found.is_dir() => bytes += bytes_in(&entry.path())?,
            Ok(found) => bytes += found.blocks() * 512,
            Err(_) => {}
        }
    }
    Ok(bytes)
}

/// What was collected, as the server's log has it.
struct Collected {
    blobs: u64,
    bytes: u64,
    segments: u64,
}

fn collected(server: &Server) -> Collected {
    let log = server.log();
    let sum = |key: &str| {
        let lines = log.lines().filter(|line| line.contains("collected garbage"));
        let values = lines.filter_map(|line| {
            line.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
        });
        values.sum()
    };
    Collected { blobs: sum("blobs="), bytes: sum("bytes="), segments: sum("segments=") }
}

/// Times as short as they get, and a scrub that never rests for long.
fn restless() -> Options {
    Options::default()
        .key("storage", "segment_bytes", SEGMENT_BYTES)
        .key("storage", "lease_secs", LEASE_SECS)
        .key("storage", "grace_secs", 0)
        .key("storage", "collection_pause_ms", COLLECTION_PAUSE_MS)
        .key("scrub", "period_secs", 1)
        .key("scrub", "bytes_per_sec", 64 << 20)
}
