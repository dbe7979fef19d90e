//! Repositories: where artifacts and tags live, under a random key that is never used again.

use taffrail_blobstore::RepositoryKey;
use taffrail_distribution::name::RepositoryName;

use crate::project::ProjectId;

pub mod store;

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Its key, in engine and catalog.
    pub key: RepositoryKey,
    /// Its project.
    pub project: ProjectId,
    /// Its whole name, with the project's.
    pub name: RepositoryName,
}
