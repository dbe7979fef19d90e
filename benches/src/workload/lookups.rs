//! Small questions: manifests by tag, whether a blob is there.

use anyhow::{Context as _, Result};

use super::pull::{CLIENTS, read_randomly};
use super::{Case, Flushes, Prepare, REGISTRIES, Rounds, Row, at_once};
use crate::content::{self, Blob, MANIFEST};
use crate::goal::{Against, Bound, Figure, Goal};
use crate::plan::Plan;
use crate::sample::Work;
use crate::target::{Kind, Subject};

const REPOSITORY: &str = "library/lookups";

const NGINX: &[Kind] = &[Kind::Nginx, Kind::NginxCopy];

/// Manifests in the repository: more fit a cache, few fit any.
const MANIFESTS_MAX: usize = 500;

pub(super) fn rows() -> Vec<Row> {
    let case = |name, about, more: &[Kind], prepare: Prepare, goals| Case {
        name,
        about,
        subjects: [&REGISTRIES, more].concat(),
        goals,
        flushes: Flushes::Uncounted,
        prepare,
    };
    let six = Goal::ratio(Figure::OpsPerSec, Kind::Taffrail, Kind::V3, Bound::AtLeast(6.0));
    let static_files = Goal {
        figure: Figure::OpsPerSec,
        of: Kind::Taffrail,
        against: Against::Best(NGINX),
        bound: Bound::AtLeast(0.8),
    };
    vec![Row::new(
        "manifest GET and HEAD by tag, blob HEAD, with token check",
        vec![
            case(
                "manifest-get",
                "GET of manifests by tag, 8 clients",
                NGINX,
                manifest_get,
                vec![static_files, six],
            ),
            case("manifest-head", "HEAD of manifests by tag, 8 clients", &[], manifest_head, vec![six]),
            case("blob-head", "HEAD of blobs, 8 clients", &[], blob_head, vec![six]),
        ],
    )]
}

fn manifest_get<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    manifests(plan, subject, "GET")
}

fn manifest_head<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    manifests(plan, subject, "HEAD")
}

fn manifests<'a>(plan: &'a Plan, subject: &'a Subject, method: &'static str) -> Result<Rounds<'a>> {
    let layers = Blob::several(9, 4 << 10);
    let configs = Blob::several(MANIFESTS_MAX.min(plan.items), 2 << 10);
    let mut clients = subject.clients(CLIENTS, &[REPOSITORY])?;
    let client = clients.first_mut().context("a client")?;
    for layer in &layers {
        subject.store_blob(client, REPOSITORY, layer)?;
    }
    at_once(&mut clients, |index, client| {
        for (number, config) in configs.iter().enumerate().skip(index).step_by(CLIENTS) {
            subject.store_blob(client, REPOSITORY, config)?;
            let manifest = content::manifest(config, &layers);
            subject.store_manifest(client, REPOSITORY, &format!("v{number}"), &manifest)?;
        }
        Ok(Work::default())
    })?;
    let paths: Vec<_> =
        (0..configs.len()).map(|number| format!("/v2/{REPOSITORY}/manifests/v{number}")).collect();
    let accept = format!("Accept: {MANIFEST}\r\n");
    Ok(Box::new(move |round| read_randomly(plan, subject, &[REPOSITORY], method, &paths, &accept, round)))
}

fn blob_head<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let blobs = Blob::several(MANIFESTS_MAX.min(plan.items), 4 << 10);
    let mut clients = subject.clients(CLIENTS, &[REPOSITORY])?;
    at_once(&mut clients, |index, client| {
        for blob in blobs.iter().skip(index).step_by(CLIENTS) {
            subject.store_blob(client, REPOSITORY, blob)?;
        }
        Ok(Work::default())
    })?;
    let paths: Vec<_> = blobs.iter().map(|blob| format!("/v2/{REPOSITORY}/blobs/{}", blob.digest)).collect();
    Ok(Box::new(move |round| read_randomly(plan, subject, &[REPOSITORY], "HEAD", &paths, "", round)))
}
