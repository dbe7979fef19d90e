//! What a repository of the tree comes to: which manifests can be had, in which order, with which tags and blobs.
//!
//! What must stay true: a manifest is planned only when its bytes hash to its digest, it is one that a push would be allowed to
//! put, and everything that it needs is there in the stated length; a blob is planned only when a link of the repository or such a
//! manifest names it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Read as _;

use bytes::Bytes;
use rustix::fs::FileType;
use serde_json::value::RawValue;
use taffrail_blobstore::Digest;
use taffrail_core::project::ProjectName;
use taffrail_distribution::catalog::ReferenceKind;
use taffrail_distribution::manifest::{Manifest, ManifestError, OCI_IMAGE, OCI_INDEX};
use taffrail_distribution::name::{RepositoryName, Tag};

use super::report::{Refused, What};
use super::tree::{Flaw, Tree, blob_path};

/// Longest path of a repository in bytes, below `repositories`. Names have 255; what is longer is reported and not entered.
const PATH_BYTES_MAX: usize = 1024;

/// A repository of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// Its name in the tree.
    pub(crate) path: String,
    /// Its project here.
    pub(crate) project: ProjectName,
    /// Its name here.
    pub(crate) name: RepositoryName,
}

/// A manifest that can be had.
#[derive(Debug)]
pub(crate) struct PlannedManifest {
    pub(crate) digest: Digest,
    /// Blobs and child manifests, without layers that are not to be distributed.
    needs: Vec<(Digest, ReferenceKind)>,
    pub(crate) tags: Vec<Tag>,
}

/// What a repository comes to.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    /// Manifests, each after those that it needs: the first ones need none, the second ones only of the first, and so on.
    pub(crate) levels: Vec<Vec<PlannedManifest>>,
    /// Blobs that they need, with their lengths.
    pub(crate) blobs: BTreeMap<Digest, u64>,
    /// Blobs that only the repository's links name.
    pub(crate) unreferenced: BTreeMap<Digest, u64>,
    /// Links of layers without bytes.
    pub(crate) layers_gone: u64,
    pub(crate) refused: Vec<Refused>,
}

impl PlannedManifest {
    /// The child manifests.
    pub(crate) fn children(&self) -> impl Iterator<Item = &Digest> {
        self.needs.iter().filter(|(_, kind)| *kind == ReferenceKind::Manifest).map(|(digest, _)| digest)
    }
}

/// Every repository of the tree with the name that it gets; what has none is refused.
///
/// # Errors
/// When the folder of the repositories cannot be listed.
pub(crate) fn sources(tree: &Tree, default: &ProjectName) -> Result<(Vec<Source>, Vec<Refused>), Flaw> {
    let mut sources: Vec<Source> = Vec::new();
    let mut refused = Vec::new();
    let mut open: Vec<String> = vec![String::new()];
    while let Some(path) = open.pop() {
        let folder = format!("repositories{path}");
        let entries = match tree.names(&folder) {
            Err(flaw) if path.is_empty() => return Err(flaw),
            Err(flaw) => {
                refused.push(of_repository(&path, flaw.to_string()));
                continue;
            }
            Ok(entries) => entries,
        };
        if entries.iter().any(|entry| matches!(entry.name.as_str(), "_manifests" | "_layers")) {
            match source(path.trim_start_matches('/'), default) {
                Ok(source) => sources.push(source),
                Err(reason) => refused.push(of_repository(&path, reason)),
            }
        }
        for entry in entries.iter().rev().filter(|entry| !entry.name.starts_with('_')) {
            let below = format!("{path}/{}", entry.name);
            match entry.kind {
                FileType::Directory if !entry.is_text => {
                    refused.push(of_repository(&below, "is not called in UTF-8".to_owned()));
                }
                FileType::Directory if below.len() > PATH_BYTES_MAX => {
                    refused.push(of_repository(&below, "is called too long a name".to_owned()));
                }
                FileType::Directory => open.push(below),
                FileType::Symlink => refused.push(of_repository(&below, Flaw::Symlink.to_string())),
                // Files between repositories are nobody's.
                FileType::RegularFile
                | FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => {}
            }
        }
    }
    refuse_twins(&mut sources, &mut refused);
    Ok((sources, refused))
}

fn source(path: &str, default: &ProjectName) -> Result<Source, String> {
    let full = if path.contains('/') { path.to_owned() } else { format!("{default}/{path}") };
    let name = RepositoryName::parse(&full).map_err(|error| error.to_string())?;
    let project = name.split_first().map_or("", |(project, _)| project);
    let project = ProjectName::parse(project).map_err(|error| format!("{error}; {project} is none"))?;
    Ok(Source { path: path.to_owned(), project, name })
}

/// `app` and `library/app` would become one: the one that has its project keeps the name.
fn refuse_twins(sources: &mut Vec<Source>, refused: &mut Vec<Refused>) {
    let whole: HashSet<String> =
        sources.iter().filter(|source| source.path.contains('/')).map(|source| source.path.clone()).collect();
    sources.retain(|source| {
        let taken = !source.path.contains('/') && whole.contains(source.name.as_str());
        if taken {
            let reason =
                format!("{} is in the tree as well; choose another project with --project", source.name);
            refused.push(of_repository(&source.path, reason));
        }
        !taken
    });
}

fn of_repository(path: &str, reason: String) -> Refused {
    let path = path.trim_start_matches('/');
    Refused {
        what: What::Repository,
        repository: path.to_owned(),
        name: String::new(),
        path: format!("repositories/{path}"),
        reason,
    }
}

/// Plans one repository after the other; lengths of blobs are looked up once.
#[derive(Debug)]
pub(crate) struct Planner<'a> {
    tree: &'a Tree,
    manifest_bytes_max: usize,
    lengths: HashMap<Digest, Option<u64>>,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(tree: &'a Tree, manifest_bytes_max: usize) -> Planner<'a> {
        Planner { tree, manifest_bytes_max, lengths: HashMap::new() }
    }

    /// Looks at everything but the bytes of blobs.
    pub(crate) fn plan(&mut self, source: &Source) -> Planned {
        let mut planned = Planned::default();
        let layers = self.layers(source, &mut planned);
        let mut found = self.manifests(source, &layers, &mut planned);
        self.tags(source, &mut found, &mut planned);
        settle(source, found, &mut planned);
        for manifest in planned.levels.iter().flatten() {
            for (digest, kind) in &manifest.needs {
                if *kind != ReferenceKind::Manifest
                    && let Some(Some(len_bytes)) = self.lengths.get(digest)
                {
                    planned.blobs.insert(*digest, *len_bytes);
                }
            }
        }
        let own: HashSet<Digest> = planned.levels.iter().flatten().map(|manifest| manifest.digest).collect();
        for digest in layers {
            if planned.blobs.contains_key(&digest) || own.contains(&digest) {
                continue;
            }
            match self.len_bytes(&digest) {
                Some(len_bytes) => {
                    planned.unreferenced.insert(digest, len_bytes);
                }
                None => planned.layers_gone += 1,
            }
        }
        planned
    }

    /// The length of a blob's file; `None` when there is none that may be read.
    fn len_bytes(&mut self, digest: &Digest) -> Option<u64> {
        let tree = self.tree;
        *self.lengths.entry(*digest).or_insert_with(|| tree.blob(digest).ok().map(|(_, len_bytes)| len_bytes))
    }

    /// The digests that a folder of links names. A folder without a link is what a deletion left.
    fn links(&self, source: &Source, folder: &str, what: What, planned: &mut Planned) -> BTreeSet<Digest> {
        let mut digests = BTreeSet::new();
        let root = format!("repositories/{}/{folder}", source.path);
        let mut refuse = |name: &str, path: String, flaw: &Flaw| {
            let (repository, name, reason) = (source.path.clone(), name.to_owned(), flaw.to_string());
            planned.refused.push(Refused { what, repository, name, path, reason });
        };
        let algorithms = match self.tree.names(&root) {
            Ok(algorithms) => algorithms,
            Err(flaw) => {
                refuse("", root, &flaw);
                return digests;
            }
        };
        for algorithm in algorithms {
            let folder = format!("{root}/{}", algorithm.name);
            let names = match self.tree.names(&folder) {
                Ok(names) => names,
                Err(flaw) => {
                    refuse(&algorithm.name, folder, &flaw);
                    continue;
                }
            };
            for entry in names {
                let path = format!("{folder}/{}/link", entry.name);
                let text = format!("{}:{}", algorithm.name, entry.name);
                let looked = Digest::parse(&text)
                    .map_err(|error| Flaw::NoDigest(error.to_string()))
                    .and_then(|digest| Ok((digest, self.tree.named_link(&path, &digest)?)));
                match looked {
                    Ok((digest, Some(()))) => {
                        digests.insert(digest);
                    }
                    Ok((_, None)) => {}
                    Err(flaw) => refuse(&text, path, &flaw),
                }
            }
        }
        digests
    }

    fn layers(&self, source: &Source, planned: &mut Planned) -> BTreeSet<Digest> {
        self.links(source, "_layers", What::Layer, planned)
    }

    /// The manifests that are what they are called, and whose blobs are there.
    fn manifests(
        &mut self,
        source: &Source,
        layers: &BTreeSet<Digest>,
        planned: &mut Planned,
    ) -> BTreeMap<Digest, PlannedManifest> {
        let mut found = BTreeMap::new();
        for digest in self.links(source, "_manifests/revisions", What::Manifest, planned) {
            match self.manifest(&digest, layers) {
                Ok(manifest) => {
                    found.insert(digest, manifest);
                }
                Err(reason) => planned.refused.push(of_manifest(source, &digest, reason)),
            }
        }
        found
    }

    fn manifest(&mut self, digest: &Digest, layers: &BTreeSet<Digest>) -> Result<PlannedManifest, String> {
        let bytes = read_manifest(self.tree, digest, self.manifest_bytes_max)?;
        let manifest = parse(&bytes)?;
        let mut needs = Vec::with_capacity(manifest.references.len());
        for reference in manifest.references {
            if reference.kind != ReferenceKind::Manifest {
                self.stands(&reference.digest, reference.len_bytes)?;
            }
            needs.push((reference.digest, reference.kind));
        }
        for foreign in manifest.foreign {
            // As in a push: what somebody put there all the same is kept, and what nobody did is not missed.
            if layers.contains(&foreign.digest) && self.stands(&foreign.digest, foreign.len_bytes).is_ok() {
                needs.push((foreign.digest, foreign.kind));
            }
        }
        Ok(PlannedManifest { digest: *digest, needs, tags: Vec::new() })
    }

    /// Whether a blob is there in the length that a manifest states.
    fn stands(&mut self, digest: &Digest, stated_bytes: u64) -> Result<(), String> {
        match self.len_bytes(digest) {
            Some(len_bytes) if len_bytes == stated_bytes => Ok(()),
            Some(len_bytes) => Err(format!(
                "{} has {len_bytes} bytes, not {stated_bytes} as the manifest says",
                blob_path(digest)
            )),
            None => {
                let flaw = self.tree.blob(digest).err().unwrap_or(Flaw::Missing);
                Err(format!("it needs {digest}, and {} {flaw}", blob_path(digest)))
            }
        }
    }

    fn tags(&self, source: &Source, found: &mut BTreeMap<Digest, PlannedManifest>, planned: &mut Planned) {
        let root = format!("repositories/{}/_manifests/tags", source.path);
        let mut refuse = |name: &str, path: &str, reason: String| {
            let (repository, name, path) = (source.path.clone(), name.to_owned(), path.to_owned());
            planned.refused.push(Refused { what: What::Tag, repository, name, path, reason });
        };
        let names = match self.tree.names(&root) {
            Ok(names) => names,
            Err(flaw) => return refuse("", &root, flaw.to_string()),
        };
        for entry in names {
            let path = format!("{root}/{}/current/link", entry.name);
            let tag = match Tag::parse(&entry.name) {
                Ok(tag) if entry.is_text => tag,
                Ok(_) => {
                    refuse(&entry.name, &path, "is not called in UTF-8".to_owned());
                    continue;
                }
                Err(error) => {
                    refuse(&entry.name, &path, error.to_string());
                    continue;
                }
            };
            match self.tree.link(&path) {
                Ok(digest) => match found.get_mut(&digest) {
                    Some(manifest) => manifest.tags.push(tag),
                    None => {
                        let reason = format!("names {digest}, which is refused or not in the repository");
                        refuse(&entry.name, &path, reason);
                    }
                },
                // A tag that was removed while somebody pushed it.
                Err(Flaw::Missing) => {}
                Err(flaw) => refuse(&entry.name, &path, flaw.to_string()),
            }
        }
    }
}

/// Puts children before their parents. What needs a child that is not there is refused, and its tags with it.
fn settle(source: &Source, mut found: BTreeMap<Digest, PlannedManifest>, planned: &mut Planned) {
    let mut settled: HashSet<Digest> = HashSet::new();
    loop {
        let ready: Vec<Digest> = found
            .values()
            .filter(|manifest| manifest.children().all(|child| settled.contains(child)))
            .map(|manifest| manifest.digest)
            .collect();
        if ready.is_empty() {
            break;
        }
        let level: Vec<PlannedManifest> = ready.iter().filter_map(|digest| found.remove(digest)).collect();
        settled.extend(ready);
        planned.levels.push(level);
    }
    for manifest in found.into_values() {
        let child = manifest.children().find(|child| !settled.contains(*child));
        let child = child.map(ToString::to_string).unwrap_or_default();
        let reason = format!("it needs the manifest {child}, which is refused or not in the repository");
        planned.refused.push(of_manifest(source, &manifest.digest, reason));
        planned.refused.extend(tags_of(source, &manifest));
    }
}

/// The refusal of a manifest.
pub(crate) fn of_manifest(source: &Source, digest: &Digest, reason: String) -> Refused {
    Refused {
        what: What::Manifest,
        repository: source.path.clone(),
        name: digest.to_string(),
        path: blob_path(digest),
        reason,
    }
}

/// The refusals of a refused manifest's tags.
pub(crate) fn tags_of<'a>(
    source: &'a Source,
    manifest: &'a PlannedManifest,
) -> impl Iterator<Item = Refused> + 'a {
    manifest.tags.iter().map(|tag| Refused {
        what: What::Tag,
        repository: source.path.clone(),
        name: tag.to_string(),
        path: format!("repositories/{}/_manifests/tags/{tag}/current/link", source.path),
        reason: format!("names {}, which is refused", manifest.digest),
    })
}

/// Reads a manifest, and holds it against its digest.
pub(crate) fn read_manifest(tree: &Tree, digest: &Digest, bytes_max: usize) -> Result<Bytes, String> {
    let at = |flaw: Flaw| format!("{} {flaw}", blob_path(digest));
    let (file, len_bytes) = tree.blob(digest).map_err(at)?;
    if len_bytes > bytes_max as u64 {
        return Err(format!("it has {len_bytes} bytes; a manifest has at most {bytes_max}"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max as u64).read_to_end(&mut bytes).map_err(|error| at(Flaw::Io(error)))?;
    let actual = Digest::of(digest.algorithm(), &bytes);
    if actual != *digest {
        return Err(format!("{} is damaged: its bytes have the digest {actual}", blob_path(digest)));
    }
    Ok(Bytes::from(bytes))
}

/// Parses a manifest as distribution takes it from its disk: one without a media type is OCI's, and which of the two its fields say.
pub(crate) fn parse(bytes: &[u8]) -> Result<Manifest, String> {
    let parsed = match Manifest::parse(bytes, None, &[]) {
        Err(ManifestError::NoMediaType) => {
            let fields: BTreeMap<&str, &RawValue> = serde_json::from_slice(bytes).unwrap_or_default();
            let media_type = if fields.contains_key("manifests") { OCI_INDEX } else { OCI_IMAGE };
            Manifest::parse(bytes, Some(media_type), &[])
        }
        parsed => parsed,
    };
    parsed.map_err(|error| error.to_string())
}
