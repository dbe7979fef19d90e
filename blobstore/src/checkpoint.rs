//! Writing and loading checkpoints.
//!
//! What must stay true: a checkpoint is taken from a log position that everything applied before it is part of; the superblock
//! names it only when it is durable whole; one that does not validate is as good as none.

use std::io;

use crate::disk::{Access, Disk, File};
use crate::engine::Engine;
use crate::error::Refusal;
use crate::format::checkpoint::{
    CheckpointHeader, ENTRY_LINKS_MAX, Entry, FRAME_BYTES_SOFT, FRAME_HEADER_BYTES, HEADER_BYTES,
    RawFrameHeader, encode_frame, file_name, number_of,
};
use crate::format::record::{SESSION_CRCS_MAX, SessionRecord};
use crate::format::seal::Key;
use crate::format::{INDEX_FOLDER, SegmentId};
use crate::health::Failed;
use crate::locator::{Blob, Change, Link, SHARDS};
use crate::session::Logged;
use crate::sync::{Arc, Ordering, lock};

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
    pub(crate) fn write_checkpoint(&self) -> Result<(), Refusal> {
        if let Some(refusal) = self.health.refusal() {
            return Err(refusal);
        }
        let _turn = lock(&self.checkpointing);
        let ((replay_segment, replay_offset_bytes), next_lsn) = {
            let writer = lock(&self.log.writer);
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
        if let Err(failed) = self.fill_checkpoint(&name, header) {
            drop(self.disk.remove(&name));
            // Nothing depends on it: the log still says everything.
            return Err(self.health.failed(&name, &failed));
        }
        let named =
            self.disk.sync_dir(INDEX_FOLDER).map_err(Failed::flush).and_then(|()| {
                self.superblocks.update(&*self.disk, |superblock| superblock.checkpoint = number)
            });
        // The file stays: a superblock that could not be written may name it all the same.
        named.map_err(|failed| self.health.failed(&name, &failed))?;
        self.replay_from.store(replay_segment.0, Ordering::Release);
        // The one before stays: the other superblock names it.
        remove_checkpoints(&*self.disk, |other| other + 1 < number);
        Ok(())
    }

    fn fill_checkpoint(&self, name: &str, header: CheckpointHeader) -> Result<(), Failed> {
        // Left over from an attempt that was interrupted.
        drop(self.disk.remove(name));
        let file = self.disk.create(name, HEADER_BYTES as u64, Access::Cached).map_err(Failed::write)?;
        self.write_entries(&file, header).map_err(Failed::write)?;
        file.sync().map_err(Failed::flush)
    }

    /// Writes frames and header, without flushing them.
    fn write_entries(&self, file: &Arc<dyn File>, header: CheckpointHeader) -> io::Result<()> {
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
            writer.put(&Entry::Segment { segment, epoch, end_bytes, tombstones })?;
        }
        for segment in self.segments.dropped() {
            writer.put(&Entry::Dropped { segment })?;
        }
        for index in 0..SHARDS {
            // The entries are gathered under the lock and written without it.
            let entries: Vec<Entry> = {
                let shard = self.locator.shard(index);
                shard.blobs.iter().flat_map(|(digest, blob)| blob_entries(*digest, blob)).collect()
            };
            for entry in &entries {
                writer.put(entry)?;
            }
        }
        for logged in self.sessions.logged() {
            for entry in session_entries(&logged) {
                writer.put(&entry)?;
            }
        }
        writer.close_frame()?;
        file.write_at(&writer.header.encode(&self.key), 0)
    }

    /// Loads the checkpoint of that number into the locator; `None` when it is missing or damaged, and then nothing was loaded.
    pub(crate) fn load_checkpoint(&self, number: u64) -> io::Result<Option<CheckpointHeader>> {
        let Some((header, entries)) = read_checkpoint(&*self.disk, &self.key, number)? else {
            return Ok(None);
        };
        for entry in entries {
            self.load_entry(entry);
        }
        Ok(Some(header))
    }

    fn load_entry(&self, entry: Entry) {
        match entry {
            Entry::Segment { segment, end_bytes, tombstones, .. } => {
                self.segments.advance(segment, end_bytes);
                self.segments.set_tombstones(segment, tombstones);
            }
            Entry::Dropped { segment } => self.segments.mark_dropped(segment),
            Entry::Blob { digest, len_bytes, record_segment, location, quarantined, unlinked_since_ms } => {
                let blob = Blob {
                    len_bytes,
                    location: Some(location),
                    quarantined,
                    unlinked_since_ms,
                    ..Blob::new(record_segment)
                };
                self.segments.change_live(record_segment, 1);
                self.locator.count_blob(len_bytes, Change::Added);
                let mut shard = self.locator.write(&digest);
                if quarantined {
                    self.quarantine.enter(&digest);
                }
                shard.blobs.insert(digest, blob);
            }
            Entry::Links { digest, links } => {
                let mut shard = self.locator.write(&digest);
                let Some(blob) = shard.blobs.get_mut(&digest) else { return };
                self.locator.count_links(links.len(), Change::Added);
                for (repository, generation, segment) in links {
                    self.segments.change_live(segment, 1);
                    blob.insert_link(Link { repository, generation, segment });
                }
            }
            Entry::Session { record_segment, session } => {
                if self.sessions.log(&session, record_segment) {
                    self.segments.change_live(record_segment, 1);
                }
            }
        }
    }
}

fn blob_entries(digest: crate::digest::Digest, blob: &Blob) -> Vec<Entry> {
    let Some(location) = blob.location else { return Vec::new() };
    let mut entries = vec![Entry::Blob {
        digest,
        len_bytes: blob.len_bytes,
        record_segment: blob.record_segment,
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
            let record_segment = *logged.segments.get(run).or(logged.segments.last())?;
            let session = SessionRecord {
                first_block: u32::try_from(from).unwrap_or(u32::MAX),
                crcs: crcs[from..to].to_vec(),
                ..logged.record.clone()
            };
            Some(Entry::Session { record_segment, session })
        })
        .collect()
}

/// Reads and validates a whole checkpoint; `None` when it is missing or damaged.
///
/// # Errors
/// Whatever the disk says.
pub(crate) fn read_checkpoint(
    disk: &dyn Disk,
    key: &Key,
    number: u64,
) -> io::Result<Option<(CheckpointHeader, Vec<Entry>)>> {
    let file = match disk.open(&file_name(number), Access::Cached) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match read_frames(&*file, key, number) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        outcome => outcome,
    }
}

fn read_frames(
    file: &dyn File,
    key: &Key,
    number: u64,
) -> io::Result<Option<(CheckpointHeader, Vec<Entry>)>> {
    let mut bytes = vec![0; HEADER_BYTES];
    file.read_at(&mut bytes, 0)?;
    let Some(header) = CheckpointHeader::decode(&bytes, number, key) else { return Ok(None) };
    let mut entries = Vec::new();
    let mut offset = HEADER_BYTES as u64;
    for index in 0..header.frames {
        let mut head = [0; FRAME_HEADER_BYTES];
        file.read_at(&mut head, offset)?;
        let Some(raw) = RawFrameHeader::decode(&head) else { return Ok(None) };
        let mut body = vec![0; raw.body_len];
        file.read_at(&mut body, offset + FRAME_HEADER_BYTES as u64)?;
        let Some(found) = raw.validate(&head, &body, key, &header, offset, index) else { return Ok(None) };
        entries.extend(found);
        offset += (FRAME_HEADER_BYTES + raw.body_len) as u64;
    }
    Ok((entries.len() as u64 == header.entries).then_some((header, entries)))
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
