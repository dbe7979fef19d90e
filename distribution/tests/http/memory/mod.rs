//! The three boundaries in memory.

mod access;
mod blobs;
mod catalog;

pub(crate) use access::MemoryAccess;
pub(crate) use blobs::{Fault, MemoryBlobs};
pub(crate) use catalog::MemoryCatalog;

use std::collections::BTreeMap;
use std::sync::Mutex;

use taffrail_blobstore::RepositoryKey;
use taffrail_distribution::name::RepositoryName;

/// Which repository has which key; access makes them, the catalog lists them.
#[derive(Default)]
pub(crate) struct Names(Mutex<BTreeMap<String, RepositoryKey>>);

impl Names {
    /// The key of a repository, if it exists.
    pub(crate) fn find(&self, name: &RepositoryName) -> Option<RepositoryKey> {
        self.0.lock().unwrap().get(name.as_str()).copied()
    }

    /// The key of a repository that is made when it does not exist.
    pub(crate) fn find_or_make(&self, name: &RepositoryName) -> RepositoryKey {
        let mut names = self.0.lock().unwrap();
        let next = RepositoryKey::new(names.len() as u64 + 1).unwrap();
        *names.entry(name.as_str().to_owned()).or_insert(next)
    }

    /// Gives a repository another key: as if it had been deleted and made anew.
    pub(crate) fn renew(&self, name: &str) {
        let mut names = self.0.lock().unwrap();
        let key = names.values().map(|key| key.number()).max().unwrap_or(0) + 1_000;
        names.insert(name.to_owned(), RepositoryKey::new(key).unwrap());
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<(RepositoryName, RepositoryKey)> {
        let names = self.0.lock().unwrap();
        names.iter().map(|(name, key)| (RepositoryName::parse(name).unwrap(), *key)).collect()
    }
}
