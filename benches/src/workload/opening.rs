//! Opening a store of very many small blobs ([`crate::store`]): after a kill, after a close, and without its index.
//!
//! All cases use one store, which the first of them makes. Each opening is one of a process of its own. The files are in the page
//! cache: what the disk itself takes is not in these figures.

use std::path::PathBuf;

use anyhow::Result;

use super::{Case, Flushes, Rounds, Row};
use crate::goal::{Bound, Figure, Goal};
use crate::plan::Plan;
use crate::sample::Sample;
use crate::store::{self, Opening};
use crate::target::{Kind, Subject};

/// Private memory for each blob, in bytes.
const PRIVATE_MAX: Goal = Goal::absolute(Figure::PrivateEach, Kind::Engine, Bound::AtMost(16.0));

pub(super) fn rows() -> Vec<Row> {
    let within = |seconds| Goal::absolute(Figure::Seconds, Kind::Engine, Bound::AtMost(seconds));
    let case = |name, about, prepare, goals| Case {
        name,
        about,
        subjects: vec![Kind::Engine],
        goals,
        flushes: Flushes::Uncounted,
        prepare,
    };
    let index = Goal::absolute(Figure::BytesEach, Kind::Engine, Bound::AtMost(80.0));
    vec![Row::new(
        "open with 10 M blobs; memory and index per blob",
        vec![
            case("open-rebuild", "the index is made from the log", rebuild, vec![within(60.0), PRIVATE_MAX]),
            case("open-clean", "the store was closed", clean, vec![within(0.1), PRIVATE_MAX, index]),
            case(
                "open-killed",
                "the store was killed, 64 MiB of log behind its checkpoint",
                killed,
                vec![within(1.0), PRIVATE_MAX],
            ),
        ],
    )]
}

/// The store. It is made by whoever comes first.
fn made(plan: &Plan) -> Result<PathBuf> {
    let dir = plan.dir.join("many-blobs");
    if !dir.exists() {
        store::make(&dir, plan.many_blobs)?;
    }
    Ok(dir)
}

fn rounds(dir: PathBuf, how: Opening) -> Rounds<'static> {
    Box::new(move |_| {
        let opened = store::open_in_child(&dir, how)?;
        Ok(Sample {
            seconds: opened.seconds,
            operations: opened.blobs,
            bytes: opened.index_bytes,
            memory_kib: Some(opened.private_bytes >> 10),
            ..Sample::default()
        })
    })
}

fn rebuild<'a>(plan: &'a Plan, _subject: &'a Subject) -> Result<Rounds<'a>> {
    Ok(rounds(made(plan)?, Opening::Rebuild))
}

fn clean<'a>(plan: &'a Plan, _subject: &'a Subject) -> Result<Rounds<'a>> {
    let dir = made(plan)?;
    store::open_in_child(&dir, Opening::Clean)?;
    Ok(rounds(dir, Opening::Clean))
}

fn killed<'a>(plan: &'a Plan, _subject: &'a Subject) -> Result<Rounds<'a>> {
    let dir = made(plan)?;
    store::open_in_child(&dir, Opening::Kill)?;
    Ok(rounds(dir, Opening::Killed))
}
