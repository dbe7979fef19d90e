//! A store of very many small blobs: making it, and what it costs to open and to use it.
//!
//! The log is written in the engine's own format, without the engine: ten million commits would take hours. What is measured runs in
//! a process of its own each, so that one's memory is not another's. The solo files are as long as their blobs and have no bytes: an
//! opening reads none of them.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::format::batch::{NewRecord, Position, encode};
use taffrail_blobstore::format::record::Body;
use taffrail_blobstore::format::seal::{Key, Place, Seal};
use taffrail_blobstore::format::segment::{Content, HEADER_BYTES, Previous, SegmentHeader};
use taffrail_blobstore::format::superblock::Superblock;
use taffrail_blobstore::format::{Lsn, SUPERBLOCK_NAMES, SegmentId};
use taffrail_blobstore::{Algorithm, Digest, Options, RepositoryKey, Store};

/// Length of an inline blob in bytes.
const BLOB_BYTES: usize = 64;
/// One blob in so many lies in a solo file.
const SOLO_EVERY: u64 = 100;
/// Length of such a blob in bytes.
const SOLO_BYTES: u64 = 10 << 20;
/// Repositories that the blobs are linked in.
const REPOSITORIES: u64 = 1_000;
/// Blobs of one batch: some 400 KB.
const BATCH_BLOBS: u64 = 1_024;
/// The time that the engine is told.
const NOW_MS: u64 = 1_800_000_000_000;
/// Lookups that are timed.
const LOOKUPS: u64 = 1_000_000;
/// Writers, and for how long they commit.
const WRITERS: u64 = 8;
const WRITING: Duration = Duration::from_secs(8);
/// Log behind the checkpoint when the store is killed: what `jobservice` lets there be.
const TAIL_BYTES: u64 = 64 << 20;

/// What is measured of a store that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Phase {
    /// The index is removed, and made again from the log.
    Rebuild,
    /// The store was closed.
    Clean,
    /// Lookups in a store that was just opened.
    Lookups,
    /// Commits, with and without checkpoints beside them. The store is killed at the end.
    Commits,
    /// The store was killed.
    Crash,
}

/// How a store is opened, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Opening {
    /// Its index is made anew from the log.
    Rebuild,
    /// It was closed, and is closed again.
    Clean,
    /// It is given as much log behind its checkpoint as there may be, and killed.
    Kill,
    /// It was killed, and is left as it was.
    Killed,
}

/// What an opening took.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Opened {
    pub(crate) seconds: f64,
    pub(crate) blobs: u64,
    /// Memory that it took, in bytes.
    pub(crate) private_bytes: u64,
    /// Log that was replayed, in bytes.
    replay_bytes: u64,
    /// Files of the index, in bytes.
    pub(crate) index_bytes: u64,
}

const PHASES: [Phase; 5] = [Phase::Rebuild, Phase::Clean, Phase::Lookups, Phase::Commits, Phase::Crash];

fn digest(number: u64) -> Digest {
    Digest::of(Algorithm::Sha256, &content(number))
}

fn content(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOB_BYTES];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// As a catalog makes them: random numbers.
fn repository(number: u64) -> Result<RepositoryKey> {
    let spread = (number % REPOSITORIES + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1;
    RepositoryKey::new(spread).context("a repository's key")
}

fn options() -> Options {
    let mut entropy = [0; 48];
    rand::fill(&mut entropy[..]);
    Options { reserve_bytes: 0, ..Options::new(entropy) }
}

fn open(dir: &Path) -> Result<Store> {
    Ok(Store::open(Arc::new(ThreadsDisk::open(dir)?), options(), NOW_MS)?)
}

/// Makes a store of so many blobs in `dir`.
pub(crate) fn make(dir: &Path, blobs: u64) -> Result<()> {
    fs::create_dir_all(dir)?;
    ensure!(!dir.join(SUPERBLOCK_NAMES[0]).exists(), "there is a store in {} already", dir.display());
    open(dir)?.close()?;
    let superblock =
        SUPERBLOCK_NAMES.iter().find_map(|name| Superblock::decode(&fs::read(dir.join(name)).ok()?).ok());
    let superblock = superblock.context("the superblock of a new store")?;
    let mut log = Log {
        dir,
        key: Key::new(superblock.key, superblock.uuid),
        epoch: superblock.epoch,
        segment_bytes: superblock.segment_bytes,
        previous: None,
        next_lsn: 1,
        segment: None,
    };
    let began = Instant::now();
    let mut told = 0;
    for first in (0..blobs).step_by(usize::try_from(BATCH_BLOBS)?) {
        let mut records = Vec::new();
        for number in first..(first + BATCH_BLOBS).min(blobs) {
            put_records(number, &mut records)?;
        }
        log.append(records)?;
        (first..(first + BATCH_BLOBS).min(blobs)).try_for_each(|number| make_solo_file(dir, number))?;
        let percent = first * 100 / blobs;
        if percent > told {
            told = percent;
            print!("\r{percent:3} % of {blobs} blobs");
            std::io::stdout().flush()?;
        }
    }
    log.seal()?;
    println!("\rmade {blobs} blobs in {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn put_records(number: u64, records: &mut Vec<NewRecord>) -> Result<()> {
    let digest = digest(number);
    let (body, payload) = if number.is_multiple_of(SOLO_EVERY) {
        let segment = solo_segment(number);
        let body =
            Body::Solo { digest, len_bytes: SOLO_BYTES, segment, epoch: 1, trailer: *blake3_like(&digest) };
        (body, Bytes::new())
    } else {
        let body = Body::Blob { digest, len_bytes: u32::try_from(BLOB_BYTES)?, payload_offset_bytes: 0 };
        (body, Bytes::from(content(number)))
    };
    records.push(NewRecord { body, payload });
    let body = Body::Link { repository: repository(number)?, digest };
    records.push(NewRecord { body, payload: Bytes::new() });
    Ok(())
}

fn solo_segment(number: u64) -> SegmentId {
    SegmentId((1 << 32) | number)
}

/// Makes the file of a blob that has one, without its bytes.
fn make_solo_file(dir: &Path, number: u64) -> Result<()> {
    if number.is_multiple_of(SOLO_EVERY) {
        let path = dir.join(solo_segment(number).solo_name());
        fs::create_dir_all(path.parent().context("the folder of a solo file")?)?;
        fs::File::create_new(path)?.set_len(HEADER_BYTES as u64 + SOLO_BYTES)?;
    }
    Ok(())
}

/// Stands for the seal of a trailer: as incompressible as one.
fn blake3_like(digest: &Digest) -> &[u8; 32] {
    digest.bytes().first_chunk().unwrap_or(&[0; 32])
}

/// The log that is being made.
struct Log<'a> {
    dir: &'a Path,
    key: Key,
    epoch: u32,
    segment_bytes: u64,
    previous: Option<Previous>,
    next_lsn: Lsn,
    segment: Option<Segment>,
}

struct Segment {
    id: SegmentId,
    file: fs::File,
    end_bytes: u64,
    seal: Seal,
}

impl Log<'_> {
    fn append(&mut self, records: Vec<NewRecord>) -> Result<()> {
        // A batch of these is never longer than a megabyte.
        let is_full = self.segment.as_ref().is_some_and(|it| it.end_bytes + (1 << 20) > self.segment_bytes);
        if is_full {
            self.seal()?;
        }
        if self.segment.is_none() {
            self.begin()?;
        }
        self.write(records)
    }

    fn begin(&mut self) -> Result<()> {
        let id = SegmentId(self.previous.map_or(1, |previous| previous.id.0 + 1));
        let content = Content::Log { previous: self.previous, first_lsn: self.next_lsn };
        let header = SegmentHeader { id, epoch: self.epoch, created_ms: NOW_MS, content };
        let bytes = header.encode(&self.key);
        let mut file = fs::File::create_new(self.dir.join(id.log_name()))?;
        file.write_all(&bytes)?;
        let seal = SegmentHeader::seal_of(&bytes);
        self.segment = Some(Segment { id, file, end_bytes: HEADER_BYTES as u64, seal });
        Ok(())
    }

    fn write(&mut self, records: Vec<NewRecord>) -> Result<()> {
        let Some(segment) = &mut self.segment else { bail!("no segment was begun") };
        let place = Place { segment: segment.id, epoch: self.epoch, offset_bytes: segment.end_bytes };
        let position = Position { place, first_lsn: self.next_lsn, previous: segment.seal, time_ms: NOW_MS };
        let batch = encode(&self.key, position, records);
        segment.file.write_all(&batch.bytes)?;
        segment.end_bytes += batch.bytes.len() as u64;
        segment.seal = batch.seal;
        self.next_lsn += batch.records.len() as u64;
        Ok(())
    }

    fn seal(&mut self) -> Result<()> {
        self.write(vec![NewRecord { body: Body::Seal, payload: Bytes::new() }])?;
        if let Some(Segment { id, file, end_bytes, seal }) = self.segment.take() {
            file.sync_all()?;
            self.previous = Some(Previous { id, end_bytes, seal });
        }
        Ok(())
    }
}

/// Measures a store that was made, each phase in a process of its own.
pub(crate) fn measure(dir: &Path) -> Result<()> {
    for phase in PHASES {
        let name = phase.to_possible_value().context("the name of a phase")?;
        let program = std::env::current_exe()?;
        let status = Command::new(program)
            .args(["open-store", "--phase", name.get_name(), "--dir"])
            .arg(dir)
            .status()?;
        ensure!(status.success(), "{} failed", name.get_name());
    }
    Ok(())
}

/// Measures one phase in this process.
pub(crate) fn measure_phase(dir: &Path, phase: Phase) -> Result<()> {
    match phase {
        Phase::Rebuild => {
            remove_index(dir)?;
            let store = timed_open(dir, "rebuild from the log")?;
            let began = Instant::now();
            store.close()?;
            println!("  closed, with all of the index, in {:.2} s", began.elapsed().as_secs_f64());
        }
        Phase::Clean => {
            for _ in 0..3 {
                timed_open(dir, "clean open")?.close()?;
            }
            let blobs = open(dir)?.stats().blobs.max(1);
            let bytes = folder_bytes(&dir.join("index"))?;
            println!("index: {:.1} bytes per blob", ratio(bytes, blobs));
        }
        Phase::Lookups => lookups(&timed_open(dir, "clean open")?)?,
        Phase::Commits => commits(&timed_open(dir, "clean open")?)?,
        Phase::Crash => {
            for _ in 0..3 {
                // Nothing is closed, so that each opening replays the same log.
                drop(timed_open(dir, "open after a kill")?);
            }
        }
    }
    Ok(())
}

/// Opens the store in this process, and says what that took as a line of JSON.
pub(crate) fn open_once(dir: &Path, how: Opening) -> Result<()> {
    if how == Opening::Rebuild {
        remove_index(dir)?;
    }
    let (store, mut opened) = opened(dir)?;
    match how {
        Opening::Rebuild | Opening::Clean => {
            store.close()?;
            opened.index_bytes = folder_bytes(&dir.join("index"))?;
        }
        Opening::Kill => {
            let mut next = store.stats().blobs + (1 << 40);
            leave_log(&store, &mut next)?;
        }
        Opening::Killed => {}
    }
    println!("{}", serde_json::to_string(&opened)?);
    Ok(())
}

/// The same in a process of its own, whose memory is that of the store alone.
pub(crate) fn open_in_child(dir: &Path, how: Opening) -> Result<Opened> {
    let how = how.to_possible_value().context("the name of an opening")?;
    let mut command = Command::new(std::env::current_exe()?);
    let output =
        command.args(["open-once", how.get_name(), "--dir"]).arg(dir).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "opening ({}) failed", how.get_name());
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn remove_index(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir.join("index")) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn opened(dir: &Path) -> Result<(Store, Opened)> {
    let before = private_bytes()?;
    let began = Instant::now();
    let store = open(dir)?;
    let seconds = began.elapsed().as_secs_f64();
    let private_bytes = private_bytes()?.saturating_sub(before);
    let (blobs, replay_bytes) = (store.stats().blobs, store.replay_bytes());
    Ok((store, Opened { seconds, blobs, private_bytes, replay_bytes, index_bytes: 0 }))
}

fn timed_open(dir: &Path, what: &str) -> Result<Store> {
    let (store, opened) = opened(dir)?;
    println!(
        "{what}: {:.3} s, {} blobs, {} MB of log to replay, {:.1} bytes of private memory per blob",
        opened.seconds,
        opened.blobs,
        opened.replay_bytes >> 20,
        ratio(opened.private_bytes, opened.blobs.max(1)),
    );
    Ok(store)
}

fn lookups(store: &Store) -> Result<()> {
    let blobs = store.stats().blobs.max(1);
    // A stride through all of them, so that the leases are not what is measured and every page is.
    let wanted: Vec<(RepositoryKey, Digest)> = (0..LOOKUPS)
        .map(|number| number.wrapping_mul(0x9e37_79b9) % blobs)
        .map(|number| Ok((repository(number)?, digest(number))))
        .collect::<Result<_>>()?;
    for round in ["cold or warm", "warm", "warm"] {
        let began = Instant::now();
        let mut found = 0_u64;
        for (repository, digest) in &wanted {
            found += u64::from(store.link_generation(*repository, digest).is_some());
        }
        let nanos = began.elapsed().as_nanos() / u128::from(LOOKUPS);
        println!("lookup, {round}: {nanos} ns, {found} of {LOOKUPS} found");
    }
    Ok(())
}

fn commits(store: &Store) -> Result<()> {
    let mut next = store.stats().blobs + (1 << 40);
    for checkpoints in [false, true, false, true] {
        let done = AtomicBool::new(false);
        let (latencies, written) = std::thread::scope(|scope| -> Result<(Vec<Duration>, u64)> {
            let beside = scope.spawn(|| -> Result<u64> {
                let mut written = 0;
                while checkpoints && !done.load(Ordering::Relaxed) {
                    block_on(store.checkpoint())?;
                    written += 1;
                }
                Ok(written)
            });
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let from = next + (writer << 32);
                    scope.spawn(move || commit_for_a_while(store, from))
                })
                .collect();
            let mut latencies = Vec::new();
            for writer in writers {
                latencies.extend(writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??);
            }
            done.store(true, Ordering::Relaxed);
            let written = beside.join().map_err(|_| anyhow::anyhow!("the checkpoints panicked"))??;
            Ok((latencies, written))
        })?;
        next += WRITERS << 32;
        println!("commits beside {written} checkpoints: {}", spread(latencies));
    }
    leave_log(store, &mut next)
}

/// Commits as much log as there may be, for an opening after a kill. Blobs from number `next` on are new.
fn leave_log(store: &Store, next: &mut u64) -> Result<()> {
    block_on(store.checkpoint())?;
    let floor = store.replay_bytes();
    while store.replay_bytes() < floor + TAIL_BYTES {
        let puts: Vec<_> = (0..2_000)
            .map(|number| {
                let bytes = Bytes::from(content(*next + number));
                (digest(*next + number), bytes)
            })
            .collect();
        *next += 2_000;
        let held = store.hold_commits();
        let repository = repository(*next)?;
        std::thread::scope(|scope| -> Result<()> {
            let writers: Vec<_> = puts
                .chunks(250)
                .map(|puts| {
                    scope.spawn(move || -> Result<()> {
                        let all: Vec<_> = puts
                            .iter()
                            .map(|(digest, bytes)| {
                                Box::pin(store.put(repository, digest, bytes.clone(), &[], NOW_MS))
                            })
                            .collect();
                        block_on_all(all)
                    })
                })
                .collect();
            drop(held);
            writers.into_iter().try_for_each(|it| it.join().map_err(|_| anyhow::anyhow!("a put panicked"))?)
        })?;
    }
    Ok(())
}

fn commit_for_a_while(store: &Store, from: u64) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    let began = Instant::now();
    for number in from.. {
        if began.elapsed() > WRITING {
            break;
        }
        let bytes = Bytes::from(content(number));
        let at = Instant::now();
        block_on(store.put(repository(number)?, &digest(number), bytes, &[], NOW_MS))?;
        latencies.push(at.elapsed());
    }
    Ok(latencies)
}

fn spread(mut latencies: Vec<Duration>) -> String {
    latencies.sort_unstable();
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank"
        )]
        let rank = (latencies.len() as f64 * share) as usize;
        latencies.get(rank.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    format!(
        "{} in {} s, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, longest {:.2} ms",
        latencies.len(),
        WRITING.as_secs(),
        at(0.5).as_secs_f64() * 1e3,
        at(0.99).as_secs_f64() * 1e3,
        at(0.999).as_secs_f64() * 1e3,
        at(1.0).as_secs_f64() * 1e3,
    )
}

/// Waits on this thread.
fn block_on<T, E: std::error::Error + Send + Sync + 'static>(
    future: impl Future<Output = Result<T, E>>,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    Ok(runtime.block_on(future)?)
}

/// Begins all, then waits for all.
fn block_on_all<T, E: std::error::Error + Send + Sync + 'static>(
    futures: Vec<impl Future<Output = Result<T, E>> + Unpin>,
) -> Result<()> {
    let mut pending = futures;
    let mut failed = None;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(std::future::poll_fn(|context| {
        pending.retain_mut(|future| match std::pin::Pin::new(future).poll(context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(Ok(_)) => false,
            std::task::Poll::Ready(Err(error)) => {
                failed = Some(error);
                false
            }
        });
        if pending.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    }));
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// Anonymous memory of this process, in bytes.
fn private_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn ratio(bytes: u64, blobs: u64) -> f64 {
    bytes as f64 / blobs as f64
}
