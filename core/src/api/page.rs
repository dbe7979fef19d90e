//! Pages, as Harbor has them: `page` from 1, `page_size` up to 100, `X-Total-Count`, and `Link` to the pages beside.

use axum::Json;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::error::ApiError;

/// Entries of a page unless told, and at most: Harbor's numbers.
const SIZE_DEFAULT: i64 = 10;
const SIZE_MAX: i64 = 100;

/// The parameters of a request: names with values, decoded.
#[derive(Clone, Debug)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Of a raw query.
    pub fn parse(query: Option<&str>) -> Parameters {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Parameters(pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
    }

    /// The first value of a parameter; an empty one is none.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.all(name).find(|value| !value.is_empty())
    }

    /// Every value of a parameter.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// A truth value.
    ///
    /// # Errors
    /// 400 when it is none.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.first(name) {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(_) => Err(ApiError::BadRequest(format!("{name} is true or false"))),
        }
    }
}

/// A page that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    number: i64,
    size: i64,
}

impl Page {
    /// Of the parameters.
    ///
    /// # Errors
    /// 400 for anything but positive numbers. A larger `page_size` than the largest is cut to it.
    pub fn of(parameters: &Parameters) -> Result<Page, ApiError> {
        let number = |name: &str, default: i64| match parameters.first(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .ok()
                .filter(|number: &i64| *number >= 1)
                .ok_or_else(|| ApiError::BadRequest(format!("{name} is a number from 1 on"))),
        };
        let size = number("page_size", SIZE_DEFAULT)?.min(SIZE_MAX);
        Ok(Page { number: number("page", 1)?, size })
    }

    /// Entries before it.
    pub const fn offset(self) -> i64 {
        (self.number - 1).saturating_mul(self.size)
    }

    /// Entries in it, at most.
    pub const fn limit(self) -> i64 {
        self.size
    }

    /// The answer with `entries` out of `total`. `path` is where the list lives.
    pub fn answer<T: Serialize>(
        self,
        path: &str,
        parameters: &Parameters,
        entries: &T,
        total: i64,
    ) -> Response {
        let mut response = Json(entries).into_response();
        let headers = response.headers_mut();
        headers.insert("x-total-count", HeaderValue::from(total));
        let mut links = Vec::new();
        if self.number > 1 {
            links.push(self.link(path, parameters, self.number - 1, "prev"));
        }
        if self.number.saturating_mul(self.size) < total {
            links.push(self.link(path, parameters, self.number + 1, "next"));
        }
        if let Ok(value) = HeaderValue::from_str(&links.join(" , "))
            && !links.is_empty()
        {
            headers.insert(header::LINK, value);
        }
        response
    }

    fn link(self, path: &str, parameters: &Parameters, number: i64, relation: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in parameters.0.iter().filter(|(name, _)| name != "page" && name != "page_size") {
            query.append_pair(name, value);
        }
        query.append_pair("page", &number.to_string()).append_pair("page_size", &self.size.to_string());
        format!("<{path}?{}>; rel=\"{relation}\"", query.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &str) -> Result<Page, ApiError> {
        Page::of(&Parameters::parse(Some(query)))
    }

    #[test]
    fn pages_are_numbers_from_one_on() {
        assert_eq!(page("").ok(), Some(Page { number: 1, size: 10 }));
        assert_eq!(page("page=3&page_size=1000").ok(), Some(Page { number: 3, size: 100 }));
        for query in ["page=0", "page=-1", "page=x", "page_size=0", "page=1e9", "page=99999999999999999999"] {
            assert!(matches!(page(query), Err(ApiError::BadRequest(_))), "{query}");
        }
        assert_eq!(page("page=9223372036854775807").ok().map(Page::offset), Some(i64::MAX));
    }

    #[test]
    fn links_keep_the_other_parameters_and_escape_them() {
        let parameters = Parameters::parse(Some("name=a%26b&page=2&page_size=5"));
        let page = Page::of(&parameters).ok().unwrap();
        let response = page.answer("/api/v2.0/projects", &parameters, &Vec::<u8>::new(), 11);
        assert_eq!(
            response.headers()[header::LINK],
            "</api/v2.0/projects?name=a%26b&page=1&page_size=5>; rel=\"prev\" , \
             </api/v2.0/projects?name=a%26b&page=3&page_size=5>; rel=\"next\""
        );
    }
}
