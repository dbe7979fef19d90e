//! Manifests: any bytes under any content type. The first byte chooses the type.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use taffrail_distribution::manifest::Manifest;

const TYPES: [Option<&str>; 7] = [
    None,
    Some("application/vnd.oci.image.manifest.v1+json"),
    Some("application/vnd.oci.image.index.v1+json"),
    Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"),
    Some("application/vnd.docker.distribution.manifest.list.v2+json"),
    Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
    Some("application/vnd.example+json"),
];

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, document)) = bytes.split_first() else { return };
    let content_type = TYPES[usize::from(*choice) % TYPES.len()];
    let extra = ["application/vnd.example+json".to_owned()];
    match Manifest::parse(document, content_type, &extra) {
        Ok(manifest) => {
            assert!(!manifest.media_type.is_empty());
            let distinct: HashSet<String> =
                manifest.references.iter().map(|reference| format!("{reference:?}")).collect();
            assert_eq!(distinct.len(), manifest.references.len(), "each reference comes once");
        }
        Err(error) => assert!(!error.to_string().is_empty(), "the client is told why"),
    }
});
