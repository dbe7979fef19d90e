//! A flush that fails once (P-10, F-23): from then on nothing is acknowledged, although every later flush would succeed; reads
//! go on; the process ends, and the next one has everything that was acknowledged.
//!
//! Trying again is what must not happen: the kernel calls the pages clean after the first error, so that a second flush
//! reports success for bytes that never reached the disk.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use taffrail_tests::fsck::{self, Ended};
use taffrail_tests::http::{Extra, Registry, sha256};
use taffrail_tests::images::noise;
use taffrail_tests::server::{Options, Server};
use taffrail_tests::tools::{self, Tool, say};

const REPOSITORY: &str = "library/poison";

/// How long a poisoned server goes on answering pulls, in seconds: long enough for the pulls of this test.
const DRAIN_SECS: u64 = 4;

/// A server that has not ended by then, after its drain, never will.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// Pushes until the failure; more mean that the fault never struck.
const PUSHES_MAX: u64 = 40;

/// Pushes after the failure, small and large.
const PUSHES_AFTER: u64 = 6;

/// One in so many blobs is large enough for a file of its own.
const LARGE_ONE_IN: u64 = 4;

/// Which flush fails: the one of that number that a thread does by that call of that file of the store.
struct Strike {
    call: &'static str,
    file: &'static str,
    number: u32,
}

/// A flush of what was written before.
const FLUSH: &str = "fdatasync";
/// A write that is durable when it returns, as batches are written over zeros.
const DURABLE_WRITE: &str = "pwritev2";

/// The log's first segment: its header, its first batch, one of many, in either way. And the first large blob's own file, which nobody
/// else's bytes depend on; a failed flush poisons all the same.
const STRIKES: [Strike; 6] = [
    Strike { call: FLUSH, file: "log/0000000000000001.seg", number: 1 },
    Strike { call: FLUSH, file: "log/0000000000000001.seg", number: 2 },
    Strike { call: FLUSH, file: "log/0000000000000001.seg", number: 12 },
    Strike { call: DURABLE_WRITE, file: "log/0000000000000001.seg", number: 1 },
    Strike { call: DURABLE_WRITE, file: "log/0000000000000001.seg", number: 12 },
    Strike { call: FLUSH, file: "solo/01/0000000100000001.seg", number: 1 },
];

#[test]
fn a_failed_flush_ends_all_acknowledgements_and_loses_none() -> Result<()> {
    if !tools::present(&[Tool::Program("strace")])? {
        return Ok(());
    }
    for strike in &STRIKES {
        poison(strike).with_context(|| format!("{} {} of {}", strike.call, strike.number, strike.file))?;
    }
    Ok(())
}

fn poison(strike: &Strike) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let data_dir = scratch.path().join("data");
    let wrapper = failing(&data_dir.join("store").join(strike.file), strike)?;
    let options = Options { data_dir: Some(data_dir.clone()), wrapper, ..Options::default() };
    let mut server = Server::start_with(options.key("server", "drain_secs", DRAIN_SECS))?;
    let admin = server.admin()?;

    let mut acknowledged = Vec::new();
    let failed = (0..PUSHES_MAX).find_map(|number| match push(&admin, number) {
        Ok((201, digest)) => {
            acknowledged.push(digest);
            None
        }
        other => Some(other),
    });
    if failed.is_none() && strike.call == DURABLE_WRITE {
        say("poison: no write was to be durable by itself: the file system gains nothing from zeros");
        return Ok(());
    }
    let failed = failed.context("no flush failed")??;
    ensure!(failed.0 == 503, "the push whose flush failed answered {}", failed.0);
    for number in 0..PUSHES_AFTER {
        let (status, _) = push(&admin, PUSHES_MAX + number)?;
        ensure!(status == 503, "a push after the failed flush answered {status}");
    }
    ensure!(admin.probe("/readyz")? == 503, "a poisoned server calls itself ready");
    ensure!(missing(&admin, &acknowledged)?.is_empty(), "reads do not go on");
    let status = server.wait_for_end(END_DEADLINE)?;
    ensure!(!status.success(), "a server that lost its store ended as if all was well");

    fsck::check(&data_dir, Ended::ByCrash, fsck::Depth::Digests)?;
    server.set_wrapper(Vec::new());
    server.restart()?;
    let admin = server.admin()?;
    let lost = missing(&admin, &acknowledged)?;
    ensure!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), acknowledged.len());
    for number in 0..LARGE_ONE_IN {
        let (status, digest) = push(&admin, 2 * PUSHES_MAX + number)?;
        ensure!(status == 201, "the store is not healed: {status}");
        ensure!(missing(&admin, &[digest])?.is_empty(), "a new blob is not there");
    }
    say(&format!(
        "poison: {} {} of {} failed after {} acknowledged; none lost, none acknowledged after",
        strike.call,
        strike.number,
        strike.file,
        acknowledged.len()
    ));
    Ok(())
}

/// A command line under which that flush of `file` fails, by any one thread, and all others are done. Where one of several is to fail, all are
/// of one kind: a durable write that is refused is made by a write and a flush.
fn failing(file: &Path, strike: &Strike) -> Result<Vec<String>> {
    let strace = tools::find("strace")?;
    let (strace, file) = (strace.to_string_lossy().into_owned(), file.to_string_lossy().into_owned());
    let fails = format!("inject={}:error=EIO:when={}", strike.call, strike.number);
    let mut line = vec![strace.as_str(), "-D", "-f", "-qq", "-o", "/dev/null", "-P", &file];
    line.extend(["-e", "trace=fdatasync,pwritev2", "-e", &fails]);
    if strike.call == FLUSH {
        line.extend(["-e", "inject=pwritev2:error=EOPNOTSUPP"]);
    }
    line.push("--");
    Ok(line.into_iter().map(str::to_owned).collect())
}

/// Pushes a blob in one request; gives the status and the digest.
fn push(registry: &Registry, number: u64) -> Result<(u16, String)> {
    let bytes = noise(number + 1, if number % LARGE_ONE_IN == 3 { 1_300_000 } else { 3_000 });
    let digest = sha256(&bytes);
    let path = format!("/v2/{REPOSITORY}/blobs/uploads/?digest={digest}");
    let extra = Extra::body("application/octet-stream", bytes);
    Ok((registry.send(&Method::POST, REPOSITORY, "pull,push", &path, &extra)?.status, digest))
}

/// Those of `digests` that the server does not give, or gives with other bytes.
fn missing(registry: &Registry, digests: &[String]) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for digest in digests {
        let answer = registry.blob(REPOSITORY, digest)?;
        if answer.status != 200 || sha256(&answer.body) != *digest {
            missing.push(format!("{digest}: {}", answer.status));
        }
    }
    Ok(missing)
}
