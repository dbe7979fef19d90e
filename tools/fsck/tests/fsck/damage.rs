//! Planted damage: each kind is found, named by file and offset, and graded by what is lost.

use std::fs;

use serde_json::Value;
use taffrail_blobstore::Digest;
use taffrail_blobstore::format::SegmentId;
use taffrail_blobstore::format::batch::BATCH_HEADER_BYTES;
use taffrail_blobstore::format::payload::PAYLOAD_HEADER_BYTES;
use taffrail_blobstore::format::record::Body;

use crate::image::{Blobs, Image, Left, START_MS, World};
use crate::program::{Run, check, fsck};

/// Where the payload header of a blob lies: segment, offset of its batch, offset of the header, length of the batch.
pub(crate) struct Inline {
    pub(crate) segment: SegmentId,
    pub(crate) batch: usize,
    pub(crate) header: usize,
    pub(crate) batch_len: usize,
}

pub(crate) fn inline(image: &Image, wanted: &Digest) -> Inline {
    for segment in image.segments() {
        for batch in image.batches(segment) {
            for record in &batch.records {
                if let Body::Blob { digest, payload_offset_bytes, .. } = &record.body
                    && digest == wanted
                {
                    let at = usize::try_from(batch.place.offset_bytes).unwrap();
                    let header = at + usize::try_from(*payload_offset_bytes).unwrap();
                    return Inline { segment, batch: at, header, batch_len: batch.batch_len };
                }
            }
        }
    }
    panic!("{wanted} is not in the log");
}

/// The solo file of a blob, and the length of the file.
pub(crate) fn solo(image: &Image, wanted: &Digest) -> (String, usize) {
    for segment in image.segments() {
        for batch in image.batches(segment) {
            for record in &batch.records {
                if let Body::Solo { digest, segment, .. } = &record.body
                    && digest == wanted
                {
                    let name = segment.solo_name();
                    let len = fs::metadata(image.file(&name)).unwrap().len();
                    return (name, usize::try_from(len).unwrap());
                }
            }
        }
    }
    panic!("{wanted} has no file");
}

fn places(finding: &Value) -> (String, u64) {
    (finding["file"].as_str().unwrap().to_owned(), finding["offset_bytes"].as_u64().unwrap())
}

fn names(finding: &Value, digest: &Digest) -> bool {
    finding["digests"].as_array().unwrap().iter().any(|named| named == &digest.to_string())
}

/// One damage of that kind and severity at that place, and nothing else but notes.
fn expect(run: &Run, code: i32, severity: &str, kind: &str, file: &str, offset: usize) -> Value {
    assert_eq!(run.code, code, "{}", run.stdout);
    assert_eq!(run.harms(), [(severity.to_owned(), kind.to_owned())], "{}", run.stdout);
    let finding = run.finding(kind);
    assert_eq!(places(&finding), (file.to_owned(), offset as u64));
    finding
}

#[test]
fn a_damaged_superblock_is_named_whichever_it_is() {
    for name in ["SUPER.0", "SUPER.1"] {
        let image = Image::usual(Left::Killed);
        image.flip(name, 70);
        let run = check(image.path());
        // The other copy may be older than the checkpoint, which changes nothing.
        assert_eq!(run.code, 1, "{}", run.stdout);
        assert_eq!(places(&run.finding("superblock")), (name.to_owned(), 0));
        image.remove(name);
        assert_eq!(places(&check(image.path()).finding("superblock")), (name.to_owned(), 0));
    }
}

#[test]
fn two_damaged_superblocks_are_the_loss_of_the_store() {
    let image = Image::usual(Left::Killed);
    image.flip("SUPER.0", 0);
    image.zero("SUPER.1", 0, 4096);
    let run = check(image.path());
    assert_eq!((run.code, &run.json()["verdict"]), (2, &Value::from("damaged")));
    assert!(run.stderr.contains("both superblocks are damaged"), "{}", run.stderr);
}

#[test]
fn a_damaged_segment_header_is_named_and_loses_nothing() {
    for (index, left) in [(0, Left::Killed), (1, Left::Killed), (1, Left::KilledEarly)] {
        let image = Image::usual(left);
        let name = image.segments()[index].log_name();
        image.flip(&name, 33);
        expect(&check(image.path()), 1, "repairable", "segment-header", &name, 0);
    }
}

#[test]
fn a_damaged_batch_header_is_named_with_its_records_and_digests() {
    let image = Image::usual(Left::KilledEarly);
    let blobs = Blobs::usual();
    let at = inline(&image, &blobs.inline);
    image.flip(&at.segment.log_name(), at.batch + 20);
    let run = check(image.path());
    let finding = expect(&run, 2, "lost", "batches", &at.segment.log_name(), at.batch);
    assert_eq!(finding["len_bytes"], at.batch_len);
    assert!(names(&finding, &blobs.inline), "{finding}");
    let (first, last) = (finding["first_lsn"].as_u64().unwrap(), finding["last_lsn"].as_u64().unwrap());
    assert!(first > 1 && last > first, "the batch had a blob and a link: {first} to {last}");
    let text = fsck(&["check"], image.path()).stdout;
    assert!(text.contains(&format!("lost        {} at {}", at.segment.log_name(), at.batch)), "{text}");
}

#[test]
fn a_damaged_record_is_damage_to_its_batch() {
    let image = Image::usual(Left::KilledEarly);
    let at = inline(&image, &Blobs::usual().first);
    image.flip(&at.segment.log_name(), at.batch + BATCH_HEADER_BYTES + 17);
    let run = check(image.path());
    assert_eq!(run.code, 2, "{}", run.stdout);
    assert_eq!(places(&run.finding("batches")), (at.segment.log_name(), at.batch as u64));
    // The mount of it by another repository is in a batch of its own; the bytes are still in the log.
    let link = run.finding("link-without-blob");
    assert_eq!(link["severity"], "repairable");
    assert!(names(&link, &Blobs::usual().first));
}

#[test]
fn a_batch_that_the_checkpoint_covers_is_damaged_without_loss() {
    let image = Image::usual(Left::Killed);
    let at = inline(&image, &Blobs::usual().inline);
    image.flip(&at.segment.log_name(), at.batch + 20);
    expect(&check(image.path()), 1, "repairable", "batches", &at.segment.log_name(), at.batch);
}

#[test]
fn a_damaged_payload_header_harms_its_blob_alone() {
    let image = Image::usual(Left::Killed);
    let blobs = Blobs::usual();
    let at = inline(&image, &blobs.inline);
    image.flip(&at.segment.log_name(), at.header + 10);
    let run = check(image.path());
    let finding = expect(&run, 2, "lost", "payload-header", &at.segment.log_name(), at.header);
    assert!(names(&finding, &blobs.inline));
}

#[test]
fn damaged_payload_bytes_are_named_by_block() {
    let image = Image::usual(Left::Killed);
    let blobs = Blobs::usual();
    let at = inline(&image, &blobs.inline);
    let payload = at.header + PAYLOAD_HEADER_BYTES;
    image.flip(&at.segment.log_name(), payload + 300_000);
    let run = check(image.path());
    let finding = expect(&run, 2, "lost", "payload-block", &at.segment.log_name(), payload + 262_144);
    assert!(names(&finding, &blobs.inline));
    assert_eq!(finding["len_bytes"], 262_144);
}

#[test]
fn zeroed_pages_and_swapped_blocks_are_found() {
    let blobs = Blobs::usual();
    let image = Image::usual(Left::Killed);
    let at = inline(&image, &blobs.inline);
    let page = (at.header + 200_000).next_multiple_of(4096);
    image.zero(&at.segment.log_name(), page, 4096);
    assert_eq!(check(image.path()).harms(), [("lost".to_owned(), "payload-block".to_owned())]);

    let image = Image::usual(Left::Killed);
    let (name, _) = solo(&image, &blobs.solo);
    image.edit(&name, |bytes| {
        let (front, back) = bytes.split_at_mut(4096 + 262_144);
        front[4096..].swap_with_slice(&mut back[..262_144]);
    });
    let run = check(image.path());
    assert_eq!(run.code, 2);
    let offsets: Vec<u64> = run.findings("solo-block").iter().map(|finding| places(finding).1).collect();
    assert_eq!(offsets, [4096, 4096 + 262_144], "each block is sealed to its place");
}

#[test]
fn each_part_of_a_solo_file_is_told_apart() {
    let blobs = Blobs::usual();
    let payload_end = (4096 + 1_300_000_usize).next_multiple_of(4096);
    for (offset, severity, kind, at) in [
        (100, "repairable", "solo-header", 0),
        (4096 + 5, "lost", "solo-block", 4096),
        (4096 + 1_299_999, "lost", "solo-block", 4096 + 4 * 262_144),
        (payload_end + 3, "lost", "solo-trailer", payload_end),
        (payload_end + 4096 + 20, "lost", "solo-trailer", payload_end),
        (payload_end + 8191, "lost", "solo-trailer", payload_end),
    ] {
        let image = Image::usual(Left::Killed);
        let (name, len) = solo(&image, &blobs.solo);
        assert_eq!(len, payload_end + 8192);
        image.flip(&name, offset);
        let code = if severity == "lost" { 2 } else { 1 };
        let finding = expect(&check(image.path()), code, severity, kind, &name, at);
        assert!(names(&finding, &blobs.solo), "{finding}");
    }
}

#[test]
fn a_solo_file_that_is_missing_cut_or_lengthened_is_named() {
    let blobs = Blobs::usual();
    let image = Image::usual(Left::Killed);
    let (name, len) = solo(&image, &blobs.solo);
    image.edit(&name, |bytes| bytes.extend_from_slice(&[0; 4096]));
    expect(&check(image.path()), 1, "repairable", "solo-length", &name, len);
    image.edit(&name, |bytes| bytes.truncate(len - 4096));
    assert_eq!(check(image.path()).harms(), [("lost".to_owned(), "solo-trailer".to_owned())]);
    image.edit(&name, |bytes| bytes.truncate(1000));
    assert_eq!(check(image.path()).code, 2);
    image.remove(&name);
    let finding = expect(&check(image.path()), 2, "lost", "solo-missing", &name, 0);
    assert!(names(&finding, &blobs.solo));
}

#[test]
fn a_solo_file_that_no_record_names_is_worth_a_note() {
    let image = Image::usual(Left::Killed);
    let (name, len) = solo(&image, &Blobs::usual().solo);
    let orphan = "solo/77/0000000100000077.seg";
    fs::create_dir_all(image.file("solo/77")).unwrap();
    fs::copy(image.file(&name), image.file(orphan)).unwrap();
    let run = check(image.path());
    assert_eq!((run.code, run.harms()), (0, Vec::new()));
    let note = run.finding("solo-orphan");
    assert_eq!((places(&note), &note["len_bytes"]), ((orphan.to_owned(), 0), &Value::from(len)));
}

#[test]
fn an_upload_session_whose_file_is_damaged_is_named() {
    let image = Image::usual(Left::Killed);
    let (sealed, _) = solo(&image, &Blobs::usual().solo);
    let open = image.solos().into_iter().map(SegmentId::solo_name).find(|name| *name != sealed).unwrap();
    let expect_note = || {
        let run = check(image.path());
        assert_eq!((run.code, run.harms()), (0, Vec::new()), "nothing of it was durable: {}", run.stdout);
        assert_eq!(places(&run.finding("session")), (open.clone(), 0));
    };
    image.flip(&open, 8);
    expect_note();
    image.remove(&open);
    expect_note();
}

#[test]
fn a_durable_part_of_an_upload_session_is_checked() {
    let image = Image { folder: tempfile::tempdir().unwrap() };
    let mut world = World::open(image.path(), START_MS);
    // Past 64 MiB a part of it is durable.
    world.begin(1, 1, 66 << 20);
    drop(world);
    let name = image.solos()[0].solo_name();
    assert_eq!(check(image.path()).harms(), Vec::new());
    image.flip(&name, 4096 + 3 * 262_144 + 9);
    expect(&check(image.path()), 1, "repairable", "session", &name, 4096 + 3 * 262_144);
    image.flip(&name, 20);
    expect(&check(image.path()), 1, "repairable", "session", &name, 0);
}

#[test]
fn a_damaged_or_missing_checkpoint_loses_nothing() {
    let image = Image::usual(Left::Closed);
    let name = image.checkpoint();
    image.flip(&name, 4096 + 100);
    let run = check(image.path());
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert_eq!(places(&run.finding("checkpoint")), (name.clone(), 4096));
    image.flip(&name, 50);
    assert_eq!(places(&check(image.path()).finding("checkpoint")), (name.clone(), 0));
    image.remove(&name);
    let run = check(image.path());
    assert_eq!(run.code, 1);
    assert!(run.finding("checkpoint")["what"].as_str().unwrap().contains("missing"));
}

#[test]
fn a_damaged_or_missing_partition_loses_nothing() {
    let image = Image::usual(Left::Closed);
    let name = image.partition();
    let len = fs::read(image.file(&name)).unwrap().len();
    for (at, page) in [(20, 0), (4096 + 100, 4096), (len - 1, 4096 + 1024)] {
        image.flip(&name, at);
        let run = check(image.path());
        assert_eq!(
            (run.code, places(&run.finding("checkpoint"))),
            (1, (name.clone(), page)),
            "{}",
            run.stdout
        );
        image.flip(&name, at);
        assert_eq!(check(image.path()).code, 0);
    }
    image.remove(&name);
    assert_eq!(check(image.path()).code, 1);
    let mut world = image.open();
    assert!(world.is_writable());
    world.put(1, 9, 10_000);
    world.store.close().unwrap();
    assert_eq!(check(image.path()).code, 0);
}

#[test]
fn a_missing_log_segment_is_named() {
    let image = Image::usual(Left::KilledEarly);
    for (index, id) in image.segments().into_iter().enumerate().take(2) {
        let name = id.log_name();
        let held = fs::read(image.file(&name)).unwrap();
        image.remove(&name);
        let run = check(image.path());
        assert_eq!(run.code, 2, "segment {index}: {}", run.stdout);
        assert_eq!(run.finding("segment-missing")["file"], name);
        // Emptied is as good as gone.
        fs::write(image.file(&name), vec![0; held.len()]).unwrap();
        assert_eq!(check(image.path()).finding("segment-missing")["file"], name);
        fs::write(image.file(&name), held).unwrap();
    }
    assert_eq!(check(image.path()).code, 0);
}

#[test]
fn a_missing_last_segment_is_known_by_the_checkpoint() {
    let image = Image::usual(Left::Closed);
    let name = image.segments().last().unwrap().log_name();
    image.remove(&name);
    let run = check(image.path());
    assert_eq!(run.code, 2, "{}", run.stdout);
    assert_eq!(run.finding("segment-missing")["file"], name);
}

#[test]
fn a_truncated_log_segment_is_damage_up_to_the_end_that_the_next_one_states() {
    let image = Image::usual(Left::KilledEarly);
    let id = image.segments()[0];
    let last = image.batches(id).pop().unwrap();
    let end = last.place.offset_bytes + last.batch_len as u64;
    let cut = image.batches(id)[2].place.offset_bytes;
    image.edit(&id.log_name(), |bytes| bytes.truncate(usize::try_from(cut).unwrap() + 100));
    let run = check(image.path());
    assert_eq!(run.code, 2, "{}", run.stdout);
    let finding = run.finding("batches");
    assert_eq!(places(&finding), (id.log_name(), cut));
    assert_eq!(finding["len_bytes"], end - cut);
}

#[test]
fn a_batch_of_another_place_is_no_batch() {
    let image = Image::usual(Left::KilledEarly);
    let id = image.segments()[0];
    let batches = image.batches(id);
    // Two small neighbours: the link of a mount, and the seal.
    let small: Vec<usize> = batches
        .iter()
        .filter(|batch| batch.batch_len == 4096)
        .map(|batch| usize::try_from(batch.place.offset_bytes).unwrap())
        .collect();
    let (one, other) = (small[0], small[1]);
    image.edit(&id.log_name(), |bytes| {
        let held = bytes[one..one + 4096].to_vec();
        bytes.copy_within(other..other + 4096, one);
        bytes[other..other + 4096].copy_from_slice(&held);
    });
    let run = check(image.path());
    assert_eq!(run.code, 2);
    let places: Vec<_> = run.findings("batches").iter().map(places).collect();
    assert_eq!(places, [(id.log_name(), one as u64), (id.log_name(), other as u64)]);
}

#[test]
fn a_torn_last_batch_is_no_damage() {
    let image = Image::usual(Left::Killed);
    let at = inline(&image, &Blobs::usual().last);
    image.zero(&at.segment.log_name(), at.header + PAYLOAD_HEADER_BYTES + 1000, 2000);
    let run = check(image.path());
    assert_eq!((run.code, run.harms()), (0, Vec::new()), "{}", run.stdout);
    let note = run.finding("torn-tail");
    assert_eq!(places(&note), (at.segment.log_name(), at.batch as u64));
    assert!(names(&note, &Blobs::usual().last));
}

#[test]
fn files_of_nobody_are_worth_a_note() {
    let image = Image::usual(Left::Killed);
    fs::write(image.file("log/notes.txt"), "x").unwrap();
    fs::write(image.file("index/x.ckp"), "x").unwrap();
    let run = check(image.path());
    assert_eq!((run.code, run.findings("unknown-file").len()), (0, 2), "{}", run.stdout);
}

#[test]
fn what_the_checksums_do_not_see_a_deep_check_does() {
    use taffrail_blobstore::format::payload::PayloadHeader;
    use taffrail_blobstore::format::seal::Place;
    let image = Image::usual(Left::Killed);
    let blobs = Blobs::usual();
    let at = inline(&image, &blobs.first);
    // As a store would be whose memory erred between hashing and checksumming.
    let epoch = image.batches(at.segment)[0].place.epoch;
    let place = Place { segment: at.segment, epoch, offset_bytes: at.header as u64 };
    let mut forged = Vec::new();
    PayloadHeader::encode(&mut forged, &image.key(), place, &blobs.first, &[7; 300]);
    image.edit(&at.segment.log_name(), |bytes| {
        bytes[at.header..at.header + forged.len()].copy_from_slice(&forged)
    });
    assert_eq!(check(image.path()).code, 0);
    let run = fsck(&["check", "--json", "--deep"], image.path());
    let finding = expect(&run, 2, "lost", "digest", &at.segment.log_name(), at.header + PAYLOAD_HEADER_BYTES);
    assert!(names(&finding, &blobs.first));
}
