//! L-18: pages of tags, repositories and referrers where there are very many.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use taffrail_tests::crowd::{CROWDED, Crowd, HIDDEN};
use taffrail_tests::http::{Extra, Registry};
use taffrail_tests::scene;
use taffrail_tests::server::Options;

use crate::client::{self, ms, quantile};
use crate::plan::Plan;
use crate::row::Row;
use crate::site::{Site, mib};

const NUMBER: &str = "L-18";

/// Entries of a page.
const PAGE: u64 = 100;
/// L-18: how long a page may take; the goal of `cargo xtask bench` is a fifth of it.
const PAGE_MAX: Duration = Duration::from_millis(50);
/// How much more memory many pages may take.
const GROWTH_MAX: u64 = 32 << 20;
/// The user who may see one repository behind all that are hidden.
const NEIGHBOUR: (&str, &str) = ("nora", "Windlass-41");
const OWN: &str = "zzz-own/app";

/// A page that begins anywhere.
struct Kind {
    what: String,
    scope: String,
    path: fn(&str, u64) -> String,
    most: u64,
    subject: String,
}

pub(crate) fn run(plan: &Plan) -> Result<Vec<Row>> {
    let site = Site::start(plan, Options::default())?;
    let began = Instant::now();
    let crowd = Crowd { tags: plan.tags, repositories: plan.repositories, referrers: plan.referrers };
    let digest = crowd.gather(&site.server)?;
    let gathered = began.elapsed();
    let of = |what: String, scope: &str, path, most| Kind {
        what,
        scope: scope.to_owned(),
        path,
        most,
        subject: digest.clone(),
    };
    let pull = format!("repository:{CROWDED}:pull");
    let kinds = [
        of(format!("tags, of {}", plan.tags), &pull, tags, plan.tags),
        of(
            format!("repositories, of {}", plan.repositories),
            "registry:catalog:*",
            catalog,
            plan.repositories,
        ),
        of(format!("referrers, of {}", plan.referrers), &pull, referrers, plan.referrers),
    ];
    let mut rows = vec![Row::noted(NUMBER, "the catalog", format!("made in {gathered:.1?}"))];
    let before = site.memory()?;
    for kind in &kinds {
        let mut times = sample(plan, &site, kind)?;
        let p99 = quantile(&mut times, 0.99);
        rows.push(Row::new(
            NUMBER,
            format!("pages of {PAGE} {}, p99", kind.what),
            format!("<= {}", ms(PAGE_MAX)),
            format!("{} (p50 {}, {} pages)", ms(p99), ms(quantile(&mut times, 0.5)), times.len()),
            plan.figure(p99 <= PAGE_MAX),
        ));
    }
    let after = site.memory()?;
    let growth = after.resident.saturating_sub(before.resident);
    rows.push(Row::new(
        NUMBER,
        "memory",
        format!("at most {} more", mib(GROWTH_MAX)),
        format!("{before} before the pages, {after} after"),
        plan.figure(growth <= GROWTH_MAX),
    ));
    rows.push(walk(&site, plan.tags)?);
    rows.extend(neighbour(plan, &site)?);
    Ok(rows)
}

fn tags(_: &str, number: u64) -> String {
    format!("/v2/{CROWDED}/tags/list?n={PAGE}&last={}", Crowd::tag(number))
}

fn catalog(_: &str, number: u64) -> String {
    format!("/v2/_catalog?n={PAGE}&last={}", Crowd::repository(number))
}

fn referrers(subject: &str, number: u64) -> String {
    format!("/v2/{CROWDED}/referrers/{subject}?n={PAGE}&last=sha256:{number:064x}")
}

fn sample(plan: &Plan, site: &Site, kind: &Kind) -> Result<Vec<Duration>> {
    let host = site.host()?;
    let token = site.admin.token(&[&kind.scope])?;
    plan.runtime.block_on(async {
        let mut stream = client::dial(host, Ipv4Addr::LOCALHOST).await?;
        let (mut times, until) = (Vec::new(), Instant::now() + plan.sample);
        while Instant::now() < until {
            let path = (kind.path)(&kind.subject, rand::random_range(0..kind.most - PAGE));
            let request = client::head("GET", &path, host, &format!("Authorization: Bearer {token}\r\n"));
            let began = Instant::now();
            let begun = client::ask(&mut stream, request.as_bytes()).await?;
            times.push(began.elapsed());
            // A page of that many names is longer, or is none.
            ensure!(
                begun.status == 200 && begun.length > PAGE * 8,
                "{path}: {} {}",
                begun.status,
                begun.length
            );
        }
        Ok(times)
    })
}

/// All tags, page by page.
fn walk(site: &Site, tags: u64) -> Result<Row> {
    let (mut last, mut seen) = (String::new(), 0);
    loop {
        let path = format!("/v2/{CROWDED}/tags/list?n=1000&last={last}");
        let answer = site.admin.send(&reqwest::Method::GET, CROWDED, "pull", &path, &Extra::default())?;
        let page = answer.expect(&[200])?.json()?;
        let names = page["tags"].as_array().context("tags")?;
        let Some(end) = names.last().and_then(|name| name.as_str()) else { break };
        ensure!(*end > *last, "pages go backwards at {end}");
        end.clone_into(&mut last);
        seen += names.len() as u64;
    }
    let all = tags + 1;
    Ok(Row::held(
        NUMBER,
        "all tags, page by page",
        format!("{all} names"),
        format!("{seen} names"),
        seen == all,
    ))
}

/// The catalog of somebody who may see one repository, which stands behind all the hidden ones.
fn neighbour(plan: &Plan, site: &Site) -> Result<Vec<Row>> {
    scene::create_user(&site.admin, NEIGHBOUR.0, NEIGHBOUR.1)?;
    let theirs: Registry = site.server.client(Some(NEIGHBOUR))?;
    scene::create_project(&theirs, OWN.split('/').next().unwrap_or_default(), false)?;
    taffrail_tests::images::Image::unique(&[100])?.push(&theirs, OWN, "one")?;
    let token = theirs.token(&["registry:catalog:*"])?;
    let host = site.host()?;
    let request = client::head("GET", "/v2/_catalog", host, &format!("Authorization: Bearer {token}\r\n"));
    let mut times =
        plan.runtime.block_on(client::sample(host, request.as_bytes(), 200, Instant::now() + plan.sample))?;
    let answer = theirs.send_scoped(
        &reqwest::Method::GET,
        &["registry:catalog:*"],
        "/v2/_catalog",
        &Extra::default(),
    )?;
    let names = answer.expect(&[200])?.json()?["repositories"].clone();
    let seen: Vec<&str> = names.as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect();
    let p99 = quantile(&mut times, 0.99);
    Ok(vec![
        Row::held(
            NUMBER,
            format!("the catalog of who may see one of {}", plan.repositories),
            "their own, and nothing hidden",
            format!("{} names", seen.len()),
            seen.contains(&OWN) && !seen.iter().any(|name| name.starts_with(HIDDEN)),
        ),
        Row::new(
            NUMBER,
            "their page, p99",
            format!("<= {}", ms(PAGE_MAX)),
            format!("{} (p50 {}, {} pages)", ms(p99), ms(quantile(&mut times, 0.5)), times.len()),
            plan.figure(p99 <= PAGE_MAX),
        ),
    ])
}
