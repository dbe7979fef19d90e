//! `taffrail backup` and `taffrail restore`: what the backup's catalog names is pullable after the restore, whatever went on meanwhile.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::Value;
use taffrail_tests::fsck::{self, Depth, Ended};
use taffrail_tests::http::{Extra, Registry, sha256};
use taffrail_tests::images::{Image, noise};
use taffrail_tests::server::{Options, Server};

use crate::taffrail;

/// A user and group that is nobody else's.
const SOMEBODY: u32 = 54_321;

/// A server that deletes at once what nothing names: what a backup misses would be gone.
fn start(data: &Path) -> Result<Server> {
    let options = Options { data_dir: Some(data.to_path_buf()), ..Options::default() };
    Server::start_with(options.key("storage", "lease_secs", 1).key("storage", "grace_secs", 0))
}

fn backup(shelf: &Path, data: &Path, more: &[&str]) -> Result<(PathBuf, Value)> {
    let shelf = shelf.to_string_lossy();
    let args: Vec<&str> = ["backup", &shelf, "--json"].into_iter().chain(more.iter().copied()).collect();
    let made = taffrail::json(&args, data, 0)?;
    Ok((PathBuf::from(made["path"].as_str().context("a path")?), made))
}

fn restore(backup: &Path, data: &Path, more: &[&str], code: i32) -> Result<Value> {
    let backup = backup.to_string_lossy();
    let args: Vec<&str> =
        ["restore", &backup, "--verify", "--json"].into_iter().chain(more.iter().copied()).collect();
    taffrail::json(&args, data, code)
}

/// Pulls everything that the catalog names; says how many tags.
fn pull_everything(registry: &Registry) -> Result<usize> {
    let catalog = registry.send_scoped(
        &Method::GET,
        &["registry:catalog:*"],
        "/v2/_catalog?n=1000",
        &Extra::default(),
    )?;
    let catalog = catalog.expect(&[200])?.json()?;
    let mut count = 0;
    for repository in catalog["repositories"].as_array().context("repositories")? {
        let repository = repository.as_str().context("a name")?;
        let path = format!("/v2/{repository}/tags/list");
        let tags = registry.send(&Method::GET, repository, "pull", &path, &Extra::default())?.json()?;
        for tag in tags["tags"].as_array().into_iter().flatten() {
            let tag = tag.as_str().context("a tag")?;
            let manifest = registry.manifest(repository, tag)?.expect(&[200])?.json()?;
            let layers = manifest["layers"].as_array().context("layers")?;
            for blob in layers.iter().chain([&manifest["config"]]) {
                let digest = blob["digest"].as_str().context("a digest")?;
                let answer = registry.blob(repository, digest)?.expect(&[200])?;
                ensure!(sha256(&answer.body) == digest, "{repository}:{tag} {digest}");
            }
            count += 1;
        }
    }
    Ok(count)
}

/// Pushes images, small and large, and deletes most of them again, until it is told to stop.
fn churn(registry: &Registry, worker: u64, stop: &AtomicBool, rounds: &AtomicU64) -> Result<()> {
    let repository = format!("library/churn-{worker}");
    let mut kept = Vec::new();
    for round in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let sizes: &[u64] = if round % 3 == 0 { &[1_200_000, 3_000] } else { &[2_000] };
        let image = Image::unique(sizes)?;
        kept.push(image.push(registry, &repository, &format!("tag-{round}"))?);
        if kept.len() > 3 {
            registry.delete_manifest(&repository, &kept.remove(0))?.expect(&[202])?;
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn every_tag_of_a_backup_that_was_made_under_load_is_pulled_from_the_restored_registry() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (data, shelf) = (scratch.path().join("data"), scratch.path().join("backups"));
    let mut server = start(&data)?;
    let standing = Image::unique(&[2_500_000, 5_000])?;
    standing.push(&server.admin()?, "library/standing", "v1")?;
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut made = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                let registry = server.admin()?;
                let (stop, rounds) = (&stop, &rounds);
                Ok(scope.spawn(move || churn(&registry, worker, stop, rounds)))
            })
            .collect::<Result<_>>()?;
        let backups = (|| {
            for mode in [&[][..], &["--mode", "copy"], &["--mode", "link"]] {
                // Something happens before, between and after.
                let before = rounds.load(Ordering::Relaxed);
                while rounds.load(Ordering::Relaxed) < before + 10 && !workers.iter().any(|w| w.is_finished())
                {
                    thread::yield_now();
                }
                made.push(backup(&shelf, &data, mode)?);
            }
            anyhow::Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().ok().context("a worker")??;
        }
        backups
    })?;
    pull_everything(&server.admin()?)?;
    server.terminate()?;
    fsck::check(&data, Ended::InOrder, Depth::Digests)?;

    let listed = taffrail::json(&["backup", &shelf.to_string_lossy(), "--list", "--json"], &data, 0)?;
    ensure!(listed["backups"].as_array().map(Vec::len) == Some(made.len()), "{listed:#}");
    for (number, (path, report)) in made.iter().enumerate() {
        ensure!(report["mode"] == if number == 1 { "copy" } else { "link" }, "{report:#}");
        let restored = scratch.path().join(format!("restored-{number}"));
        let verified = restore(path, &restored, &[], 0)?;
        ensure!(verified["verified"]["whole"] == true, "{verified:#}");
        let mut server = start(&restored)?;
        let admin = server.admin()?;
        let tags = pull_everything(&admin)?;
        ensure!(verified["verified"]["tags"] == tags, "{tags} tags of {verified:#}");
        ensure!(tags > 3, "only {tags} tags");
        // It is a registry like any other.
        ensure!(admin.manifest("library/standing", "v1")?.body == standing.manifest);
        Image::unique(&[1_500_000])?.push(&admin, "library/standing", "v2")?;
        ensure!(!server.log().contains("do not belong together"), "{}", server.log_tail());
        server.terminate()?;
        fsck::check(&restored, Ended::InOrder, Depth::Digests)?;
    }
    // Serving from its files changed nothing in the backup.
    restore(&made[0].0, &scratch.path().join("again"), &[], 0)?;
    Ok(())
}

#[test]
fn a_backup_that_was_killed_is_none_and_the_next_one_is_whole() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (data, shelf) = (scratch.path().join("data"), scratch.path().join("backups"));
    let mut server = start(&data)?;
    for number in 0..6 {
        Image::unique(&[3_000_000 + number])?.push(&server.admin()?, "library/app", &format!("v{number}"))?;
    }
    let shelf_text = shelf.to_string_lossy().into_owned();
    for files in [0, 2, 4] {
        let mut child = taffrail::command(&["backup", &shelf_text, "--mode", "copy"], &data)?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        while child.try_wait()?.is_none() && partial_solo_files(&shelf) < files {
            thread::yield_now();
        }
        child.kill()?;
        child.wait()?;
    }
    let listed = taffrail::json(&["backup", &shelf_text, "--list", "--json"], &data, 0)?;
    let backups = listed["backups"].as_array().context("backups")?;
    let halves: Vec<&str> = backups
        .iter()
        .filter(|backup| backup["whole"] == false)
        .filter_map(|backup| backup["name"].as_str())
        .collect();
    for half in &halves {
        let target = scratch.path().join("half");
        let (code, said) = taffrail::run(&["restore", &shelf.join(half).to_string_lossy()], &target)?;
        ensure!(code == 3 && said.contains("no whole backup") && !target.exists(), "{code}: {said}");
    }
    // The hold of the killed ones is gone, and so is what they left.
    let (path, _) = backup(&shelf, &data, &[])?;
    ensure!(!halves.iter().any(|half| shelf.join(half).exists()), "half a backup stayed");
    server.terminate()?;
    restore(&path, &scratch.path().join("restored"), &[], 0)?;
    Ok(())
}

fn partial_solo_files(shelf: &Path) -> usize {
    let partial = fs::read_dir(shelf)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "partial"));
    let folders = partial.and_then(|partial| fs::read_dir(partial.join("store/solo")).ok());
    folders.into_iter().flatten().flatten().count()
}

#[test]
fn what_a_backup_lost_at_rest_is_named_when_it_is_restored() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (data, shelf) = (scratch.path().join("data"), scratch.path().join("backups"));
    let mut server = start(&data)?;
    let admin = server.admin()?;
    let image = Image::unique(&[1_800_000, 700])?;
    image.push(&admin, "library/app", "v1")?;
    let small = admin.push_blob("library/app", &noise(5, 40_000))?;
    server.terminate()?;
    // Without a server, under the lock.
    let (path, _) = backup(&shelf, &data, &["--mode", "copy"])?;
    let large = solo_file(&path)?;
    let log = path.join("store/log/0000000000000001.seg");
    for (number, (file, at)) in
        [(&large, Some(900_000)), (&log, Some(30_000)), (&large, None)].into_iter().enumerate()
    {
        let whole = fs::read(file)?;
        match at {
            Some(at) => {
                let mut rotten = whole.clone();
                rotten[at] ^= 0x40;
                fs::write(file, rotten)?;
            }
            None => fs::remove_file(file)?,
        }
        let report = restore(&path, &scratch.path().join(format!("lost-{number}")), &["--mode", "copy"], 2)?;
        let problems = report["verified"]["problems"].to_string();
        let named = if file == &log {
            problems.contains("log segment") || problems.contains(&small)
        } else {
            problems.contains(&image.blobs()[1])
        };
        ensure!(named, "{report:#}");
        fs::write(file, whole)?;
    }
    let last = fs::read_dir(path.join("store/log"))?.count();
    ensure!(last == 1, "{last} log segments");
    let catalog = path.join("catalog/taffrail.db");
    let whole = fs::read(&catalog)?;
    fs::write(&catalog, &whole[..whole.len() - 4096])?;
    let target = scratch.path().join("no-catalog");
    let (code, said) = taffrail::run(&["restore", &path.to_string_lossy(), "--verify"], &target)?;
    ensure!(code == 3 && said.contains("is damaged") && !target.exists(), "{code}: {said}");
    fs::write(&catalog, whole)?;
    restore(&shelf, &scratch.path().join("whole"), &[], 0)?;
    Ok(())
}

fn solo_file(backup: &Path) -> Result<PathBuf> {
    let folders = fs::read_dir(backup.join("store/solo"))?.flatten();
    let mut files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    Ok(files.next().context("a solo file")?.path())
}

#[test]
fn a_store_that_is_older_than_its_catalog_is_noticed_and_nothing_is_deleted() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (data, shelf) = (scratch.path().join("data"), scratch.path().join("backups"));
    let mut server = start(&data)?;
    let (old, new) = (Image::unique(&[4_000])?, Image::unique(&[1_300_000])?);
    old.push(&server.admin()?, "library/app", "old")?;
    let (first, _) = backup(&shelf, &data, &[])?;
    new.push(&server.admin()?, "library/app", "new")?;
    let (second, _) = backup(&shelf, &data, &[])?;
    server.terminate()?;
    let mixed = scratch.path().join("mixed");
    taffrail::run(&["restore", &first.to_string_lossy(), "--mode", "copy"], &mixed)?;
    fs::copy(second.join("catalog/taffrail.db"), mixed.join("catalog/taffrail.db"))?;
    let mut server = start(&mixed)?;
    ensure!(server.log().contains("do not belong together"), "{}", server.log_tail());
    ensure!(server.admin()?.manifest("library/app", "old")?.body == old.manifest);
    server.terminate()?;
    Ok(())
}

/// The service could not open what a backup as root had written to its store, and root followed links that the service had put there.
#[test]
fn root_is_refused_on_the_data_directory_of_another_user_and_leaves_nothing_there() -> Result<()> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let (data, shelf) = (scratch.path().join("data"), scratch.path().join("backups"));
    let mut server = start(&data)?;
    server.terminate()?;
    let files = || anyhow::Ok(fs::read_dir(&data)?.collect::<std::io::Result<Vec<_>>>()?.len());
    let before = files()?;
    chown(&data, Some(SOMEBODY), Some(SOMEBODY))?;
    let shelf_name = shelf.to_string_lossy();
    for command in [&["backup", &*shelf_name][..], &["admin", "references"], &["admin", "reset-password"]] {
        let (code, said) = taffrail::run(command, &data)?;
        ensure!(code != 0 && said.contains("run this as that user"), "{command:?}: {code}: {said}");
    }
    ensure!(files()? == before && !shelf.exists(), "something was made");
    chown(&data, Some(0), Some(0))?;
    backup(&shelf, &data, &[])?;
    Ok(())
}

#[test]
fn a_backup_goes_nowhere_where_it_would_do_harm() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (data, shelf) = (scratch.path().join("data"), scratch.path().join("backups"));
    let shelf_text = shelf.to_string_lossy().into_owned();
    let refused = |args: &[&str], data: &Path, word: &str| -> Result<()> {
        let (code, said) = taffrail::run(args, data)?;
        ensure!(code == 3 && said.contains(word), "{args:?}: {code}: {said}");
        Ok(())
    };
    refused(&["backup", &shelf_text], &data, "data directory")?;
    fs::create_dir(&data)?;
    refused(&["backup", &shelf_text], &data, "holds no registry")?;
    ensure!(!shelf.exists() && fs::read_dir(&data)?.count() == 0, "something was made");
    let mut server = start(&data)?;
    refused(&["backup", &data.join("backups").to_string_lossy()], &data, "lies in the data directory")?;
    let behind = scratch.path().join("behind");
    std::os::unix::fs::symlink(&data, &behind)?;
    refused(
        &["backup", &behind.join("backups/deep").to_string_lossy()],
        &data,
        "lies in the data directory",
    )?;
    ensure!(!data.join("backups").exists(), "something was made");
    let (path, _) = backup(&shelf, &data, &[])?;
    let open = scratch.path().join("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    refused(&["restore", &path.to_string_lossy()], &open, "others may write to it")?;
    ensure!(fs::read_dir(&open)?.count() == 0, "something was restored into it");
    refused(&["restore", &path.to_string_lossy()], &data, "is not empty")?;
    refused(
        &["restore", &scratch.path().join("nowhere").to_string_lossy()],
        &scratch.path().join("x"),
        "nowhere",
    )?;
    server.terminate()?;
    let (code, said) = taffrail::run(&["backup", &shelf_text, "--list"], &data)?;
    ensure!(code == 0 && said.lines().count() == 1, "{said}");
    Ok(())
}
