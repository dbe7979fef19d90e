//! A thin client of the registry's HTTP: it answers with what came back, knows the token dance, and forgives nothing.
//!
//! It is written for tests on purpose, and not with the product's own client: two ends by one hand agree on mistakes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use reqwest::Method;
use reqwest::blocking::Client;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// No single request of a test takes longer, save on a machine that hangs.
const REQUEST_DEADLINE: Duration = Duration::from_secs(120);

/// Tokens live 300 s; a test asks for a fresh one well before.
const TOKEN_REUSE: Duration = Duration::from_secs(120);

/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// `sha256:` and the hash of `bytes` in lowercase hex.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header as text, or the empty string.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The body as text, for messages.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Demands one of `statuses`.
    ///
    /// # Errors
    /// When the status is another; the error holds the body.
    pub fn expect(self, statuses: &[u16]) -> Result<Self> {
        if statuses.contains(&self.status) {
            return Ok(self);
        }
        bail!("answered {} where {statuses:?} was due: {}", self.status, self.text())
    }
}

/// What one request carries besides its path.
#[derive(Debug, Default, Clone)]
pub struct Extra {
    /// Header names and values.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Extra {
    /// A body of a media type.
    #[must_use]
    pub fn body(media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { headers: vec![("content-type", media_type.to_owned())], body: body.into() }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A client of one registry, with one identity.
#[derive(Debug)]
pub struct Registry {
    base: String,
    http: Client,
    user: Option<(String, String)>,
    tokens: Mutex<HashMap<String, (String, Instant)>>,
    challenge: Mutex<Option<Challenge>>,
}

#[derive(Debug, Clone)]
enum Challenge {
    None,
    Basic,
    Bearer { realm: String, service: String },
}

impl Registry {
    /// A client of `base`, such as `http://127.0.0.1:5000`. `authority` is a PEM certificate to trust.
    ///
    /// # Errors
    /// When the certificate cannot be read or the client cannot be made.
    pub fn new(base: &str, user: Option<(&str, &str)>, authority: Option<&Path>) -> Result<Self> {
        let mut builder = Client::builder()
            .timeout(REQUEST_DEADLINE)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_idle_timeout(Duration::from_secs(5));
        if let Some(path) = authority {
            let certificate = reqwest::Certificate::from_pem(&std::fs::read(path)?)?;
            builder = builder.tls_certs_only([certificate]);
        }
        Ok(Self {
            base: base.to_owned(),
            http: builder.build()?,
            user: user.map(|(name, password)| (name.to_owned(), password.to_owned())),
            tokens: Mutex::default(),
            challenge: Mutex::default(),
        })
    }

    /// The status of a GET without any credentials.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn probe(&self, path: &str) -> Result<u16> {
        Ok(self.exchange(&Method::GET, path, &Extra::default(), None)?.status)
    }

    /// One request with no credentials at all.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn bare(&self, method: &Method, path: &str, extra: &Extra) -> Result<Answer> {
        self.exchange(method, path, extra, None)
    }

    /// One request to the REST API, with the user's name and password.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn api(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let extra = match body {
            None => Extra::default(),
            Some(value) => Extra::body("application/json", value.to_string()),
        };
        self.exchange(method, &format!("/api/v2.0{path}"), &extra, self.basic().as_deref())
    }

    /// One request under `/v2/<repository>/`, with a token for `actions` there, such as `pull,push`.
    ///
    /// # Errors
    /// When no answer or no token comes.
    pub fn send(
        &self,
        method: &Method,
        repository: &str,
        actions: &str,
        path: &str,
        extra: &Extra,
    ) -> Result<Answer> {
        self.send_scoped(method, &[&format!("repository:{repository}:{actions}")], path, extra)
    }

    /// One request, with a token for `scopes`.
    ///
    /// # Errors
    /// As [`Registry::send`].
    pub fn send_scoped(&self, method: &Method, scopes: &[&str], path: &str, extra: &Extra) -> Result<Answer> {
        let authorization = self.authorization(scopes)?;
        let answer = self.exchange(method, path, extra, authorization.as_deref())?;
        if answer.status != 401 || authorization.is_none() {
            return Ok(answer);
        }
        // A token may have been outlived by a restart or a change of rights; one fresh try, as clients do.
        locked(&self.tokens).remove(&scopes.join(" "));
        let authorization = self.authorization(scopes)?;
        self.exchange(method, path, extra, authorization.as_deref())
    }

    /// A fresh token for `scopes` from the token service.
    ///
    /// # Errors
    /// When the service does not answer 200 with a token.
    pub fn token(&self, scopes: &[&str]) -> Result<String> {
        let Challenge::Bearer { realm, service } = self.challenge()? else {
            bail!("the registry does not ask for tokens");
        };
        let mut request = self.http.get(&realm).query(&[("service", service.as_str())]);
        for scope in scopes {
            request = request.query(&[("scope", scope)]);
        }
        if let Some((name, password)) = &self.user {
            request = request.basic_auth(name, Some(password));
        }
        let answer = request.send().context("asking for a token")?;
        let status = answer.status().as_u16();
        let text = answer.text()?;
        if status != 200 {
            bail!("the token service answered {status}: {text}");
        }
        let body: Value = serde_json::from_str(&text)?;
        body["token"].as_str().map(str::to_owned).context("an answer with a token")
    }

    /// Uploads a blob in one POST and one PUT. Returns its digest once it is acknowledged with 201.
    ///
    /// # Errors
    /// When any answer is not the one that a finished upload gives.
    pub fn push_blob(&self, repository: &str, bytes: &[u8]) -> Result<String> {
        let digest = sha256(bytes);
        let location = self.begin_upload(repository)?;
        let put = with_query(&location, &format!("digest={digest}"));
        self.send(&Method::PUT, repository, PUSH, &put, &Extra::body(OCTETS, bytes))?.expect(&[201])?;
        Ok(digest)
    }

    /// Uploads a blob in PATCH requests of `chunk` bytes and an empty PUT.
    ///
    /// # Errors
    /// As [`Registry::push_blob`].
    pub fn push_blob_in_chunks(&self, repository: &str, bytes: &[u8], chunk: usize) -> Result<String> {
        let digest = sha256(bytes);
        let mut location = self.begin_upload(repository)?;
        let mut offset = 0;
        for part in bytes.chunks(chunk.max(1)) {
            let range = format!("{offset}-{}", offset + part.len() - 1);
            let extra = Extra::body(OCTETS, part).header("content-range", range);
            let answer = self.send(&Method::PATCH, repository, PUSH, &location, &extra)?.expect(&[202])?;
            location = self.location(&answer)?;
            offset += part.len();
        }
        let put = with_query(&location, &format!("digest={digest}"));
        self.send(&Method::PUT, repository, PUSH, &put, &Extra::default())?.expect(&[201])?;
        Ok(digest)
    }

    /// Opens an upload session and returns its path.
    ///
    /// # Errors
    /// When the answer is not 202 with a `Location`.
    pub fn begin_upload(&self, repository: &str) -> Result<String> {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let answer = self.send(&Method::POST, repository, PUSH, &path, &Extra::default())?.expect(&[202])?;
        self.location(&answer)
    }

    /// Asks to mount a blob from another repository; `true` when it was mounted.
    ///
    /// # Errors
    /// When the answer is neither 201 nor 202.
    pub fn mount(&self, repository: &str, from: &str, digest: &str) -> Result<bool> {
        let scopes = [format!("repository:{repository}:{PUSH}"), format!("repository:{from}:pull")];
        let path = format!("/v2/{repository}/blobs/uploads/?mount={digest}&from={from}");
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        let answer =
            self.send_scoped(&Method::POST, &scopes, &path, &Extra::default())?.expect(&[201, 202])?;
        Ok(answer.status == 201)
    }

    /// Puts a manifest under a tag or digest; returns its digest once it is acknowledged with 201.
    ///
    /// # Errors
    /// When the answer is another.
    pub fn push_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<String> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send(&Method::PUT, repository, PUSH, &path, &Extra::body(media_type, bytes))?.expect(&[201])?;
        Ok(sha256(bytes))
    }

    /// Gets a blob, whatever the answer.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn blob(&self, repository: &str, digest: &str) -> Result<Answer> {
        self.send(
            &Method::GET,
            repository,
            "pull",
            &format!("/v2/{repository}/blobs/{digest}"),
            &Extra::default(),
        )
    }

    /// Gets a manifest by tag or digest, whatever the answer.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn manifest(&self, repository: &str, reference: &str) -> Result<Answer> {
        let extra = Extra::default().header("accept", format!("{OCI_MANIFEST}, {OCI_INDEX}, */*"));
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send(&Method::GET, repository, "pull", &path, &extra)
    }

    /// Deletes a tag or a manifest, whatever the answer.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn delete_manifest(&self, repository: &str, reference: &str) -> Result<Answer> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send(&Method::DELETE, repository, "pull,delete", &path, &Extra::default())
    }

    /// Deletes a blob, whatever the answer.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn delete_blob(&self, repository: &str, digest: &str) -> Result<Answer> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        self.send(&Method::DELETE, repository, "pull,delete", &path, &Extra::default())
    }

    /// The path and query of an answer's `Location`.
    ///
    /// # Errors
    /// When there is none, or it names another server.
    pub fn location(&self, answer: &Answer) -> Result<String> {
        let location = answer.header("location");
        let path = location.strip_prefix(&self.base).unwrap_or(location);
        if !path.starts_with('/') {
            bail!("an odd Location: {location:?}");
        }
        Ok(path.to_owned())
    }

    fn basic(&self) -> Option<String> {
        use base64::Engine as _;
        self.user.as_ref().map(|(name, password)| {
            let pair = format!("{name}:{password}");
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
        })
    }

    fn authorization(&self, scopes: &[&str]) -> Result<Option<String>> {
        match self.challenge()? {
            Challenge::None => Ok(None),
            Challenge::Basic => Ok(self.basic()),
            Challenge::Bearer { .. } => {
                let key = scopes.join(" ");
                if let Some((token, since)) = locked(&self.tokens).get(&key)
                    && since.elapsed() < TOKEN_REUSE
                {
                    return Ok(Some(format!("Bearer {token}")));
                }
                let token = self.token(scopes)?;
                locked(&self.tokens).insert(key, (token.clone(), Instant::now()));
                Ok(Some(format!("Bearer {token}")))
            }
        }
    }

    fn challenge(&self) -> Result<Challenge> {
        if let Some(known) = locked(&self.challenge).clone() {
            return Ok(known);
        }
        let answer = self.exchange(&Method::GET, "/v2/", &Extra::default(), None)?;
        let challenge = parse_challenge(&answer)?;
        *locked(&self.challenge) = Some(challenge.clone());
        Ok(challenge)
    }

    fn exchange(
        &self,
        method: &Method,
        path: &str,
        extra: &Extra,
        authorization: Option<&str>,
    ) -> Result<Answer> {
        let mut headers = HeaderMap::new();
        for (name, value) in &extra.headers {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value)?);
        }
        if let Some(value) = authorization {
            headers.insert("authorization", HeaderValue::from_str(value)?);
        }
        let request = self.http.request(method.clone(), format!("{}{path}", self.base)).headers(headers);
        let answer = request.body(extra.body.clone()).send().with_context(|| format!("{method} {path}"))?;
        Ok(Answer {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            body: answer.bytes().with_context(|| format!("the body of {method} {path}"))?.to_vec(),
        })
    }
}

const PUSH: &str = "pull,push";
const OCTETS: &str = "application/octet-stream";

fn parse_challenge(answer: &Answer) -> Result<Challenge> {
    if answer.status == 200 {
        return Ok(Challenge::None);
    }
    let text = answer.header("www-authenticate");
    if text.to_lowercase().starts_with("basic") {
        return Ok(Challenge::Basic);
    }
    let parameter = |name: &str| {
        let (_, rest) = text.split_once(&format!("{name}=\""))?;
        rest.split_once('"').map(|(value, _)| value.to_owned())
    };
    match (parameter("realm"), parameter("service")) {
        (Some(realm), Some(service)) => Ok(Challenge::Bearer { realm, service }),
        _ => bail!("GET /v2/ answered {} with the challenge {text:?}", answer.status),
    }
}

fn with_query(path: &str, query: &str) -> String {
    let joint = if path.contains('?') { '&' } else { '?' };
    format!("{path}{joint}{query}")
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
