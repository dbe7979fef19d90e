//! skopeo: a new connection for every request, and a TLS hello to a plain port before it falls back.

use anyhow::{Result, ensure};
use serde_json::Value;
use taffrail_tests::http::OCI_INDEX;
use taffrail_tests::images::{Image, index_of};
use taffrail_tests::program::Program;
use taffrail_tests::require_tools;
use taffrail_tests::scene::{ADMIN, DENIED, DEVELOPER, GUEST, HIDDEN, OUTSIDER, Scene};
use taffrail_tests::server::Tls;
use taffrail_tests::tools::Tool;
use tempfile::TempDir;

struct Skopeo {
    dir: TempDir,
    scene: Scene,
}

impl Skopeo {
    fn aboard(tls: Tls) -> Result<Self> {
        Ok(Self { dir: tempfile::tempdir()?, scene: Scene::set(tls)? })
    }

    /// `skopeo COMMAND`, with the options that make it trust the server; `sides` are the option's prefixes, which
    /// differ by command: none, `src-`, `dest-` or both.
    fn run(&self, command: &str, sides: &[&str]) -> Result<Program> {
        let mut program =
            Program::new("skopeo")?.arg(command).env("REGISTRY_AUTH_FILE", self.dir.path().join("auth.json"));
        for side in sides {
            program = match self.scene.server.certificate() {
                None => program.arg(format!("--{side}tls-verify=false")),
                Some(files) => program.arg(format!("--{side}cert-dir")).arg(files.trust_dir()),
            };
        }
        Ok(program)
    }

    fn login(&self, (name, password): (&str, &str)) -> Result<Program> {
        Ok(self
            .run("login", &[""])?
            .args(["--username", name, "--password-stdin", &self.scene.server.host()])
            .stdin(password))
    }
}

fn skopeo_copies_inspects_syncs_and_deletes(tls: Tls) -> Result<()> {
    let skopeo = Skopeo::aboard(tls)?;
    skopeo.login(ADMIN)?.succeed()?;
    let image = Image::unique(&[20_000, 1_500_000])?;
    let layout = skopeo.dir.path().join("layout");
    image.write_oci_layout(&layout, "one")?;
    let source = format!("oci:{}:one", layout.display());
    let one = format!("docker://{}", skopeo.scene.public("skopeo:one"));

    // Without compression the manifest stays as it is, so that its digest can be compared.
    skopeo.run("copy", &["dest-"])?.args(["--preserve-digests", &source, &one]).succeed()?;
    let inspected = skopeo.run("inspect", &[""])?.arg(&one).succeed()?.stdout;
    let inspected: Value = serde_json::from_str(&inspected)?;
    ensure!(inspected["Digest"] == image.digest(), "{inspected}");
    ensure!(inspected["Layers"].as_array().map(Vec::len) == Some(2), "{inspected}");
    let raw = skopeo.run("inspect", &[""])?.args(["--raw", &one]).succeed()?.stdout;
    ensure!(raw.as_bytes() == image.manifest);

    // Registry to registry, into another project.
    let two = format!("docker://{}", skopeo.scene.private("skopeo:two"));
    skopeo.run("copy", &["src-", "dest-"])?.args(["--preserve-digests", &one, &two]).succeed()?;
    // And gzipped on the way, which makes new blobs.
    let gzipped = format!("docker://{}", skopeo.scene.private("skopeo:gzip"));
    let archive = skopeo.dir.path().join("archive.tar");
    image.write_docker_archive(&archive, "made/here:one")?;
    skopeo
        .run("copy", &["dest-"])?
        .args(["--format", "v2s2", &format!("docker-archive:{}", archive.display()), &gzipped])
        .succeed()?;

    let mirrored = format!("{}/mirror", skopeo.scene.server.host());
    let admin = skopeo.scene.server.admin()?;
    taffrail_tests::scene::create_project(&admin, "mirror", false)?;
    skopeo
        .run("sync", &["src-", "dest-"])?
        .args(["--src", "docker", "--dest", "docker", &skopeo.scene.private("skopeo"), &mirrored])
        .succeed()?;
    let tags = skopeo.run("list-tags", &[""])?.arg(format!("docker://{mirrored}/skopeo")).succeed()?.stdout;
    let tags: Value = serde_json::from_str(&tags)?;
    ensure!(tags["Tags"] == serde_json::json!(["gzip", "two"]), "{tags}");

    let back = skopeo.dir.path().join("back");
    skopeo
        .run("copy", &["src-"])?
        .args(["--preserve-digests", &two, &format!("oci:{}:two", back.display())])
        .succeed()?;
    for digest in image.blobs() {
        let path = back.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        ensure!(taffrail_tests::images::sha256_of_file(&path)? == digest);
    }

    skopeo.run("delete", &[""])?.arg(&two).succeed()?;
    skopeo.run("inspect", &[""])?.arg(&two).refused(&["manifest unknown", "not found", "404"])?;
    skopeo.run("inspect", &[""])?.arg(&one).succeed()?;
    Ok(())
}

fn skopeo_copies_every_platform_of_an_index(tls: Tls) -> Result<()> {
    let skopeo = Skopeo::aboard(tls)?;
    skopeo.login(DEVELOPER)?.succeed()?;
    let admin = skopeo.scene.server.admin()?;
    let (amd, arm) = (Image::unique(&[5_000])?, Image::unique(&[6_000])?);
    for image in [&amd, &arm] {
        image.push(&admin, "harbor-side/multi", &image.digest())?;
    }
    let index = index_of(&[("amd64", &amd), ("arm64", &arm)]);
    admin.push_manifest("harbor-side/multi", "both", OCI_INDEX, &index)?;
    let (from, to) = (
        format!("docker://{}", skopeo.scene.private("multi:both")),
        format!("docker://{}", skopeo.scene.private("multi-copy:both")),
    );
    skopeo.run("copy", &["src-", "dest-"])?.args(["--all", "--preserve-digests", &from, &to]).succeed()?;
    let raw = skopeo.run("inspect", &[""])?.args(["--raw", &to]).succeed()?.stdout;
    ensure!(raw.as_bytes() == index);
    for image in [&amd, &arm] {
        ensure!(admin.manifest("harbor-side/multi-copy", &image.digest())?.status == 200);
    }
    Ok(())
}

fn skopeo_is_refused_without_rights(tls: Tls) -> Result<()> {
    let skopeo = Skopeo::aboard(tls)?;
    let image = Image::unique(&[1_000])?;
    let admin = skopeo.scene.server.admin()?;
    image.push(&admin, "library/open", "one")?;
    image.push(&admin, "harbor-side/shut", "one")?;
    let layout = skopeo.dir.path().join("layout");
    image.write_oci_layout(&layout, "one")?;
    let source = format!("oci:{}:one", layout.display());
    let open = format!("docker://{}", skopeo.scene.public("open:one"));
    let shut = format!("docker://{}", skopeo.scene.private("shut:one"));

    skopeo.run("inspect", &[""])?.arg(&open).succeed()?;
    skopeo.run("inspect", &[""])?.arg(&shut).refused(&DENIED)?;
    skopeo.run("copy", &["dest-"])?.args([&source, &open]).refused(&DENIED)?;
    skopeo.login(("admin", "Wrong-Password-1"))?.refused(&["invalid username/password", "unauthorized"])?;

    skopeo.login(GUEST)?.succeed()?;
    skopeo.run("inspect", &[""])?.arg(&shut).succeed()?;
    skopeo.run("copy", &["dest-"])?.args([&source, &shut]).refused(&DENIED)?;

    skopeo.login(OUTSIDER)?.succeed()?;
    skopeo.run("inspect", &[""])?.arg(&shut).refused(&HIDDEN)?;
    skopeo.run("copy", &["dest-"])?.args([&source, &shut]).refused(&DENIED)?;
    Ok(())
}

#[test]
fn skopeo_works_over_http() -> Result<()> {
    require_tools!(Tool::Program("skopeo"));
    skopeo_copies_inspects_syncs_and_deletes(Tls::Off)
}

#[test]
fn skopeo_works_over_tls() -> Result<()> {
    require_tools!(Tool::Program("skopeo"));
    skopeo_copies_inspects_syncs_and_deletes(Tls::Files)
}

#[test]
fn skopeo_copies_an_index_over_http() -> Result<()> {
    require_tools!(Tool::Program("skopeo"));
    skopeo_copies_every_platform_of_an_index(Tls::Off)
}

#[test]
fn skopeo_copies_an_index_over_tls() -> Result<()> {
    require_tools!(Tool::Program("skopeo"));
    skopeo_copies_every_platform_of_an_index(Tls::Files)
}

#[test]
fn skopeo_is_refused_over_http() -> Result<()> {
    require_tools!(Tool::Program("skopeo"));
    skopeo_is_refused_without_rights(Tls::Off)
}

#[test]
fn skopeo_is_refused_over_tls() -> Result<()> {
    require_tools!(Tool::Program("skopeo"));
    skopeo_is_refused_without_rights(Tls::Files)
}
