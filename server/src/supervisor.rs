//! What is said to the supervisor that started us (systemd): ready, stopping, still alive.
//!
//! Without one, everything here does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Says that requests are answered now.
pub(crate) fn ready(status: &str) {
    say(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that we are ending, and may take so long.
pub(crate) fn stopping(patience: Duration) {
    let micros = u32::try_from(patience.as_micros()).unwrap_or(u32::MAX);
    say(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

/// Says what is the matter.
pub(crate) fn status(status: &str) {
    say(&[NotifyState::Status(status)]);
}

/// Says twice in each watchdog interval that the runtime still runs tasks. Ends at once when there is no watchdog.
pub(crate) async fn keep_watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut pace = tokio::time::interval(interval / 2);
    loop {
        pace.tick().await;
        say(&[NotifyState::Watchdog]);
    }
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the supervisor was not reached");
    }
}
