//! A listener to what sqlx says it executes.

use std::fmt;
use std::sync::{Mutex, Once, PoisonError};

use taffrail_core::db::Database;
use tokio::sync::MutexGuard;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// What was heard since the last look. Of the whole process, so that one test listens at a time.
static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());

static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Listener;

/// The fields of an event of sqlx that hold the statement: whole, or its first words when it is short.
struct Statement(String);

impl Visit for Statement {
    fn record_str(&mut self, field: &Field, value: &str) {
        if matches!(field.name(), "summary" | "db.statement") {
            self.0.push_str(value.trim());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "sqlx::query"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut statement = Statement(String::new());
        event.record(&mut statement);
        HEARD.lock().unwrap_or_else(PoisonError::into_inner).push(statement.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The turn of one test to listen.
pub(crate) struct Listening {
    _turn: MutexGuard<'static, ()>,
}

impl Listening {
    pub(crate) async fn begin() -> Listening {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| tracing::subscriber::set_global_default(Listener).unwrap());
        Listening { _turn: TURN.lock().await }
    }

    /// What was asked of the database while `work` ran, in order, and what came of it.
    pub(crate) async fn during<T>(
        &self,
        database: &Database,
        work: impl Future<Output = T>,
    ) -> (Vec<String>, T) {
        let take = || std::mem::take(&mut *HEARD.lock().unwrap_or_else(PoisonError::into_inner));
        settle(database).await;
        take();
        let outcome = work.await;
        settle(database).await;
        let asked = take().into_iter().filter(|sql| sql.starts_with("SELECT") && !sql.starts_with(SETTLE));
        (asked.collect(), outcome)
    }
}

const SETTLE: &str = "SELECT 1";

/// Waits until every connection has said what it executed: one says it after it has handed out the rows, and before it takes up
/// the next statement.
async fn settle(database: &Database) {
    let mut connections = Vec::new();
    for _ in 0..database.readers().connections_max() {
        connections.push(database.readers().acquire().await.unwrap());
    }
    for connection in &mut connections {
        sqlx::query(SETTLE).execute(&mut **connection).await.unwrap();
    }
}
