//! Who may do what: the whole table. `docs/roles.md` is generated from it (a test holds the two together).

use crate::project::Role;

/// Something that can be done within a project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProjectAction {
    /// Pull manifests and blobs, list tags and referrers.
    Pull,
    /// Push blobs, manifests and tags.
    Push,
    /// Delete tags, manifests and blobs.
    Delete,
    /// See the project.
    Read,
    /// Make it public or private.
    Update,
    /// Delete the project itself.
    DeleteProject,
    /// See who is a member.
    ReadMembers,
    /// Add, change and remove members.
    WriteMembers,
}

/// Something that can be done outside of projects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SystemAction {
    /// Make a project.
    CreateProject,
    /// List, make and delete users, and make them system administrators.
    ManageUsers,
    /// See and change one's own account.
    OwnAccount,
    /// Page through the catalog of what one may pull.
    Catalog,
}

/// As what somebody stands to a project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// A system administrator.
    SystemAdmin,
    /// A member.
    Member(Role),
    /// A user who is no member.
    Outsider,
    /// Nobody that is known.
    Anonymous,
}

impl ProjectAction {
    /// Every action.
    pub const ALL: [ProjectAction; 8] = [
        ProjectAction::Pull,
        ProjectAction::Push,
        ProjectAction::Delete,
        ProjectAction::Read,
        ProjectAction::Update,
        ProjectAction::DeleteProject,
        ProjectAction::ReadMembers,
        ProjectAction::WriteMembers,
    ];

    /// Its row in the published table.
    pub const fn title(self) -> &'static str {
        match self {
            ProjectAction::Pull => "pull manifests and blobs, list tags and referrers",
            ProjectAction::Push => "push blobs, manifests and tags",
            ProjectAction::Delete => "delete tags, manifests and blobs",
            ProjectAction::Read => "see the project",
            ProjectAction::Update => "make the project public or private",
            ProjectAction::DeleteProject => "delete the project",
            ProjectAction::ReadMembers => "see the members",
            ProjectAction::WriteMembers => "add, change and remove members",
        }
    }
}

impl Standing {
    /// Every standing.
    pub const ALL: [Standing; 8] = [
        Standing::SystemAdmin,
        Standing::Member(Role::Admin),
        Standing::Member(Role::Maintainer),
        Standing::Member(Role::Developer),
        Standing::Member(Role::Guest),
        Standing::Member(Role::LimitedGuest),
        Standing::Outsider,
        Standing::Anonymous,
    ];

    /// Its column in the published table.
    pub const fn title(self) -> &'static str {
        match self {
            Standing::SystemAdmin => "system admin",
            Standing::Member(Role::Admin) => "project admin",
            Standing::Member(Role::Maintainer) => "maintainer",
            Standing::Member(Role::Developer) => "developer",
            Standing::Member(Role::Guest) => "guest",
            Standing::Member(Role::LimitedGuest) => "limited guest",
            Standing::Outsider => "other user",
            Standing::Anonymous => "anonymous",
        }
    }
}

/// Whether somebody of that standing may do that in a project. Deny by default: what is not said here may not be done.
pub const fn may(standing: Standing, action: ProjectAction, public: bool) -> bool {
    use ProjectAction as Do;
    match standing {
        Standing::SystemAdmin | Standing::Member(Role::Admin) => true,
        Standing::Member(Role::Maintainer) => {
            matches!(action, Do::Pull | Do::Push | Do::Delete | Do::Read | Do::ReadMembers)
        }
        Standing::Member(Role::Developer) => {
            matches!(action, Do::Pull | Do::Push | Do::Read | Do::ReadMembers)
        }
        Standing::Member(Role::Guest) => matches!(action, Do::Pull | Do::Read | Do::ReadMembers),
        Standing::Member(Role::LimitedGuest) => matches!(action, Do::Pull | Do::Read),
        Standing::Outsider | Standing::Anonymous => public && matches!(action, Do::Pull | Do::Read),
    }
}

/// Whether somebody may do that outside of projects.
pub const fn may_in_system(standing: Standing, action: SystemAction) -> bool {
    match (standing, action) {
        (Standing::SystemAdmin, _) => true,
        (Standing::Anonymous, _) | (_, SystemAction::ManageUsers) => false,
        (
            Standing::Member(_) | Standing::Outsider,
            SystemAction::CreateProject | SystemAction::OwnAccount | SystemAction::Catalog,
        ) => true,
    }
}

/// The table as Markdown, as `docs/roles.md` has it.
pub fn as_markdown() -> String {
    let mut out = String::from("| in a project | ");
    let columns: Vec<&str> = Standing::ALL.iter().map(|standing| standing.title()).collect();
    out.push_str(&columns.join(" | "));
    out.push_str(" |\n|---|");
    out.push_str(&"---|".repeat(columns.len()));
    out.push('\n');
    for action in ProjectAction::ALL {
        let cells: Vec<&str> = Standing::ALL
            .iter()
            .map(|standing| match (may(*standing, action, false), may(*standing, action, true)) {
                (true, _) => "yes",
                (false, true) => "if public",
                (false, false) => "",
            })
            .collect();
        out.push_str(&format!("| {} | {} |\n", action.title(), cells.join(" | ")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_table_is_this_one() {
        let published = include_str!("../../../docs/roles.md");
        assert!(published.contains(&as_markdown()), "docs/roles.md should contain:\n{}", as_markdown());
    }

    #[test]
    fn who_may_less_never_may_what_who_may_more_may_not() {
        for public in [false, true] {
            for action in ProjectAction::ALL {
                for pair in Standing::ALL.windows(2) {
                    // Being a member of a public project is never worth less than being nobody.
                    assert!(
                        may(pair[0], action, public) || !may(pair[1], action, public),
                        "{pair:?} {action:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn whoever_sees_a_repository_in_lists_may_pull_from_it() {
        for role in Role::ALL {
            assert!(may(Standing::Member(role), ProjectAction::Pull, false), "{role:?}");
        }
        for standing in Standing::ALL {
            assert!(may(standing, ProjectAction::Pull, true), "{standing:?}");
        }
    }

    #[test]
    fn nobody_pushes_to_a_project_because_it_is_public() {
        for action in ProjectAction::ALL {
            let by_publicity = may(Standing::Anonymous, action, true);
            assert_eq!(
                by_publicity,
                matches!(action, ProjectAction::Pull | ProjectAction::Read),
                "{action:?}"
            );
            assert!(!may(Standing::Anonymous, action, false) && !may(Standing::Outsider, action, false));
        }
    }
}
