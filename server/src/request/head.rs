//! The head of a request: how large it may be, and the one form in which handlers see it.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};

use super::refusal::Refusal;
use crate::config::sections::Limits;

/// Bytes of a header line beside name and value: `: ` and the line end.
const LINE_OVERHEAD_BYTES: u64 = 4;
/// Bytes of a request line beside method and target: two spaces, `HTTP/1.1` and the line end.
const REQUEST_LINE_OVERHEAD_BYTES: u64 = 12;

/// How large a head may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadLimits {
    line_bytes_max: u64,
    header_bytes_max: u64,
    fields_max: u64,
}

impl HeadLimits {
    /// The bounds that are configured.
    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            line_bytes_max: limits.request_line_bytes_max,
            header_bytes_max: limits.header_bytes_max,
            fields_max: limits.header_fields_max,
        }
    }

    /// Holds a head against the bounds. The HTTP library has its own, far above, which only keep it from collecting for ever.
    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        if line_bytes(request.method(), request.uri()) > self.line_bytes_max {
            return Err(Refusal::LineTooLong { bytes_max: self.line_bytes_max });
        }
        if request.headers().len() as u64 > self.fields_max {
            return Err(Refusal::TooManyHeaders { fields_max: self.fields_max });
        }
        if header_bytes(request.headers()) > self.header_bytes_max {
            return Err(Refusal::HeadersTooLarge { bytes_max: self.header_bytes_max });
        }
        Ok(())
    }
}

fn line_bytes(method: &Method, target: &Uri) -> u64 {
    let path = target.path_and_query().map_or(0, |path| path.as_str().len());
    let authority = target.authority().map_or(0, |authority| authority.as_str().len());
    // `http://` or `https://`; HTTP/2 has scheme and authority apart, and counts the same.
    let scheme = target.scheme_str().map_or(0, |scheme| scheme.len() + 3);
    (method.as_str().len() + scheme + authority + path) as u64 + REQUEST_LINE_OVERHEAD_BYTES
}

fn header_bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64 + LINE_OVERHEAD_BYTES).sum()
}

/// Brings a request into the form that handlers see: the target is a path, the authority stands in `Host`.
///
/// An authority in the target beats `Host` (RFC 9112 section 3.2.2); HTTP/2 has it there always.
pub(super) fn normalise<B>(request: &mut Request<B>) -> Result<(), Refusal> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(Refusal::Method);
    }
    let target = request.uri();
    let Some(path) = target.path_and_query().filter(|path| path.as_str().starts_with('/')).cloned() else {
        return Err(Refusal::Target);
    };
    if let Some(authority) = target.authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::Host)?;
        let path_only = path_only(path)?;
        *request.uri_mut() = path_only;
        request.headers_mut().insert(header::HOST, host);
        return Ok(());
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), None) => Ok(()),
        (None, None) if request.version() == Version::HTTP_10 => Ok(()),
        (None, None) | (_, Some(_)) => Err(Refusal::Host),
    }
}

fn path_only(path: PathAndQuery) -> Result<Uri, Refusal> {
    Uri::builder().path_and_query(path).build().map_err(|_| Refusal::Target)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { line_bytes_max: 40, header_bytes_max: 100, fields_max: 3 };

    fn request(target: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::get(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn l_06_each_bound_is_met_to_the_byte() {
        // "GET " + target + " HTTP/1.1\r\n" = 15 + target.
        let target = format!("/{}", "a".repeat(24));
        LIMITS.check(&request(&target, &[])).unwrap();
        let refused = LIMITS.check(&request(&format!("{target}a"), &[]));
        assert_eq!(refused, Err(Refusal::LineTooLong { bytes_max: 40 }));

        let value = "v".repeat(95);
        LIMITS.check(&request("/", &[("a", &value)])).unwrap();
        let refused = LIMITS.check(&request("/", &[("ab", &value)]));
        assert_eq!(refused, Err(Refusal::HeadersTooLarge { bytes_max: 100 }));

        LIMITS.check(&request("/", &[("a", ""), ("b", ""), ("b", "")])).unwrap();
        let refused = LIMITS.check(&request("/", &[("a", ""), ("b", ""), ("b", ""), ("c", "")]));
        assert_eq!(refused, Err(Refusal::TooManyHeaders { fields_max: 3 }));
    }

    #[test]
    fn s_37_the_authority_of_the_target_beats_the_host_header() {
        let mut absolute = request("http://right.example:80/v2/?a=b", &[("host", "wrong.example")]);
        normalise(&mut absolute).unwrap();
        assert_eq!(absolute.uri(), "/v2/?a=b");
        assert_eq!(absolute.headers()[header::HOST], "right.example:80");
    }

    #[test]
    fn one_host_is_needed_and_one_only() {
        normalise(&mut request("/", &[("host", "a")])).unwrap();
        assert_eq!(normalise(&mut request("/", &[])), Err(Refusal::Host));
        assert_eq!(normalise(&mut request("/", &[("host", "a"), ("host", "a")])), Err(Refusal::Host));
        let mut old = request("/", &[]);
        *old.version_mut() = Version::HTTP_10;
        normalise(&mut old).unwrap();
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let mut star = request("*", &[("host", "a")]);
        *star.method_mut() = Method::OPTIONS;
        assert_eq!(normalise(&mut star), Err(Refusal::Target));
        for method in [Method::CONNECT, Method::TRACE] {
            let mut request = request("/", &[("host", "a")]);
            *request.method_mut() = method;
            assert_eq!(normalise(&mut request), Err(Refusal::Method));
        }
    }
}
