//! Canaries: engines that lose data on purpose. Each must be caught by the crash sweep, or the sweep proves nothing.
//!
//! An engine that acknowledges before it has flushed is the same as one whose flush does nothing, so that a disk which
//! lies about one kind of flush plants the bug without a second build of the engine.

use taffrail_blobstore::disk::sim::{Call, SimDisk};

use crate::budget::{say, seed};
use crate::crash::{disk_of, mix, sweep_on};
use crate::operation::Op;

/// Commits of every kind: inline, manifest, mount, deletion, a solo file, and a session that has one.
fn history() -> Vec<Op> {
    vec![
        Op::Push { repository: 0, blob: 6 },
        Op::Put { repository: 0, blob: 4, needs: vec![6], pins: 0 },
        Op::Mount { from: 0, to: 1, blob: 6 },
        Op::Push { repository: 0, blob: 12 },
        Op::Begin { slot: 0, repository: 1, blob: 13 },
        Op::Write { slot: 0, bytes: 1_500_000 },
        Op::Unlink { repository: 1, blob: 6 },
        Op::Checkpoint,
        Op::Reopen,
        Op::Push { repository: 2, blob: 7 },
    ]
}

/// Sweeps until something is lost; panics when nothing is.
fn must_be_caught(what: &str, plant: impl Fn(&SimDisk)) {
    let seed = seed();
    for kind in 0..2 {
        let loss = (0..20).find_map(|round| {
            let disk = disk_of(kind);
            plant(&disk);
            sweep_on(&disk, &history(), mix(seed, round)).err().map(|loss| (round, loss))
        });
        let Some((round, loss)) = loss else {
            panic!("{what}, disk {kind}: nothing was found to be lost; TAFFRAIL_SEED={seed}");
        };
        say(&format!("{what}, disk {kind}, round {round}: caught: {loss}"));
    }
}

#[test]
fn a_disk_whose_flushes_do_nothing_is_caught() {
    must_be_caught("no flush does anything", |disk| {
        disk.lie_about_flushes(Call::Sync, "");
        disk.lie_about_flushes(Call::SyncDir, "");
    });
}

#[test]
fn an_engine_that_acknowledges_before_the_log_is_flushed_is_caught() {
    must_be_caught("the log is not flushed", |disk| disk.lie_about_flushes(Call::Sync, "log/"));
}

#[test]
fn an_engine_that_does_not_flush_solo_files_is_caught() {
    must_be_caught("solo files are not flushed", |disk| disk.lie_about_flushes(Call::Sync, "solo/"));
}

#[test]
fn an_engine_that_does_not_flush_the_names_of_log_segments_is_caught() {
    must_be_caught("names of log segments are not flushed", |disk| {
        disk.lie_about_flushes(Call::SyncDir, "log")
    });
}

#[test]
fn an_engine_that_does_not_flush_the_names_of_solo_files_is_caught() {
    must_be_caught("names of solo files are not flushed", |disk| {
        disk.lie_about_flushes(Call::SyncDir, "solo")
    });
}

#[test]
fn a_store_on_an_honest_disk_is_not_called_lossy() {
    let seed = seed();
    for round in 0..2 {
        sweep_on(&disk_of(round), &history(), mix(seed, round)).unwrap_or_else(|loss| panic!("{loss}"));
    }
}
