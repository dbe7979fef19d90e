//! Projects: the namespaces that repositories live in and rights are given on.

use std::fmt;

use crate::user::UserId;

pub mod api;
pub mod store;

/// Longest project name in characters, as in Harbor.
pub const NAME_CHARS_MAX: usize = 255;

/// The immutable id of a project. A project made anew under an old name has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectId(pub i64);

/// A project's name: lowercase letters, digits and single `.`, `_`, `-` between them (Harbor's rule, which makes it the first
/// part of a repository name).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectName(String);

/// Why a text is no project name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a project name has 1 to {NAME_CHARS_MAX} lowercase letters, digits and single separators (. _ -) between them"
)]
pub struct ProjectNameError;

impl ProjectName {
    /// Parses a project name.
    ///
    /// # Errors
    /// When it breaks the rule.
    pub fn parse(text: &str) -> Result<ProjectName, ProjectNameError> {
        let bytes = text.as_bytes();
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let ends =
            bytes.first().is_some_and(|byte| word(*byte)) && bytes.last().is_some_and(|byte| word(*byte));
        let single = bytes.windows(2).all(|pair| word(pair[0]) || word(pair[1]));
        let known = bytes.iter().all(|byte| word(*byte) || matches!(byte, b'.' | b'_' | b'-'));
        if bytes.len() <= NAME_CHARS_MAX && ends && single && known {
            Ok(ProjectName(text.to_owned()))
        } else {
            Err(ProjectNameError)
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ProjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Its name.
    pub name: String,
    /// Whether anybody may pull.
    pub public: bool,
    /// Who made it; none when that user was deleted.
    pub owner: Option<UserId>,
    /// That user's name.
    pub owner_name: Option<String>,
    /// Repositories that hold at least one artifact.
    pub repo_count: i64,
    /// When it was made, in microseconds since 1970.
    pub created_us: i64,
    /// When it was changed last.
    pub updated_us: i64,
}

/// A project, as far as decisions need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProjectFacts {
    /// Its id.
    pub id: ProjectId,
    /// Whether anybody may pull.
    pub public: bool,
    /// What whoever asks is in it, as a member.
    pub role: Option<Role>,
}

/// How a request names a project.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProjectRef {
    /// By its id.
    Id(ProjectId),
    /// By its name.
    Name(ProjectName),
}

/// What a member may do. The numbers are Harbor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Everything within the project.
    Admin,
    /// Push, delete, and most settings.
    Maintainer,
    /// Push and pull.
    Developer,
    /// Pull and look.
    Guest,
    /// Pull only.
    LimitedGuest,
}

impl Role {
    /// Every role, from the most to the least powerful.
    pub const ALL: [Role; 5] =
        [Role::Admin, Role::Maintainer, Role::Developer, Role::Guest, Role::LimitedGuest];

    /// Harbor's number.
    pub const fn number(self) -> i64 {
        match self {
            Role::Admin => 1,
            Role::Developer => 2,
            Role::Guest => 3,
            Role::Maintainer => 4,
            Role::LimitedGuest => 5,
        }
    }

    /// The role of that number.
    pub fn from_number(number: i64) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.number() == number)
    }

    /// Harbor's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Admin => "projectAdmin",
            Role::Maintainer => "maintainer",
            Role::Developer => "developer",
            Role::Guest => "guest",
            Role::LimitedGuest => "limitedGuest",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_rule_are_accepted_and_others_refused() {
        for name in ["a", "library", "a.b", "a-b_c", "0", &"a".repeat(255)] {
            assert!(ProjectName::parse(name).is_ok(), "{name}");
        }
        for name in ["", "A", "a/b", ".a", "a.", "a..b", "a--b", "é", "a b", "_a", &"a".repeat(256)] {
            assert!(ProjectName::parse(name).is_err(), "{name}");
        }
    }

    #[test]
    fn roles_have_harbors_numbers() {
        assert_eq!(Role::ALL.map(Role::number), [1, 4, 2, 3, 5]);
        assert_eq!(Role::from_number(4), Some(Role::Maintainer));
        assert_eq!(Role::from_number(0), None);
    }
}
