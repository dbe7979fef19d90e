//! What is pushed: blobs that no compressor shrinks and no two of which are alike, made from one buffer of noise.
//!
//! A blob is its length and a stamp of 16 bytes that stands at its beginning; the noise follows, again and again. So a
//! blob of ten gigabytes costs no memory, and the client sends from pages that are always resident.

use std::sync::OnceLock;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

/// Length of the noise. It is past the second-level cache of a core, as the memory of a real client is.
const NOISE_BYTES: usize = 8 << 20;

/// Length of the stamp, and least length of a blob.
pub(crate) const STAMP_BYTES: usize = 16;

/// Media type of an OCI image manifest.
pub(crate) const MANIFEST: &str = taffrail_tests::http::OCI_MANIFEST;

fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| taffrail_tests::images::noise(0x7461_6666, NOISE_BYTES))
}

/// One blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    stamp: [u8; STAMP_BYTES],
    /// Length in bytes, at least [`STAMP_BYTES`].
    pub(crate) bytes: u64,
    /// `sha256:` and hex.
    pub(crate) digest: String,
}

impl Blob {
    /// A blob that nobody has seen before.
    pub(crate) fn fresh(bytes: u64) -> Self {
        Self::stamped(rand::random(), bytes)
    }

    /// So many blobs of one length.
    pub(crate) fn several(count: usize, bytes: u64) -> Vec<Self> {
        (0..count).map(|_| Self::fresh(bytes)).collect()
    }

    /// The blob of a generator's next stamp: the same for the same seed.
    pub(crate) fn seeded(random: &mut StdRng, bytes: u64) -> Self {
        let mut stamp = [0; STAMP_BYTES];
        random.fill(&mut stamp[..]);
        Self::stamped(stamp, bytes)
    }

    fn stamped(stamp: [u8; STAMP_BYTES], bytes: u64) -> Self {
        let mut blob = Self { stamp, bytes: bytes.max(STAMP_BYTES as u64), digest: String::new() };
        let mut hash = Sha256::new();
        for part in blob.parts() {
            hash.update(part);
        }
        blob.digest = format!("sha256:{}", hex::encode(hash.finalize()));
        blob
    }

    /// The content, in pieces.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut left = self.bytes.saturating_sub(STAMP_BYTES as u64);
        let rest = std::iter::from_fn(move || {
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(NOISE_BYTES);
            left -= take as u64;
            noise().get(..take).filter(|part| !part.is_empty())
        });
        std::iter::once(&self.stamp[..]).chain(rest)
    }

    /// The content in one piece, for small blobs.
    pub(crate) fn content(&self) -> Vec<u8> {
        let mut content = Vec::with_capacity(usize::try_from(self.bytes).unwrap_or(0));
        self.parts().for_each(|part| content.extend_from_slice(part));
        content
    }
}

/// A generator for content and choices that every target meets alike.
pub(crate) fn random(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// The manifest of an image with this configuration and these layers.
pub(crate) fn manifest(config: &Blob, layers: &[Blob]) -> Vec<u8> {
    let descriptor = |media_type: &str, blob: &Blob| serde_json::json!({"mediaType": media_type, "digest": blob.digest, "size": blob.bytes});
    let layers: Vec<_> =
        layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer)).collect();
    serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config), "layers": layers,
    })
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_has_the_length_and_the_digest_that_it_says() {
        for bytes in [16, 17, 4096, NOISE_BYTES as u64 + 16, NOISE_BYTES as u64 * 2 + 21] {
            let blob = Blob::fresh(bytes);
            let content = blob.content();
            assert_eq!(content.len() as u64, bytes);
            assert_eq!(taffrail_tests::http::sha256(&content), blob.digest);
        }
    }

    #[test]
    fn no_two_fresh_blobs_are_alike_and_seeded_ones_are() {
        assert_ne!(Blob::fresh(64), Blob::fresh(64));
        assert_eq!(Blob::seeded(&mut random(3), 64), Blob::seeded(&mut random(3), 64));
    }
}
