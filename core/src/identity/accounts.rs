//! Verifying names and passwords, through a cache, so that a pull storm does not hash passwords.
//!
//! What must stay true: a failure is never cached; a cached success ends with the stored hash it was made against, so a changed
//! password works at once and the old one no longer; an unknown name costs what a wrong password costs; whoever finds nothing in
//! the cache pays for it, by a failure or by one of few looks, so that it is no place to guess at.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::throttle::{Throttle, network};
use super::{Epoch, password};
use crate::authorizer::directory::Directory;
use crate::context::Context;
use crate::db::DbError;
use crate::user::store::UserStore;
use crate::user::{StoredPassword, User};

/// Successes that are remembered, and for how long.
const CACHED_MAX: u64 = 10_000;
const CACHED_FOR: Duration = Duration::from_secs(300);

/// How long a login waits for one of the hashing permits before it is told to come back.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why nobody was verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccountError {
    /// Name or password are wrong; which of them is not said.
    #[error("the user name or the password is wrong")]
    Wrong,
    /// Too many failures.
    #[error("too many wrong passwords; try again in {retry_after_secs} s")]
    Throttled {
        /// Seconds.
        retry_after_secs: u32,
    },
    /// Too many at once, or the database does not answer.
    #[error("logins cannot be verified at this moment; try again")]
    Unavailable,
}

impl From<DbError> for AccountError {
    fn from(error: DbError) -> AccountError {
        tracing::error!(%error, "a login could not be looked up");
        AccountError::Unavailable
    }
}

/// A user who gave their password.
#[derive(Clone, Debug)]
pub struct VerifiedUser {
    /// Who.
    pub user: User,
    /// Which of their passwords it was.
    pub epoch: Epoch,
}

/// The accounts of the local database.
#[derive(Clone)]
pub struct Accounts {
    users: UserStore,
    directory: Directory,
    context: Context,
    inner: Arc<Inner>,
}

struct Inner {
    /// Of this process only: what is cached means nothing elsewhere.
    cache_key: [u8; 32],
    verified: Cache<[u8; 32], ()>,
    hashing: Arc<Semaphore>,
    throttle: Throttle,
    /// Stands in for the password of unknown names.
    nobody: StoredPassword,
    hashes: AtomicU64,
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Accounts")
    }
}

impl Accounts {
    /// The accounts of a store; at most `hashes_max` passwords are hashed at once. The directory is told of what changes.
    pub fn new(users: UserStore, directory: Directory, context: Context, hashes_max: usize) -> Accounts {
        let inner = Inner {
            cache_key: context.random(),
            verified: Cache::builder().max_capacity(CACHED_MAX).time_to_live(CACHED_FOR).build(),
            hashing: Arc::new(Semaphore::new(hashes_max.max(1))),
            throttle: Throttle::default(),
            nobody: password::of_nobody(&context.random(), &context.random()),
            hashes: AtomicU64::new(0),
        };
        Accounts { users, directory, context, inner: Arc::new(inner) }
    }

    /// The user of that name, if the password is theirs.
    ///
    /// # Errors
    /// See [`AccountError`].
    pub async fn verify(
        &self,
        username: &str,
        given: &str,
        client: Option<IpAddr>,
    ) -> Result<VerifiedUser, AccountError> {
        let client = client.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let found = self.users.by_name(username).await?;
        // Who has used up their looks may still have the password hashed, unless they are told to wait.
        if self.inner.throttle.may_look(client, username, self.context.now_micros()) {
            if let Some(verified) = self.known(found.as_ref(), given, client) {
                return Ok(verified);
            }
            self.inner.throttle.looked_in_vain(client, username, self.context.now_micros());
        }
        self.may_try(client, username)?;
        // Nothing longer was ever accepted as a password.
        if given.len() > password::BYTES_MAX {
            self.inner.throttle.failed(client, username, self.context.now_micros());
            return Err(AccountError::Wrong);
        }
        let permit = self.permit().await?;
        // A pull storm brings the same password a hundred times at once, before it is in the cache: who waited for the permit
        // looks again, for the wrong password and for the right one. This look costs nothing: what the hash says then is counted.
        self.may_try(client, username)?;
        if let Some(verified) = self.known(found.as_ref(), given, client) {
            return Ok(verified);
        }
        let stored = found.as_ref().map_or_else(|| self.inner.nobody.clone(), |(_, stored)| stored.clone());
        let compared = given.to_owned();
        let (correct, permit) =
            self.hashing(permit, move || password::is_correct(&compared, &stored)).await?;
        match found {
            Some((user, stored)) if correct => {
                self.inner.throttle.succeeded(client, username);
                self.inner.verified.insert(self.cache_key(&user, &stored, given, client), ());
                drop(permit);
                let stored = self.renew(&user, stored, given, client).await;
                Ok(VerifiedUser { epoch: Epoch::of(&stored), user })
            }
            Some(_) | None => {
                self.inner.throttle.failed(client, username, self.context.now_micros());
                Err(AccountError::Wrong)
            }
        }
    }

    /// The user, when this password of theirs was verified not long ago.
    fn known(
        &self,
        found: Option<&(User, StoredPassword)>,
        given: &str,
        client: IpAddr,
    ) -> Option<VerifiedUser> {
        let (user, stored) = found?;
        let known = self.inner.verified.contains_key(&self.cache_key(user, stored, given, client));
        known.then(|| VerifiedUser { user: user.clone(), epoch: Epoch::of(stored) })
    }

    fn may_try(&self, client: IpAddr, username: &str) -> Result<(), AccountError> {
        match self.inner.throttle.wait_secs(client, username, self.context.now_micros()) {
            Some(retry_after_secs) => Err(AccountError::Throttled { retry_after_secs }),
            None => Ok(()),
        }
    }

    /// Hashes a new password; bounded like verification.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn hash(&self, new: &str) -> Result<StoredPassword, AccountError> {
        let (new, salt) = (new.to_owned(), self.context.random::<16>());
        let permit = self.permit().await?;
        let (hashed, _permit) = self.hashing(permit, move || password::hash(&new, &salt)).await?;
        hashed.ok_or(AccountError::Unavailable)
    }

    /// Passwords hashed since the start, for tests and figures.
    pub fn hashes(&self) -> u64 {
        self.inner.hashes.load(Ordering::Relaxed)
    }

    /// Leave to hash one password.
    async fn permit(&self) -> Result<OwnedSemaphorePermit, AccountError> {
        let permit = Arc::clone(&self.inner.hashing).acquire_owned();
        let permit = tokio::time::timeout(QUEUE_TIMEOUT, permit).await;
        permit.ok().and_then(Result::ok).ok_or(AccountError::Unavailable)
    }

    /// Hashes, and gives the permit back to the caller, who drops it when what it learned is where others look.
    async fn hashing<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, OwnedSemaphorePermit), AccountError> {
        self.inner.hashes.fetch_add(1, Ordering::Relaxed);
        // The permit goes with the work: a client that hangs up does not make room for another hash while its own runs.
        let permitted = move || (work(), permit);
        tokio::task::spawn_blocking(permitted).await.map_err(|_| AccountError::Unavailable)
    }

    /// Hashes the password anew when the parameters rose; gives what is stored now. Leaves alone what was changed since `stored` was
    /// read: it is another password, and this one must not come back.
    async fn renew(
        &self,
        user: &User,
        stored: StoredPassword,
        given: &str,
        client: IpAddr,
    ) -> StoredPassword {
        if !password::is_outdated(&stored) {
            return stored;
        }
        let Ok(renewed) = self.hash(given).await else { return stored };
        let (users, id) = (self.users.clone(), user.id);
        let (old, new) = (stored.clone(), renewed.clone());
        let replaced = self.directory.change(async move { users.renew_password(id, &old, &new).await }).await;
        match replaced.flatten() {
            Ok(true) => {
                self.inner.verified.insert(self.cache_key(user, &renewed, given, client), ());
                renewed
            }
            Ok(false) | Err(_) => stored,
        }
    }

    /// Of a network: who guesses from another is throttled like anybody, even when the right password is in the cache.
    fn cache_key(&self, user: &User, stored: &StoredPassword, given: &str, client: IpAddr) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(self.inner.cache_key);
        hasher.update(network(client).to_canonical().to_string());
        hasher.update([0]);
        hasher.update(user.id.0.to_le_bytes());
        // Each part with its length, so that no two pairs run together.
        for part in [stored.0.as_bytes(), given.as_bytes()] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }
}
