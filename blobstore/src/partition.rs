//! An open partition of the index: lookups in it, and walks through it.
//!
//! What must stay true: nothing of a page is believed before its checksum held, each time; a page that cannot be had or is wrong is an
//! error and never an absence.

use std::io;

use crate::digest::Digest;
use crate::disk::mapping::Mapping;
use crate::disk::{Access, Disk, File};
use crate::format::partition::{
    HEADER_BYTES, LINKS_PER_PAGE, PAGE_BYTES, Page, PartitionHeader, PartitionName, SHARDS, StoredBlob,
    StoredLink, StoredLinks, prefix_of,
};
use crate::format::seal::{Key, Seal};
use crate::repository::RepositoryKey;
use crate::sync::{Arc, AtomicBool, Ordering};

/// How many of these ascending prefixes, of one shard, are not above `prefix`.
///
/// Digests are spread evenly, unless somebody chose them: the search begins where the page would then be, and looks at twice as
/// much at each step until it is enclosed. Each look is a wait for memory, of which a search from the middle has ten.
fn position(directory: &[u64], prefix: u64) -> usize {
    let len = directory.len();
    let share = (u128::from(prefix << SHARD_BITS) * len as u128) >> u64::BITS;
    let guess = usize::try_from(share).unwrap_or(0).min(len);
    let (mut low, mut high, mut step) = (guess, guess, 32);
    while low > 0 && directory[low - 1] > prefix {
        (high, low) = (low, low.saturating_sub(step));
        step *= 2;
    }
    while high < len && directory[high] <= prefix {
        (low, high) = (high, len.min(high + step));
        step *= 2;
    }
    low + directory[low..high].partition_point(|first| *first <= prefix)
}

#[cfg(test)]
mod tests;
mod writer;

pub(crate) use writer::PartitionWriter;

/// Bits of a digest that say its shard: in all prefixes of a partition they are the same.
const SHARD_BITS: u32 = SHARDS.trailing_zeros();

/// Pages that a walk reads at once: 256 KiB.
const WALK_PAGES: u32 = 256;

/// A page that could not be had, or is not what was written.
#[derive(Debug)]
pub(crate) struct PageError {
    pub(crate) name: PartitionName,
    pub(crate) error: io::Error,
}

impl PageError {
    /// Whether the file itself is wrong, rather than the device at this moment.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self.error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
    }
}

/// A partition.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) header: PartitionHeader,
    /// Of the header: what a checkpoint knows the file by.
    pub(crate) seal: Seal,
    key: Key,
    file: Arc<dyn File>,
    /// The pages, where the disk maps files.
    mapping: Option<Mapping>,
    /// First eight bytes of the first digest of each page.
    directory: Vec<u64>,
    is_durable: AtomicBool,
}

impl Partition {
    /// Opens the file of that name; `None` when it is missing or damaged, or not the one whose header has that seal.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub(crate) fn open(
        disk: &dyn Disk,
        key: &Key,
        name: PartitionName,
        seal: Option<Seal>,
    ) -> io::Result<Option<Partition>> {
        match Partition::read(disk, key, name, seal) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
                Ok(None)
            }
            outcome => outcome,
        }
    }

    fn read(
        disk: &dyn Disk,
        key: &Key,
        name: PartitionName,
        seal: Option<Seal>,
    ) -> io::Result<Option<Partition>> {
        let file = disk.open(&name.file_name(), Access::Cached)?;
        let mut bytes = vec![0; HEADER_BYTES];
        file.read_at(&mut bytes, 0)?;
        let found = PartitionHeader::seal_of(&bytes);
        let Some(header) = PartitionHeader::decode(&bytes, name, key) else { return Ok(None) };
        if seal.is_some_and(|seal| seal != found) || file.len_bytes()? < header.garbage_offset_bytes() {
            return Ok(None);
        }
        let mut bytes = vec![0; to_usize(header.directory_bytes())];
        file.read_at(&mut bytes, header.directory_offset_bytes())?;
        let Some(directory) = header.decode_directory(key, &bytes) else { return Ok(None) };
        let mapping = file.map();
        let (key, is_durable) = (key.clone(), AtomicBool::new(true));
        Ok(Some(Partition { header, seal: found, key, file, mapping, directory, is_durable }))
    }

    /// The same, of which nothing was flushed yet.
    pub(crate) fn volatile(mut self) -> Partition {
        self.is_durable = AtomicBool::new(false);
        self
    }

    /// Flushes the file, if that was not done.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub(crate) fn make_durable(&self) -> io::Result<()> {
        if !self.is_durable.load(Ordering::Acquire) {
            self.file.sync()?;
            self.is_durable.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Looks a blob up: one page, or two where a page begins with the digest's prefix.
    ///
    /// # Errors
    /// See [`PageError`].
    pub(crate) fn find(&self, digest: &Digest) -> Result<Option<StoredBlob>, PageError> {
        let prefix = prefix_of(digest);
        let behind = self.position(prefix);
        let first = self.directory[..behind].iter().rposition(|first| *first != prefix);
        let from = first.unwrap_or(0);
        for index in (from..behind).rev() {
            let found = self.with_page(to_u32(index), |page| page.find(digest))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// How many pages begin at a prefix or before.
    fn position(&self, prefix: u64) -> usize {
        position(&self.directory, prefix)
    }

    /// All links of a blob of this partition.
    ///
    /// # Errors
    /// See [`PageError`].
    pub(crate) fn links_of(&self, blob: &StoredBlob) -> Result<Vec<StoredLink>, PageError> {
        match &blob.links {
            StoredLinks::Here(links) => Ok(links.clone()),
            StoredLinks::Paged { first_page, count } => {
                let mut links = Vec::new();
                for page in 0..link_pages(*count) {
                    links.extend(self.link_page(first_page.saturating_add(page))?);
                }
                if links.len() as u64 == *count { Ok(links) } else { Err(self.damaged()) }
            }
        }
    }

    /// Looks up a blob together with the link of a repository to it.
    ///
    /// Whoever has no link learns nothing from the time that takes: it is as many pages for a blob of many links, one of few and
    /// one that is not there.
    ///
    /// # Errors
    /// See [`PageError`].
    pub(crate) fn find_linked(
        &self,
        digest: &Digest,
        repository: RepositoryKey,
    ) -> Result<Option<(StoredBlob, StoredLink)>, PageError> {
        let mut looked_at = 0;
        if let Some(blob) = self.find(digest)? {
            let (link, pages) = self.link_of(&blob, repository)?;
            if let Some(link) = link {
                return Ok(Some((blob, link)));
            }
            looked_at = pages;
        }
        let (prefix, link_pages) = (prefix_of(digest), u64::from(self.header.link_pages));
        for step in looked_at..search_pages_max(self.header.link_pages) {
            // What is looked at for the time's sake alone answers nothing, not even that it is damaged.
            let _ = self.link_page(u32::try_from((prefix >> step) % link_pages).unwrap_or(0));
        }
        Ok(None)
    }

    /// The link of a repository to a blob of this partition, and how many pages of links were looked at.
    fn link_of(
        &self,
        blob: &StoredBlob,
        repository: RepositoryKey,
    ) -> Result<(Option<StoredLink>, u32), PageError> {
        let link_in = |links: &[StoredLink]| {
            let index = links.binary_search_by_key(&repository, |link| link.0).ok()?;
            links.get(index).copied()
        };
        let (first_page, count) = match &blob.links {
            StoredLinks::Here(links) => return Ok((link_in(links), 0)),
            StoredLinks::Paged { first_page, count } => (*first_page, *count),
        };
        let (mut low, mut high, mut looked_at) = (0, link_pages(count), 0);
        while low < high {
            let middle = low + (high - low) / 2;
            let links = self.link_page(first_page.saturating_add(middle))?;
            looked_at += 1;
            let (Some(first), Some(last)) = (links.first(), links.last()) else {
                return Err(self.damaged());
            };
            if repository < first.0 {
                high = middle;
            } else if repository > last.0 {
                low = middle + 1;
            } else {
                return Ok((link_in(&links), looked_at));
            }
        }
        Ok((None, looked_at))
    }

    fn link_page(&self, index: u32) -> Result<Vec<StoredLink>, PageError> {
        if index >= self.header.link_pages {
            return Err(self.damaged());
        }
        self.with_page(self.header.entry_pages + index, |page| page.links())
    }

    /// Every blob, in the order of the digests.
    pub(crate) fn walk(&self) -> impl Iterator<Item = Result<StoredBlob, PageError>> {
        self.walk_behind(None)
    }

    /// The same, from the page on that those behind a digest begin in.
    pub(crate) fn walk_behind(
        &self,
        after: Option<Digest>,
    ) -> impl Iterator<Item = Result<StoredBlob, PageError>> {
        let first = after.map_or(0, |digest| {
            let prefix = prefix_of(&digest);
            to_u32(self.directory.partition_point(|first| *first < prefix).saturating_sub(1))
        });
        let chunks = (first..self.header.entry_pages).step_by(WALK_PAGES as usize);
        chunks.flat_map(|from| {
            let to = from.saturating_add(WALK_PAGES).min(self.header.entry_pages);
            match self.read_pages(from, to) {
                Ok(blobs) => blobs.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        })
    }

    fn read_pages(&self, from: u32, to: u32) -> Result<Vec<StoredBlob>, PageError> {
        let mut bytes = vec![0; (to - from) as usize * PAGE_BYTES];
        let read = self.file.read_at(&mut bytes, self.header.page_offset_bytes(from));
        read.map_err(|error| PageError { name: self.header.name, error })?;
        let mut blobs = Vec::new();
        for (page, index) in bytes.chunks(PAGE_BYTES).zip(from..to) {
            let page = Page::decode(page, &self.key, &self.header, index).ok_or_else(|| self.damaged())?;
            for blob in page.blobs() {
                blobs.push(blob.ok_or_else(|| self.damaged())?);
            }
        }
        Ok(blobs)
    }

    /// The blobs without link, with since when.
    ///
    /// # Errors
    /// See [`PageError`].
    pub(crate) fn garbage(&self) -> Result<Vec<(u64, Digest)>, PageError> {
        if self.header.garbage == 0 {
            return Ok(Vec::new());
        }
        let failed = |error| PageError { name: self.header.name, error };
        let from = self.header.garbage_offset_bytes();
        let len = self.file.len_bytes().map_err(failed)?.saturating_sub(from);
        let mut bytes = vec![0; to_usize(len.min(self.header.garbage_bytes_max()))];
        self.file.read_at(&mut bytes, from).map_err(failed)?;
        self.header.decode_garbage(&self.key, &bytes).ok_or_else(|| self.damaged())
    }

    /// Hands a page to `take`, which says `None` when it is not what it should be.
    fn with_page<T>(&self, index: u32, take: impl Fn(Page<'_>) -> Option<T>) -> Result<T, PageError> {
        let offset_bytes = self.header.page_offset_bytes(index);
        let taken = |bytes: &[u8]| Page::decode(bytes, &self.key, &self.header, index).and_then(&take);
        let start = to_usize(offset_bytes);
        let mapped = self.mapping.as_ref().and_then(|mapping| mapping.bytes().get(start..start + PAGE_BYTES));
        if let Some(found) = mapped.and_then(taken) {
            return Ok(found);
        }
        // A media error under the mapping is zeros there; a read tells it from damage.
        let mut bytes = [0; PAGE_BYTES];
        let read = self.file.read_at(&mut bytes, offset_bytes);
        read.map_err(|error| PageError { name: self.header.name, error })?;
        taken(&bytes).ok_or_else(|| self.damaged())
    }

    fn damaged(&self) -> PageError {
        let error = io::Error::new(io::ErrorKind::InvalidData, "a page of the index is damaged");
        PageError { name: self.header.name, error }
    }
}

/// Pages that so many links of one blob take.
fn link_pages(count: u64) -> u32 {
    u32::try_from(count.div_ceil(LINKS_PER_PAGE as u64)).unwrap_or(u32::MAX)
}

/// Most pages that a search among so many looks at.
fn search_pages_max(pages: u32) -> u32 {
    u32::BITS - pages.leading_zeros()
}

fn to_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
