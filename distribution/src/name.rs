//! Names: repositories, tags, and the reference of a manifest.
//!
//! Invariant: each type is well formed; text becomes one only in its `parse`. The grammars are those of OCI
//! distribution-spec 1.1.1, "Pulling manifests".

use std::fmt;

use taffrail_blobstore::Digest;

/// Longest repository name in characters. The spec leaves it open and warns that host and name together should stay
/// below 256 for some clients; distribution and Harbor refuse more than 255.
pub const REPOSITORY_NAME_CHARS_MAX: usize = 255;

/// Longest tag in characters (spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`).
pub const TAG_CHARS_MAX: usize = 128;

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Longer than [`REPOSITORY_NAME_CHARS_MAX`].
    #[error("a repository name has at most {REPOSITORY_NAME_CHARS_MAX} characters")]
    RepositoryTooLong,
    /// Against the grammar.
    #[error(
        "a repository name consists of lowercase letters, digits and single separators (. _ __ -), in parts divided by /"
    )]
    Repository,
    /// Against the grammar, or too long.
    #[error("a tag has 1 to {TAG_CHARS_MAX} letters, digits, _ . or -, and does not begin with . or -")]
    Tag,
}

/// The name of a repository: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(String);

impl RepositoryName {
    /// Parses a repository name.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn parse(text: &str) -> Result<RepositoryName, NameError> {
        if text.len() > REPOSITORY_NAME_CHARS_MAX {
            return Err(NameError::RepositoryTooLong);
        }
        if text.split('/').all(is_name_part) {
            Ok(RepositoryName(text.to_owned()))
        } else {
            Err(NameError::Repository)
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the first `/`, and the rest; `None` when there is no `/`.
    pub fn split_first(&self) -> Option<(&str, &str)> {
        self.0.split_once('/')
    }
}

fn is_name_part(part: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    part.split(|character: char| character.is_ascii_lowercase() || character.is_ascii_digit()).all(
        |separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'),
    )
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

impl Tag {
    /// Parses a tag.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn parse(text: &str) -> Result<Tag, NameError> {
        let bytes = text.as_bytes();
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let well_formed = bytes.len() <= TAG_CHARS_MAX
            && bytes.first().is_some_and(|first| word(*first))
            && bytes.iter().all(|byte| word(*byte) || matches!(byte, b'.' | b'-'));
        if well_formed { Ok(Tag(text.to_owned())) } else { Err(NameError::Tag) }
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What names a manifest within its repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// By what it is.
    Digest(Digest),
    /// By a name that can move.
    Tag(Tag),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_grammar_are_accepted_and_others_refused() {
        for name in
            ["a", "library/hello", "a/b/c", "a.b", "a_b", "a__b", "a-b", "a---b", "0/1", &"a".repeat(255)]
        {
            assert!(RepositoryName::parse(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a..b",
            "a___b",
            "a._b",
            ".a",
            "a.",
            "_a",
            "-a",
            "a-",
            "é",
            "a b",
            "a\0",
            "../x",
            "a/../b",
            "a%2fb",
            &"a".repeat(256),
        ] {
            assert!(RepositoryName::parse(name).is_err(), "{name}");
        }
    }

    #[test]
    fn tags_of_the_grammar_are_accepted_and_others_refused() {
        for tag in ["latest", "v1.0", "_x", "A-b.c_d", "1", &"t".repeat(128)] {
            assert!(Tag::parse(tag).is_ok(), "{tag}");
        }
        for tag in ["", ".a", "-a", "a/b", "a:b", "a b", "é", "a\r\n", &"t".repeat(129)] {
            assert!(Tag::parse(tag).is_err(), "{tag}");
        }
    }
}
