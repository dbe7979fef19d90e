//! Writing and loading checkpoints.
//!
//! What must stay true: a checkpoint is taken from a log position that everything applied before it is part of; the superblock
//! names it only when it and the partitions that it names are durable whole; one that does not validate, or misses a partition, is as
//! good as none.

use std::collections::BTreeSet;
use std::io;

use crate::disk::{Access, Disk, File};
use crate::engine::Engine;
use crate::error::Refusal;
use crate::format::checkpoint::{
    CheckpointHeader, ENTRY_LINKS_MAX, Entry, FRAME_BYTES_SOFT, FRAME_HEADER_BYTES, HEADER_BYTES,
    RawFrameHeader, encode_frame, file_name, number_of,
};
use crate::format::partition::PartitionName;
use crate::format::record::{SESSION_CRCS_MAX, SessionRecord};
use crate::format::seal::Key;
use crate::format::{INDEX_FOLDER, SegmentId};
use crate::health::Failed;
use crate::locator::{Blob, Link, SHARDS, Tally};
use crate::merge::{Held, Merges, Threshold};
use crate::partition::Partition;
use crate::replay::Appliers;
use crate::segment::table::Live;
use crate::session::Logged;
use crate::sync::{Arc, Ordering, lock};

#[cfg(test)]
mod tests;

struct Writer<'a> {
    file: Arc<dyn File>,
    key: &'a Key,
    header: CheckpointHeader,
    body: Vec<u8>,
    body_entries: u32,
    offset_bytes: u64,
}

impl Writer<'_> {
    fn put(&mut self, entry: &Entry) -> io::Result<()> {
        entry.encode(&mut self.body);
        self.body_entries += 1;
        if self.body.len() >= FRAME_BYTES_SOFT { self.close_frame() } else { Ok(()) }
    }

    fn close_frame(&mut self) -> io::Result<()> {
        if self.body.is_empty() {
            return Ok(());
        }
        let CheckpointHeader { number, epoch, frames, .. } = self.header;
        let frame =
            encode_frame(self.key, number, epoch, self.offset_bytes, frames, self.body_entries, &self.body);
        self.file.write_at(&frame, self.offset_bytes)?;
        self.offset_bytes += frame.len() as u64;
        self.header.frames += 1;
        self.header.entries += u64::from(self.body_entries);
        self.body.clear();
        self.body_entries = 0;
        Ok(())
    }
}

impl Engine {
    /// Writes a checkpoint while commits go on. Blocks on the disk.
    ///
    /// Deltas of more than `threshold` become part of new partitions.
    pub(crate) fn write_checkpoint(&self, threshold: Threshold) -> Result<(), Refusal> {
        if let Some(refusal) = self.health.refusal() {
            return Err(refusal);
        }
        let _turn = lock(&self.checkpointing);
        let ((replay_segment, replay_offset_bytes), next_lsn) = {
            let writer = lock(&self.log.writer);
            // Records are applied under this lock. One that was not, because the index failed, must not lie before the position.
            if let Some(refusal) = self.health.refusal() {
                return Err(refusal);
            }
            (writer.position(), writer.next_lsn)
        };
        if replay_segment == SegmentId(0) {
            return Ok(());
        }
        let number = self.superblocks.current().checkpoint + 1;
        let name = file_name(number);
        let header = CheckpointHeader {
            number,
            epoch: self.epoch,
            frames: 0,
            next_lsn,
            replay_segment,
            replay_offset_bytes,
            entries: 0,
        };
        let mut merges = Merges::default();
        if let Err(failed) = self.fill_checkpoint(&name, header, threshold, &mut merges) {
            drop(self.disk.remove(&name));
            self.give_up_merges(merges);
            // Nothing depends on it: the log still says everything.
            return Err(self.health.failed(&name, &failed));
        }
        let named = self.disk.sync_dir(INDEX_FOLDER).map_err(Failed::flush).and_then(|()| {
            let writes = if self.checkpoint_was_lost.load(Ordering::Acquire) { 2 } else { 1 };
            (0..writes).try_for_each(|_| {
                self.superblocks.update(&*self.disk, |superblock| superblock.checkpoint = number)
            })
        });
        if let Err(failed) = named {
            // The files stay: a superblock that could not be written may name them all the same.
            self.keep_old_partitions(merges);
            return Err(self.health.failed(&name, &failed));
        }
        self.checkpoint_was_lost.store(false, Ordering::Release);
        self.end_merges(merges);
        self.replay_from.store(replay_segment.0, Ordering::Release);
        // The one before stays: the other superblock names it.
        remove_checkpoints(&*self.disk, |other| other + 1 < number);
        self.remove_partitions();
        Ok(())
    }

    fn fill_checkpoint(
        &self,
        name: &str,
        header: CheckpointHeader,
        threshold: Threshold,
        merges: &mut Merges,
    ) -> Result<(), Failed> {
        // Left over from an attempt that was interrupted.
        drop(self.disk.remove(name));
        let file = self.disk.create(name, HEADER_BYTES as u64, Access::Cached).map_err(Failed::write)?;
        self.write_entries(&file, header, threshold, merges)?;
        file.sync().map_err(Failed::flush)
    }

    /// Writes frames and header, without flushing them.
    fn write_entries(
        &self,
        file: &Arc<dyn File>,
        header: CheckpointHeader,
        threshold: Threshold,
        merges: &mut Merges,
    ) -> Result<(), Failed> {
        let mut writer = Writer {
            file: Arc::clone(file),
            key: &self.key,
            header,
            body: Vec::with_capacity(FRAME_BYTES_SOFT),
            body_entries: 0,
            offset_bytes: HEADER_BYTES as u64,
        };
        for (segment, held) in self.segments.snapshot() {
            let (epoch, end_bytes, tombstones) = (held.epoch, held.end_bytes, held.tombstones);
            writer.put(&Entry::Segment { segment, epoch, end_bytes, tombstones }).map_err(Failed::write)?;
        }
        for segment in self.segments.dropped() {
            writer.put(&Entry::Dropped { segment }).map_err(Failed::write)?;
        }
        for index in 0..SHARDS {
            let held = self.gather_shard(index, threshold, merges)?;
            for entry in shard_entries(index, &held) {
                writer.put(&entry).map_err(Failed::write)?;
            }
        }
        for logged in self.sessions.logged() {
            for entry in session_entries(&logged) {
                writer.put(&entry).map_err(Failed::write)?;
            }
        }
        writer.close_frame().map_err(Failed::write)?;
        file.write_at(&writer.header.encode(&self.key), 0).map_err(Failed::write)
    }

    /// Loads the checkpoint of that number into the locator; `None` when it or a partition that it names is missing or damaged, and
    /// then what was loaded of it must be forgotten.
    pub(crate) fn load_checkpoint(&self, number: u64) -> io::Result<Option<CheckpointHeader>> {
        let file = match self.disk.open(&file_name(number), Access::Cached) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match self.with_appliers(|appliers| self.load_frames(&*file, number, appliers)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            outcome => outcome,
        }
    }

    fn load_frames(
        &self,
        file: &dyn File,
        number: u64,
        appliers: &mut Appliers<'_>,
    ) -> io::Result<Option<CheckpointHeader>> {
        let Some(mut frames) = Frames::begin(file, &self.key, number)? else { return Ok(None) };
        let (mut loaded, mut shards, mut last) = (0, 0, None);
        let mut partitions = BTreeSet::new();
        while let Some(entries) = frames.next_frame()? {
            let Some(entries) = entries else { return Ok(None) };
            loaded += entries.len() as u64;
            let mut changed = Vec::with_capacity(entries.len());
            for entry in entries {
                match entry {
                    Entry::Blob { .. } | Entry::Links { .. } | Entry::Gone { .. } => changed.push(entry),
                    Entry::Shard { shard, partition, blobs, bytes, links, garbage } => {
                        let opened = match partition {
                            Some((number, seal)) => {
                                let name = PartitionName { number, shard };
                                let opened = Partition::open(&*self.disk, &self.key, name, Some(seal))?;
                                let Some(partition) = opened else { return Ok(None) };
                                partitions.insert(name);
                                Some(Arc::new(partition))
                            }
                            None => None,
                        };
                        shards += 1;
                        last = Some(shard);
                        let tally = Tally { blobs, bytes, links, garbage, ..Tally::default() };
                        self.locator.shard_mut(usize::from(shard)).load_partition(opened, tally);
                    }
                    Entry::Live { segments } => {
                        let Some(shard) = last else { continue };
                        let mut shard = self.locator.shard_mut(usize::from(shard));
                        for (segment, records, bytes) in segments {
                            let signed = |figure: u64| i64::try_from(figure).unwrap_or(i64::MAX);
                            let live = Live { records: signed(records), bytes: signed(bytes) };
                            shard.tally.live.insert(segment, live);
                        }
                    }
                    Entry::Segment { segment, end_bytes, tombstones, .. } => {
                        self.segments.advance(segment, end_bytes);
                        self.segments.set_tombstones(segment, tombstones);
                    }
                    Entry::Dropped { segment } => self.segments.mark_dropped(segment),
                    Entry::Session { record_segment, record_bytes, session } => {
                        // What ended it before the checkpoint, it would not have outlived; what comes behind ends it.
                        let lsn = frames.header.next_lsn.saturating_sub(1);
                        let taken = self.sessions.log(&session, record_segment, record_bytes, lsn);
                        self.segments.add_live(record_segment, taken.more);
                        for (held, live) in taken.replaced {
                            self.segments.remove_live(held, live);
                        }
                    }
                }
            }
            appliers.load(changed);
        }
        *lock(&self.partitions_before) = partitions;
        // Without its sums a shard would seem to have nothing that lives in any log segment.
        Ok((loaded == frames.header.entries && shards == SHARDS).then_some(frames.header))
    }

    /// Takes an entry up that says what changed of a blob since its partition was written.
    pub(crate) fn load_changed(&self, entry: Entry) {
        match entry {
            Entry::Gone { digest } => self.locator.write(&digest).load(digest, None),
            Entry::Blob {
                digest,
                len_bytes,
                record_segment,
                record_lsn,
                location,
                quarantined,
                unlinked_since_ms,
            } => {
                let blob = Blob {
                    len_bytes,
                    record_lsn,
                    location: Some(location),
                    quarantined,
                    unlinked_since_ms,
                    ..Blob::new(record_segment)
                };
                let mut shard = self.locator.write(&digest);
                if quarantined {
                    self.quarantine.enter(&digest);
                }
                shard.load(digest, Some(blob));
            }
            Entry::Links { digest, links } => {
                let mut shard = self.locator.write(&digest);
                // It follows its blob.
                let Some(blob) = shard.edit_marks(&digest) else { return };
                for (repository, generation, segment) in links {
                    blob.insert_link(Link { repository, generation, segment });
                }
            }
            Entry::Segment { .. }
            | Entry::Dropped { .. }
            | Entry::Shard { .. }
            | Entry::Live { .. }
            | Entry::Session { .. } => {}
        }
    }
}

/// What a checkpoint has of a shard.
fn shard_entries(index: usize, held: &Held) -> Vec<Entry> {
    let Tally { blobs, bytes, links, garbage, live } = &held.snapshot.tally;
    let partition = held.partition.as_ref().map(|partition| (partition.header.name.number, partition.seal));
    let shard = u8::try_from(index).unwrap_or(u8::MAX);
    let (blobs, bytes, links, garbage) = (*blobs, *bytes, *links, *garbage);
    let mut entries = vec![Entry::Shard { shard, partition, blobs, bytes, links, garbage }];
    let unsigned = |figure: i64| u64::try_from(figure).unwrap_or(0);
    let live: Vec<(SegmentId, u64, u64)> =
        live.iter().map(|(segment, live)| (*segment, unsigned(live.records), unsigned(live.bytes))).collect();
    entries.extend(live.chunks(ENTRY_LINKS_MAX).map(|live| Entry::Live { segments: live.to_vec() }));
    // A partition that was made for this checkpoint has them.
    for (digest, blob) in held.snapshot.delta.iter().filter(|_| !held.is_merged) {
        match blob {
            Some(blob) => entries.extend(blob_entries(*digest, blob)),
            None => entries.push(Entry::Gone { digest: *digest }),
        }
    }
    entries
}

fn blob_entries(digest: crate::digest::Digest, blob: &Blob) -> Vec<Entry> {
    let Some(location) = blob.location else { return Vec::new() };
    let mut entries = vec![Entry::Blob {
        digest,
        len_bytes: blob.len_bytes,
        record_segment: blob.record_segment,
        record_lsn: blob.record_lsn,
        location,
        quarantined: blob.quarantined,
        unlinked_since_ms: blob.unlinked_since_ms,
    }];
    for links in blob.links.chunks(ENTRY_LINKS_MAX) {
        let links = links.iter().map(|link| (link.repository, link.generation, link.segment)).collect();
        entries.push(Entry::Links { digest, links });
    }
    entries
}

/// One entry per run of checksums, and at least one per log segment with a record of the session.
fn session_entries(logged: &Logged) -> Vec<Entry> {
    let crcs = &logged.record.crcs;
    let runs = crcs.len().div_ceil(SESSION_CRCS_MAX).max(logged.segments.len()).max(1);
    (0..runs)
        .filter_map(|run| {
            let from = (run * SESSION_CRCS_MAX).min(crcs.len());
            let to = (from + SESSION_CRCS_MAX).min(crcs.len());
            let held = logged.segments.get(run);
            let (record_segment, _) = *held.or(logged.segments.last())?;
            let record_bytes = held.map_or(0, |(_, live)| u64::try_from(live.bytes).unwrap_or(0));
            let session = SessionRecord {
                first_block: u32::try_from(from).unwrap_or(u32::MAX),
                crcs: crcs[from..to].to_vec(),
                ..logged.record.clone()
            };
            Some(Entry::Session { record_segment, record_bytes, session })
        })
        .collect()
}

/// The frames of a checkpoint, one after the other.
struct Frames<'a> {
    file: &'a dyn File,
    key: &'a Key,
    header: CheckpointHeader,
    offset_bytes: u64,
    index: u32,
}

impl<'a> Frames<'a> {
    /// Begins at the first; `None` when the header is not valid.
    fn begin(file: &'a dyn File, key: &'a Key, number: u64) -> io::Result<Option<Frames<'a>>> {
        let mut bytes = vec![0; HEADER_BYTES];
        file.read_at(&mut bytes, 0)?;
        let Some(header) = CheckpointHeader::decode(&bytes, number, key) else { return Ok(None) };
        Ok(Some(Frames { file, key, header, offset_bytes: HEADER_BYTES as u64, index: 0 }))
    }

    /// What the next one has: `None` behind the last, `Some(None)` when it is damaged.
    #[expect(clippy::option_option, reason = "the end and damage are two things")]
    fn next_frame(&mut self) -> io::Result<Option<Option<Vec<Entry>>>> {
        if self.index >= self.header.frames {
            return Ok(None);
        }
        let (offset, index) = (self.offset_bytes, self.index);
        let mut head = [0; FRAME_HEADER_BYTES];
        self.file.read_at(&mut head, offset)?;
        let Some(raw) = RawFrameHeader::decode(&head) else { return Ok(Some(None)) };
        let mut body = vec![0; raw.body_len];
        self.file.read_at(&mut body, offset + FRAME_HEADER_BYTES as u64)?;
        self.offset_bytes += (FRAME_HEADER_BYTES + raw.body_len) as u64;
        self.index += 1;
        Ok(Some(raw.validate(&head, &body, self.key, &self.header, offset, index)))
    }
}

/// Removes checkpoints that nothing names. One that stays does no harm.
pub(crate) fn remove_checkpoints(disk: &dyn Disk, is_outdated: impl Fn(u64) -> bool) {
    for name in disk.list(INDEX_FOLDER).unwrap_or_default() {
        if let Some(number) = number_of(&name)
            && is_outdated(number)
        {
            drop(disk.remove(&file_name(number)));
        }
    }
}
