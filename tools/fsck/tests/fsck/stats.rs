//! `stats`: every figure, held against stores whose history is known.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};
use taffrail_blobstore::format::payload::PAYLOAD_HEADER_BYTES;
use taffrail_blobstore::{Algorithm, Digest};

use crate::image::{Image, START_MS, World, noise, repository, wait};
use crate::program::{Run, fsck};

fn stats(folder: &Path) -> Run {
    fsck(&["stats", "--json"], folder)
}

/// What a payload takes in the log: header and bytes, up to a multiple of 64 (docs/format.md).
fn slots(lens: &[usize]) -> u64 {
    lens.iter().map(|len| (PAYLOAD_HEADER_BYTES + len).next_multiple_of(64) as u64).sum()
}

/// Files, lengths and allocated bytes below a folder, told without the program.
fn du(folder: &Path) -> (u64, u64, u64) {
    fs::read_dir(folder).unwrap().fold((0, 0, 0), |sum, entry| {
        let path = entry.unwrap().path();
        let metadata = fs::metadata(&path).unwrap();
        let (files, bytes, allocated) =
            if path.is_dir() { du(&path) } else { (1, metadata.len(), metadata.blocks() * 512) };
        (sum.0 + files, sum.1 + bytes, sum.2 + allocated)
    })
}

/// Shared and exclusive blobs, garbage and dead ones, in the log and in files, and an upload session.
fn known() -> (Image, World) {
    let image = Image { folder: tempfile::tempdir().unwrap() };
    let mut world = World::open(image.path(), START_MS);
    let dead = world.put(1, 1, 30_000);
    world.unlink(1, &dead);
    world.now_ms += 10_000;
    assert_eq!(wait(world.store.collect(world.now_ms, 10)).unwrap().blobs, 1);
    let shared = world.put(1, 2, 40_000);
    world.mount(1, 2, &shared);
    world.put(1, 3, 300);
    let solo = world.upload(2, 4, 1_300_000);
    world.mount(2, 1, &solo);
    world.mount(2, 3, &solo);
    let unlinked = world.put(3, 5, 2_000);
    world.unlink(3, &unlinked);
    let unlinked = world.upload(3, 6, 1_200_000);
    world.unlink(3, &unlinked);
    world.begin(4, 7, 1_500_000);
    (image, world)
}

#[test]
fn every_figure_is_that_of_a_store_whose_history_is_known() {
    for closed in [true, false] {
        let (image, world) = known();
        if closed {
            world.store.close().unwrap();
        } else {
            drop(world);
        }
        let run = stats(image.path());
        assert_eq!(run.code, 0, "{run:?}");
        let figures = run.json();
        let count = |count: u64, bytes: u64| json!({ "count": count, "bytes": bytes });
        assert_eq!(figures["blobs"]["linked"], count(3, 40_000 + 300 + 1_300_000));
        assert_eq!(figures["blobs"]["garbage"], count(2, 2_000 + 1_200_000));
        assert_eq!(figures["blobs"]["inline"], count(3, 40_000 + 300 + 2_000));
        assert_eq!(figures["blobs"]["solo"], count(2, 1_300_000 + 1_200_000));
        assert_eq!(figures["blobs"]["quarantined"], count(0, 0));
        let logical = 2 * 40_000 + 300 + 3 * 1_300_000;
        assert_eq!(figures["links"], 6);
        assert_eq!(figures["logical_bytes"], logical);
        assert_eq!(figures["unique_bytes"], 1_340_300);
        let ratio = figures["dedup_ratio"].as_f64().unwrap();
        assert!((ratio - f64::from(logical) / 1_340_300.0).abs() < 1e-9, "{ratio}");
        assert_eq!(figures["sessions"], count(1, 1_500_000));

        let held = |number: u64, blobs: u64, bytes: u64, exclusive: u64, sessions: Value| {
            json!({
                "repository": repository(number).number().to_string(),
                "blobs": blobs,
                "bytes": bytes,
                "exclusive_bytes": exclusive,
                "shared_bytes": bytes - exclusive,
                "sessions": sessions,
            })
        };
        assert_eq!(figures["repositories_total"], 4);
        assert_eq!(
            figures["repositories"],
            json!([
                held(4, 0, 0, 0, count(1, 1_500_000)),
                held(1, 3, 1_340_300, 300, count(0, 0)),
                held(2, 2, 1_340_000, 0, count(0, 0)),
                held(3, 1, 1_300_000, 0, count(0, 0)),
            ])
        );

        let log = |part: &str| figures["log"][part].as_u64().unwrap();
        assert_eq!(log("linked_bytes"), slots(&[40_000, 300]));
        assert_eq!(log("garbage_bytes"), slots(&[2_000]));
        assert_eq!(log("dead_bytes"), slots(&[30_000]));
        let ends: u64 = image
            .segments()
            .iter()
            .map(|id| {
                let last = image.batches(*id).pop().unwrap();
                last.place.offset_bytes + last.batch_len as u64
            })
            .sum();
        let written = log("linked_bytes") + log("garbage_bytes") + log("dead_bytes") + log("record_bytes");
        assert_eq!(written, ends, "{}", run.stdout);
        assert_eq!(written + log("unwritten_bytes"), du(&image.file("log")).1);
        assert_eq!(log("unwritten_bytes") == 0, closed, "a clean close gives the tail back");
    }
}

#[test]
fn every_byte_of_the_folder_is_in_one_line() {
    let (image, world) = known();
    world.checkpoint();
    drop(world);
    fs::create_dir_all(image.file("damaged/1")).unwrap();
    fs::write(image.file("damaged/1/SUPER.0"), [1; 5_000]).unwrap();
    fs::create_dir_all(image.file("reserve")).unwrap();
    fs::write(image.file("reserve/space"), [0; 9_000]).unwrap();
    fs::write(image.file("notes"), "not the store's").unwrap();
    let orphan = "solo/aa/00000001000000aa.seg";
    fs::create_dir_all(image.file("solo/aa")).unwrap();
    fs::write(image.file(orphan), [3; 70_000]).unwrap();
    let figures = stats(image.path()).json();
    let used = |part: &str| {
        let part = &figures["disk"][part];
        ["files", "bytes", "allocated_bytes"].map(|field| part[field].as_u64().unwrap())
    };
    let parts = [
        "log",
        "solo_linked",
        "solo_garbage",
        "solo_sessions",
        "solo_unclaimed",
        "checkpoints",
        "partitions",
        "reserve",
        "superblocks",
        "damaged",
        "other",
    ];
    let (files, bytes, allocated) = du(image.path());
    assert_eq!(used("total"), [files, bytes, allocated]);
    let sum = parts.iter().fold([0; 3], |sum, part| {
        let part = used(part);
        [sum[0] + part[0], sum[1] + part[1], sum[2] + part[2]]
    });
    assert_eq!(sum, used("total"), "{:#}", figures["disk"]);
    assert_eq!(figures["disk"].as_object().unwrap().len(), parts.len() + 1);

    let files = parts.map(|part| (part, used(part)[0]));
    let segments = image.segments().len() as u64;
    let partitions = fs::read_dir(image.file("index")).unwrap().count() as u64 - 1;
    let wanted = [segments, 1, 1, 1, 1, 1, partitions, 1, 2, 1, 2];
    assert_eq!(files.map(|(_, files)| files), wanted, "{files:?}");
    assert_eq!(used("solo_unclaimed")[1], 70_000);
    assert_eq!(used("damaged")[1], 5_000);
    assert_eq!(used("reserve")[1], 9_000);
    assert!(used("solo_linked")[2] >= 1_300_000 && used("solo_garbage")[2] >= 1_200_000, "{figures:#}");
}

#[test]
fn the_same_store_gives_the_same_document_with_all_its_fields() {
    let (image, world) = known();
    drop(world);
    let run = stats(image.path());
    assert_eq!(run.stdout, stats(image.path()).stdout);
    let document = run.json();
    let fields: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        fields,
        [
            "blobs",
            "dedup_ratio",
            "disk",
            "estimate",
            "exit_code",
            "findings",
            "links",
            "log",
            "logical_bytes",
            "repositories",
            "repositories_total",
            "sessions",
            "store",
            "unique_bytes",
            "verdict",
        ]
    );
    assert_eq!((&document["verdict"], &document["exit_code"]), (&json!("clean"), &json!(0)));
    assert_eq!(document["estimate"], Value::Null);
}

#[test]
fn people_read_aligned_columns_with_units_and_the_largest_repositories() {
    let (image, world) = known();
    drop(world);
    let text = fsck(&["stats", "--top", "2"], image.path()).stdout;
    for line in [
        "  linked, each counted once         3   1.28 MiB",
        "  links, as if nothing were shared  6   3.80 MiB",
        "  garbage, which nothing links      2   1.15 MiB",
        "  links to linked, by bytes                 2.97",
        "repository  blobs     bytes  exclusive    shared   uploads",
        "101             3  1.28 MiB      300 B  1.28 MiB       0 B",
        "and 2 more (see --top)",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("\n103 "), "{text}");
    let top = fsck(&["stats", "--json", "--top", "1"], image.path()).json();
    assert_eq!((top["repositories"].as_array().unwrap().len(), &top["repositories_total"]), (1, &json!(4)));
}

fn put(world: &mut World, number: u64, bytes: Vec<u8>) -> u64 {
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let len = bytes.len() as u64;
    world.now_ms += 10;
    drop(wait(world.store.put(repository(number), &digest, Bytes::from(bytes), &[], world.now_ms)).unwrap());
    len
}

/// Two tars of which the second has a few bytes more near its start, and two gzips without anything in common.
fn alike() -> (Image, u64, u64) {
    let image = Image { folder: tempfile::tempdir().unwrap() };
    let mut world = World::open(image.path(), START_MS);
    let mut tar = noise(1, 700_000).to_vec();
    tar[257..262].copy_from_slice(b"ustar");
    let mut changed = tar.clone();
    changed.splice(1_000..1_000, *b"and a file more");
    let tars = put(&mut world, 1, tar) + put(&mut world, 1, changed);
    let mut gzips = 0;
    for seed in [2, 3] {
        let mut gzip = noise(seed, 300_000).to_vec();
        gzip[..2].copy_from_slice(&[0x1f, 0x8b]);
        gzips += put(&mut world, 2, gzip);
    }
    // A file of its own, and garbage, which is nothing to save on.
    world.upload(2, 4, 1_300_000);
    let unlinked = world.put(3, 5, 90_000);
    world.unlink(3, &unlinked);
    world.store.close().unwrap();
    (image, tars, gzips)
}

#[test]
fn an_estimate_tells_what_alike_blobs_would_share_and_what_compressed_ones_would_not() {
    let (image, tars, gzips) = alike();
    let run = fsck(&["stats", "--json", "--estimate-dedup"], image.path());
    assert_eq!(run.code, 0, "{run:?}");
    let estimate = &run.json()["estimate"];
    assert_eq!((&estimate["is_estimate"], &estimate["sample_is_everything"]), (&json!(true), &json!(true)));
    let all = json!({ "blobs": 5, "bytes": tars + gzips + 1_300_000 });
    assert_eq!(estimate["stored"], all);
    assert_eq!((&estimate["sample"]["blobs"], &estimate["sample"]["bytes"]), (&all["blobs"], &all["bytes"]));
    let saved = |form: &str| estimate["forms"][form]["saved_bytes"].as_u64().unwrap();
    // All but the chunk with the insertion, of at most 256 KiB, and one that a cut there may shift.
    assert!(saved("tar") >= 700_000 - 2 * 262_144 && saved("tar") <= 700_000, "{estimate:#}");
    assert_eq!((saved("gzip"), saved("other")), (0, 0), "{estimate:#}");
    assert_eq!(estimate["sample"]["saved_bytes"].as_u64().unwrap(), saved("tar"));
    assert_eq!(estimate["unreadable_blobs"], 0);
    let text = fsck(&["stats", "--estimate-dedup"], image.path()).stdout;
    assert!(text.contains("estimate of what deduplication below the blob would save"), "{text}");
    assert!(text.contains("the sample is every linked blob"), "{text}");
}

#[test]
fn a_sample_is_no_larger_than_asked_for_and_says_so() {
    let (image, tars, gzips) = alike();
    let arguments = ["stats", "--json", "--estimate-dedup", "--sample-bytes", "1000000"];
    let estimate = fsck(&arguments, image.path()).json()["estimate"].clone();
    assert_eq!(estimate["sample"]["bytes"], 1_000_000);
    assert_eq!(estimate["sample_is_everything"], false);
    assert_eq!(estimate["stored"]["bytes"], tars + gzips + 1_300_000);
    let text = fsck(&["stats", "--estimate-dedup", "--sample-bytes", "1000000"], image.path()).stdout;
    assert!(text.contains("so it is at least so much"), "{text}");
    assert_eq!(fsck(&["stats", "--sample-bytes", "1000000"], image.path()).code, 3);
    assert_eq!(fsck(&["stats", "--estimate-dedup", "--sample-bytes", "0"], image.path()).code, 3);
}

#[test]
fn an_estimate_goes_on_where_a_file_is_gone() {
    let (image, _, _) = alike();
    image.remove(&image.solos()[0].solo_name());
    let estimate = fsck(&["stats", "--json", "--estimate-dedup"], image.path()).json()["estimate"].clone();
    assert_eq!((&estimate["unreadable_blobs"], &estimate["sample"]["blobs"]), (&json!(1), &json!(4)));
    assert_eq!(estimate["sample_is_everything"], false);
}

#[test]
fn figures_of_a_damaged_store_come_with_the_damage_and_its_exit_code() {
    let (image, world) = known();
    drop(world);
    let first = image.segments()[0];
    let batch = &image.batches(first)[2];
    image.flip(&first.log_name(), usize::try_from(batch.place.offset_bytes).unwrap() + 70);
    let run = stats(image.path());
    assert_eq!(run.code, 2, "{run:?}");
    assert_eq!(run.findings("batches").len(), 1, "{run:?}");
    assert!(run.json()["blobs"]["linked"]["count"].as_u64().unwrap() >= 2, "{run:?}");

    let (image, world) = known();
    drop(world);
    image.flip("SUPER.0", 70);
    let run = stats(image.path());
    assert_eq!((run.code, run.findings("superblock").len()), (1, 1), "{run:?}");

    let nothing = tempfile::tempdir().unwrap();
    let run = stats(nothing.path());
    assert_eq!((run.code, run.json()["verdict"].as_str()), (3, Some("unchecked")), "{run:?}");
}

#[test]
fn a_store_in_use_is_measured_with_a_note() {
    let (image, world) = known();
    let run = stats(image.path());
    assert_eq!((run.code, run.findings("in-use").len()), (0, 1), "{run:?}");
    assert_eq!(run.json()["links"], 6);
    drop(world);
}
