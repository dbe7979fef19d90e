//! A certificate authority and a server certificate for 127.0.0.1, made for one test and trusted by nobody else.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

/// The files of one authority and the server certificate that it signed.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The authority's certificate, PEM: what a client is told to trust.
    pub authority: PathBuf,
    /// The server's certificate, PEM.
    pub certificate: PathBuf,
    /// The server's private key, PEM.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes both in `dir`; the authority is also written as `dir/trust/ca.crt`, the form that skopeo, podman and
    /// buildah take as a folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn make(dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "taffrail test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        let signed = params.signed_by(&key, &authority)?;

        let made = Self {
            authority: dir.join("trust/ca.crt"),
            certificate: dir.join("server.pem"),
            key: dir.join("server.key"),
        };
        std::fs::create_dir_all(dir.join("trust"))?;
        std::fs::write(&made.authority, authority.pem())?;
        std::fs::write(&made.certificate, signed.pem())?;
        std::fs::write(&made.key, key.serialize_pem())?;
        // A key that others may read is refused.
        std::fs::set_permissions(&made.key, std::fs::Permissions::from_mode(0o600))?;
        Ok(made)
    }

    /// The folder that holds the authority alone.
    #[must_use]
    pub fn trust_dir(&self) -> PathBuf {
        self.authority.parent().map(Path::to_path_buf).unwrap_or_default()
    }
}
