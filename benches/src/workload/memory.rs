//! Memory: at rest, with very many idle connections, under very many pulls.

use std::net::{Ipv4Addr, TcpStream};
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{Case, Flushes, Prepare, REGISTRIES, Rounds, Row, at_once};
use crate::client::{self, Body};
use crate::content::Blob;
use crate::goal::{Bound, Figure, Goal};
use crate::plan::Plan;
use crate::sample::{Sample, Work};
use crate::target::{Kind, Subject};

const REPOSITORY: &str = "library/memory";

/// Connections of one address: a server may allow about a thousand.
const CONNECTIONS_PER_ADDRESS: usize = 1_000;

/// The part of a large blob that each of very many clients pulls.
const SHARE: u64 = 128;

pub(super) fn rows() -> Vec<Row> {
    let case = |name, about, prepare: Prepare, most_mib: Option<f64>| Case {
        name,
        about,
        subjects: REGISTRIES.to_vec(),
        goals: most_mib
            .map(|most| Goal::absolute(Figure::MemoryMib, Kind::Taffrail, Bound::AtMost(most)))
            .into_iter()
            .collect(),
        flushes: Flushes::Uncounted,
        prepare,
    };
    vec![Row::new(
        "idle memory; 10,000 idle connections; 1,000 concurrent pulls",
        vec![
            case("memory-idle", "private memory after a first start and a rest", idle, Some(40.0)),
            case(
                "memory-after-load",
                "private memory after a large blob was pushed and pulled, and a rest",
                after_load,
                None,
            ),
            case(
                "memory-connections",
                "private memory with idle connections, each of which was used once",
                connections,
                Some(150.0),
            ),
            case(
                "memory-pulls",
                "highest private memory while all pull at once, each its part",
                pulls,
                Some(512.0),
            ),
        ],
    )]
}

fn idle<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    Ok(Box::new(move |_| {
        subject.measure(|| {
            std::thread::sleep(plan.rest);
            Ok(Work::default())
        })
    }))
}

fn after_load<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    Ok(Box::new(move |_| {
        let blob = Blob::fresh(plan.large_bytes);
        let mut clients = subject.clients(1, &[REPOSITORY])?;
        let client = clients.first_mut().context("a client")?;
        subject.store_blob(client, REPOSITORY, &blob)?;
        client.get(&format!("/v2/{REPOSITORY}/blobs/{}", blob.digest), "")?.expect(200)?;
        std::thread::sleep(plan.rest);
        subject.measure(|| Ok(Work::default()))
    }))
}

/// The `number`th loopback address; the first is left to everybody else.
fn loopback(number: usize) -> Result<Ipv4Addr> {
    let [high, low] = u16::try_from(number + 2)?.to_be_bytes();
    Ok(Ipv4Addr::new(127, 0, high, low))
}

fn connections<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    Ok(Box::new(move |_| {
        let request = format!("GET /v2/ HTTP/1.1\r\nHost: {}\r\n\r\n", subject.host);
        let mut buffer = vec![0; 64 << 10];
        let mut open: Vec<TcpStream> = Vec::with_capacity(plan.idle_connections);
        let mut at_rest_kib = None;
        let sample = subject.measure(|| {
            let mut work = Work::default();
            for number in 0..plan.idle_connections {
                let started = Instant::now();
                let mut socket =
                    client::dial_from(loopback(number / CONNECTIONS_PER_ADDRESS)?, &subject.host)?;
                client::ask(&mut socket, request.as_bytes(), &mut buffer)?;
                open.push(socket);
                work.count(started, 0);
            }
            std::thread::sleep(plan.rest);
            at_rest_kib = Some(subject.processes()?.memory_kib()?);
            // Connections that were closed meanwhile would make this cheap.
            for socket in &mut open {
                client::ask(socket, request.as_bytes(), &mut buffer)?;
            }
            Ok(work)
        })?;
        Ok(Sample { memory_kib: at_rest_kib, ..sample })
    }))
}

fn pulls<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let blob = Blob::fresh(plan.large_bytes / SHARE);
    let mut clients = subject.clients(1, &[REPOSITORY])?;
    subject.store_blob(clients.first_mut().context("a client")?, REPOSITORY, &blob)?;
    let path = format!("/v2/{REPOSITORY}/blobs/{}", blob.digest);
    Ok(Box::new(move |_| {
        let clients = subject.clients(plan.concurrent_pulls, &[REPOSITORY])?;
        let mut clients: Vec<_> = clients.into_iter().map(|client| client.buffer_bytes(0)).collect();
        subject.measure(|| {
            let started = Instant::now();
            // Every answer has begun before the first is taken.
            for client in &mut clients {
                client.begin("GET", &path, "", Body::None)?.expect(200)?;
            }
            at_once(&mut clients, |_, client| {
                let mut work = Work::default();
                client.finish()?;
                work.count(started, blob.bytes);
                Ok(work)
            })
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_go_on_past_the_last_byte() {
        assert_eq!(loopback(0).unwrap(), Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(loopback(254).unwrap(), Ipv4Addr::new(127, 0, 1, 0));
    }
}
