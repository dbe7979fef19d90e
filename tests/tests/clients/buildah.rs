//! buildah: builds from nothing, manifest lists, pushes as containers/image does.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::Value;
use taffrail_tests::images::noise;
use taffrail_tests::program::Program;
use taffrail_tests::require_tools;
use taffrail_tests::scene::{DENIED, DEVELOPER, GUEST, OUTSIDER, Scene};
use taffrail_tests::server::Tls;
use taffrail_tests::tools::Tool;
use tempfile::TempDir;

struct Buildah {
    dir: TempDir,
    scene: Scene,
}

impl Buildah {
    fn aboard(tls: Tls) -> Result<Self> {
        let buildah = Self { dir: tempfile::tempdir()?, scene: Scene::set(tls)? };
        // It does not start when the file that it is told to use is not there.
        std::fs::write(buildah.at("auth.json"), "{}")?;
        Ok(buildah)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `buildah COMMAND…` on storage of its own.
    fn local(&self, command: &[&str]) -> Result<Program> {
        Ok(Program::new("buildah")?
            .arg("--root")
            .arg(self.at("root"))
            .arg("--runroot")
            .arg(self.at("run"))
            .args(["--storage-driver", "vfs"])
            .args(command)
            .env("REGISTRY_AUTH_FILE", self.at("auth.json")))
    }

    /// A command that speaks to the server, and trusts it.
    fn remote(&self, command: &[&str]) -> Result<Program> {
        let program = self.local(command)?;
        Ok(match self.scene.server.certificate() {
            None => program.arg("--tls-verify=false"),
            Some(files) => program.arg("--cert-dir").arg(files.trust_dir()),
        })
    }

    fn login(&self, (name, password): (&str, &str)) -> Result<Program> {
        let host = self.scene.server.host();
        Ok(self.remote(&["login", "--username", name, "--password-stdin"])?.arg(host).stdin(password))
    }

    /// Builds an image of one file from nothing.
    fn build(&self, name: &str, architecture: &str, content: &[u8]) -> Result<()> {
        let file = self.at("content");
        std::fs::write(&file, content)?;
        let container = self.local(&["from", "scratch"])?.succeed()?.stdout.trim().to_owned();
        self.local(&["config", "--arch", architecture, "--os", "linux", &container])?.succeed()?;
        self.local(&["copy", &container])?.arg(&file).arg("/content").succeed()?;
        self.local(&["commit", "--rm", &container, name])?.succeed()?;
        Ok(())
    }
}

fn buildah_builds_pushes_and_pulls(tls: Tls) -> Result<()> {
    let buildah = Buildah::aboard(tls)?;
    let content = noise(11, 1_800_000);
    buildah.build("made:here", "amd64", &content)?;
    let one = buildah.scene.private("buildah:one");
    let to = format!("docker://{one}");

    buildah.remote(&["push"])?.args(["made:here", &to]).refused(&DENIED)?;
    buildah.login(("dora", "Wrong-Password-1"))?.refused(&["invalid username/password", "unauthorized"])?;
    buildah.login(OUTSIDER)?.succeed()?;
    buildah.remote(&["push"])?.args(["made:here", &to]).refused(&DENIED)?;
    buildah.login(GUEST)?.succeed()?;
    buildah.remote(&["push"])?.args(["made:here", &to]).refused(&DENIED)?;
    buildah.login(DEVELOPER)?.succeed()?;
    buildah.remote(&["push"])?.args(["made:here", &to]).succeed()?;
    buildah.remote(&["push", "--format", "v2s2"])?.args(["made:here", &format!("{to}-docker")]).succeed()?;

    buildah.login(GUEST)?.succeed()?;
    buildah.local(&["rmi", "--all", "--force"])?.succeed()?;
    for name in [one.clone(), format!("{one}-docker")] {
        let container = buildah.remote(&["from"])?.arg(&name).succeed()?.stdout.trim().to_owned();
        let mounted = buildah.local(&["mount", &container])?.succeed()?.stdout.trim().to_owned();
        ensure!(std::fs::read(PathBuf::from(mounted).join("content"))? == content);
    }
    Ok(())
}

fn buildah_pushes_a_list_of_two_platforms(tls: Tls) -> Result<()> {
    let buildah = Buildah::aboard(tls)?;
    buildah.login(DEVELOPER)?.succeed()?;
    buildah.local(&["manifest", "create", "both"])?.succeed()?;
    for architecture in ["amd64", "arm64"] {
        let name = format!("made:{architecture}");
        buildah.build(&name, architecture, architecture.as_bytes())?;
        buildah.local(&["manifest", "add", "both", &name])?.succeed()?;
    }
    let both = format!("docker://{}", buildah.scene.private("multi:both"));
    buildah.remote(&["manifest", "push", "--all"])?.args(["both", &both]).succeed()?;

    let admin = buildah.scene.server.admin()?;
    let index = admin.manifest("harbor-side/multi", "both")?.expect(&[200])?.json()?;
    let entries = index["manifests"].as_array().cloned().unwrap_or_default();
    let mut platforms: Vec<&str> =
        entries.iter().filter_map(|entry| entry["platform"]["architecture"].as_str()).collect();
    platforms.sort_unstable();
    ensure!(platforms == ["amd64", "arm64"], "{index}");
    for entry in &entries {
        let digest = entry["digest"].as_str().unwrap_or_default();
        let manifest: Value = admin.manifest("harbor-side/multi", digest)?.expect(&[200])?.json()?;
        ensure!(manifest["layers"].as_array().map(Vec::len) == Some(1), "{manifest}");
    }
    Ok(())
}

#[test]
fn buildah_works_over_http() -> Result<()> {
    require_tools!(Tool::Root, Tool::Program("buildah"));
    buildah_builds_pushes_and_pulls(Tls::Off)
}

#[test]
fn buildah_works_over_tls() -> Result<()> {
    require_tools!(Tool::Root, Tool::Program("buildah"));
    buildah_builds_pushes_and_pulls(Tls::Files)
}

#[test]
fn buildah_pushes_a_list_over_http() -> Result<()> {
    require_tools!(Tool::Root, Tool::Program("buildah"));
    buildah_pushes_a_list_of_two_platforms(Tls::Off)
}

#[test]
fn buildah_pushes_a_list_over_tls() -> Result<()> {
    require_tools!(Tool::Root, Tool::Program("buildah"));
    buildah_pushes_a_list_of_two_platforms(Tls::Files)
}
