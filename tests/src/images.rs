//! Images made from nothing: layers of bytes that no compressor shrinks and no two seeds share.
//!
//! A layer is a recipe (seed and size), written out when somebody needs the bytes, so that a layer of a gigabyte costs
//! no memory. All layers are plain tar; clients that want gzip compress them themselves.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::http::{self, OCI_MANIFEST, Registry};

/// Media type of a layer that is a plain tar.
const OCI_TAR_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of an image's configuration.
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The random part of a layer repeats with this period, under a counter. Gzip looks back 32 KiB, so the bytes stay
/// incompressible, and a gigabyte is made at the speed of a copy.
const PERIOD: usize = 1 << 20;

/// `bytes` of incompressible content, the same for the same seed.
#[must_use]
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill(&mut content[..]);
    content
}

/// The recipe of one layer: a tar of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layer {
    /// What the content is made from.
    pub seed: u64,
    /// Size of the file in the tar; the tar is up to 2 KiB longer.
    pub bytes: u64,
}

impl Layer {
    /// Writes the layer's tar.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn write_to(&self, out: &mut impl Write) -> Result<()> {
        let name = format!("file-{:016x}", self.seed);
        write_tar_header(out, &name, self.bytes)?;
        let mut block = noise(self.seed, usize::try_from(self.bytes)?.min(PERIOD));
        let mut left = usize::try_from(self.bytes)?;
        let mut count = 0_u64;
        while left > 0 {
            let part = left.min(PERIOD);
            if let Some(stamp) = block.get_mut(..8) {
                stamp.copy_from_slice(&count.to_le_bytes());
            }
            out.write_all(&block[..part])?;
            left -= part;
            count += 1;
        }
        write_tar_padding(out, self.bytes)?;
        write_tar_end(out)
    }

    /// The tar in memory.
    ///
    /// # Errors
    /// When the size does not fit this machine.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }

    /// Digest and size of the tar.
    ///
    /// # Errors
    /// As [`Layer::tar`].
    pub fn describe(&self) -> Result<(String, u64)> {
        let mut hash = Hashing { hash: Sha256::new(), bytes: 0 };
        self.write_to(&mut hash)?;
        Ok((format!("sha256:{}", hex::encode(hash.hash.finalize())), hash.bytes))
    }
}

/// An image of some layers, with its configuration and manifest.
#[derive(Debug, Clone)]
pub struct Image {
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    /// The configuration's bytes.
    pub config: Vec<u8>,
    /// The OCI manifest's bytes.
    pub manifest: Vec<u8>,
    described: Vec<(String, u64)>,
}

impl Image {
    /// An image of layers with these seeds and sizes, for `linux` on `architecture`.
    ///
    /// # Errors
    /// When a size does not fit this machine.
    pub fn new(architecture: &str, layers: &[Layer]) -> Result<Self> {
        let described = layers.iter().map(Layer::describe).collect::<Result<Vec<_>>>()?;
        let config = json!({
            "architecture": architecture, "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": described.iter().map(|(digest, _)| digest).collect::<Vec<_>>()},
            "history": described.iter().map(|_| json!({"created": "2026-01-01T00:00:00Z", "created_by": "test"}))
                .collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": http::sha256(&config), "size": config.len()},
            "layers": described.iter()
                .map(|(digest, size)| json!({"mediaType": OCI_TAR_LAYER, "digest": digest, "size": size}))
                .collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes();
        Ok(Self { layers: layers.to_vec(), config, manifest, described })
    }

    /// An image whose layers, of these sizes, nothing else shares.
    ///
    /// # Errors
    /// As [`Image::new`].
    pub fn unique(sizes: &[u64]) -> Result<Self> {
        let layers: Vec<Layer> =
            sizes.iter().map(|bytes| Layer { seed: rand::random(), bytes: *bytes }).collect();
        Self::new("amd64", &layers)
    }

    /// The manifest's digest.
    #[must_use]
    pub fn digest(&self) -> String {
        http::sha256(&self.manifest)
    }

    /// Digests of configuration and layers.
    #[must_use]
    pub fn blobs(&self) -> Vec<String> {
        let config = http::sha256(&self.config);
        std::iter::once(config).chain(self.described.iter().map(|(digest, _)| digest.clone())).collect()
    }

    /// Pushes the image over HTTP.
    ///
    /// # Errors
    /// When anything is not acknowledged.
    pub fn push(&self, registry: &Registry, repository: &str, tag: &str) -> Result<String> {
        for layer in &self.layers {
            registry.push_blob(repository, &layer.tar()?)?;
        }
        registry.push_blob(repository, &self.config)?;
        registry.push_manifest(repository, tag, OCI_MANIFEST, &self.manifest)
    }

    /// Writes the image as an OCI layout, tagged `tag`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_oci_layout(&self, dir: &Path, tag: &str) -> Result<()> {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let hex_of = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
        for (layer, (digest, _)) in self.layers.iter().zip(&self.described) {
            let mut file = BufWriter::new(File::create(blobs.join(hex_of(digest)))?);
            layer.write_to(&mut file)?;
            file.flush()?;
        }
        std::fs::write(blobs.join(hex_of(&http::sha256(&self.config))), &self.config)?;
        std::fs::write(blobs.join(hex_of(&self.digest())), &self.manifest)?;
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": OCI_MANIFEST, "digest": self.digest(), "size": self.manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }],
        });
        Ok(std::fs::write(dir.join("index.json"), index.to_string())?)
    }

    /// Writes the image as an OCI layout packed in one tar, which `ctr images import` and `podman load` take.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_oci_archive(&self, path: &Path, tag: &str) -> Result<()> {
        let dir = tempfile::tempdir()?;
        self.write_oci_layout(dir.path(), tag)?;
        let mut out = BufWriter::new(File::create(path)?);
        let mut names = vec!["oci-layout".to_owned(), "index.json".to_owned()];
        for entry in std::fs::read_dir(dir.path().join("blobs/sha256"))? {
            names.push(format!("blobs/sha256/{}", entry?.file_name().to_string_lossy()));
        }
        for name in names {
            let mut file = File::open(dir.path().join(&name))?;
            let bytes = file.metadata()?.len();
            write_tar_header(&mut out, &name, bytes)?;
            std::io::copy(&mut file, &mut out)?;
            write_tar_padding(&mut out, bytes)?;
        }
        write_tar_end(&mut out)?;
        Ok(out.flush()?)
    }

    /// Writes the image in the form that `docker load` takes, named `name`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_docker_archive(&self, path: &Path, name: &str) -> Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        let config_name = format!("{}.json", hex::encode(Sha256::digest(&self.config)));
        write_tar_file(&mut out, &config_name, &self.config)?;
        let mut layer_names = Vec::new();
        for (layer, (digest, size)) in self.layers.iter().zip(&self.described) {
            let layer_name = format!("{}/layer.tar", digest.trim_start_matches("sha256:"));
            write_tar_header(&mut out, &layer_name, *size)?;
            layer.write_to(&mut out)?;
            write_tar_padding(&mut out, *size)?;
            layer_names.push(layer_name);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": layer_names}]);
        write_tar_file(&mut out, "manifest.json", manifest.to_string().as_bytes())?;
        write_tar_end(&mut out)?;
        Ok(out.flush()?)
    }
}

/// An OCI index of `images`, given with their architectures.
#[must_use]
pub fn index_of(images: &[(&str, &Image)]) -> Vec<u8> {
    json!({
        "schemaVersion": 2, "mediaType": http::OCI_INDEX,
        "manifests": images.iter().map(|(architecture, image)| json!({
            "mediaType": OCI_MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
            "platform": {"architecture": architecture, "os": "linux"},
        })).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes()
}

/// Hashes a file in pieces.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; PERIOD];
    loop {
        let count = file.read(&mut piece)?;
        if count == 0 {
            return Ok(format!("sha256:{}", hex::encode(hash.finalize())));
        }
        hash.update(&piece[..count]);
    }
}

struct Hashing {
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        self.hash.update(part);
        self.bytes += part.len() as u64;
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Tar works in blocks of this many bytes.
const TAR_BLOCK: usize = 512;

fn write_tar_file(out: &mut impl Write, name: &str, content: &[u8]) -> Result<()> {
    write_tar_header(out, name, content.len() as u64)?;
    out.write_all(content)?;
    write_tar_padding(out, content.len() as u64)
}

/// A `ustar` header, as POSIX.1-2017 `pax` describes it. Names are shorter than its 100 bytes.
fn write_tar_header(out: &mut impl Write, name: &str, bytes: u64) -> Result<()> {
    let mut block = [0_u8; TAR_BLOCK];
    let mut field = |offset: usize, text: &str| {
        block[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    };
    anyhow::ensure!(name.len() < 100, "a name too long for a tar header: {name}");
    field(0, name);
    field(100, "0000644\0");
    field(108, "0000000\0");
    field(116, "0000000\0");
    field(124, &format!("{bytes:011o}\0"));
    field(136, "00000000000\0");
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(out.write_all(&block)?)
}

fn write_tar_padding(out: &mut impl Write, bytes: u64) -> Result<()> {
    let over = usize::try_from(bytes % TAR_BLOCK as u64)?;
    if over > 0 {
        out.write_all(&[0; TAR_BLOCK][over..])?;
    }
    Ok(())
}

fn write_tar_end(out: &mut impl Write) -> Result<()> {
    Ok(out.write_all(&[0; 2 * TAR_BLOCK])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_the_same_tar_each_time_and_another_for_another_seed() {
        let layer = Layer { seed: 7, bytes: 3 * PERIOD as u64 + 5 };
        let tar = layer.tar().unwrap();
        assert_eq!(tar, layer.tar().unwrap());
        assert_eq!(layer.describe().unwrap(), (http::sha256(&tar), tar.len() as u64));
        assert_eq!(tar.len() % TAR_BLOCK, 0);
        assert_ne!(tar, Layer { seed: 8, ..layer }.tar().unwrap());
        // The counter keeps the periods apart.
        assert_ne!(tar[TAR_BLOCK..TAR_BLOCK + 8], tar[TAR_BLOCK + PERIOD..TAR_BLOCK + PERIOD + 8]);
    }
}
