//! L-10: very many pushes at once, large ones and small ones.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use taffrail_tests::images::noise;
use taffrail_tests::server::Options;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

use crate::client;
use crate::plan::Plan;
use crate::row::Row;
use crate::site::{Memory, Site, mib};

const REPOSITORY: &str = "library/pushes";
const NUMBER: &str = "L-10";

/// L-10: memory.
const MEMORY_MAX: u64 = 512 << 20;
/// L-10: flushes of each push, which share them: less than one, and much less where nothing has a file of its own.
const LARGE_FLUSHES_MAX: f64 = 1.0;
const SMALL_FLUSHES_MAX: f64 = 0.2;
/// Length of a small blob, and pushes of such by each client.
const SMALL_BYTES: usize = 4 << 10;
const SMALL_EACH: usize = 20;
/// Bytes at the end of a blob that tell it from the others.
const TAIL_BYTES: usize = 64;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let site = Site::start(plan, Options::default())?;
    let large = push_all(plan, &site, plan.push_bytes, 1)?;
    let small = push_all(plan, &site, SMALL_BYTES, SMALL_EACH)?;
    let mut rows = Vec::new();
    for (pushed, bytes, flushes_max) in
        [(&large, plan.push_bytes, LARGE_FLUSHES_MAX), (&small, SMALL_BYTES, SMALL_FLUSHES_MAX)]
    {
        let what = format!("{} clients, {} pushes of {} KiB", plan.pushes, pushed.count, bytes >> 10);
        rows.extend([
            Row::held(
                NUMBER,
                what.clone(),
                "no error, and what was acknowledged is there",
                format!(
                    "{} of {} answered 201; {:.0} MB/s, {:.0}/s",
                    pushed.good, pushed.count, pushed.mb_per_sec, pushed.per_sec
                ),
                pushed.good == pushed.count,
            ),
            Row::new(
                NUMBER,
                format!("{what}: flushes of each"),
                format!("<= {flushes_max}"),
                format!("{:.3}", pushed.flushes),
                plan.figure(pushed.flushes <= flushes_max),
            ),
            Row::new(
                NUMBER,
                format!("{what}: highest memory"),
                format!("<= {}", mib(MEMORY_MAX)),
                pushed.highest.to_string(),
                plan.figure(pushed.highest.resident <= MEMORY_MAX),
            ),
        ]);
    }
    Ok(rows)
}

/// What became of all pushes.
struct Pushed {
    count: usize,
    good: usize,
    flushes: f64,
    highest: Memory,
    mb_per_sec: f64,
    per_sec: f64,
}

fn push_all(plan: &Plan, site: &Site, bytes: usize, each: usize) -> Result<Pushed> {
    let host = site.host()?;
    let token = site.token(REPOSITORY)?;
    // Beginnings are alike, ends are not: each blob is hashed from where they part.
    let body: Arc<[u8]> = noise(10 + bytes as u64, bytes - TAIL_BYTES).into();
    let begun = Sha256::new_with_prefix(&body);
    let flushes = site.metric("taffrail_store_flushes_total")?;
    let watch = site.watch_memory()?;
    let began = Instant::now();
    let (count, good) = plan.runtime.block_on(async {
        let mut pushes = JoinSet::new();
        for client in 0..plan.pushes {
            let (token, body, begun) = (token.clone(), Arc::clone(&body), begun.clone());
            pushes.spawn(async move {
                for number in 0..each {
                    let mut tail = noise((client * each + number) as u64, TAIL_BYTES);
                    tail.rotate_left(1);
                    let mut hash = begun.clone();
                    hash.update(&tail);
                    let digest = format!("sha256:{}", hex::encode(hash.finalize()));
                    push(host, client, &token, [&body, &tail], &digest).await?;
                }
                anyhow::Ok(each)
            });
        }
        let (mut count, mut good) = (0, 0);
        while let Some(push) = pushes.join_next().await {
            count += each;
            match push? {
                Ok(pushed) => good += pushed,
                Err(error) => taffrail_tests::tools::say(&format!("a push failed: {error:#}")),
            }
        }
        anyhow::Ok((count, good))
    })?;
    let took = began.elapsed().as_secs_f64();
    Ok(Pushed {
        count,
        good,
        flushes: (site.metric("taffrail_store_flushes_total")? - flushes) / count as f64,
        highest: watch.highest()?,
        mb_per_sec: (good * bytes) as f64 / 1e6 / took,
        per_sec: good as f64 / took,
    })
}

/// POST, PUT with the bytes, and a HEAD that finds them.
async fn push(host: SocketAddr, client: usize, token: &str, parts: [&[u8]; 2], digest: &str) -> Result<()> {
    let mut stream = client::dial(host, client::loopback(client / 100)).await?;
    let begin = client::head(
        "POST",
        &format!("/v2/{REPOSITORY}/blobs/uploads/"),
        host,
        &format!("{token}Content-Length: 0\r\n"),
    );
    let begun = client::ask(&mut stream, begin.as_bytes()).await?;
    ensure!(begun.status == 202, "POST was answered {}", begun.status);
    let path = begun.location();
    let joint = if path.contains('?') { '&' } else { '?' };
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let lines = format!("{token}Content-Type: application/octet-stream\r\nContent-Length: {bytes}\r\n");
    stream
        .write_all(client::head("PUT", &format!("{path}{joint}digest={digest}"), host, &lines).as_bytes())
        .await?;
    for part in parts {
        stream.write_all(part).await?;
    }
    let begun = client::answer(&mut stream, false).await?;
    client::finish(&mut stream, &begun).await?;
    ensure!(begun.status == 201, "PUT was answered {}", begun.status);
    let head = client::head("HEAD", &format!("/v2/{REPOSITORY}/blobs/{digest}"), host, token);
    let begun = client::ask(&mut stream, head.as_bytes()).await.context("HEAD")?;
    ensure!(begun.status == 200, "HEAD was answered {}", begun.status);
    Ok(())
}

#[cfg(test)]
mod tests {
    use taffrail_tests::http::sha256;

    use super::*;

    #[test]
    fn hashing_goes_on_where_blobs_part() {
        let mut hash = Sha256::new_with_prefix(b"ab");
        hash.update(b"c");
        assert_eq!(format!("sha256:{}", hex::encode(hash.finalize())), sha256(b"abc"));
    }
}
