//! Signing keys: made at the first start, kept in files that only their owner may read.
//!
//! A keyset is the current key and, for as long as tokens of it may live, those before. The name of a key (`kid`) is its RFC
//! 7638 thumbprint, so a key can have no other's name.
//!
//! To rotate: rename `token-signing-key.p8` to `token-signing-key.previous.p8` and start again. The next start makes a new key;
//! tokens of the old one are good until they end, and six minutes later the old file may go.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// File of the current key, and of the one before, in the key folder: PKCS #8, DER.
const CURRENT: &str = "token-signing-key.p8";
const PREVIOUS: &str = "token-signing-key.previous.p8";

/// Why the keys are not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Others may read it.
    #[error(
        "{path} can be read by others (mode {mode:o}); a leaked signing key opens every project. Run: chmod 600 {path}"
    )]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is no P-256 key in PKCS #8.
    #[error(
        "{path} is no P-256 private key in PKCS #8; restore it, or remove it to have a new one made (tokens of the old one end)"
    )]
    Malformed {
        /// Which file.
        path: PathBuf,
    },
    /// The file system failed.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// The public half of a key as JSON (RFC 7517), with the members in the order of RFC 7638.
#[derive(Clone, Debug, Serialize)]
pub struct Jwk {
    crv: &'static str,
    kty: &'static str,
    x: String,
    y: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alg: Option<&'static str>,
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    usage: Option<&'static str>,
}

struct Key {
    signing: EncodingKey,
    verifying: DecodingKey,
    jwk: Jwk,
}

/// The keys by their names.
pub struct Keyset {
    keys: BTreeMap<String, Key>,
    current: String,
}

impl std::fmt::Debug for Keyset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyset").field("current", &self.current).finish_non_exhaustive()
    }
}

impl Keyset {
    /// Loads the keys of a folder, making the first one in an empty folder.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn load_or_make(folder: &Path) -> Result<Keyset, KeyError> {
        let path = folder.join(CURRENT);
        if !path.exists() {
            make(&path)?;
        }
        let (current, key) = load(&path)?;
        let mut keys = BTreeMap::from([(current.clone(), key)]);
        let previous = folder.join(PREVIOUS);
        if previous.exists() {
            let (name, key) = load(&previous)?;
            keys.entry(name).or_insert(key);
        }
        Ok(Keyset { keys, current })
    }

    /// Name and key to sign with.
    pub(crate) fn signing(&self) -> Option<(&str, &EncodingKey)> {
        self.keys.get(&self.current).map(|key| (self.current.as_str(), &key.signing))
    }

    /// The key of that name, to verify with.
    pub(crate) fn verifying(&self, name: &str) -> Option<&DecodingKey> {
        self.keys.get(name).map(|key| &key.verifying)
    }

    /// The public halves.
    pub fn public(&self) -> Vec<Jwk> {
        let named = self.keys.iter().map(|(name, key)| Jwk {
            kid: Some(name.clone()),
            alg: Some("ES256"),
            usage: Some("sig"),
            ..key.jwk.clone()
        });
        named.collect()
    }
}

fn make(path: &Path) -> Result<(), KeyError> {
    let io = |error: io::Error| KeyError::Io { path: path.to_owned(), error };
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
        .map_err(|_| io(io::Error::other("no key could be generated")))?;
    // Written aside and renamed: a crash leaves a whole key or none.
    let aside = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)
        .map_err(io)?;
    file.write_all(document.as_ref()).and_then(|()| file.sync_all()).map_err(io)?;
    std::fs::rename(&aside, path).map_err(io)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

fn load(path: &Path) -> Result<(String, Key), KeyError> {
    let io = |error: io::Error| KeyError::Io { path: path.to_owned(), error };
    let mode = std::fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Permissions { path: path.to_owned(), mode });
    }
    let document = std::fs::read(path).map_err(io)?;
    let malformed = || KeyError::Malformed { path: path.to_owned() };
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &document).map_err(|_| malformed())?;
    // An uncompressed point: 4, x, y.
    let point = pair.public_key().as_ref();
    let (x, y) = point.get(1..).filter(|point| point.len() == 64).ok_or_else(malformed)?.split_at(32);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let verifying = DecodingKey::from_ec_components(&x, &y).map_err(|_| malformed())?;
    let jwk = Jwk { crv: "P-256", kty: "EC", x, y, kid: None, alg: None, usage: None };
    let canonical = serde_json::to_vec(&jwk).map_err(|_| malformed())?;
    let name = URL_SAFE_NO_PAD.encode(Sha256::digest(canonical));
    Ok((name, Key { signing: EncodingKey::from_ec_der(&document), verifying, jwk }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let made = Keyset::load_or_make(folder.path()).unwrap();
        let found = Keyset::load_or_make(folder.path()).unwrap();
        assert_eq!(made.current, found.current);
        let mode = std::fs::metadata(folder.path().join(CURRENT)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(found.public().len(), 1);
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(Keyset::load_or_make(folder.path()).unwrap());
        let path = folder.path().join(CURRENT);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Keyset::load_or_make(folder.path()), Err(KeyError::Permissions { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, b"garbage").unwrap();
        assert!(matches!(Keyset::load_or_make(folder.path()), Err(KeyError::Malformed { .. })));
    }
}
