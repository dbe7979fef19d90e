//! Digests: the address of a blob, as algorithm and bytes.
//!
//! Invariant: a `Digest` is well formed. Text becomes one only in [`Digest::parse`], bytes from a disk only in
//! [`Digest::from_parts`]; past those two nothing checks again.

use std::fmt;

/// A digest algorithm that the store can address blobs by.
///
/// `sha256` and `sha512` are registered by OCI image-spec 1.1; `blake3` (256 bit) is registered by its main branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 32 bytes; what every client sends unless told otherwise.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
    /// BLAKE3 with its default output of 32 bytes.
    Blake3,
}

impl Algorithm {
    /// Every algorithm, in the order of their numbers on disk.
    pub const ALL: [Algorithm; 3] = [Algorithm::Sha256, Algorithm::Sha512, Algorithm::Blake3];

    /// Length of a digest in bytes.
    pub const fn digest_bytes(self) -> usize {
        match self {
            Algorithm::Sha256 | Algorithm::Blake3 => 32,
            Algorithm::Sha512 => 64,
        }
    }

    /// The name before the colon of a digest.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
            Algorithm::Blake3 => "blake3",
        }
    }

    /// The algorithm of that name, if the store knows it. Names are case-sensitive (image-spec, descriptor.md).
    pub fn from_name(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The number that stands for the algorithm on disk. Never reused.
    pub const fn number(self) -> u8 {
        match self {
            Algorithm::Sha256 => 1,
            Algorithm::Sha512 => 2,
            Algorithm::Blake3 => 3,
        }
    }

    /// The algorithm of that number on disk.
    pub fn from_number(number: u8) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.number() == number)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// There is no `algorithm:encoded` in it.
    #[error("a digest has the form algorithm:hex")]
    Form,
    /// The algorithm is none of [`Algorithm::ALL`].
    #[error("unsupported digest algorithm; use sha256, sha512 or blake3")]
    Algorithm,
    /// The part after the colon has another length than the algorithm demands, or is not lowercase hex.
    #[error("the encoded part is not lowercase hex of the algorithm's length")]
    Encoded,
}

/// The address of a blob.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// See [`Algorithm::Sha256`].
    Sha256([u8; 32]),
    /// See [`Algorithm::Sha512`].
    Sha512([u8; 64]),
    /// See [`Algorithm::Blake3`].
    Blake3([u8; 32]),
}

impl Digest {
    /// Length of the longest digest in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Parses `algorithm:hex`, in lowercase (image-spec, descriptor.md, "Digests").
    ///
    /// # Errors
    /// See [`DigestError`].
    pub fn parse(text: &str) -> Result<Digest, DigestError> {
        let (name, encoded) = text.split_once(':').ok_or(DigestError::Form)?;
        let algorithm = Algorithm::from_name(name).ok_or(DigestError::Algorithm)?;
        if encoded.len() != algorithm.digest_bytes() * 2 {
            return Err(DigestError::Encoded);
        }
        let mut bytes = [0_u8; Digest::BYTES_MAX];
        for (byte, pair) in bytes.iter_mut().zip(encoded.as_bytes().chunks_exact(2)) {
            let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
                return Err(DigestError::Encoded);
            };
            *byte = high << 4 | low;
        }
        Digest::from_parts(algorithm, &bytes[..algorithm.digest_bytes()]).ok_or(DigestError::Encoded)
    }

    /// Puts a digest together; `None` when the length is not the algorithm's.
    pub fn from_parts(algorithm: Algorithm, bytes: &[u8]) -> Option<Digest> {
        Some(match algorithm {
            Algorithm::Sha256 => Digest::Sha256(bytes.try_into().ok()?),
            Algorithm::Sha512 => Digest::Sha512(bytes.try_into().ok()?),
            Algorithm::Blake3 => Digest::Blake3(bytes.try_into().ok()?),
        })
    }

    /// Which algorithm made it.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Digest::Sha256(_) => Algorithm::Sha256,
            Digest::Sha512(_) => Algorithm::Sha512,
            Digest::Blake3(_) => Algorithm::Blake3,
        }
    }

    /// The raw bytes, as long as [`Algorithm::digest_bytes`] says.
    pub const fn bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(bytes) | Digest::Blake3(bytes) => bytes,
            Digest::Sha512(bytes) => bytes,
        }
    }

    /// The part after the colon.
    pub fn encoded(&self) -> String {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        // Room at once: every answer names a digest.
        let mut text = String::with_capacity(self.bytes().len() * 2);
        for byte in self.bytes() {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        text
    }

    /// The digest of `bytes`, hashed here and now on the caller's thread.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = crate::hasher::Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }
}

fn nibble(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.encoded())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        Digest::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_displayed_parses_to_the_same_digest() {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"taffrail");
            assert_eq!(Digest::parse(&digest.to_string()), Ok(digest));
        }
    }

    #[test]
    fn malformed_digests_are_refused() {
        let hex64 = "0".repeat(64);
        assert_eq!(Digest::parse("sha256"), Err(DigestError::Form));
        assert_eq!(Digest::parse(&format!("md5:{hex64}")), Err(DigestError::Algorithm));
        assert_eq!(Digest::parse(&format!("SHA256:{hex64}")), Err(DigestError::Algorithm));
        for encoded in
            ["", &hex64[1..], &format!("{hex64}0"), &"A".repeat(64), &"../x".repeat(16), &"é".repeat(32)]
        {
            assert_eq!(Digest::parse(&format!("sha256:{encoded}")), Err(DigestError::Encoded), "{encoded}");
        }
        assert_eq!(Digest::parse(&format!("sha512:{hex64}")), Err(DigestError::Encoded));
    }

    #[test]
    fn known_answers_hold() {
        assert_eq!(
            Digest::of(Algorithm::Sha256, b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            Digest::of(Algorithm::Blake3, b"").to_string(),
            "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }
}
