//! helm, with charts as OCI artifacts.

use anyhow::{Result, ensure};
use taffrail_tests::program::Program;
use taffrail_tests::require_tools;
use taffrail_tests::scene::{DENIED, DEVELOPER, GUEST, HIDDEN, OUTSIDER, Scene};
use taffrail_tests::server::Tls;
use taffrail_tests::tools::Tool;
use tempfile::TempDir;

struct Helm {
    dir: TempDir,
    scene: Scene,
}

impl Helm {
    fn aboard(tls: Tls) -> Result<Self> {
        let helm = Self { dir: tempfile::tempdir()?, scene: Scene::set(tls)? };
        helm.bare(&["create", "rigging"])?.succeed()?;
        helm.bare(&["package", "rigging", "--version", "1.2.3"])?.succeed()?;
        Ok(helm)
    }

    fn bare(&self, command: &[&str]) -> Result<Program> {
        // Its caches and settings stay in the test's folder.
        Ok(Program::new("helm")?.args(command).dir(self.dir.path()).env("HOME", self.dir.path()))
    }

    fn run(&self, command: &[&str]) -> Result<Program> {
        let program = self.bare(command)?;
        Ok(match self.scene.server.certificate() {
            None => program.arg("--plain-http"),
            Some(files) => program.arg("--ca-file").arg(&files.authority),
        })
    }

    fn login(&self, (name, password): (&str, &str)) -> Result<Program> {
        let host = self.scene.server.host();
        Ok(self.run(&["registry", "login", "--username", name, "--password-stdin", &host])?.stdin(password))
    }
}

fn helm_pushes_pulls_and_is_refused(tls: Tls) -> Result<()> {
    let helm = Helm::aboard(tls)?;
    let private = format!("oci://{}", helm.scene.private("charts"));
    let chart = format!("{private}/rigging");

    helm.run(&["push", "rigging-1.2.3.tgz", &private])?.refused(&DENIED)?;
    helm.login(("dora", "Wrong-Password-1"))?.refused(&DENIED)?;
    helm.login(DEVELOPER)?.succeed()?;
    helm.run(&["push", "rigging-1.2.3.tgz", &private])?.succeed()?;

    helm.login(GUEST)?.succeed()?;
    let shown = helm.run(&["show", "chart", &chart, "--version", "1.2.3"])?.succeed()?.stdout;
    ensure!(shown.contains("name: rigging"), "{shown}");
    // A version range makes helm read the tags.
    std::fs::create_dir(helm.dir.path().join("out"))?;
    helm.run(&["pull", &chart, "--version", "^1.0.0", "--destination", "out"])?.succeed()?;
    let (sent, back) =
        (helm.dir.path().join("rigging-1.2.3.tgz"), helm.dir.path().join("out/rigging-1.2.3.tgz"));
    ensure!(std::fs::read(sent)? == std::fs::read(back)?);
    helm.run(&["push", "rigging-1.2.3.tgz", &private])?.refused(&DENIED)?;

    helm.login(OUTSIDER)?.succeed()?;
    helm.run(&["show", "chart", &chart, "--version", "1.2.3"])?.refused(&HIDDEN)?;
    Ok(())
}

#[test]
fn helm_works_over_http() -> Result<()> {
    require_tools!(Tool::Program("helm"));
    helm_pushes_pulls_and_is_refused(Tls::Off)
}

#[test]
fn helm_works_over_tls() -> Result<()> {
    require_tools!(Tool::Program("helm"));
    helm_pushes_pulls_and_is_refused(Tls::Files)
}
