//! Pulls of blobs: large ones from memory and from the disk, small ones.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;
use rustix::fs::Advice;
use serde_json::Value;
use taffrail_tests::tools;

use super::push::SMALL_BYTES;
use super::{Case, Flushes, Prepare, Rounds, Row, at_once};
use crate::client::{Body, Receive};
use crate::content::{self, Blob};
use crate::goal::{Against, Bound, Figure, Goal};
use crate::plan::Plan;
use crate::sample::{Sample, Work};
use crate::target::{Kind, Subject};

const REPOSITORY: &str = "library/pull";

/// Clients of small pulls.
pub(super) const CLIENTS: usize = 8;

/// nginx both ways: which is the faster depends on the size and the network.
const NGINX: &[Kind] = &[Kind::Nginx, Kind::NginxCopy];

/// Length of one range of a parallel pull.
const RANGE_BYTES: u64 = 8 << 20;

pub(super) fn rows() -> Vec<Row> {
    let case = |name, about, subjects: &[Kind], prepare: Prepare, goals| Case {
        name,
        about,
        subjects: subjects.to_vec(),
        goals,
        flushes: Flushes::Uncounted,
        prepare,
    };
    let against_nginx =
        |figure, bound| Goal { figure, of: Kind::Taffrail, against: Against::Best(NGINX), bound };
    let speed_and_cost = vec![
        against_nginx(Figure::MbPerSec, Bound::AtLeast(1.0)),
        against_nginx(Figure::CpuPerGb, Bound::AtMost(1.0)),
    ];
    let hot = [Kind::Taffrail, Kind::Nginx, Kind::NginxCopy, Kind::Debian, Kind::V3];
    let limit = [Kind::Taffrail, Kind::Nginx, Kind::NginxCopy];
    vec![
        Row::new(
            "pull of a large blob, hot, verified",
            vec![
                case("pull-hot-1", "one large blob, 1 client", &hot, hot_1, speed_and_cost.clone()),
                case("pull-hot-4", "one large blob, 4 clients at once", &hot, hot_4, speed_and_cost),
                case(
                    "pull-hot-discard",
                    "one large blob, 2 clients that let the kernel throw it away",
                    &limit,
                    hot_discard,
                    Vec::new(),
                ),
                case(
                    "pull-hot-ranges",
                    "one large blob, 4 clients with ranges of 8 MiB in turn",
                    &limit,
                    hot_ranges,
                    Vec::new(),
                ),
                // Extra is what came over the loopback for each byte that was used.
                case(
                    "pull-open-ranges",
                    "one large blob, 4 clients that ask for the rest from every 8 MiB on and hang up after 8 MiB",
                    &limit,
                    open_ranges,
                    Vec::new(),
                ),
            ],
        ),
        Row::new(
            "pull of a large blob, cold",
            vec![case(
                "pull-cold",
                "one large blob that left the page cache, 1 client",
                &[Kind::Taffrail, Kind::Fio, Kind::Nginx],
                cold,
                vec![Goal::ratio(Figure::MbPerSec, Kind::Taffrail, Kind::Fio, Bound::AtLeast(0.8))],
            )],
        ),
        Row::new(
            "pull of 4 KiB blobs, with token check",
            vec![case(
                "pull-small",
                "blobs of 4 KiB in random order, 8 clients",
                &[Kind::Taffrail, Kind::Nginx, Kind::NginxCopy, Kind::V3],
                small,
                vec![against_nginx(Figure::OpsPerSec, Bound::AtLeast(0.8))],
            )],
        ),
    ]
}

fn hot_1<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    hot(plan, subject, 1, Receive::Copy)
}

fn hot_4<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    hot(plan, subject, 4, Receive::Copy)
}

fn hot_discard<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    hot(plan, subject, 2, Receive::Discard)
}

/// Stores one large blob and pulls it once, so that what can be in memory is; returns its path.
fn store_large(plan: &Plan, subject: &Subject) -> Result<String> {
    let blob = Blob::fresh(plan.large_bytes);
    let mut clients = subject.clients(1, &[REPOSITORY])?;
    let client = clients.first_mut().context("a client")?;
    subject.store_blob(client, REPOSITORY, &blob)?;
    let path = format!("/v2/{REPOSITORY}/blobs/{}", blob.digest);
    let pulled = client.get(&path, "")?.expect(200)?;
    ensure!(pulled.bytes == blob.bytes, "{} bytes pulled of {}", pulled.bytes, blob.bytes);
    Ok(path)
}

fn hot<'a>(plan: &'a Plan, subject: &'a Subject, streams: usize, receive: Receive) -> Result<Rounds<'a>> {
    let path = store_large(plan, subject)?;
    Ok(Box::new(move |_| {
        let clients = subject.clients(streams, &[REPOSITORY])?;
        let mut clients: Vec<_> = clients.into_iter().map(|client| client.receive(receive)).collect();
        subject.measure(|| {
            let until = Instant::now() + plan.round_time;
            at_once(&mut clients, |_, client| {
                let mut work = Work::default();
                // A whole blob at least, however short the round.
                while work.operations == 0 || Instant::now() < until {
                    let started = Instant::now();
                    let bytes = client.get(&path, "")?.expect(200)?.bytes;
                    work.count(started, bytes);
                }
                Ok(work)
            })
        })
    }))
}

fn hot_ranges<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let path = store_large(plan, subject)?;
    let ranges: Vec<String> = (0..plan.large_bytes)
        .step_by(usize::try_from(RANGE_BYTES)?)
        .map(|from| format!("Range: bytes={from}-{}\r\n", (from + RANGE_BYTES).min(plan.large_bytes) - 1))
        .collect();
    Ok(Box::new(move |_| {
        let mut clients = subject.clients(4, &[REPOSITORY])?;
        let streams = clients.len();
        subject.measure(|| {
            let until = Instant::now() + plan.round_time;
            at_once(&mut clients, |index, client| {
                let mut work = Work::default();
                while work.operations == 0 || Instant::now() < until {
                    for range in ranges.iter().skip(index).step_by(streams) {
                        let started = Instant::now();
                        let bytes = client.get(&path, range)?.expect(206)?.bytes;
                        work.count(started, bytes);
                    }
                    if ranges.len() <= index {
                        break;
                    }
                }
                Ok(work)
            })
        })
    }))
}

/// As containerd pulls a layer in parallel: it asks for `bytes=N-`, takes its part, and closes the connection.
fn open_ranges<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let path = store_large(plan, subject)?;
    let ranges: Vec<String> = (0..plan.large_bytes)
        .step_by(usize::try_from(RANGE_BYTES)?)
        .map(|from| format!("Range: bytes={from}-\r\n"))
        .collect();
    Ok(Box::new(move |_| {
        let mut clients = subject.clients(4, &[REPOSITORY])?;
        let streams = clients.len();
        let before = loopback_bytes()?;
        let sample = subject.measure(|| {
            at_once(&mut clients, |index, client| {
                let mut work = Work::default();
                for range in ranges.iter().skip(index).step_by(streams) {
                    let started = Instant::now();
                    let answer = client.begin("GET", &path, range, Body::None)?.expect(206)?;
                    let bytes = client.take(&answer, RANGE_BYTES)?;
                    work.count(started, bytes);
                }
                Ok(work)
            })
        })?;
        let came = loopback_bytes()? - before;
        Ok(Sample { extra: Some(came as f64 / sample.bytes as f64), ..sample })
    }))
}

/// Bytes that came over the loopback since the machine started, heads of packets and acknowledgements among them.
fn loopback_bytes() -> Result<u64> {
    let devices = std::fs::read_to_string("/proc/net/dev")?;
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("a loopback")?;
    Ok(line.split_whitespace().next().context("a count of bytes")?.parse()?)
}

/// Takes the files below `dir` out of the page cache. What the hypervisor keeps stays out of reach.
fn leave_page_cache(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            leave_page_cache(&path)?;
        } else if path.is_file() {
            let file = std::fs::File::open(&path)?;
            // Only pages that are written can go.
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

fn cold<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    if subject.kind == Kind::Fio {
        let file = subject.dir.join("blob");
        let mut out = std::fs::File::create(&file)?;
        for part in Blob::fresh(plan.large_bytes).parts() {
            out.write_all(part)?;
        }
        out.sync_all()?;
        return Ok(Box::new(move |_| {
            leave_page_cache(&subject.dir)?;
            read_with_fio(&file)
        }));
    }
    let path = store_large(plan, subject)?;
    Ok(Box::new(move |_| {
        let mut clients = subject.clients(1, &[REPOSITORY])?;
        leave_page_cache(&subject.dir)?;
        subject.measure(|| {
            at_once(&mut clients, |_, client| {
                let (mut work, started) = (Work::default(), Instant::now());
                let bytes = client.get(&path, "")?.expect(200)?.bytes;
                work.count(started, bytes);
                Ok(work)
            })
        })
    }))
}

fn read_with_fio(file: &Path) -> Result<Sample> {
    let output = Command::new(tools::find("fio")?)
        .args(["--name=read", "--rw=read", "--direct=1", "--bs=1M", "--iodepth=4", "--ioengine=libaio"])
        .args(["--output-format=json", "--filename"])
        .arg(file)
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
    // Notes may stand before the document.
    let text = String::from_utf8_lossy(&output.stdout);
    let document = text.find('{').and_then(|start| text.get(start..)).context("a document from fio")?;
    let said: Value = serde_json::from_str(document)?;
    let job = said["jobs"].get(0).context("a job of fio")?;
    let number = |value: &Value| value.as_f64().context("a number of fio");
    let bytes = job["read"]["io_bytes"].as_u64().context("a number of fio")?;
    let seconds = number(&job["read"]["runtime"])? / 1e3;
    let percent = number(&job["usr_cpu"])? + number(&job["sys_cpu"])?;
    Ok(Sample {
        seconds,
        operations: 1,
        bytes,
        server_cpu_sec: Some(seconds * percent / 100.0),
        ..Sample::default()
    })
}

fn small<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let blobs = Blob::several(plan.items, SMALL_BYTES);
    let mut clients = subject.clients(CLIENTS, &[REPOSITORY])?;
    at_once(&mut clients, |index, client| {
        for blob in blobs.iter().skip(index).step_by(CLIENTS) {
            subject.store_blob(client, REPOSITORY, blob)?;
        }
        Ok(Work::default())
    })?;
    let paths: Vec<_> = blobs.iter().map(|blob| format!("/v2/{REPOSITORY}/blobs/{}", blob.digest)).collect();
    Ok(Box::new(move |round| read_randomly(plan, subject, &[REPOSITORY], "GET", &paths, "", round)))
}

/// Lets the clients ask for `paths` in an order that is the same for every subject.
pub(super) fn read_randomly(
    plan: &Plan,
    subject: &Subject,
    repositories: &[&str],
    method: &str,
    paths: &[String],
    headers: &str,
    round: u32,
) -> Result<Sample> {
    let mut clients = subject.clients(CLIENTS, repositories)?;
    subject.measure(|| {
        let until = Instant::now() + plan.round_time;
        at_once(&mut clients, |index, client| {
            let mut random = content::random(u64::from(round) << 8 | index as u64);
            let mut work = Work::default();
            while Instant::now() < until {
                let path = paths.get(random.random_range(0..paths.len().max(1))).context("a path")?;
                let started = Instant::now();
                let answer = client.request(method, path, headers, Body::None)?.expect(200)?;
                // A HEAD states a length and moves none of it.
                work.count(started, if method == "GET" { answer.bytes } else { 0 });
            }
            Ok(work)
        })
    })
}
