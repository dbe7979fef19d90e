//! The security tests of the requirements that concern `/v2`, tokens and parsing, over HTTP against the whole server.
//!
//! Numbers such as S-42 are explained in docs/requirements.md. Two rules stand behind all of them: who may not see a thing gets
//! the answer that a thing gets which never was; and no request, however odd, is answered with a 5xx.

mod accounts;
mod http2;
mod parsing;
mod tenancy;
mod tokens;
mod uploads;
mod wire;

use anyhow::Result;
use taffrail_tests::http::{Answer, Registry, sha256};
use taffrail_tests::images::{Image, noise};
use taffrail_tests::scene::{DEVELOPER, OUTSIDER, PRIVATE, Scene, create_project};
use taffrail_tests::server::Tls;

/// The outsider's own project: what he may do there must not reach elsewhere.
const OTHER: &str = "other-shore";

/// A scene with a secret in the private project, and an outsider with a project of his own.
struct Stage {
    scene: Scene,
    /// The administrator.
    admin: Registry,
    /// Developer of the private project.
    insider: Registry,
    /// Owner of another private project, and nobody in this one.
    outsider: Registry,
    /// What is in `harbor-side/secret:one`.
    secret: Image,
}

impl Stage {
    fn set() -> Result<Self> {
        let scene = Scene::set(Tls::Off)?;
        let admin = scene.server.admin()?;
        let insider = scene.server.client(Some(DEVELOPER))?;
        let outsider = scene.server.client(Some(OUTSIDER))?;
        create_project(&outsider, OTHER, false)?;
        let secret = Image::unique(&[5_000, 1_300_000])?;
        secret.push(&insider, &secret_repository(), "one")?;
        Ok(Self { scene, admin, insider, outsider, secret })
    }

    /// The digest of the secret's first layer.
    fn secret_layer(&self) -> String {
        self.secret.blobs()[1].clone()
    }

    fn secret_layer_bytes(&self) -> Result<Vec<u8>> {
        self.secret.layers[0].tar()
    }
}

fn secret_repository() -> String {
    format!("{PRIVATE}/secret")
}

fn own_repository() -> String {
    format!("{OTHER}/app")
}

/// A digest that nothing has.
fn unknown_digest() -> String {
    sha256(&noise(rand::random(), 32))
}

/// Status, headers that tell something, and the body, with `name` taken out: what two answers are compared by.
fn shape(answer: &Answer, name: &str) -> (u16, Vec<(String, String)>, String) {
    const TELLING: [&str; 8] = [
        "content-type",
        "www-authenticate",
        "docker-content-digest",
        "etag",
        "cache-control",
        "accept-ranges",
        "link",
        "docker-distribution-api-version",
    ];
    let headers = TELLING
        .iter()
        .filter_map(|header| {
            let value = answer.headers.get(*header)?.to_str().ok()?;
            Some(((*header).to_owned(), value.replace(name, "NAME")))
        })
        .collect();
    (answer.status, headers, answer.text().replace(name, "NAME"))
}
