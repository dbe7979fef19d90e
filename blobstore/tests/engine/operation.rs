//! The operation language: what a history is made of.
//!
//! One language serves every test of the engine. `Debug` prints an operation as it would be written in Rust, so that a
//! history that failed is pasted into `regressions.rs` as it was printed.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::catalog::{ALL, REPOSITORIES, SMALL};

/// Upload sessions have so many names; beginning one anew under a name leaves the old one to expire.
pub(crate) const SLOTS: u8 = 3;

/// One step. Repositories, blobs and slots are numbers of [`crate::catalog`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A whole upload: begin, write, commit.
    Push { repository: u8, blob: u8 },
    /// Begins a session that is to become `blob`.
    Begin { slot: u8, repository: u8, blob: u8 },
    /// Writes the next bytes and acknowledges them.
    Write { slot: u8, bytes: u32 },
    /// Writes the next bytes, and the client is gone.
    Leave { slot: u8, bytes: u32 },
    /// Writes wrong bytes, goes back to where the session was opened, and acknowledges that.
    Rewind { slot: u8, bytes: u32 },
    /// Throws the session's bytes away, writes some of another blob and acknowledges them.
    Restart { slot: u8, blob: u8, bytes: u32 },
    /// Writes what is missing and commits.
    Commit { slot: u8 },
    /// Writes wrong bytes and commits, which is refused.
    CommitWrong { slot: u8, bytes: u32 },
    /// Ends the session.
    Abort { slot: u8 },
    /// Stores a manifest, which needs others; they stay pinned under `pins` until [`Op::Unpin`].
    Put { repository: u8, blob: u8, needs: Vec<u8>, pins: u8 },
    /// The manifest is in the catalog.
    Unpin { pins: u8 },
    /// Links a blob of one repository in another.
    Mount { from: u8, to: u8, blob: u8 },
    /// Removes a link whatever leases say.
    Unlink { repository: u8, blob: u8 },
    /// Removes a link that is not leased, pinned or newer than was looked at.
    UnlinkIf { repository: u8, blob: u8, stale: bool },
    /// A HEAD, which grants a lease.
    Stat { repository: u8, blob: u8 },
    /// Reads a range, in thousandths of the blob.
    Read { repository: u8, blob: u8, from: u16, to: u16 },
    /// Time passes, in milliseconds.
    Tick { ms: u32 },
    /// Ends idle sessions.
    Expire,
    /// Collects garbage.
    Collect { budget: u8 },
    /// Compacts the log until so many KiB were read and written.
    Compact { kib: u16 },
    /// Writes a checkpoint.
    Checkpoint,
    /// A backup begins: removals are held.
    Hold,
    /// The backup has copied the catalog, and lists the store's files: links may go again.
    Snapshot,
    /// The backup has fetched the files, or gave up: files may go again.
    Release,
    /// Several commits ([`Op::Push`], [`Op::Put`], [`Op::Mount`], [`Op::Unlink`]) that arrive at the same time.
    Together { ops: Vec<Op> },
    /// Closes the store and opens it.
    Reopen,
    /// Ends the process without a word and opens the store. (Simulated disk only.)
    Kill { seed: u64 },
    /// Loses power and opens the store. (Simulated disk only.)
    PowerLoss { seed: u64 },
}

/// What kind of histories to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crashes {
    /// The disk keeps all it was given.
    Never,
    /// Processes are killed and power is lost between operations.
    Between,
}

/// A history of up to `length` episodes, each of a few operations. Single operations alone would seldom meet: most
/// sessions would never be begun, most deletions find nothing.
pub(crate) fn history(length: usize, crashes: Crashes) -> impl Strategy<Value = Vec<Op>> {
    vec(episode(crashes), 1..=length).prop_map(|episodes| episodes.concat())
}

fn episode(crashes: Crashes) -> impl Strategy<Value = Vec<Op>> {
    prop_oneof![
        6 => op(crashes).prop_map(|op| vec![op]),
        3 => upload(crashes),
        1 => interrupted(crashes),
        2 => life(),
        1 => manifest(),
        1 => filling(),
        1 => aging(crashes),
        1 => backup(crashes),
    ]
}

/// A session from its beginning to whatever end.
fn upload(crashes: Crashes) -> impl Strategy<Value = Vec<Op>> {
    (slot(), repository(), session_blob()).prop_flat_map(move |(slot, repository, blob)| {
        let step = prop_oneof![
            4 => some_bytes().prop_map(move |bytes| Op::Write { slot, bytes }),
            1 => some_bytes().prop_map(move |bytes| Op::Leave { slot, bytes }),
            1 => some_bytes().prop_map(move |bytes| Op::Rewind { slot, bytes }),
            1 => (session_blob(), some_bytes())
                .prop_map(move |(blob, bytes)| Op::Restart { slot, blob, bytes }),
            1 => some_bytes().prop_map(move |bytes| Op::CommitWrong { slot, bytes }),
            2 => op(crashes),
            1 => interruption(crashes),
        ];
        let end = prop_oneof![
            3 => Just(vec![Op::Commit { slot }]),
            1 => Just(vec![Op::Abort { slot }]),
            1 => Just(vec![Op::Tick { ms: 3_000 }, Op::Expire]),
            1 => Just(vec![]),
        ];
        (vec(step, 1..5), end)
            .prop_map(move |(steps, end)| [vec![Op::Begin { slot, repository, blob }], steps, end].concat())
    })
}

/// A large upload that goes on after the store was gone.
fn interrupted(crashes: Crashes) -> impl Strategy<Value = Vec<Op>> {
    let large = || 1_048_577..1_700_000_u32;
    (slot(), repository(), 11..ALL, large(), interruption(crashes), large()).prop_map(
        |(slot, repository, blob, bytes, interruption, more)| {
            vec![
                Op::Begin { slot, repository, blob },
                Op::Write { slot, bytes },
                interruption,
                Op::Write { slot, bytes: more },
                Op::Commit { slot },
            ]
        },
    )
}

fn interruption(crashes: Crashes) -> impl Strategy<Value = Op> {
    any::<u16>().prop_map(move |seed| match (crashes, seed % 2) {
        (Crashes::Never, _) => Op::Reopen,
        (Crashes::Between, 0) => Op::Kill { seed: u64::from(seed) },
        (Crashes::Between, _) => Op::PowerLoss { seed: u64::from(seed) },
    })
}

/// A blob from its push until its bytes are gone.
fn life() -> impl Strategy<Value = Vec<Op>> {
    let until_gone = prop_oneof![Just(0_u32), Just(500), Just(1_200), Just(3_000)];
    (repository(), repository(), blob(), until_gone, any::<[bool; 3]>()).prop_map(
        |(repository, other, blob, ms, [mounted, leniently, checkpoint])| {
            let mut life = vec![Op::Push { repository, blob }];
            if mounted {
                life.push(Op::Mount { from: repository, to: other, blob });
                life.push(Op::Unlink { repository: other, blob });
            }
            if leniently {
                life.push(Op::Tick { ms });
                life.push(Op::UnlinkIf { repository, blob, stale: false });
            } else {
                life.push(Op::Unlink { repository, blob });
            }
            life.push(Op::Tick { ms });
            life.push(Op::Collect { budget: 100 });
            if checkpoint {
                life.extend([Op::Checkpoint, Op::Collect { budget: 1 }, COMPACT_ALL]);
            }
            life
        },
    )
}

/// An image: layer and config, then the manifest that needs both.
fn manifest() -> impl Strategy<Value = Vec<Op>> {
    (repository(), blob(), blob(), 0..SMALL, 0..3_u8, any::<bool>()).prop_map(
        |(repository, layer, config, blob, pins, held)| {
            let mut image = vec![
                Op::Push { repository, blob: layer },
                Op::Push { repository, blob: config },
                Op::Put { repository, blob, needs: vec![layer, config], pins },
            ];
            if held {
                image.push(Op::Unlink { repository, blob: layer });
            }
            image.extend([Op::Unpin { pins }, Op::Unlink { repository, blob: config }]);
            image
        },
    )
}

/// Blobs that fill a log segment each.
fn filling() -> impl Strategy<Value = Vec<Op>> {
    (repository(), any::<bool>(), any::<bool>()).prop_map(|(repository, deleted, checkpoint)| {
        let mut filling = vec![Op::Push { repository, blob: 9 }, Op::Push { repository, blob: 10 }];
        if deleted {
            filling.extend([Op::Unlink { repository, blob: 9 }, Op::Unlink { repository, blob: 10 }]);
        }
        if checkpoint {
            filling.extend([Op::Checkpoint, Op::Tick { ms: 2_500 }, Op::Collect { budget: 100 }]);
            filling.push(COMPACT_ALL);
        }
        filling
    })
}

/// Links that are made, renewed and removed in log segments of their own, which are then compacted in whatever order the engine
/// likes: what raises the dead, if anything does.
fn aging(crashes: Crashes) -> impl Strategy<Value = Vec<Op>> {
    let small = || prop_oneof![6 => 0..SMALL, 1 => 11..ALL];
    let step = (repository(), repository(), small(), small(), 0..7_u8).prop_map(
        |(repository, other, blob, unrelated, what)| match what {
            0 => vec![Op::Push { repository, blob }],
            1 => vec![Op::Mount { from: repository, to: other, blob }],
            2 => vec![Op::Unlink { repository, blob }],
            3 => vec![Op::Push { repository: other, blob: unrelated }, Op::Unlink { repository, blob }],
            4 => vec![Op::Unlink { repository, blob }, Op::Tick { ms: 2_500 }, Op::Collect { budget: 100 }],
            5 => vec![Op::Put { repository, blob: unrelated % SMALL, needs: vec![blob], pins: 0 }],
            _ => vec![Op::UnlinkIf { repository, blob, stale: false }],
        },
    );
    // Every opening begins a segment.
    let segment = (vec(step, 1..4), interruption(crashes), any::<[bool; 2]>(), 1..2_000_u16).prop_map(
        |(steps, interruption, [compacted, cut], kib)| {
            let mut segment = steps.concat();
            segment.push(interruption);
            if compacted {
                segment.extend([Op::Checkpoint, Op::Compact { kib: if cut { 1 } else { kib } }]);
            }
            segment
        },
    );
    vec(segment, 2..5).prop_map(|segments| segments.concat())
}

/// A backup while blobs come and go, with whatever end.
pub(crate) fn backup(crashes: Crashes) -> impl Strategy<Value = Vec<Op>> {
    // What wants something gone, for the most part.
    let beside = move || {
        let step = prop_oneof![
            4 => life(),
            1 => push().prop_map(|push| vec![push]),
            2 => unlink().prop_map(|unlink| vec![unlink]),
            // Pushed twice at once: one of two files is surplus.
            1 => (repository(), repository(), 11..ALL).prop_map(|(repository, other, blob)| {
                vec![Op::Together {
                    ops: vec![Op::Push { repository, blob }, Op::Push { repository: other, blob }],
                }]
            }),
            2 => op(crashes).prop_map(|op| vec![op]),
        ];
        vec(step, 0..3).prop_map(|steps| steps.concat())
    };
    let end =
        prop_oneof![3 => Just(Some(Op::Release)), 1 => interruption(crashes).prop_map(Some), 1 => Just(None)];
    (beside(), beside(), beside(), any::<u8>(), end).prop_map(|(before, during, behind, luck, end)| {
        let mut backup = [before, vec![Op::Hold], during].concat();
        // One in eight gives up before it comes to the files.
        if !luck.is_multiple_of(8) {
            backup.push(Op::Snapshot);
            backup.extend(behind);
        }
        backup.extend(end);
        backup
    })
}

/// As much as there is.
const COMPACT_ALL: Op = Op::Compact { kib: u16::MAX };

fn repository() -> impl Strategy<Value = u8> {
    0..REPOSITORIES
}

fn slot() -> impl Strategy<Value = u8> {
    0..SLOTS
}

/// Mostly small blobs: the large ones cost a hundred times as much to check.
fn blob() -> impl Strategy<Value = u8> {
    prop_oneof![8 => 0..4_u8, 6 => 0..SMALL, 2 => SMALL..11, 1 => 11..ALL]
}

/// For sessions the large ones matter most.
fn session_blob() -> impl Strategy<Value = u8> {
    prop_oneof![3 => 0..SMALL, 1 => SMALL..11, 3 => 11..ALL]
}

fn some_bytes() -> impl Strategy<Value = u32> {
    prop_oneof![
        1 => Just(0),
        2 => 1..5_000_u32,
        2 => Just(262_144_u32),
        2 => Just(524_288_u32),
        3 => 100_000..1_200_000_u32,
        2 => Just(1_048_576_u32),
        3 => 1_048_577..1_700_000_u32,
    ]
}

fn push() -> impl Strategy<Value = Op> {
    (repository(), blob()).prop_map(|(repository, blob)| Op::Push { repository, blob })
}

fn put() -> impl Strategy<Value = Op> {
    (repository(), blob(), vec(blob(), 0..3), 0..3_u8).prop_map(|(repository, blob, needs, pins)| Op::Put {
        repository,
        blob,
        needs,
        pins,
    })
}

fn mount() -> impl Strategy<Value = Op> {
    (repository(), repository(), blob()).prop_map(|(from, to, blob)| Op::Mount { from, to, blob })
}

fn unlink() -> impl Strategy<Value = Op> {
    (repository(), blob()).prop_map(|(repository, blob)| Op::Unlink { repository, blob })
}

fn together() -> impl Strategy<Value = Op> {
    // Together they must fit one batch, which is what is there in full or not at all after a crash. Solo blobs do: their
    // bytes are elsewhere.
    let some = prop_oneof![5 => 0..SMALL, 1 => 11..ALL];
    let small = (repository(), some).prop_map(|(repository, blob)| Op::Push { repository, blob });
    let one = prop_oneof![3 => small, 1 => put(), 2 => mount(), 2 => unlink()];
    vec(one, 2..5).prop_map(|ops| Op::Together { ops })
}

fn session() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (slot(), repository(), session_blob())
            .prop_map(|(slot, repository, blob)| Op::Begin { slot, repository, blob }),
        5 => (slot(), some_bytes()).prop_map(|(slot, bytes)| Op::Write { slot, bytes }),
        1 => (slot(), some_bytes()).prop_map(|(slot, bytes)| Op::Leave { slot, bytes }),
        1 => (slot(), some_bytes()).prop_map(|(slot, bytes)| Op::Rewind { slot, bytes }),
        1 => (slot(), session_blob(), some_bytes())
            .prop_map(|(slot, blob, bytes)| Op::Restart { slot, blob, bytes }),
        3 => slot().prop_map(|slot| Op::Commit { slot }),
        1 => (slot(), some_bytes()).prop_map(|(slot, bytes)| Op::CommitWrong { slot, bytes }),
        1 => slot().prop_map(|slot| Op::Abort { slot }),
    ]
}

fn time() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => prop_oneof![0..100_u32, 500..3_000_u32].prop_map(|ms| Op::Tick { ms }),
        1 => Just(Op::Expire),
        3 => prop_oneof![Just(1_u8), Just(2), Just(100)].prop_map(|budget| Op::Collect { budget }),
        2 => Just(Op::Checkpoint),
        3 => prop_oneof![Just(1_u16), 1..600_u16, Just(u16::MAX)].prop_map(|kib| Op::Compact { kib }),
    ]
}

fn op(crashes: Crashes) -> BoxedStrategy<Op> {
    let quiet = prop_oneof![
        8 => push(),
        12 => session(),
        3 => put(),
        1 => (0..3_u8).prop_map(|pins| Op::Unpin { pins }),
        3 => mount(),
        4 => unlink(),
        3 => (repository(), blob(), any::<bool>())
            .prop_map(|(repository, blob, stale)| Op::UnlinkIf { repository, blob, stale }),
        1 => (repository(), blob()).prop_map(|(repository, blob)| Op::Stat { repository, blob }),
        2 => (repository(), blob(), 0..=1_000_u16, 0..=1_000_u16)
            .prop_map(|(repository, blob, from, to)| Op::Read { repository, blob, from, to }),
        8 => time(),
        4 => together(),
        1 => Just(Op::Reopen),
    ];
    match crashes {
        Crashes::Never => quiet.boxed(),
        Crashes::Between => prop_oneof![
            20 => quiet,
            1 => any::<u16>().prop_map(|seed| Op::Kill { seed: u64::from(seed) }),
            1 => any::<u16>().prop_map(|seed| Op::PowerLoss { seed: u64::from(seed) }),
        ]
        .boxed(),
    }
}
