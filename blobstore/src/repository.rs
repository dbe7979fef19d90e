//! The kinds of opaque id that callers hand to the store.

use std::fmt;

/// A repository, as the engine knows it: a random number that is never reused. What it names is the catalog's affair.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryKey(u64);

impl RepositoryKey {
    /// The key of that number; `None` for 0 and for numbers above 2^63 - 1, so that every key fits a signed SQL integer.
    pub fn new(number: u64) -> Option<RepositoryKey> {
        (number != 0 && i64::try_from(number).is_ok()).then_some(RepositoryKey(number))
    }

    /// Its number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for RepositoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "repository {:016x}", self.0)
    }
}

/// Whose upload sessions are counted together, as the engine knows them: a number that it compares and nothing more. Who they
/// are is the caller's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Uploader(pub u64);

/// An upload session: 128 random bits. It is a name, not a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId([u8; 16]);

impl SessionId {
    /// The id with those bytes; they come from the caller's random source.
    pub const fn new(bytes: [u8; 16]) -> SessionId {
        SessionId(bytes)
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Parses what [`fmt::Display`] prints: lowercase, `8-4-4-4-12` hex digits.
    pub fn parse(text: &str) -> Option<SessionId> {
        let mut bytes = [0_u8; 16];
        let mut digits = text.bytes();
        for (index, byte) in bytes.iter_mut().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) && digits.next()? != b'-' {
                return None;
            }
            *byte = hex_value(digits.next()?)? << 4 | hex_value(digits.next()?)?;
        }
        digits.next().is_none().then_some(SessionId(bytes))
    }
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_parses_back_and_nothing_else_parses() {
        let id = SessionId::new(*b"0123456789jklmno");
        assert_eq!(id.to_string(), "30313233-3435-3637-3839-6a6b6c6d6e6f");
        assert_eq!(SessionId::parse(&id.to_string()), Some(id));
        for text in [
            "",
            "30313233",
            "30313233-3435-3637-3839-61626364656",
            "../etc/passwd",
            "30313233-3435-3637-3839-6162636465660",
        ] {
            assert_eq!(SessionId::parse(text), None, "{text}");
        }
        assert_eq!(SessionId::parse(&id.to_string().to_uppercase()), None);
    }

    #[test]
    fn a_key_is_a_positive_signed_number() {
        assert!(RepositoryKey::new(0).is_none());
        assert!(RepositoryKey::new(1 << 63).is_none());
        assert_eq!(RepositoryKey::new((1 << 63) - 1).map(RepositoryKey::number), Some((1 << 63) - 1));
    }
}
