//! Pages of tags, repositories and referrers where there are very many.

use std::time::Instant;

use anyhow::{Result, ensure};
use rand::RngExt as _;
use taffrail_tests::crowd::{CROWDED, Crowd};

use super::{Case, Flushes, Prepare, Rounds, Row};
use crate::client::Connection;
use crate::content;
use crate::goal::{Bound, Figure, Goal};
use crate::plan::Plan;
use crate::sample::Work;
use crate::target::{Kind, Subject};

/// Entries of a page.
const PAGE: u64 = 100;

/// How long a page may take in milliseconds, and what the server may hold meanwhile in MiB: as much as the memory for small blobs,
/// and as a server at rest.
const PAGE_MAX_MS: f64 = 10.0;
const MEMORY_MAX_MIB: f64 = 72.0;

/// Tags, repositories and referrers for each item of the plan: a million and a hundred thousand in a full run.
const TAGS_PER_ITEM: u64 = 500;
const OTHERS_PER_ITEM: u64 = 50;

pub(super) fn rows() -> Vec<Row> {
    let case = |name, about, prepare: Prepare| Case {
        name,
        about,
        subjects: vec![Kind::Taffrail],
        goals: vec![
            Goal::absolute(Figure::P99, Kind::Taffrail, Bound::AtMost(PAGE_MAX_MS)),
            Goal::absolute(Figure::MemoryMib, Kind::Taffrail, Bound::AtMost(MEMORY_MAX_MIB)),
        ],
        flushes: Flushes::Uncounted,
        prepare,
    };
    vec![Row::new(
        "tag page at 1 M tags; catalog page at 100 k repositories; referrers page at 100 k",
        vec![
            case("page-tags", "pages of 100 from anywhere among the tags of one repository, 1 client", tags),
            case("page-catalog", "pages of 100 from anywhere among all repositories, 1 client", catalog),
            case(
                "page-referrers",
                "pages of 100 from anywhere among the referrers of one manifest, 1 client",
                referrers,
            ),
        ],
    )]
}

fn tags<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let most = plan.items as u64 * TAGS_PER_ITEM;
    let crowd = Crowd { tags: most, repositories: 0, referrers: 0 };
    pages(plan, subject, crowd, most, |_, number| {
        format!("/v2/{CROWDED}/tags/list?n={PAGE}&last={}", Crowd::tag(number))
    })
}

fn catalog<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let most = plan.items as u64 * OTHERS_PER_ITEM;
    let crowd = Crowd { tags: 0, repositories: most, referrers: 0 };
    pages(plan, subject, crowd, most, |_, number| {
        format!("/v2/_catalog?n={PAGE}&last={}", Crowd::repository(number))
    })
}

fn referrers<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let most = plan.items as u64 * OTHERS_PER_ITEM;
    let crowd = Crowd { tags: 0, repositories: 0, referrers: most };
    pages(plan, subject, crowd, most, |digest, number| {
        format!("/v2/{CROWDED}/referrers/{digest}?n={PAGE}&last=sha256:{number:064x}")
    })
}

/// Asks for pages that begin anywhere, one after the other.
fn pages<'a>(
    plan: &'a Plan,
    subject: &'a Subject,
    crowd: Crowd,
    most: u64,
    path: impl Fn(&str, u64) -> String + 'a,
) -> Result<Rounds<'a>> {
    let digest = subject.gather(crowd)?;
    let scopes = [format!("repository:{CROWDED}:pull"), "registry:catalog:*".to_owned()];
    Ok(Box::new(move |round| {
        let mut client = Connection::open(&subject.host, &subject.bearer(&scopes)?)?;
        subject.measure(|| {
            let until = Instant::now() + plan.round_time;
            let mut random = content::random(round.into());
            let mut work = Work::default();
            while Instant::now() < until {
                let path = path(&digest, random.random_range(0..most.saturating_sub(PAGE).max(1)));
                let started = Instant::now();
                let answer = client.get(&path, "")?.expect(200)?;
                ensure!(answer.bytes > PAGE, "an empty page");
                work.count(started, answer.bytes);
            }
            Ok(work)
        })
    }))
}
