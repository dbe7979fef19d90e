//! No crash is damage: whatever a power loss or `kill -9` leaves of a history, the checker finds nothing lost in it.
//!
//! It runs on the simulated disk, which keeps a copy of itself at every change and draws what survives of it.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{Algorithm, Digest, Options, RepositoryKey, SessionId, Store, Threading};

use crate::blobs::Depth;
use crate::check::{CheckError, check};
use crate::finding::{Finding, Kind, Severity};
use crate::progress::{Progress, Shown};
use crate::superblocks::SuperblocksError;

/// Outcomes that are drawn for every moment of the history.
const SURVIVALS: u64 = 3;

fn options() -> Options {
    Options {
        segment_bytes: 1024 * 1024,
        reserve_bytes: 0,
        lease_ms: 10,
        grace_ms: 10,
        threading: Threading::Inline,
        ..Options::new([7; 48])
    }
}

fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}

fn content(seed: u8, len: usize) -> (Bytes, Digest) {
    let bytes: Vec<u8> =
        (0..len).map(|index| (index / 509 * 31 + index % 251).to_le_bytes()[0] ^ seed).collect();
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (Bytes::from(bytes), digest)
}

fn repository(number: u64) -> RepositoryKey {
    RepositoryKey::new(number).unwrap()
}

fn upload(store: &Store, id: u8, len: usize, now_ms: u64) -> Digest {
    let (bytes, digest) = content(id, len);
    let id = SessionId::new([id; 16]);
    store.begin_upload(repository(2), Algorithm::Sha256, id, now_ms).unwrap();
    let mut upload = wait(store.open_upload(repository(2), id, now_ms)).unwrap();
    wait(upload.write(bytes.slice(..len / 2), now_ms)).unwrap();
    wait(upload.acknowledge(now_ms)).unwrap();
    let mut upload = wait(store.open_upload(repository(2), id, now_ms)).unwrap();
    wait(upload.write(bytes.slice(len / 2..), now_ms)).unwrap();
    wait(upload.commit(&digest, now_ms)).unwrap();
    digest
}

/// Pushes of every kind, checkpoints, a deletion, collections, compactions, closings and reopenings.
fn history(disk: &SimDisk) {
    let mut now_ms = 1_000;
    let mut copied_bytes = 0;
    for epoch in 0..3_u8 {
        let store = Store::open(Arc::new(disk.clone()), options(), now_ms).unwrap();
        let (bytes, small) = content(epoch * 10, 3_000);
        drop(wait(store.put(repository(1), &small, bytes, &[], now_ms)).unwrap());
        wait(store.mount(repository(1), repository(3), &small, now_ms)).unwrap();
        let inline = upload(&store, epoch * 10 + 1, 600_000, now_ms);
        let solo = upload(&store, epoch * 10 + 2, 1_200_000, now_ms);
        wait(store.checkpoint()).unwrap();
        upload(&store, epoch * 10 + 3, 500_000, now_ms);
        for digest in [inline, solo] {
            let generation = store.link_generation(repository(2), &digest).unwrap();
            wait(store.unlink(repository(2), &digest, generation, now_ms)).unwrap();
        }
        now_ms += 1_000;
        wait(store.collect(now_ms, 10)).unwrap();
        // Links and deletions of the epochs before are moved, some of them for the second time.
        wait(store.checkpoint()).unwrap();
        copied_bytes += wait(store.compact(now_ms, u64::MAX)).unwrap().copied_bytes;
        now_ms += 1_000;
        if epoch == 1 {
            store.close().unwrap();
        }
    }
    assert!(copied_bytes > 0, "something was compacted");
}

/// What may be found of a crash: that one superblock was being written.
fn is_explained(finding: &Finding) -> bool {
    finding.severity == Severity::Note && finding.kind != Kind::Unreadable
        || finding.severity == Severity::Repairable && finding.kind == Kind::Superblock
}

#[test]
fn no_crash_is_called_a_damage() {
    let disk = SimDisk::new();
    disk.start_tape();
    history(&disk);
    let tape = disk.take_tape();
    let mut checked = 0;
    let mut traces = BTreeSet::new();
    for (moment, image) in tape.iter().enumerate() {
        for draw in 0..=SURVIVALS {
            let seed = moment as u64 * 16 + draw;
            let left = if draw == SURVIVALS { image.kill(seed) } else { image.crash(seed) };
            match check(&left, Depth::Checksums, &Progress::new(Shown::Never)) {
                Ok(found) => {
                    traces.extend(found.findings.list.iter().map(|finding| finding.kind));
                    let odd: Vec<String> = found
                        .findings
                        .list
                        .iter()
                        .filter(|finding| !is_explained(finding))
                        .map(Finding::text)
                        .collect();
                    assert!(odd.is_empty(), "moment {moment}, seed {seed}: {odd:#?}");
                    checked += 1;
                }
                Err(CheckError::Superblocks(SuperblocksError::NoStore | SuperblocksError::Unfinished))
                    if checked == 0 || moment < 20 => {}
                Err(error) => panic!("moment {moment}, seed {seed}: {error}"),
            }
        }
    }
    println!("{checked} crashes of {} moments", tape.len());
    assert!(checked > 500, "{checked}");
    // The crashes were worth the name: they tore what was being written.
    for kind in [Kind::Superblock, Kind::TornTail, Kind::SoloOrphan, Kind::SegmentUnused] {
        assert!(traces.contains(&kind), "no crash left a trace of {kind:?} in {traces:?}");
    }
}
