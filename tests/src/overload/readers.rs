//! L-05: clients that ask for a large blob and then take nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use taffrail_tests::server::Options;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::client;
use crate::plan::Plan;
use crate::row::Row;
use crate::site::{Site, mib, until};

const REPOSITORY: &str = "library/stalled";
const NUMBER: &str = "L-05";

/// Connections of one address: the server allows 1,024.
const PER_ADDRESS: usize = 1_000;
/// L-05: what one may take.
const BYTES_EACH_MAX: u64 = 256 << 10;
/// How much later than its time a reader may be cut.
const LATE_MAX: Duration = Duration::from_secs(2);
/// Readers that are slow and take something all the same.
const PATIENT: usize = 10;
/// What these take at once. A socket counts as taking something once a third of its buffer is free, which is some mebibytes long on
/// the loopback.
const SIP_BYTES: usize = 2 << 20;
/// How often they do within the time that a reader has.
const SIPS: u32 = 4;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let count = plan.slow_readers;
    let what = format!("{count} readers that take nothing of {}", mib(plan.slow_blob_bytes as u64));
    if let Some(why) = plan.too_many(count) {
        return Ok(vec![Row::skipped(NUMBER, what, why)]);
    }
    let stall = Duration::from_secs(plan.stall_secs);
    let site = Site::start(plan, Options::default().key("limits", "write_stall_secs", plan.stall_secs))?;
    let host = site.host()?;
    let path = site.push_noise(REPOSITORY, 5, plan.slow_blob_bytes)?;
    let request = client::head("GET", &path, host, &site.token(REPOSITORY)?);
    // One pull by itself, so that what the first one costs is not counted for each.
    plan.runtime.block_on(client::ask_anew(host, client::loopback(90), request.as_bytes(), 200))?;
    let before = site.memory()?;
    let watch = site.watch_memory()?;
    let began = Instant::now();
    let open = plan.runtime.block_on(try_join_all((0..count).map(|index| begin(host, index, &request))))?;
    let sips: Vec<_> = (0..PATIENT).map(|_| plan.runtime.spawn(sip(host, request.clone(), stall))).collect();
    let all_begun = began.elapsed();
    let stalls = "taffrail_connections_timed_out_total{reason=\"write_stall\"}";
    until("every reader that takes nothing is cut", stall + Duration::from_secs(30), || {
        Ok(site.metric(stalls)? >= count as f64)
    })?;
    let all_cut = began.elapsed();
    drop(open);
    let highest = watch.highest()?;
    let mut patient = 0;
    for task in sips {
        plan.runtime.block_on(task)??;
        patient += 1;
    }
    let cut = site.metric(stalls)?;
    let each = highest.resident.saturating_sub(before.resident) / count as u64;
    let latest = all_cut.saturating_sub(all_begun);
    Ok(vec![
        Row::held(
            NUMBER,
            what,
            "each cut, and no other",
            format!("{cut} cut; {patient} of {PATIENT} that take a little live"),
            (cut - count as f64).abs() < 0.5 && patient == PATIENT,
        ),
        Row::new(
            NUMBER,
            "the last of them, after all had begun",
            format!("<= {:?}", stall + LATE_MAX),
            format!("{latest:.2?}"),
            plan.figure(latest <= stall + LATE_MAX),
        ),
        Row::new(
            NUMBER,
            "memory of each",
            format!("<= {} KiB", BYTES_EACH_MAX >> 10),
            format!("{} KiB ({before} before, {highest} at most)", each >> 10),
            plan.figure(each <= BYTES_EACH_MAX),
        ),
    ])
}

/// Asks for the blob and reads the head of the answer only.
async fn begin(host: SocketAddr, index: usize, request: &str) -> Result<TcpStream> {
    let mut stream = client::dial_narrow(host, client::loopback(index / PER_ADDRESS)).await?;
    stream.write_all(request.as_bytes()).await?;
    let begun = client::answer(&mut stream, false).await?;
    ensure!(begun.status == 200, "answered {}", begun.status);
    Ok(stream)
}

/// Takes a little now and then, for longer than a reader may take nothing.
async fn sip(host: SocketAddr, request: String, stall: Duration) -> Result<()> {
    let mut stream = client::dial_narrow(host, client::loopback(91)).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = vec![0; SIP_BYTES];
    for _ in 0..SIPS * 3 / 2 {
        stream.read_exact(&mut buffer).await?;
        sleep(stall / SIPS).await;
    }
    stream.read_exact(&mut buffer).await?;
    Ok(())
}
