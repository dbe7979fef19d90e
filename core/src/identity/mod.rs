//! Who asks: an anonymous or a user, and by which credential.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::token::claims::VerifiedToken;
use crate::user::{StoredPassword, UserId};

pub mod accounts;
pub mod password;
pub mod throttle;

/// Who asks. What they may do is looked up anew for each request; it is never part of the identity.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Who.
    pub subject: Subject,
    /// By what.
    pub credential: Credential,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// Nobody in particular.
    Anonymous,
    /// A user, by the id that is never reused.
    User(UserId),
}

/// Which of a user's passwords, in the order of time, something goes back to. A token carries that of its subject and ends with
/// it, so that a changed password takes the tokens along. Derived from the stored hash, so that it outlives a
/// restart and needs no counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch([u8; 8]);

impl Epoch {
    /// Of who has no password: the anonymous.
    pub const NONE: Epoch = Epoch([0; 8]);

    /// Of a stored password. Each is hashed with a fresh salt, so that even the same password set again is another epoch.
    pub fn of(stored: &StoredPassword) -> Epoch {
        let digest: [u8; 32] = Sha256::digest(stored.0.as_bytes()).into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        Epoch([a, b, c, d, e, f, g, h])
    }

    /// As a token's claim has it.
    pub fn to_text(self) -> String {
        hex::encode(self.0)
    }

    /// From a token's claim.
    pub fn parse(text: &str) -> Option<Epoch> {
        let mut bytes = [0; 8];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Epoch(bytes))
    }
}

/// By what they are known.
#[derive(Clone, Debug)]
pub enum Credential {
    /// By nothing.
    None,
    /// By name and password: everything that the subject may do.
    Password(Epoch),
    /// By a bearer token: of what the subject may do, what the token names.
    Token(Arc<VerifiedToken>),
}

impl Identity {
    /// Nobody, known by nothing.
    pub const ANONYMOUS: Identity = Identity { subject: Subject::Anonymous, credential: Credential::None };

    /// A user who gave name and password.
    pub const fn of_password(user: UserId, epoch: Epoch) -> Identity {
        Identity { subject: Subject::User(user), credential: Credential::Password(epoch) }
    }

    /// What a token for this identity is bound to.
    pub fn epoch(&self) -> Epoch {
        match &self.credential {
            Credential::None => Epoch::NONE,
            Credential::Password(epoch) => *epoch,
            Credential::Token(token) => token.epoch,
        }
    }

    /// The user, if it is one.
    pub const fn user(&self) -> Option<UserId> {
        match &self.subject {
            Subject::User(user) => Some(*user),
            Subject::Anonymous => None,
        }
    }
}
