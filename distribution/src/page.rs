//! Pages: `n` and `last` of a request, and the `Link` to the next page.
//!
//! `last` is a position, not an entry: it need not exist (any more), so that a pagination survives deletions.

use std::fmt;

use http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::answer;
use crate::error::Error;
use crate::query::Query;

/// What stays as it is in a query value (RFC 3986, "unreserved").
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How many entries the client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// `n=0`: none, and no `Link` (distribution-spec, "Listing tags").
    Zero,
    /// At least one.
    Entries(u32),
}

/// Reads `n`: absent is `default`, more than `max` is clamped.
///
/// # Errors
/// `PageNumber` when it is no number.
pub(crate) fn limit(query: Query<'_>, default: u32, max: u32) -> Result<Limit, Error> {
    let Some(text) = query.first("n")? else { return Ok(Limit::Entries(default.min(max).max(1))) };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::PageNumber);
    }
    // What does not fit is more than the maximum.
    Ok(match text.parse::<u32>().unwrap_or(u32::MAX).min(max) {
        0 => Limit::Zero,
        entries => Limit::Entries(entries),
    })
}

/// The `Link` to the page behind `last`. `extra` is a query that goes along, ending in `&`, or empty.
pub(crate) fn link(path: &str, extra: &str, entries: u32, last: &dyn fmt::Display) -> HeaderValue {
    let last = last.to_string();
    let last = escape(&last);
    answer::value(format!("<{path}?{extra}n={entries}&last={last}>; rel=\"next\""))
}

/// Escapes a query value.
pub(crate) fn escape(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, QUERY_VALUE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Limit, u16> {
        limit(Query::new(Some(query)), 100, 1000).map_err(|error| error.status().as_u16())
    }

    #[test]
    fn n_is_clamped_and_nonsense_is_refused() {
        assert_eq!(read(""), Ok(Limit::Entries(100)));
        assert_eq!(read("n=0"), Ok(Limit::Zero));
        assert_eq!(read("n=7"), Ok(Limit::Entries(7)));
        assert_eq!(read("n=1001"), Ok(Limit::Entries(1000)));
        assert_eq!(read("n=100000000000"), Ok(Limit::Entries(1000)));
        assert_eq!(read("n=9223372036854775808"), Ok(Limit::Entries(1000)));
        assert_eq!(read(&format!("n={}", "9".repeat(1_000_000))), Ok(Limit::Entries(1000)));
        for query in ["n=", "n=-1", "n=abc", "n=1e11", "n=+1", "n=0x1", "n=1.5"] {
            assert_eq!(read(query), Err(400), "{query}");
        }
    }

    #[test]
    fn a_link_is_escaped() {
        let link = link("/v2/a/tags/list", "", 5, &"a b>;\r\n&x=\"");
        assert_eq!(
            link.to_str().unwrap(),
            "</v2/a/tags/list?n=5&last=a%20b%3E%3B%0D%0A%26x%3D%22>; rel=\"next\""
        );
    }
}
