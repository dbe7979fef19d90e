//! `taffrail admin references` into `taffrail-fsck`: the catalog and the store of one registry agree, and it shows when they do not.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use taffrail_tests::binary;
use taffrail_tests::images::{Image, noise};
use taffrail_tests::server::Server;

use crate::taffrail;

/// `taffrail admin references | taffrail-fsck ARGS - …/store`.
fn piped(server: &Server, args: &[&str]) -> Result<(i32, Value)> {
    let mut printing = taffrail::command(&["admin", "references"], server.data_dir())?;
    let mut printing = printing.stdout(Stdio::piped()).spawn()?;
    let output = Command::new(binary::fsck()?)
        .args(args)
        .arg(server.data_dir().join("store"))
        .stdin(printing.stdout.take().context("a pipe")?)
        .output()?;
    ensure!(printing.wait()?.success(), "admin references failed");
    let printed = String::from_utf8_lossy(&output.stdout);
    Ok((
        output.status.code().context("a code")?,
        serde_json::from_str(&printed).context(printed.into_owned())?,
    ))
}

#[test]
fn what_the_catalog_prints_is_what_the_store_links() -> Result<()> {
    let mut server = Server::start()?;
    let admin = server.admin()?;
    Image::unique(&[1_200_000, 900])?.push(&admin, "library/app", "v1")?;
    Image::unique(&[2_000])?.push(&admin, "library/other", "v1")?;
    let loose = admin.push_blob("library/other", &noise(3, 777))?;
    // While the server runs, too.
    piped(&server, &["check", "--json", "--references", "-"])?;
    server.terminate()?;
    let (code, report) = piped(&server, &["check", "--json", "--references", "-"])?;
    ensure!(code == 0 && report["references"]["missing"] == 0, "{report:#}");
    // Two manifests with three and two blobs.
    ensure!(report["references"]["references"] == 7, "{report:#}");
    ensure!(report["references"]["unreferenced_links"] == 1, "{report:#}");
    let note =
        report["findings"].as_array().context("findings")?.iter().find(|f| f["kind"] == "link-unreferenced");
    ensure!(note.context("a note")?["digests"][0] == loose, "{report:#}");
    let (code, stats) = piped(&server, &["stats", "--json", "--names", "-"])?;
    ensure!(code == 0 && stats["repositories"][0]["name"] == "library/app", "{stats:#}");
    let empty = tempfile::tempdir()?;
    let (code, said) = taffrail::run(&["admin", "references"], empty.path())?;
    ensure!(code == 1 && said.contains("holds no registry"), "{said}");
    Ok(())
}
