//! Bytes that rot under a running server: the scrub finds them, the operator is told which images they are part of, pulls answer 404,
//! and the next push heals them everywhere.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::Method;
use taffrail_tests::fsck::{self, Ended};
use taffrail_tests::http::{Extra, OCI_MANIFEST, Registry, sha256};
use taffrail_tests::images::{Image, Layer};
use taffrail_tests::server::{Options, Server};

const REPOSITORY: &str = "library/rotten";
const OTHER: &str = "library/mounted";

/// A scrub begins every second here.
const FOUND_DEADLINE: Duration = Duration::from_secs(60);

/// One layer in the log, one in a file of its own, one that stays whole.
const LAYERS: [Layer; 3] =
    [Layer { seed: 1, bytes: 40_000 }, Layer { seed: 2, bytes: 2_000_000 }, Layer { seed: 3, bytes: 50_000 }];

#[test]
fn rot_is_found_while_the_server_runs_and_a_push_heals_it_everywhere() -> Result<()> {
    let options = Options::default().key("scrub", "period_secs", 1).key("scrub", "bytes_per_sec", 256 << 20);
    let mut server = Server::start_with(options)?;
    let admin = server.admin()?;
    let image = Image::new("amd64", &LAYERS)?;
    image.push(&admin, REPOSITORY, "v1")?;
    let whole = Image::new("arm64", &LAYERS[2..])?;
    whole.push(&admin, REPOSITORY, "whole")?;
    for digest in image.blobs() {
        ensure!(admin.mount(OTHER, REPOSITORY, &digest)?, "{digest} was not mounted");
    }
    admin.push_manifest(OTHER, "v2", OCI_MANIFEST, &image.manifest)?;

    let rotten: Vec<(String, Vec<u8>)> = LAYERS[..2]
        .iter()
        .map(|layer| layer.tar().map(|bytes| (sha256(&bytes), bytes)))
        .collect::<Result<_>>()?;
    for (_, bytes) in &rotten {
        rot(&server.data_dir().join("store"), bytes)?;
    }
    for (digest, _) in &rotten {
        for repository in [REPOSITORY, OTHER] {
            wait_until("the scrub finds the rot", || Ok(head(&admin, repository, digest)? == 404))?;
            ensure!(admin.blob(repository, digest)?.status == 404);
        }
    }
    let named = |digest: &str, image: &str| {
        let log = server.log();
        log.lines().any(|line| line.contains("is damaged") && line.contains(digest) && line.contains(image))
    };
    for (digest, _) in &rotten {
        wait_until("the log names the images", || {
            Ok(named(digest, "library/rotten:v1") && named(digest, "library/mounted:v2"))
        })?;
    }
    pull(&admin, REPOSITORY, &whole).context("an image that is whole")?;
    ensure!(admin.probe("/readyz")? == 200, "one rotten layer is no reason to stop");

    // A client that is told that the layers are unknown sends them.
    image.push(&admin, REPOSITORY, "v1")?;
    for repository in [REPOSITORY, OTHER] {
        pull(&admin, repository, &image).with_context(|| repository.to_owned())?;
    }
    wait_until("the log says that it is healed", || {
        Ok(rotten.iter().all(|(digest, _)| {
            server.log().lines().any(|line| line.contains("whole again") && line.contains(digest))
        }))
    })?;
    ensure!(server.terminate()?.success(), "the server did not drain\n{}", server.log_tail());
    // The rotten copy of the small layer may still lie in the log: nothing names it any more.
    fsck::check(server.data_dir(), Ended::InOrder, fsck::Depth::Digests)?;
    Ok(())
}

fn head(registry: &Registry, repository: &str, digest: &str) -> Result<u16> {
    let path = format!("/v2/{repository}/blobs/{digest}");
    Ok(registry.send(&Method::HEAD, repository, "pull", &path, &Extra::default())?.status)
}

fn pull(registry: &Registry, repository: &str, image: &Image) -> Result<()> {
    let manifest = registry.manifest(repository, &image.digest())?.expect(&[200])?;
    ensure!(manifest.body == image.manifest);
    for digest in image.blobs() {
        let answer = registry.blob(repository, &digest)?.expect(&[200]).with_context(|| digest.clone())?;
        ensure!(sha256(&answer.body) == digest, "{digest} came with other bytes");
    }
    Ok(())
}

/// Flips a bit of a blob where it lies.
fn rot(store: &Path, bytes: &[u8]) -> Result<()> {
    for path in files(store)? {
        let held = std::fs::read(&path)?;
        if let Some(at) = held.windows(64).position(|window| window == &bytes[600..664]) {
            let at = at + 10_000;
            let file = std::fs::File::options().write(true).open(&path)?;
            file.write_all_at(&[held[at] ^ 4], at as u64)?;
            return Ok(file.sync_all()?);
        }
    }
    bail!("the blob is in no file of the store")
}

/// Files of the log and of large blobs.
fn files(store: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(store.join("log"))? {
        files.push(entry?.path());
    }
    for folder in std::fs::read_dir(store.join("solo"))? {
        for entry in std::fs::read_dir(folder?.path())? {
            files.push(entry?.path());
        }
    }
    Ok(files)
}

fn wait_until(what: &str, mut good: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < FOUND_DEADLINE {
        if good()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("in {FOUND_DEADLINE:?} not: {what}")
}
