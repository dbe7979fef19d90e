//! The `Authorization` header: what a client claims to be, not yet believed.
//!
//! Pure, and without imports from this crate: `fuzz/` builds this file by itself.

use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Credentials as they stand in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given<'a> {
    /// No header.
    Nothing,
    /// What follows `Basic`.
    Basic(&'a str),
    /// What follows `Bearer`.
    Bearer(&'a str),
    /// Two headers, another scheme, text that is no ASCII, or more than is read.
    Odd,
}

/// Splits the `Authorization` header, of at most `bytes_max` bytes.
pub fn given(headers: &HeaderMap, bytes_max: usize) -> Given<'_> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return if headers.contains_key(AUTHORIZATION) { Given::Odd } else { Given::Nothing };
    };
    let split =
        value.to_str().ok().filter(|text| text.len() <= bytes_max).and_then(|text| text.split_once(' '));
    match split {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("basic") => Given::Basic(rest.trim()),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") => Given::Bearer(rest.trim()),
        _ => Given::Odd,
    }
}

/// Name and password of a Basic credential (RFC 7617).
pub fn name_and_password(encoded: &str) -> Option<(String, String)> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}
