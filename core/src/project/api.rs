//! Projects over REST, in Harbor's shape.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};

use super::store::{DeleteError, ProjectFilter};
use super::{Project, ProjectId, ProjectName, ProjectRef};
use crate::api::error::ApiError;
use crate::api::extract::{Body, Caller, Segments};
use crate::api::page::{Page, Parameters};
use crate::api::{ApiState, Classified, Needs};
use crate::authorizer::Refused;
use crate::authorizer::role_table::{ProjectAction, SystemAction};
use crate::identity::Identity;

/// The routes.
pub fn routes() -> Vec<Classified> {
    vec![
        Classified {
            path: "/api/v2.0/projects",
            methods: &[
                ("GET", Needs::Nothing),
                ("HEAD", Needs::System(SystemAction::OwnAccount)),
                ("POST", Needs::System(SystemAction::CreateProject)),
            ],
            handler: get(list).head(exists).post(create),
        },
        Classified {
            path: "/api/v2.0/projects/{project}",
            methods: &[
                ("GET", Needs::Project(ProjectAction::Read)),
                ("PUT", Needs::Project(ProjectAction::Update)),
                ("DELETE", Needs::Project(ProjectAction::DeleteProject)),
            ],
            handler: get(read).put(update).delete(delete),
        },
    ]
}

#[derive(Serialize)]
struct Shown {
    project_id: i64,
    name: String,
    owner_id: i64,
    owner_name: String,
    repo_count: i64,
    creation_time: String,
    update_time: String,
    deleted: bool,
    togglable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_user_role_id: Option<i64>,
    current_user_role_ids: Vec<i64>,
    metadata: Metadata,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    /// "true" or "false": Harbor keeps metadata as text.
    public: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    project_name: Option<String>,
    public: Option<bool>,
    metadata: Option<WantedMetadata>,
    /// -1 is Harbor's word for unlimited, which is all there is yet.
    storage_limit: Option<i64>,
    /// Null from Harbor's clients; a number makes a proxy cache.
    registry_id: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedMetadata {
    public: Option<String>,
}

impl Wanted {
    fn public(&self) -> Result<Option<bool>, ApiError> {
        if self.storage_limit.is_some_and(|limit| limit != -1) {
            return Err(ApiError::NotImplemented("storage limits are not built yet".to_owned()));
        }
        if self.registry_id.is_some_and(|id| id != 0) {
            return Err(ApiError::NotImplemented("proxy caches are not built yet".to_owned()));
        }
        match self.metadata.as_ref().and_then(|metadata| metadata.public.as_deref()) {
            None => Ok(self.public),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(ApiError::BadRequest("metadata.public is \"true\" or \"false\"".to_owned())),
        }
    }
}

/// A time in the form of RFC 3339.
pub(crate) fn time(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| String::new(), |time| time.to_string())
}

async fn shown(state: &ApiState, identity: &Identity, project: Project) -> Result<Shown, ApiError> {
    let role = match identity.user() {
        Some(user) => state.projects.role_in(project.id, user).await?,
        None => None,
    };
    Ok(Shown {
        project_id: project.id.0,
        name: project.name,
        owner_id: project.owner.map_or(0, |owner| owner.0),
        owner_name: project.owner_name.unwrap_or_default(),
        repo_count: project.repo_count,
        creation_time: time(project.created_us),
        update_time: time(project.updated_us),
        deleted: false,
        togglable: true,
        current_user_role_id: role.map(super::Role::number),
        current_user_role_ids: role.map(super::Role::number).into_iter().collect(),
        metadata: Metadata { public: project.public.to_string() },
    })
}

/// Leave to do `action` in the project of a path: named by id, or by name when that is no number or `X-Is-Resource-Name: true`
/// says so. Nothing else about the project is read before, so that what is absent and what is forbidden look the same and take
/// as long.
pub(crate) async fn authorize(
    state: &ApiState,
    identity: &Identity,
    headers: &HeaderMap,
    text: &str,
    action: ProjectAction,
) -> Result<ProjectId, ApiError> {
    let by_name = headers.get("x-is-resource-name").is_some_and(|value| value == "true");
    match text.parse::<i64>().ok().filter(|_| !by_name) {
        Some(id) => {
            Ok(state.authorizer.authorize_project(identity, action, ProjectRef::Id(ProjectId(id))).await?)
        }
        None => authorize_by_name(state, identity, text, action).await,
    }
}

async fn authorize_by_name(
    state: &ApiState,
    identity: &Identity,
    text: &str,
    action: ProjectAction,
) -> Result<ProjectId, ApiError> {
    // What is no name is nobody's, as the caller can tell as well: an id that none has stands for it.
    let project = ProjectName::parse(text).map_or(ProjectRef::Id(ProjectId(0)), ProjectRef::Name);
    Ok(state.authorizer.authorize_project(identity, action, project).await?)
}

/// The whole project, once [`authorize`] gave leave.
async fn find(state: &ApiState, id: ProjectId) -> Result<Project, ApiError> {
    state.projects.by_id(id).await?.ok_or_else(unknown)
}

/// What is absent, and what must look so: the words of [`crate::authorizer::Refused::NotFound`].
fn unknown() -> ApiError {
    Refused::NotFound.into()
}

async fn list(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let parameters = Parameters::parse(query.as_deref());
    let page = Page::of(&parameters)?;
    let filter = ProjectFilter {
        visibility: state.authorizer.visibility(&identity.subject).await?,
        name_contains: parameters.first("name").map(str::to_owned),
        name: None,
        public: parameters.boolean("public")?,
        owner: parameters.first("owner").map(str::to_owned),
    };
    let (projects, total) = state.projects.list(&filter, page.offset(), page.limit()).await?;
    let mut entries = Vec::with_capacity(projects.len());
    for project in projects {
        entries.push(shown(&state, &identity, project).await?);
    }
    Ok(page.answer("/api/v2.0/projects", &parameters, &entries, total))
}

/// `HEAD /projects?project_name=`: 200 or 404. A project that the caller may not see does not exist.
async fn exists(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    RawQuery(query): RawQuery,
) -> Result<StatusCode, ApiError> {
    state.authorizer.authorize_system(&identity, SystemAction::OwnAccount).await?;
    let parameters = Parameters::parse(query.as_deref());
    let name = parameters
        .first("project_name")
        .ok_or_else(|| ApiError::BadRequest("say which project_name".to_owned()))?;
    authorize_by_name(&state, &identity, name, ProjectAction::Read).await?;
    Ok(StatusCode::OK)
}

async fn create(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    Body(wanted): Body<Wanted>,
) -> Result<Response, ApiError> {
    state.authorizer.authorize_system(&identity, SystemAction::CreateProject).await?;
    let Some(user) = identity.user() else {
        return Err(ApiError::Unauthenticated("log in to do this".to_owned()));
    };
    let name = wanted.project_name.as_deref().unwrap_or_default();
    let name = ProjectName::parse(name).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let public = wanted.public()?.unwrap_or(false);
    let projects = state.projects.clone();
    let make = async move { projects.create(&name, public, user).await };
    let id = state.authorizer.directory().change(make).await??;
    let location = format!("/api/v2.0/projects/{}", id.0);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)]).into_response())
}

async fn read(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    headers: HeaderMap,
    Segments(project): Segments<String>,
) -> Result<Response, ApiError> {
    let id = authorize(&state, &identity, &headers, &project, ProjectAction::Read).await?;
    let project = find(&state, id).await?;
    Ok(Json(shown(&state, &identity, project).await?).into_response())
}

async fn update(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    headers: HeaderMap,
    Segments(project): Segments<String>,
    Body(wanted): Body<Wanted>,
) -> Result<StatusCode, ApiError> {
    let id = authorize(&state, &identity, &headers, &project, ProjectAction::Update).await?;
    let project = find(&state, id).await?;
    if wanted.project_name.as_deref().is_some_and(|name| name != project.name) {
        return Err(ApiError::BadRequest("a project keeps its name".to_owned()));
    }
    if let Some(public) = wanted.public()? {
        let projects = state.projects.clone();
        let set = async move { projects.set_public(id, public).await };
        // Somebody may have deleted it since it was found.
        if !state.authorizer.directory().change(set).await?? {
            return Err(unknown());
        }
    }
    Ok(StatusCode::OK)
}

async fn delete(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    headers: HeaderMap,
    Segments(project): Segments<String>,
) -> Result<StatusCode, ApiError> {
    let id = authorize(&state, &identity, &headers, &project, ProjectAction::DeleteProject).await?;
    let projects = state.projects.clone();
    let delete = async move { projects.delete(id).await };
    match state.authorizer.directory().change(delete).await? {
        Ok(()) => Ok(StatusCode::OK),
        Err(DeleteError::Unknown) => Err(unknown()),
        Err(error @ DeleteError::NotEmpty(_)) => Err(ApiError::Precondition(error.to_string())),
        Err(DeleteError::Database(error)) => Err(error.into()),
    }
}
