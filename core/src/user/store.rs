//! Users in SQL.

use sqlx::FromRow;

use super::{NewUser, StoredPassword, User, UserId};
use crate::context::Context;
use crate::db::{Database, DbError};

/// Users.
#[derive(Clone, Debug)]
pub struct UserStore {
    database: Database,
    context: Context,
}

#[derive(FromRow)]
struct Row {
    id: i64,
    username: String,
    email: Option<String>,
    realname: String,
    comment: String,
    password: String,
    sysadmin: bool,
    created_us: i64,
    updated_us: i64,
}

impl Row {
    fn split(self) -> (User, StoredPassword) {
        let user = User {
            id: UserId(self.id),
            username: self.username,
            email: self.email,
            realname: self.realname,
            comment: self.comment,
            sysadmin: self.sysadmin,
            created_us: self.created_us,
            updated_us: self.updated_us,
        };
        (user, StoredPassword(self.password))
    }
}

macro_rules! columns {
    () => {
        "SELECT id, username, email, realname, comment, password, sysadmin, created_us, updated_us FROM users "
    };
}

impl UserStore {
    /// The users of a database.
    pub fn new(database: Database, context: Context) -> UserStore {
        UserStore { database, context }
    }

    /// Makes a user.
    ///
    /// # Errors
    /// `Conflict` when name or address are taken.
    pub async fn create(&self, user: &NewUser, password: &StoredPassword) -> Result<UserId, DbError> {
        let mut transaction = self.database.write().await?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO users (username, email, realname, comment, password, sysadmin, created_us, updated_us)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7) RETURNING id",
        )
        .bind(user.username.as_str())
        .bind(&user.email)
        .bind(&user.realname)
        .bind(&user.comment)
        .bind(&password.0)
        .bind(user.sysadmin)
        .bind(self.context.now_micros())
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(UserId(id))
    }

    /// The user of that name, with the stored password.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn by_name(&self, username: &str) -> Result<Option<(User, StoredPassword)>, DbError> {
        let row: Option<Row> = sqlx::query_as(concat!(columns!(), "WHERE username = $1"))
            .bind(username)
            .fetch_optional(self.database.readers())
            .await?;
        Ok(row.map(Row::split))
    }

    /// The user of that id, with the stored password.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn by_id(&self, id: UserId) -> Result<Option<(User, StoredPassword)>, DbError> {
        let row: Option<Row> = sqlx::query_as(concat!(columns!(), "WHERE id = $1"))
            .bind(id.0)
            .fetch_optional(self.database.readers())
            .await?;
        Ok(row.map(Row::split))
    }

    /// A page of users in the order of their names, with this in the name, and how many there are in all.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn list(
        &self,
        name_contains: Option<&str>,
        offset: i64,
        limit: i64,
    ) -> Result<(Vec<User>, i64), DbError> {
        let total: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM users WHERE ($1 IS NULL OR instr(username, $1) > 0)")
                .bind(name_contains)
                .fetch_one(self.database.readers())
                .await?;
        let rows: Vec<Row> = sqlx::query_as(concat!(
            columns!(),
            "WHERE ($1 IS NULL OR instr(username, $1) > 0) ORDER BY username LIMIT $2 OFFSET $3"
        ))
        .bind(name_contains)
        .bind(limit)
        .bind(offset)
        .fetch_all(self.database.readers())
        .await?;
        Ok((rows.into_iter().map(|row| row.split().0).collect(), total))
    }

    /// How many users may do everything.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn sysadmins(&self) -> Result<i64, DbError> {
        Ok(sqlx::query_scalar("SELECT COUNT(*) FROM users WHERE sysadmin = 1")
            .fetch_one(self.database.readers())
            .await?)
    }

    /// Replaces a password. Says whether there is a user of that id.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn set_password(&self, id: UserId, password: &StoredPassword) -> Result<bool, DbError> {
        let mut transaction = self.database.write().await?;
        let changed = sqlx::query("UPDATE users SET password = $2, updated_us = $3 WHERE id = $1")
            .bind(id.0)
            .bind(&password.0)
            .bind(self.context.now_micros())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(changed.rows_affected() > 0)
    }

    /// Replaces a stored password by another of the same password. Says whether there is a user of that id whose stored password it
    /// still was.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn renew_password(
        &self,
        id: UserId,
        old: &StoredPassword,
        new: &StoredPassword,
    ) -> Result<bool, DbError> {
        let mut transaction = self.database.write().await?;
        let changed =
            sqlx::query("UPDATE users SET password = $3, updated_us = $4 WHERE id = $1 AND password = $2")
                .bind(id.0)
                .bind(&old.0)
                .bind(&new.0)
                .bind(self.context.now_micros())
                .execute(&mut *transaction)
                .await?;
        transaction.commit().await?;
        Ok(changed.rows_affected() > 0)
    }

    /// Makes a user a system administrator, or no longer one. Says whether there is a user of that id.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn set_sysadmin(&self, id: UserId, sysadmin: bool) -> Result<bool, DbError> {
        let mut transaction = self.database.write().await?;
        let changed = sqlx::query("UPDATE users SET sysadmin = $2, updated_us = $3 WHERE id = $1")
            .bind(id.0)
            .bind(sysadmin)
            .bind(self.context.now_micros())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(changed.rows_affected() > 0)
    }

    /// Changes what a user says of themselves. Says whether there is a user of that id.
    ///
    /// # Errors
    /// `Conflict` when the address is taken.
    pub async fn update_profile(
        &self,
        id: UserId,
        email: Option<&str>,
        realname: &str,
        comment: &str,
    ) -> Result<bool, DbError> {
        let mut transaction = self.database.write().await?;
        let changed = sqlx::query(
            "UPDATE users SET email = $2, realname = $3, comment = $4, updated_us = $5 WHERE id = $1",
        )
        .bind(id.0)
        .bind(email)
        .bind(realname)
        .bind(comment)
        .bind(self.context.now_micros())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(changed.rows_affected() > 0)
    }

    /// Deletes a user with every membership. Says whether there was one of that id.
    ///
    /// # Errors
    /// Faults of the database.
    pub async fn delete(&self, id: UserId) -> Result<bool, DbError> {
        let mut transaction = self.database.write().await?;
        let deleted =
            sqlx::query("DELETE FROM users WHERE id = $1").bind(id.0).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(deleted.rows_affected() > 0)
    }
}
