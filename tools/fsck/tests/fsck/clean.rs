//! Stores without damage: `check` finds nothing, says what is there, and changes nothing.

use std::fs;

use crate::image::{Image, Left, START_MS, World, names, wait};
use crate::program::{check, fsck};

#[test]
fn a_store_is_clean_however_it_was_left() {
    for left in [Left::Closed, Left::Killed, Left::KilledEarly] {
        let image = Image::usual(left);
        let run = fsck(&["check", "--deep", "--json"], image.path());
        assert_eq!((run.code, run.harms()), (0, Vec::new()), "{left:?}: {}", run.stdout);
        let totals = &run.json()["totals"];
        assert_eq!(totals["blobs"], 8, "{left:?}");
        assert_eq!(totals["links"], 8, "{left:?}");
        assert_eq!(totals["sessions"], 1, "{left:?}");
        assert!(fsck(&["check"], image.path()).stdout.contains("clean"));
    }
}

#[test]
fn a_store_that_was_opened_again_and_again_is_clean_and_so_is_its_log_without_a_checkpoint() {
    let image = Image::usual(Left::Closed);
    for round in 0..4 {
        let mut world = World::open(image.path(), START_MS + 1_000_000 * (round + 1));
        assert!(world.is_writable());
        world.put(1, 100 + round, 70_000);
        if round % 2 == 0 {
            world.store.close().unwrap();
        }
        let run = check(image.path());
        assert_eq!((run.code, run.harms()), (0, Vec::new()), "round {round}: {}", run.stdout);
    }
    image.remove(&image.checkpoint());
    let run = check(image.path());
    assert_eq!(run.harms(), [("repairable".to_owned(), "checkpoint".to_owned())], "{}", run.stdout);
    let world = World::open(image.path(), START_MS + 9_000_000);
    assert!(world.is_writable(), "{:?}", world.store.state());
    assert_eq!(world.store.stats().blobs, 12);
}

#[test]
fn a_check_changes_nothing() {
    let image = Image::usual(Left::Killed);
    let picture = |image: &Image| {
        let mut files: Vec<_> = ["", "log", "index"]
            .iter()
            .flat_map(|folder| {
                names(&image.file(folder)).into_iter().map(move |name| format!("{folder}/{name}"))
            })
            .map(|name| name.trim_start_matches('/').to_owned())
            .filter(|name| image.file(name).is_file())
            .map(|name| {
                (
                    fs::read(image.file(&name)).unwrap(),
                    fs::metadata(image.file(&name)).unwrap().modified().unwrap(),
                    name,
                )
            })
            .collect();
        files.sort_by(|one, other| one.2.cmp(&other.2));
        files
    };
    let before = picture(&image);
    assert_eq!(check(image.path()).code, 0);
    assert_eq!(fsck(&["inspect"], image.path()).code, 0);
    assert!(picture(&image) == before, "a file changed");
}

#[test]
fn a_store_in_use_is_checked_with_a_warning() {
    let image = Image::usual(Left::Killed);
    let world = image.open();
    let run = check(image.path());
    assert_eq!(run.code, 0, "{}", run.stdout);
    let what = run.finding("in-use")["what"].as_str().unwrap().to_owned();
    assert!(what.contains(&format!("process {}", std::process::id())), "{what}");
    drop(world);
    assert!(check(image.path()).findings("in-use").is_empty());
}

#[test]
fn records_are_printed_readably_and_as_json_lines() {
    let image = Image::usual(Left::Killed);
    let text = fsck(&["inspect"], image.path()).stdout;
    for word in [
        "SUPER.0",
        "segment 0000000000000001",
        "BLOB sha256:",
        "LINK",
        "UNLINK",
        "SOLO",
        "SESSION",
        "SEAL",
        "  end ",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let lines = fsck(&["inspect", "--json", "--segment", "2"], image.path()).stdout;
    let values: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(values.len() > 3 && values.iter().all(|value| value["segment"] == "0000000000000002"), "{lines}");
    let behind = fsck(&["inspect", "--json", "--segment", "2", "--from-offset", "8192"], image.path()).stdout;
    assert!(behind.lines().count() < lines.lines().count());
}

#[test]
fn what_is_no_store_cannot_be_checked() {
    let folder = tempfile::tempdir().unwrap();
    let run = fsck(&["check"], folder.path());
    assert_eq!(run.code, 3);
    assert!(run.stderr.contains("there is no store here"), "{}", run.stderr);
    assert_eq!(fsck(&["check"], &folder.path().join("nowhere")).code, 3);
    assert_eq!(fsck(&["check", "--no-such-option"], folder.path()).code, 3);
}

#[test]
fn a_store_whose_segments_were_dropped_is_clean_with_and_without_its_checkpoint() {
    let image = Image { folder: tempfile::tempdir().unwrap() };
    let mut world = World::open(image.path(), START_MS);
    let mut blobs = Vec::new();
    for seed in 0..8 {
        blobs.push(world.put(1, 200 + seed, 400_000));
        blobs.push(world.upload(2, 230 + seed % 20, 1_100_000));
    }
    world.put(3, 300, 3_000);
    let segments = image.segments().len();
    assert!(segments >= 4, "{segments}");
    let mut dropped = 0;
    // From the middle, then from the start.
    for range in [4..12, 0..4] {
        for index in range {
            world.unlink(if index % 2 == 0 { 1 } else { 2 }, &blobs[index]);
        }
        for round in 0..3 {
            world.now_ms += 10_000;
            world.checkpoint();
            dropped += wait(world.store.collect(world.now_ms, 100)).unwrap().segments;
            let run = check(image.path());
            assert_eq!((run.code, run.harms()), (0, Vec::new()), "round {round}: {}", run.stdout);
        }
    }
    drop(world);
    let state = |image: &Image| {
        let run = check(image.path());
        assert!(run.code <= 1, "{}", run.stdout);
        let totals = run.json()["totals"].clone();
        (totals["blobs"].clone(), totals["links"].clone(), totals["blob_bytes"].clone())
    };
    let before = state(&image);
    assert!(dropped >= 2, "{dropped} of {segments} segments dropped");
    assert!(image.segments().first().unwrap().0 > 1, "{:?}", image.segments());
    fs::remove_dir_all(image.file("index")).unwrap();
    assert_eq!(state(&image), before);
    let world = World::open(image.path(), START_MS + 9_000_000);
    assert!(world.is_writable(), "{:?}", world.store.state());
    assert_eq!(before.0, world.store.stats().blobs);
}
