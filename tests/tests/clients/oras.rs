//! oras, and with it what is built on oras-go: notation, flux, helm.

use anyhow::{Result, ensure};
use serde_json::Value;
use taffrail_tests::images::noise;
use taffrail_tests::program::Program;
use taffrail_tests::require_tools;
use taffrail_tests::scene::{ADMIN, DENIED, GUEST, HIDDEN, OUTSIDER, Scene};
use taffrail_tests::server::Tls;
use taffrail_tests::tools::Tool;
use tempfile::TempDir;

struct Oras {
    dir: TempDir,
    scene: Scene,
}

impl Oras {
    fn aboard(tls: Tls) -> Result<Self> {
        Ok(Self { dir: tempfile::tempdir()?, scene: Scene::set(tls)? })
    }

    /// `oras COMMAND…`, trusting the server, in a folder of files to push.
    fn run(&self, command: &[&str]) -> Result<Program> {
        let mut program = Program::new("oras")?
            .args(command)
            .dir(self.dir.path())
            .arg("--registry-config")
            .arg(self.dir.path().join("login.json"));
        program = match self.scene.server.certificate() {
            None => program.arg("--plain-http"),
            Some(files) => program.arg("--ca-file").arg(&files.authority),
        };
        Ok(program)
    }

    fn login(&self, (name, password): (&str, &str)) -> Result<Program> {
        let host = self.scene.server.host();
        Ok(self.run(&["login", "--username", name, "--password-stdin", &host])?.stdin(password))
    }
}

fn oras_pushes_pulls_attaches_and_discovers(tls: Tls) -> Result<()> {
    let oras = Oras::aboard(tls)?;
    oras.login(ADMIN)?.succeed()?;
    let (chart, bill) = (noise(1, 70_000), noise(2, 3_000_000));
    std::fs::write(oras.dir.path().join("chart.bin"), &chart)?;
    std::fs::write(oras.dir.path().join("bill.bin"), &bill)?;
    let one = oras.scene.private("artifact:one");

    oras.run(&[
        "push",
        &one,
        "--artifact-type",
        "application/vnd.test.chart",
        "chart.bin:application/x-chart",
    ])?
    .succeed()?;
    let out = oras.dir.path().join("out");
    oras.run(&["pull", &one, "--output", &out.to_string_lossy()])?.succeed()?;
    ensure!(std::fs::read(out.join("chart.bin"))? == chart);

    // A large attachment refers to the artifact; the referrers API finds it, by type as well.
    oras.run(&[
        "attach",
        &one,
        "--artifact-type",
        "application/vnd.test.bill",
        "bill.bin:application/x-bill",
    ])?
    .succeed()?;
    let found = oras
        .run(&["discover", &one, "--format", "json", "--artifact-type", "application/vnd.test.bill"])?
        .succeed()?
        .stdout;
    let found: Value = serde_json::from_str(&found)?;
    let list = found["manifests"].as_array().or(found["referrers"].as_array()).map_or(0, Vec::len);
    ensure!(list == 1, "{found}");
    let none = oras
        .run(&["discover", &one, "--format", "json", "--artifact-type", "application/none"])?
        .succeed()?
        .stdout;
    let none: Value = serde_json::from_str(&none)?;
    let list = none["manifests"].as_array().or(none["referrers"].as_array()).map_or(0, Vec::len);
    ensure!(list == 0, "{none}");
    // Had the API not answered, oras would have made a tag in its place.
    let tags = oras.run(&["repo", "tags", &oras.scene.private("artifact")])?.succeed()?.stdout;
    ensure!(tags.trim() == "one", "tags: {tags}");

    // Attachments travel with a recursive copy.
    let two = oras.scene.public("artifact:two");
    let (from, to) = match tls {
        Tls::Off => (vec!["--from-plain-http"], vec!["--to-plain-http"]),
        Tls::Files => (vec!["--from-ca-file"], vec!["--to-ca-file"]),
    };
    let mut copy = Program::new("oras")?.args(["copy", "--recursive", &one, &two]);
    for (side, option) in [("from", from), ("to", to)] {
        copy = copy.args(option);
        if let Some(files) = oras.scene.server.certificate() {
            copy = copy.arg(&files.authority);
        }
        copy = copy.arg(format!("--{side}-registry-config")).arg(oras.dir.path().join("login.json"));
    }
    copy.succeed()?;
    let copied = oras.run(&["discover", &two, "--format", "json"])?.succeed()?.stdout;
    ensure!(copied.contains("application/vnd.test.bill"), "{copied}");

    oras.run(&["tag", &two, "three", "four"])?.succeed()?;
    let tags = oras.run(&["repo", "tags", &oras.scene.public("artifact")])?.succeed()?.stdout;
    ensure!(tags.split_whitespace().collect::<Vec<_>>() == ["four", "three", "two"], "tags: {tags}");
    let list = oras.run(&["repo", "ls", &oras.scene.server.host()])?.succeed()?.stdout;
    ensure!(list.contains("library/artifact"), "{list}");

    oras.run(&["manifest", "delete", "--force", &two])?.succeed()?;
    oras.run(&["manifest", "fetch", &two])?.refused(&["not found"])?;
    Ok(())
}

fn oras_is_refused_without_rights(tls: Tls) -> Result<()> {
    let oras = Oras::aboard(tls)?;
    let admin = oras.scene.server.admin()?;
    let image = taffrail_tests::images::Image::unique(&[1_000])?;
    image.push(&admin, "library/open", "one")?;
    image.push(&admin, "harbor-side/shut", "one")?;
    std::fs::write(oras.dir.path().join("file"), "cargo")?;
    let (open, shut) = (oras.scene.public("open:one"), oras.scene.private("shut:one"));

    oras.run(&["manifest", "fetch", &open])?.succeed()?;
    oras.run(&["push", &open, "file"])?.refused(&DENIED)?;
    oras.run(&["manifest", "fetch", &shut])?.refused(&DENIED)?;
    oras.login(("admin", "Wrong-Password-1"))?.refused(&DENIED)?;

    oras.login(GUEST)?.succeed()?;
    oras.run(&["manifest", "fetch", &shut])?.succeed()?;
    oras.run(&["push", &shut, "file"])?.refused(&DENIED)?;

    oras.login(OUTSIDER)?.succeed()?;
    oras.run(&["manifest", "fetch", &shut])?.refused(&HIDDEN)?;
    Ok(())
}

#[test]
fn oras_works_over_http() -> Result<()> {
    require_tools!(Tool::Program("oras"));
    oras_pushes_pulls_attaches_and_discovers(Tls::Off)
}

#[test]
fn oras_works_over_tls() -> Result<()> {
    require_tools!(Tool::Program("oras"));
    oras_pushes_pulls_attaches_and_discovers(Tls::Files)
}

#[test]
fn oras_is_refused_over_http() -> Result<()> {
    require_tools!(Tool::Program("oras"));
    oras_is_refused_without_rights(Tls::Off)
}

#[test]
fn oras_is_refused_over_tls() -> Result<()> {
    require_tools!(Tool::Program("oras"));
    oras_is_refused_without_rights(Tls::Files)
}
