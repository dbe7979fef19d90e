//! Stores that earlier versions wrote, committed as they were: each must open and check clean in every later version.
//!
//! `tests/golden/v1` was made by [`make`] before 0.1.0, `v2` in it; they are never made again, and a new format adds a folder. The golden files only gain
//! versions.

use std::fs;
use std::path::{Path, PathBuf};

use taffrail_blobstore::{Algorithm, Digest, SessionId};

use crate::image::{Image, START_MS, World, digest, noise, options, repository, wait};
use crate::program::{check, fsck};

fn golden(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(version)
}

/// The history of the newest version; v1 was made without its compaction, and has every kind of record but SEGMENT_DROP and REPAIRED, in
/// three log segments of three epochs. What compaction leaves is COPY records of BLOB and LINK, in one segment. Without solo files, whose least length would make this folder a megabyte; `tests/fsck/clean.rs` has those.
fn make(folder: &Path) {
    let mut world = World::open(folder, START_MS);
    let first = world.put(1, 1, 300);
    world.put(1, 2, 5_000);
    world.mount(1, 2, &first);
    world.store.close().unwrap();
    let mut world = World::open(folder, START_MS + 10_000);
    let gone = world.put(3, 3, 700);
    world.unlink(3, &gone);
    let now_ms = START_MS + 60_000;
    assert_eq!(wait(world.store.collect(now_ms, 10)).unwrap().blobs, 1);
    world.store.close().unwrap();
    let mut world = World::open(folder, START_MS + 100_000);
    world.put(2, 4, 900);
    let bytes = noise(5, 1_000);
    for (number, algorithm) in [(11, Algorithm::Sha512), (12, Algorithm::Blake3)] {
        let id = SessionId::new([number; 16]);
        world.store.begin_upload(repository(2), algorithm, id, world.now_ms).unwrap();
        let mut upload = wait(world.store.open_upload(repository(2), id, world.now_ms)).unwrap();
        wait(upload.write(bytes.clone(), world.now_ms)).unwrap();
        wait(upload.commit(&Digest::of(algorithm, &bytes), world.now_ms)).unwrap();
    }
    // What counts in the first two segments is copied into the third, and they go.
    wait(world.store.checkpoint()).unwrap();
    let compacted = wait(world.store.compact(world.now_ms, u64::MAX)).unwrap();
    assert!(compacted.copied_bytes > 0 && compacted.segments == 2, "{compacted:?}");
    world.store.close().unwrap();
}

#[test]
fn a_store_of_every_version_checks_clean_opens_and_serves_what_was_put_into_it() {
    serves_what_was_put_into_it("v1", 1);
    serves_what_was_put_into_it("v2", 2);
}

fn serves_what_was_put_into_it(version: &str, format: u32) {
    let run = fsck(&["check", "--deep", "--json"], &golden(version));
    assert_eq!((run.code, run.json()["findings"].as_array().unwrap().len()), (0, 0), "{run:?}");
    let totals = &run.json()["totals"];
    assert_eq!(
        (&totals["format"], &totals["blobs"], &totals["links"]),
        (&format.into(), &5.into(), &6.into())
    );

    let image = Image::copy_of(&golden(version));
    let mut world = image.open();
    assert!(world.is_writable(), "{:?}", world.store.state());
    for (number, seed, len) in [(1, 1, 300), (2, 1, 300), (1, 2, 5_000), (2, 4, 900)] {
        assert_eq!(world.read(number, &digest(seed, len)).unwrap(), noise(seed, len));
    }
    for algorithm in [Algorithm::Sha512, Algorithm::Blake3] {
        let wanted = Digest::of(algorithm, &noise(5, 1_000));
        assert_eq!(world.read(2, &wanted).unwrap(), noise(5, 1_000));
    }
    assert!(world.read(3, &digest(3, 700)).is_err());
    world.put(1, 9, 10_000);
    drop(world);
    let run = check(image.path());
    assert_eq!(
        (run.code, &run.json()["totals"]["format"]),
        (0, &2.into()),
        "an opening writes the newest format"
    );
    // The log alone says the same.
    fs::remove_dir_all(image.file("index")).unwrap();
    assert_eq!(image.open().store.stats().blobs, 6);
}

#[test]
fn a_store_of_every_version_is_measured_and_collected() {
    // The collected blob, of 700 bytes behind a header of 192; in the newer one it went with its segment.
    is_measured_and_collected("v1", (192_u64 + 700).next_multiple_of(64));
    is_measured_and_collected("v2", 0);
}

fn is_measured_and_collected(version: &str, dead_bytes: u64) {
    let run = fsck(&["stats", "--json"], &golden(version));
    assert_eq!(run.code, 0, "{run:?}");
    let figures = run.json();
    let count = |field: &str| figures["blobs"][field]["count"].as_u64().unwrap();
    assert_eq!((count("linked"), count("garbage"), count("inline")), (5, 0, 5));
    assert_eq!(figures["blobs"]["linked"]["bytes"], 300 + 5_000 + 900 + 2 * 1_000);
    assert_eq!((&figures["links"], &figures["logical_bytes"]), (&6.into(), &8_500.into()));
    assert_eq!(figures["log"]["dead_bytes"], dead_bytes);

    let image = Image::copy_of(&golden(version));
    assert_eq!(fsck(&["gc", "--json"], image.path()).json()["state"], "nothing-to-collect");
    let mut world = image.open();
    world.unlink(1, &digest(2, 5_000));
    drop(world);
    let run = fsck(&["gc", "--json"], image.path());
    assert_eq!((run.code, &run.json()["collected"]["blobs"]), (0, &1.into()), "{run:?}");
    assert_eq!(check(image.path()).code, 0);
    let world = image.open();
    for (number, seed, len) in [(1, 1, 300), (2, 1, 300), (2, 4, 900)] {
        assert_eq!(world.read(number, &digest(seed, len)).unwrap(), noise(seed, len));
    }
    assert!(world.read(1, &digest(2, 5_000)).is_err());
}

#[test]
fn this_version_writes_what_the_newest_golden_store_holds() {
    let image = Image { folder: tempfile::tempdir().unwrap() };
    make(image.path());
    assert_eq!(options().entropy, [7; 48], "the key and uuid of the golden store");
    for folder in ["", "log", "index"] {
        for entry in fs::read_dir(golden("v2").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            // Who held the lock; checkpoints are derived, and list blobs in the order of a hash map.
            if path.is_file() && name != "LOCK" && folder != "index" {
                let now = fs::read(image.path().join(folder).join(name)).unwrap();
                assert!(
                    now == fs::read(&path).unwrap(),
                    "{folder}/{name}: a format change needs a new version"
                );
            }
        }
    }
}

/// Makes the folder of a version that is not there yet: `TAFFRAIL_GOLDEN=v3 cargo test -p taffrail-fsck golden`.
#[test]
fn a_new_golden_store_is_made_when_asked_for() {
    #[expect(clippy::disallowed_methods, reason = "a test that an operator asks for")]
    let Ok(version) = std::env::var("TAFFRAIL_GOLDEN") else { return };
    let folder = golden(&version);
    assert!(!folder.exists(), "golden stores are never made again");
    fs::create_dir_all(&folder).unwrap();
    make(&folder);
    fs::remove_file(folder.join("LOCK")).unwrap();
    assert_eq!(check(&folder).code, 0);
}
