//! Histories that once failed, as they were printed. Each is headed by what broke and why.

use taffrail_blobstore::disk::sim::SimDisk;

use crate::crash::sweep;
use crate::operation::Op::{self, *};
use crate::world::World;

/// Runs a history, drains the store, and crashes everywhere in it.
fn holds(history: &[Op]) {
    let mut world = World::on_sim(&SimDisk::new()).unwrap();
    world.run(history).and_then(|()| world.drain()).unwrap_or_else(|error| panic!("{error}"));
    // Half of them on a disk that gains from zeros.
    for seed in 0..6 {
        sweep(history, seed).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A session that had lost its file to power loss was ended in memory alone: no SESSION END was logged, so that it came
/// back with the next opening and kept its log segment for ever.
#[test]
fn a_session_that_lost_its_file_ends_for_good() {
    holds(&[
        Begin { slot: 0, repository: 0, blob: 11 },
        Write { slot: 0, bytes: 1_048_577 },
        PowerLoss { seed: 59_363 },
        Abort { slot: 0 },
        Reopen,
    ]);
}

/// The test's own mistake: while a session is being started over it holds nothing, and may be forgotten like any other
/// that holds nothing.
#[test]
fn a_session_that_is_started_over_may_be_forgotten() {
    holds(&[
        Begin { slot: 0, repository: 1, blob: 11 },
        Write { slot: 0, bytes: 1_048_577 },
        Restart { slot: 0, blob: 11, bytes: 1_048_577 },
        Commit { slot: 0 },
    ]);
}

/// Garbage whose UNLINK went with its log segment was dated by the first collection after an opening, not by the opening, and
/// stayed a grace time longer.
#[test]
fn garbage_that_no_record_dates_is_dated_by_the_opening() {
    holds(&[
        Push { repository: 0, blob: 1 },
        Unlink { repository: 0, blob: 1 },
        Tick { ms: 0 },
        Collect { budget: 100 },
        Push { repository: 0, blob: 0 },
        Kill { seed: 0 },
        Push { repository: 0, blob: 2 },
        Kill { seed: 0 },
        Checkpoint,
        Compact { kib: 1 },
        Push { repository: 0, blob: 0 },
        Kill { seed: 0 },
        Kill { seed: 0 },
        Push { repository: 0, blob: 8 },
    ]);
}

/// A session that was started over has an end in the log, and goes on behind it. Compaction copied both, and the copy of the end, which
/// came last, ended it for good.
#[test]
fn the_copy_of_an_end_spares_a_session_that_was_started_over() {
    holds(&[
        Push { repository: 0, blob: 9 },
        Push { repository: 0, blob: 10 },
        Begin { slot: 1, repository: 0, blob: 9 },
        Rewind { slot: 1, bytes: 1_048_577 },
        Restart { slot: 1, blob: 11, bytes: 262_144 },
        Write { slot: 1, bytes: 786_433 },
        Kill { seed: 36_942 },
        Push { repository: 0, blob: 0 },
        Kill { seed: 2_286 },
        Checkpoint,
        Compact { kib: 1 },
    ]);
}
