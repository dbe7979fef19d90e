//! Writes a partition, blob by blob in the order of their digests.

use std::io;

use crate::disk::{Access, Disk, File};
use crate::format::partition::{
    EncodedBlob, HEADER_BYTES, LINKS_PER_PAGE, PAGES_MAX, PageWriter, PartitionHeader, PartitionName,
    StoredBlob, StoredLink, StoredLinks, prefix_of, put_garbage,
};
use crate::format::seal::Key;
use crate::sync::Arc;

/// Bytes that are written at once.
const WRITE_BYTES: usize = 1024 * 1024;

/// A partition that is being written.
pub(crate) struct PartitionWriter<'a> {
    file: Arc<dyn File>,
    key: &'a Key,
    header: PartitionHeader,
    page: PageWriter,
    directory: Vec<u8>,
    garbage: Vec<u8>,
    /// Links of the blobs whose links have pages of their own; the pages follow those of the entries.
    links: Vec<Vec<StoredLink>>,
    link_pages: u32,
    /// Finished pages.
    buffer: Vec<u8>,
    offset_bytes: u64,
}

impl<'a> PartitionWriter<'a> {
    /// Makes the file; one of that name that an interrupted attempt left is removed first.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub(crate) fn create(
        disk: &dyn Disk,
        key: &'a Key,
        name: PartitionName,
        epoch: u32,
    ) -> io::Result<PartitionWriter<'a>> {
        let file_name = name.file_name();
        drop(disk.remove(&file_name));
        let file = disk.create(&file_name, HEADER_BYTES as u64, Access::Cached)?;
        let header = PartitionHeader {
            name,
            epoch,
            blobs: 0,
            entry_pages: 0,
            link_pages: 0,
            garbage: 0,
            directory_seal: [0; 32],
            garbage_seal: [0; 32],
        };
        Ok(PartitionWriter {
            file,
            key,
            header,
            page: PageWriter::of_entries(),
            directory: Vec::new(),
            garbage: Vec::new(),
            links: Vec::new(),
            link_pages: 0,
            buffer: Vec::with_capacity(WRITE_BYTES),
            offset_bytes: HEADER_BYTES as u64,
        })
    }

    /// Takes the next blob in, whose links are in the entry.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub(crate) fn put(&mut self, mut blob: StoredBlob) -> io::Result<()> {
        let entry = EncodedBlob::new(&blob).or_else(|| {
            let StoredLinks::Here(links) = std::mem::replace(
                &mut blob.links,
                StoredLinks::Paged { first_page: self.link_pages, count: 0 },
            ) else {
                return None;
            };
            blob.links = StoredLinks::Paged { first_page: self.link_pages, count: links.len() as u64 };
            self.link_pages += u32::try_from(links.len().div_ceil(LINKS_PER_PAGE)).unwrap_or(PAGES_MAX);
            self.links.push(links);
            EncodedBlob::new(&blob)
        });
        let entry = entry.ok_or_else(|| io::Error::other("an entry without links fits into a page"))?;
        if !self.page.put_blob(&entry) {
            self.close_page()?;
            self.page.put_blob(&entry);
        }
        if self.directory.len() < (self.header.entry_pages as usize + 1) * 8 {
            self.directory.extend_from_slice(&prefix_of(&blob.digest).to_be_bytes());
        }
        self.header.blobs += 1;
        if matches!(&blob.links, StoredLinks::Here(links) if links.is_empty()) {
            put_garbage(&mut self.garbage, blob.unlinked_since_ms, &blob.digest);
            self.header.garbage += 1;
        }
        Ok(())
    }

    fn close_page(&mut self) -> io::Result<()> {
        if self.page.is_empty() {
            return Ok(());
        }
        let index = self.header.entry_pages + self.header.link_pages;
        if index >= PAGES_MAX {
            return Err(io::Error::other("a partition has no more pages"));
        }
        let page = self.page.finish(self.key, self.header.name, self.header.epoch, index);
        if self.links_are_on() {
            self.header.link_pages += 1
        } else {
            self.header.entry_pages += 1
        }
        self.buffer.extend_from_slice(&page);
        if self.buffer.len() >= WRITE_BYTES { self.write_buffer() } else { Ok(()) }
    }

    /// Whether the entries are through.
    fn links_are_on(&self) -> bool {
        self.page.is_of_links()
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        self.file.write_at(&self.buffer, self.offset_bytes)?;
        self.offset_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left, the header last. Nothing is flushed.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.close_page()?;
        self.page = PageWriter::of_links();
        for links in std::mem::take(&mut self.links) {
            for links in links.chunks(LINKS_PER_PAGE) {
                for link in links {
                    self.page.put_link(link);
                }
                self.close_page()?;
            }
        }
        self.header.directory_seal = self.header.seal_directory(self.key, &self.directory);
        self.header.garbage_seal = self.header.seal_garbage(self.key, &self.garbage);
        let (directory, garbage) = (std::mem::take(&mut self.directory), std::mem::take(&mut self.garbage));
        self.buffer.extend_from_slice(&directory);
        self.buffer.extend_from_slice(&garbage);
        self.write_buffer()?;
        self.file.write_at(&self.header.encode(self.key), 0)
    }
}
