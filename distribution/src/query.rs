//! Query parameters.
//!
//! `+` stays `+`: nothing that we take from a query can hold a space, while media types hold a `+` that scripts forget to
//! escape. Parameters that nobody asks for (`ns`, `origin`) are ignored.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::error::Error;

/// The query of a request, not yet decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    pub(crate) fn new(query: Option<&'a str>) -> Query<'a> {
        Query(query.unwrap_or(""))
    }

    /// Every value of a parameter, decoded.
    ///
    /// # Errors
    /// `Query` when a value is no UTF-8.
    pub(crate) fn all(self, name: &str) -> Result<Vec<Cow<'a, str>>, Error> {
        self.0
            .split('&')
            .filter_map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (key == name).then_some(value)
            })
            .map(|value| percent_decode_str(value).decode_utf8().map_err(|_| Error::Query))
            .collect()
    }

    /// The value of a parameter that occurs once; the first, if it occurs more often.
    ///
    /// # Errors
    /// `Query` when a value is no UTF-8.
    pub(crate) fn first(self, name: &str) -> Result<Option<Cow<'a, str>>, Error> {
        Ok(self.all(name)?.into_iter().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_and_a_plus_stays_a_plus() {
        let query = Query::new(Some("tag=a&tag=b%2Bc&x&artifactType=a/b+json&digest=sha256%3Aff"));
        assert_eq!(query.all("tag").unwrap(), ["a", "b+c"]);
        assert_eq!(query.first("artifactType").unwrap().as_deref(), Some("a/b+json"));
        assert_eq!(query.first("digest").unwrap().as_deref(), Some("sha256:ff"));
        assert_eq!(query.first("x").unwrap().as_deref(), Some(""));
        assert_eq!(query.first("ta").unwrap(), None);
        assert!(Query::new(Some("a=%ff")).first("a").is_err());
        assert_eq!(Query::new(None).first("a").unwrap(), None);
    }
}
