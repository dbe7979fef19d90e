//! The few repositories and blobs that histories are about: few, so that operations meet.

use std::sync::OnceLock;

use bytes::Bytes;
use taffrail_blobstore::{Algorithm, Digest, RepositoryKey};

/// Repositories are numbered from 0.
pub(crate) const REPOSITORIES: u8 = 3;

/// Length and algorithm of each blob, by number. Lengths lie around the units that the format has: sector, page, block,
/// the bound between inline and solo blobs, and the unit in which solo files are written.
const BLOBS: [(usize, Algorithm); 14] = [
    (0, Algorithm::Sha256),
    (1, Algorithm::Sha256),
    (400, Algorithm::Sha256),
    (512, Algorithm::Blake3),
    (2_000, Algorithm::Sha512),
    (4_096, Algorithm::Sha256),
    (7_000, Algorithm::Blake3),
    (40_000, Algorithm::Sha256),
    (262_144, Algorithm::Sha512),
    (262_145, Algorithm::Sha256),
    (1_048_576, Algorithm::Sha256),
    (1_048_577, Algorithm::Blake3),
    (1_200_000, Algorithm::Sha256),
    (1_700_000, Algorithm::Sha512),
];

/// Number of blobs. Those below [`SMALL`] are cheap.
pub(crate) const ALL: u8 = 14;
/// Blobs below this number have at most a few kilobytes.
pub(crate) const SMALL: u8 = 8;

const _: () = assert!(BLOBS.len() == ALL as usize);

/// A blob that a history may store.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
}

/// The blob of that number.
pub(crate) fn content(blob: u8) -> &'static Content {
    static CONTENTS: OnceLock<Vec<Content>> = OnceLock::new();
    let contents = CONTENTS.get_or_init(|| {
        BLOBS
            .iter()
            .zip(1_u64..)
            .map(|((len, algorithm), number)| {
                let bytes = Bytes::from(noise(number, *len));
                Content { digest: Digest::of(*algorithm, &bytes), bytes }
            })
            .collect()
    });
    &contents[usize::from(blob % ALL)]
}

/// The number of the blob with that digest.
pub(crate) fn number(digest: &Digest) -> Option<u8> {
    (0..ALL).find(|blob| content(*blob).digest == *digest)
}

/// The key of a repository.
pub(crate) fn repository(number: u8) -> RepositoryKey {
    RepositoryKey::new(1_000 + u64::from(number % REPOSITORIES)).unwrap()
}

/// The number of a repository.
pub(crate) fn repository_number(key: RepositoryKey) -> Option<u8> {
    (0..REPOSITORIES).find(|number| repository(*number) == key)
}

/// Bytes in which no sector equals another.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
