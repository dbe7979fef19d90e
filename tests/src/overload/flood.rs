//! L-08: one address opens connections without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use taffrail_tests::server::Options;
use tokio::io::AsyncWriteExt as _;

use crate::client::{self, ms, quantile};
use crate::plan::Plan;
use crate::row::Row;
use crate::site::Site;

const NUMBER: &str = "L-08";

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let what = format!("{} connects from one address", plan.flood);
    if let Some(why) = plan.too_many(plan.per_address) {
        return Ok(vec![Row::skipped(NUMBER, what, why)]);
    }
    let site =
        Site::start(plan, Options::default().key("limits", "connections_per_ip_max", plan.per_address))?;
    let host = site.host()?;
    let request = client::head("GET", "/healthz", host, "");
    let ended = Arc::new(AtomicBool::new(false));
    let (let_in, refused, silent, mut times) = plan.runtime.block_on(async {
        let (theirs, good) = (Arc::clone(&ended), request.clone());
        let others = tokio::spawn(async move {
            let mut times = Vec::new();
            while !theirs.load(Ordering::Relaxed) {
                let began = Instant::now();
                // A new connection each time: an old one shows nothing of the gate.
                let from = client::loopback(100 + times.len() % 50);
                client::ask_anew(host, from, good.as_bytes(), 200).await?;
                times.push(began.elapsed());
            }
            anyhow::Ok(times)
        });
        let (mut open, mut refused, mut silent) = (Vec::new(), 0, 0);
        for _ in 0..plan.flood {
            let mut stream = client::dial(host, client::loopback(0)).await?;
            let _ = stream.write_all(request.as_bytes()).await;
            match client::answer(&mut stream, false).await {
                Ok(begun) if begun.status == 200 => open.push((stream, begun)),
                Ok(begun) if begun.status == 503 => refused += 1,
                Ok(begun) => anyhow::bail!("answered {}", begun.status),
                // Reset, because our request was not read.
                Err(_) => silent += 1,
            }
        }
        ended.store(true, Ordering::Relaxed);
        let times = others.await??;
        // All that were let in are still served.
        for (stream, begun) in &mut open {
            client::finish(stream, begun).await?;
            let begun = client::ask(stream, request.as_bytes()).await?;
            ensure!(begun.status == 200, "answered {}", begun.status);
        }
        let let_in = open.len();
        drop(open);
        anyhow::Ok((let_in, refused, silent, times))
    })?;
    let counted = site.metric("taffrail_connections_refused_total{reason=\"address\"}")?;
    let again = plan.runtime.block_on(async {
        // Their room is given back once the server has seen that they are gone.
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let asked = client::ask_anew(host, client::loopback(0), request.as_bytes(), 200).await;
            if asked.is_ok() || Instant::now() > until {
                return asked.is_ok();
            }
        }
    });
    let p99 = quantile(&mut times, 0.99);
    Ok(vec![
        Row::held(
            NUMBER,
            what,
            format!("{} let in, all others refused and counted", plan.per_address),
            format!("{let_in} let in, {refused} answered 503, {silent} ended; {counted} counted"),
            let_in == plan.per_address
                && let_in + refused + silent == plan.flood
                && (counted - (refused + silent) as f64).abs() < 0.5,
        ),
        Row::held(
            NUMBER,
            "others meanwhile, each on a new connection",
            "all answered 200",
            format!("{} answered, p99 {}", times.len(), ms(p99)),
            !times.is_empty(),
        ),
        Row::held(
            NUMBER,
            "the address afterwards",
            "let in again",
            if again { "let in" } else { "refused" },
            again,
        ),
    ])
}
