//! What one writer was promised about one repository, and whether the promise was kept.
//!
//! Every change is noted twice: before the request (from then on the old and the new state are both possible) and
//! after the acknowledgement (only the new one is). A crash in between leaves both open, and nothing else. One ledger
//! belongs to one writer that works in its own repository, one request at a time, so no other order is possible.
//!
//! Bytes are not kept: a digest is its own proof.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::http::{Registry, sha256};

/// What is known of a blob or manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Acknowledged, and not taken back.
    Present,
    /// Its deletion was acknowledged.
    Absent,
    /// Either: a request was cut short, or the server may collect it.
    Unsure,
}

/// The promises of one repository.
#[derive(Debug)]
pub struct Ledger {
    /// The repository.
    pub repository: String,
    blobs: BTreeMap<String, Presence>,
    manifests: BTreeMap<String, Manifest>,
    /// Every value a tag may have; `None` is that there is no such tag.
    tags: BTreeMap<String, BTreeSet<Option<String>>>,
    /// What changed since the last check.
    touched: BTreeSet<String>,
    /// Requests that were acknowledged since the start.
    pub acknowledged: u64,
}

#[derive(Debug)]
struct Manifest {
    presence: Presence,
    blobs: Vec<String>,
}

/// How much of a ledger to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What changed since the last check, and one in eight of the rest.
    Recent,
    /// All of it.
    Full,
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Promises that were looked at.
    pub checked: u64,
    /// The broken ones, each as a sentence.
    pub broken: Vec<String>,
}

impl Ledger {
    /// An empty one.
    #[must_use]
    pub fn new(repository: String) -> Self {
        Self {
            repository,
            blobs: BTreeMap::new(),
            manifests: BTreeMap::new(),
            tags: BTreeMap::new(),
            touched: BTreeSet::new(),
            acknowledged: 0,
        }
    }

    /// What is known of a blob.
    #[must_use]
    pub fn blob(&self, digest: &str) -> Option<Presence> {
        self.blobs.get(digest).copied()
    }

    /// A blob that stands in the repository and that no manifest needs.
    #[must_use]
    pub fn loose_blob(&self, random: &mut StdRng) -> Option<String> {
        let needed: BTreeSet<&String> = self
            .manifests
            .values()
            .filter(|manifest| manifest.presence != Presence::Absent)
            .flat_map(|manifest| &manifest.blobs)
            .collect();
        let loose: Vec<&String> = self
            .blobs
            .iter()
            .filter(|(digest, presence)| **presence == Presence::Present && !needed.contains(digest))
            .map(|(digest, _)| digest)
            .collect();
        pick(&loose, random).map(|digest| (*digest).clone())
    }

    /// A manifest that stands in the repository.
    #[must_use]
    pub fn any_manifest(&self, random: &mut StdRng) -> Option<String> {
        let standing: Vec<&String> = self
            .manifests
            .iter()
            .filter(|(_, manifest)| manifest.presence == Presence::Present)
            .map(|(digest, _)| digest)
            .collect();
        pick(&standing, random).map(|digest| (*digest).clone())
    }

    /// A tag that stands in the repository.
    #[must_use]
    pub fn any_tag(&self, random: &mut StdRng) -> Option<String> {
        let standing: Vec<&String> =
            self.tags.iter().filter(|(_, values)| !values.contains(&None)).map(|(tag, _)| tag).collect();
        pick(&standing, random).map(|tag| (*tag).clone())
    }

    /// Before a blob is uploaded or mounted.
    pub fn blob_begins(&mut self, digest: &str) {
        self.touched.insert(digest.to_owned());
        let presence = self.blobs.entry(digest.to_owned()).or_insert(Presence::Unsure);
        if *presence == Presence::Absent {
            *presence = Presence::Unsure;
        }
    }

    /// A blob was acknowledged with 201. (A HEAD that answers 200 promises it for the length of a lease only: enough to
    /// push a manifest, and nothing to write down.)
    pub fn blob_stands(&mut self, digest: &str) {
        self.acknowledge(digest);
        self.blobs.insert(digest.to_owned(), Presence::Present);
    }

    /// Before a blob is deleted.
    pub fn blob_goes(&mut self, digest: &str) {
        self.touched.insert(digest.to_owned());
        self.blobs.insert(digest.to_owned(), Presence::Unsure);
    }

    /// The deletion of a blob was acknowledged.
    pub fn blob_gone(&mut self, digest: &str) {
        self.acknowledge(digest);
        self.blobs.insert(digest.to_owned(), Presence::Absent);
    }

    /// Before a manifest with these blobs is put under a tag.
    pub fn manifest_begins(&mut self, digest: &str, blobs: Vec<String>, tag: &str) {
        self.touched.extend([digest.to_owned(), tag.to_owned()]);
        let manifest =
            self.manifests.entry(digest.to_owned()).or_insert(Manifest { presence: Presence::Unsure, blobs });
        if manifest.presence == Presence::Absent {
            manifest.presence = Presence::Unsure;
        }
        let values = self.tags.entry(tag.to_owned()).or_insert_with(|| BTreeSet::from([None]));
        values.insert(Some(digest.to_owned()));
    }

    /// The manifest was acknowledged.
    pub fn manifest_stands(&mut self, digest: &str, tag: &str) {
        self.acknowledge(digest);
        if let Some(manifest) = self.manifests.get_mut(digest) {
            manifest.presence = Presence::Present;
            // With a manifest its blobs are promised.
            self.blobs.extend(manifest.blobs.iter().map(|blob| (blob.clone(), Presence::Present)));
        }
        self.tags.insert(tag.to_owned(), BTreeSet::from([Some(digest.to_owned())]));
    }

    /// Before a manifest is deleted by its digest. Its tags go with it, and the server may collect its blobs.
    pub fn manifest_goes(&mut self, digest: &str) {
        self.touched.insert(digest.to_owned());
        if let Some(manifest) = self.manifests.get_mut(digest) {
            manifest.presence = Presence::Unsure;
        }
        for (tag, values) in &mut self.tags {
            if values.contains(&Some(digest.to_owned())) {
                values.insert(None);
                self.touched.insert(tag.clone());
            }
        }
        self.release_blobs();
    }

    /// The deletion of a manifest was acknowledged.
    pub fn manifest_gone(&mut self, digest: &str) {
        self.acknowledge(digest);
        if let Some(manifest) = self.manifests.get_mut(digest) {
            manifest.presence = Presence::Absent;
        }
        for values in self.tags.values_mut() {
            values.remove(&Some(digest.to_owned()));
        }
    }

    /// Before a tag is deleted.
    pub fn tag_goes(&mut self, tag: &str) {
        self.touched.insert(tag.to_owned());
        self.tags.entry(tag.to_owned()).or_default().insert(None);
    }

    /// The deletion of a tag was acknowledged.
    pub fn tag_gone(&mut self, tag: &str) {
        self.acknowledge(tag);
        self.tags.insert(tag.to_owned(), BTreeSet::from([None]));
    }

    /// Holds the ledger against the registry, and settles what was open by what is there now.
    ///
    /// # Errors
    /// When the registry does not answer at all.
    pub fn check(&mut self, registry: &Registry, depth: Depth, random: &mut StdRng) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        let touched = std::mem::take(&mut self.touched);
        let mut due =
            |key: &String| depth == Depth::Full || touched.contains(key) || random.random_ratio(1, 8);
        let repository = self.repository.clone();

        for (digest, presence) in self.blobs.iter_mut().filter(|(digest, _)| due(digest)) {
            let answer = registry.blob(&repository, digest)?;
            let what = format!("blob {repository}@{digest}");
            let found = compare(&mut verdict, *presence, answer.status, &what);
            // One that is there though nobody promised it may yet be collected.
            if found == Some(Presence::Absent) {
                *presence = Presence::Absent;
            }
            if found == Some(Presence::Present) && sha256(&answer.body) != *digest {
                verdict.broken.push(format!("{what} came with other bytes"));
            }
        }
        for (digest, manifest) in self.manifests.iter_mut().filter(|(digest, _)| due(digest)) {
            let answer = registry.manifest(&repository, digest)?;
            let what = format!("manifest {repository}@{digest}");
            let found = compare(&mut verdict, manifest.presence, answer.status, &what);
            manifest.presence = found.unwrap_or(manifest.presence);
            if found == Some(Presence::Present) && sha256(&answer.body) != *digest {
                verdict.broken.push(format!("{what} came with other bytes"));
            }
        }
        for (tag, values) in self.tags.iter_mut().filter(|(tag, _)| due(tag)) {
            let answer = registry.manifest(&repository, tag)?;
            let found = match answer.status {
                200 => Some(sha256(&answer.body)),
                404 => None,
                other => {
                    verdict.broken.push(format!("tag {repository}:{tag} answered {other}"));
                    continue;
                }
            };
            verdict.checked += 1;
            if !values.contains(&found) {
                verdict
                    .broken
                    .push(format!("tag {repository}:{tag} is {found:?}, and should be one of {values:?}"));
            }
            *values = BTreeSet::from([found]);
        }
        self.settle_open_manifests();
        self.forget_the_absent();
        Ok(verdict)
    }

    /// A manifest that turned out to be there after a cut needs its blobs, as the server promised with it.
    fn settle_open_manifests(&mut self) {
        let standing: Vec<String> = self
            .manifests
            .values()
            .filter(|manifest| manifest.presence == Presence::Present)
            .flat_map(|manifest| manifest.blobs.clone())
            .collect();
        for digest in standing {
            if self.blobs.insert(digest.clone(), Presence::Present) != Some(Presence::Present) {
                self.touched.insert(digest);
            }
        }
    }

    /// Deleted things are checked once after their deletion; keeping them for ever would slow every later check.
    fn forget_the_absent(&mut self) {
        self.blobs.retain(|digest, presence| *presence != Presence::Absent || self.touched.contains(digest));
        self.manifests.retain(|_, manifest| manifest.presence != Presence::Absent);
        self.tags.retain(|_, values| *values != BTreeSet::from([None]));
    }

    fn release_blobs(&mut self) {
        let needed: BTreeSet<&String> = self
            .manifests
            .values()
            .filter(|manifest| manifest.presence == Presence::Present)
            .flat_map(|manifest| &manifest.blobs)
            .collect();
        let once_needed: BTreeSet<&String> =
            self.manifests.values().flat_map(|manifest| &manifest.blobs).collect();
        for (digest, presence) in &mut self.blobs {
            if *presence == Presence::Present && once_needed.contains(digest) && !needed.contains(digest) {
                *presence = Presence::Unsure;
            }
        }
    }

    fn acknowledge(&mut self, key: &str) {
        self.acknowledged += 1;
        self.touched.insert(key.to_owned());
    }
}

/// Compares an answer with what was promised; returns what is there, unless the answer says neither.
fn compare(verdict: &mut Verdict, promised: Presence, status: u16, what: &str) -> Option<Presence> {
    verdict.checked += 1;
    let found = match status {
        200 => Presence::Present,
        404 => Presence::Absent,
        other => {
            verdict.broken.push(format!("{what} answered {other}"));
            return None;
        }
    };
    if promised != Presence::Unsure && promised != found {
        verdict.broken.push(format!("{what} is {found:?}, and was acknowledged as {promised:?}"));
    }
    Some(found)
}

fn pick<'a, T>(from: &'a [T], random: &mut StdRng) -> Option<&'a T> {
    if from.is_empty() { None } else { from.get(random.random_range(0..from.len())) }
}
