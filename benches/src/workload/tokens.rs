//! Requests for tokens.

use std::time::Instant;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use taffrail_tests::server::ADMIN_PASSWORD;

use super::pull::CLIENTS;
use super::{Case, Flushes, Rounds, Row, Unmeasured, at_once};
use crate::client::{Connection, path_of, with_query};
use crate::goal::{Bound, Figure, Goal};
use crate::plan::Plan;
use crate::sample::Work;
use crate::target::{Kind, Subject};

pub(super) fn rows() -> Vec<Row> {
    let mut row = Row::new(
        "token requests",
        vec![Case {
            name: "tokens",
            about: "tokens for one user with a password, 8 clients",
            subjects: vec![Kind::Taffrail],
            goals: vec![Goal::absolute(Figure::OpsPerSec, Kind::Taffrail, Bound::AtLeast(2_000.0))],
            flushes: Flushes::Uncounted,
            prepare: tokens,
        }],
    );
    row.unmeasured
        .push(Unmeasured { goal: "with 10,000 robots: >= 2,000/s", why: "there are no robot accounts yet" });
    vec![row]
}

/// A parameter of a challenge.
fn parameter<'a>(challenge: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = challenge.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

fn tokens<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let answer = subject.connect()?.get("/v2/", "")?.expect(401)?;
    let challenge = answer.challenge.context("a challenge")?;
    let realm = parameter(&challenge, "realm").context("the realm of a challenge")?;
    let service = parameter(&challenge, "service").context("the service of a challenge")?;
    let query = format!("service={service}&scope=repository:library/tokens:pull,push");
    let path = with_query(path_of(realm), &query);
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("admin:{ADMIN_PASSWORD}"));
    Ok(Box::new(move |_| {
        let mut clients: Vec<_> = (0..CLIENTS)
            .map(|_| Connection::open(&subject.host, &format!("Basic {pair}")))
            .collect::<Result<_>>()?;
        subject.measure(|| {
            let until = Instant::now() + plan.round_time;
            at_once(&mut clients, |_, client| {
                let mut work = Work::default();
                while Instant::now() < until {
                    let started = Instant::now();
                    client.get(&path, "")?.expect(200)?;
                    work.count(started, 0);
                }
                Ok(work)
            })
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_taken_apart() {
        let text = r#"Bearer realm="http://h/service/token",service="s",scope="x""#;
        assert_eq!(parameter(text, "realm"), Some("http://h/service/token"));
        assert_eq!(parameter(text, "service"), Some("s"));
        assert_eq!(parameter(text, "error"), None);
    }
}
