//! The docker daemon: chunked uploads without a length, a HEAD after every PUT, mounts between repositories.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use taffrail_tests::docker::{Docker, NEEDS, pushed_digest};
use taffrail_tests::images::{Image, Layer};
use taffrail_tests::scene::{ADMIN, DENIED, DEVELOPER, GUEST, HIDDEN, OUTSIDER, Scene};
use taffrail_tests::server::Tls;
use taffrail_tests::{settings, tools};

/// A gigabyte is compressed, sent, hashed and fetched again on two slow cores.
const BIG_DEADLINE: Duration = Duration::from_secs(900);

/// Loads an image into the daemon under a name.
fn load(docker: &Docker, image: &Image, name: &str) -> Result<()> {
    let archive = tempfile::NamedTempFile::new()?;
    image.write_docker_archive(archive.path(), name)?;
    docker.cli()?.args(["load", "--input"]).arg(archive.path()).deadline(BIG_DEADLINE).succeed()?;
    Ok(())
}

/// The digests of an image's layers as the daemon knows them, which no compression changes.
fn diff_ids(docker: &Docker, name: &str) -> Result<Vec<String>> {
    let printed = docker.run(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", name])?;
    Ok(serde_json::from_str(printed.stdout.trim())?)
}

fn docker_pushes_mounts_and_pulls(tls: Tls) -> Result<()> {
    if !tools::present(&NEEDS)? {
        return Ok(());
    }
    let Some(docker) = Docker::start()? else { return Ok(()) };
    let scene = Scene::set(tls)?;
    docker.login(&scene.server.host(), ADMIN.0, ADMIN.1)?;
    let image = Image::unique(&[300, 40_000, 6_000_000])?;
    let (one, two) = (scene.public("docker:one"), scene.private("docker/elsewhere:two"));
    load(&docker, &image, &one)?;

    let digest = pushed_digest(&docker.run(&["push", &one])?)?;
    docker.run(&["tag", &one, &two])?;
    let mounted = docker.run(&["push", &two])?;
    ensure!(
        mounted.stdout.matches("Mounted from library/docker").count() == 3,
        "three layers should be mounted: {}",
        mounted.all()
    );
    ensure!(pushed_digest(&mounted)? == digest);
    // A second push sends nothing.
    ensure!(docker.run(&["push", &one])?.stdout.matches("Layer already exists").count() == 3);

    let layers = diff_ids(&docker, &one)?;
    docker.run(&["image", "rm", &one, &two])?;
    docker.run(&["pull", &two])?;
    ensure!(diff_ids(&docker, &two)? == layers && layers == image.blobs()[1..]);
    let by_digest = format!("{}@{digest}", scene.public("docker"));
    docker.run(&["pull", &by_digest])?;
    docker.run(&["pull", "--all-tags", &scene.public("docker")])?;

    // The container file system holds what was packed: one exported layer is the file that went in.
    docker.run(&["create", "--name", "probe", &two, "/none"])?;
    let export = docker.at("export.tar");
    docker.cli()?.args(["export", "--output"]).arg(&export).arg("probe").succeed()?;
    ensure!(std::fs::metadata(&export)?.len() > 6_040_300);
    Ok(())
}

fn docker_is_refused_without_rights(tls: Tls) -> Result<()> {
    if !tools::present(&NEEDS)? {
        return Ok(());
    }
    let Some(docker) = Docker::start()? else { return Ok(()) };
    let scene = Scene::set(tls)?;
    let host = scene.server.host();
    let image = Image::unique(&[2_000])?;
    let admin = scene.server.admin()?;
    image.push(&admin, "library/open", "one")?;
    image.push(&admin, "harbor-side/shut", "one")?;
    let (open, shut) = (scene.public("open:one"), scene.private("shut:one"));

    docker.run(&["pull", &open])?;
    docker.run(&["tag", &open, &scene.private("shut:two")])?;
    docker.run(&["tag", &open, &scene.public("open:two")])?;
    docker.cli()?.args(["push", &scene.public("open:two")]).refused(&DENIED)?;
    docker.cli()?.args(["pull", &shut]).refused(&DENIED)?;
    let wrong = docker.cli()?.args(["login", "--username", "admin", "--password-stdin", &host]);
    wrong.stdin("Wrong-Password-1").refused(&["unauthorized", "incorrect username or password"])?;

    docker.login(&host, GUEST.0, GUEST.1)?;
    docker.run(&["pull", &shut])?;
    docker.cli()?.args(["push", &scene.private("shut:two")]).refused(&DENIED)?;

    docker.login(&host, OUTSIDER.0, OUTSIDER.1)?;
    docker.cli()?.args(["pull", &shut]).refused(&HIDDEN)?;
    docker.cli()?.args(["push", &scene.private("shut:two")]).refused(&DENIED)?;

    // A project that is not there: the sentence that docker prints says so.
    docker.login(&host, DEVELOPER.0, DEVELOPER.1)?;
    let nowhere = format!("{host}/nowhere/app:one");
    docker.run(&["tag", &open, &nowhere])?;
    let printed = docker.cli()?.args(["push", &nowhere]).refused(&["nowhere"])?;
    ensure!(printed.all().contains("does not exist"), "{}", printed.all());
    Ok(())
}

#[test]
fn docker_works_over_http() -> Result<()> {
    docker_pushes_mounts_and_pulls(Tls::Off)
}

#[test]
fn docker_works_over_tls() -> Result<()> {
    docker_pushes_mounts_and_pulls(Tls::Files)
}

#[test]
fn docker_is_refused_over_http() -> Result<()> {
    docker_is_refused_without_rights(Tls::Off)
}

#[test]
fn docker_is_refused_over_tls() -> Result<()> {
    docker_is_refused_without_rights(Tls::Files)
}

#[test]
fn docker_manifest_makes_an_index_of_two_platforms() -> Result<()> {
    if !tools::present(&NEEDS)? {
        return Ok(());
    }
    let Some(docker) = Docker::start()? else { return Ok(()) };
    let scene = Scene::set(Tls::Off)?;
    docker.login(&scene.server.host(), ADMIN.0, ADMIN.1)?;
    let (amd, arm) = (scene.public("multi:amd64"), scene.public("multi:arm64"));
    let both = scene.public("multi:both");
    for (architecture, name) in [("amd64", &amd), ("arm64", &arm)] {
        let image = Image::new(architecture, &[Layer { seed: fresh_seed(), bytes: 30_000 }])?;
        load(&docker, &image, name)?;
        docker.run(&["push", name])?;
    }
    docker.run(&["manifest", "create", "--insecure", &both, &amd, &arm])?;
    docker.run(&["manifest", "annotate", &both, &arm, "--arch", "arm64"])?;
    docker.run(&["manifest", "push", "--insecure", &both])?;
    let shown = docker.run(&["manifest", "inspect", "--insecure", &both])?.stdout;
    let shown: Value = serde_json::from_str(&shown)?;
    let platforms: Vec<&str> = shown["manifests"]
        .as_array()
        .context("a list of manifests")?
        .iter()
        .filter_map(|entry| entry["platform"]["architecture"].as_str())
        .collect();
    ensure!(platforms == ["amd64", "arm64"], "{shown}");

    docker.run(&["image", "rm", &amd, &arm])?;
    docker.run(&["pull", "--platform", "linux/arm64", &both])?;
    let printed = docker.run(&["image", "inspect", "--format", "{{.Architecture}}", &both])?;
    ensure!(printed.stdout.trim() == "arm64", "{}", printed.stdout);
    Ok(())
}

#[test]
fn docker_pushes_images_that_share_layers_at_the_same_time() -> Result<()> {
    if !tools::present(&NEEDS)? {
        return Ok(());
    }
    let Some(docker) = Docker::start()? else { return Ok(()) };
    let scene = Scene::set(Tls::Off)?;
    docker.login(&scene.server.host(), ADMIN.0, ADMIN.1)?;
    let base = [Layer { seed: fresh_seed(), bytes: 2_000_000 }, Layer { seed: fresh_seed(), bytes: 9_000 }];
    let mut images = Vec::new();
    for number in 0..6_u64 {
        let own = Layer { seed: fresh_seed(), bytes: 10_000 + number };
        let image = Image::new("amd64", &[base[0], base[1], own])?;
        let name = scene.public(&format!("shared-{}:{number}", number % 3));
        load(&docker, &image, &name)?;
        images.push((name, image));
    }
    std::thread::scope(|scope| {
        let handles: Vec<_> =
            images.iter().map(|(name, _)| scope.spawn(|| docker.run(&["push", name]))).collect();
        for handle in handles {
            handle.join().map_err(|_| anyhow::anyhow!("a push panicked"))??;
        }
        anyhow::Ok(())
    })?;
    for (name, image) in &images {
        docker.run(&["image", "rm", name])?;
        docker.run(&["pull", name])?;
        ensure!(diff_ids(&docker, name)? == image.blobs()[1..]);
    }
    Ok(())
}

#[test]
fn docker_pushes_and_pulls_a_large_layer() -> Result<()> {
    if !tools::present(&NEEDS)? {
        return Ok(());
    }
    let Some(docker) = Docker::start()? else { return Ok(()) };
    let scene = Scene::set(Tls::Off)?;
    docker.login(&scene.server.host(), ADMIN.0, ADMIN.1)?;
    let mib = settings::big_layer_mib();
    let image = Image::unique(&[mib << 20])?;
    let name = scene.public("large:one");
    load(&docker, &image, &name)?;

    let started = Instant::now();
    docker.cli()?.args(["push", &name]).deadline(BIG_DEADLINE).succeed()?;
    let push = started.elapsed();
    docker.run(&["image", "rm", &name])?;
    let started = Instant::now();
    docker.cli()?.args(["pull", &name]).deadline(BIG_DEADLINE).succeed()?;
    tools::say(&format!("docker, one layer of {mib} MiB: push {push:.1?}, pull {:.1?}", started.elapsed()));
    ensure!(diff_ids(&docker, &name)? == image.blobs()[1..]);
    Ok(())
}

/// A seed that no other layer of the run has.
fn fresh_seed() -> u64 {
    rand::random()
}
