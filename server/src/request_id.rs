//! The id by which one request is found in the log, in the answer and in whatever called us.

use std::cell::RefCell;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::ambient;

/// The header that carries it, in both directions.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken over from a client.
const CHARS_MAX: usize = 64;

/// Random bytes of an id of ours.
const BYTES: usize = 16;
/// Ids whose bytes are drawn at once: a call of the system for each would cost more than the id.
const DRAWN_AT_ONCE: usize = 32;

thread_local! {
    /// Bytes of ids that were drawn and not used yet.
    static DRAWN: RefCell<Vec<[u8; BYTES]>> = const { RefCell::new(Vec::new()) };
}

/// A request's id: 1 to 64 of `[A-Za-z0-9-]`, so that it needs no escaping anywhere (S-76).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestId(String);

impl RequestId {
    /// The id that the client sent, when it is well formed, else a new one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(X_REQUEST_ID).iter();
        let (first, second) = (values.next(), values.next());
        match first.and_then(|value| value.to_str().ok()) {
            Some(text) if second.is_none() && is_well_formed(text) => Self(text.to_owned()),
            _ => Self::draw(),
        }
    }

    fn draw() -> Self {
        let bytes = DRAWN.with_borrow_mut(|drawn| {
            if drawn.is_empty() {
                let bytes: [u8; BYTES * DRAWN_AT_ONCE] = ambient::random_bytes();
                drawn.extend_from_slice(bytes.as_chunks().0);
            }
            drawn.pop().unwrap_or_else(ambient::random_bytes)
        });
        Self(format!("{:032x}", u128::from_be_bytes(bytes)))
    }

    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as the value of a header.
    pub(crate) fn header(&self) -> HeaderValue {
        // Its characters are all allowed there.
        HeaderValue::from_str(&self.0).unwrap_or(HeaderValue::from_static(""))
    }
}

fn is_well_formed(text: &str) -> bool {
    (1..=CHARS_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> RequestId {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(X_REQUEST_ID, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        RequestId::of(&headers)
    }

    #[test]
    fn s_76_a_well_formed_id_is_kept_and_any_other_replaced() {
        let longest = "a".repeat(64);
        for good in ["x", "9f1c-AB", longest.as_str()] {
            assert_eq!(of(&[good]).as_str(), good);
        }
        let too_long = "a".repeat(65);
        for bad in ["", " ", "a b", "a_b", "a\u{e9}", "a\tb", "<x>", too_long.as_str()] {
            let id = of(&[bad]);
            assert!(id.as_str().len() == 32 && is_well_formed(id.as_str()), "{bad:?} gave {id:?}");
        }
        assert_ne!(of(&["a", "b"]).as_str(), "a");
        let mut drawn: Vec<RequestId> = (0..3 * DRAWN_AT_ONCE).map(|_| of(&[])).collect();
        drawn.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        drawn.dedup();
        assert_eq!(drawn.len(), 3 * DRAWN_AT_ONCE, "no id is drawn twice");
    }
}
