//! Passwords: what is accepted, how it is hashed, and what a wrong name costs.
//!
//! Parameters are OWASP's minimum for argon2id: 19 MiB and two passes (about 20 ms of a core). More memory would let a login
//! storm take the machine; the number of hashes under way is bounded by whoever calls.

use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::user::StoredPassword;

/// Shortest and longest new password in characters: Harbor's rule.
const CHARS: std::ops::RangeInclusive<usize> = 8..=128;

/// Longest password in bytes, also when one is verified: keeps hashing work bounded. Bytes are compared as they were sent: a
/// composed and a decomposed accent are two passwords.
pub const BYTES_MAX: usize = 256;

/// Memory in KiB, passes, and lanes.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Passwords that everybody knows, because some registry shipped with them.
const KNOWN_DEFAULTS: [&str; 4] = ["Harbor12345", "harbor12345", "Admin123", "Password1"];

/// Why a password is not accepted as a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PasswordError {
    /// Too short or too long.
    #[error("a password has 8 to 128 characters, and at most {BYTES_MAX} bytes")]
    Length,
    /// Harbor's rule.
    #[error("a password has at least one upper-case letter, one lower-case letter and one digit")]
    Variety,
    /// Known to everybody.
    #[error("this password is a well-known default; choose another")]
    WellKnown,
}

/// Whether a password may be set.
///
/// # Errors
/// See [`PasswordError`].
pub fn check(password: &str) -> Result<(), PasswordError> {
    if password.len() > BYTES_MAX || !CHARS.contains(&password.chars().count()) {
        return Err(PasswordError::Length);
    }
    let has = |wanted: fn(&char) -> bool| password.chars().any(|character| wanted(&character));
    if !(has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase) && has(char::is_ascii_digit)) {
        return Err(PasswordError::Variety);
    }
    if KNOWN_DEFAULTS.contains(&password) { Err(PasswordError::WellKnown) } else { Ok(()) }
}

fn argon2() -> Argon2<'static> {
    // The parameters are constants within argon2's bounds (a test hashes with them).
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).unwrap_or_default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// Hashes a password with a random salt. Takes about 20 ms of a core: not for an async worker.
pub fn hash(password: &str, salt: &[u8; 16]) -> Option<StoredPassword> {
    let hash = argon2().hash_password_with_salt(password.as_bytes(), salt).ok()?;
    Some(StoredPassword(hash.to_string()))
}

/// Whether the password is the stored one. Takes as long as [`hash`], whatever the answer.
pub fn is_correct(password: &str, stored: &StoredPassword) -> bool {
    argon2().verify_password(password.as_bytes(), stored.0.as_str()).is_ok()
}

/// A stored password that nobody has: random bytes in the places of salt and hash. Comparing with it takes as long as comparing with
/// any other; making it takes no time and no memory.
pub fn of_nobody(salt: &[u8; 16], hash: &[u8; 32]) -> StoredPassword {
    let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
    StoredPassword(format!("{}{salt}${hash}", prefix()))
}

/// How a hash begins that is made today.
fn prefix() -> String {
    format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}$")
}

/// Whether the stored hash was made with other parameters than today's, so that it is made anew at the next login.
pub fn is_outdated(stored: &StoredPassword) -> bool {
    !stored.0.starts_with(&prefix())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_verifies_against_its_own_hash_only() {
        let stored = hash("Correct1horse", &[7; 16]).unwrap();
        assert!(is_correct("Correct1horse", &stored));
        assert!(!is_correct("Correct1hors", &stored));
        assert!(!is_correct("", &stored));
        assert!(!is_correct("Correct1horse", &StoredPassword("nonsense".to_owned())));
        assert!(!is_outdated(&stored), "{stored:?}");
        assert!(is_outdated(&StoredPassword("$argon2id$v=19$m=4096,t=1,p=1$x$y".to_owned())));
    }

    #[test]
    fn the_password_of_nobody_differs_from_a_real_one_in_its_random_bytes_only() {
        let stored = hash("Correct1horse", &[7; 16]).unwrap();
        let decoded: Vec<Vec<u8>> =
            stored.0.split('$').skip(4).map(|field| STANDARD_NO_PAD.decode(field).unwrap()).collect();
        let (salt, hash) =
            (decoded[0].as_slice().try_into().unwrap(), decoded[1].as_slice().try_into().unwrap());
        assert_eq!(of_nobody(&salt, &hash), stored);
        assert!(!is_correct("Correct1horse", &of_nobody(&salt, &[7; 32])));
    }

    #[test]
    fn passwords_equal_in_their_first_72_bytes_are_different_passwords() {
        let long = format!("Aa1{}", "x".repeat(80));
        let stored = hash(&long, &[7; 16]).unwrap();
        assert!(!is_correct(&format!("{long}y"), &stored));
    }

    #[test]
    fn weak_and_known_passwords_are_refused() {
        assert_eq!(check("Sh0rt"), Err(PasswordError::Length));
        assert_eq!(check(&"Aa1".repeat(100)), Err(PasswordError::Length));
        assert_eq!(check("alllowercase1"), Err(PasswordError::Variety));
        assert_eq!(check("NoDigitsHere"), Err(PasswordError::Variety));
        assert_eq!(check("Harbor12345"), Err(PasswordError::WellKnown));
        assert_eq!(check("G00d-enough"), Ok(()));
    }
}
