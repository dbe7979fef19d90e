//! One history on every back end and in every way of threading: the same answers from all.

use std::collections::BTreeMap;
use std::sync::Arc;

use taffrail_blobstore::Threading;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::disk::threads::ThreadsDisk;

use crate::budget::{check_one, say, seed};
use crate::crash::disk_of;
use crate::operation::{Crashes, Op, history};
use crate::world::{After, Outcome, World, options};

/// Histories on the simulated disk: they cost a millisecond each.
const SIM_HISTORIES: u64 = 200;
/// Histories on real files, which are flushed.
const FILE_HISTORIES: u64 = 12;
const HISTORY_LENGTH: usize = 30;

fn with_threads() -> Threading {
    Threading::Pool { storage_threads: 2 }
}

fn run_and_drain(mut world: World, history: &[Op]) -> Outcome<World> {
    world.run(history)?;
    world.compare_contents()?;
    world.drain()?;
    Ok(world)
}

/// Loses what can be had from the log again, and what there are two of; the store must not notice.
fn survives_loss_of_what_is_derived(world: &World) -> Outcome {
    let files = world.sim().files();
    let checkpoints: Vec<&str> =
        files.iter().map(|(name, _)| name.as_str()).filter(|name| name.starts_with("index/")).collect();
    let losses: [(&str, &[&str]); 4] = [
        ("no checkpoint", &checkpoints),
        ("the newest checkpoint", &checkpoints[checkpoints.len().saturating_sub(1)..]),
        ("SUPER.0", &["SUPER.0"]),
        ("SUPER.1", &["SUPER.1"]),
    ];
    for (what, lost) in losses {
        let disk = world.sim().fork();
        for name in lost {
            // There is no checkpoint yet in a short history.
            disk.uproot(name);
        }
        let mut other = World::reopen_on(&disk, world.model.clone())
            .map_err(|error| format!("without {what}: {error}"))?;
        other
            .adopt_sessions(After::Kill)
            .and_then(|()| other.step(&Op::Tick { ms: 0 }))
            .and_then(|()| other.compare_contents())
            .map_err(|error| format!("without {what}: {error}"))?;
    }
    Ok(())
}

/// Histories must reach what they are for; a change of the weights that loses something is found here.
const MEANT_TO_BE_SEEN: [&str; 24] = [
    "blob pushed twice",
    "blobs collected",
    "collection beside a backup",
    "compaction cut short",
    "garbage pushed again",
    "log segments compacted",
    "log segments dropped",
    "manifest put",
    "manifest refused",
    "more than three log segments",
    "mounted",
    "orphans swept",
    "records copied",
    "session expired",
    "session forgotten",
    "session of several requests committed",
    "session resumed after kill",
    "session resumed after power loss",
    "session resumed at 0",
    "snapshot restored",
    "unlink beside a backup",
    "unlink refused by a pin",
    "unlinked if",
    "wrong digest",
];

#[test]
fn the_engine_agrees_with_the_model_on_a_simulated_disk_that_crashes_between_operations() {
    let seed = seed();
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for case in 0..SIM_HISTORIES {
        check_one("model", seed + case, &history(HISTORY_LENGTH, Crashes::Between), |history| {
            let mut world = World::on_sim(&disk_of(seed + case))?;
            world.run(history)?;
            world.drop_store();
            survives_loss_of_what_is_derived(&world)?;
            world.open()?;
            world.adopt_sessions(After::Kill)?;
            world.compare_contents()?;
            world.drain()?;
            for (what, count) in world.seen {
                *seen.entry(what).or_default() += count;
            }
            Ok(())
        });
    }
    say(&format!("{SIM_HISTORIES} histories on the simulated disk reached {seen:?} (seed {seed})"));
    for what in MEANT_TO_BE_SEEN {
        assert!(seen.contains_key(what), "{SIM_HISTORIES} histories never reached: {what} (seed {seed})");
    }
}

#[test]
fn the_engine_agrees_with_the_model_on_real_files() {
    let seed = seed();
    for case in 0..FILE_HISTORIES {
        check_one("model on files", seed + case, &history(HISTORY_LENGTH, Crashes::Never), |history| {
            let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
            let disk = ThreadsDisk::open(folder.path()).map_err(|error| error.to_string())?;
            run_and_drain(World::new(Arc::new(disk), None, options())?, history).map(drop)
        });
    }
}

#[test]
fn the_engine_agrees_with_the_model_when_it_has_threads_of_its_own() {
    let seed = seed();
    for case in 0..SIM_HISTORIES {
        check_one("model with threads", seed + case, &history(HISTORY_LENGTH, Crashes::Never), |history| {
            let mut options = options();
            options.threading = with_threads();
            let disk = disk_of(seed + case);
            run_and_drain(World::new(Arc::new(disk.clone()), Some(disk), options)?, history).map(drop)
        });
    }
}

#[test]
fn all_back_ends_write_the_same_log_and_solo_files() {
    let seed = seed();
    for case in 0..FILE_HISTORIES {
        check_one("same bytes", seed + case, &history(HISTORY_LENGTH, Crashes::Never), |history| {
            let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
            let files = ThreadsDisk::open(folder.path()).map_err(|error| error.to_string())?;
            let mut on_files = World::new(Arc::new(files), None, options())?;
            let sim = SimDisk::new();
            let mut on_sim = World::on_sim(&sim)?;
            on_files.run(history)?;
            on_sim.run(history)?;
            crate::world::ensure!(on_files.model == on_sim.model, "the models differ");
            on_files.drop_store();
            on_sim.drop_store();
            // Checkpoints hold the same in an order of their own.
            let compared = |name: &String| name.starts_with("log/") || name.starts_with("solo/");
            for name in sim.files().into_iter().map(|(name, _)| name).filter(compared) {
                let on_disk =
                    std::fs::read(folder.path().join(&name)).map_err(|error| format!("{name}: {error}"))?;
                let simulated = sim.contents(&name).unwrap_or_default();
                crate::world::ensure!(on_disk == simulated, "{name} differs");
            }
            Ok(())
        });
    }
}
