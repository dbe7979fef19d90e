//! The workload "prod": everything at once, in the shares of a production registry.
//!
//! What is anchored in published traces, and what is our assumption, stands in docs/performance.md. 35 % GET of a
//! manifest, 15 % HEAD, 42 % GET of a layer (Zipf; 1 in 20 a range), 8 % pushes (1 in 4 a mount).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::push::{Shape, push};
use super::{Case, Flushes, REGISTRIES, Rounds, Row, at_once};
use crate::client::{Body, Connection};
use crate::content::{self, Blob, MANIFEST};
use crate::plan::Plan;
use crate::sample::Work;
use crate::target::Subject;

const REPOSITORY: &str = "library/prod";
const OTHER: &str = "library/prod-mounts";

const CLIENTS: usize = 8;

/// Layers and images of the registry.
const LAYERS_MAX: usize = 200;
const IMAGES: usize = 40;
const LAYERS_PER_IMAGE: usize = 9;

/// With 200 layers, two of them get 40 % of the requests.
const ZIPF_EXPONENT: f64 = 1.2;

/// Layer sizes in bytes at quantiles, log-uniform between them.
const SIZES: [(f64, f64); 10] = [
    (0.00, 100.0),
    (0.10, 200.0),
    (0.25, 4.0 * KIB),
    (0.50, 200.0 * KIB),
    (0.65, MIB),
    (0.80, 10.0 * MIB),
    (0.90, 40.0 * MIB),
    (0.95, 100.0 * MIB),
    (0.99, 300.0 * MIB),
    (1.00, 2048.0 * MIB),
];
const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;

/// Layers are cut at this part of the large size, so that a round sees many of them.
const LAYER_SHARE: u64 = 16;
/// Those that are pushed in the round at this one: they are hashed before it.
const PUSHED_SHARE: u64 = 128;

/// Blobs that are prepared for the pushes of one round.
const PUSHED_MAX: usize = 200;

/// Length of a range.
const RANGE_BYTES: u64 = 64 << 10;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::new(
        "workload prod",
        vec![Case {
            name: "prod",
            about: "the mix of a production registry, 8 clients",
            subjects: REGISTRIES.to_vec(),
            goals: Vec::new(),
            flushes: Flushes::Uncounted,
            prepare: prod,
        }],
    )]
}

/// The size at a quantile between 0 and 1.
fn size_at(quantile: f64) -> u64 {
    let pairs = SIZES.iter().zip(SIZES.iter().skip(1));
    let size = pairs
        .filter(|((_, _), (to, _))| quantile <= *to)
        .map(|((from, least), (to, most))| {
            let part = (quantile - from) / (to - from);
            (least.ln() + part * (most.ln() - least.ln())).exp()
        })
        .next()
        .unwrap_or(100.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between the sizes of the table"
    )]
    let size = size as u64;
    size
}

/// Sums of the weights of ranks, for drawing one.
fn zipf(count: usize) -> Vec<f64> {
    (1..=count)
        .scan(0.0, |sum, rank| {
            *sum += (rank as f64).powf(-ZIPF_EXPONENT);
            Some(*sum)
        })
        .collect()
}

fn draw(sums: &[f64], random: &mut StdRng) -> usize {
    let point = random.random::<f64>() * sums.last().copied().unwrap_or(0.0);
    sums.partition_point(|sum| *sum < point).min(sums.len().saturating_sub(1))
}

/// A registry that is filled, and what a round pushes.
struct Prod {
    layers: Vec<Blob>,
    manifests: Vec<String>,
    sums: Vec<f64>,
    pushed: Vec<Blob>,
    next_pushed: AtomicUsize,
}

impl Prod {
    fn fill(plan: &Plan, subject: &Subject) -> Result<Self> {
        // The same layers and images in every registry.
        let mut random = content::random(1);
        let layers: Vec<Blob> = (0..LAYERS_MAX.min(plan.items))
            .map(|_| {
                let bytes = size_at(random.random()).min(plan.large_bytes / LAYER_SHARE);
                Blob::seeded(&mut random, bytes)
            })
            .collect();
        let sums = zipf(layers.len());
        let mut clients = subject.clients(1, &[REPOSITORY])?;
        let client = clients.first_mut().context("a client")?;
        for layer in &layers {
            subject.store_blob(client, REPOSITORY, layer)?;
        }
        let mut manifests = Vec::new();
        for number in 0..IMAGES {
            let config = Blob::seeded(&mut random, 8 << 10);
            subject.store_blob(client, REPOSITORY, &config)?;
            let mut picked: Vec<Blob> = Vec::new();
            for _ in 0..LAYERS_PER_IMAGE {
                let layer = layers.get(draw(&sums, &mut random)).context("a layer")?;
                if !picked.contains(layer) {
                    picked.push(layer.clone());
                }
            }
            let manifest = content::manifest(&config, &picked);
            subject.store_manifest(client, REPOSITORY, &format!("v{number}"), &manifest)?;
            manifests.push(format!("/v2/{REPOSITORY}/manifests/v{number}"));
        }
        Ok(Self { layers, manifests, sums, pushed: Vec::new(), next_pushed: AtomicUsize::new(0) })
    }

    /// One operation; returns the bytes that it moved.
    fn step(&self, client: &mut Connection, random: &mut StdRng) -> Result<u64> {
        let layer = self.layers.get(draw(&self.sums, random)).context("a layer")?;
        let manifest =
            self.manifests.get(random.random_range(0..self.manifests.len())).context("a manifest")?;
        let blob = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
        let accept = format!("Accept: {MANIFEST}\r\n");
        Ok(match random.random_range(0..100_u32) {
            0..35 => client.get(manifest, &accept)?.expect(200)?.bytes,
            35..43 => {
                client.request("HEAD", manifest, &accept, Body::None)?.expect(200)?;
                0
            }
            43..50 => {
                client.request("HEAD", &blob, "", Body::None)?.expect(200)?;
                0
            }
            50..92 if layer.bytes > RANGE_BYTES && random.random_ratio(1, 20) => {
                let from = random.random_range(0..layer.bytes - RANGE_BYTES);
                let range = format!("Range: bytes={from}-{}\r\n", from + RANGE_BYTES - 1);
                client.get(&blob, &range)?.expect(206)?.bytes
            }
            50..92 => client.get(&blob, "")?.expect(200)?.bytes,
            92..98 => {
                let index = self.next_pushed.fetch_add(1, Ordering::Relaxed);
                match self.pushed.get(index) {
                    Some(pushed) => {
                        push(client, Shape::Docker, REPOSITORY, pushed)?;
                        pushed.bytes
                    }
                    None => mount(client, layer)?,
                }
            }
            _ => mount(client, layer)?,
        })
    }
}

fn mount(client: &mut Connection, layer: &Blob) -> Result<u64> {
    let path = format!("/v2/{OTHER}/blobs/uploads/?mount={}&from={REPOSITORY}", layer.digest);
    client.request("POST", &path, "", Body::None)?.expect(201)?;
    Ok(0)
}

fn prod<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let mut prod = Prod::fill(plan, subject)?;
    Ok(Box::new(move |round| {
        let mut random = content::random(u64::from(round) + 2);
        let sizes = (0..PUSHED_MAX.min(plan.items)).map(|_| size_at(random.random()));
        prod.pushed = sizes.map(|bytes| Blob::fresh(bytes.min(plan.large_bytes / PUSHED_SHARE))).collect();
        prod.next_pushed = AtomicUsize::new(0);
        let mut clients = subject.clients(CLIENTS, &[REPOSITORY, OTHER])?;
        let prod = &prod;
        subject.measure(|| {
            let until = Instant::now() + plan.round_time;
            at_once(&mut clients, |index, client| {
                let mut random = content::random(u64::from(round) << 8 | index as u64);
                let mut work = Work::default();
                while Instant::now() < until {
                    let started = Instant::now();
                    let bytes = prod.step(client, &mut random)?;
                    work.count(started, bytes);
                }
                Ok(work)
            })
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_meet_the_quantiles_of_the_table() {
        assert_eq!(size_at(0.0), 100);
        assert!((4095..=4096).contains(&size_at(0.25)), "{}", size_at(0.25));
        assert!((1_048_575..=1_048_576).contains(&size_at(0.65)), "{}", size_at(0.65));
        assert!(size_at(0.3) > size_at(0.25) && size_at(0.3) < size_at(0.5));
        assert!(size_at(1.0) > 2_000 << 20);
    }

    #[test]
    fn two_of_two_hundred_layers_get_two_fifths_of_the_requests() {
        let (sums, mut random) = (zipf(200), content::random(5));
        let hot = (0..10_000).filter(|_| draw(&sums, &mut random) < 2).count();
        assert!((3_300..4_800).contains(&hot), "{hot}");
    }
}
