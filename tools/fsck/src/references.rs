//! What a catalog names, as `taffrail admin references` prints it, to hold the links of a store against.
//!
//! One thing a line, words divided by blanks: `repository KEY NAME` gives a repository its name, `KEY DIGEST` is a reference of that
//! repository, `DIGEST` one of any. Empty lines and those that begin with `#` say nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use serde_json::{Value, json};
use taffrail_blobstore::format::LOG_FOLDER;
use taffrail_blobstore::{Digest, RepositoryKey};

use crate::contents::Contents;
use crate::finding::{Finding, Findings, Kind, Severity};

/// Longest line in bytes: a word, a key and a name of 255 characters have fewer.
const LINE_BYTES_MAX: u64 = 1024;

/// Names of repositories, by their keys.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<RepositoryKey, String>);

/// What a catalog names.
#[derive(Debug, Default)]
pub(crate) struct References {
    by_repository: HashMap<RepositoryKey, HashSet<Digest>>,
    anywhere: HashSet<Digest>,
    pub(crate) names: Names,
}

/// What came of holding links against references.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) references: u64,
    /// References without a link, or without a blob.
    pub(crate) missing: u64,
    /// Links that nothing references.
    pub(crate) unreferenced: u64,
}

/// Why there are no references.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReferencesError {
    #[error("cannot read the references: {0}")]
    Io(#[from] io::Error),
    #[error("references, line {number}: {what}")]
    Line { number: u64, what: String },
}

impl Names {
    /// A repository, for people.
    pub(crate) fn shown(&self, key: RepositoryKey) -> String {
        self.0.get(&key).cloned().unwrap_or_else(|| key.number().to_string())
    }

    /// Adds its name to what is said of a repository; nothing when it has none.
    pub(crate) fn add(&self, key: RepositoryKey, said: Value) -> Value {
        let mut said = said;
        if let (Some(name), Some(fields)) = (self.0.get(&key), said.as_object_mut()) {
            fields.insert("name".to_owned(), json!(name));
        }
        said
    }
}

impl References {
    /// Reads a file; `-` is standard input.
    pub(crate) fn load(path: &Path) -> Result<References, ReferencesError> {
        if path == Path::new("-") {
            References::read(io::stdin().lock())
        } else {
            References::read(BufReader::new(File::open(path)?))
        }
    }

    fn read(mut lines: impl BufRead) -> Result<References, ReferencesError> {
        let mut references = References::default();
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            if lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let is_cut = line.len() as u64 == LINE_BYTES_MAX && line.last() != Some(&b'\n');
            let taken = if is_cut {
                Err(format!("has more than {LINE_BYTES_MAX} bytes"))
            } else {
                references.take(&String::from_utf8_lossy(&line))
            };
            taken.map_err(|what| ReferencesError::Line { number, what })?;
        }
        Ok(references)
    }

    fn take(&mut self, line: &str) -> Result<(), String> {
        let digest = |text: &str| Digest::parse(text).map_err(|error| format!("{text:?}: {error}"));
        let mut words = line.split_whitespace();
        let (first, second, third, more) = (words.next(), words.next(), words.next(), words.next());
        match (first, second, third, more) {
            (None, ..) => {}
            (Some(first), ..) if first.starts_with('#') => {}
            (Some("repository"), Some(key), Some(name), None) => {
                self.names.0.insert(key_of(key)?, name.to_owned());
            }
            (Some(of_any), None, ..) => {
                self.anywhere.insert(digest(of_any)?);
            }
            (Some(key), Some(of_one), None, _) => {
                self.by_repository.entry(key_of(key)?).or_default().insert(digest(of_one)?);
            }
            (Some(_), Some(_), Some(_), _) => {
                return Err("is neither `KEY DIGEST`, nor `DIGEST`, nor `repository KEY NAME`".to_owned());
            }
        }
        Ok(())
    }

    /// Holds the links of a store against the references, both ways, and reports what has no other side.
    pub(crate) fn hold(&self, contents: &Contents, findings: &mut Findings) -> Held {
        let mut held = Held { references: self.anywhere.len() as u64, ..Held::default() };
        let placed = |digest: &Digest| contents.blobs.get(digest).filter(|blob| blob.location.is_some());
        let lost: Vec<Digest> = self
            .anywhere
            .iter()
            .filter(|digest| placed(digest).is_none_or(|blob| blob.links.is_empty()))
            .copied()
            .collect();
        held.missing += lost.len() as u64;
        report(
            findings,
            Kind::ReferenceWithoutLink,
            "the catalog names blobs that no repository holds",
            lost,
        );
        let mut by_key: Vec<_> = self.by_repository.iter().collect();
        by_key.sort_unstable_by_key(|(key, _)| **key);
        for (key, digests) in by_key {
            held.references += digests.len() as u64;
            let is_held = |digest: &Digest| placed(digest).is_some_and(|blob| blob.links.contains_key(key));
            let lost: Vec<Digest> = digests.iter().filter(|digest| !is_held(digest)).copied().collect();
            held.missing += lost.len() as u64;
            let what = format!("the catalog names blobs that repository {} does not hold", self.shown(*key));
            report(findings, Kind::ReferenceWithoutLink, &what, lost);
        }
        let mut loose: BTreeMap<RepositoryKey, Vec<Digest>> = BTreeMap::new();
        for (digest, blob) in contents.blobs.iter().filter(|(digest, _)| !self.anywhere.contains(*digest)) {
            for key in blob.links.keys() {
                if !self.by_repository.get(key).is_some_and(|digests| digests.contains(digest)) {
                    loose.entry(*key).or_default().push(*digest);
                }
            }
        }
        for (key, digests) in loose {
            held.unreferenced += digests.len() as u64;
            let what = format!(
                "repository {} holds blobs that the catalog does not name; the server lets go of them after a day",
                self.shown(key)
            );
            report(findings, Kind::LinkUnreferenced, &what, digests);
        }
        held
    }

    fn shown(&self, key: RepositoryKey) -> String {
        let name = self.names.0.get(&key).map(|name| format!(" ({name})")).unwrap_or_default();
        format!("{}{name}", key.number())
    }
}

impl Held {
    pub(crate) fn json(&self) -> Value {
        json!({
            "references": self.references,
            "missing": self.missing,
            "unreferenced_links": self.unreferenced,
        })
    }

    pub(crate) fn text(&self) -> String {
        format!(
            "{} references: {} without link or blob; {} links that nothing references",
            self.references, self.missing, self.unreferenced
        )
    }
}

fn key_of(text: &str) -> Result<RepositoryKey, String> {
    let key = text.parse().ok().and_then(RepositoryKey::new);
    key.ok_or_else(|| format!("{text:?} is no key of a repository"))
}

/// One finding for all of them; none when there are none.
fn report(findings: &mut Findings, kind: Kind, what: &str, mut digests: Vec<Digest>) {
    if digests.is_empty() {
        return;
    }
    digests.sort_unstable();
    // A link without a name may be a push under way; a name without a link is a pull that fails.
    let severity = if kind == Kind::LinkUnreferenced { Severity::Note } else { Severity::Lost };
    findings.add(Finding::new(severity, kind, LOG_FOLDER, what).harming(digests));
}

#[cfg(test)]
mod tests {
    use taffrail_blobstore::Algorithm;

    use super::*;

    #[test]
    fn lines_are_references_names_or_a_reason_to_stop() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let text = format!("# by hand\n\nrepository 7 team/app\n7 {digest}\n  {digest}  \n");
        let read = References::read(text.as_bytes()).unwrap();
        let key = RepositoryKey::new(7).unwrap();
        assert!(read.by_repository[&key].contains(&digest) && read.anywhere.contains(&digest));
        assert_eq!(read.names.shown(key), "team/app");
        assert_eq!(read.names.shown(RepositoryKey::new(8).unwrap()), "8");
        for (line, word) in [
            ("sha256:xyz".to_owned(), "line 1"),
            ("0 sha256:xyz".to_owned(), "no key"),
            (format!("7 {digest} more"), "neither"),
            ("x".repeat(2_000), "more than 1024"),
        ] {
            let error = References::read(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
