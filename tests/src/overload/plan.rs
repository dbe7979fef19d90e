//! How much of everything, and which figures are judged.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;

use crate::row::Outcome;

/// The sizes of one run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Whether times, rates and memory decide nothing.
    pub(crate) quick: bool,
    /// Idle connections (L-01, L-02).
    pub(crate) idle_connections: usize,
    /// How long a server rests before its memory is read.
    pub(crate) rest: Duration,
    /// Connections whose heads trickle (L-03).
    pub(crate) slow_heads: usize,
    /// Seconds for a head (L-03); the default of the server in the full run.
    pub(crate) head_secs: u64,
    /// Connections whose bodies trickle (L-04).
    pub(crate) slow_bodies: usize,
    /// Seconds of the window over which a body's pace is judged (L-04).
    pub(crate) body_window_secs: u64,
    /// Readers that take nothing (L-05).
    pub(crate) slow_readers: usize,
    /// Length of the blob that they do not read (L-05).
    pub(crate) slow_blob_bytes: usize,
    /// Seconds after which they are cut (L-05).
    pub(crate) stall_secs: u64,
    /// Connections from one address (L-08).
    pub(crate) flood: usize,
    /// Connections of one address that are let in (L-08).
    pub(crate) per_address: usize,
    /// Pulls at once, and the length of the blob (L-09).
    pub(crate) pulls: usize,
    pub(crate) pull_bytes: usize,
    /// Pushes at once, and the length of each blob (L-10).
    pub(crate) pushes: usize,
    pub(crate) push_bytes: usize,
    /// Seconds of the overload (L-11).
    pub(crate) excess_secs: u64,
    /// Connections over which it comes (L-11).
    pub(crate) excess_connections: usize,
    /// Abandoned uploads, and the length of the few large ones (L-15).
    pub(crate) abandoned: usize,
    pub(crate) abandoned_bytes: usize,
    /// Seconds after which they are (L-15).
    pub(crate) upload_idle_secs: u64,
    /// Pulls and pushes under way at SIGTERM, and how long each takes (L-16).
    pub(crate) drained_pulls: usize,
    pub(crate) drained_pushes: usize,
    pub(crate) drained_time: Duration,
    /// How long the database stands still (L-17).
    pub(crate) stall: Duration,
    /// Tags, repositories and referrers in the catalog (L-18).
    pub(crate) tags: u64,
    pub(crate) repositories: u64,
    pub(crate) referrers: u64,
    /// How long latencies are sampled.
    pub(crate) sample: Duration,
    /// Files that this process may open, and each server.
    pub(crate) files_max: usize,
    /// The folder for all data.
    pub(crate) dir: PathBuf,
    /// Where the clients run.
    pub(crate) runtime: Runtime,
}

impl Plan {
    /// What the requirements say.
    pub(crate) fn full(files_max: usize) -> Result<Self> {
        Ok(Self {
            quick: false,
            idle_connections: 10_000,
            rest: Duration::from_secs(5),
            slow_heads: 4_000,
            head_secs: 10,
            slow_bodies: 200,
            body_window_secs: 30,
            slow_readers: 1_000,
            slow_blob_bytes: 1 << 30,
            stall_secs: 60,
            flood: 20_000,
            per_address: 1_024,
            pulls: 1_000,
            pull_bytes: 100 << 20,
            pushes: 200,
            push_bytes: 50 << 20,
            excess_secs: 300,
            excess_connections: 8_000,
            abandoned: 10_000,
            abandoned_bytes: 1 << 30,
            upload_idle_secs: 60,
            drained_pulls: 100,
            drained_pushes: 50,
            drained_time: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            tags: 1_000_000,
            repositories: 100_000,
            referrers: 100_000,
            sample: Duration::from_secs(10),
            files_max,
            dir: std::env::temp_dir(),
            runtime: runtime()?,
        })
    }

    /// A minute of all of it.
    pub(crate) fn quick(files_max: usize) -> Result<Self> {
        Ok(Self {
            quick: true,
            idle_connections: 300,
            rest: Duration::from_secs(2),
            slow_heads: 200,
            head_secs: 1,
            slow_bodies: 10,
            body_window_secs: 1,
            slow_readers: 50,
            slow_blob_bytes: 32 << 20,
            stall_secs: 1,
            flood: 1_000,
            per_address: 64,
            pulls: 100,
            pull_bytes: 4 << 20,
            pushes: 40,
            push_bytes: 2 << 20,
            excess_secs: 3,
            excess_connections: 400,
            abandoned: 300,
            abandoned_bytes: 16 << 20,
            // Longer than it takes to begin them all, also on a machine that is busy.
            upload_idle_secs: 10,
            drained_pulls: 20,
            drained_pushes: 10,
            drained_time: Duration::from_secs(2),
            stall: Duration::from_secs(3),
            tags: 5_000,
            repositories: 500,
            referrers: 500,
            sample: Duration::from_secs(1),
            ..Self::full(files_max)?
        })
    }

    /// The outcome of a demand on a time, a rate or a memory.
    pub(crate) fn figure(&self, met: bool) -> Outcome {
        match (self.quick, met) {
            (true, _) => Outcome::Noted,
            (false, true) => Outcome::Met,
            (false, false) => Outcome::NotMet,
        }
    }

    /// Why so many connections cannot be held here, on one end or the other; `None` when they can.
    pub(crate) fn too_many(&self, connections: usize) -> Option<String> {
        // A server keeps a quarter of its files for other things than connections.
        let most = (self.files_max / 4 * 3).saturating_sub(256);
        (connections > most).then(|| {
            format!(
                "{connections} connections need {} open files, the limit is {}",
                connections / 3 * 4 + 512,
                self.files_max
            )
        })
    }
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the clients' runtime")
}
