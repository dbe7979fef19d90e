//! Members in SQL. Every statement names the project beside the member, so that the id of another project's member finds
//! nothing.

use sqlx::FromRow;

use super::{Member, MemberId};
use crate::context::Context;
use crate::db::{Database, DbError};
use crate::project::{ProjectId, Role};
use crate::user::UserId;

/// Members.
#[derive(Clone, Debug)]
pub struct MemberStore {
    database: Database,
    context: Context,
}

#[derive(FromRow)]
struct Row {
    id: i64,
    project_id: i64,
    user_id: i64,
    username: String,
    role: i64,
}

impl Row {
    fn member(self) -> Option<Member> {
        Some(Member {
            id: MemberId(self.id),
            project: ProjectId(self.project_id),
            user: UserId(self.user_id),
            username: self.username,
            role: Role::from_number(self.role)?,
        })
    }
}

macro_rules! columns {
    () => {
        "SELECT m.id, m.project_id, m.user_id, u.username, m.role FROM members m JOIN users u ON u.id = m.user_id "
    };
}

impl MemberStore {
    /// The members of a database.
    pub fn new(database: Database, context: Context) -> MemberStore {
        MemberStore { database, context }
    }

    /// Makes a user a member.
    ///
    /// # Errors
    /// `Conflict` when they are one already.
    pub async fn add(&self, project: ProjectId, user: UserId, role: Role) -> Result<MemberId, DbError> {
        let mut transaction = self.database.write().await?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO members (project_id, user_id, role, created_us) VALUES ($1, $2, $3, $4) RETURNING id",
        )
        .bind(project.0)
        .bind(user.0)
        .bind(role.number())
        .bind(self.context.now_micros())
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(MemberId(id))
    }

    /// A page of members in the order of their names, with this in the name, and how many there are in all.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn list(
        &self,
        project: ProjectId,
        name_contains: Option<&str>,
        offset: i64,
        limit: i64,
    ) -> Result<(Vec<Member>, i64), DbError> {
        let total: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM members m JOIN users u ON u.id = m.user_id
             WHERE m.project_id = $1 AND ($2 IS NULL OR instr(u.username, $2) > 0)",
        )
        .bind(project.0)
        .bind(name_contains)
        .fetch_one(self.database.readers())
        .await?;
        let rows: Vec<Row> = sqlx::query_as(concat!(
            columns!(),
            "WHERE m.project_id = $1 AND ($2 IS NULL OR instr(u.username, $2) > 0)
             ORDER BY u.username LIMIT $3 OFFSET $4"
        ))
        .bind(project.0)
        .bind(name_contains)
        .bind(limit)
        .bind(offset)
        .fetch_all(self.database.readers())
        .await?;
        Ok((rows.into_iter().filter_map(Row::member).collect(), total))
    }

    /// A member of the project.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn by_id(&self, project: ProjectId, id: MemberId) -> Result<Option<Member>, DbError> {
        let row: Option<Row> = sqlx::query_as(concat!(columns!(), "WHERE m.project_id = $1 AND m.id = $2"))
            .bind(project.0)
            .bind(id.0)
            .fetch_optional(self.database.readers())
            .await?;
        Ok(row.and_then(Row::member))
    }

    /// Changes a role. Says whether the project has that member.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn set_role(&self, project: ProjectId, id: MemberId, role: Role) -> Result<bool, DbError> {
        let mut transaction = self.database.write().await?;
        let changed = sqlx::query("UPDATE members SET role = $3 WHERE project_id = $1 AND id = $2")
            .bind(project.0)
            .bind(id.0)
            .bind(role.number())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(changed.rows_affected() > 0)
    }

    /// Ends a membership. Says whether the project had that member.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn remove(&self, project: ProjectId, id: MemberId) -> Result<bool, DbError> {
        let mut transaction = self.database.write().await?;
        let deleted = sqlx::query("DELETE FROM members WHERE project_id = $1 AND id = $2")
            .bind(project.0)
            .bind(id.0)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(deleted.rows_affected() > 0)
    }
}
