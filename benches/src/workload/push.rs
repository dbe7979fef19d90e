//! Pushes of blobs, large and small.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{Case, Flushes, Prepare, REGISTRIES, Rounds, Row, at_once};
use crate::client::{Body, Connection, Reuse, with_query};
use crate::content::Blob;
use crate::goal::{Bound, Figure, Goal};
use crate::limits::BareConnection;
use crate::plan::Plan;
use crate::sample::Work;
use crate::target::{Kind, OCTETS, Subject};

const REPOSITORY: &str = "library/push";

/// Length of a small blob.
pub(super) const SMALL_BYTES: u64 = 4096;

/// Small blobs that are prepared for one round of a server: more than it takes in.
const SMALL_COUNT_MAX: usize = 60_000;

/// How a client pushes a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// POST, PATCH with a body in chunks, PUT.
    Docker,
    /// POST, PUT with a body of known length.
    Containerd,
    /// As docker, on a new connection for each request.
    Skopeo,
}

pub(super) fn rows() -> Vec<Row> {
    let large = |name, about, prepare: Prepare, goals| Case {
        name,
        about,
        subjects: vec![Kind::Taffrail, Kind::Receive, Kind::Debian, Kind::V3],
        goals,
        flushes: Flushes::Uncounted,
        prepare,
    };
    let small = |name, about, prepare: Prepare, goals| Case {
        name,
        about,
        subjects: REGISTRIES.to_vec(),
        goals,
        flushes: Flushes::Store,
        prepare,
    };
    let over = |figure, against, bound| Goal::ratio(figure, Kind::Taffrail, against, bound);
    let each_server = vec![
        over(Figure::MbPerSec, Kind::Receive, Bound::AtLeast(0.85)),
        over(Figure::MbPerSec, Kind::Debian, Bound::AtLeast(2.0)),
        over(Figure::MbPerSec, Kind::V3, Bound::AtLeast(1.4)),
        over(Figure::CpuPerGb, Kind::Debian, Bound::AtMost(0.6)),
        over(Figure::CpuPerGb, Kind::V3, Bound::AtMost(0.6)),
    ];
    vec![
        Row::new(
            "push of a large blob, durable",
            vec![
                large("push-large-1", "one large blob: POST, PATCH chunked, PUT", one_stream, each_server),
                large(
                    "push-large-4",
                    "four blobs of a quarter of the size at once: POST, PATCH chunked, PUT",
                    four_streams,
                    vec![over(Figure::MbPerSec, Kind::Receive, Bound::AtLeast(0.80))],
                ),
                large("push-large-containerd", "one large blob: POST, PUT", containerd, Vec::new()),
            ],
        ),
        Row::new(
            "push of 4 KiB blobs over HTTP, durable",
            vec![
                small(
                    "push-small-8",
                    "4 KiB blobs, 8 clients: POST, PATCH chunked, PUT",
                    eight_clients,
                    vec![
                        over(Figure::OpsPerSec, Kind::Debian, Bound::AtLeast(10.0)),
                        over(Figure::OpsPerSec, Kind::V3, Bound::AtLeast(10.0)),
                        Goal::absolute(Figure::FlushesPerOp, Kind::Taffrail, Bound::AtMost(0.5)),
                    ],
                ),
                small(
                    "push-small-1",
                    "4 KiB blobs, 1 client: POST, PATCH chunked, PUT",
                    one_client,
                    vec![Goal::absolute(Figure::FlushesPerOp, Kind::Taffrail, Bound::AtMost(1.0))],
                ),
                small(
                    "push-small-skopeo",
                    "4 KiB blobs, 8 clients, a new connection for each request",
                    skopeo,
                    Vec::new(),
                ),
            ],
        ),
    ]
}

/// Pushes a blob as that client does, and waits for the 201.
pub(super) fn push(client: &mut Connection, shape: Shape, repository: &str, blob: &Blob) -> Result<()> {
    let begun =
        client.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", Body::None)?.expect(202)?;
    finish(client, shape, &begun.location.context("the Location of an upload")?, blob)
}

/// Sends a blob to the upload session at `location`.
pub(super) fn finish(client: &mut Connection, shape: Shape, location: &str, blob: &Blob) -> Result<()> {
    let digest = format!("digest={}", blob.digest);
    match shape {
        Shape::Containerd => {
            client.request("PUT", &with_query(location, &digest), OCTETS, Body::Blob(blob))?.expect(201)?;
        }
        Shape::Docker | Shape::Skopeo => {
            let taken = client.request("PATCH", location, OCTETS, Body::Chunked(blob))?.expect(202)?;
            let location = taken.location.context("the Location of an upload")?;
            client.request("PUT", &with_query(&location, &digest), "", Body::None)?.expect(201)?;
        }
    }
    Ok(())
}

fn one_stream<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    large(plan, subject, 1, Shape::Docker)
}

fn four_streams<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    large(plan, subject, 4, Shape::Docker)
}

fn containerd<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    large(plan, subject, 1, Shape::Containerd)
}

fn large<'a>(plan: &'a Plan, subject: &'a Subject, streams: usize, shape: Shape) -> Result<Rounds<'a>> {
    Ok(Box::new(move |_| {
        let blobs = Blob::several(streams, plan.large_bytes / streams as u64);
        let blob_of = |index: usize| blobs.get(index).context("a blob for each stream");
        if subject.kind == Kind::Receive {
            let mut bare: Vec<_> =
                (0..streams).map(|_| BareConnection::open(&subject.host)).collect::<Result<_>>()?;
            return subject.measure(|| {
                at_once(&mut bare, |index, client| {
                    let (mut work, blob, started) = (Work::default(), blob_of(index)?, Instant::now());
                    client.push(blob)?;
                    work.count(started, blob.bytes);
                    Ok(work)
                })
            });
        }
        let mut clients = subject.clients(streams, &[REPOSITORY])?;
        subject.measure(|| {
            at_once(&mut clients, |index, client| {
                let (mut work, blob, started) = (Work::default(), blob_of(index)?, Instant::now());
                push(client, shape, REPOSITORY, blob)?;
                work.count(started, blob.bytes);
                Ok(work)
            })
        })
    }))
}

fn eight_clients<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    small(plan, subject, 8, Shape::Docker)
}

fn one_client<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    small(plan, subject, 1, Shape::Docker)
}

fn skopeo<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    small(plan, subject, 8, Shape::Skopeo)
}

fn small<'a>(plan: &'a Plan, subject: &'a Subject, clients: usize, shape: Shape) -> Result<Rounds<'a>> {
    let reuse = if shape == Shape::Skopeo { Reuse::Never } else { Reuse::KeepAlive };
    Ok(Box::new(move |_| {
        let blobs = Blob::several(SMALL_COUNT_MAX, SMALL_BYTES);
        let clients = subject.clients(clients, &[REPOSITORY])?;
        let mut clients: Vec<_> = clients.into_iter().map(|client| client.reuse(reuse)).collect();
        let next = AtomicUsize::new(0);
        let before = subject.store_flushes()?;
        let mut sample = subject.measure(|| {
            let until = Instant::now() + plan.round_time;
            at_once(&mut clients, |_, client| {
                let mut work = Work::default();
                while Instant::now() < until {
                    let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let started = Instant::now();
                    push(client, shape, REPOSITORY, blob)?;
                    work.count(started, blob.bytes);
                }
                Ok(work)
            })
        })?;
        sample.flushes = before.zip(subject.store_flushes()?).map(|(before, after)| after - before);
        Ok(sample)
    }))
}
