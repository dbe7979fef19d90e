//! Mounts across repositories: one link, however large the blob.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{Case, Flushes, REGISTRIES, Rounds, Row, at_once};
use crate::client::Body;
use crate::content::Blob;
use crate::goal::{Bound, Figure, Goal};
use crate::plan::Plan;
use crate::sample::{Sample, Work, quantile};
use crate::target::{Kind, Subject};

const FROM: &str = "library/mount-from";
const TO: &str = "library/mount-to";

/// How often larger than a large blob the largest is, and the length of the smallest.
const LARGEST_FACTOR: u64 = 10;
const SMALLEST_BYTES: u64 = 1 << 10;

/// Clients at work at once.
const CLIENTS: usize = 4;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::new(
        "mount across repositories",
        vec![Case {
            name: "mount",
            about: "mounts of a blob of 1 KiB and one ten times the large size, in turn, 4 clients",
            subjects: REGISTRIES.to_vec(),
            // Extra is the median for the large blob over that for the small one.
            goals: vec![Goal::absolute(Figure::Extra, Kind::Taffrail, Bound::Between(0.95, 1.05))],
            flushes: Flushes::Store,
            prepare: mounts,
        }],
    )]
}

fn mounts<'a>(plan: &'a Plan, subject: &'a Subject) -> Result<Rounds<'a>> {
    let blobs = [Blob::fresh(SMALLEST_BYTES), Blob::fresh(plan.large_bytes * LARGEST_FACTOR)];
    let mut clients = subject.clients(1, &[FROM])?;
    let client = clients.first_mut().context("a client")?;
    for blob in &blobs {
        subject.store_blob(client, FROM, blob)?;
    }
    let paths = blobs.map(|blob| format!("/v2/{TO}/blobs/uploads/?mount={}&from={FROM}", blob.digest));
    Ok(Box::new(move |_| {
        let mut clients: Vec<_> = subject
            .clients(CLIENTS, &[FROM, TO])?
            .into_iter()
            .map(|client| (client, [Vec::new(), Vec::new()]))
            .collect();
        let before = subject.store_flushes()?;
        let mut sample = subject.measure(|| {
            let until = Instant::now() + plan.round_time;
            at_once(&mut clients, |_, (client, latencies)| {
                let mut work = Work::default();
                while Instant::now() < until {
                    for (path, latencies) in paths.iter().zip(latencies.iter_mut()) {
                        let started = Instant::now();
                        client.request("POST", path, "", Body::None)?.expect(201)?;
                        latencies.push(started.elapsed().as_secs_f64());
                        work.count(started, 0);
                    }
                }
                Ok(work)
            })
        })?;
        sample.flushes = before.zip(subject.store_flushes()?).map(|(before, after)| after - before);
        Ok(Sample { extra: large_over_small(clients.into_iter().map(|(_, latencies)| latencies)), ..sample })
    }))
}

fn large_over_small(latencies: impl Iterator<Item = [Vec<f64>; 2]>) -> Option<f64> {
    let [mut small, mut large] =
        latencies.fold([Vec::new(), Vec::new()], |[mut small, mut large], [s, l]| {
            small.extend(s);
            large.extend(l);
            [small, large]
        });
    small.sort_by(f64::total_cmp);
    large.sort_by(f64::total_cmp);
    Some(quantile(&large, 0.5)? / quantile(&small, 0.5)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_is_divided_by_the_small_over_all_clients() {
        let clients = [[vec![1.0, 2.0], vec![4.0, 4.0]], [vec![2.0], vec![4.0]]];
        assert_eq!(large_over_small(clients.into_iter()), Some(2.0));
        assert_eq!(large_over_small(std::iter::empty()), None);
    }
}
