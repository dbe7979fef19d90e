//! Users over REST, in Harbor's shape.
//!
//! What may be set is what the input types name; a field beside them (`has_admin_role`, `user_id`, …) is refused, not ignored.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use serde::{Deserialize, Serialize};

use super::{NewUser, User, UserId, Username};
use crate::api::error::ApiError;
use crate::api::extract::{Body, Caller, Segments};
use crate::api::page::{Page, Parameters};
use crate::api::{ApiState, Classified, Needs};
use crate::authorizer::role_table::SystemAction;
use crate::identity::accounts::AccountError;
use crate::identity::{Identity, password};
use crate::project::api::time;

/// Fewest characters that a search of user names takes from who is no administrator: it is for finding a colleague, not for
/// listing everybody.
const SEARCH_CHARS_MIN: usize = 3;

/// Longest e-mail address, name and comment in characters (RFC 5321 for the first; Harbor's columns).
const TEXT_CHARS_MAX: usize = 255;

/// The routes.
pub fn routes() -> Vec<Classified> {
    const MANAGE: Needs = Needs::System(SystemAction::ManageUsers);
    const OWN: Needs = Needs::System(SystemAction::OwnAccount);
    vec![
        Classified {
            path: "/api/v2.0/users",
            methods: &[("GET", MANAGE), ("POST", MANAGE)],
            handler: get(list).post(create),
        },
        Classified { path: "/api/v2.0/users/current", methods: &[("GET", OWN)], handler: get(current) },
        Classified { path: "/api/v2.0/users/search", methods: &[("GET", OWN)], handler: get(search) },
        Classified {
            path: "/api/v2.0/users/{user}",
            methods: &[("GET", OWN), ("PUT", OWN), ("DELETE", MANAGE)],
            handler: get(read).put(update).delete(delete),
        },
        Classified {
            path: "/api/v2.0/users/{user}/password",
            methods: &[("PUT", OWN)],
            handler: put(set_password),
        },
        Classified {
            path: "/api/v2.0/users/{user}/sysadmin",
            methods: &[("PUT", MANAGE)],
            handler: put(set_sysadmin),
        },
    ]
}

#[derive(Serialize)]
struct Shown {
    user_id: i64,
    username: String,
    email: String,
    realname: String,
    comment: String,
    sysadmin_flag: bool,
    admin_role_in_auth: bool,
    creation_time: String,
    update_time: String,
}

impl From<User> for Shown {
    fn from(user: User) -> Shown {
        Shown {
            user_id: user.id.0,
            username: user.username,
            email: user.email.unwrap_or_default(),
            realname: user.realname,
            comment: user.comment,
            sysadmin_flag: user.sysadmin,
            admin_role_in_auth: false,
            creation_time: time(user.created_us),
            update_time: time(user.updated_us),
        }
    }
}

#[derive(Serialize)]
struct Found {
    user_id: i64,
    username: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    username: String,
    password: String,
    #[serde(default)]
    email: String,
    #[serde(default)]
    realname: String,
    #[serde(default)]
    comment: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    #[serde(default)]
    email: String,
    #[serde(default)]
    realname: String,
    #[serde(default)]
    comment: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Passwords {
    #[serde(default)]
    old_password: String,
    new_password: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SysadminFlag {
    sysadmin_flag: bool,
}

fn unknown() -> ApiError {
    ApiError::NotFound("there is no such user, or you may not see it".to_owned())
}

fn email(text: &str) -> Result<Option<String>, ApiError> {
    match text.split_once('@') {
        None if text.is_empty() => Ok(None),
        Some((local, domain)) if !local.is_empty() && !domain.is_empty() && text.len() <= TEXT_CHARS_MAX => {
            Ok(Some(text.to_owned()))
        }
        _ => Err(ApiError::BadRequest("email is no address".to_owned())),
    }
}

fn texts(texts: &[&str]) -> Result<(), ApiError> {
    let odd = |text: &&&str| text.len() > TEXT_CHARS_MAX || text.chars().any(char::is_control);
    match texts.iter().find(odd) {
        None => Ok(()),
        Some(_) => Err(ApiError::BadRequest(format!(
            "realname and comment have at most {TEXT_CHARS_MAX} bytes and no control characters"
        ))),
    }
}

/// The user of a path, when it is the caller's own account or the caller manages users. Another's looks absent.
async fn own_or_managed(state: &ApiState, identity: &Identity, id: i64) -> Result<User, ApiError> {
    state.authorizer.authorize_system(identity, SystemAction::OwnAccount).await?;
    let own = identity.user() == Some(UserId(id));
    if !own && state.authorizer.authorize_system(identity, SystemAction::ManageUsers).await.is_err() {
        return Err(unknown());
    }
    state.users.by_id(UserId(id)).await?.map(|(user, _)| user).ok_or_else(unknown)
}

async fn list(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    state.authorizer.authorize_system(&identity, SystemAction::ManageUsers).await?;
    let parameters = Parameters::parse(query.as_deref());
    let page = Page::of(&parameters)?;
    let (users, total) = state.users.list(parameters.first("username"), page.offset(), page.limit()).await?;
    let entries: Vec<Shown> = users.into_iter().map(Shown::from).collect();
    Ok(page.answer("/api/v2.0/users", &parameters, &entries, total))
}

async fn search(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    state.authorizer.authorize_system(&identity, SystemAction::OwnAccount).await?;
    let parameters = Parameters::parse(query.as_deref());
    let page = Page::of(&parameters)?;
    let wanted = parameters.first("username").unwrap_or_default();
    let manages = state.authorizer.authorize_system(&identity, SystemAction::ManageUsers).await.is_ok();
    if wanted.chars().count() < SEARCH_CHARS_MIN && !manages {
        return Err(ApiError::BadRequest(format!("username has at least {SEARCH_CHARS_MIN} characters")));
    }
    let (users, total) = state.users.list(Some(wanted), page.offset(), page.limit()).await?;
    let entries: Vec<Found> =
        users.into_iter().map(|user| Found { user_id: user.id.0, username: user.username }).collect();
    Ok(page.answer("/api/v2.0/users/search", &parameters, &entries, total))
}

async fn create(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    Body(wanted): Body<Wanted>,
) -> Result<Response, ApiError> {
    state.authorizer.authorize_system(&identity, SystemAction::ManageUsers).await?;
    let username =
        Username::parse(&wanted.username).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    password::check(&wanted.password).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    texts(&[&wanted.realname, &wanted.comment])?;
    let user = NewUser {
        username,
        email: email(&wanted.email)?,
        realname: wanted.realname,
        comment: wanted.comment,
        sysadmin: false,
    };
    let stored = state.accounts.hash(&wanted.password).await?;
    let id = state.users.create(&user, &stored).await?;
    let location = format!("/api/v2.0/users/{}", id.0);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)]).into_response())
}

async fn current(State(state): State<ApiState>, Caller(identity): Caller) -> Result<Response, ApiError> {
    state.authorizer.authorize_system(&identity, SystemAction::OwnAccount).await?;
    let id = identity.user().ok_or_else(unknown)?;
    let (user, _) = state.users.by_id(id).await?.ok_or_else(unknown)?;
    Ok(Json(Shown::from(user)).into_response())
}

async fn read(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    Segments(id): Segments<i64>,
) -> Result<Response, ApiError> {
    let user = own_or_managed(&state, &identity, id).await?;
    Ok(Json(Shown::from(user)).into_response())
}

async fn update(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    Segments(id): Segments<i64>,
    Body(profile): Body<Profile>,
) -> Result<StatusCode, ApiError> {
    let user = own_or_managed(&state, &identity, id).await?;
    texts(&[&profile.realname, &profile.comment])?;
    let email = email(&profile.email)?;
    state.users.update_profile(user.id, email.as_deref(), &profile.realname, &profile.comment).await?;
    Ok(StatusCode::OK)
}

async fn delete(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    Segments(id): Segments<i64>,
) -> Result<StatusCode, ApiError> {
    state.authorizer.authorize_system(&identity, SystemAction::ManageUsers).await?;
    if identity.user() == Some(UserId(id)) {
        return Err(ApiError::BadRequest("nobody deletes themselves".to_owned()));
    }
    let users = state.users.clone();
    let delete = async move { users.delete(UserId(id)).await };
    if state.authorizer.directory().change(delete).await?? { Ok(StatusCode::OK) } else { Err(unknown()) }
}

/// One's own password with the old one; another's as an administrator.
async fn set_password(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    client: Option<axum::Extension<taffrail_distribution::access::ClientAddress>>,
    Segments(id): Segments<i64>,
    Body(passwords): Body<Passwords>,
) -> Result<StatusCode, ApiError> {
    let user = own_or_managed(&state, &identity, id).await?;
    if identity.user() == Some(user.id) {
        let address = client.map(|client| client.0.0);
        let verified = state.accounts.verify(&user.username, &passwords.old_password, address).await;
        // Not 401: the caller is known, it is the field that is wrong.
        verified.map_err(|error| match error {
            AccountError::Wrong => ApiError::BadRequest("old_password is not your password".to_owned()),
            error @ (AccountError::Throttled { .. } | AccountError::Unavailable) => error.into(),
        })?;
        if passwords.old_password == passwords.new_password {
            return Err(ApiError::BadRequest("the new password is the old one".to_owned()));
        }
    }
    password::check(&passwords.new_password).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let stored = state.accounts.hash(&passwords.new_password).await?;
    let users = state.users.clone();
    let set = async move { users.set_password(user.id, &stored).await };
    if state.authorizer.directory().change(set).await?? { Ok(StatusCode::OK) } else { Err(unknown()) }
}

async fn set_sysadmin(
    State(state): State<ApiState>,
    Caller(identity): Caller,
    Segments(id): Segments<i64>,
    Body(flag): Body<SysadminFlag>,
) -> Result<StatusCode, ApiError> {
    state.authorizer.authorize_system(&identity, SystemAction::ManageUsers).await?;
    if identity.user() == Some(UserId(id)) && !flag.sysadmin_flag {
        return Err(ApiError::BadRequest("nobody takes this right from themselves".to_owned()));
    }
    let users = state.users.clone();
    let set = async move { users.set_sysadmin(UserId(id), flag.sysadmin_flag).await };
    if state.authorizer.directory().change(set).await?? { Ok(StatusCode::OK) } else { Err(unknown()) }
}
