//! Reading blobs: every block is checked against its checksum for every answer.
//!
//! What must stay true: no byte leaves that does not match. A block that is bad is read once more past the page cache; when it is
//! bad there as well, the blob is quarantined: unknown to everybody until it is pushed again. Small payloads come from memory when
//! they were read lately ([`crate::recent`]), checked like any other.
//!
//! A reader that goes through a blob in order has the blocks behind the one in hand read ahead, as a run, so that disk and
//! network work at the same time. What is read ahead is at most what was handed out in order before, so that a client that hangs up
//! early costs little; and it is only a hint: whatever is wrong with it, the block is read again as if there had been none.
//!
//! Blocks of a large blob that are in memory are handed out in place, without a copy, to whoever only sends them
//! ([`BlobReader::only_send`], [`crate::mapped`]).
//!
//! Most large blobs are pulled once, and would push out of the page cache what is pulled often; and past it a disk is read at its full
//! speed. So the cache is filled by a reader that is not alone, and by the second one that finds the blob missing. When what it
//! filled did not last until the next one came, the fourth fills again, then the eighth ([`Pulls`]).

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;

use crate::completion::Completion;
use crate::digest::Digest;
use crate::disk::Access;
use crate::engine::Engine;
use crate::error::ReadError;
use crate::format::BLOCK_BYTES;
use crate::format::checkpoint::Location;
use crate::mapped::Pair;
use crate::recent;
use crate::repository::RepositoryKey;
use crate::solo::SealedSolo;
use crate::source::{Block, Direct, Source, Wanted};
use crate::sync::{Arc, AtomicU32, Ordering};

/// Blocks of the longest run: 1 MiB. Longer ones gained nothing where this was measured.
const RUN_BLOCKS_MAX: usize = 4;

/// Runs of a reader that may be under way: while one is checked, the disk works on the others. With the one in hand a reader holds
/// 5 MiB.
const RUNS_AHEAD_MAX: usize = 4;

/// Blocks that a reader finds in memory one after the other, until that says something of the whole blob.
const FOUND_BLOCKS: usize = 8;

/// An open blob. It stays readable when the blob is deleted meanwhile.
pub struct BlobReader {
    engine: Arc<Engine>,
    repository: RepositoryKey,
    digest: Digest,
    len_bytes: u64,
    source: Source,
    /// Blocks that were read and not handed out to their ends: parallel and small ranges hit the first one again.
    held: VecDeque<Bytes>,
    /// Number of the first of them, or of the block behind what was handed out.
    next: u64,
    /// Blocks handed out in order.
    in_order: usize,
    /// Runs that are being read, one behind the other.
    ahead: VecDeque<Ahead>,
    way: Option<Way>,
    is_only_sent: bool,
    /// Blocks that were found in memory since one was missing.
    found: usize,
}

/// What is known of who reads a file.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    /// Readers that found something missing in memory, since one found all of it.
    misses: AtomicU32,
    /// Those of them that are there.
    active: AtomicU32,
}

/// A run that is being read.
struct Ahead {
    first: u64,
    count: usize,
    blocks: Completion<Vec<Bytes>>,
}

/// How a reader goes on through a blob of which something is missing in memory.
enum Way {
    Cached,
    Solo(Turn),
}

/// A reader among those of [`Pulls::active`].
struct Turn {
    solo: Arc<SealedSolo>,
    /// The way past the page cache; taken for as long as nobody else is there.
    direct: Option<Arc<Direct>>,
}

impl Turn {
    fn new(engine: &Engine, solo: &Arc<SealedSolo>) -> Turn {
        let misses = solo.pulls.misses.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let others = solo.pulls.active.fetch_add(1, Ordering::Relaxed);
        let fills = others > 0 || (misses > 1 && misses.is_power_of_two());
        let direct = (!fills).then(|| Arc::new(Direct::new(Arc::clone(&engine.disk), solo.segment)));
        Turn { solo: Arc::clone(solo), direct }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.solo.pulls.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl BlobReader {
    pub(crate) fn open(
        engine: Arc<Engine>,
        repository: RepositoryKey,
        digest: Digest,
    ) -> Result<BlobReader, ReadError> {
        let (len_bytes, source) = locate(&engine, repository, &digest)?;
        let (held, ahead) = (VecDeque::new(), VecDeque::new());
        let (next, in_order, way, found) = (0, 0, None, 0);
        let is_only_sent = false;
        Ok(BlobReader {
            engine,
            repository,
            digest,
            len_bytes,
            source,
            held,
            next,
            in_order,
            ahead,
            way,
            is_only_sent,
            found,
        })
    }

    /// Says that what is read from now on is handed to a socket, and not looked at on the way.
    ///
    /// Then it may be memory of a mapped file. It was checked like all other; should the system drop its page before it is sent, and
    /// the disk fail to give it again, then the socket's call fails, where a look at it might find zeros.
    pub fn only_send(&mut self) {
        self.is_only_sent = true;
    }

    /// Length of the blob in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Verified bytes from `from_bytes` on: at least one, at most to `to_bytes` (exclusive) and to the end of the 256 KiB block.
    /// Nothing behind the block of the last byte before `to_bytes` is read.
    ///
    /// # Errors
    /// `Range` when `from_bytes < to_bytes <= len_bytes()` does not hold; `Corrupt`, `Io`.
    pub async fn read(&mut self, from_bytes: u64, to_bytes: u64) -> Result<Bytes, ReadError> {
        if from_bytes >= to_bytes || to_bytes > self.len_bytes {
            return Err(ReadError::Range { from_bytes, to_bytes, len_bytes: self.len_bytes });
        }
        let number = from_bytes / BLOCK_BYTES as u64;
        self.go_to(number);
        if self.held.is_empty() {
            self.fetch(number).await?;
        }
        self.read_ahead(to_bytes.div_ceil(BLOCK_BYTES as u64));
        let start = number * BLOCK_BYTES as u64;
        let from = usize::try_from(from_bytes - start).unwrap_or(usize::MAX);
        let Some(block) = self.held.front() else {
            return Err(ReadError::Range { from_bytes, to_bytes, len_bytes: self.len_bytes });
        };
        let to = usize::try_from(to_bytes - start).unwrap_or(usize::MAX).min(block.len());
        let bytes = block.slice(from..to);
        if to == block.len() {
            // Not kept: its memory is free as soon as the caller has sent it.
            self.held.pop_front();
            self.next = number + 1;
            self.in_order = self.in_order.saturating_add(1);
        }
        Ok(bytes)
    }

    /// Drops what is held for other blocks than this one.
    fn go_to(&mut self, number: u64) {
        if number == self.next {
            return;
        }
        (self.held, self.next, self.in_order, self.found) = (VecDeque::new(), number, 0, 0);
    }

    /// Has the blocks from `number` on: those that were read ahead, else this one alone, from memory if it is there.
    async fn fetch(&mut self, number: u64) -> Result<(), ReadError> {
        if let Some(ahead) = self.ahead.front_mut().filter(|ahead| ahead.first == number) {
            let blocks = (&mut ahead.blocks).await.unwrap_or_default();
            let is_whole = blocks.len() == ahead.count;
            self.held.extend(blocks);
            self.ahead.pop_front();
            if !is_whole {
                self.ahead.clear();
                // What failed past the cache may be had through it.
                self.way = Some(Way::Cached);
            }
        } else {
            self.ahead.clear();
            let block = self.mapped_block(number);
            self.held.extend(block);
        }
        if self.held.is_empty() {
            self.found = 0;
            let block = self.verified_block(number).await?;
            self.held.push_back(block);
        }
        Ok(())
    }

    /// Begins to read runs behind what is held, up to the block `end`.
    fn read_ahead(&mut self, end: u64) {
        // Without threads there is nobody to do it meanwhile.
        if self.engine.is_inline() {
            return;
        }
        // What is in memory needs nobody.
        if self.found > 0 {
            return;
        }
        // What a client that hangs up now was given, and what was read in vain.
        let given = self.in_order.saturating_add(1);
        let mut in_vain = self.held.len().saturating_sub(1);
        in_vain += self.ahead.iter().map(|ahead| ahead.count).sum::<usize>();
        let mut first = self.next + 1 + in_vain as u64;
        while self.ahead.len() < RUNS_AHEAD_MAX && in_vain < given && first < end {
            let left = usize::try_from(end - first).unwrap_or(usize::MAX);
            let Some(extent) = self.source.extent(&self.engine.key, self.len_bytes) else { return };
            if self.pair().is_some_and(|pair| extent.is_resident(&pair, first)) {
                return;
            }
            let wanted = RUN_BLOCKS_MAX.min(given - in_vain).min(left);
            let loans = self.engine.lending.lend_ahead(wanted, self.ahead.len());
            let count = loans.len();
            if count == 0 {
                return;
            }
            let direct = self.direct();
            let blocks = self.engine.pool.run(move || extent.read_run(first, loans, direct.as_deref()));
            self.ahead.push_back(Ahead { first, count, blocks });
            first += count as u64;
            in_vain += count;
        }
    }

    /// The way past the page cache, when the next run goes there.
    fn direct(&mut self) -> Option<Arc<Direct>> {
        let way = self.way.get_or_insert_with(|| match &self.source {
            Source::Solo { open: Some(solo), .. } => Way::Solo(Turn::new(&self.engine, solo)),
            Source::Solo { .. } | Source::Inline { .. } => Way::Cached,
        });
        match way {
            Way::Solo(turn) if turn.solo.pulls.active.load(Ordering::Relaxed) == 1 => turn.direct.clone(),
            Way::Solo(_) | Way::Cached => None,
        }
    }

    /// The mapping of the blob's file, for a reader that may have it.
    fn pair(&self) -> Option<Arc<Pair>> {
        match &self.source {
            Source::Solo { open: Some(solo), .. } if self.is_only_sent => solo.mapped.pair(&solo.file),
            Source::Solo { .. } | Source::Inline { .. } => None,
        }
    }

    /// The block, when it is in memory and this reader may have it in place. Waits for nothing.
    fn mapped_block(&mut self, number: u64) -> Option<Bytes> {
        if let Source::Solo { location: Location::Solo { segment, .. }, open: open @ None } = &mut self.source
        {
            *open = self.engine.solos.cached(*segment);
        }
        let (pair, extent) = (self.pair()?, self.source.extent(&self.engine.key, self.len_bytes)?);
        if !extent.is_resident(&pair, number) {
            return None;
        }
        let block = extent.mapped_block(&pair, number);
        if let Source::Solo { open: Some(solo), .. } = &self.source {
            self.found = self.found.saturating_add(1);
            let is_all = self.found == FOUND_BLOCKS || (number + 1) * BLOCK_BYTES as u64 >= self.len_bytes;
            if block.is_none() {
                solo.mapped.give_up();
            } else if is_all && self.way.is_none() {
                solo.pulls.misses.store(0, Ordering::Relaxed);
            }
        }
        block
    }

    /// The block, when it is a whole small payload and was read lately.
    fn recent_block(&mut self, number: u64) -> Option<Bytes> {
        let Source::Inline { place, header, .. } = &mut self.source else { return None };
        if number != 0 || self.len_bytes > recent::PAYLOAD_BYTES_MAX as u64 {
            return None;
        }
        let (payload, found) = self.engine.recent.find(&self.engine.key, &self.digest, *place)?;
        *header = Some(found);
        Some(payload)
    }

    async fn verified_block(&mut self, number: u64) -> Result<Bytes, ReadError> {
        if let Some(bytes) = self.recent_block(number) {
            return Ok(bytes);
        }
        let mut relocated = false;
        loop {
            let mut access = Access::Cached;
            let mut outcome = self.read_block(number, access).await;
            if matches!(outcome, Ok(Block::Damaged { .. })) {
                access = Access::Direct;
                outcome = self.read_block(number, access).await;
            }
            return match outcome {
                Ok(Block::Intact(bytes, source)) => {
                    if let Source::Inline { place, header: Some(header), .. } = &source
                        && bytes.len() == header.len_bytes
                    {
                        self.engine.recent.keep(*place, header, &bytes);
                    }
                    // A handle past the page cache takes aligned reads alone: it is good for this block and no other.
                    if access == Access::Cached {
                        self.source = source;
                    }
                    Ok(bytes)
                }
                Ok(Block::Damaged { segment, offset_bytes }) => {
                    drop(self.engine.set_aside(&self.digest, self.source.location()));
                    Err(ReadError::Corrupt { digest: self.digest, segment, offset_bytes })
                }
                // The file was replaced or removed between looking it up and opening it. Look once more.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !relocated => {
                    relocated = true;
                    let (_, source) = locate(&self.engine, self.repository, &self.digest)?;
                    self.source = source;
                    // It led to the file of before.
                    self.way = None;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    drop(self.engine.set_aside(&self.digest, self.source.location()));
                    let segment = self.source.segment();
                    Err(ReadError::Corrupt { digest: self.digest, segment, offset_bytes: 0 })
                }
                Err(error) => Err(ReadError::Io { digest: self.digest, error }),
            };
        }
    }

    async fn read_block(&self, number: u64, access: Access) -> io::Result<Block> {
        let engine = Arc::clone(&self.engine);
        let source = self.source.clone();
        let wanted = Wanted { digest: self.digest, len_bytes: self.len_bytes, number };
        let segment = self.source.segment();
        let read = self.engine.pool.run(move || source.read_block(&engine, &wanted, access));
        match read.await.unwrap_or_else(|| Err(io::Error::other("the store is closing"))) {
            // The file lost its end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Block::Damaged { segment, offset_bytes: number * BLOCK_BYTES as u64 })
            }
            outcome => outcome,
        }
    }
}

fn locate(engine: &Engine, repository: RepositoryKey, digest: &Digest) -> Result<(u64, Source), ReadError> {
    let shard = engine.locator.read(digest);
    let found = shard.linked(repository, digest);
    let found =
        found.map_err(|failed| ReadError::Io { digest: *digest, error: engine.lookup_failed(failed) })?;
    let blob = found.ok_or(ReadError::Unknown)?;
    let location = blob.location;
    let source = match location {
        Location::Inline(place) => {
            let file = engine.segments.file(place.segment).ok_or(ReadError::Unknown)?;
            Source::Inline { file, place, header: None }
        }
        Location::Solo { .. } => Source::Solo { location, open: None },
    };
    Ok((blob.len_bytes, source))
}
