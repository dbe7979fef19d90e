//! Requests as the conformance program sends them, and what is held against an answer.

use std::collections::BTreeMap;
use std::convert::Infallible;

use anyhow::{Context as _, Result};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body, Client, Method};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use super::data::DataSet;

/// Why a check did not pass.
#[derive(Debug, Clone)]
pub(super) enum Miss {
    /// The registry broke a demand.
    Broken(String),
    /// The registry does not have something that it need not have.
    Unsupported(String),
}

/// The outcome of one check.
pub(super) type Check = Result<(), Vec<Miss>>;

/// One broken demand.
pub(super) fn broken<T>(what: impl Into<String>) -> Result<T, Vec<Miss>> {
    Err(vec![Miss::Broken(what.into())])
}

/// Something optional that is not there.
pub(super) fn unsupported<T>(what: impl Into<String>) -> Result<T, Vec<Miss>> {
    Err(vec![Miss::Unsupported(what.into())])
}

/// An answer, and the path that was asked.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) asked: String,
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// How a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// With `Content-Length`.
    Known,
    /// Chunked, as Go's client does with a body of unknown length.
    Unknown,
}

/// A request to be sent.
#[derive(Debug, Clone)]
pub(super) struct Ask<'a> {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: &'a [u8],
    length: Length,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: &[], length: Length::Known }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Takes both kinds of OCI manifest.
    pub(super) fn accept_manifests(self) -> Self {
        self.header("accept", crate::http::OCI_INDEX).header("accept", crate::http::OCI_MANIFEST)
    }

    pub(super) fn body(mut self, media_type: &str, body: &'a [u8], length: Length) -> Self {
        self.headers.push(("content-type", media_type.to_owned()));
        self.body = body;
        self.length = length;
        self
    }
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Demands one of some status codes.
    pub(super) fn status(&self, due: &[u16]) -> Check {
        if due.contains(&self.status) {
            return Ok(());
        }
        let body: String = String::from_utf8_lossy(&self.body).chars().take(200).collect();
        broken(format!("{} answered {} where {due:?} was due: {body}", self.asked, self.status))
    }

    /// Demands a header with exactly this value.
    pub(super) fn header_is(&self, name: &str, due: &str) -> Check {
        let found: Vec<_> =
            self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        if found.contains(&due) {
            return Ok(());
        }
        broken(format!("{}: {name} is {found:?} where {due:?} was due", self.asked))
    }

    /// Demands exactly this body.
    pub(super) fn body_is(&self, due: &[u8]) -> Check {
        if self.body == due {
            return Ok(());
        }
        broken(format!(
            "{}: the body has {} bytes, which are not the {} due",
            self.asked,
            self.body.len(),
            due.len()
        ))
    }

    /// Demands a `Location`.
    pub(super) fn location(&self) -> Result<String, Vec<Miss>> {
        match self.header("location") {
            "" => broken(format!("{}: no Location", self.asked)),
            location => Ok(location.to_owned()),
        }
    }

    /// Demands that a digest header, if there is one, is right; and that there is one if `required`.
    pub(super) fn digest_is(&self, digest: &str, required: bool) -> Check {
        match self.header("docker-content-digest") {
            "" if required => broken(format!("{}: no Docker-Content-Digest", self.asked)),
            "" => Ok(()),
            found if found == digest => Ok(()),
            found => broken(format!("{}: Docker-Content-Digest is {found}, not {digest}", self.asked)),
        }
    }
}

/// Joins checks, so that one shows all that is wrong.
pub(super) fn join(checks: impl IntoIterator<Item = Check>) -> Check {
    let misses: Vec<Miss> = checks.into_iter().filter_map(Result::err).flatten().collect();
    if misses.is_empty() { Ok(()) } else { Err(misses) }
}

/// Adds a query parameter to a path that may have some.
pub(super) fn with_query(path: &str, name: &str, value: &str) -> String {
    let joint = if path.contains('?') { '&' } else { '?' };
    format!("{path}{joint}{name}={}", value.replace('+', "%2B"))
}

/// The connection to the registry: its tokens are cached by repository and kind of request, as the program does it.
/// A request for a mount therefore carries the token of earlier pushes, whose scope does not name the other
/// repository.
///
/// The client is not the blocking one: given a body of unknown length, that one reports a failed send when the answer comes
/// before the end of the body, which is how a refusal comes.
#[derive(Debug)]
pub(super) struct Wire {
    runtime: Runtime,
    http: Client,
    base: String,
    user: (String, String),
    tokens: BTreeMap<(String, &'static str), String>,
}

impl Wire {
    pub(super) fn new(base: &str, user: (String, String)) -> Result<Self> {
        let http = Client::builder().no_proxy().timeout(std::time::Duration::from_secs(60)).build()?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, http, base: base.to_owned(), user, tokens: BTreeMap::new() })
    }

    /// Sends a request; signs in and repeats it once if the answer is 401.
    pub(super) fn send(&mut self, ask: &Ask<'_>) -> Result<Reply, Vec<Miss>> {
        self.try_send(ask)
            .map_err(|error| vec![Miss::Broken(format!("{} {}: {error:#}", ask.method, ask.path))])
    }

    fn try_send(&mut self, ask: &Ask<'_>) -> Result<Reply> {
        let key = token_key(ask);
        let known = self.tokens.get(&key).cloned();
        let reply = self.once(ask, known.as_deref())?;
        if reply.status != 401 {
            return Ok(reply);
        }
        let authorization = self.sign_in(reply.header("www-authenticate"))?;
        self.tokens.insert(key, authorization.clone());
        self.once(ask, Some(&authorization))
    }

    fn once(&self, ask: &Ask<'_>, authorization: Option<&str>) -> Result<Reply> {
        let url =
            if ask.path.starts_with('/') { format!("{}{}", self.base, ask.path) } else { ask.path.clone() };
        let mut headers = HeaderMap::new();
        for (name, value) in &ask.headers {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value)?);
        }
        // Go's client asks for it by itself; an answer that is encoded for it has lost its length.
        headers.insert("accept-encoding", HeaderValue::from_static("gzip"));
        if let Some(value) = authorization {
            headers.insert("authorization", HeaderValue::from_str(value)?);
        }
        let request = self.http.request(ask.method.clone(), url).headers(headers);
        let request = match (ask.length, &ask.method) {
            (_, &Method::GET | &Method::HEAD | &Method::DELETE) => request,
            (Length::Known, _) => request.body(ask.body.to_vec()),
            (Length::Unknown, _) => {
                let whole = std::future::ready(Ok::<_, Infallible>(ask.body.to_vec()));
                request.body(Body::wrap_stream(futures_util::stream::once(whole)))
            }
        };
        self.runtime.block_on(async {
            let answer = request.send().await?;
            Ok(Reply {
                asked: format!("{} {}", ask.method, ask.path),
                status: answer.status().as_u16(),
                headers: answer.headers().clone(),
                body: answer.bytes().await?.to_vec(),
            })
        })
    }

    fn sign_in(&self, challenge: &str) -> Result<String> {
        use base64::Engine as _;
        let (name, password) = &self.user;
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
        if challenge.to_lowercase().starts_with("basic") {
            return Ok(format!("Basic {pair}"));
        }
        let parameter = |name: &str| {
            let (_, rest) = challenge.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let realm = parameter("realm").with_context(|| format!("a realm in the challenge {challenge:?}"))?;
        let query: Vec<(&str, String)> = ["service", "scope"]
            .into_iter()
            .filter_map(|name| parameter(name).map(|value| (name, value)))
            .collect();
        let request = self.http.get(realm).query(&query).header("authorization", format!("Basic {pair}"));
        let body: Value =
            self.runtime.block_on(async { request.send().await?.error_for_status()?.json().await })?;
        let token = body["access_token"].as_str().or(body["token"].as_str()).context("a token")?;
        Ok(format!("Bearer {token}"))
    }

    /// The program looks whether a blob stands with HEAD or GET, and compares all it can.
    pub(super) fn blob_is(
        &mut self,
        method: Method,
        path: String,
        data: &DataSet,
        digest: &str,
        require_digest: bool,
    ) -> Check {
        let head = method == Method::HEAD;
        let reply = self.send(&Ask::new(method, path))?;
        let due = data.blobs.get(digest).map(Vec::as_slice).unwrap_or_default();
        join([
            reply.status(&[200]),
            reply.body_is(if head { &[] } else { due }),
            reply.header_is("content-length", &due.len().to_string()),
            reply.digest_is(digest, require_digest),
        ])
    }

    /// The same for a manifest.
    pub(super) fn manifest_is(
        &mut self,
        method: Method,
        path: String,
        data: &DataSet,
        digest: &str,
        require_digest: bool,
    ) -> Check {
        let head = method == Method::HEAD;
        let reply = self.send(&Ask::new(method, path).accept_manifests())?;
        let due = data.manifests.get(digest).map(Vec::as_slice).unwrap_or_default();
        join([
            reply.status(&[200]),
            reply.body_is(if head { &[] } else { due }),
            reply.header_is("content-type", &media_type_of(due)),
            reply.header_is("content-length", &due.len().to_string()),
            reply.digest_is(digest, require_digest),
        ])
    }
}

/// The media type that a manifest names for itself.
pub(super) fn media_type_of(manifest: &[u8]) -> String {
    let parsed: Value = serde_json::from_slice(manifest).unwrap_or_default();
    parsed["mediaType"].as_str().unwrap_or(crate::http::OCI_MANIFEST).to_owned()
}

fn token_key(ask: &Ask<'_>) -> (String, &'static str) {
    let path = ask.path.split('?').next().unwrap_or_default();
    let rest = path.split_once("/v2/").map_or("", |(_, rest)| rest);
    let end =
        ["/blobs/", "/manifests/", "/tags/", "/referrers/"].iter().filter_map(|part| rest.find(part)).min();
    let kind = match ask.method {
        Method::GET | Method::HEAD => "pull",
        Method::DELETE => "delete",
        _ => "push",
    };
    (rest[..end.unwrap_or(0)].to_owned(), kind)
}
