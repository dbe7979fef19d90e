//! The `Authorization` header: any header value, one or two of them.
#![no_main]

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use libfuzzer_sys::fuzz_target;

// The file alone: its crate would bring a database into a sanitizer build.
#[path = "../../core/src/authorizer/credentials.rs"]
#[allow(missing_docs, reason = "documented where it belongs")]
mod credentials;

use credentials::{Given, given, name_and_password};

const BYTES_MAX: usize = 1024;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some((name, _)) = name_and_password(text)
    {
        assert!(!name.contains(':'), "the first colon divides");
    }
    for prefix in ["", "Basic ", "bEARER "] {
        let Ok(value) = HeaderValue::from_bytes(&[prefix.as_bytes(), bytes].concat()) else { return };
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, value.clone());
        match given(&headers, BYTES_MAX) {
            Given::Basic(rest) | Given::Bearer(rest) => {
                assert!(value.len() <= BYTES_MAX && rest == rest.trim());
                drop(name_and_password(rest));
            }
            Given::Nothing => panic!("there is a header"),
            Given::Odd => {}
        }
        headers.append(AUTHORIZATION, value);
        assert_eq!(given(&headers, BYTES_MAX), Given::Odd, "of two headers none is believed");
    }
});
