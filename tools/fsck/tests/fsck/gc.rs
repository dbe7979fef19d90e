//! `gc`: what nothing links goes, all else stays, and a dry run says beforehand what a run does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::format::record::Body;
use taffrail_blobstore::{Digest, Options, SessionId, Store};

use crate::image::{Image, Left, START_MS, World, digest, noise, options, repository, wait};
use crate::program::{Run, check, fsck};

/// Every file below a folder: name, bytes, and when it was changed.
fn picture(folder: &Path) -> Vec<(PathBuf, Vec<u8>, SystemTime)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(picture(&path));
        } else {
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            files.push((path.clone(), fs::read(&path).unwrap(), modified));
        }
    }
    files.sort();
    files
}

/// Collects, and holds the run against the dry run before it and the store after it; `left` are the linked blobs.
fn collected(image: &Image, left: &[(u64, Digest)]) -> Run {
    let before = picture(image.path());
    let dry = fsck(&["gc", "--dry-run", "--json"], image.path());
    assert!(picture(image.path()) == before, "a dry run changes nothing");
    let run = fsck(&["gc", "--json"], image.path());
    assert_eq!((dry.code, run.code), (0, 0), "{dry:?} {run:?}");
    let (plan, done) = (dry.json()["plan"].clone(), run.json()["collected"].clone());
    assert_eq!(plan, run.json()["plan"]);
    let announced = ["blobs", "bytes"].map(|field| plan[field].clone());
    assert_eq!(announced, ["blobs", "bytes"].map(|field| done[field].clone()), "{plan:#} {done:#}");
    assert_eq!(plan["segments"]["files"], done["segments"], "{plan:#} {done:#}");
    assert_eq!(plan["unclaimed"]["files"], done["unclaimed"], "{plan:#} {done:#}");
    assert_eq!(dry.json()["by_repository"], run.json()["by_repository"]);

    let after = check(image.path());
    assert_eq!((after.code, after.harms()), (0, Vec::new()), "{after:?}");
    assert_eq!(after.json()["totals"]["blobs"], {
        let mut digests: Vec<&Digest> = left.iter().map(|(_, digest)| digest).collect();
        digests.sort();
        digests.dedup();
        digests.len()
    });
    let still = fsck(&["stats", "--json"], image.path()).json();
    assert_eq!(still["blobs"]["garbage"]["count"], 0, "{still:#}");
    let again = fsck(&["gc", "--json"], image.path());
    assert_eq!((again.code, again.json()["state"].as_str()), (0, Some("nothing-to-collect")), "{again:?}");

    let world = image.open();
    assert!(world.is_writable(), "{:?}", world.store.state());
    for (number, digest) in left {
        let bytes = world.read(*number, digest).unwrap_or_else(|error| panic!("{number} {digest}: {error}"));
        assert_eq!(Digest::of(digest.algorithm(), &bytes), *digest);
    }
    run
}

#[test]
fn what_nothing_links_goes_and_all_else_stays_however_the_store_was_left() {
    for left in [Left::Closed, Left::Killed, Left::KilledEarly] {
        let image = Image::usual(left);
        let run = collected(&image, &crate::repair::linked());
        assert_eq!(run.json()["state"], "collected", "{left:?}");
        let by_repository = json!([{ "repository": "103", "blobs": 1, "bytes": 2_000 }]);
        assert_eq!(run.json()["by_repository"], by_repository, "{left:?}");
        assert!(run.json()["plan"]["left_in_log_bytes"].as_u64().unwrap() >= 2_000, "{left:?}: {run:?}");
        // The upload goes on where it stood.
        let world = image.open();
        let status = world.store.upload_status(repository(3), SessionId::new([7; 16]), world.now_ms).unwrap();
        assert_eq!(status.offset_bytes, 1_500_000, "{left:?}");
    }
}

#[test]
fn files_of_blobs_and_files_that_nobody_knows_are_given_back_to_the_file_system() {
    let image = Image { folder: tempfile::tempdir().unwrap() };
    let mut world = World::open(image.path(), START_MS);
    let kept = world.upload(1, 1, 1_200_000);
    let mut gone = Vec::new();
    for seed in 2..6 {
        gone.push(world.upload(seed % 2 + 1, seed, 2_000_000));
    }
    for (digest, seed) in gone.iter().zip(2..6) {
        world.unlink(seed % 2 + 1, digest);
    }
    world.store.close().unwrap();
    fs::create_dir_all(image.file("solo/aa")).unwrap();
    fs::write(image.file("solo/aa/00000001000000aa.seg"), vec![3; 500_000]).unwrap();
    let run = collected(&image, &[(1, kept)]);
    let document = run.json();
    assert_eq!((&document["plan"]["blobs"], &document["plan"]["bytes"]), (&json!(4), &json!(8_000_000)));
    assert_eq!(
        document["by_repository"],
        json!([
            { "repository": "101", "blobs": 2, "bytes": 4_000_000 },
            { "repository": "102", "blobs": 2, "bytes": 4_000_000 },
        ])
    );
    assert_eq!(document["collected"]["unclaimed"], 1);
    let allocated = |moment: &str| document["disk"][moment]["allocated_bytes"].as_u64().unwrap();
    let freed = allocated("before") - allocated("after");
    assert!((8_300_000..9_000_000).contains(&freed), "{freed} of {document:#}");
    assert_eq!(image.solos().len(), 1);
}

/// The dead bytes of small blobs stayed until a server had compacted the log.
#[test]
fn what_is_dead_of_small_blobs_comes_back_with_the_segments_that_are_rewritten() {
    for online in [false, true] {
        let image = Image { folder: tempfile::tempdir().unwrap() };
        let mut world = World::open(image.path(), START_MS);
        let mut left = Vec::new();
        for seed in 0..24 {
            let blob = world.put(1, 1 + seed, 100_000);
            if seed % 4 == 0 {
                left.push((1, blob));
            } else {
                world.unlink(1, &blob);
            }
        }
        if online {
            // Deleted while the server ran, which had no time to rewrite anything.
            world.now_ms += 10_000;
            assert_eq!(wait(world.store.collect(world.now_ms, 100)).unwrap().blobs, 18);
        }
        world.store.close().unwrap();
        let log_bytes = || -> u64 {
            let files = fs::read_dir(image.file("log")).unwrap();
            files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
        };
        let before = log_bytes();
        assert!(before > 2_400_000, "{before}");
        let run = collected(&image, &left);
        let document = run.json();
        let said = document["plan"]["rewritten"]["bytes"].as_u64().unwrap()
            + document["plan"]["segments"]["bytes"].as_u64().unwrap();
        let freed = before - log_bytes();
        assert!(freed > 1_600_000, "{online}: {freed} of {document:#}");
        assert!(
            said.abs_diff(freed) < 200_000,
            "{online}: {said} were announced, {freed} freed: {document:#}"
        );
        assert!(document["compacted"]["segments"].as_u64().unwrap() > 0, "{document:#}");
        assert_eq!(document["state"], "collected");
    }
}

#[test]
fn the_text_says_before_and_after_what_is_freed_and_whose_it_was() {
    let image = Image { folder: tempfile::tempdir().unwrap() };
    let mut world = World::open(image.path(), START_MS);
    world.put(1, 1, 5_000);
    let unlinked = world.upload(2, 2, 2_000_000);
    world.unlink(2, &unlinked);
    world.store.close().unwrap();
    let run = fsck(&["gc", "--dry-run"], image.path());
    let announced = "would delete 1 blob of 1.91 MiB and free 1.92 MiB";
    assert!(run.stdout.contains("102") && run.stdout.contains(announced), "{run:?}");
    let run = fsck(&["gc"], image.path());
    assert!(run.stdout.contains("deleted 1 blob of 1.91 MiB and freed 1.9"), "{run:?}");
    let run = fsck(&["gc"], image.path());
    assert!(run.stdout.ends_with("nothing to collect\n"), "{run:?}");
    // A small blob goes with the log segment that it was in, when what counts in that is little.
    let mut world = image.open();
    let unlinked = world.put(2, 3, 100);
    world.unlink(2, &unlinked);
    world.store.close().unwrap();
    let run = fsck(&["gc"], image.path());
    assert!(run.code == 0 && run.stdout.contains("of dead bytes stay in log segments"), "{run:?}");
    assert!(run.stdout.contains("deleted 1 blob of 100 B and freed "), "{run:?}");
}

#[test]
fn a_plan_names_the_segments_that_go_in_histories_of_many() {
    let mut segments = 0;
    for seed in 1..9_u64 {
        let image = Image { folder: tempfile::tempdir().unwrap() };
        let mut world = World::open(image.path(), START_MS);
        let dice = noise(seed, 14);
        let (mut blobs, mut left) = (Vec::new(), Vec::new());
        for step in 0..14 {
            let number = (seed + step) % 3;
            let blob = if (seed + step) % 4 == 0 {
                world.upload(number, 1 + step, 1_100_000)
            } else {
                world.put(number, 100 * seed + step, 350_000)
            };
            blobs.push((number, blob));
            // A link and a session hold a segment in which no blob is linked.
            if dice[blobs.len() - 1] % 5 == 1 {
                let (from, blob) = blobs[0];
                world.mount(from, 10 + step, &blob);
                left.push((10 + step, blob));
            }
            if step == 7 && seed % 3 == 1 {
                world.begin(9, 40 + seed, 1_100_000);
            }
            if step % 5 == seed % 5 {
                world.checkpoint();
            }
        }
        for (index, (number, blob)) in blobs.into_iter().enumerate() {
            if dice[index].is_multiple_of(4) {
                left.push((number, blob));
            } else {
                world.unlink(number, &blob);
            }
        }
        // Some are collected online before.
        if seed % 3 == 0 {
            world.now_ms += 10_000;
            assert!(wait(world.store.collect(world.now_ms, 3)).unwrap().blobs > 0, "seed {seed}");
        }
        if seed % 2 == 0 {
            world.store.close().unwrap();
        } else {
            drop(world);
        }
        println!("seed {seed}");
        let run = collected(&image, &left);
        segments += run.json()["collected"]["segments"].as_u64().unwrap();
    }
    assert!(segments >= 3, "{segments} segments went");
}

/// A history in which each segment but the first is held by one thing alone; `hold` is what holds the second.
fn segment_held_by(hold: impl FnOnce(&mut World, &Digest)) -> Image {
    let image = Image { folder: tempfile::tempdir().unwrap() };
    let mut world = World::open(image.path(), START_MS);
    let kept = world.put(1, 1, 700_000);
    let second = world.put(1, 2, 700_000);
    assert_eq!(image.segments().len(), 2);
    hold(&mut world, &kept);
    let third = world.put(1, 3, 700_000);
    assert_eq!(image.segments().len(), 3);
    let fourth = world.put(1, 4, 700_000);
    for blob in [second, third, fourth] {
        world.unlink(1, &blob);
    }
    world.store.close().unwrap();
    image
}

#[test]
fn a_segment_stays_for_one_link_or_one_upload_session() {
    let dropped = |image: &Image, left: &[(u64, Digest)]| {
        collected(image, left).json()["collected"]["segments"].as_u64().unwrap()
    };
    let kept = digest(1, 700_000);
    assert_eq!(dropped(&segment_held_by(|_, _| {}), &[(1, kept)]), 2);
    assert_eq!(dropped(&segment_held_by(|world, kept| world.mount(1, 2, kept)), &[(1, kept), (2, kept)]), 1);
    let by_session = segment_held_by(|world, _| {
        world.begin(3, 5, 1_100_000);
    });
    assert_eq!(dropped(&by_session, &[(1, kept)]), 1);
    // A session whose file is a blob's by now holds nothing, but the blob does.
    let by_solo = segment_held_by(|world, _| {
        world.upload(3, 5, 1_100_000);
    });
    assert_eq!(dropped(&by_solo, &[(1, kept), (3, digest(5, 1_100_000))]), 1);
}

#[test]
fn a_store_in_use_is_not_touched_and_a_dry_run_says_that_it_is_in_use() {
    let image = Image::usual(Left::Killed);
    let world = image.open();
    let run = fsck(&["gc", "--json"], image.path());
    assert_eq!(run.code, 3, "{run:?}");
    assert!(run.stderr.contains("the store is in use by process"), "{run:?}");
    let run = fsck(&["gc", "--dry-run", "--json"], image.path());
    assert_eq!((run.code, run.findings("in-use").len()), (0, 1), "{run:?}");
    assert_eq!(run.json()["plan"]["blobs"], 1);
    drop(world);
}

#[test]
fn a_damaged_store_is_left_alone_until_it_is_repaired() {
    let image = Image::usual(Left::Killed);
    let first = image.segments()[0];
    let batch = image.batches(first).pop().unwrap();
    image.flip(&first.log_name(), usize::try_from(batch.place.offset_bytes).unwrap() + 70);
    for arguments in [&["gc"][..], &["gc", "--dry-run"]] {
        let before: Vec<_> =
            picture(image.path()).into_iter().filter(|(path, _, _)| !path.ends_with("LOCK")).collect();
        let run = fsck(arguments, image.path());
        assert_eq!(run.code, 2, "{run:?}");
        assert!(run.stderr.contains("repair it first: lost"), "{run:?}");
        let after: Vec<_> =
            picture(image.path()).into_iter().filter(|(path, _, _)| !path.ends_with("LOCK")).collect();
        assert!(after == before, "{arguments:?} changed something");
    }
    assert_eq!(fsck(&["repair"], image.path()).code, 1);
    assert_eq!(fsck(&["gc", "--json"], image.path()).json()["state"], "collected");
    assert!(check(image.path()).code <= 1);

    // A checkpoint still has what these records said: nothing is lost, and `repair` comes first all the same.
    let image = Image::usual(Left::Closed);
    let batch = image.batches(image.segments()[0]).swap_remove(1);
    image.flip(&batch.place.segment.log_name(), usize::try_from(batch.place.offset_bytes).unwrap() + 70);
    let run = fsck(&["gc", "--json"], image.path());
    assert_eq!((run.code, run.json()["verdict"].as_str()), (1, Some("repairable")), "{run:?}");
    assert!(run.stderr.contains("repair it first: repairable"), "{run:?}");
}

#[test]
fn garbage_whose_unlinking_was_lost_and_repaired_is_nobodys() {
    let image = Image::usual(Left::Closed);
    let unlinks = |body: &Body| matches!(body, Body::Unlink { .. });
    let batch = image
        .segments()
        .into_iter()
        .flat_map(|id| image.batches(id))
        .find(|batch| batch.records.iter().any(|record| unlinks(&record.body)))
        .unwrap();
    let offset = usize::try_from(batch.place.offset_bytes).unwrap();
    image.zero(&batch.place.segment.log_name(), offset, 64);
    assert_eq!(fsck(&["repair"], image.path()).code, 1);
    let run = fsck(&["gc", "--json"], image.path());
    let nobodys = json!([{ "repository": Value::Null, "blobs": 1, "bytes": 2_000 }]);
    assert_eq!((run.code, &run.json()["by_repository"]), (0, &nobodys), "{run:?}");
    let world = image.open();
    assert!(world.is_writable() && world.read(3, &digest(6, 2_000)).is_err());
}

#[test]
fn where_there_is_no_store_none_is_made() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["gc"][..], &["gc", "--dry-run"]] {
        let run = fsck(arguments, folder.path());
        assert!(run.code == 3 && run.stderr.contains("there is no store here"), "{run:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_reserve_stays_as_long_as_it_was() {
    for reserve_bytes in [0, 300_000] {
        let image = Image { folder: tempfile::tempdir().unwrap() };
        let disk = std::sync::Arc::new(ThreadsDisk::open(image.path()).unwrap());
        let options = Options { reserve_bytes, ..options() };
        drop(Store::open(disk, options, START_MS).unwrap());
        // The world's own options have no reserve, and would give this one up.
        let kept = fs::read(image.file("reserve/space")).ok();
        let mut world = World::open(image.path(), START_MS + 10);
        let unlinked = world.put(1, 1, 5_000);
        world.unlink(1, &unlinked);
        drop(world);
        if let Some(bytes) = &kept {
            fs::write(image.file("reserve/space"), bytes).unwrap();
        }
        let run = fsck(&["gc", "--json"], image.path());
        assert_eq!(run.json()["collected"]["blobs"], 1, "{run:?}");
        assert_eq!(
            fs::read(image.file("reserve/space")).ok().map(|bytes| bytes.len()),
            kept.map(|bytes| bytes.len())
        );
        assert_eq!(image.file("reserve/space").exists(), reserve_bytes > 0);
    }
}
