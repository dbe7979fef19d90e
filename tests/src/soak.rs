//! Clients that push, mount, pull, move tags and delete the same few images in the same few repositories, and what they may rely on.
//!
//! - An image whose manifest was answered 201 is there, with all its blobs, until somebody begins to delete it. A deletion that was
//!   under way at any time of the push leaves it open, until the next push.
//! - A blob that a client was told of (HEAD 200, or 201 to its upload or mount) is there for one lease time: the manifest that needs
//!   it is not refused for it. The time counts from before the first request, so that the client's clock is never ahead.
//! - A tag that one client alone moves names what it was last moved to, as long as that image is there.
//!
//! Whatever contradicts is a sentence in [`Tally::broken`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::Method;

use crate::http::{Answer, Extra, OCI_MANIFEST, Registry, sha256};
use crate::images::{Image, Layer, noise};
use crate::scene::PUBLIC;

/// Repositories that all clients share: few, so that clients meet.
pub const REPOSITORIES: usize = 4;

/// Images, the same ones in every repository: few, so that they come and go.
pub const IMAGES: usize = 20;

/// Layers of which images are made; [`LARGE_LAYERS`] of them get a file of their own.
const LAYERS: u64 = 14;
const LARGE_LAYERS: u64 = 2;

/// Tags of a client in each repository.
const TAGS: u64 = 3;

const PUSH: &str = "pull,push";

/// An image, ready to be pushed.
#[derive(Debug)]
struct Ready {
    blobs: Vec<(String, Vec<u8>)>,
    manifest: Vec<u8>,
    digest: String,
}

/// What is known of an image in a repository.
#[derive(Debug, Default, Clone, Copy)]
struct Standing {
    /// Somebody was answered 201, and no deletion came near it.
    promised: bool,
    /// Deletions that are under way.
    deleting: u32,
    /// Changes with every beginning and end of a deletion.
    epoch: u64,
}

/// What was done. Each is an answer that was judged.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests that were answered.
    pub events: AtomicU64,
    /// Images pushed.
    pub pushes: AtomicU64,
    /// Blobs that were not sent, because the registry had them.
    pub spared: AtomicU64,
    /// Blobs mounted.
    pub mounts: AtomicU64,
    /// Images pulled whole, and verified.
    pub pulls: AtomicU64,
    /// Tags moved.
    pub moves: AtomicU64,
    /// Images deleted.
    pub deletions: AtomicU64,
    /// Pushes that took longer than a lease and met a missing blob: the client starts again.
    pub late: AtomicU64,
    /// Images that were gone or going when they were pulled.
    pub gone: AtomicU64,
    /// Promises that were broken.
    broken: Mutex<Vec<String>>,
}

impl Tally {
    /// The broken promises.
    pub fn broken(&self) -> Vec<String> {
        locked(&self.broken).clone()
    }

    fn count(&self, counter: impl Fn(&Tally) -> &AtomicU64) {
        counter(self).fetch_add(1, Ordering::Relaxed);
    }

    fn break_promise(&self, sentence: String) {
        locked(&self.broken).push(sentence);
    }
}

/// The images, and what is known of each in each repository.
#[derive(Debug)]
pub struct Soak {
    images: Vec<Ready>,
    standing: Vec<Vec<Mutex<Standing>>>,
    lease: Duration,
    /// What was done so far.
    pub tally: Tally,
}

impl Soak {
    /// Makes the images. `lease` is the server's.
    ///
    /// # Errors
    /// When an image cannot be made.
    pub fn new(seed: u64, lease: Duration) -> Result<Soak> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut images: Vec<Ready> = Vec::new();
        while images.len() < IMAGES {
            let layers: Vec<Layer> = (0..random.random_range(1..4)).map(|_| layer(&mut random)).collect();
            let image = Image::new("amd64", &layers)?;
            // Of two that are alike, who deletes the one deletes the other, and nobody would know.
            if images.iter().any(|ready| ready.digest == image.digest()) {
                continue;
            }
            let mut blobs = vec![(sha256(&image.config), image.config.clone())];
            for layer in &image.layers {
                let bytes = layer.tar()?;
                blobs.push((sha256(&bytes), bytes));
            }
            images.push(Ready { blobs, digest: image.digest(), manifest: image.manifest });
        }
        let standing = (0..REPOSITORIES).map(|_| (0..IMAGES).map(|_| Mutex::default()).collect()).collect();
        Ok(Soak { images, standing, lease, tally: Tally::default() })
    }

    /// Works until `events` requests were answered in all, or a promise was broken.
    ///
    /// # Errors
    /// When the server does not answer, or answers what no healthy server does.
    pub fn work(&self, number: u64, seed: u64, registry: &Registry, events: u64) -> Result<()> {
        let mut client = Client {
            soak: self,
            registry,
            number,
            random: StdRng::seed_from_u64(seed ^ number << 32),
            tags: BTreeMap::new(),
        };
        while self.tally.events.load(Ordering::Relaxed) < events && locked(&self.tally.broken).is_empty() {
            match client.random.random_range(0..100) {
                0..34 => client.push()?,
                34..58 => client.pull()?,
                58..70 => client.pull_tag()?,
                70..90 => client.delete()?,
                90..95 => client.delete_tag()?,
                _ => client.loose_blob()?,
            }
        }
        Ok(())
    }

    /// Deletes the images whose number `goes` names, in every repository.
    ///
    /// # Errors
    /// When the server does not answer, or answers neither 202 nor 404.
    pub fn delete_all(&self, registry: &Registry, goes: impl Fn(usize) -> bool) -> Result<()> {
        for repository in 0..REPOSITORIES {
            for image in (0..IMAGES).filter(|image| goes(*image)) {
                let name = name(repository);
                registry.delete_manifest(&name, &self.images[image].digest)?.expect(&[202, 404])?;
            }
        }
        Ok(())
    }

    fn standing(&self, repository: usize, image: usize) -> MutexGuard<'_, Standing> {
        locked(&self.standing[repository][image])
    }

    /// Whether the image was promised all the time since `before` was looked at.
    fn stood(&self, repository: usize, image: usize, before: Standing) -> bool {
        before.promised && self.standing(repository, image).epoch == before.epoch
    }
}

fn name(repository: usize) -> String {
    format!("{PUBLIC}/soak-{repository}")
}

/// Small ones lie in the log, and are most of all there are.
fn layer(random: &mut StdRng) -> Layer {
    let seed = random.random_range(0..LAYERS);
    Layer { seed, bytes: if seed < LARGE_LAYERS { 1_200_000 } else { 2_000 + seed * 3_000 } }
}

struct Client<'a> {
    soak: &'a Soak,
    registry: &'a Registry,
    number: u64,
    random: StdRng,
    /// What each tag of this client names, and the image's epoch then.
    tags: BTreeMap<(usize, String), (usize, u64)>,
}

impl Client<'_> {
    fn somewhere(&mut self) -> (usize, usize) {
        (self.random.random_range(0..REPOSITORIES), self.random.random_range(0..IMAGES))
    }

    fn tag(&mut self) -> String {
        format!("c{}-{}", self.number, self.random.random_range(0..TAGS))
    }

    fn send(
        &self,
        method: &Method,
        repository: &str,
        actions: &str,
        path: &str,
        extra: &Extra,
    ) -> Result<Answer> {
        self.soak.tally.count(|tally| &tally.events);
        self.registry.send(method, repository, actions, path, extra)
    }

    /// Pushes an image under a tag as clients do: asks for each blob, mounts or sends what is not there, then the manifest.
    fn push(&mut self) -> Result<()> {
        let ((repository, image), tag) = (self.somewhere(), self.tag());
        let before = *self.soak.standing(repository, image);
        let since = Instant::now();
        let ready = &self.soak.images[image];
        let name = name(repository);
        for (digest, bytes) in &ready.blobs {
            self.bring_blob(repository, image, digest, bytes)?;
        }
        let path = format!("/v2/{name}/manifests/{tag}");
        self.tags.remove(&(repository, tag.clone()));
        let extra = Extra::body(OCI_MANIFEST, ready.manifest.clone());
        let answer = self.send(&Method::PUT, &name, PUSH, &path, &extra)?;
        let tally = &self.soak.tally;
        if answer.status == 404 || answer.status == 400 {
            let took = since.elapsed();
            if took < self.soak.lease {
                tally.break_promise(format!(
                    "{path} answered {} {took:?} after its blobs: {}",
                    answer.status,
                    answer.text()
                ));
            }
            tally.count(|tally| &tally.late);
            return Ok(());
        }
        answer.expect(&[201]).with_context(|| path.clone())?;
        tally.count(|tally| &tally.pushes);
        let mut standing = self.soak.standing(repository, image);
        if before.deleting == 0 && standing.epoch == before.epoch {
            standing.promised = true;
            self.tags.insert((repository, tag), (image, standing.epoch));
            tally.count(|tally| &tally.moves);
        }
        Ok(())
    }

    fn bring_blob(&mut self, repository: usize, image: usize, digest: &str, bytes: &[u8]) -> Result<()> {
        let name = name(repository);
        let path = format!("/v2/{name}/blobs/{digest}");
        let found = self.send(&Method::HEAD, &name, PUSH, &path, &Extra::default())?.expect(&[200, 404])?;
        let tally = &self.soak.tally;
        if found.status == 200 {
            tally.count(|tally| &tally.spared);
            return Ok(());
        }
        let from = self.random.random_range(0..REPOSITORIES);
        if from != repository && self.random.random_ratio(1, 2) {
            let before = *self.soak.standing(from, image);
            tally.count(|tally| &tally.events);
            if self.registry.mount(&name, &self::name(from), digest)? {
                tally.count(|tally| &tally.mounts);
                return Ok(());
            }
            if self.soak.stood(from, image, before) {
                tally.break_promise(format!(
                    "{digest} of image {image} is promised in {from} and was not mounted"
                ));
            }
        }
        tally.count(|tally| &tally.events);
        if self.random.random_ratio(1, 4) {
            self.registry.push_blob_in_chunks(&name, bytes, bytes.len() / 2 + 1)?;
        } else {
            self.registry.push_blob(&name, bytes)?;
        }
        Ok(())
    }

    fn pull(&mut self) -> Result<()> {
        let (repository, image) = self.somewhere();
        let before = *self.soak.standing(repository, image);
        let digest = self.soak.images[image].digest.clone();
        self.pull_image(repository, image, &digest, before)
    }

    /// By a tag that this client alone moves.
    fn pull_tag(&mut self) -> Result<()> {
        let chosen = self.random.random_range(0..self.tags.len().max(1));
        let Some(((repository, tag), (image, epoch))) = self.tags.iter().nth(chosen) else { return Ok(()) };
        let (repository, tag, image, epoch) = (*repository, tag.clone(), *image, *epoch);
        let standing = *self.soak.standing(repository, image);
        // It is promised no more when its image was deleted since.
        let before = Standing { promised: standing.promised && standing.epoch == epoch, ..standing };
        self.pull_image(repository, image, &tag, before)
    }

    /// Pulls manifest and blobs, and compares every byte.
    fn pull_image(
        &mut self,
        repository: usize,
        image: usize,
        reference: &str,
        before: Standing,
    ) -> Result<()> {
        let (name, ready) = (name(repository), &self.soak.images[image]);
        let tally = &self.soak.tally;
        let gone = |what: &str, answer: &Answer| {
            if self.soak.stood(repository, image, before) {
                tally.break_promise(format!(
                    "{what} of image {image} ({}) in {name} is promised, and answered {} {}, request {}",
                    ready.digest,
                    answer.status,
                    answer.text(),
                    answer.header("x-request-id")
                ));
            }
            tally.count(|tally| &tally.gone);
        };
        tally.count(|tally| &tally.events);
        let answer = self.registry.manifest(&name, reference)?.expect(&[200, 404])?;
        if answer.status == 404 {
            gone(reference, &answer);
            return Ok(());
        }
        let got = sha256(&answer.body);
        if got != ready.digest {
            // Somebody may have deleted the image, and with it the tag; nobody else makes it anew.
            if before.promised && self.soak.stood(repository, image, before) {
                tally.break_promise(format!("{name}:{reference} is {got}, and should be {}", ready.digest));
            }
            return Ok(());
        }
        for (digest, _) in &ready.blobs {
            tally.count(|tally| &tally.events);
            let answer = self.registry.blob(&name, digest)?.expect(&[200, 404])?;
            if answer.status == 404 {
                gone(digest, &answer);
                return Ok(());
            }
            if sha256(&answer.body) != *digest {
                tally.break_promise(format!("{name}@{digest} came with other bytes"));
            }
        }
        tally.count(|tally| &tally.pulls);
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        let (repository, image) = self.somewhere();
        {
            let mut standing = self.soak.standing(repository, image);
            standing.promised = false;
            standing.deleting += 1;
            standing.epoch += 1;
        }
        let path = format!("/v2/{}/manifests/{}", name(repository), self.soak.images[image].digest);
        let answer = self.send(&Method::DELETE, &name(repository), "pull,delete", &path, &Extra::default());
        {
            let mut standing = self.soak.standing(repository, image);
            standing.deleting -= 1;
            standing.epoch += 1;
        }
        if answer?.expect(&[202, 404])?.status == 202 {
            self.soak.tally.count(|tally| &tally.deletions);
        }
        Ok(())
    }

    fn delete_tag(&mut self) -> Result<()> {
        let ((repository, _), tag) = (self.somewhere(), self.tag());
        self.tags.remove(&(repository, tag.clone()));
        let path = format!("/v2/{}/manifests/{tag}", name(repository));
        let name = name(repository);
        self.send(&Method::DELETE, &name, "pull,delete", &path, &Extra::default())?.expect(&[202, 404])?;
        let left = self.send(&Method::GET, &name, "pull", &path, &Extra::default())?;
        if left.status != 404 {
            self.soak.tally.break_promise(format!("{path} is deleted, and answered {}", left.status));
        }
        Ok(())
    }

    /// A blob that nobody else knows: pushed, pulled, deleted, gone.
    fn loose_blob(&mut self) -> Result<()> {
        let name = format!("{PUBLIC}/soak-own-{}", self.number);
        let bytes = noise(self.random.random(), self.random.random_range(1_000..60_000));
        self.soak.tally.count(|tally| &tally.events);
        let digest = self.registry.push_blob(&name, &bytes)?;
        let path = format!("/v2/{name}/blobs/{digest}");
        let pulled = self.send(&Method::GET, &name, "pull", &path, &Extra::default())?;
        if pulled.status != 200 || pulled.body != bytes {
            self.soak.tally.break_promise(format!("{path} was pushed, and answered {}", pulled.status));
        }
        self.send(&Method::DELETE, &name, "pull,delete", &path, &Extra::default())?.expect(&[202])?;
        let gone = self.send(&Method::HEAD, &name, "pull", &path, &Extra::default())?;
        ensure!(gone.status == 404, "{path} is deleted, and answered {}", gone.status);
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The soak called it a broken promise when an image was deleted under another number.
    #[test]
    fn no_two_images_are_alike() -> Result<()> {
        const SEED_OF_TWINS: u64 = 10_006_329_516_536_234_489;
        let soak = Soak::new(SEED_OF_TWINS, Duration::from_secs(1))?;
        let digests: BTreeSet<&String> = soak.images.iter().map(|ready| &ready.digest).collect();
        ensure!(digests.len() == IMAGES, "{} images", digests.len());
        Ok(())
    }
}
