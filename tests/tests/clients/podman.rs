//! podman: pull, push, search of rights.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use taffrail_tests::images::Image;
use taffrail_tests::program::Program;
use taffrail_tests::require_tools;
use taffrail_tests::scene::{DENIED, DEVELOPER, GUEST, OUTSIDER, Scene};
use taffrail_tests::server::Tls;
use taffrail_tests::tools::Tool;
use tempfile::TempDir;

struct Podman {
    dir: TempDir,
    scene: Scene,
}

impl Podman {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn local(&self, command: &[&str]) -> Result<Program> {
        Ok(Program::new("podman")?
            .arg("--root")
            .arg(self.at("root"))
            .arg("--runroot")
            .arg(self.at("run"))
            .arg("--tmpdir")
            .arg(self.at("tmp"))
            .args(["--storage-driver", "vfs"])
            .args(command)
            .env("REGISTRY_AUTH_FILE", self.at("auth.json")))
    }

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
}

fn podman_pushes_pulls_and_is_refused(tls: Tls) -> Result<()> {
    let podman = Podman { dir: tempfile::tempdir()?, scene: Scene::set(tls)? };
    // It does not start when the file that it is told to use is not there.
    std::fs::write(podman.at("auth.json"), "{}")?;
    let image = Image::unique(&[12_000, 2_200_000])?;
    let (private, public) = (podman.scene.private("podman:one"), podman.scene.public("podman:one"));
    let archive = podman.at("image.tar");
    image.write_docker_archive(&archive, &private)?;
    podman.local(&["load", "--input"])?.arg(&archive).succeed()?;

    podman.remote(&["push"])?.arg(&private).refused(&DENIED)?;
    podman.login(("dora", "Wrong-Password-1"))?.refused(&["invalid username/password", "unauthorized"])?;
    podman.login(OUTSIDER)?.succeed()?;
    podman.remote(&["push"])?.arg(&private).refused(&DENIED)?;
    podman.login(DEVELOPER)?.succeed()?;
    podman.remote(&["push"])?.arg(&private).succeed()?;
    // dora may not push to the public project, only pull from it.
    podman.remote(&["push"])?.args([&private, &public]).refused(&DENIED)?;

    podman.login(GUEST)?.succeed()?;
    podman.local(&["rmi", "--all", "--force"])?.succeed()?;
    podman.remote(&["pull"])?.arg(&private).succeed()?;
    let layers = podman.local(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", &private])?;
    let layers: Vec<String> = serde_json::from_str(layers.succeed()?.stdout.trim())?;
    ensure!(layers == image.blobs()[1..], "{layers:?}");

    // Signed out, the public project still gives.
    image.push(&podman.scene.server.admin()?, "library/podman", "one")?;
    podman.local(&["logout", "--all"])?.succeed()?;
    podman.remote(&["pull"])?.arg(&public).succeed()?;
    podman.remote(&["pull"])?.arg(&private).refused(&DENIED)?;
    Ok(())
}

#[test]
fn podman_works_over_http() -> Result<()> {
    require_tools!(Tool::Root, Tool::Program("podman"));
    podman_pushes_pulls_and_is_refused(Tls::Off)
}

#[test]
fn podman_works_over_tls() -> Result<()> {
    require_tools!(Tool::Root, Tool::Program("podman"));
    podman_pushes_pulls_and_is_refused(Tls::Files)
}
