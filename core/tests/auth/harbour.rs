//! A whole core in a folder of its own, with people in every role, asked over its router and its access control.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use taffrail_core::facade::{Core, CoreOptions};
use taffrail_distribution::access::{AccessControl, AccessError, Action, ClientAddress, Grant, Missing};
use taffrail_distribution::name::RepositoryName;
use tempfile::TempDir;
use tower::ServiceExt as _;

use crate::world::{SteppedClock, context};

pub(crate) const ADMIN: Who = Some(("admin", "Capstan-12"));
pub(crate) const NOBODY: Who = None;

/// Name and password, or nothing.
pub(crate) type Who<'a> = Option<(&'a str, &'a str)>;

/// Hashes at once in these tests.
pub(crate) const HASHES_MAX: usize = 2;

pub(crate) struct Harbour {
    pub(crate) core: Core,
    pub(crate) access: Arc<dyn AccessControl>,
    pub(crate) clock: Arc<SteppedClock>,
    router: Router,
    _folder: TempDir,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub(crate) fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }

    /// The id at the end of `Location`.
    pub(crate) fn id(&self) -> i64 {
        let location = self.headers[header::LOCATION].to_str().unwrap();
        location.rsplit('/').next().unwrap().parse().unwrap()
    }
}

pub(crate) fn basic(name: &str, password: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))).unwrap()
}

pub(crate) fn bearer(token: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("Bearer {token}")).unwrap()
}

impl Harbour {
    pub(crate) async fn open() -> Harbour {
        let folder = TempDir::new().unwrap();
        let (context, clock) = context(11);
        let core = Core::open(CoreOptions {
            database: folder.path().join("taffrail.db"),
            key_dir: folder.path().to_owned(),
            external_url: None,
            tls: false,
            first_password: Box::new(|| Ok("Capstan-12".to_owned())),
            hashes_max: HASHES_MAX,
            context,
        })
        .await
        .unwrap();
        Harbour { access: core.access_control(), router: core.router(), core, clock, _folder: folder }
    }

    pub(crate) async fn send(&self, method: Method, path: &str, headers: HeaderMap, body: Vec<u8>) -> Answer {
        let mut request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
        *request.headers_mut() = headers;
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    /// A call of the REST API.
    pub(crate) async fn api(&self, who: Who<'_>, method: &str, path: &str, body: Option<Value>) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some((name, password)) = who {
            headers.insert(header::AUTHORIZATION, basic(name, password));
        }
        let body = body.map_or_else(Vec::new, |body| {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            body.to_string().into_bytes()
        });
        self.send(method.parse().unwrap(), &format!("/api/v2.0{path}"), headers, body).await
    }

    pub(crate) async fn user(&self, name: &str, password: &str) -> i64 {
        let body = json!({"username": name, "password": password, "email": format!("{name}@example.test")});
        self.api(ADMIN, "POST", "/users", Some(body)).await.expect(201).id()
    }

    pub(crate) async fn project(&self, who: Who<'_>, name: &str, public: bool) -> i64 {
        let body = json!({"project_name": name, "metadata": {"public": public.to_string()}});
        self.api(who, "POST", "/projects", Some(body)).await.expect(201).id()
    }

    pub(crate) async fn member(&self, project: &str, name: &str, role: i64) -> i64 {
        let body = json!({"role_id": role, "member_user": {"username": name}});
        self.api(ADMIN, "POST", &format!("/projects/{project}/members"), Some(body)).await.expect(201).id()
    }

    /// The answer of the token service to a query.
    pub(crate) async fn ask_token(&self, who: Who<'_>, query: &str) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some((name, password)) = who {
            headers.insert(header::AUTHORIZATION, basic(name, password));
        }
        self.send(Method::GET, &format!("/service/token?service=x&{query}"), headers, Vec::new()).await
    }

    /// A token for scopes that are joined by `&scope=`.
    pub(crate) async fn token(&self, who: Who<'_>, scope: &str) -> String {
        let answer = self.ask_token(who, &format!("scope={scope}")).await.expect(200);
        answer.json()["token"].as_str().unwrap().to_owned()
    }

    /// Puts an artifact into a repository.
    pub(crate) async fn artifact(&self, repository: &str) {
        let mut transaction = self.core.database().write().await.unwrap();
        sqlx::query(
            "INSERT INTO artifacts (repository_key, digest, media_type, len_bytes, pushed_us)
             SELECT key, 'sha256:00', 'application/json', 2, 0 FROM repositories WHERE name = $1",
        )
        .bind(repository)
        .execute(&mut *transaction)
        .await
        .unwrap();
        transaction.commit().await.unwrap();
    }

    /// What `/v2` says to a credential, an action and a repository; a push makes the repository.
    pub(crate) async fn v2(
        &self,
        credential: Option<HeaderValue>,
        action: Action,
        repository: &str,
    ) -> Result<Grant, AccessError> {
        let mut headers = HeaderMap::new();
        if let Some(credential) = credential {
            headers.insert(header::AUTHORIZATION, credential);
        }
        let address = ClientAddress(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9)));
        let identity = self.access.identify(&headers, Some(address)).await?;
        let repository = RepositoryName::parse(repository).unwrap();
        self.access.authorize(&identity, action, &repository, Missing::Make).await
    }
}
