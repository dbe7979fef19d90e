//! What distribution refuses to go beyond. The server fills it from its configuration.
//!
//! Rule: everything that comes from outside has a limit here, with its unit and its reason.

use std::time::Duration;

/// Tags in one `PUT manifests/…?tag=…&tag=…`. The spec asks registries to take at least 10; zot takes 46, which is what fits
/// a request line of 8 KiB when every tag has its 128 characters and one more is in the path.
pub const TAG_PARAMETERS_MAX: usize = 46;

/// Repositories looked at for a mount that its `from` did not serve: of those that the caller may pull from, not of those that
/// hold the blob, so that it does not matter how many others hold it too. Listing and probing so many takes some ten
/// milliseconds; whoever may pull from more, and misses, uploads.
pub const MOUNT_SOURCES_MAX: usize = 4096;
/// Repositories that are asked without a pause in which others get their turn: some hundred microseconds.
pub const MOUNT_SOURCES_AT_ONCE: usize = 64;

/// Repositories of one digest that a mount tries when the caller may pull from everywhere: the first one serves, unless it was
/// unlinked at this moment.
pub const MOUNT_HOLDERS_MAX: usize = 16;

/// How long the answer to a manifest waits for its catalog transaction. It is a single small write: one that takes longer hangs, and
/// goes on without the client, who is told to try again.
pub const MANIFEST_WAIT: Duration = Duration::from_secs(10);

/// The limits of the API; see each field. [`Limits::default`] has the published defaults.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest manifest in bytes; 413 beyond. The spec asks for at least 4 MiB.
    pub manifest_bytes_max: usize,
    /// Longest blob in bytes; 413 beyond. Refused before the body is read when its length is announced.
    pub blob_bytes_max: u64,
    /// Entries of a page of tags without `n`. Scripts ask once and do not follow `Link`, so it is the maximum.
    pub tags_page_default: u32,
    /// Largest `n` for tags; more is clamped.
    pub tags_page_max: u32,
    /// Entries of a page of repositories without `n`.
    pub catalog_page_default: u32,
    /// Largest `n` for repositories; more is clamped.
    pub catalog_page_max: u32,
    /// Entries of a page of referrers without `n`. Some clients (go-containerregistry) read one page only.
    pub referrers_page_default: u32,
    /// Largest `n` for referrers; more is clamped.
    pub referrers_page_max: u32,
    /// A page of referrers ends early at this many bytes: the listing is a manifest, and clients bound those at 4 MiB.
    pub referrers_page_bytes_max: usize,
    /// How long a body may keep us waiting before its pace is judged; at least a second.
    pub body_window: Duration,
    /// What has to arrive per second of waiting, over each window; else 408, and an upload session keeps what came.
    pub body_bytes_per_s_min: u64,
    /// Manifest media types to accept besides those of OCI and Docker. Their documents must be JSON; `config`, `layers`,
    /// `blobs`, `manifests` and `subject` are read as descriptors where they exist.
    pub extra_manifest_types: Vec<String>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            manifest_bytes_max: 4 << 20,
            blob_bytes_max: 1 << 40,
            tags_page_default: 1000,
            tags_page_max: 1000,
            catalog_page_default: 100,
            catalog_page_max: 1000,
            referrers_page_default: 1000,
            referrers_page_max: 1000,
            referrers_page_bytes_max: 4 << 20,
            body_window: Duration::from_secs(30),
            body_bytes_per_s_min: 1024,
            extra_manifest_types: Vec::new(),
        }
    }
}
