//! containerd's own client: uploads in one PUT, pulls as a Kubernetes node does.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use taffrail_tests::containerd::{Containerd, NEEDS};
use taffrail_tests::http::OCI_INDEX;
use taffrail_tests::images::{Image, index_of};
use taffrail_tests::program::Program;
use taffrail_tests::scene::{ADMIN, DENIED, GUEST, HIDDEN, OUTSIDER, Scene};
use taffrail_tests::server::Tls;
use taffrail_tests::tools;

struct Ctr {
    containerd: Containerd,
    scene: Scene,
}

impl Ctr {
    fn run(&self, verb: &str, user: Option<(&str, &str)>) -> Result<Program> {
        let mut program = self.containerd.ctr()?.args(["images", verb]);
        program = match self.scene.server.certificate() {
            None => program.arg("--plain-http"),
            Some(files) => program.arg("--hosts-dir").arg(self.hosts_dir(&files.authority)?),
        };
        if verb == "pull" {
            // The overlay snapshotter does not work on every file system that holds temporary files.
            program = program.args(["--snapshotter", "native"]);
        }
        Ok(match user {
            None => program,
            Some((name, password)) => program.arg("--user").arg(format!("{name}:{password}")),
        })
    }

    /// The configuration that makes containerd speak TLS to a local address; its `--tlscacert` alone does not.
    fn hosts_dir(&self, authority: &Path) -> Result<PathBuf> {
        let (dir, host) = (self.containerd.at("hosts"), self.scene.server.host());
        std::fs::create_dir_all(dir.join(&host))?;
        // The table is demanded, and the server is asked as well when the table's host refuses: both need to trust.
        let text = format!(
            "server = \"https://{host}\"\nca = {authority:?}\n\n[host.\"https://{host}\"]\nca = {authority:?}\n"
        );
        std::fs::write(dir.join(&host).join("hosts.toml"), text)?;
        Ok(dir)
    }

    fn forget(&self, name: &str) -> Result<()> {
        self.containerd.ctr()?.args(["images", "rm", "--sync", name]).succeed()?;
        Ok(())
    }
}

fn ctr_pushes_pulls_and_is_refused(tls: Tls) -> Result<()> {
    if !tools::present(&NEEDS)? {
        return Ok(());
    }
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let ctr = Ctr { containerd, scene: Scene::set(tls)? };

    let image = Image::unique(&[9_000, 4_000_000])?;
    let archive = ctr.containerd.at("image.tar");
    image.write_oci_archive(&archive, "one")?;
    let (private, public) = (ctr.scene.private("ctr:one"), ctr.scene.public("ctr:one"));
    ctr.containerd
        .ctr()?
        .args(["images", "import", "--no-unpack", "--base-name", &ctr.scene.private("ctr")])
        .arg(&archive)
        .succeed()?;

    ctr.run("push", None)?.arg(&private).refused(&DENIED)?;
    ctr.run("push", Some(("admin", "Wrong-Password-1")))?.arg(&private).refused(&DENIED)?;
    ctr.run("push", Some(GUEST))?.arg(&private).refused(&DENIED)?;
    ctr.run("push", Some(ADMIN))?.arg(&private).succeed()?;
    ctr.run("push", Some(ADMIN))?.args([&public, &private]).succeed()?;
    ctr.forget(&private)?;

    ctr.run("pull", Some(OUTSIDER))?.arg(&private).refused(&HIDDEN)?;
    ctr.run("pull", Some(GUEST))?.arg(&private).succeed()?;
    ctr.forget(&private)?;
    // Nobody in particular may pull from a public project.
    ctr.run("pull", None)?.arg(&public).succeed()?;
    let listed = ctr.containerd.ctr()?.args(["images", "ls"]).succeed()?.stdout;
    ensure!(listed.contains(&image.digest()), "{listed}");
    // What was unpacked is what was packed.
    let content = ctr.containerd.ctr()?.args(["content", "ls", "--quiet"]).succeed()?.stdout;
    for digest in image.blobs() {
        ensure!(content.contains(&digest), "{digest} is not in {content}");
    }
    Ok(())
}

fn ctr_pulls_every_platform(tls: Tls) -> Result<()> {
    if !tools::present(&NEEDS)? {
        return Ok(());
    }
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let ctr = Ctr { containerd, scene: Scene::set(tls)? };
    let admin = ctr.scene.server.admin()?;
    let (amd, arm) = (Image::unique(&[5_000])?, Image::unique(&[6_000])?);
    for image in [&amd, &arm] {
        image.push(&admin, "library/multi", &image.digest())?;
    }
    admin.push_manifest(
        "library/multi",
        "both",
        OCI_INDEX,
        &index_of(&[("amd64", &amd), ("arm64", &arm)]),
    )?;
    ctr.run("pull", None)?.args(["--all-platforms", &ctr.scene.public("multi:both")]).succeed()?;
    let content = ctr.containerd.ctr()?.args(["content", "ls", "--quiet"]).succeed()?.stdout;
    for digest in amd.blobs().into_iter().chain(arm.blobs()) {
        ensure!(content.contains(&digest), "{digest} is not in {content}");
    }
    Ok(())
}

#[test]
fn ctr_works_over_http() -> Result<()> {
    ctr_pushes_pulls_and_is_refused(Tls::Off)
}

#[test]
fn ctr_works_over_tls() -> Result<()> {
    ctr_pushes_pulls_and_is_refused(Tls::Files)
}

#[test]
fn ctr_pulls_an_index_over_http() -> Result<()> {
    ctr_pulls_every_platform(Tls::Off)
}
