//! Members: users with a role in a project.

use crate::project::{ProjectId, Role};
use crate::user::UserId;

pub mod api;
pub mod store;

/// The id of a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(pub i64);

/// A membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// In which project.
    pub project: ProjectId,
    /// Who.
    pub user: UserId,
    /// The user's name.
    pub username: String,
    /// As what.
    pub role: Role,
}
