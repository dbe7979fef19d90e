//! crane, and with it everything built on go-containerregistry: ko, kaniko, cosign.

use anyhow::{Result, ensure};
use taffrail_tests::images::{Image, sha256_of_file};
use taffrail_tests::program::Program;
use taffrail_tests::require_tools;
use taffrail_tests::scene::{ADMIN, DENIED, GUEST, HIDDEN, OUTSIDER, Scene};
use taffrail_tests::server::Tls;
use taffrail_tests::tools::Tool;
use tempfile::TempDir;

struct Crane {
    config: TempDir,
    scene: Scene,
}

impl Crane {
    fn aboard(tls: Tls) -> Result<Self> {
        Ok(Self { config: tempfile::tempdir()?, scene: Scene::set(tls)? })
    }

    fn run(&self, args: &[&str]) -> Result<Program> {
        let mut program = Program::new("crane")?.args(args).env("DOCKER_CONFIG", self.config.path());
        program = match self.scene.server.certificate() {
            None => program.arg("--insecure"),
            Some(files) => program.env("SSL_CERT_FILE", &files.authority),
        };
        Ok(program)
    }

    /// Pulls the image and hashes every file. (`crane validate` takes every layer for gzip, and ours are plain.)
    fn gives_every_byte_of(&self, name: &str, image: &Image) -> Result<()> {
        let pulled = tempfile::tempdir()?;
        self.run(&["pull", "--format", "oci", name, &pulled.path().to_string_lossy()])?.succeed()?;
        for digest in image.blobs() {
            let path = pulled.path().join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
            ensure!(sha256_of_file(&path)? == digest);
        }
        Ok(())
    }

    fn login(&self, (name, password): (&str, &str)) -> Result<()> {
        let host = self.scene.server.host();
        self.run(&["auth", "login", "-u", name, "--password-stdin", &host])?.stdin(password).succeed()?;
        Ok(())
    }
}

fn crane_pushes_pulls_copies_and_deletes(tls: Tls) -> Result<()> {
    let crane = Crane::aboard(tls)?;
    crane.login(ADMIN)?;
    let image = Image::unique(&[3_000, 2_500_000])?;
    let layout = tempfile::tempdir()?;
    image.write_oci_layout(layout.path(), "one")?;
    let (one, two) = (crane.scene.public("crane:one"), crane.scene.private("deep/er/copy:two"));

    crane.run(&["push", &layout.path().to_string_lossy(), &one])?.succeed()?;
    ensure!(crane.run(&["digest", &one])?.succeed()?.stdout.trim() == image.digest());
    crane.gives_every_byte_of(&one, &image)?;

    // The copy goes to another project: its layers are mounted, not sent again.
    let copied = crane.run(&["copy", &one, &two])?.succeed()?;
    ensure!(copied.stderr.contains("mounted blob"), "no mount in: {}", copied.stderr);
    ensure!(crane.run(&["manifest", &two])?.succeed()?.stdout.as_bytes() == image.manifest);

    crane.run(&["tag", &one, "also"])?.succeed()?;
    let repository = crane.scene.public("crane");
    let tags = crane.run(&["ls", &repository])?.succeed()?.stdout;
    ensure!(tags.lines().collect::<Vec<_>>() == ["also", "one"], "tags: {tags}");
    let catalog = crane.run(&["catalog", &crane.scene.server.host()])?.succeed()?.stdout;
    ensure!(catalog.lines().any(|line| line == "library/crane"), "catalog: {catalog}");

    crane.gives_every_byte_of(&two, &image)?;
    crane.run(&["delete", &format!("{repository}@{}", image.digest())])?.succeed()?;
    crane.run(&["digest", &one])?.refused(&["MANIFEST_UNKNOWN", "404"])?;
    // What was deleted here stays there.
    crane.gives_every_byte_of(&two, &image)?;
    Ok(())
}

fn crane_is_refused_without_rights(tls: Tls) -> Result<()> {
    let crane = Crane::aboard(tls)?;
    let image = Image::unique(&[1_000])?;
    let admin = crane.scene.server.admin()?;
    image.push(&admin, "library/open", "one")?;
    image.push(&admin, "harbor-side/shut", "one")?;
    let layout = tempfile::tempdir()?;
    image.write_oci_layout(layout.path(), "one")?;
    let layout = layout.path().to_string_lossy().into_owned();

    // Nobody may read the public project; nobody may write, nor see the private one.
    crane.run(&["digest", &crane.scene.public("open:one")])?.succeed()?;
    crane.run(&["push", &layout, &crane.scene.public("open:two")])?.refused(&DENIED)?;
    crane.run(&["digest", &crane.scene.private("shut:one")])?.refused(&DENIED)?;

    let wrong =
        crane.run(&["auth", "login", "-u", "admin", "-p", "Wrong-Password-1", &crane.scene.server.host()])?;
    // crane only stores what it is told; the refusal comes with the first request.
    wrong.run()?;
    crane.run(&["digest", &crane.scene.private("shut:one")])?.refused(&DENIED)?;

    crane.login(GUEST)?;
    crane.gives_every_byte_of(&crane.scene.private("shut:one"), &image)?;
    crane.run(&["push", &layout, &crane.scene.private("shut:two")])?.refused(&DENIED)?;

    crane.login(OUTSIDER)?;
    crane.run(&["digest", &crane.scene.private("shut:one")])?.refused(&HIDDEN)?;
    crane.run(&["push", &layout, &crane.scene.private("shut:two")])?.refused(&DENIED)?;
    Ok(())
}

#[test]
fn crane_works_over_http() -> Result<()> {
    require_tools!(Tool::Program("crane"));
    crane_pushes_pulls_copies_and_deletes(Tls::Off)
}

#[test]
fn crane_works_over_tls() -> Result<()> {
    require_tools!(Tool::Program("crane"));
    crane_pushes_pulls_copies_and_deletes(Tls::Files)
}

#[test]
fn crane_is_refused_over_http() -> Result<()> {
    require_tools!(Tool::Program("crane"));
    crane_is_refused_without_rights(Tls::Off)
}

#[test]
fn crane_is_refused_over_tls() -> Result<()> {
    require_tools!(Tool::Program("crane"));
    crane_is_refused_without_rights(Tls::Files)
}
