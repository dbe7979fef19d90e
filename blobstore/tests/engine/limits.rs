//! Limits, refusals and costs, each on a store made for it.

use std::sync::Arc;

use bytes::Bytes;
use taffrail_blobstore::disk::Disk as _;
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{
    Algorithm, Digest, LinkError, OpenError, Options, PutError, ReadError, SessionId, Store, UploadError,
    Uploader,
};

use crate::catalog::{content, noise, repository};
use crate::crash::mix;
use crate::reference::LEASE_MS;
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;

fn store(options: Options) -> (SimDisk, Store) {
    let disk = SimDisk::new();
    let store = Store::open(Arc::new(disk.clone()), options, NOW_MS).unwrap();
    (disk, store)
}

fn id(number: u8) -> SessionId {
    SessionId::new([number; 16])
}

fn push(store: &Store, number: u8, bytes: &[u8]) -> Digest {
    let digest = Digest::of(Algorithm::Sha256, bytes);
    store.begin_upload(repository(0), Algorithm::Sha256, id(number), NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(0), id(number), NOW_MS)).unwrap();
    wait(upload.write(Bytes::copy_from_slice(bytes), NOW_MS)).unwrap();
    wait(upload.commit(&digest, NOW_MS)).unwrap();
    digest
}

#[test]
fn sessions_are_limited_by_repository_and_in_total() {
    let (_, store) = store(Options { sessions_per_repository_max: 2, sessions_max: 3, ..options() });
    let begin =
        |number, holder| store.begin_upload(repository(holder), Algorithm::Sha256, id(number), NOW_MS);
    begin(1, 0).unwrap();
    begin(2, 0).unwrap();
    assert!(matches!(begin(3, 0), Err(UploadError::TooMany)), "one more of the repository");
    begin(4, 1).unwrap();
    assert!(matches!(begin(5, 2), Err(UploadError::TooMany)), "one more in total");
    wait(store.abort_upload(repository(0), id(1), NOW_MS)).unwrap();
    begin(5, 2).unwrap();
}

/// How long an empty session is left alone, whatever the table is like, in milliseconds.
const EMPTY_KEPT_MS: u64 = 10_000;

/// One user who only ever begins sessions once kept everybody from pushing, for as long as sessions live.
#[test]
fn a_flood_of_empty_sessions_makes_room_for_others() {
    let (_, store) = store(Options { sessions_max: 100, sessions_per_repository_max: 1_000, ..options() });
    let flooded = |number: u8, now_ms| {
        store.begin_upload(repository(number % 7), Algorithm::Sha256, SessionId::new([number; 16]), now_ms)
    };
    for number in 0..100 {
        flooded(number, NOW_MS + u64::from(number)).unwrap();
    }
    // Nobody is pushed out who was quick, not even by somebody else.
    let soon_ms = NOW_MS + EMPTY_KEPT_MS;
    assert!(matches!(flooded(100, soon_ms), Err(UploadError::TooMany)));
    assert_eq!(store.stats().sessions, 100);
    // Alice is later, and makes progress whatever the flood does between her requests.
    let mut now_ms = soon_ms + 1;
    store.begin_upload(repository(9), Algorithm::Sha256, id(200), now_ms).unwrap();
    let gone = store.upload_status(repository(0), id(0), now_ms);
    assert!(matches!(gone, Err(UploadError::Unknown)), "the oldest one made room: {gone:?}");
    let bytes = noise(5, 1_000);
    for (step, piece) in (0..).zip(bytes.chunks(500)) {
        for number in 100..200 {
            // Refused or not, depending on how much of itself it has left to take.
            let _ = flooded(number, now_ms + u64::from(number % 3));
        }
        let mut upload = wait(store.open_upload(repository(9), id(200), now_ms)).unwrap();
        assert_eq!(upload.offset_bytes(), step * 500);
        // Held open without a byte for long.
        now_ms += 10 * EMPTY_KEPT_MS;
        assert!(flooded(201, now_ms).is_ok());
        wait(store.abort_upload(repository(201 % 7), id(201), now_ms)).unwrap();
        wait(upload.write(Bytes::copy_from_slice(piece), now_ms)).unwrap();
        wait(upload.acknowledge(now_ms)).unwrap();
        // And left alone with what was acknowledged.
        now_ms += 10 * EMPTY_KEPT_MS;
    }
    let upload = wait(store.open_upload(repository(9), id(200), now_ms)).unwrap();
    wait(upload.commit(&Digest::of(Algorithm::Sha256, &bytes), now_ms)).unwrap();
    assert!(store.stats().sessions <= 100);
}

/// Sessions with bytes are never taken for others, so they must not be one uploader's alone.
#[test]
fn one_uploader_does_not_fill_the_table_with_sessions_that_stay() {
    let (_, store) = store(Options { sessions_max: 10, sessions_per_uploader_max: 4, ..options() });
    let begin = |uploader, number: u8, now_ms| {
        store.begin_upload_of(
            Uploader(uploader),
            repository(number),
            Algorithm::Sha256,
            SessionId::new([number; 16]),
            now_ms,
        )
    };
    for number in 0..4 {
        begin(1, number, NOW_MS).unwrap();
        let mut upload = wait(store.open_upload(repository(number), id(number), NOW_MS)).unwrap();
        wait(upload.write(Bytes::from_static(b"1"), NOW_MS)).unwrap();
        wait(upload.acknowledge(NOW_MS)).unwrap();
    }
    let later_ms = NOW_MS + 10 * EMPTY_KEPT_MS;
    begin(2, 4, NOW_MS).unwrap();
    assert!(matches!(begin(1, 5, later_ms), Err(UploadError::TooMany)), "one more of that uploader");
    store
        .upload_status(repository(4), id(4), NOW_MS)
        .expect("who is past his bound takes nothing from others");
    for number in 6..9 {
        begin(2, number, later_ms).unwrap();
    }
    assert!(begin(2, 9, later_ms).is_ok(), "in place of his own");
    assert!(matches!(store.upload_status(repository(4), id(4), later_ms), Err(UploadError::Unknown)));
    wait(store.abort_upload(repository(0), id(0), later_ms)).unwrap();
    begin(1, 5, later_ms).unwrap();
}

#[test]
fn an_empty_session_is_over_after_an_hour_and_one_with_bytes_is_not() {
    const HOUR_MS: u64 = 3_600_000;
    let (_, store) = store(Options { session_idle_ms: 24 * HOUR_MS, ..options() });
    for number in 1..=3 {
        store.begin_upload(repository(0), Algorithm::Sha256, id(number), NOW_MS).unwrap();
    }
    let mut upload = wait(store.open_upload(repository(0), id(1), NOW_MS)).unwrap();
    wait(upload.write(Bytes::from_static(b"1"), NOW_MS)).unwrap();
    wait(upload.acknowledge(NOW_MS)).unwrap();
    let open = wait(store.open_upload(repository(0), id(2), NOW_MS)).unwrap();
    assert_eq!(wait(store.expire_sessions(NOW_MS + HOUR_MS - 1)), 0);
    assert_eq!(wait(store.expire_sessions(NOW_MS + HOUR_MS)), 1);
    assert!(matches!(store.upload_status(repository(0), id(3), NOW_MS), Err(UploadError::Unknown)));
    drop(open);
    assert_eq!(wait(store.expire_sessions(NOW_MS + HOUR_MS)), 1, "the one that was open");
    assert_eq!(wait(store.expire_sessions(NOW_MS + 24 * HOUR_MS - 1)), 0);
    assert_eq!(wait(store.expire_sessions(NOW_MS + 24 * HOUR_MS)), 1);
}

#[test]
fn a_blob_one_byte_past_the_limit_is_refused_and_the_session_goes_on() {
    let (_, store) = store(Options { blob_bytes_max: 1_000, ..options() });
    store.begin_upload(repository(0), Algorithm::Sha256, id(1), NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(0), id(1), NOW_MS)).unwrap();
    wait(upload.write(Bytes::from(vec![7; 999]), NOW_MS)).unwrap();
    let refused = wait(upload.write(Bytes::from(vec![7; 2]), NOW_MS));
    assert!(matches!(refused, Err(UploadError::TooLarge { limit_bytes: 1_000 })), "{refused:?}");
    wait(upload.write(Bytes::from(vec![7; 1]), NOW_MS)).unwrap();
    wait(upload.commit(&Digest::of(Algorithm::Sha256, &[7; 1_000]), NOW_MS)).unwrap();
}

#[test]
fn memory_of_small_sessions_is_bounded_and_they_all_go_on() {
    let limit_bytes = 1_500_000;
    let (disk, store) = store(Options { session_memory_bytes_max: limit_bytes, ..options() });
    let contents: Vec<Vec<u8>> = (0..5).map(|number| noise(number + 1, 900_000)).collect();
    for (number, bytes) in (1..).zip(&contents) {
        store.begin_upload(repository(0), Algorithm::Sha256, id(number), NOW_MS).unwrap();
        let mut upload = wait(store.open_upload(repository(0), id(number), NOW_MS)).unwrap();
        wait(upload.write(Bytes::copy_from_slice(&bytes[..600_000]), NOW_MS)).unwrap();
        wait(upload.acknowledge(NOW_MS)).unwrap();
        assert!(store.stats().session_memory_bytes <= limit_bytes, "{:?}", store.stats());
    }
    assert!(disk.files().iter().any(|(name, _)| name.starts_with("solo/")), "some went to files early");
    for (number, bytes) in (1..).zip(&contents) {
        let mut upload = wait(store.open_upload(repository(0), id(number), NOW_MS)).unwrap();
        assert_eq!(upload.offset_bytes(), 600_000);
        wait(upload.write(Bytes::copy_from_slice(&bytes[600_000..]), NOW_MS)).unwrap();
        wait(upload.commit(&Digest::of(Algorithm::Sha256, bytes), NOW_MS)).unwrap();
    }
    assert_eq!(store.stats().session_memory_bytes, 0);
}

#[test]
fn a_manifest_is_refused_with_the_reason() {
    let (_, store) = store(options());
    let blob = push(&store, 1, b"layer");
    let bytes = Bytes::from_static(b"manifest");
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let absent = Digest::of(Algorithm::Sha256, b"absent");
    let put = |digest: &Digest, bytes: &Bytes, needs: &[(Digest, u64)]| {
        wait(store.put(repository(0), digest, bytes.clone(), needs, NOW_MS)).map(drop)
    };
    let missing = put(&digest, &bytes, &[(blob, 5), (absent, 1)]);
    assert!(matches!(&missing, Err(PutError::Missing(digests)) if *digests == [absent]), "{missing:?}");
    let length = put(&digest, &bytes, &[(blob, 4)]);
    assert!(matches!(length, Err(PutError::Length { actual_bytes: 5, stated_bytes: 4, .. })), "{length:?}");
    let mismatch = put(&absent, &bytes, &[]);
    assert!(matches!(mismatch, Err(PutError::Mismatch(actual)) if actual == digest), "{mismatch:?}");
    let large = Bytes::from(vec![0; taffrail_blobstore::format::INLINE_BYTES_MAX + 1]);
    let too_large = put(&Digest::of(Algorithm::Sha256, &large), &large, &[]);
    assert!(matches!(too_large, Err(PutError::TooLarge(_))), "{too_large:?}");
    assert!(matches!(store.stat(repository(0), &digest, NOW_MS), Err(ReadError::Unknown)));
    let largest = large.slice(1..);
    put(&Digest::of(Algorithm::Sha256, &largest), &largest, &[(blob, 5)]).unwrap();
}

#[test]
fn a_blob_is_seen_only_by_those_who_hold_it() {
    let (_, store) = store(options());
    let digest = push(&store, 1, b"layer");
    assert!(matches!(store.stat(repository(1), &digest, NOW_MS), Err(ReadError::Unknown)));
    assert!(matches!(store.open_blob(repository(1), &digest), Err(ReadError::Unknown)));
    let mounted = wait(store.mount(repository(1), repository(2), &digest, NOW_MS));
    assert!(matches!(mounted, Err(LinkError::Unknown)));
    wait(store.mount(repository(0), repository(1), &digest, NOW_MS)).unwrap();
    store.stat(repository(1), &digest, NOW_MS).unwrap();
}

#[test]
fn an_open_reader_outlives_the_deletion_of_its_blob() {
    let (_, store) = store(options());
    for (number, blob) in [(1, 12), (2, 6)] {
        let wanted = content(blob);
        store.begin_upload(repository(0), wanted.digest.algorithm(), id(number), NOW_MS).unwrap();
        let mut upload = wait(store.open_upload(repository(0), id(number), NOW_MS)).unwrap();
        wait(upload.write(wanted.bytes.clone(), NOW_MS)).unwrap();
        wait(upload.commit(&wanted.digest, NOW_MS)).unwrap();
        let mut reader = store.open_blob(repository(0), &wanted.digest).unwrap();
        let first = wait(reader.read(0, 10)).unwrap();
        assert_eq!(first, wanted.bytes[..10]);
        wait(store.unlink(
            repository(0),
            &wanted.digest,
            store.link_generation(repository(0), &wanted.digest).unwrap_or(0),
            NOW_MS,
        ))
        .unwrap();
        let later_ms = NOW_MS + u64::from(number) * 100_000;
        assert_eq!(wait(store.collect(later_ms, 100)).unwrap().blobs, 1);
        wait(store.checkpoint()).unwrap();
        wait(store.collect(later_ms, 100)).unwrap();
        let last = reader.len_bytes() - 10;
        let read = wait(reader.read(last, reader.len_bytes())).unwrap();
        assert_eq!(read, wanted.bytes[wanted.bytes.len() - 10..]);
    }
}

/// The first collection after an opening looks for files that nobody knows. An upload that has not been acknowledged yet is
/// in nobody's records.
#[test]
fn collection_leaves_the_files_of_open_uploads_alone() {
    let (_, store) = store(options());
    let bytes = Bytes::from(noise(4, 2_500_000));
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    store.begin_upload(repository(0), Algorithm::Sha256, id(1), NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(0), id(1), NOW_MS)).unwrap();
    wait(upload.write(bytes.slice(..2_000_000), NOW_MS)).unwrap();
    assert_eq!(wait(store.collect(NOW_MS + 1_000_000, 100)).unwrap().orphans, 0);
    wait(upload.write(bytes.slice(2_000_000..), NOW_MS)).unwrap();
    wait(upload.commit(&digest, NOW_MS)).unwrap();
    assert_eq!(wait(store.collect(NOW_MS + 2_000_000, 100)).unwrap().orphans, 0);
    let mut reader = store.open_blob(repository(0), &digest).unwrap();
    assert_eq!(wait(reader.read(1_500_000, 1_500_001)).unwrap(), bytes[1_500_000..1_500_001]);
}

/// A way of being told that a blob is there.
type Tell = fn(&Store, &Digest, u64);

/// Whoever was told that a blob is there may rely on it for one lease.
#[test]
fn every_way_of_being_told_of_a_blob_leases_it() {
    let (_, store) = store(options());
    // After an opening nothing is unlinked anyway for one lease.
    let mut now_ms = NOW_MS + 2 * LEASE_MS;
    let digest = push(&store, 1, b"layer");
    let told: [(&str, Tell); 4] = [
        ("stat", |store, digest, now_ms| {
            assert_eq!(store.stat(repository(0), digest, now_ms).unwrap().len_bytes, 5)
        }),
        ("mount", |store, digest, now_ms| {
            wait(store.mount(repository(0), repository(0), digest, now_ms)).map(|_| ()).unwrap();
        }),
        ("put", |store, digest, now_ms| {
            let bytes = Bytes::from_static(b"manifest");
            let manifest = Digest::of(Algorithm::Sha256, &bytes);
            drop(wait(store.put(repository(0), &manifest, bytes, &[(*digest, 5)], now_ms)).unwrap());
        }),
        ("push", |store, digest, now_ms| {
            store.begin_upload(repository(0), Algorithm::Sha256, id(2), now_ms).unwrap();
            let mut upload = wait(store.open_upload(repository(0), id(2), now_ms)).unwrap();
            wait(upload.write(Bytes::from_static(b"layer"), now_ms)).unwrap();
            wait(upload.commit(digest, now_ms)).map(|_| ()).unwrap();
        }),
    ];
    for (what, tell) in told {
        now_ms += 10 * LEASE_MS;
        tell(&store, &digest, now_ms);
        let generation = store.link_generation(repository(0), &digest).unwrap();
        let unlink = |at_ms| wait(store.unlink_if(repository(0), &digest, generation, at_ms)).unwrap();
        assert!(!unlink(now_ms + LEASE_MS - 1), "{what} gave no lease");
        assert!(
            !wait(store.unlink_if(repository(0), &digest, generation - 1, now_ms + 10 * LEASE_MS)).unwrap()
        );
        assert!(unlink(now_ms + 2 * LEASE_MS), "the lease of {what} does not end");
        // Back again, for the next.
        store.begin_upload(repository(0), Algorithm::Sha256, id(3), now_ms).unwrap();
        let mut upload = wait(store.open_upload(repository(0), id(3), now_ms)).unwrap();
        wait(upload.write(Bytes::from_static(b"layer"), now_ms)).unwrap();
        wait(upload.commit(&digest, now_ms)).unwrap();
    }
}

#[test]
fn a_range_that_is_not_there_is_refused() {
    let (_, store) = store(options());
    let digest = push(&store, 1, b"0123456789");
    let mut reader = store.open_blob(repository(0), &digest).unwrap();
    for (from, to) in [(0, 0), (5, 4), (0, 11), (10, 11), (u64::MAX, u64::MAX), (0, u64::MAX)] {
        assert!(matches!(wait(reader.read(from, to)), Err(ReadError::Range { .. })), "{from} to {to}");
    }
    assert_eq!(wait(reader.read(9, 10)).unwrap(), b"9".as_slice());
}

#[test]
fn a_second_opening_says_who_has_the_store() {
    let (disk, _store) = store(options());
    let error = Store::open(Arc::new(disk), options(), NOW_MS).unwrap_err();
    assert!(matches!(error, OpenError::Lock(_)), "{error}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
}

/// Flushes are what a push costs. These figures are in the closing notes; whoever raises one has to change it here.
#[test]
fn a_commit_costs_one_flush_however_many_share_it() {
    let (disk, store) = store(options());
    push(&store, 1, b"the first one makes the log segment");
    let flushes = || disk.counters().flushes;
    let before = flushes();
    let layer = push(&store, 2, &noise(1, 100_000));
    assert_eq!(flushes() - before, 1, "an inline blob");
    let before = flushes();
    wait(store.mount(repository(0), repository(1), &layer, NOW_MS)).unwrap();
    assert_eq!(flushes() - before, 1, "a mount");
    let before = flushes();
    push(&store, 3, &noise(2, 3_000_000));
    assert_eq!(flushes() - before, 3, "a solo blob: its bytes, its name, its record");
    let before = flushes();
    let bytes = Bytes::from_static(b"manifest");
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    wait(store.put(repository(0), &digest, bytes, &[(layer, 100_000)], NOW_MS)).unwrap();
    assert_eq!(flushes() - before, 1, "a manifest with its links");
    let before = flushes();
    let hold = store.hold_commits();
    let mut mounts: Vec<_> =
        (0..8).map(|_| Box::pin(store.mount(repository(0), repository(2), &layer, NOW_MS))).collect();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for mount in &mut mounts {
        assert!(mount.as_mut().poll(&mut context).is_pending());
    }
    drop(hold);
    for mount in mounts {
        wait(mount).unwrap();
    }
    assert_eq!(flushes() - before, 1, "eight commits at the same time");
}

/// Bytes that were refused may have been made durable on the way. When the session goes back behind them, the log must say
/// so before they are overwritten, or a crash would resume it at an offset whose bytes are not what was hashed.
#[test]
fn a_session_that_went_back_behind_what_was_durable_resumes_with_the_right_bytes() {
    const REFUSED_BYTES: usize = 64 * 1024 * 1024 + 600_000;
    let kept = 1_200_000;
    let right = Bytes::from(noise(9, 3_500_000));
    let wrong = Bytes::from(noise(10, REFUSED_BYTES));
    let refused = Bytes::from([&right[..kept], &wrong[..]].concat());
    let (disk, store) = store(options());
    let digest = Digest::of(Algorithm::Sha256, &right);
    store.begin_upload(repository(0), Algorithm::Sha256, id(1), NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository(0), id(1), NOW_MS)).unwrap();
    wait(upload.write(right.slice(..kept), NOW_MS)).unwrap();
    wait(upload.acknowledge(NOW_MS)).unwrap();
    let mut upload = wait(store.open_upload(repository(0), id(1), NOW_MS)).unwrap();
    wait(upload.write(wrong, NOW_MS)).unwrap();
    disk.start_tape();
    let answer = wait(upload.commit(&digest, NOW_MS));
    assert!(matches!(answer, Err(UploadError::Mismatch { .. })), "{answer:?}");
    let mut upload = wait(store.open_upload(repository(0), id(1), NOW_MS)).unwrap();
    assert_eq!(upload.offset_bytes(), kept as u64);
    wait(upload.write(right.slice(kept..3_000_000), NOW_MS)).unwrap();
    wait(upload.acknowledge(NOW_MS)).unwrap();
    drop(store);
    for (number, moment) in (0..).zip(disk.take_tape()) {
        for seed in 0..4 {
            let ended = if seed == 0 { moment.kill(number) } else { moment.crash(mix(number, seed)) };
            let store = Store::open(Arc::new(ended), options(), NOW_MS).unwrap();
            let mut upload = wait(store.open_upload(repository(0), id(1), NOW_MS)).unwrap();
            // Before the refusal is logged the session may stand behind the refused bytes; then all of them must be there.
            let offset = usize::try_from(upload.offset_bytes()).unwrap();
            let content = if offset > right.len() { &refused } else { &right };
            let digest = Digest::of(Algorithm::Sha256, content);
            wait(upload.write(content.slice(offset..), NOW_MS)).unwrap();
            let stat = wait(upload.commit(&digest, NOW_MS));
            assert!(stat.is_ok(), "change {number}, seed {seed}, resumed at {offset}: {stat:?}");
            let mut reader = store.open_blob(repository(0), &digest).unwrap();
            let mut at = 0;
            while at < content.len() {
                let bytes = wait(reader.read(at as u64, content.len() as u64)).unwrap_or_else(|error| {
                    panic!("change {number}, seed {seed}, resumed at {offset}: {error}")
                });
                assert!(bytes == content[at..at + bytes.len()]);
                at += bytes.len();
            }
        }
    }
}

/// 64 MiB is how far a session may fall back when power is lost.
#[test]
fn a_long_session_falls_back_64_mib_at_most() {
    const DURABLE_BYTES: usize = 64 * 1024 * 1024;
    const RECEIVED_BYTES: usize = DURABLE_BYTES + 5_000_000;
    let bytes = Bytes::from(noise(9, RECEIVED_BYTES + 100_000));
    for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
        let (disk, store) = store(options());
        let digest = Digest::of(algorithm, &bytes);
        store.begin_upload(repository(0), algorithm, id(1), NOW_MS).unwrap();
        let mut upload = wait(store.open_upload(repository(0), id(1), NOW_MS)).unwrap();
        for from in (0..RECEIVED_BYTES).step_by(1_000_000) {
            let piece = bytes.slice(from..RECEIVED_BYTES.min(from + 1_000_000));
            wait(upload.write(piece, NOW_MS)).unwrap();
        }
        wait(upload.acknowledge(NOW_MS)).unwrap();
        drop(store);
        let mut fallen_back = 0;
        for seed in 0..8 {
            let ended = if seed == 0 { disk.kill(seed) } else { disk.crash(seed) };
            let store = Store::open(Arc::new(ended), options(), NOW_MS).unwrap();
            let mut upload = wait(store.open_upload(repository(0), id(1), NOW_MS)).unwrap();
            let offset = usize::try_from(upload.offset_bytes()).unwrap();
            assert!(
                offset == RECEIVED_BYTES || (seed > 0 && offset == DURABLE_BYTES),
                "{algorithm}: {offset}"
            );
            fallen_back += usize::from(offset == DURABLE_BYTES);
            wait(upload.write(bytes.slice(offset..), NOW_MS)).unwrap();
            wait(upload.commit(&digest, NOW_MS)).unwrap();
            let mut reader = store.open_blob(repository(0), &digest).unwrap();
            let end = bytes.len() as u64;
            let last = wait(reader.read(end - 100, end)).unwrap();
            assert_eq!(last, bytes[bytes.len() - 100..]);
        }
        assert!(fallen_back > 0, "{algorithm}: no power loss took anything");
    }
}
