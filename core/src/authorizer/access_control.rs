//! The authorizer as distribution sees it: credentials of `/v2`, grants, challenges.

use async_trait::async_trait;
use http::HeaderMap;
use taffrail_blobstore::Uploader;
use taffrail_distribution::access::{
    AccessControl, AccessError, Action, ClientAddress, Grant, Identity as OpaqueIdentity, Missing, Sources,
};
use taffrail_distribution::name::RepositoryName;

pub(crate) use super::credentials::{Given, name_and_password};
use super::role_table::SystemAction;
use super::{Authorizer, Refused, credentials};
use crate::identity::accounts::{AccountError, Accounts};
use crate::identity::{Credential, Identity};
use crate::token::claims::{SERVICE, Tokens};

/// Longest `Authorization` header in bytes: the longest token and its scheme.
const HEADER_BYTES_MAX: usize = crate::token::claims::TOKEN_BYTES_MAX + 16;

/// [`AccessControl`] over the authorizer.
#[derive(Clone, Debug)]
pub struct CoreAccess {
    authorizer: Authorizer,
    accounts: Accounts,
    tokens: Tokens,
    realm: Realm,
}

/// Where clients get tokens.
#[derive(Clone, Debug)]
pub struct Realm {
    /// The URL under which clients reach this registry, without a slash at its end, when it is configured.
    pub external_url: Option<String>,
    /// Whether this process speaks TLS; decides the scheme when no URL is configured.
    pub tls: bool,
}

impl Realm {
    fn url(&self, host: Option<&str>) -> String {
        match (&self.external_url, host.filter(|host| is_authority(host))) {
            (Some(url), _) => format!("{url}/service/token"),
            (None, Some(host)) => {
                format!("{}://{host}/service/token", if self.tls { "https" } else { "http" })
            }
            (None, None) => "/service/token".to_owned(),
        }
    }
}

/// Whether a `Host` header can stand in a quoted string and a URL.
fn is_authority(host: &str) -> bool {
    !host.is_empty()
        && host.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']' | b'_')
        })
}

/// Splits the `Authorization` header.
pub(crate) fn given(headers: &HeaderMap) -> Given<'_> {
    credentials::given(headers, HEADER_BYTES_MAX)
}

impl CoreAccess {
    /// Over these.
    pub const fn new(authorizer: Authorizer, accounts: Accounts, tokens: Tokens, realm: Realm) -> CoreAccess {
        CoreAccess { authorizer, accounts, tokens, realm }
    }

    async fn identify_given(
        &self,
        given: Given<'_>,
        client: Option<ClientAddress>,
    ) -> Result<Identity, AccessError> {
        match given {
            Given::Nothing => Ok(Identity::ANONYMOUS),
            Given::Bearer(token) => {
                let token = self.tokens.verify(token).ok_or_else(invalid_token)?;
                let epoch = self.authorizer.epoch(&token.subject).await.map_err(super::unavailable)?;
                if epoch != Some(token.epoch) {
                    return Err(invalid_token());
                }
                Ok(Identity { subject: token.subject.clone(), credential: Credential::Token(token) })
            }
            Given::Basic(encoded) => {
                let Some((name, password)) = name_and_password(encoded) else { return Err(odd()) };
                let address = client.map(|client| client.0);
                let verified = self.accounts.verify(&name, &password, address).await.map_err(of_account)?;
                Ok(Identity::of_password(verified.user.id, verified.epoch))
            }
            Given::Odd => Err(odd()),
        }
    }
}

/// The answer to a token that is none, or no longer.
pub(super) fn invalid_token() -> AccessError {
    AccessError::Unauthenticated {
        error: Some("invalid_token"),
        message: "the token is not valid, or no longer; get another".to_owned(),
    }
}

fn odd() -> AccessError {
    let message = "the Authorization header is neither Basic nor Bearer credentials".to_owned();
    AccessError::Unauthenticated { error: None, message }
}

fn of_account(error: AccountError) -> AccessError {
    match error {
        AccountError::Wrong => AccessError::Unauthenticated { error: None, message: error.to_string() },
        AccountError::Throttled { retry_after_secs } => AccessError::TooMany { retry_after_secs },
        AccountError::Unavailable => AccessError::Unavailable,
    }
}

/// What distribution hands back is what was handed to it.
fn ours(identity: &OpaqueIdentity) -> &Identity {
    const NOBODY: &Identity = &Identity::ANONYMOUS;
    identity.downcast().unwrap_or(NOBODY)
}

/// The identity behind an opaque one; nobody when it is not ours.
pub(crate) fn identity_of(identity: &OpaqueIdentity) -> Identity {
    ours(identity).clone()
}

#[async_trait]
impl AccessControl for CoreAccess {
    async fn identify(
        &self,
        headers: &HeaderMap,
        client: Option<ClientAddress>,
    ) -> Result<OpaqueIdentity, AccessError> {
        Ok(OpaqueIdentity::new(self.identify_given(given(headers), client).await?))
    }

    fn authorize_base(&self, identity: &OpaqueIdentity) -> Result<(), AccessError> {
        match ours(identity).credential {
            Credential::None => Err(AccessError::Unauthenticated {
                error: None,
                message: "log in, or get an anonymous token".to_owned(),
            }),
            Credential::Password(_) | Credential::Token(_) => Ok(()),
        }
    }

    fn uploader(&self, identity: &OpaqueIdentity) -> Uploader {
        // Users are numbered from 1. The anonymous may push nowhere; if they might, they would share one bound.
        Uploader(ours(identity).user().map_or(0, |user| user.0.cast_unsigned()))
    }

    async fn authorize(
        &self,
        identity: &OpaqueIdentity,
        action: Action,
        repository: &RepositoryName,
        missing: Missing,
    ) -> Result<Grant, AccessError> {
        self.authorizer.authorize_repository(ours(identity), action, repository, missing).await
    }

    async fn authorize_catalog(&self, identity: &OpaqueIdentity) -> Result<(), AccessError> {
        let identity = ours(identity);
        let message = "the catalog is for users that are logged in".to_owned();
        if let Credential::Token(token) = &identity.credential
            && !token.names_catalog()
        {
            return Err(AccessError::Unauthenticated { error: Some("insufficient_scope"), message });
        }
        match self.authorizer.authorize_system(identity, SystemAction::Catalog).await {
            Ok(()) => Ok(()),
            Err(Refused::Database(error)) => Err(super::unavailable(error)),
            Err(Refused::Unauthenticated | Refused::NotFound) => {
                Err(AccessError::Unauthenticated { error: None, message })
            }
            Err(Refused::Forbidden) => Err(AccessError::Denied { message }),
        }
    }

    async fn sources(&self, identity: &OpaqueIdentity, limit: usize) -> Sources {
        // A fault hides them all: deny by default.
        let sources = self.authorizer.sources(&ours(identity).subject, limit).await;
        sources.unwrap_or_else(|error| {
            tracing::error!(%error, "the sources of a mount could not be looked up");
            Sources::These(Vec::new())
        })
    }

    fn challenge(&self, host: Option<&str>, scopes: &[String], error: Option<&str>) -> Vec<String> {
        let mut challenge = format!("Bearer realm=\"{}\",service=\"{SERVICE}\"", self.realm.url(host));
        if !scopes.is_empty() {
            challenge.push_str(&format!(",scope=\"{}\"", scopes.join(" ")));
        }
        if let Some(error) = error {
            challenge.push_str(&format!(",error=\"{error}\""));
        }
        vec![challenge]
    }
}
