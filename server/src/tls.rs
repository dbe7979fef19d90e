//! TLS of the listener: certificates from files, or one of our own making.
//!
//! What must stay true: a certificate that changes on disk is used for new connections and harms no old one (F-39); a change
//! that does not parse, or whose key does not belong to it, leaves the old one in use.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::Config;
use crate::config::sections::TlsMode;
use crate::data_dir::{DataDir, DataDirError, check_key_mode, write_private};

/// How often the files are looked at. Renewals happen weeks before they matter.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("{path}: {source}")]
    Pem {
        /// Which.
        path: String,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// No certificate in the file.
    #[error("{path} holds no certificate")]
    Empty {
        /// Which.
        path: String,
    },
    /// The key cannot be used, or belongs to another certificate.
    #[error("{path}: the key does not serve the certificate: {source}")]
    Key {
        /// Which.
        path: String,
        /// Why.
        source: rustls::Error,
    },
    /// The key is open to all, or the data directory fails.
    #[error(transparent)]
    Files(#[from] DataDirError),
    /// The self-made certificate was not made or kept.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The self-made certificate was not kept.
    #[error("cannot keep the certificate: {0}")]
    Keep(#[from] std::io::Error),
    /// The library refuses the parameters.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

/// The certificate in use.
#[derive(Debug)]
pub(crate) struct Certificate {
    chain_file: PathBuf,
    key_file: PathBuf,
    provider: Arc<CryptoProvider>,
    current: RwLock<(Arc<CertifiedKey>, Stamp)>,
}

/// What tells that the files have changed: times and lengths of both.
type Stamp = [(Option<SystemTime>, u64); 2];

impl Certificate {
    /// The certificate that the configuration asks for; `None` when TLS is off.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub(crate) fn of(config: &Config, dir: &DataDir) -> Result<Option<Arc<Self>>, TlsError> {
        let (chain_file, key_file) = match config.tls.mode {
            TlsMode::Off => return Ok(None),
            TlsMode::SelfSigned => self_signed(&dir.tls(), &names(config))?,
            TlsMode::Files => {
                let file = |path: &Option<PathBuf>| path.clone().unwrap_or_default();
                (file(&config.tls.cert_file), file(&config.tls.key_file))
            }
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let stamp = stamp(&chain_file, &key_file);
        let first = load(&chain_file, &key_file, &provider)?;
        Ok(Some(Arc::new(Self { chain_file, key_file, provider, current: RwLock::new((first, stamp)) })))
    }

    /// The parameters of the listener: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// `Setup`.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Loads the files again if they changed. Says whether they did.
    ///
    /// # Errors
    /// See [`TlsError`]; the old certificate stays in use, and the same state of the files is not tried again.
    pub(crate) fn reload(&self) -> Result<bool, TlsError> {
        let now = stamp(&self.chain_file, &self.key_file);
        if now == self.current.read().unwrap_or_else(PoisonError::into_inner).1 {
            return Ok(false);
        }
        let loaded = load(&self.chain_file, &self.key_file, &self.provider);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.1 = now;
        current.0 = loaded?;
        Ok(true)
    }

    /// Looks at the files for ever, and tells `note` what came of each change.
    pub(crate) async fn follow(self: Arc<Self>, note: impl Fn(&Result<bool, TlsError>) + Send) {
        let mut pace = tokio::time::interval(LOOK_INTERVAL);
        loop {
            pace.tick().await;
            // Two small files: not worth a blocking thread.
            let result = self.reload();
            match &result {
                Ok(false) => continue,
                Ok(true) => {
                    tracing::info!(file = %self.chain_file.display(), "the certificate was loaded again")
                }
                Err(error) => {
                    tracing::warn!(%error, "the certificate has changed and cannot be used; the old one stays")
                }
            }
            note(&result);
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).0))
    }
}

fn stamp(chain_file: &Path, key_file: &Path) -> Stamp {
    [chain_file, key_file].map(|path| match std::fs::metadata(path) {
        Ok(metadata) => (metadata.modified().ok(), metadata.len()),
        Err(_) => (None, 0),
    })
}

fn load(
    chain_file: &Path,
    key_file: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let pem = |path: &Path| {
        let path = path.display().to_string();
        move |source| TlsError::Pem { path, source }
    };
    check_key_mode(key_file)?;
    let chain = CertificateDer::pem_file_iter(chain_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(pem(chain_file))?;
    if chain.is_empty() {
        return Err(TlsError::Empty { path: chain_file.display().to_string() });
    }
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(pem(key_file))?;
    let certified = CertifiedKey::from_der(chain, key, provider)
        .map_err(|source| TlsError::Key { path: key_file.display().to_string(), source })?;
    Ok(Arc::new(certified))
}

/// The names that a self-made certificate is for.
fn names(config: &Config) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let listen: IpAddr = config.server.listen.ip().to_canonical();
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    names.extend(config.server.external_url.as_ref().map(|url| url.host().to_owned()));
    names.sort();
    names.dedup();
    names
}

/// A certificate of our own in `folder`, made when there is none for exactly these names.
fn self_signed(folder: &Path, names: &[String]) -> Result<(PathBuf, PathBuf), TlsError> {
    let chain_file = folder.join("self-signed.crt");
    let key_file = folder.join("self-signed.key");
    let names_file = folder.join("self-signed.names");
    let wanted = names.join("\n");
    let kept = std::fs::read_to_string(&names_file).is_ok_and(|made_for| made_for == wanted);
    if !(kept && chain_file.exists() && key_file.exists()) {
        std::fs::create_dir_all(folder)?;
        let made = rcgen::generate_simple_self_signed(names)?;
        write_private(&key_file, made.signing_key.serialize_pem().as_bytes())?;
        write_private(&chain_file, made.cert.pem().as_bytes())?;
        // Last: after a crash in between, all three are made again.
        write_private(&names_file, wanted.as_bytes())?;
        tracing::info!(?names, file = %chain_file.display(), "made a certificate; clients must be told to trust it");
    }
    Ok((chain_file, key_file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(folder: &Path, names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let (chain_file, key_file) = self_signed(folder, &names).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let loaded = load(&chain_file, &key_file, &provider).unwrap();
        let stamp = stamp(&chain_file, &key_file);
        Certificate { chain_file, key_file, provider, current: RwLock::new((loaded, stamp)) }
    }

    fn in_use(certificate: &Certificate) -> Vec<u8> {
        certificate.current.read().unwrap().0.cert[0].to_vec()
    }

    #[test]
    fn a_self_made_certificate_is_kept_until_its_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let first = in_use(&certificate(dir.path(), &["localhost"]));
        assert_eq!(in_use(&certificate(dir.path(), &["localhost"])), first);
        assert_ne!(in_use(&certificate(dir.path(), &["localhost", "registry.example"])), first);
    }

    #[test]
    fn f_39_a_changed_file_is_taken_up_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let current = certificate(&dir.path().join("a"), &["localhost"]);
        let first = in_use(&current);
        assert!(!current.reload().unwrap());

        let other = certificate(&dir.path().join("b"), &["localhost", "other.example"]);
        std::fs::copy(&other.chain_file, &current.chain_file).unwrap();
        assert!(matches!(current.reload(), Err(TlsError::Key { .. })), "a certificate without its key");
        assert_eq!(in_use(&current), first);
        write_private(&current.key_file, &std::fs::read(&other.key_file).unwrap()).unwrap();
        // The key's length may be the same and the clock coarse; the chain's is not.
        std::fs::write(&current.chain_file, std::fs::read(&other.chain_file).unwrap()).unwrap();
        assert!(current.reload().unwrap());
        assert_eq!(in_use(&current), in_use(&other));

        std::fs::write(&current.chain_file, "garbage").unwrap();
        assert!(matches!(current.reload(), Err(TlsError::Empty { .. } | TlsError::Pem { .. })));
        assert!(!current.reload().unwrap(), "the same garbage is not tried again");
        assert_eq!(in_use(&current), in_use(&other));
    }
}
