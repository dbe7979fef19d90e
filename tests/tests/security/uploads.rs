//! Upload sessions: what one user begins does not keep the others from pushing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use reqwest::Method;
use taffrail_tests::http::{Extra, Registry};
use taffrail_tests::images::Image;
use taffrail_tests::scene::{create_project, create_user};
use taffrail_tests::server::{Options, Server};

const OCTETS: &str = "application/octet-stream";
const PUSH: &str = "pull,push";
const MALLORY: (&str, &str) = ("mallory", "Bilgewater-85");
const ALICE: (&str, &str) = ("alice", "Topgallant-96");

/// Sessions of the whole server in these tests.
const TOTAL: usize = 40;
/// Repositories over which the flood is spread.
const SPREAD: usize = 8;
/// Longer than a session without a byte is left alone, which is ten seconds, by what a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server with few sessions, and two users with a project each: the flooder, and who has work to do.
fn scene(per_user_max: usize) -> Result<(Server, Registry, Registry)> {
    let options =
        Options::default().key("uploads", "total_max", TOTAL).key("uploads", "per_user_max", per_user_max);
    let server = Server::start_with(options)?;
    let admin = server.admin()?;
    for (name, password) in [MALLORY, ALICE] {
        create_user(&admin, name, password)?;
        create_project(&server.client(Some((name, password)))?, name, false)?;
    }
    let (mallory, alice) = (server.client(Some(MALLORY))?, server.client(Some(ALICE))?);
    Ok((server, mallory, alice))
}

/// Begins a session in one of mallory's repositories, and sends `bytes` to it. The status of the first refusal, or the last.
fn begin(mallory: &Registry, number: usize, bytes: &'static [u8]) -> Result<u16> {
    let repository = format!("mallory/flood-{}", number % SPREAD);
    let path = format!("/v2/{repository}/blobs/uploads/");
    let begun = mallory.send(&Method::POST, &repository, PUSH, &path, &Extra::default())?;
    if begun.status != 202 || bytes.is_empty() {
        return Ok(begun.status);
    }
    let location = mallory.location(&begun)?;
    let extra = Extra::body(OCTETS, bytes);
    Ok(mallory.send(&Method::PATCH, &repository, PUSH, &location, &extra)?.status)
}

#[test]
fn a_flood_of_empty_sessions_does_not_keep_others_from_pushing() -> Result<()> {
    // Nothing but the total bounds the flood, as when many users join in it.
    let (server, mallory, alice) = scene(TOTAL * 10)?;
    let answers = (0..TOTAL).map(|number| begin(&mallory, number, b"")).collect::<Result<Vec<_>>>()?;
    ensure!(answers == [202; TOTAL], "{answers:?}");
    ensure!(begin(&mallory, TOTAL, b"")? == 429, "the bound is not reached");
    let image = Image::unique(&[2_000, 300_000])?;
    let started = Instant::now();
    let mut number = TOTAL;
    // The flood goes on while she tries again, as clients do after 429.
    while let Err(error) = image.push(&alice, "alice/app", "one") {
        ensure!(format!("{error:#}").contains("429"), "{error:#}");
        ensure!(started.elapsed() < PATIENCE, "no push within {PATIENCE:?}");
        let answer = begin(&mallory, number, b"")?;
        ensure!([202, 429].contains(&answer), "the flood was answered {answer}");
        number += 1;
    }
    ensure!(alice.manifest("alice/app", "one")?.expect(&[200])?.body == image.manifest);
    drop(server);
    Ok(())
}

#[test]
fn sessions_that_stay_are_bounded_for_each_user() -> Result<()> {
    let (server, mallory, alice) = scene(TOTAL / 2)?;
    let answers = (0..TOTAL).map(|number| begin(&mallory, number, b"1")).collect::<Result<Vec<_>>>()?;
    let (taken, refused) = answers.split_at(TOTAL / 2);
    ensure!(taken.iter().all(|status| *status == 202), "{answers:?}");
    ensure!(refused.iter().all(|status| *status == 429), "{answers:?}");
    let image = Image::unique(&[2_000, 300_000])?;
    image.push(&alice, "alice/app", "one")?;
    ensure!(alice.manifest("alice/app", "one")?.expect(&[200])?.body == image.manifest);
    drop(server);
    Ok(())
}
