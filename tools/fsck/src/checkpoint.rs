//! Checkpoints and the partitions that they name, read without opening the store.

use std::collections::HashSet;
use std::io;

use taffrail_blobstore::Digest;
use taffrail_blobstore::disk::{Access, Disk};
use taffrail_blobstore::format::checkpoint::{
    CheckpointHeader, ENTRY_LINKS_MAX, Entry, FRAME_HEADER_BYTES, HEADER_BYTES, RawFrameHeader, file_name,
    is_outdated,
};
use taffrail_blobstore::format::partition::{
    self, PAGE_BYTES, Page, PartitionHeader, PartitionName, StoredBlob, StoredLink, StoredLinks, order,
    prefix_of, shard_of,
};
use taffrail_blobstore::format::seal::{Key, Seal};

use crate::window::Window;

/// What a checkpoint turned out to be.
pub(crate) enum Checkpoint {
    Absent,
    /// Of an earlier format. An opening reads the log instead, and writes a new one in time.
    Outdated,
    /// With the entries of its partitions, in the form of its own.
    Intact(CheckpointHeader, Vec<Entry>),
    /// Not what was written: which file, from which offset on.
    Damaged {
        name: String,
        offset_bytes: u64,
    },
}

/// Where a partition is not what was written.
struct Damaged {
    offset_bytes: u64,
}

/// Reads and validates the checkpoint of that number.
pub(crate) fn read(disk: &dyn Disk, key: &Key, number: u64) -> io::Result<Checkpoint> {
    let name = file_name(number);
    let Some(window) = Window::open(disk, &name, Access::Cached)? else {
        return Ok(Checkpoint::Absent);
    };
    let head = window.read(0, HEADER_BYTES)?;
    if head.as_deref().is_some_and(is_outdated) {
        return Ok(Checkpoint::Outdated);
    }
    let Some(header) = head.and_then(|bytes| CheckpointHeader::decode(&bytes, number, key)) else {
        return Ok(Checkpoint::Damaged { name, offset_bytes: 0 });
    };
    let mut entries = Vec::new();
    let mut offset_bytes = HEADER_BYTES as u64;
    for index in 0..header.frames {
        let Some((found, len)) = read_frame(&window, key, &header, offset_bytes, index)? else {
            return Ok(Checkpoint::Damaged { name, offset_bytes });
        };
        entries.extend(found);
        offset_bytes += len as u64;
    }
    if entries.len() as u64 != header.entries {
        return Ok(Checkpoint::Damaged { name, offset_bytes: 0 });
    }
    add_partitions(disk, key, header, entries)
}

/// Reads the partitions. What the checkpoint has of a blob counts, not what its partition has.
fn add_partitions(
    disk: &dyn Disk,
    key: &Key,
    header: CheckpointHeader,
    mut entries: Vec<Entry>,
) -> io::Result<Checkpoint> {
    let mut changed = HashSet::new();
    let mut partitions = Vec::new();
    for entry in &entries {
        match entry {
            Entry::Blob { digest, .. } | Entry::Gone { digest } => {
                changed.insert(*digest);
            }
            Entry::Shard { shard, partition: Some((number, seal)), .. } => {
                partitions.push((PartitionName { number: *number, shard: *shard }, *seal));
            }
            Entry::Shard { partition: None, .. }
            | Entry::Segment { .. }
            | Entry::Dropped { .. }
            | Entry::Links { .. }
            | Entry::Live { .. }
            | Entry::Session { .. } => {}
        }
    }
    for (name, seal) in partitions {
        if let Err(Damaged { offset_bytes }) = read_partition(disk, key, name, &seal, &changed, &mut entries)?
        {
            return Ok(Checkpoint::Damaged { name: name.file_name(), offset_bytes });
        }
    }
    Ok(Checkpoint::Intact(header, entries))
}

/// Reads every page, and checks that each lookup would find what is in it.
fn read_partition(
    disk: &dyn Disk,
    key: &Key,
    name: PartitionName,
    seal: &Seal,
    changed: &HashSet<Digest>,
    entries: &mut Vec<Entry>,
) -> io::Result<Result<(), Damaged>> {
    let damaged = |offset_bytes| Ok(Err(Damaged { offset_bytes }));
    let Some(window) = Window::open(disk, &name.file_name(), Access::Cached)? else { return damaged(0) };
    let Some(head) = window.read(0, partition::HEADER_BYTES)? else { return damaged(0) };
    let header = PartitionHeader::decode(&head, name, key);
    let Some(header) = header.filter(|_| PartitionHeader::seal_of(&head) == *seal) else { return damaged(0) };
    let len = usize::try_from(header.directory_bytes()).unwrap_or(usize::MAX);
    let directory = window.read(header.directory_offset_bytes(), len)?;
    let directory = directory.and_then(|bytes| header.decode_directory(key, &bytes));
    let Some(directory) = directory else { return damaged(header.directory_offset_bytes()) };
    let (mut blobs, mut last, mut garbage) = (0_u64, None::<Digest>, 0_u64);
    for (index, first) in (0..header.entry_pages).zip(directory) {
        let offset_bytes = header.page_offset_bytes(index);
        let Some(bytes) = window.read(offset_bytes, PAGE_BYTES)? else { return damaged(offset_bytes) };
        let Some(page) = Page::decode(&bytes, key, &header, index) else { return damaged(offset_bytes) };
        let mut is_first = true;
        for blob in page.blobs() {
            let Some(blob) = blob else { return damaged(offset_bytes) };
            let in_order = last.is_none_or(|last| order(&last, &blob.digest).is_lt());
            let in_place = shard_of(&blob.digest) == usize::from(name.shard)
                && (!is_first || prefix_of(&blob.digest) == first);
            let links = read_links(&window, key, &header, &blob)?;
            let (true, true, Some(links)) = (in_order, in_place, links) else { return damaged(offset_bytes) };
            (blobs, last, is_first) = (blobs + 1, Some(blob.digest), false);
            garbage += u64::from(links.is_empty());
            if !changed.contains(&blob.digest) {
                put_entries(&blob, links, entries);
            }
        }
    }
    let garbage_at = header.garbage_offset_bytes();
    let len = window.len_bytes.saturating_sub(garbage_at).min(header.garbage_bytes_max());
    let table = window.read(garbage_at, usize::try_from(len).unwrap_or(usize::MAX))?;
    let table = table.and_then(|bytes| header.decode_garbage(key, &bytes));
    if table.is_none() || garbage != header.garbage {
        return damaged(garbage_at);
    }
    if blobs == header.blobs { Ok(Ok(())) } else { damaged(0) }
}

/// The links of an entry; `None` when their pages are damaged or out of order.
fn read_links(
    window: &Window,
    key: &Key,
    header: &PartitionHeader,
    blob: &StoredBlob,
) -> io::Result<Option<Vec<StoredLink>>> {
    let links = match &blob.links {
        StoredLinks::Here(links) => links.clone(),
        StoredLinks::Paged { first_page, count } => {
            let mut links = Vec::new();
            let mut index = *first_page;
            while (links.len() as u64) < *count && index < header.link_pages {
                let page = header.entry_pages + index;
                let Some(bytes) = window.read(header.page_offset_bytes(page), PAGE_BYTES)? else {
                    return Ok(None);
                };
                let found = Page::decode(&bytes, key, header, page).and_then(Page::links);
                let Some(found) = found else { return Ok(None) };
                links.extend(found);
                index += 1;
            }
            if links.len() as u64 != *count {
                return Ok(None);
            }
            links
        }
    };
    let in_order = links.windows(2).all(|pair| pair[0].0 < pair[1].0);
    Ok(in_order.then_some(links))
}

fn put_entries(blob: &StoredBlob, links: Vec<StoredLink>, entries: &mut Vec<Entry>) {
    let digest = blob.digest;
    entries.push(Entry::Blob {
        digest,
        len_bytes: blob.len_bytes,
        record_segment: blob.record_segment,
        record_lsn: blob.record_lsn,
        location: blob.location,
        quarantined: blob.quarantined,
        unlinked_since_ms: blob.unlinked_since_ms,
    });
    for links in links.chunks(ENTRY_LINKS_MAX) {
        entries.push(Entry::Links { digest, links: links.to_vec() });
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
