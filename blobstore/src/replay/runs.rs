//! Records of a long replay, sorted by shard into a file that has no name.
//!
//! What must stay true: what is read back is what was put, in its order, or an error; nothing is left when the process ends.

use std::io;

use crate::disk::{Access, Disk, File};
use crate::format::partition::SHARDS;
use crate::format::record::Record;
use crate::format::seal::Place;
use crate::format::{SCRATCH_NAME, SegmentId};
use crate::sync::{Arc, AtomicU64, Ordering};

/// What of a shard's records is gathered before it is written, in bytes: 4 MiB for all shards.
pub(crate) const BLOCK_BYTES: usize = 64 * 1024;
/// The same for tests that ask for small deltas.
pub(crate) const BLOCK_BYTES_SMALL: usize = 100;

/// In front of a record: whether it stands in the same batch as the one before, or its batch comes first.
const SAME_BATCH: u8 = 0;
const NEXT_BATCH: u8 = 1;
const BATCH_BYTES: usize = 28;

/// The file.
#[derive(Debug)]
pub(crate) struct Scratch {
    file: Arc<dyn File>,
    end_bytes: AtomicU64,
}

impl Scratch {
    /// Makes it. Its name is removed at once, so that a crash leaves nothing but, at worst, an empty file of that name, which the next
    /// opening removes.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub(crate) fn create(disk: &dyn Disk) -> io::Result<Scratch> {
        drop(disk.remove(SCRATCH_NAME));
        let file = disk.create(SCRATCH_NAME, 0, Access::Cached)?;
        disk.remove(SCRATCH_NAME)?;
        Ok(Scratch { file, end_bytes: AtomicU64::new(0) })
    }
}

/// A block of a run. It is not on the disk alone that its checksum must hold: what was read wrong would become the index.
#[derive(Debug)]
struct Block {
    offset_bytes: u64,
    len: usize,
    crc: u32,
}

#[derive(Debug, Default)]
struct Run {
    written: Vec<Block>,
    gathered: Vec<u8>,
    /// The batch of the last record.
    batch: Option<(Place, u64)>,
}

/// The runs of a thread's shards.
#[derive(Debug)]
pub(crate) struct Runs {
    scratch: Arc<Scratch>,
    block_bytes: usize,
    runs: Vec<Run>,
}

impl Runs {
    /// Runs without records, of blocks of that length.
    pub(crate) fn new(scratch: Arc<Scratch>, block_bytes: usize) -> Runs {
        Runs { scratch, block_bytes, runs: (0..SHARDS).map(|_| Run::default()).collect() }
    }

    /// Puts a record behind those of its shard. `time_ms` is that of its batch, which lies at `place`.
    ///
    /// # Errors
    /// Whatever the disk says; then the runs are of no use any more.
    pub(crate) fn put(
        &mut self,
        shard: usize,
        record: &Record,
        place: Place,
        time_ms: u64,
    ) -> io::Result<()> {
        let run = &mut self.runs[shard % SHARDS];
        if run.batch == Some((place, time_ms)) {
            run.gathered.push(SAME_BATCH);
        } else {
            run.batch = Some((place, time_ms));
            run.gathered.push(NEXT_BATCH);
            run.gathered.extend_from_slice(&place.segment.0.to_le_bytes());
            run.gathered.extend_from_slice(&place.epoch.to_le_bytes());
            run.gathered.extend_from_slice(&place.offset_bytes.to_le_bytes());
            run.gathered.extend_from_slice(&time_ms.to_le_bytes());
        }
        record.encode(&mut run.gathered);
        if run.gathered.len() >= self.block_bytes { self.write_block(shard) } else { Ok(()) }
    }

    fn write_block(&mut self, shard: usize) -> io::Result<()> {
        let run = &mut self.runs[shard % SHARDS];
        let len = run.gathered.len();
        let offset_bytes = self.scratch.end_bytes.fetch_add(len as u64, Ordering::Relaxed);
        self.scratch.file.write_at(&run.gathered, offset_bytes)?;
        run.written.push(Block { offset_bytes, len, crc: crc32fast::hash(&run.gathered) });
        run.gathered.clear();
        Ok(())
    }

    /// Hands the records of a shard to `take`, in their order, and forgets them. `rest` is called between blocks.
    ///
    /// # Errors
    /// Whatever the disk says, and `InvalidData` when it gives back what was not written.
    pub(crate) fn drain(
        &mut self,
        shard: usize,
        mut take: impl FnMut(&Record, Place, u64),
        mut rest: impl FnMut(usize),
    ) -> io::Result<()> {
        let run = std::mem::take(&mut self.runs[shard % SHARDS]);
        let mut batch = None;
        let mut bytes = Vec::new();
        for block in &run.written {
            bytes.resize(block.len, 0);
            self.scratch.file.read_at(&mut bytes, block.offset_bytes)?;
            if crc32fast::hash(&bytes) != block.crc {
                return Err(garbled());
            }
            rest(decode(&bytes, &mut batch, &mut take).ok_or_else(garbled)?);
        }
        rest(decode(&run.gathered, &mut batch, &mut take).ok_or_else(garbled)?);
        Ok(())
    }
}

/// Hands out the records of a block, and says how many there were.
fn decode(
    mut bytes: &[u8],
    batch: &mut Option<(Place, u64)>,
    take: &mut impl FnMut(&Record, Place, u64),
) -> Option<usize> {
    let mut records = 0;
    while let Some((kind, rest)) = bytes.split_first() {
        bytes = rest;
        if *kind == NEXT_BATCH {
            let (head, rest) = bytes.split_at_checked(BATCH_BYTES)?;
            let number = |at: usize| Some(u64::from_le_bytes(*head.get(at..)?.first_chunk()?));
            let place = Place {
                segment: SegmentId(number(0)?),
                epoch: u32::from_le_bytes(*head.get(8..)?.first_chunk()?),
                offset_bytes: number(12)?,
            };
            *batch = Some((place, number(20)?));
            bytes = rest;
        }
        let (record, len) = Record::decode(bytes)?;
        bytes = bytes.get(len..)?;
        let (place, time_ms) = (*batch)?;
        take(&record, place, time_ms);
        records += 1;
    }
    Some(records)
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the scratch file gives back what was not written")
}
