//! `check --references`, and the names that `stats` and `gc` take from the same file.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::image::{Image, START_MS, World, digest, repository};
use crate::program::{Run, fsck};

/// Two repositories that share a blob, and garbage that the second one let go of.
fn store() -> Image {
    let image = Image { folder: tempfile::tempdir().unwrap() };
    let mut world = World::open(image.path(), START_MS);
    let shared = world.put(1, 1, 3_000);
    world.mount(1, 2, &shared);
    world.upload(2, 2, 1_200_000);
    let garbage = world.put(2, 3, 500);
    world.unlink(2, &garbage);
    world.store.close().unwrap();
    image
}

fn file(lines: &[String]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("references");
    fs::write(&path, lines.join("\n")).unwrap();
    (folder, path)
}

fn key(number: u64) -> u64 {
    repository(number).number()
}

/// What the store of [`store`] is referenced by, as `taffrail admin references` prints it.
fn whole() -> Vec<String> {
    let (shared, large) = (digest(1, 3_000), digest(2, 1_200_000));
    vec![
        format!("repository {} team/one", key(1)),
        format!("repository {} team/two", key(2)),
        format!("{} {shared}", key(1)),
        format!("{} {shared}", key(2)),
        format!("{} {large}", key(2)),
    ]
}

fn check(image: &Image, lines: &[String]) -> Run {
    let (_folder, path) = file(lines);
    fsck(&["check", "--json", "--references", path.to_str().unwrap()], image.path())
}

#[test]
fn links_and_references_that_agree_are_clean() {
    let image = store();
    let run = check(&image, &whole());
    assert_eq!(run.code, 0, "{run:?}");
    let held = &run.json()["references"];
    assert_eq!(
        (&held["references"], &held["missing"], &held["unreferenced_links"]),
        (&3.into(), &0.into(), &0.into())
    );
    // Digests alone do as well: whoever holds them.
    let digests = [digest(1, 3_000).to_string(), digest(2, 1_200_000).to_string()];
    assert_eq!(check(&image, &digests).json()["references"]["missing"], 0);
    let without = fsck(&["check", "--json"], image.path());
    assert!(without.json()["references"].is_null(), "{without:?}");
}

#[test]
fn a_link_that_nothing_references_is_a_note_and_a_reference_without_a_link_is_a_loss() {
    let image = store();
    let mut lines = whole();
    lines.remove(4);
    let run = check(&image, &lines);
    assert_eq!(run.code, 0, "{run:?}");
    let loose = run.finding("link-unreferenced");
    assert_eq!(loose["digests"][0], digest(2, 1_200_000).to_string());
    assert!(loose["what"].as_str().unwrap().contains("team/two"), "{loose}");

    // Held by another repository, garbage, and never seen.
    for lost in [digest(2, 1_200_000), digest(3, 500), digest(9, 10)] {
        let mut lines = whole();
        lines.push(format!("{} {lost}", key(1)));
        let run = check(&image, &lines);
        assert_eq!(run.code, 2, "{run:?}");
        let missing = run.finding("reference-without-link");
        assert_eq!(
            (&missing["severity"], &missing["digests"][0]),
            (&"lost".into(), &lost.to_string().into())
        );
        assert!(missing["what"].as_str().unwrap().contains("team/one"), "{missing}");
    }
    let run = check(&image, &[digest(3, 500).to_string()]);
    assert_eq!((run.code, &run.json()["references"]["missing"]), (2, &1.into()));
    let absent = fsck(&["check", "--references", "/nowhere/references"], image.path());
    assert_eq!(absent.code, 3, "{absent:?}");
}

#[test]
fn what_is_no_reference_ends_the_check_before_it_begins() {
    let image = store();
    for line in ["sha256:abc", "x y z w", "-1 sha256:abc"] {
        let run = check(&image, &[line.to_owned()]);
        assert_eq!(run.code, 3, "{run:?}");
        assert!(run.json()["error"].as_str().unwrap().contains("line 1"), "{run:?}");
    }
}

#[test]
fn figures_go_by_the_names_of_repositories() {
    let image = store();
    let (_folder, path) = file(&whole());
    let names = path.to_str().unwrap();
    let stats = fsck(&["stats", "--json", "--names", names], image.path()).json();
    assert_eq!(stats["repositories"][0]["name"], "team/two");
    assert_eq!(stats["repositories"][0]["repository"], key(2).to_string());
    assert!(fsck(&["stats", "--names", names], image.path()).stdout.contains("\nteam/two "));
    assert!(fsck(&["stats", "--json"], image.path()).json()["repositories"][0]["name"].is_null());
    let gc = fsck(&["gc", "--dry-run", "--json", "--names", names], image.path()).json();
    assert_eq!(
        (&gc["by_repository"][0]["name"], &gc["by_repository"][0]["bytes"]),
        (&"team/two".into(), &500.into())
    );
    assert!(fsck(&["gc", "--dry-run", "--names", names], image.path()).stdout.contains("\nteam/two "));
}
