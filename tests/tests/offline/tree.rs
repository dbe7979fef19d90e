//! A tree of distribution's, made file by file, so that it can be damaged in every place.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use taffrail_tests::http::{OCI_MANIFEST, sha256};

/// The tree.
pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// An empty one.
    pub(crate) fn make(dir: &Path) -> Result<Tree> {
        let root = dir.join("docker/registry/v2");
        fs::create_dir_all(root.join("repositories"))?;
        fs::create_dir_all(root.join("blobs"))?;
        Ok(Tree { root })
    }

    /// Where a blob's bytes are.
    pub(crate) fn data(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// Where a repository is.
    pub(crate) fn repository(&self, name: &str) -> PathBuf {
        self.root.join("repositories").join(name)
    }

    /// Puts a blob's bytes there.
    pub(crate) fn blob(&self, bytes: &[u8]) -> Result<String> {
        let digest = sha256(bytes);
        write(&self.data(&digest), bytes)?;
        Ok(digest)
    }

    /// A blob and the repository's link to it.
    pub(crate) fn layer(&self, repository: &str, bytes: &[u8]) -> Result<String> {
        let digest = self.blob(bytes)?;
        self.link(repository, "_layers", &digest)?;
        Ok(digest)
    }

    /// A link named by its digest.
    pub(crate) fn link(&self, repository: &str, folder: &str, digest: &str) -> Result<()> {
        let path = self.repository(repository).join(folder).join(digest.replacen(':', "/", 1)).join("link");
        write(&path, digest.as_bytes())
    }

    /// A manifest, and the tag on it.
    pub(crate) fn manifest(&self, repository: &str, tag: Option<&str>, document: &[u8]) -> Result<String> {
        let digest = self.blob(document)?;
        self.link(repository, "_manifests/revisions", &digest)?;
        if let Some(tag) = tag {
            self.tag(repository, tag, &digest)?;
        }
        Ok(digest)
    }

    /// A tag.
    pub(crate) fn tag(&self, repository: &str, tag: &str, digest: &str) -> Result<()> {
        let folder = self.repository(repository).join("_manifests/tags").join(tag);
        write(&folder.join("current/link"), digest.as_bytes())
    }

    /// An image of one layer; gives the digests of manifest and layer.
    pub(crate) fn image(&self, repository: &str, tag: &str, layer: &[u8]) -> Result<(String, String)> {
        let config = br#"{"architecture":"amd64","os":"linux"}"#;
        self.layer(repository, config)?;
        let digest = self.layer(repository, layer)?;
        let manifest = image_of(config, layer);
        Ok((self.manifest(repository, Some(tag), &manifest)?, digest))
    }
}

/// The manifest of an image of one layer.
pub(crate) fn image_of(config: &[u8], layer: &[u8]) -> Vec<u8> {
    let descriptor = |media_type: &str, bytes: &[u8]| -> Value {
        json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
    };
    json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    })
    .to_string()
    .into_bytes()
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(fs::write(path, bytes)?)
}
