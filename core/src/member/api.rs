//! Members over REST, in Harbor's shape.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};

use super::{Member, MemberId};
use crate::api::error::ApiError;
use crate::api::extract::{Body, Caller, Segments};
use crate::api::page::{Page, Parameters};
use crate::api::{ApiState, Classified, Needs};
use crate::authorizer::Refused;
use crate::authorizer::role_table::{ProjectAction, SystemAction};
use crate::identity::Identity;
use crate::project::Role;
use crate::project::api::authorize;
use crate::user::{User, UserId};

/// The routes.
pub fn routes() -> Vec<Classified> {
    vec![
        Classified {
            path: "/api/v2.0/projects/{project}/members",
            methods: &[
                ("GET", Needs::Project(ProjectAction::ReadMembers)),
                ("POST", Needs::Project(ProjectAction::WriteMembers)),
            ],
            handler: get(list).post(create),
        },
        Classified {
            path: "/api/v2.0/projects/{project}/members/{member}",
            methods: &[
                ("GET", Needs::Project(ProjectAction::ReadMembers)),
                ("PUT", Needs::Project(ProjectAction::WriteMembers)),
                ("DELETE", Needs::Project(ProjectAction::WriteMembers)),
            ],
            handler: get(read).put(update).delete(remove),
        },
    ]
}

#[derive(Serialize)]
struct Shown {
    id: i64,
    project_id: i64,
    entity_id: i64,
    entity_name: String,
    /// "u": a user; groups are not built yet.
    entity_type: &'static str,
    role_id: i64,
    role_name: &'static str,
}

impl From<Member> for Shown {
    fn from(member: Member) -> Shown {
        Shown {
            id: member.id.0,
            project_id: member.project.0,
            entity_id: member.user.0,
            entity_name: member.username,
            entity_type: "u",
            role_id: member.role.number(),
            role_name: member.role.name(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    role_id: i64,
    member_user: WantedUser,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedUser {
    user_id: Option<i64>,
    username: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedRole {
    role_id: i64,
}

fn role(number: i64) -> Result<Role, ApiError> {
    Role::from_number(number).ok_or_else(|| {
        ApiError::BadRequest(
            "role_id is 1 (project admin), 2 (developer), 3 (guest), 4 (maintainer) or 5 (limited guest)"
                .to_owned(),
        )
    })
}

fn unknown() -> ApiError {
    ApiError::NotFound("the project has no such member".to_owned())
}

/// The user that is to become a member. By id only for who manages users: ids are counted up, and to try them one after the
/// other would tell a project's admin who is registered. Anybody else gets the same answer for every id.
async fn user(state: &ApiState, identity: &Identity, wanted: &WantedUser) -> Result<User, ApiError> {
    let found = match (wanted.user_id, wanted.username.as_deref()) {
        // Clients that name a user leave the id at 0, which is nobody's.
        (Some(id), _) if id != 0 => {
            match state.authorizer.authorize_system(identity, SystemAction::ManageUsers).await {
                Ok(()) => state.users.by_id(UserId(id)).await?,
                Err(Refused::Forbidden | Refused::Unauthenticated | Refused::NotFound) => None,
                Err(Refused::Database(error)) => return Err(error.into()),
            }
        }
        (_, Some(name)) => state.users.by_name(name).await?,
        (_, None) => return Err(ApiError::BadRequest("member_user has a username".to_owned())),
    };
    let (user, _) = found.ok_or_else(|| {
        ApiError::NotFound("there is no such user; users are named by their username".to_owned())
    })?;
    Ok(user)
}

async fn list(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    headers: HeaderMap,
    Segments(project): Segments<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let path = format!("/api/v2.0/projects/{project}/members");
    let project = authorize(&state, &identity, &headers, &project, ProjectAction::ReadMembers).await?;
    let parameters = Parameters::parse(query.as_deref());
    let page = Page::of(&parameters)?;
    let name = parameters.first("entityname");
    let (members, total) = state.members.list(project, name, page.offset(), page.limit()).await?;
    let entries: Vec<Shown> = members.into_iter().map(Shown::from).collect();
    Ok(page.answer(&path, &parameters, &entries, total))
}

async fn create(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    headers: HeaderMap,
    Segments(project): Segments<String>,
    Body(wanted): Body<Wanted>,
) -> Result<Response, ApiError> {
    let project = authorize(&state, &identity, &headers, &project, ProjectAction::WriteMembers).await?;
    let role = role(wanted.role_id)?;
    let user = user(&state, &identity, &wanted.member_user).await?;
    let members = state.members.clone();
    let add = async move { members.add(project, user.id, role).await };
    let id = state.authorizer.directory().change(add).await??;
    let location = format!("/api/v2.0/projects/{}/members/{}", project.0, id.0);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)]).into_response())
}

async fn read(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    headers: HeaderMap,
    Segments((project, member)): Segments<(String, i64)>,
) -> Result<Response, ApiError> {
    let project = authorize(&state, &identity, &headers, &project, ProjectAction::ReadMembers).await?;
    let member = state.members.by_id(project, MemberId(member)).await?.ok_or_else(unknown)?;
    Ok(Json(Shown::from(member)).into_response())
}

async fn update(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    headers: HeaderMap,
    Segments((project, member)): Segments<(String, i64)>,
    Body(wanted): Body<WantedRole>,
) -> Result<StatusCode, ApiError> {
    let project = authorize(&state, &identity, &headers, &project, ProjectAction::WriteMembers).await?;
    let (members, role) = (state.members.clone(), role(wanted.role_id)?);
    let set = async move { members.set_role(project, MemberId(member), role).await };
    if state.authorizer.directory().change(set).await?? { Ok(StatusCode::OK) } else { Err(unknown()) }
}

async fn remove(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    headers: HeaderMap,
    Segments((project, member)): Segments<(String, i64)>,
) -> Result<StatusCode, ApiError> {
    let project = authorize(&state, &identity, &headers, &project, ProjectAction::WriteMembers).await?;
    let members = state.members.clone();
    let remove = async move { members.remove(project, MemberId(member)).await };
    if state.authorizer.directory().change(remove).await?? { Ok(StatusCode::OK) } else { Err(unknown()) }
}
