//! Partitions: what the locator knows of one shard, as an immutable file that is read a page at a time.
//!
//! A partition is derived data, like the checkpoint that names it: lost without loss. Header and tables are sealed; a page has a
//! CRC-32 that is bound to store, file and offset, so that damage shows when the page is looked at and not before.
//!
//! ```text
//! header (4096): 0 magic "TAFFIDX1"   8 u64 number   16 uuid[16]   32 u32 epoch   36 u32 shard   40 u64 blobs   48 u32 pages of
//!                entries   52 u32 pages of links   56 u64 garbage entries   64 seal[32] of the directory   96 seal[32] of the
//!                garbage   4064 seal[32]
//! pages (1024):  0 u32 CRC-32 of the rest   4 u16 kind: 1 entries, 2 links   6 u16 bytes used, with these 8   8 entries or links
//! directory:     per page of entries, u64 (big-endian) first eight bytes of its first digest
//! garbage:       per blob without link, u64 since when, digest
//! ```

use super::checkpoint::Location;
use super::seal::{Key, Kind, Place, SEAL_BYTES, Seal};
use super::wire::{Fields, put_digest, put_varint};
use super::{ALIGN_BYTES, INDEX_FOLDER, Lsn, SegmentId};
use crate::digest::{Algorithm, Digest};
use crate::repository::RepositoryKey;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = ALIGN_BYTES;
/// Length of a page in bytes: a quarter of what the disk reads at once. Its checksum is what a lookup costs, and takes 0.1 µs.
pub const PAGE_BYTES: usize = 1024;
/// Number of shards. The six highest bits of a digest say which one it is in.
pub const SHARDS: usize = 64;

const MAGIC: [u8; 8] = *b"TAFFIDX1";
const SEAL_OFFSET: usize = HEADER_BYTES - SEAL_BYTES;
const PAGE_HEADER_BYTES: usize = 8;
const KIND_ENTRIES: u16 = 1;
const KIND_LINKS: u16 = 2;
/// An entry has a length byte in front.
const ENTRY_BYTES_MAX: usize = 255;
const LINK_BYTES: usize = 24;
/// Links in a page of them.
pub const LINKS_PER_PAGE: usize = (PAGE_BYTES - PAGE_HEADER_BYTES) / LINK_BYTES;
/// Pages are numbered with 32 bits, and no file is longer than the numbers of its pages reach.
pub const PAGES_MAX: u32 = 1 << 24;

const FLAG_ALGORITHM: u8 = 0b11;
const FLAG_SOLO: u8 = 1 << 2;
const FLAG_QUARANTINED: u8 = 1 << 3;
/// The links lie in pages of their own.
const FLAG_PAGED: u8 = 1 << 4;
/// Other bits are not written.
const FLAGS: u8 = FLAG_ALGORITHM | FLAG_SOLO | FLAG_QUARANTINED | FLAG_PAGED;

/// Names a partition file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartitionName {
    /// Higher than that of every partition of before, whatever its shard.
    pub number: u64,
    /// Which shard it is of, below [`SHARDS`].
    pub shard: u8,
}

impl PartitionName {
    /// Relative to the store.
    pub fn file_name(self) -> String {
        format!("{INDEX_FOLDER}/{:016x}-{:02x}.idx", self.number, self.shard)
    }

    /// The name in a file name without its folder.
    pub fn from_file_name(name: &str) -> Option<PartitionName> {
        let (number, shard) = name.strip_suffix(".idx")?.split_once('-')?;
        let number = super::number_of_name(number)?;
        let shard = (0..SHARDS).find(|index| format!("{index:02x}") == shard)?;
        Some(PartitionName { number, shard: u8::try_from(shard).ok()? })
    }

    fn place(self, epoch: u32, offset_bytes: u64) -> Place {
        // No file has 2^48 bytes; segments have no numbers of that height.
        let offset_bytes = offset_bytes | u64::from(self.shard) << 48;
        Place { segment: SegmentId(self.number | 1 << 63), epoch, offset_bytes }
    }
}

/// The shard of a digest.
pub fn shard_of(digest: &Digest) -> usize {
    usize::from(digest.bytes()[0]) * SHARDS / 256
}

/// What a page's place in the directory says of a digest: its first eight bytes.
pub fn prefix_of(digest: &Digest) -> u64 {
    digest.bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// The order of the entries.
pub fn order(one: &Digest, other: &Digest) -> std::cmp::Ordering {
    one.bytes().cmp(other.bytes()).then(one.algorithm().number().cmp(&other.algorithm().number()))
}

/// A validated header of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionHeader {
    /// Which file it is.
    pub name: PartitionName,
    /// The epoch of the opening that wrote it.
    pub epoch: u32,
    /// Entries.
    pub blobs: u64,
    /// Pages of entries, which follow the header; at most [`PAGES_MAX`].
    pub entry_pages: u32,
    /// Pages of links, which follow those; at most [`PAGES_MAX`].
    pub link_pages: u32,
    /// Entries of the table of garbage, which is the end of the file.
    pub garbage: u64,
    /// Seal of the directory, which follows the pages.
    pub directory_seal: Seal,
    /// Seal of the table of garbage.
    pub garbage_seal: Seal,
}

impl PartitionHeader {
    /// The bytes to write at offset 0.
    pub fn encode(&self, key: &Key) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.name.number.to_le_bytes());
        out.extend_from_slice(key.uuid());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&u32::from(self.name.shard).to_le_bytes());
        out.extend_from_slice(&self.blobs.to_le_bytes());
        out.extend_from_slice(&self.entry_pages.to_le_bytes());
        out.extend_from_slice(&self.link_pages.to_le_bytes());
        out.extend_from_slice(&self.garbage.to_le_bytes());
        out.extend_from_slice(&self.directory_seal);
        out.extend_from_slice(&self.garbage_seal);
        out.resize(SEAL_OFFSET, 0);
        let seal = key.seal(Kind::PartitionHeader, self.name.place(self.epoch, 0), &[&out]);
        out.extend_from_slice(&seal);
        out
    }

    /// The seal of an encoded header: what the checkpoint remembers the file by.
    pub fn seal_of(encoded: &[u8]) -> Seal {
        encoded.get(SEAL_OFFSET..HEADER_BYTES).and_then(|seal| seal.try_into().ok()).unwrap_or_default()
    }

    /// Takes up and validates what was read from the file of that name.
    pub fn decode(bytes: &[u8], name: PartitionName, key: &Key) -> Option<PartitionHeader> {
        let (sealed, seal) = bytes.get(..HEADER_BYTES)?.split_at_checked(SEAL_OFFSET)?;
        let mut fields = Fields::new(sealed);
        if fields.array::<8>()? != MAGIC
            || fields.u64()? != name.number
            || fields.array::<16>()? != *key.uuid()
        {
            return None;
        }
        let epoch = fields.u32()?;
        if fields.u32()? != u32::from(name.shard)
            || key.seal(Kind::PartitionHeader, name.place(epoch, 0), &[sealed]) != seal
        {
            return None;
        }
        let header = PartitionHeader {
            name,
            epoch,
            blobs: fields.u64()?,
            entry_pages: fields.u32()?,
            link_pages: fields.u32()?,
            garbage: fields.u64()?,
            directory_seal: fields.array()?,
            garbage_seal: fields.array()?,
        };
        (header.entry_pages <= PAGES_MAX && header.link_pages <= PAGES_MAX).then_some(header)
    }

    /// Where page `index` lies, in bytes; pages of links count on from those of entries.
    pub fn page_offset_bytes(&self, index: u32) -> u64 {
        HEADER_BYTES as u64 + u64::from(index) * PAGE_BYTES as u64
    }

    /// Where the directory lies, in bytes.
    pub fn directory_offset_bytes(&self) -> u64 {
        self.page_offset_bytes(self.entry_pages.saturating_add(self.link_pages))
    }

    /// Length of the directory in bytes.
    pub fn directory_bytes(&self) -> u64 {
        u64::from(self.entry_pages) * 8
    }

    /// Where the table of garbage lies, in bytes; it reaches to the end of the file.
    pub fn garbage_offset_bytes(&self) -> u64 {
        self.directory_offset_bytes() + self.directory_bytes()
    }

    /// The table of garbage lists no more bytes than this.
    pub fn garbage_bytes_max(&self) -> u64 {
        self.garbage.saturating_mul(8 + 1 + 64)
    }

    /// Seals the directory, whose bytes are given.
    pub fn seal_directory(&self, key: &Key, directory: &[u8]) -> Seal {
        key.seal(
            Kind::PartitionDirectory,
            self.name.place(self.epoch, self.directory_offset_bytes()),
            &[directory],
        )
    }

    /// Seals the table of garbage, whose bytes are given.
    pub fn seal_garbage(&self, key: &Key, garbage: &[u8]) -> Seal {
        key.seal(Kind::PartitionGarbage, self.name.place(self.epoch, self.garbage_offset_bytes()), &[garbage])
    }

    /// Takes up the directory.
    pub fn decode_directory(&self, key: &Key, bytes: &[u8]) -> Option<Vec<u64>> {
        if bytes.len() as u64 != self.directory_bytes()
            || self.seal_directory(key, bytes) != self.directory_seal
        {
            return None;
        }
        let (prefixes, _) = bytes.as_chunks::<8>();
        Some(prefixes.iter().map(|prefix| u64::from_be_bytes(*prefix)).collect())
    }

    /// Takes up the table of garbage.
    pub fn decode_garbage(&self, key: &Key, bytes: &[u8]) -> Option<Vec<(u64, Digest)>> {
        if self.seal_garbage(key, bytes) != self.garbage_seal {
            return None;
        }
        let mut fields = Fields::new(bytes);
        let mut garbage = Vec::new();
        while !fields.is_empty() {
            garbage.push((fields.u64()?, fields.digest()?));
        }
        (garbage.len() as u64 == self.garbage).then_some(garbage)
    }
}

/// Appends an entry of the table of garbage.
pub fn put_garbage(out: &mut Vec<u8>, since_ms: u64, digest: &Digest) {
    out.extend_from_slice(&since_ms.to_le_bytes());
    put_digest(out, digest);
}

/// A link, as a partition has it: who, the LSN of its record, and the log segment of that.
pub type StoredLink = (RepositoryKey, Lsn, SegmentId);

/// A blob, as a partition has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// The log segment with its record.
    pub record_segment: SegmentId,
    /// LSN of that record.
    pub record_lsn: Lsn,
    /// Where its bytes lie.
    pub location: Location,
    /// Whether it is quarantined.
    pub quarantined: bool,
    /// Since when nothing links it, in milliseconds since 1970; 0 when something does.
    pub unlinked_since_ms: u64,
    /// Its links.
    pub links: StoredLinks,
}

/// The links of a blob, sorted by repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredLinks {
    /// In the entry itself.
    Here(Vec<StoredLink>),
    /// In pages of their own.
    Paged {
        /// The first of the pages, counted from the first page of links.
        first_page: u32,
        /// How many links.
        count: u64,
    },
}

impl StoredBlob {
    /// Who holds it, with the LSN of the record that says so; nobody where the links are in pages of their own.
    pub fn holders(&self) -> impl Iterator<Item = (RepositoryKey, Lsn)> {
        let links = match &self.links {
            StoredLinks::Here(links) => links.as_slice(),
            StoredLinks::Paged { .. } => &[],
        };
        links.iter().map(|(repository, lsn, _)| (*repository, *lsn))
    }

    /// Appends the entry to `out` if it is not too long; entries with few links are not, and without links none is.
    fn encode(&self, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let paged = matches!(self.links, StoredLinks::Paged { .. });
        let solo = matches!(self.location, Location::Solo { .. });
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        out.push(0);
        out.push(
            self.digest.algorithm().number()
                | flag(solo, FLAG_SOLO)
                | flag(self.quarantined, FLAG_QUARANTINED)
                | flag(paged, FLAG_PAGED),
        );
        out.extend_from_slice(self.digest.bytes());
        put_varint(out, self.len_bytes);
        put_varint(out, self.record_segment.0);
        put_varint(out, self.record_lsn);
        put_varint(out, self.unlinked_since_ms);
        match &self.location {
            Location::Inline(place) => {
                put_varint(out, u64::from(place.epoch));
                put_varint(out, place.offset_bytes);
                put_varint(out, place.segment.0 ^ self.record_segment.0);
            }
            Location::Solo { segment, epoch, trailer } => {
                put_varint(out, segment.0);
                put_varint(out, u64::from(*epoch));
                out.extend_from_slice(trailer);
            }
        }
        match &self.links {
            StoredLinks::Here(links) => {
                put_varint(out, links.len() as u64);
                for (repository, lsn, segment) in links {
                    out.extend_from_slice(&repository.number().to_le_bytes());
                    // Most links are made with their blob.
                    put_varint(out, zigzag(lsn.wrapping_sub(self.record_lsn)));
                    put_varint(out, segment.0 ^ self.record_segment.0);
                    if out.len() - start > 1 + ENTRY_BYTES_MAX {
                        break;
                    }
                }
            }
            StoredLinks::Paged { first_page, count } => {
                put_varint(out, u64::from(*first_page));
                put_varint(out, *count);
            }
        }
        match u8::try_from(out.len() - start - 1) {
            Ok(len) => out[start] = len,
            Err(_) => out.truncate(start),
        }
        out.len() > start
    }

    /// Takes up an entry, without its length byte.
    fn decode(entry: &[u8]) -> Option<StoredBlob> {
        let mut fields = Fields::new(entry);
        let flags = fields.u8()?;
        if flags & !FLAGS != 0 {
            return None;
        }
        let algorithm = Algorithm::from_number(flags & FLAG_ALGORITHM)?;
        let digest = Digest::from_parts(algorithm, fields.bytes(algorithm.digest_bytes())?)?;
        let len_bytes = fields.varint()?;
        let record_segment = SegmentId(fields.varint()?);
        let record_lsn = fields.varint()?;
        let unlinked_since_ms = fields.varint()?;
        let location = if flags & FLAG_SOLO == 0 {
            let epoch = u32::try_from(fields.varint()?).ok()?;
            let offset_bytes = fields.varint()?;
            let segment = SegmentId(fields.varint()? ^ record_segment.0);
            Location::Inline(Place { segment, epoch, offset_bytes })
        } else {
            let segment = SegmentId(fields.varint()?);
            let epoch = u32::try_from(fields.varint()?).ok()?;
            Location::Solo { segment, epoch, trailer: fields.array()? }
        };
        let links = if flags & FLAG_PAGED == 0 {
            let count = fields.varint()?;
            let mut links = Vec::new();
            for _ in 0..count {
                let repository = RepositoryKey::new(fields.u64()?)?;
                let lsn = record_lsn.wrapping_add(unzigzag(fields.varint()?));
                links.push((repository, lsn, SegmentId(fields.varint()? ^ record_segment.0)));
            }
            StoredLinks::Here(links)
        } else {
            StoredLinks::Paged { first_page: u32::try_from(fields.varint()?).ok()?, count: fields.varint()? }
        };
        fields.is_empty().then_some(StoredBlob {
            digest,
            len_bytes,
            record_segment,
            record_lsn,
            location,
            quarantined: flags & FLAG_QUARANTINED != 0,
            unlinked_since_ms,
            links,
        })
    }
}

/// A small number for a small difference of either sign.
const fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ (difference.cast_signed() >> 63).cast_unsigned()
}

const fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

/// A page while entries or links are put into it.
#[derive(Debug)]
pub struct PageWriter {
    kind: u16,
    bytes: Vec<u8>,
}

impl PageWriter {
    /// An empty page of entries.
    pub fn of_entries() -> PageWriter {
        PageWriter::new(KIND_ENTRIES)
    }

    /// An empty page of links.
    pub fn of_links() -> PageWriter {
        PageWriter::new(KIND_LINKS)
    }

    fn new(kind: u16) -> PageWriter {
        let mut bytes = Vec::with_capacity(PAGE_BYTES);
        bytes.resize(PAGE_HEADER_BYTES, 0);
        PageWriter { kind, bytes }
    }

    /// Whether nothing was put into it.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == PAGE_HEADER_BYTES
    }

    /// Whether it takes links.
    pub fn is_of_links(&self) -> bool {
        self.kind == KIND_LINKS
    }

    /// Puts an entry in, if there is room.
    pub fn put_blob(&mut self, entry: &EncodedBlob) -> bool {
        self.put(&entry.0)
    }

    /// Puts a link in, if there is room.
    pub fn put_link(&mut self, link: &StoredLink) -> bool {
        let mut bytes = [0; LINK_BYTES];
        bytes[..8].copy_from_slice(&link.0.number().to_le_bytes());
        bytes[8..16].copy_from_slice(&link.1.to_le_bytes());
        bytes[16..].copy_from_slice(&link.2.0.to_le_bytes());
        self.put(&bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> bool {
        let fits = self.bytes.len() + bytes.len() <= PAGE_BYTES;
        if fits {
            self.bytes.extend_from_slice(bytes);
        }
        fits
    }

    /// The page to be written as the one of that index; it is empty again.
    pub fn finish(&mut self, key: &Key, name: PartitionName, epoch: u32, index: u32) -> Vec<u8> {
        let used = u16::try_from(self.bytes.len()).unwrap_or(0);
        let mut page = std::mem::replace(self, PageWriter::new(self.kind)).bytes;
        page.resize(PAGE_BYTES, 0);
        page[4..6].copy_from_slice(&self.kind.to_le_bytes());
        page[6..8].copy_from_slice(&used.to_le_bytes());
        let crc = page_crc(key, name, epoch, index, &page);
        page[..4].copy_from_slice(&crc.to_le_bytes());
        page
    }
}

/// An entry as it goes into a page.
#[derive(Debug)]
pub struct EncodedBlob(Vec<u8>);

impl EncodedBlob {
    /// Encodes an entry; `None` when it has so many links that they need pages of their own.
    pub fn new(blob: &StoredBlob) -> Option<EncodedBlob> {
        let mut bytes = Vec::with_capacity(ENTRY_BYTES_MAX + 1);
        blob.encode(&mut bytes).then_some(EncodedBlob(bytes))
    }
}

fn page_crc(key: &Key, name: PartitionName, epoch: u32, index: u32, page: &[u8]) -> u32 {
    let offset_bytes = HEADER_BYTES as u64 + u64::from(index) * PAGE_BYTES as u64;
    key.block_crc(name.place(epoch, offset_bytes), page.get(4..).unwrap_or_default())
}

/// A page whose checksum holds.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    kind: u16,
    content: &'a [u8],
}

impl<'a> Page<'a> {
    /// Takes up what was read at the place of page `index`.
    pub fn decode(bytes: &'a [u8], key: &Key, header: &PartitionHeader, index: u32) -> Option<Page<'a>> {
        let bytes = bytes.get(..PAGE_BYTES)?;
        let mut fields = Fields::new(bytes);
        if fields.u32()? != page_crc(key, header.name, header.epoch, index, bytes) {
            return None;
        }
        let kind = fields.u16()?;
        let used = usize::from(fields.u16()?);
        Some(Page { kind, content: bytes.get(PAGE_HEADER_BYTES..used)? })
    }

    /// The entries; `None` in the place of one that is none, which a page whose checksum holds does not have.
    pub fn blobs(self) -> impl Iterator<Item = Option<StoredBlob>> + use<'a> {
        self.entries().map(|entry| StoredBlob::decode(entry?))
    }

    fn entries(self) -> impl Iterator<Item = Option<&'a [u8]>> + use<'a> {
        let mut rest = if self.kind == KIND_ENTRIES { self.content } else { &[] };
        std::iter::from_fn(move || {
            let (len, behind) = rest.split_first()?;
            let entry = behind.split_at_checked(usize::from(*len));
            rest = entry.map_or(&[][..], |(_, rest)| rest);
            Some(entry.map(|(entry, _)| entry))
        })
    }

    /// Looks an entry up. The outer `None` says that the page is none of entries, or wrong.
    pub fn find(self, digest: &Digest) -> Option<Option<StoredBlob>> {
        if self.kind != KIND_ENTRIES {
            return None;
        }
        let algorithm = digest.algorithm().number();
        for entry in self.entries() {
            let entry = entry?;
            let bytes = entry.get(1..).and_then(|rest| rest.get(..digest.bytes().len()));
            if bytes == Some(digest.bytes())
                && entry.first().is_some_and(|flags| flags & FLAG_ALGORITHM == algorithm)
            {
                return StoredBlob::decode(entry).map(Some);
            }
        }
        Some(None)
    }

    /// The links in a page of links.
    pub fn links(self) -> Option<Vec<StoredLink>> {
        if self.kind != KIND_LINKS {
            return None;
        }
        let mut fields = Fields::new(self.content);
        let mut links = Vec::new();
        while !fields.is_empty() {
            links.push((RepositoryKey::new(fields.u64()?)?, fields.u64()?, SegmentId(fields.u64()?)));
        }
        Some(links)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new([1; 32], [2; 16])
    }

    fn link(number: u64) -> StoredLink {
        (RepositoryKey::new(number).unwrap(), 1_000_000_u64.wrapping_sub(number), SegmentId(7))
    }

    fn blobs() -> Vec<StoredBlob> {
        let inline = Location::Inline(Place { segment: SegmentId(9), epoch: 3, offset_bytes: 255 << 20 });
        let solo = Location::Solo { segment: SegmentId(u64::MAX), epoch: u32::MAX, trailer: [5; 32] };
        let mut blobs = Vec::new();
        for (algorithm, seed) in
            [(Algorithm::Sha256, b"a"), (Algorithm::Sha512, b"b"), (Algorithm::Blake3, b"c")]
        {
            for (location, links) in [
                (inline, StoredLinks::Here(Vec::new())),
                (inline, StoredLinks::Here(vec![link(1), link(u64::MAX >> 1)])),
                (solo, StoredLinks::Paged { first_page: 8, count: u64::MAX }),
            ] {
                blobs.push(StoredBlob {
                    digest: Digest::of(algorithm, seed),
                    len_bytes: u64::MAX,
                    record_segment: SegmentId(8),
                    record_lsn: 1_000,
                    location,
                    quarantined: algorithm == Algorithm::Blake3,
                    unlinked_since_ms: 1_795_000_000_000,
                    links,
                });
            }
        }
        blobs
    }

    #[test]
    fn an_entry_decodes_to_what_was_encoded_and_never_goes_beyond_its_length() {
        for blob in blobs() {
            let entry = EncodedBlob::new(&blob).unwrap().0;
            assert_eq!(StoredBlob::decode(&entry[1..]), Some(blob));
            for end in 1..entry.len() {
                assert_eq!(StoredBlob::decode(&entry[1..end]), None);
            }
        }
    }

    #[test]
    fn a_small_blob_with_one_link_takes_less_than_72_bytes() {
        let blob = StoredBlob {
            digest: Digest::of(Algorithm::Sha256, b"a"),
            len_bytes: 64,
            record_segment: SegmentId(16_000),
            record_lsn: 1 << 34,
            location: Location::Inline(Place {
                segment: SegmentId(16_000),
                epoch: 16_000,
                offset_bytes: 255 << 20,
            }),
            quarantined: false,
            unlinked_since_ms: 0,
            links: StoredLinks::Here(vec![(
                RepositoryKey::new(u64::MAX >> 1).unwrap(),
                (1 << 34) + 1,
                SegmentId(16_000),
            )]),
        };
        assert!(EncodedBlob::new(&blob).unwrap().0.len() < 72);
        let many = StoredBlob { links: StoredLinks::Here((1..40).map(link).collect()), ..blob };
        assert!(EncodedBlob::new(&many).is_none(), "these go into pages of their own");
    }

    #[test]
    fn every_flipped_bit_of_a_page_and_every_other_place_are_found() {
        let name = PartitionName { number: 6, shard: 63 };
        let header = PartitionHeader {
            name,
            epoch: 2,
            blobs: 9,
            entry_pages: 2,
            link_pages: 1,
            garbage: 0,
            directory_seal: [1; 32],
            garbage_seal: [2; 32],
        };
        let mut writer = PageWriter::of_entries();
        let blobs = blobs();
        let kept: Vec<&StoredBlob> =
            blobs.iter().filter(|blob| writer.put_blob(&EncodedBlob::new(blob).unwrap())).collect();
        let page = writer.finish(&key(), name, 2, 1);
        let decoded = Page::decode(&page, &key(), &header, 1).unwrap();
        let found: Vec<StoredBlob> = decoded.blobs().map(Option::unwrap).collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), kept);
        assert_eq!(decoded.find(&Digest::of(Algorithm::Sha256, b"z")), Some(None));
        assert_eq!(decoded.find(&blobs[0].digest), Some(Some(blobs[0].clone())));
        for bit in 0..page.len() * 8 {
            let mut damaged = page.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Page::decode(&damaged, &key(), &header, 1).is_none(), "bit {bit}");
        }
        assert!(Page::decode(&page, &key(), &header, 0).is_none());
        for other in [PartitionName { number: 7, ..name }, PartitionName { shard: 62, ..name }] {
            let header = PartitionHeader { name: other, ..header.clone() };
            assert!(Page::decode(&page, &key(), &header, 1).is_none());
        }
        let encoded = header.encode(&key());
        assert_eq!(PartitionHeader::decode(&encoded, name, &key()), Some(header));
        for bit in (0..encoded.len() * 8).step_by(7) {
            let mut damaged = encoded.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(PartitionHeader::decode(&damaged, name, &key()), None, "bit {bit}");
        }
    }

    #[test]
    fn a_partition_has_one_name() {
        let name = PartitionName { number: 0xa1, shard: 0x3f };
        assert_eq!(name.file_name(), "index/00000000000000a1-3f.idx");
        assert_eq!(PartitionName::from_file_name("00000000000000a1-3f.idx"), Some(name));
        for other in
            ["00000000000000a1-40.idx", "00000000000000a1-3F.idx", "a1-3f.idx", "00000000000000a1.idx"]
        {
            assert_eq!(PartitionName::from_file_name(other), None, "{other}");
        }
    }
}
