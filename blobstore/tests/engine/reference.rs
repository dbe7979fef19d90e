//! The reference model: what a store must know, as plain maps.
//!
//! It is right by being obvious. Where the engine may answer in more than one way (when exactly a lease ends), the model
//! says so and takes over what the engine did.

use std::collections::{BTreeMap, BTreeSet};

use taffrail_blobstore::SessionId;

use crate::catalog::content;

/// Times of every store under test, in milliseconds. Short, so that histories pass them.
pub(crate) const LEASE_MS: u64 = 1_000;
pub(crate) const GRACE_MS: u64 = 400;
pub(crate) const SESSION_IDLE_MS: u64 = 2_500;

/// A lease may last longer than promised, never more than twice.
const LEASE_LONGEST_MS: u64 = 2 * LEASE_MS;

/// A session of more bytes than this survives `kill -9` at the acknowledged offset.
pub(crate) const FORGETTABLE_BYTES: u64 = 1024 * 1024;

/// (repository, blob)
pub(crate) type Link = (u8, u8);

/// Links with their generations.
pub(crate) type Links = BTreeMap<Link, u64>;

/// What the engine may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum May {
    Yes,
    No,
    Either,
}

impl May {
    pub(crate) fn allows(self, happened: bool) -> bool {
        match self {
            May::Yes => happened,
            May::No => !happened,
            May::Either => true,
        }
    }
}

/// What a backup holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Held {
    #[default]
    Nothing,
    /// No file goes.
    Files,
    /// No file goes, and no link.
    FilesAndLinks,
}

/// An upload session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) repository: u8,
    /// What it is to become.
    pub(crate) blob: u8,
    /// Bytes taken in.
    pub(crate) offset_bytes: u64,
    /// Bytes acknowledged.
    pub(crate) acknowledged_bytes: u64,
    /// When it was used last, between these.
    pub(crate) touched_ms: (u64, u64),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) now_ms: u64,
    pub(crate) opened_ms: u64,
    pub(crate) links: Links,
    /// Blobs that are stored without a link, and since when at the latest.
    pub(crate) garbage: BTreeMap<u8, u64>,
    /// Whether `garbage` is all there is.
    pub(crate) garbage_is_exact: bool,
    /// Removals that are held.
    pub(crate) held: Held,
    leases: BTreeMap<Link, u64>,
    /// Pinned links, by the name they were pinned under.
    pub(crate) pins: BTreeMap<u8, Vec<Link>>,
    pub(crate) sessions: Vec<Session>,
    /// The sessions that histories can name; the others wait for their end.
    pub(crate) slots: BTreeMap<u8, SessionId>,
}

impl Model {
    pub(crate) fn new(now_ms: u64) -> Model {
        Model { now_ms, opened_ms: now_ms, garbage_is_exact: true, ..Model::default() }
    }

    pub(crate) fn holds(&self, repository: u8, blob: u8) -> bool {
        self.links.contains_key(&(repository, blob))
    }

    pub(crate) fn holders(&self, blob: u8) -> Vec<u8> {
        self.links.keys().filter(|(_, linked)| *linked == blob).map(|(repository, _)| *repository).collect()
    }

    pub(crate) fn linked_blobs(&self) -> BTreeSet<u8> {
        self.links.keys().map(|(_, blob)| *blob).collect()
    }

    /// A link was written; its generation is learned from the engine.
    pub(crate) fn link(&mut self, repository: u8, blob: u8) {
        self.links.entry((repository, blob)).or_insert(0);
        self.garbage.remove(&blob);
        self.lease(repository, blob);
    }

    pub(crate) fn unlink(&mut self, repository: u8, blob: u8) {
        self.links.remove(&(repository, blob));
        if self.holders(blob).is_empty() {
            self.garbage.insert(blob, self.now_ms);
        }
    }

    pub(crate) fn lease(&mut self, repository: u8, blob: u8) {
        self.leases.insert((repository, blob), self.now_ms);
    }

    fn leased(&self, lease: Option<&u64>) -> May {
        match lease {
            Some(granted_ms) if self.now_ms < granted_ms + LEASE_MS => May::Yes,
            Some(granted_ms) if self.now_ms < granted_ms + LEASE_LONGEST_MS => May::Either,
            Some(_) | None => May::No,
        }
    }

    /// Whether leases of before the opening may still be relied on.
    fn fenced(&self) -> bool {
        self.now_ms < self.opened_ms + LEASE_MS
    }

    pub(crate) fn pinned(&self, repository: u8, blob: u8) -> bool {
        self.pins.values().any(|links| links.contains(&(repository, blob)))
    }

    /// Whether a link that is not newer than was looked at is removed.
    pub(crate) fn unlinks_if(&self, repository: u8, blob: u8) -> May {
        if self.fenced() || self.pinned(repository, blob) || self.held == Held::FilesAndLinks {
            return May::No;
        }
        match self.leased(self.leases.get(&(repository, blob))) {
            May::Yes => May::No,
            May::Either => May::Either,
            May::No => May::Yes,
        }
    }

    /// Whether a blob without link is collected now.
    pub(crate) fn collects(&self, blob: u8, since_ms: u64) -> May {
        if self.fenced() || self.now_ms < since_ms + GRACE_MS || self.held != Held::Nothing {
            return May::No;
        }
        let newest =
            self.leases.iter().filter(|((_, leased), _)| *leased == blob).map(|(_, granted)| granted).max();
        match self.leased(newest) {
            May::Yes => May::No,
            May::Either => May::Either,
            May::No => May::Yes,
        }
    }

    pub(crate) fn session(&self, slot: u8) -> Option<&Session> {
        let id = self.slots.get(&slot)?;
        self.sessions.iter().find(|session| session.id == *id)
    }

    pub(crate) fn session_mut(&mut self, slot: u8) -> Option<&mut Session> {
        let id = self.slots.get(&slot)?;
        let now_ms = self.now_ms;
        let session = self.sessions.iter_mut().find(|session| session.id == *id)?;
        session.touched_ms = (now_ms, now_ms);
        Some(session)
    }

    pub(crate) fn forget_session(&mut self, id: SessionId) {
        self.sessions.retain(|session| session.id != id);
        self.slots.retain(|_, named| *named != id);
    }

    /// The store was opened anew: what lived in memory alone is gone.
    pub(crate) fn reopened(&mut self) {
        self.opened_ms = self.now_ms;
        self.held = Held::Nothing;
        self.leases.clear();
        self.pins.clear();
        for session in &mut self.sessions {
            session.touched_ms.0 = 0;
        }
    }
}

impl Session {
    /// Whether a crash may not forget it.
    pub(crate) fn must_survive(&self) -> bool {
        self.acknowledged_bytes > FORGETTABLE_BYTES
    }

    /// The bytes that come next, at most `bytes`.
    pub(crate) fn next(&self, bytes: u64) -> bytes::Bytes {
        let all = &content(self.blob).bytes;
        let from = usize::try_from(self.offset_bytes).unwrap().min(all.len());
        let to = from + usize::try_from(bytes).unwrap_or(usize::MAX).min(all.len() - from);
        all.slice(from..to)
    }

    /// Bytes of which the first differs from the one that comes next.
    pub(crate) fn garbage(&self, bytes: u64) -> bytes::Bytes {
        let len = usize::try_from(bytes).unwrap().max(1);
        let next = self.next(bytes);
        (0..len).map(|at| next.get(at).map_or(0xaa, |byte| !byte)).collect()
    }
}
