//! Names, tags, digests, session ids and whole paths: what parses prints as it was given.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taffrail_blobstore::format::SegmentId;
use taffrail_blobstore::{Digest, SessionId};
use taffrail_distribution::name::{RepositoryName, Tag};
use taffrail_distribution::route::Route;

fuzz_target!(|text: &str| {
    if let Ok(name) = RepositoryName::parse(text) {
        assert_eq!(name.to_string(), text);
        assert!(!text.contains("..") && !text.contains("//") && !text.starts_with('/'));
    }
    if let Ok(tag) = Tag::parse(text) {
        assert_eq!(tag.to_string(), text);
        assert!(!text.contains(['/', ':', '@']));
    }
    if let Ok(digest) = Digest::parse(text) {
        assert_eq!(digest.to_string(), text);
    }
    if let Some(id) = SessionId::parse(text) {
        assert_eq!(id.to_string(), text);
    }
    if let Some(id) = SegmentId::from_file_name(text) {
        assert_eq!(format!("{id}.seg"), text);
    }
    let _ = Route::parse(text);
    let _ = Route::parse(&format!("/v2/{text}"));
    if let Ok(route) = Route::parse(&format!("/v2/library/app/manifests/{text}")) {
        assert_eq!(Route::parse(&format!("/v2/library/app/manifests/{text}")).ok(), Some(route));
    }
});
