//! A client that calls the registry without a socket, and the scene it plays in.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use taffrail_blobstore::{Algorithm, Digest, RepositoryKey};
use taffrail_distribution::body::BoxError;
use taffrail_distribution::limits::Limits;
use taffrail_distribution::name::RepositoryName;
use taffrail_distribution::registry::Registry;
use taffrail_distribution::route::Endpoint;

use crate::memory::{MemoryAccess, MemoryBlobs, MemoryCatalog, Names};

/// A registry in memory.
pub(crate) struct Scene {
    pub(crate) registry: Arc<Registry>,
    pub(crate) blobs: Arc<MemoryBlobs>,
    pub(crate) catalog: Arc<MemoryCatalog>,
    pub(crate) access: Arc<MemoryAccess>,
    pub(crate) names: Arc<Names>,
}

impl Scene {
    pub(crate) fn new() -> Scene {
        Scene::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Scene {
        let names = Arc::new(Names::default());
        let blobs = Arc::new(MemoryBlobs::default());
        let catalog = Arc::new(MemoryCatalog::new(Arc::clone(&names)));
        let access = Arc::new(MemoryAccess::new(Arc::clone(&names)));
        let registry = Registry::new(
            Arc::clone(&blobs) as Arc<_>,
            Arc::clone(&catalog) as Arc<_>,
            Arc::clone(&access) as Arc<_>,
            limits,
        );
        Scene { registry: Arc::new(registry), blobs, catalog, access, names }
    }

    /// A call by `user`; the empty user is anonymous.
    pub(crate) fn call(&self, user: &str, method: Method, path: impl Into<String>) -> Call {
        let path = path.into();
        let mut request = Request::builder().method(method).uri(path.as_str());
        if !user.is_empty() {
            request = request.header("Authorization", format!("User {user}"));
        }
        Call { registry: Arc::clone(&self.registry), request, body: Frames::empty() }
    }

    pub(crate) fn get(&self, user: &str, path: impl Into<String>) -> Call {
        self.call(user, Method::GET, path)
    }

    pub(crate) fn head(&self, user: &str, path: impl Into<String>) -> Call {
        self.call(user, Method::HEAD, path)
    }

    pub(crate) fn post(&self, user: &str, path: impl Into<String>) -> Call {
        self.call(user, Method::POST, path)
    }

    pub(crate) fn put(&self, user: &str, path: impl Into<String>) -> Call {
        self.call(user, Method::PUT, path)
    }

    pub(crate) fn patch(&self, user: &str, path: impl Into<String>) -> Call {
        self.call(user, Method::PATCH, path)
    }

    pub(crate) fn delete(&self, user: &str, path: impl Into<String>) -> Call {
        self.call(user, Method::DELETE, path)
    }

    /// The key of a repository that exists.
    pub(crate) fn key(&self, name: &str) -> RepositoryKey {
        self.names.find(&RepositoryName::parse(name).unwrap()).unwrap()
    }

    /// Whether the repository links the blob.
    pub(crate) fn links(&self, name: &str, digest: &Digest) -> bool {
        let key = self.names.find(&RepositoryName::parse(name).unwrap());
        key.is_some_and(|key| self.blobs.with(|inner| inner.links.contains(&(key, *digest))))
    }

    /// Pushes a blob by one request.
    pub(crate) async fn push_blob(&self, user: &str, name: &str, content: &[u8]) -> Digest {
        let digest = sha256(content);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        self.post(user, path).body(content.to_vec()).expect(201).await;
        digest
    }

    /// Begins a session and returns its path.
    pub(crate) async fn begin(&self, user: &str, name: &str) -> String {
        let answer = self.post(user, format!("/v2/{name}/blobs/uploads/")).expect(202).await;
        answer.header("location").to_owned()
    }

    /// Pushes a manifest under a tag or digest.
    pub(crate) async fn push_manifest(
        &self,
        user: &str,
        name: &str,
        reference: &str,
        document: &serde_json::Value,
    ) -> Digest {
        let content = document.to_string();
        let media_type = document["mediaType"].as_str().unwrap().to_owned();
        let call = self.put(user, format!("/v2/{name}/manifests/{reference}"));
        let answer = call.header("Content-Type", &media_type).body(content.clone()).expect(201).await;
        let digest = sha256(content.as_bytes());
        assert_eq!(answer.header("docker-content-digest"), digest.to_string());
        digest
    }

    /// Pushes an image of one layer under a tag.
    pub(crate) async fn push_image(&self, user: &str, name: &str, tag: &str) -> Digest {
        let config = self.push_blob(user, name, b"{}").await;
        let layer_content = format!("layer of {name}:{tag}");
        let layer = self.push_blob(user, name, layer_content.as_bytes()).await;
        let document = image(&[(config, 2), (layer, layer_content.len())]);
        self.push_manifest(user, name, tag, &document).await
    }
}

pub(crate) fn sha256(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

/// An image manifest: the first is the config, the others are layers.
pub(crate) fn image(blobs: &[(Digest, usize)]) -> serde_json::Value {
    let descriptor = |(digest, size): &(Digest, usize), media_type: &str| serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size });
    let layers: Vec<_> = blobs[1..]
        .iter()
        .map(|blob| descriptor(blob, "application/vnd.oci.image.layer.v1.tar+gzip"))
        .collect();
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": taffrail_distribution::manifest::OCI_IMAGE,
        "config": descriptor(&blobs[0], "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    })
}

/// A request under construction.
pub(crate) struct Call {
    registry: Arc<Registry>,
    request: http::request::Builder,
    body: Frames,
}

impl Call {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Call {
        self.request = self.request.header(name, value);
        self
    }

    /// A body of announced length in one frame.
    pub(crate) fn body(mut self, content: impl Into<Bytes>) -> Call {
        let content = content.into();
        self.request = self.request.header("Content-Length", content.len());
        self.body = Frames::announced(content);
        self
    }

    /// Any body.
    pub(crate) fn frames(mut self, frames: Frames) -> Call {
        self.body = frames;
        self
    }

    pub(crate) async fn send(self) -> Answer {
        let request = self.request.body(self.body).unwrap();
        let is_head = request.method() == Method::HEAD;
        let what = format!("{} {}", request.method(), request.uri());
        let response = self.registry.handle(request).await;
        let endpoint = response.extensions().get::<Endpoint>().copied();
        let (parts, body) = response.into_parts();
        let announced = body.size_hint().exact();
        let content = body.collect().await.map(http_body_util::Collected::to_bytes);
        let answer = Answer { what, status: parts.status, headers: parts.headers, content, endpoint };
        answer.check(is_head, announced);
        answer
    }

    /// Sends it, and hangs up when the registry waits for more of the body.
    pub(crate) async fn hang_up(self) {
        let mut answer = Box::pin(self.send());
        let answered =
            std::future::poll_fn(|context| Poll::Ready(Future::poll(answer.as_mut(), context).is_ready()));
        assert!(!answered.await, "the registry waits for more");
    }

    /// Sends it and demands a status.
    pub(crate) async fn expect(self, status: u16) -> Answer {
        let answer = self.send().await;
        answer.demand(status);
        answer
    }

    /// Sends it and demands a refusal with that status and OCI code.
    pub(crate) async fn refused(self, status: u16, code: &str) -> Answer {
        let answer = self.expect(status).await;
        assert_eq!(answer.code(), code, "{}: {}", answer.what, answer.text());
        answer
    }
}

/// An answer, collected.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) what: String,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) content: Result<Bytes, BoxError>,
    pub(crate) endpoint: Option<Endpoint>,
}

impl Answer {
    /// What every answer must keep to.
    fn check(&self, is_head: bool, announced: Option<u64>) {
        let what = &self.what;
        assert_eq!(self.header("docker-distribution-api-version"), "registry/2.0", "{what}");
        assert_eq!(self.header("x-content-type-options"), "nosniff", "{what}");
        let length = self.headers.get("content-length").map(|value| value.to_str().unwrap().parse::<u64>());
        let length = length.map(Result::unwrap);
        if is_head {
            assert!(self.content.as_ref().unwrap().is_empty(), "{what}");
        } else if !matches!(self.status.as_u16(), 204 | 304) {
            // Clients fail without a length (oras), and a wrong one is request smuggling.
            assert_eq!(length, announced, "{what}");
            if let Ok(content) = &self.content {
                assert_eq!(length, Some(content.len() as u64), "{what}");
            }
        }
        if self.status.is_client_error() || self.status.is_server_error() {
            assert_eq!(self.header("content-type"), "application/json", "{what}");
            let text = self.text();
            for secret in ["secret", "SELECT", "/var/lib"] {
                assert!(!text.contains(secret) || what.contains(secret), "{what}: {text}");
            }
            if !is_head {
                let json = self.json();
                let entry = &json["errors"][0];
                assert!(entry["code"].as_str().is_some_and(|code| !code.is_empty()), "{what}: {text}");
                assert!(entry["message"].as_str().is_some_and(|message| message.len() > 8), "{what}: {text}");
            }
        }
        // No location leaves the host: relative, or a client would take credentials elsewhere.
        if let Some(location) = self.headers.get("location") {
            assert!(location.to_str().unwrap().starts_with("/v2/"), "{what}");
        }
    }

    pub(crate) fn demand(&self, status: u16) {
        assert_eq!(self.status.as_u16(), status, "{}: {}", self.what, self.text());
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        match &self.content {
            Ok(content) => String::from_utf8_lossy(content).into_owned(),
            Err(error) => format!("cut: {error}"),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.content.as_ref().unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.bytes()).unwrap()
    }

    pub(crate) fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap().to_owned()
    }

    pub(crate) fn message(&self) -> String {
        self.json()["errors"][0]["message"].as_str().unwrap().to_owned()
    }
}

/// How a [`Frames`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As it should.
    Clean,
    /// The connection breaks.
    Broken,
    /// Nothing comes any more, and the connection stays.
    Silent,
}

/// A request body in frames, which counts what is taken of it.
pub(crate) struct Frames {
    frames: VecDeque<Bytes>,
    announced: Option<u64>,
    end: End,
    taken: Arc<AtomicU64>,
    last: Option<Box<dyn FnOnce() + Send>>,
}

impl Frames {
    pub(crate) fn empty() -> Frames {
        Frames::announced(Bytes::new())
    }

    /// With a `Content-Length`.
    pub(crate) fn announced(content: Bytes) -> Frames {
        let announced = Some(content.len() as u64);
        let frames = if content.is_empty() { VecDeque::new() } else { VecDeque::from([content]) };
        Frames { frames, announced, end: End::Clean, taken: Arc::default(), last: None }
    }

    /// Without one: `Transfer-Encoding: chunked`.
    pub(crate) fn chunked(frames: impl IntoIterator<Item = Bytes>, end: End) -> Frames {
        let frames = frames.into_iter().collect();
        Frames { frames, announced: None, end, taken: Arc::default(), last: None }
    }

    /// Does this when all frames were taken and the end was not yet told.
    pub(crate) fn before_the_end(mut self, last: impl FnOnce() + Send + 'static) -> Frames {
        self.last = Some(Box::new(last));
        self
    }

    /// Bytes taken, as they are taken.
    pub(crate) fn taken(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.taken)
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.frames.pop_front() {
            Some(bytes) => {
                self.taken.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            None => {
                if let Some(last) = self.last.take() {
                    last();
                }
                match self.end {
                    End::Clean => Poll::Ready(None),
                    End::Broken => Poll::Ready(Some(Err("connection reset".into()))),
                    End::Silent => Poll::Pending,
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.announced.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}
