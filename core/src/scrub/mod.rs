//! What the scrub of the store needs to remember, and what its finds mean to people: images have names, blobs have none.

pub mod store;

pub use store::ScrubStore;

/// How far the scrub is. Times are microseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubState {
    /// When the last pass began, over or not; `None` before the first.
    pub begun_us: Option<i64>,
    /// When the last pass over everything ended.
    pub completed_us: Option<i64>,
    /// When the last pass ended that held blobs against their digests.
    pub digests_us: Option<i64>,
    /// The pass under way.
    pub pass: Option<PassState>,
}

/// A pass under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassState {
    /// Where it stands, as the engine writes it.
    pub position: String,
    /// Whether it holds blobs against their digests, too.
    pub is_deep: bool,
}

/// An image that a damaged blob is part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Harmed {
    /// The repository's name.
    pub repository: String,
    /// The digest of the manifest.
    pub manifest: String,
    /// A tag of it; one entry for each.
    pub tag: Option<String>,
}

impl std::fmt::Display for Harmed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.tag {
            Some(tag) => write!(f, "{}:{tag}", self.repository),
            None => write!(f, "{}@{}", self.repository, self.manifest),
        }
    }
}
