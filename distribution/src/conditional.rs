//! Conditional requests (RFC 9110 section 13). The entity tag of whatever we answer is its digest in quotes, and strong.

use http::HeaderMap;
use http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE};
use taffrail_blobstore::Digest;

use crate::catalog::Precondition;
use crate::error::Error;

/// What the conditions of a GET or HEAD make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer as usual.
    Send,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Judges the conditions of a GET or HEAD of something that exists and has this digest.
pub(crate) fn read(headers: &HeaderMap, digest: &Digest) -> Verdict {
    if headers.contains_key(IF_MATCH) && !any_matches(headers, &IF_MATCH, digest) {
        return Verdict::Failed;
    }
    if any_matches(headers, &IF_NONE_MATCH, digest) {
        return Verdict::NotModified;
    }
    Verdict::Send
}

/// Whether `Range` may be honoured: there is no `If-Range`, or it names this very content. A date never does: we keep none.
pub(crate) fn range_applies(headers: &HeaderMap, digest: &Digest) -> bool {
    let Some(value) = headers.get(IF_RANGE) else { return true };
    value.to_str().is_ok_and(|text| {
        let text = text.trim();
        text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).is_some_and(|text| is(text, digest))
    })
}

/// Whether `If-Match` or `If-None-Match` lets a write happen to what exists now; `None` is nothing.
///
/// # Errors
/// `Precondition`.
pub(crate) fn check(precondition: &Precondition, current: Option<&Digest>) -> Result<(), Error> {
    let holds = match (precondition, current) {
        (Precondition::None, _) | (Precondition::Absent | Precondition::IsNot(_), None) => true,
        (Precondition::Absent, Some(_)) | (Precondition::Is(_), None) => false,
        (Precondition::Is(digests), Some(current)) => digests.is_empty() || digests.contains(current),
        (Precondition::IsNot(digests), Some(current)) => !digests.contains(current),
    };
    if holds { Ok(()) } else { Err(Error::Precondition) }
}

/// The precondition of a write of a manifest.
///
/// # Errors
/// `Precondition` when it can never hold (an `If-Match` with nothing that is a digest), `PreconditionForm` when both headers
/// are there and the catalog could not judge them in one step.
pub(crate) fn write(headers: &HeaderMap) -> Result<Precondition, Error> {
    let demanded = headers.contains_key(IF_MATCH).then(|| listed(headers, &IF_MATCH));
    let excluded = headers.contains_key(IF_NONE_MATCH).then(|| listed(headers, &IF_NONE_MATCH));
    match (demanded, excluded) {
        (None, None) => Ok(Precondition::None),
        (Some(Listed::Any), None) => Ok(Precondition::Is(Vec::new())),
        (Some(Listed::Digests(digests)), None) if digests.is_empty() => Err(Error::Precondition),
        (Some(Listed::Digests(digests)), None) => Ok(Precondition::Is(digests)),
        (None, Some(Listed::Any)) => Ok(Precondition::Absent),
        (None, Some(Listed::Digests(digests))) if digests.is_empty() => Ok(Precondition::None),
        (None, Some(Listed::Digests(digests))) => Ok(Precondition::IsNot(digests)),
        (Some(_), Some(_)) => Err(Error::PreconditionForm),
    }
}

enum Listed {
    Any,
    Digests(Vec<Digest>),
}

fn listed(headers: &HeaderMap, name: &HeaderName) -> Listed {
    let mut digests = Vec::new();
    for tag in entity_tags(headers, name) {
        if tag == "*" {
            return Listed::Any;
        }
        if let Ok(digest) = Digest::parse(opaque(tag)) {
            digests.push(digest);
        }
    }
    Listed::Digests(digests)
}

fn any_matches(headers: &HeaderMap, name: &HeaderName, digest: &Digest) -> bool {
    entity_tags(headers, name).any(|tag| tag == "*" || is(opaque(tag), digest))
}

/// The members of a list of entity tags. A digest holds no comma, so no quoted one is cut in two; what is cut is none of
/// ours.
fn entity_tags<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|tag| !tag.is_empty())
}

/// What is inside `"…"` or `W/"…"`; clients that forget the quotes are understood too.
fn opaque(tag: &str) -> &str {
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag)
}

fn is(text: &str, digest: &Digest) -> bool {
    Digest::parse(text).is_ok_and(|parsed| parsed == *digest)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use taffrail_blobstore::Algorithm;

    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_read_is_judged_by_its_entity_tags() {
        let digest = Digest::of(Algorithm::Sha256, b"a");
        let other = Digest::of(Algorithm::Sha256, b"b");
        for (name, value, verdict) in [
            (IF_NONE_MATCH, format!("\"{digest}\""), Verdict::NotModified),
            (IF_NONE_MATCH, format!("W/\"{digest}\""), Verdict::NotModified),
            (IF_NONE_MATCH, format!("{digest}"), Verdict::NotModified),
            (IF_NONE_MATCH, format!("\"x\", \"{digest}\""), Verdict::NotModified),
            (IF_NONE_MATCH, "*".to_owned(), Verdict::NotModified),
            (IF_NONE_MATCH, format!("\"{other}\""), Verdict::Send),
            (IF_NONE_MATCH, "\"\"".to_owned(), Verdict::Send),
            (IF_MATCH, format!("\"{digest}\""), Verdict::Send),
            (IF_MATCH, "*".to_owned(), Verdict::Send),
            (IF_MATCH, format!("\"{other}\""), Verdict::Failed),
            (IF_MATCH, String::new(), Verdict::Failed),
        ] {
            assert_eq!(read(&headers(&[(name.clone(), &value)]), &digest), verdict, "{name}: {value}");
        }
        assert_eq!(read(&HeaderMap::new(), &digest), Verdict::Send);
    }

    #[test]
    fn a_write_never_turns_a_condition_that_cannot_hold_into_none() {
        let digest = Digest::of(Algorithm::Sha256, b"a");
        let write =
            |pairs: &[(HeaderName, &str)]| write(&headers(pairs)).map_err(|error| error.status().as_u16());
        assert_eq!(write(&[]), Ok(Precondition::None));
        assert_eq!(write(&[(IF_MATCH, "*")]), Ok(Precondition::Is(vec![])));
        assert_eq!(write(&[(IF_MATCH, "\"x\"")]), Err(412));
        assert_eq!(write(&[(IF_MATCH, &format!("\"{digest}\""))]), Ok(Precondition::Is(vec![digest])));
        assert_eq!(write(&[(IF_NONE_MATCH, "*")]), Ok(Precondition::Absent));
        assert_eq!(write(&[(IF_NONE_MATCH, "\"x\"")]), Ok(Precondition::None));
        assert_eq!(
            write(&[(IF_NONE_MATCH, &format!("\"{digest}\""))]),
            Ok(Precondition::IsNot(vec![digest]))
        );
        assert_eq!(write(&[(IF_MATCH, "*"), (IF_NONE_MATCH, "*")]), Err(400));
    }

    #[test]
    fn if_range_takes_a_strong_tag_of_this_content_only() {
        let digest = Digest::of(Algorithm::Sha256, b"a");
        let applies = |value: &str| range_applies(&headers(&[(IF_RANGE, value)]), &digest);
        assert!(range_applies(&HeaderMap::new(), &digest));
        assert!(applies(&format!("\"{digest}\"")));
        assert!(!applies(&format!("W/\"{digest}\"")));
        assert!(!applies("\"x\""));
        assert!(!applies("Wed, 21 Oct 2015 07:28:00 GMT"));
    }
}
