//! The ring beside the threads: the same histories, the same bytes, kill -9, damage.
//!
//! Where the system makes no ring these tests pass and say `SKIPPED`. `TAFFRAIL_RING=forbidden` says that it must not make one: then
//! they check that it does not, and the rest of the suite runs without.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::disk::uring::{Ring, UringDisk};
use taffrail_blobstore::disk::{Access, Disk};
use taffrail_blobstore::{Algorithm, Digest, ReadError, Store, Threading};

use crate::budget::{check_one, say, seed};
use crate::catalog::{noise, repository};
use crate::operation::{Crashes, history};
use crate::world::{World, ensure, options, wait};

/// Histories on real files, which are flushed.
const FILE_HISTORIES: u64 = 12;
const HISTORY_LENGTH: usize = 30;

/// Rounds of kill -9 on each back end.
const KILLS: u64 = 6;
/// A process is killed after so many acknowledged blobs at most, and a moment.
const ACKNOWLEDGED_MAX: u64 = 12;
/// Blobs that the killed process pushes at the same time.
const PUSHERS: u64 = 3;

/// Where the process that is to be killed has its store, and by which back end: `ring:FOLDER` or `threads:FOLDER`.
const VICTIM: &str = "TAFFRAIL_VICTIM";

#[expect(clippy::disallowed_methods, reason = "tests are told by the environment what the machine must be")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A ring, or none with a `SKIPPED` line.
fn ring(test: &str) -> Option<Ring> {
    let forbidden = variable("TAFFRAIL_RING").is_some_and(|word| word == "forbidden");
    match Ring::start() {
        Ok(_) if forbidden => panic!("a ring was made although it is forbidden"),
        Ok(ring) => Some(ring),
        Err(error) => {
            let line = format!("SKIPPED {test}: {error}");
            say(&line);
            if let Some(file) = variable("TAFFRAIL_SKIPPED_FILE").filter(|_| !forbidden) {
                let mut file = std::fs::OpenOptions::new().append(true).open(file).unwrap();
                writeln!(file, "{line}").unwrap();
            }
            None
        }
    }
}

fn with_threads() -> taffrail_blobstore::Options {
    let mut options = options();
    options.threading = Threading::Pool { storage_threads: 2 };
    options
}

fn on_ring(folder: &Path, ring: Ring) -> Arc<dyn Disk> {
    Arc::new(UringDisk::new(ThreadsDisk::open(folder).unwrap(), ring))
}

fn large(number: u64) -> (Digest, Bytes) {
    let bytes = Bytes::from(noise(number + 1, 1_100_000 + usize::try_from(number % 7).unwrap() * 700_000));
    (Digest::of(Algorithm::Sha256, &bytes), bytes)
}

fn push(store: &Store, number: u64) {
    let (digest, bytes) = large(number);
    wait(async {
        let session = taffrail_blobstore::SessionId::new(rand::random());
        store.begin_upload(repository(0), Algorithm::Sha256, session, 1_000_000).unwrap();
        let mut upload = store.open_upload(repository(0), session, 1_000_000).await.unwrap();
        for at in (0..bytes.len()).step_by(300_000) {
            upload.write(bytes.slice(at..bytes.len().min(at + 300_000)), 1_000_000).await.unwrap();
        }
        upload.commit(&digest, 1_000_000).await.unwrap();
    });
}

fn read(store: &Store, number: u64) -> Result<(), ReadError> {
    let (digest, bytes) = large(number);
    let mut reader = store.open_blob(repository(0), &digest)?;
    let mut at = 0;
    while at < bytes.len() {
        let block = wait(reader.read(at as u64, bytes.len() as u64))?;
        assert!(block == bytes[at..at + block.len()], "wrong bytes at {at} of blob {number}");
        at += block.len();
    }
    Ok(())
}

#[test]
fn the_engine_agrees_with_the_model_on_a_ring() {
    let Some(_) = ring("the model on a ring") else { return };
    let (seed, mut by_ring) = (seed(), 0);
    for case in 0..FILE_HISTORIES {
        check_one("model on a ring", seed + case, &history(HISTORY_LENGTH, Crashes::Never), |history| {
            let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
            let ring = Ring::start().map_err(|error| error.to_string())?;
            let disk = on_ring(folder.path(), ring);
            let mut world = World::new(Arc::clone(&disk), None, with_threads())?;
            world.run(history)?;
            world.compare_contents()?;
            world.drain()?;
            by_ring += disk.counters().ring_written_bytes;
            Ok(())
        });
    }
    assert!(by_ring > 0, "{FILE_HISTORIES} histories wrote nothing through the ring (seed {seed})");
    say(&format!("{FILE_HISTORIES} histories wrote {by_ring} bytes through the ring (seed {seed})"));
}

#[test]
fn a_ring_writes_the_same_solo_files_as_threads_do() {
    let Some(_) = ring("the same bytes on a ring") else { return };
    let seed = seed();
    for case in 0..FILE_HISTORIES {
        check_one("same bytes", seed + case, &history(HISTORY_LENGTH, Crashes::Never), |history| {
            let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let ring = Ring::start().map_err(|error| error.to_string())?;
            let disk = on_ring(folders[0].path(), ring);
            let mut by_ring = World::new(disk, None, with_threads())?;
            let files = ThreadsDisk::open(folders[1].path()).map_err(|error| error.to_string())?;
            let mut by_threads = World::new(Arc::new(files), None, with_threads())?;
            by_ring.run(history)?;
            by_threads.run(history)?;
            ensure!(by_ring.model == by_threads.model, "the models differ");
            by_ring.close()?;
            by_threads.close()?;
            let [on_ring, on_threads] = folders.map(|folder| solo_files(folder.path()));
            ensure!(on_ring.keys().eq(on_threads.keys()), "other files");
            for (name, bytes) in &on_ring {
                ensure!(on_threads.get(name) == Some(bytes), "{name} differs");
            }
            Ok(())
        });
    }
}

/// Solo files of a store that is closed, by name.
fn solo_files(store: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let disk = ThreadsDisk::open_read_only(store).unwrap();
    let folders = (0..=0xff_u8).map(|number| format!("solo/{number:02x}"));
    folders
        .flat_map(|folder| {
            let names = disk.list(&folder).unwrap();
            names.into_iter().map(move |name| format!("{folder}/{name}"))
        })
        .map(|name| {
            let bytes = std::fs::read(store.join(&name)).unwrap();
            (name, bytes)
        })
        .collect()
}

#[test]
fn what_a_ring_wrote_and_rot_changed_is_quarantined() {
    let Some(ring) = ring("rot under a ring") else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = on_ring(folder.path(), ring);
    let store = Store::open(Arc::clone(&disk), with_threads(), 1_000_000).unwrap();
    push(&store, 3);
    read(&store, 3).unwrap();
    assert!(disk.counters().ring_written_bytes > 1 << 20);
    let name = solo_files(folder.path()).into_keys().next().unwrap();
    let file = disk.open(&name, Access::Cached).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, 1_500_000).unwrap();
    file.write_at(&[byte[0] ^ 1], 1_500_000).unwrap();
    file.sync().unwrap();
    assert!(matches!(read(&store, 3), Err(ReadError::Corrupt { .. })));
    assert!(matches!(read(&store, 3), Err(ReadError::Unknown)));
    push(&store, 3);
    read(&store, 3).unwrap();
}

#[test]
fn what_was_acknowledged_survives_kill_9_on_every_back_end() {
    if let Some(victim) = variable(VICTIM) {
        return push_until_killed(&victim);
    }
    let with_ring = ring("kill -9 on a ring").is_some();
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    for back_end in ["ring", "threads"].into_iter().filter(|name| with_ring || *name == "threads") {
        let folder = tempfile::tempdir().unwrap();
        let (mut acknowledged, mut torn) = (Vec::new(), 0);
        for round in 0..KILLS {
            let victim = format!("{back_end}:{round}:{}", folder.path().display());
            acknowledged.extend(kill_one(&victim, &mut random));
            // Opened by the other back end: what either leaves, both take up.
            let disk: Arc<dyn Disk> = match Ring::start() {
                Ok(ring) if back_end == "threads" => on_ring(folder.path(), ring),
                _ => Arc::new(ThreadsDisk::open(folder.path()).unwrap()),
            };
            let before = solo_files(folder.path()).len();
            let store = Store::open(disk, with_threads(), 1_000_000).unwrap();
            for number in &acknowledged {
                let outcome = read(&store, *number);
                assert!(
                    outcome.is_ok(),
                    "{back_end}, round {round}, seed {seed}: blob {number}: {outcome:?}"
                );
            }
            torn += usize::from(before > acknowledged.len());
            store.close().unwrap();
        }
        let count = acknowledged.len();
        say(&format!(
            "kill -9 on {back_end}: {KILLS} kills, {torn} within a push, {count} acknowledged, 0 lost (seed {seed})"
        ));
    }
}

/// Starts a process that pushes, kills it, and gives the blobs that it acknowledged.
fn kill_one(victim: &str, random: &mut StdRng) -> Vec<u64> {
    let test = "backends::what_was_acknowledged_survives_kill_9_on_every_back_end";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(VICTIM, victim)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let wanted = random.random_range(1..ACKNOWLEDGED_MAX);
    let number = |line: std::io::Result<String>| {
        line.unwrap_or_default().strip_prefix("acknowledged ").and_then(|number| number.parse::<u64>().ok())
    };
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = Vec::new();
    while (acknowledged.len() as u64) < wanted {
        acknowledged.extend(number(lines.next().unwrap()));
    }
    // The moment of the kill is what this is about: somewhere in the pushes under way.
    for _ in 0..random.random_range(0..4) {
        std::hint::black_box(large(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    acknowledged.extend(lines.filter_map(number));
    acknowledged
}

/// Pushes large blobs from several threads and says which ones are durable.
fn push_until_killed(victim: &str) {
    let [back_end, round, folder] = victim.splitn(3, ':').collect::<Vec<_>>()[..] else { panic!("{victim}") };
    let folder = Path::new(folder);
    let disk: Arc<dyn Disk> = match back_end {
        "ring" => on_ring(folder, Ring::start().unwrap()),
        _ => Arc::new(ThreadsDisk::open(folder).unwrap()),
    };
    let store = Store::open(disk, with_threads(), 1_000_000).unwrap();
    let first = round.parse::<u64>().unwrap() * 1_000;
    std::thread::scope(|scope| {
        for pusher in 0..PUSHERS {
            let store = &store;
            scope.spawn(move || {
                for number in (first + pusher..first + 1_000).step_by(3) {
                    push(store, number);
                    say(&format!("acknowledged {number}"));
                }
            });
        }
    });
}
