//! L-19: a server that may open few files, and more clients than that.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use taffrail_tests::http::sha256;
use taffrail_tests::images::noise;
use taffrail_tests::server::Options;
use taffrail_tests::usage;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::client;
use crate::plan::Plan;
use crate::row::Row;
use crate::site::{Site, until};

const REPOSITORY: &str = "library/files";
const NUMBER: &str = "L-19";

/// What the server may open.
const FILES: usize = 256;
/// Connections that are tried.
const CONNECTIONS: usize = 400;
/// Uploads at once, each with a file of its own: more than there are files beside the connections.
const UPLOADS: usize = 150;
/// Past the mebibyte from which on an upload has a file.
const UPLOAD_BYTES: usize = 1_500_000;
/// L-19: a processor's share while nothing is asked.
const BUSY_MAX: f64 = 0.05;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let wrapper = ["sh", "-c", &format!("ulimit -n {FILES}; exec \"$0\" \"$@\"")].map(str::to_owned).to_vec();
    let site = Site::start(plan, Options { wrapper, ..Options::default() })?;
    let host = site.host()?;
    let kept = site.push_noise(REPOSITORY, 19, 2_000_000)?;
    let token = site.token(REPOSITORY)?;
    let health = client::head("GET", "/healthz", host, "");

    let mut open: Vec<TcpStream> = Vec::new();
    let mut refused = 0;
    for index in 0..CONNECTIONS {
        let answered = plan.runtime.block_on(async {
            let mut stream = client::dial(host, client::loopback(index % 8)).await?;
            let begun = client::ask(&mut stream, health.as_bytes()).await?;
            ensure!(begun.status == 200, "answered {}", begun.status);
            Ok(stream)
        });
        match answered {
            Ok(stream) => open.push(stream),
            Err(_) => refused += 1,
        }
    }
    let (cpu, began) = (usage::processor_time(site.pid()?)?, Instant::now());
    std::thread::sleep(plan.rest);
    let busy = (usage::processor_time(site.pid()?)? - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    let let_in = open.len();

    // Those that are in push, all at once, and each upload is to have a file.
    let pushes: Vec<_> = open.drain(..).take(UPLOADS).enumerate().collect();
    let pushed: Vec<Result<u16>> = plan
        .runtime
        .block_on(join_all(pushes.into_iter().map(|(index, stream)| push(host, stream, index, &token))));
    let statuses = |wanted: fn(u16) -> bool| {
        pushed.iter().filter(|status| status.as_ref().is_ok_and(|status| wanted(*status))).count()
    };
    let (good, unavailable) = (statuses(|status| status == 201), statuses(|status| status == 503));
    let odd: Vec<String> = pushed
        .iter()
        .filter_map(|status| match status {
            Ok(201 | 503) => None,
            Ok(status) => Some(status.to_string()),
            Err(error) => Some(format!("{error:#}")),
        })
        .collect();

    // Everybody has left: it is as if nothing had been.
    let pull = client::head("GET", &kept, host, &token);
    let served = until("a pull is served again", Duration::from_secs(10), || {
        let pulled = plan.runtime.block_on(client::ask_anew(host, client::loopback(9), pull.as_bytes(), 200));
        Ok(pulled.is_ok())
    })?;
    let pushes_again = site.push_noise(REPOSITORY, 20, 2_000_000);
    let writable = site.metric("taffrail_store_writable")?;
    let accept_errors = site.metric("taffrail_accept_errors_total")?;
    Ok(vec![
        Row::held(
            NUMBER,
            format!("{FILES} files, {CONNECTIONS} connections"),
            "some let in, the others refused, none hangs",
            format!("{let_in} in, {refused} refused; accept failed {accept_errors} times"),
            let_in > 0 && let_in + refused == CONNECTIONS && let_in < FILES,
        ),
        Row::new(
            NUMBER,
            "processor time with all of them idle",
            format!("< {BUSY_MAX} of one"),
            format!("{busy:.3}"),
            plan.figure(busy < BUSY_MAX),
        ),
        Row::held(
            NUMBER,
            format!("{UPLOADS} of them push {UPLOAD_BYTES} bytes at once"),
            "201 or 503, and the store lives",
            format!("{good} answered 201, {unavailable} 503; others: {odd:?}; writable {writable}"),
            odd.is_empty() && good > 0 && writable > 0.5,
        ),
        Row::held(
            NUMBER,
            "when they are gone",
            "pulls and pushes as before",
            match &pushes_again {
                Ok(_) => format!("a pull after {served:.1?}, then a push"),
                Err(error) => format!("{error:#}"),
            },
            pushes_again.is_ok(),
        ),
    ])
}

/// Pushes a blob in one request; gives the status.
async fn push(host: SocketAddr, mut stream: TcpStream, index: usize, token: &str) -> Result<u16> {
    let body = noise(1_000 + index as u64, UPLOAD_BYTES);
    let path = format!("/v2/{REPOSITORY}/blobs/uploads/?digest={}", sha256(&body));
    let lines =
        format!("{token}Content-Type: application/octet-stream\r\nContent-Length: {UPLOAD_BYTES}\r\n");
    stream.write_all(client::head("POST", &path, host, &lines).as_bytes()).await?;
    // Half of it, until all have come so far: then each holds its file.
    let (half, rest) = body.split_at(UPLOAD_BYTES - 100_000);
    // A refusal may come before all is sent.
    let sent = stream.write_all(half).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sent = sent.and(stream.write_all(rest).await);
    match client::answer(&mut stream, false).await {
        Ok(begun) => Ok(begun.status),
        Err(error) => Err(error.context(format!("{sent:?}"))),
    }
}
