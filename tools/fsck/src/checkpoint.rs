//! Checkpoints, read without opening the store.

use std::io;

use taffrail_blobstore::disk::{Access, Disk};
use taffrail_blobstore::format::checkpoint::{
    CheckpointHeader, Entry, FRAME_HEADER_BYTES, HEADER_BYTES, RawFrameHeader, file_name, is_outdated,
};
use taffrail_blobstore::format::seal::Key;

use crate::window::Window;

/// What a checkpoint turned out to be.
pub(crate) enum Checkpoint {
    Absent,
    /// Of an earlier format. An opening reads the log instead, and writes a new one in time.
    Outdated,
    Intact(CheckpointHeader, Vec<Entry>),
    /// Not what was written, from this offset on.
    Damaged {
        offset_bytes: u64,
    },
}

/// Reads and validates the checkpoint of that number.
pub(crate) fn read(disk: &dyn Disk, key: &Key, number: u64) -> io::Result<Checkpoint> {
    let Some(window) = Window::open(disk, &file_name(number), Access::Cached)? else {
        return Ok(Checkpoint::Absent);
    };
    let head = window.read(0, HEADER_BYTES)?;
    if head.as_deref().is_some_and(is_outdated) {
        return Ok(Checkpoint::Outdated);
    }
    let Some(header) = head.and_then(|bytes| CheckpointHeader::decode(&bytes, number, key)) else {
        return Ok(Checkpoint::Damaged { offset_bytes: 0 });
    };
    let mut entries = Vec::new();
    let mut offset_bytes = HEADER_BYTES as u64;
    for index in 0..header.frames {
        let Some((found, len)) = read_frame(&window, key, &header, offset_bytes, index)? else {
            return Ok(Checkpoint::Damaged { offset_bytes });
        };
        entries.extend(found);
        offset_bytes += len as u64;
    }
    if entries.len() as u64 == header.entries {
        Ok(Checkpoint::Intact(header, entries))
    } else {
        Ok(Checkpoint::Damaged { offset_bytes: 0 })
    }
}

fn read_frame(
    window: &Window,
    key: &Key,
    header: &CheckpointHeader,
    offset_bytes: u64,
    index: u32,
) -> io::Result<Option<(Vec<Entry>, usize)>> {
    let Some(head) = window.read(offset_bytes, FRAME_HEADER_BYTES)? else { return Ok(None) };
    let Some(raw) = RawFrameHeader::decode(&head) else { return Ok(None) };
    let Some(body) = window.read(offset_bytes + FRAME_HEADER_BYTES as u64, raw.body_len)? else {
        return Ok(None);
    };
    let entries = raw.validate(&head, &body, key, header, offset_bytes, index);
    Ok(entries.map(|entries| (entries, FRAME_HEADER_BYTES + raw.body_len)))
}
