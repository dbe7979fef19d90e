//! Bytes of one simulated file, cheap to copy.
//!
//! A crash sweep keeps a copy of the whole disk for every write of a history, so that copies share their pages.

use std::sync::Arc;

const PAGE_BYTES: usize = 4096;

type Page = [u8; PAGE_BYTES];

/// A file's bytes. Pages that were never written, and what lies past the last of them, read as zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pages: Arc<Vec<Option<Arc<Page>>>>,
    len_bytes: u64,
}

impl Image {
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Makes the file at least `len_bytes` long.
    pub(super) fn extend_to(&mut self, len_bytes: u64) {
        self.len_bytes = self.len_bytes.max(len_bytes);
    }

    /// Makes the file `len_bytes` long; what is cut off reads as zeros when the file grows again.
    pub(super) fn set_len(&mut self, len_bytes: u64) {
        if len_bytes < self.len_bytes {
            let (last, within) = split(len_bytes);
            let pages = Arc::make_mut(&mut self.pages);
            pages.truncate(if within == 0 { last } else { last + 1 });
            if let Some(Some(page)) = pages.get_mut(last) {
                Arc::make_mut(page)[within..].fill(0);
            }
        }
        self.len_bytes = len_bytes;
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset_bytes: u64) {
        let (mut number, mut within) = split(offset_bytes);
        let mut rest = bytes;
        let pages = Arc::make_mut(&mut self.pages);
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(PAGE_BYTES - within));
            if pages.len() <= number {
                pages.resize(number + 1, None);
            }
            if let Ok(page) = <Page>::try_from(part) {
                pages[number] = Some(Arc::new(page));
            } else {
                let page = pages[number].get_or_insert_with(|| Arc::new([0; PAGE_BYTES]));
                Arc::make_mut(page)[within..within + part.len()].copy_from_slice(part);
            }
            (number, within, rest) = (number + 1, 0, after);
        }
        if !bytes.is_empty() {
            self.extend_to(offset_bytes + bytes.len() as u64);
        }
    }

    /// Fills `buffer`; the caller has held the range against the length.
    pub(super) fn read(&self, buffer: &mut [u8], offset_bytes: u64) {
        let (mut number, mut within) = split(offset_bytes);
        let mut rest = buffer;
        while !rest.is_empty() {
            let (part, after) = rest.split_at_mut(rest.len().min(PAGE_BYTES - within));
            match self.pages.get(number) {
                Some(Some(page)) => part.copy_from_slice(&page[within..within + part.len()]),
                Some(None) | None => part.fill(0),
            }
            (number, within, rest) = (number + 1, 0, after);
        }
    }
}

/// Page number and offset within the page.
fn split(offset_bytes: u64) -> (usize, usize) {
    let page_bytes = PAGE_BYTES as u64;
    #[expect(clippy::expect_used, reason = "a simulated file is limited to far less than an address space")]
    let number = usize::try_from(offset_bytes / page_bytes).expect("a file fits in memory");
    #[expect(clippy::cast_possible_truncation, reason = "less than a page")]
    let within = (offset_bytes % page_bytes) as usize;
    (number, within)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(image: &Image) -> Vec<u8> {
        let mut bytes = vec![9; usize::try_from(image.len_bytes()).unwrap()];
        image.read(&mut bytes, 0);
        bytes
    }

    #[test]
    fn writes_across_pages_are_read_back_and_holes_read_as_zeros() {
        let mut image = Image::default();
        image.write(&[7; 10_000], 5_000);
        let mut expected = vec![0; 5_000];
        expected.resize(15_000, 7);
        assert_eq!(all(&image), expected);
        let copy = image.clone();
        image.write(&[8; 4096], 8192);
        expected[8192..8192 + 4096].fill(8);
        assert_eq!(all(&image), expected);
        assert_eq!(all(&copy)[8192], 7, "a copy keeps its bytes");
    }

    #[test]
    fn what_was_cut_off_does_not_come_back() {
        let mut image = Image::default();
        image.write(&[7; 9_000], 0);
        image.set_len(4_100);
        image.set_len(9_000);
        let mut expected = vec![7; 4_100];
        expected.resize(9_000, 0);
        assert_eq!(all(&image), expected);
    }
}
