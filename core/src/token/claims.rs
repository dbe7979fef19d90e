//! Making and verifying tokens.
//!
//! What must stay true: every claim is demanded; a token's header chooses nothing but one of our own keys, and may say nothing
//! else; what a token grants is named by the project's immutable id beside its name, so that it dies with the project.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Header, Validation};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use taffrail_distribution::access::Action;

use super::keys::Keyset;
use crate::context::Context;
use crate::identity::{Epoch, Subject};
use crate::project::ProjectId;
use crate::user::UserId;

/// How long a token lives, in seconds. Docker treats anything below 60 as 60.
pub const LIFE_SECS: i64 = 300;

/// How far clocks may differ, in seconds.
const LEEWAY_SECS: i64 = 60;

/// Longest token in bytes. 64 scopes of the longest names do not fit; they are refused when the token is made.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Whom tokens are for, and who makes them: this registry. Clients hand it back as `service`.
pub const SERVICE: &str = "taffrail-registry";

/// Verified tokens that are remembered until they end.
const CACHED_MAX: u64 = 10_000;

/// What a token says (RFC 7519, and `access` of distribution's token specification).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    iss: String,
    sub: String,
    aud: String,
    exp: i64,
    nbf: i64,
    iat: i64,
    jti: String,
    access: Vec<Access>,
    /// See [`Epoch`].
    ep: String,
}

/// One thing that a token grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// `repository` or `registry`.
    #[serde(rename = "type")]
    kind: String,
    name: String,
    actions: Vec<String>,
    /// The project that the name stood for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<i64>,
}

impl Access {
    /// Actions in a repository of a project.
    pub fn repository(name: &str, project: ProjectId, actions: &[Action]) -> Access {
        Access {
            kind: "repository".to_owned(),
            name: name.to_owned(),
            actions: actions.iter().map(|action| action.scope().to_owned()).collect(),
            pid: Some(project.0),
        }
    }

    /// Paging through the catalog.
    pub fn catalog() -> Access {
        Access {
            kind: "registry".to_owned(),
            name: "catalog".to_owned(),
            actions: vec!["*".to_owned()],
            pid: None,
        }
    }
}

/// A token that was verified.
#[derive(Clone, Debug)]
pub struct VerifiedToken {
    /// Whose it is.
    pub subject: Subject,
    /// To which of the subject's passwords it goes back. Whoever takes the token holds it against today's.
    pub epoch: Epoch,
    access: Vec<Access>,
    expires_secs: i64,
}

impl VerifiedToken {
    /// Whether it names the action in the repository, and the project that the name stands for now.
    pub fn names(&self, repository: &str, project: ProjectId, action: Action) -> bool {
        self.access.iter().any(|access| {
            access.kind == "repository"
                && access.name == repository
                && access.pid == Some(project.0)
                && access.actions.iter().any(|named| named == action.scope())
        })
    }

    /// Whether it names the catalog.
    pub fn names_catalog(&self) -> bool {
        self.access.iter().any(|access| access.kind == "registry" && access.name == "catalog")
    }
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It would be longer than [`TOKEN_BYTES_MAX`].
    #[error("the scopes make a token of more than {TOKEN_BYTES_MAX} bytes; ask for fewer")]
    TooLong,
    /// It could not be signed.
    #[error("the token could not be signed")]
    Signing,
}

/// Makes and verifies tokens.
#[derive(Clone)]
pub struct Tokens {
    keys: Arc<Keyset>,
    context: Context,
    issuer: Arc<str>,
    verified: Cache<[u8; 32], Arc<VerifiedToken>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// A token that was made.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    /// The token.
    pub token: String,
    /// When, in microseconds since 1970.
    pub issued_us: i64,
}

impl Tokens {
    /// Tokens signed with `keys` in the name of `issuer`.
    pub fn new(keys: Keyset, context: Context, issuer: &str) -> Tokens {
        let verified = Cache::builder().max_capacity(CACHED_MAX).build();
        Tokens { keys: Arc::new(keys), context, issuer: issuer.into(), verified }
    }

    /// The keys.
    pub fn keys(&self) -> &Keyset {
        &self.keys
    }

    /// Makes a token.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn issue(
        &self,
        subject: &Subject,
        epoch: Epoch,
        access: Vec<Access>,
    ) -> Result<IssuedToken, TokenError> {
        let issued_us = self.context.now_micros();
        let now = issued_us.div_euclid(1_000_000);
        let claims = Claims {
            iss: self.issuer.to_string(),
            sub: subject_text(subject),
            aud: SERVICE.to_owned(),
            exp: now + LIFE_SECS,
            nbf: now,
            iat: now,
            jti: hex::encode(self.context.random::<16>()),
            access,
            ep: epoch.to_text(),
        };
        let (name, key) = self.keys.signing().ok_or(TokenError::Signing)?;
        let header = Header { kid: Some(name.to_owned()), ..Header::new(Algorithm::ES256) };
        let token = jsonwebtoken::encode(&header, &claims, key).map_err(|_| TokenError::Signing)?;
        if token.len() > TOKEN_BYTES_MAX {
            Err(TokenError::TooLong)
        } else {
            Ok(IssuedToken { token, issued_us })
        }
    }

    /// Verifies a token; `None` for anything that is not one of ours, here and now. The reason is not for the bearer.
    pub fn verify(&self, token: &str) -> Option<Arc<VerifiedToken>> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let now = self.context.now_micros().div_euclid(1_000_000);
        let cache_key: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = self.verified.get(&cache_key) {
            return (now <= known.expires_secs + LEEWAY_SECS).then_some(known);
        }
        let verified = Arc::new(self.verify_anew(token, now)?);
        self.verified.insert(cache_key, Arc::clone(&verified));
        Some(verified)
    }

    fn verify_anew(&self, token: &str, now: i64) -> Option<VerifiedToken> {
        let (header, _) = token.split_once('.')?;
        let header: StrictHeader = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header.alg != "ES256" || header.typ.as_deref().is_some_and(|kind| kind != "JWT") {
            return None;
        }
        let key = self.keys.verifying(&header.kid)?;
        let mut validation = Validation::new(Algorithm::ES256);
        // Times are judged by our own clock, below.
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        validation.set_audience(&[SERVICE]);
        validation.set_issuer(&[&*self.issuer]);
        let claims = jsonwebtoken::decode::<Claims>(token, key, &validation).ok()?.claims;
        let lives = claims.nbf <= now + LEEWAY_SECS
            && claims.iat <= now + LEEWAY_SECS
            && claims.iat <= claims.nbf
            && now <= claims.exp.checked_add(LEEWAY_SECS)?
            && claims.exp.checked_sub(claims.iat)? <= LIFE_SECS;
        let named = claims.aud == SERVICE && claims.iss == *self.issuer && !claims.jti.is_empty();
        if !lives || !named {
            return None;
        }
        Some(VerifiedToken {
            subject: subject_of(&claims.sub)?,
            epoch: Epoch::parse(&claims.ep)?,
            access: claims.access,
            expires_secs: claims.exp,
        })
    }
}

/// The only members that a header may have. A `jwk`, `jku`, `x5u`, `crit` or anything else makes the token none of ours.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StrictHeader {
    alg: String,
    kid: String,
    typ: Option<String>,
}

fn subject_text(subject: &Subject) -> String {
    match subject {
        Subject::Anonymous => String::new(),
        Subject::User(user) => format!("u:{}", user.0),
    }
}

fn subject_of(text: &str) -> Option<Subject> {
    if text.is_empty() {
        return Some(Subject::Anonymous);
    }
    let id = text.strip_prefix("u:")?.parse().ok().filter(|id| *id > 0)?;
    Some(Subject::User(UserId(id)))
}
