//! What is on its way to the log and must not be overtaken by a copy of what it cancels or replaces.

use std::collections::HashMap;

use crate::digest::Digest;
use crate::format::batch::NewRecord;
use crate::format::record::Body;
use crate::repository::SessionId;

/// What a record that cancels or replaces others is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A blob and its links, of which some are removed.
    Digest(Digest),
    /// An upload session. Each of its records replaces the ones before, without regard to their LSN.
    Session(SessionId),
}

impl Key {
    /// Those of `records`. Records that only add have none: of two of them the one with the higher LSN counts, in either order.
    /// Nor have copies of tombstones, which spare what is newer.
    pub(crate) fn of(records: &[NewRecord]) -> Vec<Key> {
        let key = |record: &NewRecord| match &record.body {
            Body::Unlink { digest, .. } | Body::Delete { digest } => Some(Key::Digest(*digest)),
            Body::Session(session) => Some(Key::Session(session.session)),
            Body::SessionEnd { session } => Some(Key::Session(*session)),
            Body::Blob { .. }
            | Body::Solo { .. }
            | Body::Link { .. }
            // In memory the blob is quarantined before its record is on its way.
            | Body::Corrupt { .. }
            | Body::SegmentDrop { .. }
            | Body::Seal
            | Body::Repaired
            | Body::Copy(_) => None,
        };
        records.iter().filter_map(key).collect()
    }
}

/// How many records of each key are on their way.
#[derive(Debug, Default)]
pub(crate) struct InFlight(HashMap<Key, u32>);

impl InFlight {
    pub(crate) fn enter(&mut self, keys: &[Key]) {
        for key in keys {
            *self.0.entry(*key).or_default() += 1;
        }
    }

    pub(crate) fn leave(&mut self, keys: &[Key]) {
        for key in keys {
            if let Some(count) = self.0.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(key);
                }
            }
        }
    }

    pub(crate) fn has(&self, key: &Key) -> bool {
        self.0.contains_key(key)
    }
}
