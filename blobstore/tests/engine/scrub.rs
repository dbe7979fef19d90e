//! Scrubbing: rot is found wherever it is, only rot is, and a push heals it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use taffrail_blobstore::disk::Access;
use taffrail_blobstore::disk::sim::{Call, Fault, FaultError, SimDisk};
use taffrail_blobstore::format::payload::{PAYLOAD_HEADER_BYTES, PayloadHeader};
use taffrail_blobstore::format::seal::{Key, Place};
use taffrail_blobstore::format::{BLOCK_BYTES, SegmentId};
use taffrail_blobstore::{
    Algorithm, Damage, Digest, Options, ReadError, RepositoryKey, ScrubDepth, ScrubPosition, Scrubbed,
    Scrubber, SessionId, Store, StoreState, Threading,
};

use crate::budget::{say, seed};
use crate::catalog::{noise, repository};
use crate::crash::mix;
use crate::meddled::{Meddled, Meddler};
use crate::world::{options, wait};

const NOW_MS: u64 = 1_000_000;

/// What a step may spend: less than some blobs have.
const STEP_BYTES: u64 = 300_000;

/// Inline and solo, of one block and of several, around the bounds of blocks and of inline blobs.
const LENGTHS: [usize; 10] =
    [0, 1, 4_000, 4_096, 70_000, BLOCK_BYTES, BLOCK_BYTES + 1, 1 << 20, (1 << 20) + 1, 1_500_000];

fn open(disk: &SimDisk) -> Store {
    Store::open(Arc::new(disk.clone()), options(), NOW_MS).unwrap()
}

/// Uploads a blob; the session's id is a number that was not used before.
fn push(store: &Store, repository: RepositoryKey, id: u64, bytes: &[u8]) -> Digest {
    let digest = Digest::of(Algorithm::Sha256, bytes);
    let mut session = [0xab; 16];
    session[..8].copy_from_slice(&id.to_be_bytes());
    let id = SessionId::new(session);
    store.begin_upload(repository, Algorithm::Sha256, id, NOW_MS).unwrap();
    let mut upload = wait(store.open_upload(repository, id, NOW_MS)).unwrap();
    wait(upload.write(Bytes::copy_from_slice(bytes), NOW_MS)).unwrap();
    wait(upload.commit(&digest, NOW_MS)).unwrap();
    digest
}

fn bytes_of(number: usize) -> Vec<u8> {
    noise(number as u64 + 1, LENGTHS[number])
}

fn read(store: &Store, repository: RepositoryKey, digest: &Digest) -> Result<Vec<u8>, ReadError> {
    let mut reader = store.open_blob(repository, digest)?;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < reader.len_bytes() {
        bytes.extend_from_slice(&wait(reader.read(bytes.len() as u64, reader.len_bytes()))?);
    }
    Ok(bytes)
}

/// Everything that a pass found from where `scrubber` stands to the end.
fn finish(scrubber: &mut Scrubber) -> Scrubbed {
    let mut all = Scrubbed::default();
    while !all.is_complete {
        let step = wait(scrubber.step(STEP_BYTES)).unwrap();
        // A batch of the log is taken whole, and so are a block and what comes before it.
        let longest = STEP_BYTES + (1 << 20) + 64 * 1024;
        assert!(step.cost_bytes <= longest, "a step cost {}", step.cost_bytes);
        all.read_bytes += step.read_bytes;
        all.cost_bytes += step.cost_bytes;
        all.blobs += step.blobs;
        all.bad.extend(step.bad);
        all.unreadable.extend(step.unreadable);
        all.damage.extend(step.damage);
        all.is_complete = step.is_complete;
    }
    all
}

fn pass(store: &Store, depth: ScrubDepth) -> Scrubbed {
    finish(&mut store.scrub(ScrubPosition::START, depth).unwrap())
}

/// A store with a blob of each length, in a log of several segments.
fn stocked() -> (SimDisk, Store, Vec<Digest>) {
    let disk = SimDisk::new();
    let store = open(&disk);
    let digests =
        (0..LENGTHS.len()).map(|number| push(&store, repository(0), number as u64, &bytes_of(number)));
    let digests = digests.collect();
    (disk, store, digests)
}

/// Where the first bytes of a blob lie: file and offset.
fn place_of(disk: &SimDisk, bytes: &[u8]) -> (String, u64) {
    let head = &bytes[..bytes.len().min(64)];
    let mut places = Vec::new();
    for (name, _) in disk.files() {
        // One that went meanwhile is none of those that are looked for.
        let Some(file) = disk.contents(&name) else { continue };
        let at = file.windows(head.len()).position(|window| window == head);
        places.extend(at.map(|at| (name, at as u64)));
    }
    assert_eq!(places.len(), 1, "{places:?}");
    places.remove(0)
}

#[test]
fn a_pass_over_a_healthy_store_reads_everything_and_finds_nothing() {
    let (_disk, store, digests) = stocked();
    assert!(store.stats().log_segments > 1);
    for depth in [ScrubDepth::Checksums, ScrubDepth::Digests] {
        let found = pass(&store, depth);
        assert_eq!(found.blobs, digests.len() as u64);
        assert!(found.bad.is_empty() && found.unreadable.is_empty() && found.damage.is_empty(), "{found:?}");
        assert!(found.read_bytes > store.stats().blob_bytes, "read {} bytes", found.read_bytes);
        assert!(found.cost_bytes >= found.read_bytes);
    }
    assert_eq!(pass(&open(&SimDisk::new()), ScrubDepth::Digests).blobs, 0, "nor over an empty one");
}

#[test]
fn one_bit_that_rots_anywhere_in_a_payload_is_found_by_the_next_pass() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(mix(seed, 77));
    let (disk, store, digests) = stocked();
    drop(store);
    let mut flipped = 0;
    for (number, digest) in digests.iter().enumerate().skip(2) {
        let bytes = bytes_of(number);
        let (name, start) = place_of(&disk, &bytes);
        let last = bytes.len() as u64 - 1;
        for at in [0, last, random.random_range(0..=last), random.random_range(0..=last)] {
            let (disk, bit) = (disk.fork(), random.random_range(0..8));
            assert!(disk.flip_bit(&name, start + at, bit));
            let store = open(&disk);
            let found = pass(&store, ScrubDepth::Checksums);
            assert_eq!(
                found.bad,
                [*digest],
                "bit {bit} of byte {at} of {}; TAFFRAIL_SEED={seed}",
                bytes.len()
            );
            assert_eq!(found.blobs, digests.len() as u64 - 1);
            assert!(matches!(read(&store, repository(0), digest), Err(ReadError::Unknown)));
            assert!(pass(&store, ScrubDepth::Checksums).bad.is_empty(), "it is set aside once");
            flipped += 1;
        }
    }
    say(&format!("scrub: {flipped} bits rotted, all found (seed {seed})"));
}

#[test]
fn checksums_and_headers_that_rot_are_found_too() {
    let (disk, store, digests) = stocked();
    drop(store);
    let header = PAYLOAD_HEADER_BYTES as u64;
    let len = LENGTHS[9].next_multiple_of(4096) as u64;
    // The payload header of an inline blob, before it; the checksums and the trailer of a solo file, behind it.
    for (number, before, behind) in [(4, header, 9), (4, 1, 0), (9, 0, len + 3), (9, 0, len + 4_100)] {
        let disk = disk.fork();
        let (name, start) = place_of(&disk, &bytes_of(number));
        assert!(disk.flip_bit(&name, start - before + behind, 3));
        assert_eq!(pass(&open(&disk), ScrubDepth::Checksums).bad, [digests[number]], "{number} {behind}");
    }
}

#[test]
fn a_solo_file_that_is_gone_or_cut_short_is_found() {
    let (disk, store, digests) = stocked();
    drop(store);
    let (name, _) = place_of(&disk, &bytes_of(9));
    for cut in [None, Some(10_000)] {
        let disk = disk.fork();
        let store = open(&disk);
        assert!(cut.map_or_else(|| disk.uproot(&name), |len| disk.cut(&name, len)));
        let found = pass(&store, ScrubDepth::Checksums);
        assert_eq!((found.bad, found.unreadable.len()), (vec![digests[9]], 0));
    }
}

/// Its checksums are right: they were made of the wrong bytes.
#[test]
fn bytes_that_are_not_those_of_the_digest_are_found_by_a_pass_over_digests_alone() {
    let (disk, store, digests) = stocked();
    drop(store);
    let wanted = bytes_of(6);
    let (name, start) = place_of(&disk, &wanted);
    let log = disk.contents(&name).unwrap();
    let entropy = options().entropy;
    let key = Key::new(entropy[..32].try_into().unwrap(), entropy[32..].try_into().unwrap());
    let segment = SegmentId(u64::from_str_radix(&name[4..20], 16).unwrap());
    let offset_bytes = start - PAYLOAD_HEADER_BYTES as u64;
    let at = usize::try_from(offset_bytes).unwrap();
    let place = (1..9).map(|epoch| Place { segment, epoch, offset_bytes });
    let place = place.into_iter().find(|place| PayloadHeader::decode(&log[at..], &key, *place).is_some());
    let (mut forged, mut wrong) = (Vec::new(), wanted);
    wrong[100_000] ^= 1;
    PayloadHeader::encode(&mut forged, &key, place.unwrap(), &digests[6], &wrong);
    disk.overwrite(&name, offset_bytes, &forged);
    let store = open(&disk);
    assert!(pass(&store, ScrubDepth::Checksums).bad.is_empty());
    assert_eq!(pass(&store, ScrubDepth::Digests).bad, [digests[6]]);
}

/// What a page cache, or a read past it, makes of the bytes.
#[derive(Debug, Default)]
struct Weather {
    cache_is_bad: AtomicBool,
    /// Reads past the cache that go wrong.
    wrong_reads: AtomicU64,
    cached_reads: AtomicU64,
}

impl Meddler for Weather {
    fn read(&self, access: Access, buffer: &mut [u8], _offset_bytes: u64) {
        let is_wrong = match access {
            Access::Cached => {
                self.cached_reads.fetch_add(1, Ordering::SeqCst);
                self.cache_is_bad.load(Ordering::SeqCst)
            }
            Access::Direct => {
                let take = |left: u64| left.checked_sub(1);
                self.wrong_reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
            }
        };
        buffer[7] ^= u8::from(is_wrong);
    }
}

#[test]
fn rot_in_the_page_cache_alone_and_a_block_that_was_read_wrongly_once_set_nothing_aside() {
    let weather = Arc::new(Weather::default());
    let store = Store::open(Meddled::on(&SimDisk::new(), &weather), options(), NOW_MS).unwrap();
    let digest = push(&store, repository(0), 1, &bytes_of(9));
    weather.cache_is_bad.store(true, Ordering::SeqCst);
    let before = weather.cached_reads.load(Ordering::SeqCst);
    for depth in [ScrubDepth::Checksums, ScrubDepth::Digests] {
        for wrong_reads in [0, 1] {
            weather.wrong_reads.store(wrong_reads, Ordering::SeqCst);
            let found = pass(&store, depth);
            assert!(found.bad.is_empty() && found.blobs == 1, "{found:?}");
            assert_eq!(weather.wrong_reads.load(Ordering::SeqCst), 0, "it was met");
        }
    }
    assert_eq!(weather.cached_reads.load(Ordering::SeqCst), before, "the cache is left alone");
    weather.wrong_reads.store(u64::MAX, Ordering::SeqCst);
    assert_eq!(pass(&store, ScrubDepth::Checksums).bad, [digest], "bad twice is bad");
}

#[test]
fn what_was_found_bad_is_set_aside_after_a_crash_too_and_a_push_heals_it_everywhere() {
    let (disk, store, digests) = stocked();
    for number in [4, 9] {
        let bytes = bytes_of(number);
        wait(store.mount(repository(0), repository(1), &digests[number], NOW_MS)).unwrap();
        let (name, start) = place_of(&disk, &bytes);
        assert!(disk.flip_bit(&name, start + 50_000, 2));
    }
    let mut found = pass(&store, ScrubDepth::Checksums).bad;
    found.sort_unstable();
    let mut bad = vec![digests[4], digests[9]];
    bad.sort_unstable();
    assert_eq!(found, bad);
    drop(store);
    // Nothing was flushed after the step returned.
    let disk = disk.crash(seed());
    let store = open(&disk);
    let holders = vec![repository(0), repository(1)];
    let expected: Vec<_> = bad.iter().map(|digest| (*digest, holders.clone())).collect();
    assert_eq!(store.quarantined().unwrap(), expected);
    assert_eq!((store.stats().quarantined, store.stats().quarantines), (2, 0));
    for number in [4, 9] {
        let digest = &digests[number];
        assert!(matches!(store.stat(repository(0), digest, NOW_MS), Err(ReadError::Unknown)));
        assert!(matches!(read(&store, repository(1), digest), Err(ReadError::Unknown)));
        push(&store, repository(1), 100 + number as u64, &bytes_of(number));
        for holder in &holders {
            assert!(read(&store, *holder, digest).unwrap() == bytes_of(number));
        }
    }
    assert_eq!((store.quarantined().unwrap(), store.stats().quarantined), (Vec::new(), 0));
    let again = pass(&store, ScrubDepth::Digests);
    assert!(again.bad.is_empty() && again.blobs == LENGTHS.len() as u64, "{again:?}");
    store.close().unwrap();
    assert!(open(&disk).quarantined().unwrap().is_empty());
}

#[test]
fn a_blob_that_is_set_aside_is_listed_after_a_clean_close_too() {
    let (disk, store, digests) = stocked();
    let (name, start) = place_of(&disk, &bytes_of(9));
    assert!(disk.flip_bit(&name, start, 0));
    assert_eq!(pass(&store, ScrubDepth::Checksums).bad, [digests[9]]);
    store.close().unwrap();
    let store = open(&disk);
    assert_eq!(store.quarantined().unwrap(), [(digests[9], vec![repository(0)])]);
    // Deleted, it is no more.
    let generation = store.link_generation(repository(0), &digests[9]).unwrap();
    wait(store.unlink(repository(0), &digests[9], generation, NOW_MS)).unwrap();
    let later_ms = NOW_MS + 10 * 3_600_000;
    assert_eq!(wait(store.collect(later_ms, 10)).unwrap().blobs, 1);
    assert!(store.quarantined().unwrap().is_empty());
}

/// Every step is the last one of a process; the next one goes on where it stood.
#[test]
fn a_pass_that_is_interrupted_after_each_step_still_reads_everything_once() {
    for depth in [ScrubDepth::Checksums, ScrubDepth::Digests] {
        let (disk, mut store, digests) = stocked();
        let (name, start) = place_of(&disk, &bytes_of(8));
        assert!(disk.flip_bit(&name, start + (1 << 20), 2));
        let (mut kept, mut blobs, mut bad, mut steps) = (ScrubPosition::START.to_string(), 0, Vec::new(), 0);
        loop {
            let mut scrubber = store.scrub(kept.parse().unwrap(), depth).unwrap();
            // A blob is hashed in one go; its checksums are not.
            let budget = if depth == ScrubDepth::Digests { 3 << 20 } else { STEP_BYTES };
            let step = wait(scrubber.step(budget)).unwrap();
            kept = scrubber.position().to_string();
            blobs += step.blobs;
            bad.extend(step.bad);
            steps += 1;
            if step.is_complete {
                break;
            }
            assert!(steps < 1_000, "it stands at {kept}");
            drop(scrubber);
            drop(store);
            store = open(&disk);
        }
        assert_eq!((blobs, bad), (digests.len() as u64 - 1, vec![digests[8]]));
        assert!(steps > 2, "{steps} steps");
    }
}

#[test]
fn one_pass_is_under_way_at_a_time() {
    let (_disk, store, _) = stocked();
    let first = store.scrub(ScrubPosition::START, ScrubDepth::Checksums);
    assert!(first.is_some() && store.scrub(ScrubPosition::START, ScrubDepth::Checksums).is_none());
    drop(first);
    assert!(store.scrub(ScrubPosition::START, ScrubDepth::Checksums).is_some());
}

#[test]
fn a_damaged_batch_is_named_and_the_store_goes_on_and_its_blobs_are_whole() {
    let (disk, store, digests) = stocked();
    // The records of the batch that a payload belongs to lie before it.
    let (name, start) = place_of(&disk, &bytes_of(4));
    let batch = (start - 192) / 4096 * 4096;
    let (header, records) = (batch + 20, batch + 150);
    for at in [header, records] {
        assert!(disk.flip_bit(&name, at, 1));
        let found = pass(&store, ScrubDepth::Checksums);
        let segment = SegmentId(u64::from_str_radix(&name[4..20], 16).unwrap());
        assert!(
            matches!(found.damage[..], [Damage::Log { segment: named, from_bytes, .. }] if named == segment && from_bytes == batch),
            "{found:?}"
        );
        assert!(found.bad.is_empty() && found.blobs == digests.len() as u64, "{found:?}");
        assert_eq!(store.state(), StoreState::Writable);
        assert!(disk.flip_bit(&name, at, 1));
    }
    assert!(disk.flip_bit(&name, 40, 1), "the segment's header");
    let found = pass(&store, ScrubDepth::Checksums);
    assert!(matches!(found.damage[..], [Damage::Header { .. }]), "{found:?}");
    push(&store, repository(1), 50, b"still writable");
}

/// What the checkpoint of a store that is open holds, a damaged log behind it cannot take away.
#[test]
fn a_checkpoint_after_the_damage_was_found_lets_the_next_opening_do_without_the_batch() {
    let (disk, store, digests) = stocked();
    let (name, start) = place_of(&disk, &bytes_of(4));
    assert!(disk.flip_bit(&name, (start - 192) / 4096 * 4096 + 150, 1));
    assert!(matches!(open(&disk.fork()).state(), StoreState::ReadOnly { .. }));
    assert_eq!(pass(&store, ScrubDepth::Checksums).damage.len(), 1);
    wait(store.checkpoint()).unwrap();
    drop(store);
    let store = open(&disk);
    assert_eq!(store.state(), StoreState::Writable);
    assert!(read(&store, repository(0), &digests[4]).unwrap() == bytes_of(4));
}

#[test]
fn what_the_disk_does_not_give_is_named_and_not_set_aside() {
    let (disk, store, digests) = stocked();
    let (name, _) = place_of(&disk, &bytes_of(9));
    disk.inject(Fault::on(&[Call::Read], FaultError::Io).within(&name));
    let found = pass(&store, ScrubDepth::Checksums);
    assert_eq!((found.blobs, found.bad.len()), (digests.len() as u64 - 1, 0));
    assert!(matches!(&found.unreadable[..], [one] if one.digest == Some(digests[9])), "{found:?}");
    disk.heal();
    assert!(read(&store, repository(0), &digests[9]).unwrap() == bytes_of(9));
    disk.inject(Fault::on(&[Call::Read], FaultError::Io).within("log/"));
    let found = pass(&store, ScrubDepth::Checksums);
    assert!(found.unreadable.iter().any(|one| one.digest.is_none()) && found.bad.is_empty(), "{found:?}");
    assert_eq!(store.state(), StoreState::Writable);
}

/// Tells the others to end when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Pushes, deletions, collection and checkpoints beside passes without pause. Nothing whole is ever set aside; rot is.
#[test]
fn scrubs_beside_pushes_deletions_and_collection_set_aside_what_rots_and_nothing_else() {
    let seed = seed();
    let disk = SimDisk::new();
    let threading = Threading::Pool { storage_threads: 2 };
    let options = Options { threading, lease_ms: 0, grace_ms: 0, ..options() };
    let store = Store::open(Arc::new(disk.clone()), options, NOW_MS).unwrap();
    let lasting: Vec<Digest> = (0..LENGTHS.len())
        .map(|number| push(&store, repository(2), number as u64, &bytes_of(number)))
        .collect();
    let (over, clock_ms) = (AtomicBool::new(false), AtomicU64::new(NOW_MS));
    let (mut passes, mut blobs) = (0, 0);
    std::thread::scope(|scope| {
        // Also when a pass panics: the others would go on for ever.
        let _end = End(&over);
        for client in 0..2_u8 {
            let (store, over) = (&store, &over);
            let mut random = StdRng::seed_from_u64(mix(seed, u64::from(client)));
            scope.spawn(move || {
                let mut id = 1_000_000 * (u64::from(client) + 1);
                while !over.load(Ordering::SeqCst) {
                    id += 1;
                    let content = random.random_range(0..12_u64);
                    let len = if content < 10 {
                        3_000 + 40_000 * usize::try_from(content).unwrap()
                    } else {
                        1_300_000
                    };
                    let digest = push(store, repository(client), id, &noise(500 + content, len));
                    if let Some(generation) = store.link_generation(repository(client), &digest) {
                        wait(store.unlink(repository(client), &digest, generation, NOW_MS)).unwrap();
                    }
                }
            });
        }
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let now_ms = clock_ms.fetch_add(1, Ordering::SeqCst);
                wait(store.collect(now_ms, 50)).unwrap();
                wait(store.checkpoint()).unwrap();
            }
        });
        let mut bad = BTreeSet::new();
        while passes < 12 {
            let found = pass(&store, ScrubDepth::Digests);
            assert!(found.damage.is_empty() && found.unreadable.is_empty(), "{found:?}");
            (passes, blobs) = (passes + 1, blobs + found.blobs);
            if passes == 6 {
                assert!(bad.is_empty(), "{bad:?} were whole; TAFFRAIL_SEED={seed}");
                // Those with files of their own: the others may be on their way to another segment.
                for number in [8, 9] {
                    let (name, start) = place_of(&disk, &bytes_of(number));
                    assert!(disk.flip_bit(&name, start + 60_000, 2));
                }
            }
            bad.extend(found.bad);
        }
        assert_eq!(bad, BTreeSet::from([lasting[8], lasting[9]]), "TAFFRAIL_SEED={seed}");
    });
    say(&format!(
        "scrub: {passes} passes, {blobs} blobs beside pushes and collection; only rot was set aside"
    ));
}

/// An answer that is under way when its blob is set aside goes on, and ends before the first wrong byte.
#[test]
fn an_answer_under_way_is_cut_before_the_first_wrong_byte() {
    let (disk, store, digests) = stocked();
    let bytes = bytes_of(9);
    let mut reader = store.open_blob(repository(0), &digests[9]).unwrap();
    let first = wait(reader.read(0, bytes.len() as u64)).unwrap();
    assert!(first == bytes[..BLOCK_BYTES]);
    let (name, start) = place_of(&disk, &bytes);
    assert!(disk.flip_bit(&name, start + 3 * BLOCK_BYTES as u64, 5));
    assert_eq!(pass(&store, ScrubDepth::Checksums).bad, [digests[9]]);
    let mut given = first.len();
    let end = loop {
        match wait(reader.read(given as u64, bytes.len() as u64)) {
            Ok(block) => {
                assert!(block == bytes[given..given + block.len()]);
                given += block.len();
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(end, ReadError::Corrupt { .. }), "{end}");
    assert_eq!(given, 3 * BLOCK_BYTES);
}
