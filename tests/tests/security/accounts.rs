//! S-25 and S-50: accounts that everybody knows, and deletions that nobody may do.

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::Method;
use taffrail_tests::images::Image;
use taffrail_tests::scene::{GUEST, PRIVATE};
use taffrail_tests::server::{Options, Server};

use super::{Stage, secret_repository};

/// What registries have shipped with, and what people try first.
const KNOWN_DEFAULTS: [&str; 6] = ["Harbor12345", "admin", "", "password", "root123", "changeme"];

/// Those that are tried at the token service too: ten tries in all do not slow the administrator down.
const TRIED_AS_TOKEN: [&str; 2] = ["Harbor12345", ""];

#[test]
fn s_25_no_password_that_anybody_knows_opens_a_fresh_registry() -> Result<()> {
    let mut server = Server::start_with(Options { admin_password: None, ..Options::default() })?;
    let known = |server: &Server| -> Result<()> {
        for (name, password) in KNOWN_DEFAULTS.map(|password| ("admin", password)).into_iter().chain([
            ("root", "root"),
            ("harbor", "Harbor12345"),
            ("taffrail", "taffrail"),
        ]) {
            let client = server.client(Some((name, password)))?;
            let answer = client.api(&Method::GET, "/users/current", None)?;
            ensure!(answer.status == 401, "{name} with {password:?} was answered {}", answer.status);
            if TRIED_AS_TOKEN.contains(&password) {
                let token = client.token(&["repository:library/x:pull"]);
                ensure!(token.is_err(), "{name}: a token for {password:?}");
            }
        }
        Ok(())
    };
    known(&server)?;
    let drawn = std::fs::read_to_string(server.data_dir().join("initial-admin-password"))?;
    let admin = server.client(Some(("admin", drawn.trim())))?;
    admin.api(&Method::GET, "/users/current", None)?.expect(&[200])?;
    // Nor is one of them made when the first start is over and the file was removed, as the operator is told to.
    std::fs::remove_file(server.data_dir().join("initial-admin-password"))?;
    ensure!(server.terminate()?.success());
    server.restart()?;
    known(&server)
}

#[test]
fn s_25_a_well_known_password_is_not_taken_as_the_first_one() -> Result<()> {
    for password in ["Harbor12345", "short"] {
        let options = Options { admin_password: Some(password.to_owned()), ..Options::default() };
        let Err(error) = Server::start_with(options) else {
            bail!("a server runs with the password {password}");
        };
        let said = format!("{error:#}");
        ensure!(said.contains("password"), "{said}");
        ensure!(!said.contains(password), "the password is in the log: {said}");
    }
    Ok(())
}

/// S-50, as far as there is something that forbids a deletion: rights, use by a manifest, and a project that is not empty.
#[test]
fn s_50_what_may_not_be_deleted_stands_whichever_way_it_is_asked_for() -> Result<()> {
    let stage = Stage::set()?;
    let repository = secret_repository();
    let guest = stage.scene.server.client(Some(GUEST))?;
    let anonymous = stage.scene.server.client(None)?;
    let (digest, layer) = (stage.secret.digest(), stage.secret_layer());
    let config = stage.secret.blobs().first().context("a config")?.clone();
    let stands = || -> Result<()> {
        let tagged = stage.insider.manifest(&repository, "one")?.expect(&[200])?;
        ensure!(tagged.header("docker-content-digest") == digest, "the tag moved");
        for blob in stage.secret.blobs() {
            stage.insider.blob(&repository, &blob)?.expect(&[200])?;
        }
        Ok(())
    };
    for (who, client) in [
        ("a developer", &stage.insider),
        ("a guest", &guest),
        ("an outsider", &stage.outsider),
        ("nobody", &anonymous),
    ] {
        for answer in [
            client.delete_manifest(&repository, "one")?,
            client.delete_manifest(&repository, &digest)?,
            client.delete_blob(&repository, &layer)?,
            client.api(&Method::DELETE, &format!("/projects/{PRIVATE}"), None)?,
        ] {
            ensure!([401, 403, 404].contains(&answer.status), "{who} was answered {}", answer.status);
        }
        stands()?;
    }
    // Who may delete does not delete from under a manifest, and not a project that holds something.
    for blob in [&layer, &config] {
        let answer = stage.admin.delete_blob(&repository, blob)?;
        ensure!(answer.status == 405, "a blob in use: answered {}", answer.status);
    }
    let answer = stage.admin.api(&Method::DELETE, &format!("/projects/{PRIVATE}"), None)?;
    ensure!(answer.status == 412, "a project in use: answered {}", answer.status);
    stands()?;
    // A tag that goes takes nothing of another along.
    Image::unique(&[100])?.push(&stage.insider, &repository, "two")?;
    stage.admin.delete_manifest(&repository, "two")?.expect(&[202])?;
    stands()
}
