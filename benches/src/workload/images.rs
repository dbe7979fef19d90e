//! Whole images: many that share a base, pushed and pulled as docker does it.
//!
//! An image has nine layers, five of which it shares with all others, a configuration and a manifest. The sizes are our
//! assumption, after the quantiles in docs/performance.md and without the long tail, which the rows of large blobs have.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::push::{Shape, finish, push};
use super::{Case, Flushes, REGISTRIES, Rounds, Row, at_once};
use crate::client::{Body, Connection};
use crate::content::{self, Blob, MANIFEST};
use crate::goal::{Bound, Figure, Goal};
use crate::plan::Plan;
use crate::sample::Work;
use crate::target::{Kind, Subject};

/// Layers of the base.
const SHARED_BYTES: [u64; 5] = [2 << 20, 600 << 10, 90 << 10, 4 << 10, 200];
/// Layers of each image alone.
const OWN_BYTES: [u64; 4] = [4 << 20, 900 << 10, 120 << 10, 4 << 10];
const CONFIG_BYTES: u64 = 8 << 10;

const BASE: &str = "library/base";
/// Where the images go, in turn.
const REPOSITORIES: [&str; 4] = ["library/app-0", "library/app-1", "library/app-2", "library/app-3"];

/// Clients at work at once.
const CLIENTS: usize = 4;

/// Images that are prepared for one round.
const IMAGES_MAX: usize = 600;

/// Images that a store holds before pulls begin.
const PULLED_IMAGES: usize = 40;

pub(super) fn rows() -> Vec<Row> {
    let case = |name, about, prepare, flushes, least| Case {
        name,
        about,
        subjects: REGISTRIES.to_vec(),
        goals: vec![Goal::ratio(Figure::OpsPerSec, Kind::Taffrail, Kind::V3, Bound::AtLeast(least))],
        flushes,
        prepare,
    };
    vec![Row::new(
        "whole images with shared bases",
        vec![
            case(
                "images-push",
                "images of 9 layers, 5 of them mounted, 4 clients: HEAD, mount or POST, PATCH, PUT, manifest",
                push_images,
                Flushes::All,
                3.5,
            ),
            case(
                "images-pull",
                "images of 9 layers, 4 clients: manifest by tag, configuration, every layer",
                pull_images,
                Flushes::Uncounted,
                2.5,
            ),
        ],
    )]
}

struct Image {
    own: Vec<Blob>,
    config: Blob,
    manifest: Vec<u8>,
}

impl Image {
    fn new(base: &[Blob]) -> Self {
        let own: Vec<Blob> = OWN_BYTES.iter().map(|bytes| Blob::fresh(*bytes)).collect();
        let config = Blob::fresh(CONFIG_BYTES);
        let manifest = content::manifest(&config, &[base, own.as_slice()].concat());
        Self { own, config, manifest }
    }

    /// Pushes it; returns the bytes that had to be sent.
    fn push(&self, client: &mut Connection, repository: &str, tag: &str, base: &[Blob]) -> Result<u64> {
        let mut sent = 0;
        for (blob, is_shared) in base
            .iter()
            .map(|blob| (blob, true))
            .chain(self.own.iter().chain([&self.config]).map(|blob| (blob, false)))
        {
            let path = format!("/v2/{repository}/blobs/{}", blob.digest);
            if client.request("HEAD", &path, "", Body::None)?.status == 200 {
                continue;
            }
            if is_shared {
                let path = format!("/v2/{repository}/blobs/uploads/?mount={}&from={BASE}", blob.digest);
                let answer = client.request("POST", &path, "", Body::None)?;
                if answer.status != 201 {
                    let location = answer.expect(202)?.location.context("the Location of an upload")?;
                    finish(client, Shape::Docker, &location, blob)?;
                    sent += blob.bytes;
                }
            } else {
                push(client, Shape::Docker, repository, blob)?;
                sent += blob.bytes;
            }
        }
        let header = format!("Content-Type: {MANIFEST}\r\n");
        let path = format!("/v2/{repository}/manifests/{tag}");
        client.request("PUT", &path, &header, Body::Bytes(&self.manifest))?.expect(201)?;
        Ok(sent)
    }
}

fn all_repositories() -> Vec<&'static str> {
    [&[BASE], REPOSITORIES.as_slice()].concat()
}

fn store_base(subject: &Subject) -> Result<Vec<Blob>> {
    let base: Vec<Blob> = SHARED_BYTES.iter().map(|bytes| Blob::fresh(*bytes)).collect();
    let mut clients = subject.clients(1, &[BASE])?;
    let client = clients.first_mut().context("a client")?;
    for blob in &base {
        subject.store_blob(client, BASE, blob)?;
    }
    Ok(base)
}

fn push_images<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let base = store_base(subject)?;
    // Servers that keep up with more images than these end their round early.
    let count = IMAGES_MAX.min(plan.items);
    Ok(Box::new(move |round| {
        let images: Vec<Image> = (0..count).map(|_| Image::new(&base)).collect();
        let mut clients = subject.clients(CLIENTS, &all_repositories())?;
        let next = AtomicUsize::new(0);
        subject.measure(|| {
            let until = Instant::now() + plan.round_time;
            at_once(&mut clients, |_, client| {
                let mut work = Work::default();
                while Instant::now() < until {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(image) = images.get(index) else { break };
                    let repository = REPOSITORIES.get(index % REPOSITORIES.len()).copied().unwrap_or(BASE);
                    let started = Instant::now();
                    let sent = image.push(client, repository, &format!("v{round}-{index}"), &base)?;
                    work.count(started, sent);
                }
                Ok(work)
            })
        })
    }))
}

fn pull_images<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let base = store_base(subject)?;
    let mut clients = subject.clients(1, &all_repositories())?;
    let client = clients.first_mut().context("a client")?;
    let mut images = Vec::new();
    for index in 0..PULLED_IMAGES.min(plan.items) {
        let image = Image::new(&base);
        let repository = REPOSITORIES.get(index % REPOSITORIES.len()).copied().unwrap_or(BASE);
        let tag = format!("v{index}");
        image.push(client, repository, &tag, &base)?;
        let blobs = base.iter().chain(&image.own).chain([&image.config]);
        let paths: Vec<_> = blobs.map(|blob| format!("/v2/{repository}/blobs/{}", blob.digest)).collect();
        images.push((format!("/v2/{repository}/manifests/{tag}"), paths));
    }
    let accept = format!("Accept: {MANIFEST}\r\n");
    Ok(Box::new(move |_| {
        let mut clients = subject.clients(CLIENTS, &all_repositories())?;
        let next = AtomicUsize::new(0);
        subject.measure(|| {
            let until = Instant::now() + plan.round_time;
            at_once(&mut clients, |_, client| {
                let mut work = Work::default();
                while Instant::now() < until {
                    let index = next.fetch_add(1, Ordering::Relaxed) % images.len().max(1);
                    let (manifest, paths) = images.get(index).context("an image")?;
                    let started = Instant::now();
                    let mut bytes = client.get(manifest, &accept)?.expect(200)?.bytes;
                    for path in paths {
                        bytes += client.get(path, "")?.expect(200)?.bytes;
                    }
                    work.count(started, bytes);
                }
                Ok(work)
            })
        })
    }))
}
