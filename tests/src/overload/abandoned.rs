//! L-15: uploads that nobody goes on with.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use taffrail_tests::http::Registry;
use taffrail_tests::scene;
use taffrail_tests::server::Options;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::client;
use crate::plan::Plan;
use crate::row::Row;
use crate::site::{Site, mib, until};

const NUMBER: &str = "L-15";

/// Users, and repositories of each, that share the uploads.
const USERS: usize = 5;
const REPOSITORIES: usize = 2;
/// Bytes in each upload. One that has none makes room for others, which is not what this is about.
const SMALL_BYTES: usize = 1_000;
/// Uploads that are large, and zeros all through.
const LARGE: usize = 2;
/// Seconds between two sweeps here.
const SWEEP_SECS: u64 = 1;
/// Clients of each user at a time.
const CLIENTS: usize = 8;
/// Space that the store may keep beyond what it had: a segment of its log, which is reserved whole when its first record comes.
const SPACE_MAX: u64 = 256 << 20;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let total = plan.abandoned;
    let (per_user, per_repository) = (total / USERS, total / USERS / REPOSITORIES);
    let options = Options::default()
        .key("uploads", "idle_secs", plan.upload_idle_secs)
        .key("uploads", "sweep_secs", SWEEP_SECS)
        .key("uploads", "total_max", total)
        .key("uploads", "per_user_max", per_user)
        .key("uploads", "per_repository_max", per_repository);
    let site = Site::start(plan, options)?;
    let host = site.host()?;
    let users = users(&site)?;
    // The log's first segment is there before anything is measured.
    site.push_noise("library/kept", 15, SMALL_BYTES)?;
    let (space_before, memory_before) = (space(site.server.data_dir())?, site.memory()?);
    let sessions = "taffrail_store_upload_sessions";

    // The bounds by repository, by user and in total, one after the other; sessions expire meanwhile only if this is slow.
    let began = Instant::now();
    let mut begun = 0;
    let mut statuses = [0_u16; 3];
    for (number, user) in users.iter().enumerate() {
        for (second, (repository, token)) in user.iter().enumerate() {
            let large = if number == 0 && second == 0 { LARGE } else { 0 };
            begun += plan.runtime.block_on(abandon(plan, host, repository, token, per_repository, large))?;
            if number == 0 && second == 0 {
                statuses[0] = plan.runtime.block_on(begin(host, repository, token))?.0;
            }
        }
        if number == 0 {
            // A repository of its own, which is not full.
            let (repository, token) = other_repository(&site, number)?;
            statuses[1] = plan.runtime.block_on(begin(host, &repository, &token))?.0;
        }
    }
    let (repository, token) = outsider(&site)?;
    statuses[2] = plan.runtime.block_on(begin(host, &repository, &token))?.0;
    let took = began.elapsed();
    let counted = site.metric(sessions)?;
    let (space_full, memory_full) = (space(site.server.data_dir())?, site.memory()?);

    let idle = Duration::from_secs(plan.upload_idle_secs);
    let swept = until("every abandoned upload is gone", idle + Duration::from_secs(60), || {
        Ok(site.metric(sessions)? < 0.5)
    })?;
    let expired = site.metric("taffrail_jobs_uploads_expired_total")?;
    let space_after = space(site.server.data_dir())?;
    let files_after = space(&site.server.data_dir().join("store/solo"))?;
    let in_memory = site.metric("taffrail_store_upload_memory_bytes")?;
    let again = plan.runtime.block_on(begin(host, &repository, &token))?.0;
    Ok(vec![
        Row::held(
            NUMBER,
            format!(
                "{total} uploads begun and left, {LARGE} of them with {}",
                mib(plan.abandoned_bytes as u64)
            ),
            "one more is answered 429, by repository, user and in total",
            format!("{begun} begun in {took:.1?}, then {statuses:?}; {counted} counted"),
            begun == total && statuses == [429; 3] && (counted - total as f64).abs() < 0.5,
        ),
        Row::held(
            NUMBER,
            "the sweep",
            "all of them ended and counted, one can begin again",
            format!("{expired} ended, the last {swept:.1?} after the last began; then {again}"),
            (expired - total as f64).abs() < 0.5 && again == 202,
        ),
        Row::held(
            NUMBER,
            "their space",
            format!("no file of theirs, and at most {} more of log", mib(SPACE_MAX)),
            format!(
                "{} before, {} full, {} after, {files_after} bytes in files of uploads, {in_memory} in memory",
                mib(space_before),
                mib(space_full),
                mib(space_after)
            ),
            space_after <= space_before + SPACE_MAX && files_after == 0 && in_memory < 0.5,
        ),
        Row::noted(
            NUMBER,
            "memory",
            format!("{} before, {} full, {} after", memory_before, memory_full, site.memory()?),
        ),
    ])
}

/// The repositories of each user, with the header line of a token.
fn users(site: &Site) -> Result<Vec<Vec<(String, String)>>> {
    (0..USERS)
        .map(|number| {
            make_user(site, number)?;
            (0..REPOSITORIES).map(|second| repository_of(site, number, &format!("r{second}"))).collect()
        })
        .collect()
}

fn other_repository(site: &Site, number: usize) -> Result<(String, String)> {
    repository_of(site, number, "other")
}

fn outsider(site: &Site) -> Result<(String, String)> {
    make_user(site, USERS)?;
    repository_of(site, USERS, "r0")
}

fn password(number: usize) -> String {
    format!("Windlass-{number}")
}

fn client_of(site: &Site, number: usize) -> Result<Registry> {
    site.server.client(Some((&format!("user{number}"), &password(number))))
}

/// A user with a project.
fn make_user(site: &Site, number: usize) -> Result<()> {
    scene::create_user(&site.admin, &format!("user{number}"), &password(number))?;
    scene::create_project(&client_of(site, number)?, &format!("own{number}"), false)
}

fn repository_of(site: &Site, number: usize, name: &str) -> Result<(String, String)> {
    let repository = format!("own{number}/{name}");
    let token = client_of(site, number)?.token(&[&format!("repository:{repository}:pull,push")])?;
    Ok((repository, format!("Authorization: Bearer {token}\r\n")))
}

/// Begins so many uploads in a repository and leaves them with some bytes; gives how many there are.
async fn abandon(
    plan: &Plan,
    host: SocketAddr,
    repository: &str,
    token: &str,
    count: usize,
    large: usize,
) -> Result<usize> {
    let large_bytes = plan.abandoned_bytes;
    let mut clients = JoinSet::new();
    for first in 0..CLIENTS {
        let (repository, token) = (repository.to_owned(), token.to_owned());
        clients.spawn(async move {
            let mut stream = client::dial(host, client::loopback(first)).await?;
            let mut begun = 0;
            for number in (first..count).step_by(CLIENTS) {
                let (status, location) = begin_on(&mut stream, host, &repository, &token).await?;
                ensure!(status == 202, "upload {number} of {count} was answered {status}");
                let bytes = if number < large { large_bytes } else { SMALL_BYTES };
                append(&mut stream, host, &location, &token, bytes).await?;
                begun += 1;
            }
            anyhow::Ok(begun)
        });
    }
    let mut begun = 0;
    while let Some(client) = clients.join_next().await {
        begun += client??;
    }
    Ok(begun)
}

/// One `POST` on a connection of its own; the status and the path of the session.
async fn begin(host: SocketAddr, repository: &str, token: &str) -> Result<(u16, String)> {
    begin_on(&mut client::dial(host, client::loopback(0)).await?, host, repository, token).await
}

async fn begin_on(
    stream: &mut TcpStream,
    host: SocketAddr,
    repository: &str,
    token: &str,
) -> Result<(u16, String)> {
    let path = format!("/v2/{repository}/blobs/uploads/");
    let request = client::head("POST", &path, host, &format!("{token}Content-Length: 0\r\n"));
    let begun = client::ask(stream, request.as_bytes()).await?;
    Ok((begun.status, begun.location().to_owned()))
}

/// A `PATCH` with so many zeros.
async fn append(
    stream: &mut TcpStream,
    host: SocketAddr,
    location: &str,
    token: &str,
    bytes: usize,
) -> Result<()> {
    let lines = format!("{token}Content-Type: application/octet-stream\r\nContent-Length: {bytes}\r\n");
    stream.write_all(client::head("PATCH", location, host, &lines).as_bytes()).await?;
    let zeros = vec![0; bytes.min(256 << 10)];
    let mut left = bytes;
    while left > 0 {
        let part = zeros.get(..left.min(zeros.len())).context("some zeros")?;
        stream.write_all(part).await?;
        left -= part.len();
    }
    let begun = client::answer(stream, false).await?;
    client::finish(stream, &begun).await?;
    ensure!(begun.status == 202, "PATCH was answered {}", begun.status);
    Ok(())
}

/// Bytes on the disk of all files below.
fn space(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // A file may go while we look.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { space(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}
