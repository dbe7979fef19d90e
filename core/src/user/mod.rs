//! Users of the local database.

use std::fmt;

pub mod api;
pub mod store;

/// Longest user name in characters, as in Harbor.
pub const NAME_CHARS_MAX: usize = 255;

/// The immutable id of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(pub i64);

/// A user name: printable, without white space and without what Harbor reserves (`, " ~ # % $` and what separates names in
/// headers and paths).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Username(String);

/// Why a text is no user name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a user name has 1 to {NAME_CHARS_MAX} letters, digits and . _ - @ +, and begins with a letter or digit"
)]
pub struct UsernameError;

impl Username {
    /// Parses a user name. ASCII only, so that no letter of another script passes for one of these.
    ///
    /// # Errors
    /// When it breaks the rule.
    pub fn parse(text: &str) -> Result<Username, UsernameError> {
        let bytes = text.as_bytes();
        let known =
            |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'@' | b'+');
        let begins = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
        if begins && bytes.len() <= NAME_CHARS_MAX && bytes.iter().all(known) {
            Ok(Username(text.to_owned()))
        } else {
            Err(UsernameError)
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A password as it is stored: a PHC string of argon2id. It is no secret in itself, and not for display.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StoredPassword(pub String);

impl fmt::Debug for StoredPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredPassword")
    }
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// Its name.
    pub username: String,
    /// Its address, unique when given.
    pub email: Option<String>,
    /// The name of the person.
    pub realname: String,
    /// A comment.
    pub comment: String,
    /// Whether the user may do everything.
    pub sysadmin: bool,
    /// When it was made, in microseconds since 1970.
    pub created_us: i64,
    /// When it was changed last.
    pub updated_us: i64,
}

/// A user about to be made.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// Its name.
    pub username: Username,
    /// Its address.
    pub email: Option<String>,
    /// The name of the person.
    pub realname: String,
    /// A comment.
    pub comment: String,
    /// Whether the user may do everything.
    pub sysadmin: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_mistaken_are_refused() {
        for name in ["alice", "a.b-c_d", "a@example.com", "0x", "A+b"] {
            assert!(Username::parse(name).is_ok(), "{name}");
        }
        for name in [
            "",
            " ",
            "admin\u{a0}",
            "a b",
            "a\r\nb",
            "robot$x",
            "a,b",
            "\u{430}dmin",
            "-a",
            "a/b",
            "a:b",
            &"a".repeat(256),
        ] {
            assert!(Username::parse(name).is_err(), "{name}");
        }
    }
}
