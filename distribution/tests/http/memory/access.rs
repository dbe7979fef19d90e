//! Who may do what: `Authorization: User NAME`, and roles by project.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use taffrail_blobstore::Uploader;
use taffrail_distribution::access::{
    AccessControl, AccessError, Action, ClientAddress, Grant, Identity, Missing, Sources,
};
use taffrail_distribution::name::RepositoryName;

use super::Names;

/// Rules: `pa` is private to alice (all), dev (pull, push) and guest (pull); `pb` to bob; `pub` may be pulled by anybody. A mount
/// by captain may come from everywhere.
pub(crate) struct MemoryAccess {
    names: Arc<Names>,
    rules: Mutex<BTreeMap<(String, String), Vec<Action>>>,
    /// Every (user, action, repository) that was asked for.
    pub(crate) asked: Mutex<Vec<(String, Action, String)>>,
    /// What `authorize` answers instead of deciding.
    pub(crate) failure: Mutex<Option<AccessError>>,
}

impl MemoryAccess {
    pub(crate) fn new(names: Arc<Names>) -> MemoryAccess {
        const ALL: [Action; 3] = [Action::Pull, Action::Push, Action::Delete];
        let mut rules = BTreeMap::new();
        for (user, project, actions) in [
            ("alice", "pa", &ALL[..]),
            ("dev", "pa", &ALL[..2]),
            ("guest", "pa", &ALL[..1]),
            ("bob", "pb", &ALL[..]),
            ("alice", "pub", &ALL[..]),
            ("bob", "pub", &ALL[..1]),
            ("", "pub", &ALL[..1]),
            ("admin", "pa", &ALL[..]),
            ("admin", "pb", &ALL[..]),
            ("admin", "pub", &ALL[..]),
            ("captain", "pb", &ALL[..]),
        ] {
            rules.insert((user.to_owned(), project.to_owned()), actions.to_vec());
        }
        MemoryAccess { names, rules: Mutex::new(rules), asked: Mutex::default(), failure: Mutex::default() }
    }

    pub(crate) fn revoke(&self, user: &str, project: &str) {
        self.rules.lock().unwrap().remove(&(user.to_owned(), project.to_owned()));
    }

    fn may(&self, user: &str, action: Action, name: &RepositoryName) -> bool {
        let project = name.as_str().split('/').next().unwrap();
        let rules = self.rules.lock().unwrap();
        rules.get(&(user.to_owned(), project.to_owned())).is_some_and(|actions| actions.contains(&action))
    }
}

fn user(identity: &Identity) -> &str {
    identity.downcast::<String>().unwrap()
}

fn unauthenticated() -> AccessError {
    AccessError::Unauthenticated { error: None, message: "log in first".to_owned() }
}

#[async_trait]
impl AccessControl for MemoryAccess {
    async fn identify(
        &self,
        headers: &HeaderMap,
        _client: Option<ClientAddress>,
    ) -> Result<Identity, AccessError> {
        let Some(value) = headers.get(AUTHORIZATION) else { return Ok(Identity::new(String::new())) };
        let user = value.to_str().ok().and_then(|text| text.strip_prefix("User "));
        let known = ["alice", "bob", "captain", "dev", "guest", "admin"];
        match user.filter(|user| known.contains(user)) {
            Some(user) => Ok(Identity::new(user.to_owned())),
            None => Err(AccessError::Unauthenticated {
                error: Some("invalid_token"),
                message: "the credentials are not valid".to_owned(),
            }),
        }
    }

    fn authorize_base(&self, identity: &Identity) -> Result<(), AccessError> {
        if user(identity).is_empty() { Err(unauthenticated()) } else { Ok(()) }
    }

    fn uploader(&self, identity: &Identity) -> Uploader {
        // No two names here share their first eight bytes.
        Uploader(user(identity).bytes().take(8).fold(0, |number, byte| number << 8 | u64::from(byte)))
    }

    async fn authorize(
        &self,
        identity: &Identity,
        action: Action,
        repository: &RepositoryName,
        missing: Missing,
    ) -> Result<Grant, AccessError> {
        let user = user(identity);
        self.asked.lock().unwrap().push((user.to_owned(), action, repository.as_str().to_owned()));
        if let Some(failure) = self.failure.lock().unwrap().clone() {
            return Err(failure);
        }
        if !self.may(user, action, repository) {
            return Err(if user.is_empty() {
                unauthenticated()
            } else if action == Action::Pull {
                AccessError::UnknownRepository { name: repository.clone() }
            } else {
                AccessError::Denied {
                    message: format!("repository {repository} does not exist or you may not push to it"),
                }
            });
        }
        let key = if action == Action::Push && missing == Missing::Make {
            self.names.find_or_make(repository)
        } else {
            self.names
                .find(repository)
                .ok_or_else(|| AccessError::UnknownRepository { name: repository.clone() })?
        };
        Ok(Grant { repository: key, name: repository.clone(), action })
    }

    async fn authorize_catalog(&self, identity: &Identity) -> Result<(), AccessError> {
        self.authorize_base(identity)
    }

    async fn sources(&self, identity: &Identity, limit: usize) -> Sources {
        if user(identity) == "captain" {
            return Sources::Everywhere;
        }
        let names = self.names.all().into_iter();
        let readable = names.filter(|(name, _)| self.may(user(identity), Action::Pull, name));
        Sources::These(readable.map(|(_, key)| key).take(limit).collect())
    }

    fn challenge(&self, host: Option<&str>, scopes: &[String], error: Option<&str>) -> Vec<String> {
        let host = host.unwrap_or("none");
        let mut challenge = format!("Bearer realm=\"http://{host}/service/token\",service=\"test\"");
        if !scopes.is_empty() {
            challenge.push_str(&format!(",scope=\"{}\"", scopes.join(" ")));
        }
        if let Some(error) = error {
            challenge.push_str(&format!(",error=\"{error}\""));
        }
        vec![challenge]
    }
}
