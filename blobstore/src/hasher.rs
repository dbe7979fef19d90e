//! Hashers whose state can be put aside and taken up again, so that a resumed upload reads nothing back.
//!
//! Invariant: an exported state is taken up only by the code that wrote it ([`HasherState::LAYOUT`] says which); any
//! other is refused, and the caller hashes the stored bytes again. BLAKE3 has no state to export: what it exports is the
//! digest so far, which tells whether hashing again gave the same.

use digest::common::hazmat::{SerializableState, SerializedState};
use sha2::Digest as _;

use crate::digest::{Algorithm, Digest};

/// An unfinished digest.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
    // The BLAKE3 state is 2 KiB, the others about 200 bytes.
    Blake3(Box<blake3::Hasher>),
}

/// An exported hash state: at most [`HasherState::BYTES_MAX`] bytes that mean something only to this code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HasherState(Vec<u8>);

impl HasherState {
    /// Number of the state layout: the one of `sha2` 0.11 (`SerializableState`). Raise it when that layout changes, and
    /// sessions written before are hashed again from their bytes.
    pub const LAYOUT: u8 = 1;

    /// Layout number, algorithm number and the longest state, which is SHA-512's (208 bytes).
    pub const BYTES_MAX: usize = 2 + 208;

    /// Takes up bytes that were stored; they are checked by [`Hasher::restore`].
    pub fn from_bytes(bytes: &[u8]) -> HasherState {
        HasherState(bytes.to_vec())
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Hasher {
        Hasher(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
            Algorithm::Blake3 => State::Blake3(Box::default()),
        })
    }

    /// Which digest it makes.
    pub fn algorithm(&self) -> Algorithm {
        match &self.0 {
            State::Sha256(_) => Algorithm::Sha256,
            State::Sha512(_) => Algorithm::Sha512,
            State::Blake3(_) => Algorithm::Blake3,
        }
    }

    /// Takes in more bytes, on the caller's thread (about 2 GB/s per core for SHA-256 with SHA-NI).
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
            State::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            State::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
            State::Blake3(hasher) => Digest::Blake3(hasher.finalize().into()),
        }
    }

    /// The state so far; for BLAKE3 the digest so far. Two exports are equal only when the bytes taken in were.
    pub fn export(&self) -> HasherState {
        let mut bytes = vec![HasherState::LAYOUT, self.algorithm().number()];
        match &self.0 {
            State::Sha256(hasher) => bytes.extend_from_slice(&hasher.serialize()),
            State::Sha512(hasher) => bytes.extend_from_slice(&hasher.serialize()),
            State::Blake3(hasher) => bytes.extend_from_slice(hasher.finalize().as_bytes()),
        }
        HasherState(bytes)
    }

    /// Takes up an exported state; `None` when another layout wrote it, it is malformed, or it is one of BLAKE3.
    pub fn restore(state: &HasherState) -> Option<Hasher> {
        let [HasherState::LAYOUT, number, rest @ ..] = state.as_bytes() else { return None };
        Some(Hasher(match Algorithm::from_number(*number)? {
            Algorithm::Sha256 => {
                let state = SerializedState::<sha2::Sha256>::try_from(rest).ok()?;
                State::Sha256(sha2::Sha256::deserialize(&state).ok()?)
            }
            Algorithm::Sha512 => {
                let state = SerializedState::<sha2::Sha512>::try_from(rest).ok()?;
                State::Sha512(sha2::Sha512::deserialize(&state).ok()?)
            }
            Algorithm::Blake3 => return None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_hasher_goes_on_where_the_exported_one_stopped() {
        let bytes: Vec<u8> = (0..1000_u32).map(|number| number.to_le_bytes()[0]).collect();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for cut in [0, 1, 63, 64, 127, 128, 500, 1000] {
                let mut first = Hasher::new(algorithm);
                first.update(&bytes[..cut]);
                let state = first.export();
                assert!(state.as_bytes().len() <= HasherState::BYTES_MAX);
                let mut second = Hasher::restore(&HasherState::from_bytes(state.as_bytes())).unwrap();
                second.update(&bytes[cut..]);
                assert_eq!(second.finish(), Digest::of(algorithm, &bytes), "{algorithm} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_state_of_another_layout_is_refused() {
        let mut bytes = Hasher::new(Algorithm::Sha256).export().as_bytes().to_vec();
        assert!(Hasher::restore(&HasherState::from_bytes(&bytes[..bytes.len() - 1])).is_none());
        bytes[0] = HasherState::LAYOUT + 1;
        assert!(Hasher::restore(&HasherState::from_bytes(&bytes)).is_none());
        assert!(Hasher::restore(&HasherState::from_bytes(&[])).is_none());
        assert!(Hasher::restore(&Hasher::new(Algorithm::Blake3).export()).is_none());
    }
}
