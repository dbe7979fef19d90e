//! Repair: after any damage the store opens and takes writes, what was not hit is served, and the old files are kept.

use std::fs;

use taffrail_blobstore::format::batch::ValidBatch;
use taffrail_blobstore::format::payload::PAYLOAD_HEADER_BYTES;
use taffrail_blobstore::format::record::Body;
use taffrail_blobstore::{Digest, ReadError};

use crate::damage::{inline, solo};
use crate::image::{Blobs, Image, Left, digest, repository};
use crate::program::{Run, check, fsck};

/// Every linked blob of the usual history, with a repository that holds it.
pub(crate) fn linked() -> Vec<(u64, Digest)> {
    let blobs = Blobs::usual();
    vec![
        (1, blobs.first),
        (2, blobs.first),
        (1, digest(2, 40_000)),
        (1, blobs.inline),
        (2, digest(4, 900_000)),
        (2, blobs.solo),
        (3, digest(8, 600_000)),
        (3, blobs.last),
    ]
}

/// Repairs, and holds the store against the promises; `lost` are the links that may be gone or unreadable.
fn repaired(image: &Image, lost: &[(u64, Digest)]) -> Run {
    let dry = fsck(&["repair", "--dry-run", "--json"], image.path());
    let before = check(image.path());
    assert_eq!(dry.code, before.code, "a dry run says what a check says: {dry:?}");
    let run = fsck(&["repair", "--json"], image.path());
    assert_eq!(run.code, 1, "{run:?}");
    assert_eq!(run.json()["verdict"], "repaired", "{run:?}");
    let announced = dry.json()["actions"].as_array().unwrap().len();
    assert!(announced > 0 && run.json()["actions"].as_array().unwrap().len() >= announced, "{dry:?} {run:?}");

    let mut world = image.open();
    assert!(world.is_writable(), "{:?}", world.store.state());
    for (number, digest) in linked() {
        let read = world.read(number, &digest);
        if lost.contains(&(number, digest)) {
            assert!(matches!(read, Err(ReadError::Unknown)), "{number} {digest}: {read:?}");
        } else {
            let bytes = read.unwrap_or_else(|error| panic!("{number} {digest}: {error}"));
            assert_eq!(Digest::of(digest.algorithm(), &bytes), digest);
        }
    }
    // What was lost can be pushed again, by the usual roads.
    for (number, digest) in lost {
        let (seed, len) = (1..=9)
            .flat_map(|seed| {
                [300, 40_000, 700_000, 900_000, 1_300_000, 600_000, 5_000].map(|len| (seed, len))
            })
            .find(|(seed, len)| crate::image::digest(*seed, *len) == *digest)
            .unwrap();
        assert_eq!(world.upload(*number, seed, len), *digest);
        assert!(world.read(*number, digest).is_ok());
    }
    world.store.close().unwrap();
    let after = check(image.path());
    assert!(
        after.code <= 1 && after.harms().iter().all(|(severity, _)| severity != "lost"),
        "{}",
        after.stdout
    );

    let again = fsck(&["repair", "--json"], image.path());
    assert!(again.code <= 1 && again.json()["actions"].as_array().unwrap().is_empty(), "{again:?}");
    run
}

/// The links that a batch brings and that stand at the end of the usual history.
fn links_of(batch: &ValidBatch) -> Vec<(u64, Digest)> {
    let brings = |number: u64, wanted: &Digest| {
        batch.records.iter().any(|record| {
            matches!(&record.body, Body::Link { repository: by, digest } if digest == wanted && *by == repository(number))
        })
    };
    linked().into_iter().filter(|(number, digest)| brings(*number, digest)).collect()
}

fn kept(image: &Image, run: &Run, name: &str) -> Vec<u8> {
    let folder = run.json()["kept"].as_str().unwrap().to_owned();
    fs::read(image.file(&folder).join(name)).unwrap()
}

#[test]
fn a_clean_store_is_left_alone() {
    let image = Image::usual(Left::Killed);
    let run = fsck(&["repair"], image.path());
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stdout.ends_with("clean\n"), "{run:?}");
    assert!(!image.file("damaged").exists());
}

#[test]
fn a_dry_run_changes_nothing() {
    let image = Image::usual(Left::KilledEarly);
    let at = inline(&image, &Blobs::usual().inline);
    image.flip(&at.segment.log_name(), at.batch + 20);
    let before = fs::read(image.file(&at.segment.log_name())).unwrap();
    let run = fsck(&["repair", "--dry-run"], image.path());
    assert_eq!(run.code, 2);
    assert!(run.stdout.contains("to do       log/0000000000000001.seg: give up bytes"), "{}", run.stdout);
    assert_eq!(fs::read(image.file(&at.segment.log_name())).unwrap(), before);
    assert!(!image.file("damaged").exists());
}

#[test]
fn superblocks_are_rewritten_from_each_other() {
    for name in ["SUPER.0", "SUPER.1"] {
        for left in [Left::Closed, Left::Killed] {
            let image = Image::usual(left);
            image.flip(name, 70);
            let damaged = fs::read(image.file(name)).unwrap();
            let run = repaired(&image, &[]);
            assert_eq!(kept(&image, &run, name), damaged);
        }
    }
}

#[test]
fn headers_are_made_again_as_they_were() {
    for left in [Left::Killed, Left::KilledEarly, Left::Closed] {
        for index in 0..3 {
            let image = Image::usual(left);
            let name = image.segments()[index].log_name();
            let good = fs::read(image.file(&name)).unwrap();
            image.zero(&name, 0, 4096);
            repaired(&image, &[]);
            // The first header of a store has a time that no batch repeats.
            if index > 0 {
                let now = fs::read(image.file(&name)).unwrap();
                assert!(now[..4096] == good[..4096], "{left:?}: header {index} is another one");
            }
        }
    }
}

#[test]
fn a_lost_batch_costs_what_it_said_and_nothing_else() {
    let blobs = Blobs::usual();
    for left in [Left::KilledEarly, Left::Killed] {
        let image = Image::usual(left);
        let at = inline(&image, &digest(4, 900_000));
        image.flip(&at.segment.log_name(), at.batch + 20);
        let run = repaired(&image, &[(2, digest(4, 900_000))]);
        let text = kept(&image, &run, &at.segment.log_name());
        assert_eq!(text.len() as u64 % 4096, 0);
        assert_eq!(check(image.path()).findings("repaired-range").len(), 1);
    }
    // Each other batch of the first segment, one at a time.
    let whole = Image::usual(Left::KilledEarly);
    let id = whole.segments()[0];
    for batch in whole.batches(id) {
        let image = Image::usual(Left::KilledEarly);
        let at = usize::try_from(batch.place.offset_bytes).unwrap();
        image.zero(&id.log_name(), at, 4096);
        let lost = links_of(&batch);
        // Zeroing the first page takes a small payload with it; then the mount of it is worth nothing either.
        let first =
            linked().into_iter().filter(|(_, digest)| lost.contains(&(1, *digest)) && *digest == blobs.first);
        let all: Vec<(u64, Digest)> = lost.iter().copied().chain(first).collect();
        repaired(&image, &all);
    }
}

#[test]
fn a_blob_whose_record_is_lost_is_found_again_when_another_repository_links_it() {
    let image = Image::usual(Left::KilledEarly);
    let first = Blobs::usual().first;
    let at = inline(&image, &first);
    // The record alone: the bytes behind are whole.
    image.flip(&at.segment.log_name(), at.batch + 140);
    let run = repaired(&image, &[(1, first)]);
    assert!(run.stdout.contains("1 blobs found again"), "{}", run.stdout);
}

#[test]
fn a_large_blob_whose_record_is_lost_is_found_again_by_its_file() {
    let image = Image::usual(Left::KilledEarly);
    let blob = Blobs::usual().solo;
    let mut world = image.open();
    world.mount(2, 3, &blob);
    // An opening sweeps files that no record names; this one was not that old.
    drop(world);
    for id in image.segments() {
        for batch in image.batches(id) {
            let places_it = |body: &Body| matches!(body, Body::Solo { digest, .. } if *digest == blob);
            if batch.records.iter().any(|record| places_it(&record.body)) {
                image.flip(&id.log_name(), usize::try_from(batch.place.offset_bytes).unwrap() + 20);
            }
        }
    }
    let run = repaired(&image, &[(2, blob)]);
    assert!(run.stdout.contains("1 blobs found again"), "{}", run.stdout);
    assert!(image.open().read(3, &blob).is_ok());
}

#[test]
fn damaged_bytes_are_set_aside() {
    let blobs = Blobs::usual();
    let image = Image::usual(Left::Killed);
    let at = inline(&image, &blobs.inline);
    image.flip(&at.segment.log_name(), at.header + PAYLOAD_HEADER_BYTES + 5);
    repaired(&image, &[(1, blobs.inline)]);
    // The record says which copy it means: what was pushed again meanwhile is whole.
    let inspected = fsck(&["inspect"], image.path()).stdout;
    let record = format!("CORRUPT {} in segment {} epoch ", blobs.inline, at.segment);
    let record = inspected.lines().find(|line| line.contains(&record));
    assert!(record.is_some_and(|line| line.ends_with(&format!(" at {}", at.header))), "{inspected}");
    assert!(check(image.path()).findings("quarantined").is_empty());

    let image = Image::usual(Left::Closed);
    let at = inline(&image, &blobs.first);
    image.flip(&at.segment.log_name(), at.header + 3);
    repaired(&image, &[(1, blobs.first), (2, blobs.first)]);

    let (name, len) = solo(&image, &blobs.solo);
    image.flip(&name, 5_000);
    repaired(&image, &[(2, blobs.solo)]);

    let image = Image::usual(Left::Killed);
    let (name, _) = solo(&image, &blobs.solo);
    image.flip(&name, len - 1);
    repaired(&image, &[(2, blobs.solo)]);

    let image = Image::usual(Left::Closed);
    let (name, _) = solo(&image, &blobs.solo);
    image.remove(&name);
    repaired(&image, &[(2, blobs.solo)]);
}

#[test]
fn a_missing_segment_is_replaced_and_what_was_in_it_given_up() {
    let blobs = Blobs::usual();
    let in_first = [(1, blobs.first), (2, blobs.first), (1, digest(2, 40_000)), (1, blobs.inline)];
    let in_second = [(2, digest(4, 900_000)), (2, blobs.solo)];
    for left in [Left::KilledEarly, Left::Closed] {
        for (index, lost) in [(0, &in_first[..]), (1, &in_second[..])] {
            for emptied in [false, true] {
                let image = Image::usual(left);
                let id = image.segments()[index];
                let sits = |(number, digest): &&(u64, Digest)| {
                    // The checkpoint still knows the large blob, whose bytes are elsewhere.
                    left == Left::KilledEarly || !(*number == 2 && *digest == blobs.solo)
                };
                let len = fs::metadata(image.file(&id.log_name())).unwrap().len();
                image.remove(&id.log_name());
                if emptied {
                    fs::write(image.file(&id.log_name()), vec![0; usize::try_from(len).unwrap()]).unwrap();
                }
                let lost: Vec<(u64, Digest)> = lost.iter().filter(sits).copied().collect();
                repaired(&image, &lost);
            }
        }
    }
}

#[test]
fn a_missing_last_segment_is_replaced() {
    let image = Image::usual(Left::Closed);
    let id = *image.segments().last().unwrap();
    let lost: Vec<(u64, Digest)> = linked()
        .into_iter()
        .filter(|(_, wanted)| *wanted != Blobs::usual().solo && inline(&image, wanted).segment == id)
        .collect();
    assert!(!lost.is_empty());
    image.remove(&id.log_name());
    repaired(&image, &lost);
}

#[test]
fn a_cut_segment_is_filled_up() {
    let image = Image::usual(Left::KilledEarly);
    let id = image.segments()[0];
    let at = inline(&image, &digest(2, 40_000));
    image.edit(&id.log_name(), |bytes| bytes.truncate(at.batch));
    let lost = [(1, digest(2, 40_000)), (1, Blobs::usual().inline), (2, Blobs::usual().first)];
    repaired(&image, &lost);
    let image = Image::usual(Left::Closed);
    let id = *image.segments().last().unwrap();
    let last = image.batches(id).pop().unwrap();
    // The seal alone, which the checkpoint covers.
    image.edit(&id.log_name(), |bytes| bytes.truncate(usize::try_from(last.place.offset_bytes).unwrap()));
    repaired(&image, &[]);
}

#[test]
fn a_damaged_checkpoint_is_set_aside_and_written_anew() {
    let image = Image::usual(Left::Closed);
    let name = image.checkpoint();
    image.flip(&name, 4096 + 100);
    let run = repaired(&image, &[]);
    assert!(!kept(&image, &run, &name).is_empty());
    assert_eq!(check(image.path()).code, 0);
}

#[test]
fn a_broken_chain_is_joined() {
    use taffrail_blobstore::format::batch::reseal;
    use taffrail_blobstore::format::segment::{Content, SegmentHeader};
    // A batch that continues something else.
    for (segment, batch) in [(0, 0), (0, 2), (1, 0), (2, 1)] {
        let image = Image::usual(Left::KilledEarly);
        let id = image.segments()[segment];
        let batch = image.batches(id).swap_remove(batch);
        let key = image.key();
        image.edit(&id.log_name(), |bytes| {
            let from = usize::try_from(batch.place.offset_bytes).unwrap();
            reseal(&mut bytes[from..], &key, batch.place, &[9; 32]).unwrap();
        });
        assert!(!check(image.path()).findings("chain").is_empty());
        repaired(&image, &[]);
    }
    // A header that continues something else.
    let image = Image::usual(Left::KilledEarly);
    let id = image.segments()[1];
    let key = image.key();
    image.edit(&id.log_name(), |bytes| {
        let mut header = SegmentHeader::decode(&bytes[..4096], id, &key).unwrap();
        if let Content::Log { previous: Some(previous), .. } = &mut header.content {
            previous.seal = [9; 32];
        }
        bytes[..4096].copy_from_slice(&header.encode(&key));
    });
    repaired(&image, &[]);
}

#[test]
fn several_damages_at_once_are_repaired_in_one_run() {
    let blobs = Blobs::usual();
    let image = Image::usual(Left::KilledEarly);
    let ids = image.segments();
    let in_batch = links_of(&image.batches(ids[2])[0]);
    let at = inline(&image, &blobs.inline);
    let (name, _) = solo(&image, &blobs.solo);
    image.zero(&ids[1].log_name(), 0, 4096);
    image.flip(&at.segment.log_name(), at.batch + 20);
    image.flip(&name, 5_000);
    image.flip("SUPER.0", 70);
    image.zero(&ids[2].log_name(), 4096, 4096);
    let mut lost = vec![(1, blobs.inline), (2, blobs.solo)];
    lost.extend(in_batch);
    repaired(&image, &lost);
}

#[test]
fn a_store_in_use_is_not_repaired() {
    let image = Image::usual(Left::Killed);
    let world = image.open();
    image.flip("SUPER.0", 70);
    let run = fsck(&["repair"], image.path());
    assert_eq!(run.code, 3, "{run:?}");
    assert!(run.stderr.contains("in use by process"), "{run:?}");
    drop(world);
}

#[test]
fn a_range_that_reaches_across_the_end_of_the_checkpoint_is_given_up_in_two_parts() {
    // An opening reads on from the checkpoint's end, in the middle of what was one damaged range.
    let image = Image::usual(Left::Killed);
    let id = image.segments()[0];
    image.edit(&id.log_name(), |bytes| bytes.truncate(50_000));
    let harms = check(image.path()).harms();
    assert!(harms.contains(&("repairable".to_owned(), "batches".to_owned())), "{harms:?}");
    assert!(harms.contains(&("lost".to_owned(), "batches".to_owned())), "{harms:?}");
    repaired(&image, &[(1, Blobs::usual().inline)]);
}

#[test]
fn an_interrupted_repair_is_run_again() {
    let image = Image::usual(Left::KilledEarly);
    let at = inline(&image, &Blobs::usual().inline);
    let name = at.segment.log_name();
    image.flip(&name, at.batch + 20);
    // As a run leaves it that was killed while it wrote, and one that was killed before it renamed.
    fs::write(image.file(&format!("{name}.repair")), vec![7; 2_000_000]).unwrap();
    fs::create_dir_all(image.file("damaged/1/log")).unwrap();
    fs::hard_link(image.file(&name), image.file("damaged/1").join(&name)).unwrap();
    let run = repaired(&image, &[(1, Blobs::usual().inline)]);
    assert!(!image.file(&format!("{name}.repair")).exists());
    assert_eq!(kept(&image, &run, &name), fs::read(image.file("damaged/1").join(&name)).unwrap());
}
