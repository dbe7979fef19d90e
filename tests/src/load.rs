//! Eight writers that push, tag, mount and delete at once, each with a [`Ledger`] of what it was promised.
//!
//! The mix is what clients do: small layers mostly, some large enough for a file of their own, layers shared between
//! repositories, uploads in one piece and in chunks, tags that move, manifests and blobs that are deleted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::Method;

use crate::http::{Extra, OCI_MANIFEST, Registry};
use crate::images::{Image, Layer, noise};
use crate::ledger::{Depth, Ledger, Presence, Verdict};
use crate::scene::PUBLIC;

/// Writers at work at once.
pub const WRITERS: usize = 8;

/// Tags per writer: few, so that they move often.
const TAGS: u32 = 6;

/// Layers that all writers share.
const SHARED_LAYERS: u64 = 10;

/// Digests that are offered for mounting; older ones fall out.
const OFFERS_MAX: usize = 64;

/// Whether an answer 5xx is a mistake of the server or what it owes under the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies. Until then every answer must be right.
    Crash,
    /// The disk fails under the process: 5xx is honest.
    Disk,
}

/// What one round of the load did.
#[derive(Debug, Default)]
pub struct Round {
    /// Requests acknowledged in this round.
    pub acknowledged: u64,
    /// Answers that no healthy server gives, each as a sentence.
    pub wrong: Vec<String>,
}

/// The writers, and what they share.
#[derive(Debug)]
pub struct Load {
    seed: u64,
    rounds: u64,
    writers: Vec<Writer>,
    offers: Mutex<Vec<(String, String)>>,
}

#[derive(Debug)]
struct Writer {
    ledger: Ledger,
    registry: Registry,
}

/// Why a writer stopped.
enum Stop {
    /// No answer came: the server is gone, as intended.
    Cut,
    /// An answer came that should not have.
    Wrong(String),
}

impl Load {
    /// Writers on the registry that `connect` gives each of them.
    ///
    /// # Errors
    /// When a client cannot be made.
    pub fn new(seed: u64, connect: impl Fn() -> Result<Registry>) -> Result<Self> {
        let writers = (0..WRITERS)
            .map(|number| {
                Ok(Writer { ledger: Ledger::new(format!("{PUBLIC}/writer-{number}")), registry: connect()? })
            })
            .collect::<Result<_>>()?;
        Ok(Self { seed, rounds: 0, writers, offers: Mutex::default() })
    }

    /// Runs the writers until `strike` has returned and each of them has noticed.
    ///
    /// # Errors
    /// When `strike` fails.
    pub fn round(&mut self, fault: Fault, strike: impl FnOnce() -> Result<()>) -> Result<Round> {
        self.rounds += 1;
        let stop = AtomicBool::new(false);
        let before: u64 = self.writers.iter().map(|writer| writer.ledger.acknowledged).sum();
        let mut wrong = Vec::new();
        let struck = std::thread::scope(|scope| {
            let (stop, offers) = (&stop, &self.offers);
            let (seed, rounds) = (self.seed, self.rounds);
            let handles: Vec<_> = self
                .writers
                .iter_mut()
                .enumerate()
                .map(|(number, writer)| {
                    let own_seed = seed ^ (rounds << 16) ^ (number as u64 + 1);
                    scope.spawn(move || writer.work(StdRng::seed_from_u64(own_seed), fault, offers, stop))
                })
                .collect();
            let struck = strike();
            stop.store(true, Ordering::Relaxed);
            for handle in handles {
                match handle.join() {
                    Ok(None) => {}
                    Ok(Some(sentence)) => wrong.push(sentence),
                    Err(_) => wrong.push("a writer panicked".to_owned()),
                }
            }
            struck
        });
        struck?;
        let after: u64 = self.writers.iter().map(|writer| writer.ledger.acknowledged).sum();
        Ok(Round { acknowledged: after - before, wrong })
    }

    /// Holds every ledger against the server.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn check(&mut self, depth: Depth) -> Result<Verdict> {
        let (seed, rounds) = (self.seed, self.rounds);
        let verdicts = std::thread::scope(|scope| {
            let handles: Vec<_> = self
                .writers
                .iter_mut()
                .map(|writer| {
                    let mut random = StdRng::seed_from_u64(seed ^ rounds);
                    scope.spawn(move || writer.ledger.check(&writer.registry, depth, &mut random))
                })
                .collect();
            handles
                .into_iter()
                .map(|handle| handle.join().map_err(|_| anyhow!("a check panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        let mut all = Verdict::default();
        for verdict in verdicts {
            all.checked += verdict.checked;
            all.broken.extend(verdict.broken);
        }
        Ok(all)
    }
}

impl Writer {
    /// Works until told to stop or cut off. Returns a sentence when the server did something wrong.
    fn work(
        &mut self,
        mut random: StdRng,
        fault: Fault,
        offers: &Mutex<Vec<(String, String)>>,
        stop: &AtomicBool,
    ) -> Option<String> {
        while !stop.load(Ordering::Relaxed) {
            let done = match random.random_range(0..100) {
                0..55 => self.push_image(&mut random, fault, offers),
                55..65 => self.push_loose_blob(&mut random, fault),
                65..72 => self.delete_loose_blob(&mut random, fault),
                72..82 => self.delete_tag(&mut random, fault),
                82..90 => self.delete_manifest(&mut random, fault),
                _ => self.mount(&mut random, fault, offers),
            };
            match done {
                Ok(()) => {}
                Err(Stop::Cut) => return None,
                Err(Stop::Wrong(sentence)) => return Some(sentence),
            }
        }
        None
    }

    fn push_image(
        &mut self,
        random: &mut StdRng,
        fault: Fault,
        offers: &Mutex<Vec<(String, String)>>,
    ) -> Result<(), Stop> {
        let mut layers = vec![Layer { seed: random.random(), bytes: layer_bytes(random) }];
        if random.random_ratio(1, 2) {
            let number = random.random_range(0..SHARED_LAYERS);
            // The shared ones include a few that get a file of their own.
            layers
                .insert(0, Layer { seed: number, bytes: if number < 2 { 3 << 20 } else { 5_000 + number } });
        }
        let image = Image::new("amd64", &layers).map_err(|error| Stop::Wrong(format!("{error:#}")))?;
        for layer in &image.layers {
            let bytes = layer.tar().map_err(|error| Stop::Wrong(format!("{error:#}")))?;
            self.push_blob(random, fault, &bytes)?;
        }
        self.push_blob(random, fault, &image.config)?;
        let (digest, tag) = (image.digest(), format!("t{}", random.random_range(0..TAGS)));
        self.ledger.manifest_begins(&digest, image.blobs(), &tag);
        let path = format!("/v2/{}/manifests/{tag}", self.ledger.repository);
        let extra = Extra::body(OCI_MANIFEST, image.manifest.clone());
        self.ask(fault, &Method::PUT, &path, &extra, &[201])?;
        self.ledger.manifest_stands(&digest, &tag);
        let mut offers = offers.lock().unwrap_or_else(PoisonError::into_inner);
        offers.extend(image.blobs().into_iter().map(|blob| (self.ledger.repository.clone(), blob)));
        let over = offers.len().saturating_sub(OFFERS_MAX);
        offers.drain(..over);
        Ok(())
    }

    /// As clients do: ask first, upload only what is not there.
    fn push_blob(&mut self, random: &mut StdRng, fault: Fault, bytes: &[u8]) -> Result<String, Stop> {
        let digest = crate::http::sha256(bytes);
        let path = format!("/v2/{}/blobs/{digest}", self.ledger.repository);
        let found = self.ask(fault, &Method::HEAD, &path, &Extra::default(), &[200, 404])?;
        if found == 200 {
            return Ok(digest);
        }
        if self.ledger.blob(&digest) == Some(Presence::Present) {
            return Err(Stop::Wrong(format!("{path} is acknowledged, and HEAD answers 404")));
        }
        self.ledger.blob_begins(&digest);
        let repository = self.ledger.repository.clone();
        let pushed = if random.random_ratio(1, 4) {
            self.registry.push_blob_in_chunks(&repository, bytes, bytes.len() / 3 + 1)
        } else {
            self.registry.push_blob(&repository, bytes)
        };
        pushed.map_err(|error| sort(fault, &error))?;
        self.ledger.blob_stands(&digest);
        Ok(digest)
    }

    fn push_loose_blob(&mut self, random: &mut StdRng, fault: Fault) -> Result<(), Stop> {
        let bytes = noise(random.random(), usize::try_from(layer_bytes(random)).unwrap_or(1));
        self.push_blob(random, fault, &bytes).map(|_| ())
    }

    fn delete_loose_blob(&mut self, random: &mut StdRng, fault: Fault) -> Result<(), Stop> {
        let Some(digest) = self.ledger.loose_blob(random) else { return Ok(()) };
        self.ledger.blob_goes(&digest);
        let path = format!("/v2/{}/blobs/{digest}", self.ledger.repository);
        self.ask(fault, &Method::DELETE, &path, &Extra::default(), &[202])?;
        self.ledger.blob_gone(&digest);
        Ok(())
    }

    fn delete_tag(&mut self, random: &mut StdRng, fault: Fault) -> Result<(), Stop> {
        let Some(tag) = self.ledger.any_tag(random) else { return Ok(()) };
        self.ledger.tag_goes(&tag);
        let path = format!("/v2/{}/manifests/{tag}", self.ledger.repository);
        self.ask(fault, &Method::DELETE, &path, &Extra::default(), &[202])?;
        self.ledger.tag_gone(&tag);
        Ok(())
    }

    fn delete_manifest(&mut self, random: &mut StdRng, fault: Fault) -> Result<(), Stop> {
        let Some(digest) = self.ledger.any_manifest(random) else { return Ok(()) };
        self.ledger.manifest_goes(&digest);
        let path = format!("/v2/{}/manifests/{digest}", self.ledger.repository);
        self.ask(fault, &Method::DELETE, &path, &Extra::default(), &[202])?;
        self.ledger.manifest_gone(&digest);
        Ok(())
    }

    fn mount(
        &mut self,
        random: &mut StdRng,
        fault: Fault,
        offers: &Mutex<Vec<(String, String)>>,
    ) -> Result<(), Stop> {
        let offer = {
            let offers = offers.lock().unwrap_or_else(PoisonError::into_inner);
            if offers.is_empty() { None } else { offers.get(random.random_range(0..offers.len())).cloned() }
        };
        let Some((from, digest)) = offer.filter(|(from, _)| *from != self.ledger.repository) else {
            return Ok(());
        };
        self.ledger.blob_begins(&digest);
        let repository = self.ledger.repository.clone();
        if self.registry.mount(&repository, &from, &digest).map_err(|error| sort(fault, &error))? {
            self.ledger.blob_stands(&digest);
        }
        Ok(())
    }

    fn ask(
        &self,
        fault: Fault,
        method: &Method,
        path: &str,
        extra: &Extra,
        statuses: &[u16],
    ) -> Result<u16, Stop> {
        self.registry
            .send(method, &self.ledger.repository, "pull,push,delete", path, extra)
            .and_then(|answer| answer.expect(statuses).with_context(|| format!("{method} {path}")))
            .map(|answer| answer.status)
            .map_err(|error| sort(fault, &error))
    }
}

/// Tells a server that is gone (the purpose of the test) from one that answered wrongly.
fn sort(fault: Fault, error: &anyhow::Error) -> Stop {
    if error.chain().any(|cause| cause.is::<reqwest::Error>()) {
        return Stop::Cut;
    }
    let sentence = format!("{error:#}");
    match fault {
        Fault::Disk if sentence.contains("answered 5") => Stop::Cut,
        Fault::Disk | Fault::Crash => Stop::Wrong(sentence),
    }
}

/// Mostly small, as in real registries; one in ten large enough for a file of its own.
fn layer_bytes(random: &mut StdRng) -> u64 {
    match random.random_range(0..10) {
        0..6 => random.random_range(1..16_384),
        6..9 => random.random_range(16_384..400_000),
        _ => random.random_range(1_100_000..4_000_000),
    }
}
