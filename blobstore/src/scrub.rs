//! Scrubbing: everything that the store holds is read again, past the page cache, before somebody asks for it.
//!
//! A pass goes through the batches of the log, whose records say what there is, and then through all blobs in the order of their
//! digests: every block against its checksum, the checksums against their seal, and, when it is asked for, the bytes against the
//! digest. It is made of steps; whoever drives it decides how fast.
//!
//! What must stay true: a blob that is there from the beginning of a pass to its end is read in it, wherever it is moved meanwhile;
//! only what was bad twice past the cache is set aside, and only the copy that was; what cannot be read at all is named and left, for
//! the device may come to its senses; a damaged log is named and nothing more, because all that it says is known as long as the
//! store is open.

use std::collections::VecDeque;
use std::io;

use crate::buffer::AlignedBuffer;
use crate::digest::Digest;
use crate::disk::{Access, File};
use crate::engine::Engine;
use crate::error::Refusal;
use crate::format::partition::shard_of;
use crate::format::seal::Seal;
use crate::format::segment::{Content, HEADER_BYTES, SegmentHeader};
use crate::format::{SegmentId, aligned};
use crate::hasher::Hasher;
use crate::health::Damage;
use crate::locator::{Blob, SHARDS};
use crate::log::Ticket;
use crate::partition::PageError;
use crate::segment::scan::{Found as Scanned, Scan};
use crate::sync::{Arc, Ordering};

mod copy;
mod position;

use copy::{Copy, Found, Wanted};
pub use position::{NoPosition, ScrubPosition};

/// What a look at a blob costs at least, in bytes: a disk with arms needs as long to find a small blob as to read so much.
const BLOB_COST_BYTES_MIN: u64 = 64 * 1024;

/// Digests that are taken from the locator at once: 270 KiB, and few enough passes over a part of it.
const LISTED_MAX: usize = 4096;

/// Looks at one blob: two at the copy that is bad, and some for those that move meanwhile. The next pass sees the others.
const LOOKS_MAX: usize = 6;

/// How thorough a pass is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubDepth {
    /// Every block is held against its checksum.
    Checksums,
    /// And every blob against its digest.
    Digests,
}

/// What a step found.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// Bytes read.
    pub read_bytes: u64,
    /// What the step is to be counted as when its rate is bounded, in bytes: at least what was read.
    pub cost_bytes: u64,
    /// Blobs that were checked to their ends.
    pub blobs: u64,
    /// Blobs that were bad, and are set aside.
    pub bad: Vec<Digest>,
    /// Blobs and log segments that the disk did not give, and what it said.
    pub unreadable: Vec<Unreadable>,
    /// Damaged places of the log.
    pub damage: Vec<Damage>,
    /// Whether the pass is over.
    pub is_complete: bool,
}

/// Something that the disk did not give.
#[derive(Debug)]
pub struct Unreadable {
    /// Which blob; `None`: a segment of the log.
    pub digest: Option<Digest>,
    /// The file, and what the disk said.
    pub reason: String,
}

/// A pass over the store; one at a time. Dropping it ends it, and [`Scrubber::position`] says where another one goes on.
pub struct Scrubber {
    turn: Turn,
    position: ScrubPosition,
    depth: ScrubDepth,
    /// Where the log ended when the pass began here: what comes later is younger than the pass.
    log_end: Option<(SegmentId, u64)>,
    /// Away while a step is under way.
    walk: Option<Box<Walk>>,
}

impl std::fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrubber").field("position", &self.position).finish_non_exhaustive()
    }
}

/// The right to scrub.
struct Turn(Arc<Engine>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.scrubbing.store(false, Ordering::Release);
    }
}

impl Scrubber {
    /// Begins or goes on; `None` when another pass is under way.
    pub(crate) fn begin(
        engine: &Arc<Engine>,
        position: ScrubPosition,
        depth: ScrubDepth,
    ) -> Option<Scrubber> {
        let is_free = !engine.scrubbing.swap(true, Ordering::AcqRel);
        let turn = is_free.then(|| Turn(Arc::clone(engine)))?;
        let newest = engine.segments.snapshot().pop();
        let log_end = newest.map(|(id, segment)| (id, segment.end_bytes));
        Some(Scrubber { turn, position, depth, log_end, walk: None })
    }

    /// Where the pass stands.
    pub fn position(&self) -> ScrubPosition {
        self.position
    }

    /// How thorough it is.
    pub fn depth(&self) -> ScrubDepth {
        self.depth
    }

    /// Goes on until about `budget_bytes` are spent, on a storage thread. What was bad is recorded durably when this returns.
    ///
    /// # Errors
    /// See [`Refusal`]: something bad could not be recorded. It is set aside until the store is opened anew, and found again then.
    pub async fn step(&mut self, budget_bytes: u64) -> Result<Scrubbed, Refusal> {
        let engine = Arc::clone(&self.turn.0);
        let fresh = Walk { depth: self.depth, log_end: self.log_end, ..Walk::new(self.position) };
        let mut walk = self.walk.take().unwrap_or_else(|| Box::new(fresh));
        let walking = Arc::clone(&engine);
        let walked = engine.pool.run(move || {
            let out = walk.step(&walking, budget_bytes);
            (walk, out)
        });
        let (walk, (scrubbed, tickets)) = walked.await.ok_or(Refusal::Closing)?;
        self.position = walk.position;
        self.walk = Some(walk);
        let mut refused = Ok(());
        for ticket in tickets {
            let recorded = match ticket {
                Ok(ticket) => engine.wait(ticket).await,
                Err(refusal) => Err(refusal),
            };
            refused = refused.and(recorded);
        }
        refused.map(|()| scrubbed)
    }
}

/// What a pass knows between two steps.
struct Walk {
    depth: ScrubDepth,
    log_end: Option<(SegmentId, u64)>,
    position: ScrubPosition,
    /// Seal of the last batch, when the position is behind it.
    seal: Option<Seal>,
    /// Blobs that come next.
    listed: VecDeque<Digest>,
    /// The blob at hand.
    copy: Option<Copy>,
    /// The hash of its first blocks, and how many they are.
    hashed: Option<(Hasher, u64)>,
    /// A blob that did not hash to its digest once.
    suspect: Option<Digest>,
}

/// What comes of a look at a blob.
enum Look {
    /// There is more of it.
    More,
    Good,
    Bad,
    /// Its checksums are right, and twice its digest was not.
    Wrong,
}

type Tickets = Vec<Result<Ticket, Refusal>>;

impl Walk {
    fn new(position: ScrubPosition) -> Walk {
        Walk {
            depth: ScrubDepth::Checksums,
            log_end: None,
            position,
            seal: None,
            listed: VecDeque::new(),
            copy: None,
            hashed: None,
            suspect: None,
        }
    }

    fn step(&mut self, engine: &Engine, budget_bytes: u64) -> (Scrubbed, Tickets) {
        let (mut out, mut tickets) = (Scrubbed::default(), Tickets::new());
        while out.cost_bytes < budget_bytes.max(1) && !out.is_complete {
            match self.position {
                ScrubPosition::Log { segment, offset_bytes } => {
                    self.scan_log(engine, segment, offset_bytes, budget_bytes, &mut out);
                }
                ScrubPosition::After(after) => match self.next_blob(engine, after, &mut out) {
                    Some(digest) => self.position = ScrubPosition::Within { digest, block: 0 },
                    None => out.is_complete = true,
                },
                ScrubPosition::Within { digest, block } => {
                    self.look_at(engine, &digest, block, &mut out, &mut tickets);
                }
            }
        }
        (out, tickets)
    }

    // The log.

    /// Scans the segment at hand from `offset_bytes` on, or goes to the next one.
    fn scan_log(
        &mut self,
        engine: &Engine,
        segment: SegmentId,
        offset_bytes: u64,
        budget_bytes: u64,
        out: &mut Scrubbed,
    ) {
        let (last, last_end) = self.log_end.unwrap_or((SegmentId(0), 0));
        let found = engine.segments.snapshot().into_iter().find(|(id, _)| *id >= segment);
        let Some((id, held)) = found.filter(|(id, _)| *id <= last) else {
            self.position = ScrubPosition::After(None);
            return;
        };
        let (offset_bytes, seal) = if id == segment { (offset_bytes, self.seal) } else { (0, None) };
        let end_bytes = if id == last { last_end } else { held.end_bytes };
        let part = Part { id, epoch: held.epoch, end_bytes, offset_bytes, seal, budget_bytes };
        // Once more when something is damaged: only what is bad twice is.
        let scanned = part.scan(engine).and_then(|first| match first.damage.is_empty() {
            true => Ok(first),
            false => part.scan(engine).map(|mut again| {
                again.damage.retain(|damage| first.damage.contains(damage));
                again
            }),
        });
        let next = ScrubPosition::Log { segment: SegmentId(id.0 + 1), offset_bytes: 0 };
        match scanned {
            Ok(scanned) => {
                out.read_bytes += scanned.read_bytes;
                out.cost_bytes += scanned.read_bytes.max(BLOB_COST_BYTES_MIN);
                out.damage.extend(scanned.damage);
                self.seal = scanned.seal;
                let there = ScrubPosition::Log { segment: id, offset_bytes: scanned.offset_bytes };
                self.position = if scanned.is_at_end { next } else { there };
            }
            Err(error) => {
                // One that was dropped meanwhile is no loss.
                if engine.segments.file(id).is_some() {
                    let reason = format!("{}: {error}", id.log_name());
                    out.unreadable.push(Unreadable { digest: None, reason });
                }
                out.cost_bytes += BLOB_COST_BYTES_MIN;
                self.position = next;
            }
        }
    }

    // The blobs.

    fn next_blob(&mut self, engine: &Engine, after: Option<Digest>, out: &mut Scrubbed) -> Option<Digest> {
        if self.listed.is_empty() {
            let mut after = after;
            let mut part = after.as_ref().map_or(0, shard_of);
            while self.listed.is_empty() && part < SHARDS {
                match list(engine, part, after) {
                    Ok(listed) => self.listed = listed.into(),
                    Err(error) => {
                        let reason = format!("the index: {error}");
                        out.unreadable.push(Unreadable { digest: None, reason });
                    }
                }
                (part, after) = (part + 1, None);
            }
        }
        self.listed.pop_front()
    }

    fn look_at(
        &mut self,
        engine: &Engine,
        digest: &Digest,
        block: u64,
        out: &mut Scrubbed,
        tickets: &mut Tickets,
    ) {
        let (mut block, mut bad) = (block, None);
        for _ in 0..LOOKS_MAX {
            let wanted = match find(engine, digest) {
                Ok(Some(wanted)) => wanted,
                Ok(None) => break,
                Err(error) => {
                    out.unreadable.push(Unreadable { digest: Some(*digest), reason: error.to_string() });
                    break;
                }
            };
            let outcome = self.check(engine, &wanted, block, out);
            let is_bad = matches!(outcome, Ok(Look::Bad)) || is_missing(&outcome);
            if is_bad && bad != Some(wanted) {
                // It may have been read wrongly; or moved meanwhile, and then it is another copy.
                if bad.replace(wanted).is_some() {
                    block = 0;
                }
                self.copy = None;
                continue;
            }
            match outcome {
                Ok(Look::More) => return,
                Ok(Look::Good) => out.blobs += 1,
                Err(error) if !is_bad => {
                    out.unreadable.push(Unreadable { digest: Some(*digest), reason: error.to_string() });
                    out.cost_bytes += BLOB_COST_BYTES_MIN;
                }
                Ok(Look::Bad | Look::Wrong) | Err(_) => {
                    // The copy that was read, and no other that has come since.
                    if let Some(ticket) = engine.set_aside(digest, wanted.location) {
                        out.bad.push(*digest);
                        tickets.push(ticket);
                    }
                }
            }
            break;
        }
        (self.copy, self.hashed) = (None, None);
        self.position = ScrubPosition::After(Some(*digest));
    }

    /// Checks one block, and at the end the digest.
    fn check(
        &mut self,
        engine: &Engine,
        wanted: &Wanted,
        block: u64,
        out: &mut Scrubbed,
    ) -> io::Result<Look> {
        let is_moved = self.copy.as_ref().is_some_and(|copy| !copy.is_of(wanted));
        let mut block = if is_moved { 0 } else { block };
        let copy = match self.copy.take().filter(|_| !is_moved) {
            Some(copy) => self.copy.insert(copy),
            None => {
                let (found, read_bytes) = Copy::open(engine, wanted)?;
                out.read_bytes += read_bytes;
                out.cost_bytes += read_bytes.max(BLOB_COST_BYTES_MIN);
                let Found::Good(copy) = found else { return Ok(Look::Bad) };
                self.copy.insert(copy)
            }
        };
        // The state of a hash is not kept over a restart.
        let is_hashed = self.hashed.as_ref().is_some_and(|(_, blocks)| *blocks == block);
        if self.depth == ScrubDepth::Digests && !is_hashed {
            block = 0;
            self.hashed = Some((Hasher::new(wanted.digest.algorithm()), 0));
        }
        if block < wanted.blocks() {
            let (found, read_bytes) = copy.block(engine, block)?;
            out.read_bytes += read_bytes;
            out.cost_bytes += read_bytes;
            let Found::Good(bytes) = found else { return Ok(Look::Bad) };
            block += 1;
            if let Some((hasher, blocks)) = &mut self.hashed {
                hasher.update(bytes);
                *blocks = block;
            }
        }
        if block < wanted.blocks() {
            self.position = ScrubPosition::Within { digest: wanted.digest, block };
            return Ok(Look::More);
        }
        match self.hashed.take().map(|(hasher, _)| hasher.finish()) {
            Some(digest) if digest != wanted.digest => {
                if self.suspect.replace(wanted.digest) == Some(wanted.digest) {
                    return Ok(Look::Wrong);
                }
                // All of it once more.
                self.copy = None;
                self.position = ScrubPosition::Within { digest: wanted.digest, block: 0 };
                Ok(Look::More)
            }
            Some(_) | None => Ok(Look::Good),
        }
    }
}

fn is_missing(outcome: &io::Result<Look>) -> bool {
    outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Where a blob lies that is served.
fn find(engine: &Engine, digest: &Digest) -> io::Result<Option<Wanted>> {
    let shard = engine.locator.read(digest);
    let found = shard.find(digest).map_err(|failed| engine.lookup_failed(failed))?;
    Ok(found.filter(|blob| blob.is_served()).and_then(|blob| wanted(digest, &blob)))
}

fn wanted(digest: &Digest, blob: &Blob) -> Option<Wanted> {
    Some(Wanted { digest: *digest, len_bytes: blob.len_bytes, location: blob.location? })
}

/// The first digests of a part of the locator behind `after`, in order; those without a link, too: a push may link them again.
fn list(engine: &Engine, part: usize, after: Option<Digest>) -> io::Result<Vec<Digest>> {
    let shard = engine.locator.shard(part).snapshot();
    let digests = shard.blobs_behind(after).take(LISTED_MAX).map(|blob| blob.map(|blob| blob.digest));
    digests.collect::<Result<_, PageError>>().map_err(|failed| engine.lookup_failed(failed))
}

/// A part of a log segment that is to be scanned.
struct Part {
    id: SegmentId,
    epoch: u32,
    end_bytes: u64,
    offset_bytes: u64,
    /// Seal of the batch before `offset_bytes`, when it is known.
    seal: Option<Seal>,
    budget_bytes: u64,
}

/// What a scan came to.
struct PartScanned {
    damage: Vec<Damage>,
    /// Where to go on, and the seal before it.
    offset_bytes: u64,
    seal: Option<Seal>,
    read_bytes: u64,
    is_at_end: bool,
}

impl Part {
    fn scan(&self, engine: &Engine) -> io::Result<PartScanned> {
        let file = engine.disk.open(&self.id.log_name(), Access::Direct)?;
        let mut damage = Vec::new();
        let mut header = AlignedBuffer::zeroed(aligned(HEADER_BYTES));
        file.read_at(header.as_mut_slice(), 0)?;
        let decoded = SegmentHeader::decode(header.as_slice(), self.id, &engine.key);
        let header_seal = decoded.is_some().then(|| SegmentHeader::seal_of(header.as_slice()));
        if decoded.is_none() && self.offset_bytes == 0 {
            damage.push(Damage::Header { segment: self.id });
        }
        let header = decoded.unwrap_or_else(|| {
            let content = Content::Log { previous: None, first_lsn: 0 };
            SegmentHeader { id: self.id, epoch: self.epoch, created_ms: 0, content }
        });
        let start = self.offset_bytes.max(HEADER_BYTES as u64);
        let seal = if self.offset_bytes == 0 { header_seal } else { self.seal };
        self.scan_batches(&*file, engine, &header, start, seal, damage)
    }

    fn scan_batches(
        &self,
        file: &dyn File,
        engine: &Engine,
        header: &SegmentHeader,
        start: u64,
        seal: Option<Seal>,
        mut damage: Vec<Damage>,
    ) -> io::Result<PartScanned> {
        let mut scan = Scan::new(file, &engine.key, header, seal, Some(self.end_bytes))?;
        scan.go_on(start, seal);
        let mut offset_bytes = start;
        let is_at_end = loop {
            if offset_bytes - start >= self.budget_bytes {
                break false;
            }
            match scan.next_found()? {
                Scanned::Batch(batch) => offset_bytes = batch.place.offset_bytes + batch.batch_len as u64,
                Scanned::Damage { from_bytes, to_bytes } => {
                    damage.push(Damage::Log { segment: self.id, from_bytes, to_bytes });
                }
                Scanned::End { .. } => break true,
            }
        };
        let read_bytes = offset_bytes - start + HEADER_BYTES as u64;
        Ok(PartScanned { damage, offset_bytes, seal: scan.seal(), read_bytes, is_at_end })
    }
}
