//! Byte ranges: `Range` of a GET, and `Content-Range` of an upload.
//!
//! What must stay true: an answer to a multi-range request never has more bytes than the whole blob. Ranges that overlap
//! are merged; when the parts with their headers would still be longer, the caller gets the whole blob, which RFC 9110
//! section 14.2 allows.
//!
//! Ranges that do not overlap stay as they were asked, in the order of the request, even when they touch: clients of
//! zstd:chunked images count the parts.

use std::fmt::Write as _;

use bytes::Bytes;
use http::HeaderValue;
use taffrail_blobstore::Digest;

use crate::body::Piece;

/// Ranges in one request. What zstd:chunked clients send at most (containers/storage); about 16 KiB of header.
pub const RANGES_MAX: usize = 1024;

/// Bytes of a blob from `start_bytes` to before `end_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start_bytes: u64,
    /// One after the last byte.
    pub end_bytes: u64,
}

impl ByteRange {
    /// How many bytes.
    pub const fn len_bytes(self) -> u64 {
        self.end_bytes.saturating_sub(self.start_bytes)
    }

    /// Whether it has none.
    pub const fn is_empty(self) -> bool {
        self.len_bytes() == 0
    }

    fn content_range(self, len_bytes: u64) -> String {
        format!("bytes {}-{}/{len_bytes}", self.start_bytes, self.end_bytes.saturating_sub(1))
    }
}

/// What a `Range` header asks of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The whole blob: another unit than bytes, which is ignored.
    Whole,
    /// These, at least one, none empty, none beyond the end, no two overlapping.
    Ranges(Vec<ByteRange>),
    /// Nothing of it is in the blob, it is malformed, or there are more than [`RANGES_MAX`]: 416.
    Unsatisfiable,
}

/// Parses a `Range` header for a blob of `len_bytes`.
///
/// A reversed range (`5-1`) is 416, not ignored as RFC 9110 would allow: the conformance program demands it, and so do
/// distribution and nginx.
pub fn wanted(header: &str, len_bytes: u64) -> Wanted {
    let Some((unit, list)) = header.split_once('=') else { return Wanted::Unsatisfiable };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    let mut ranges = Vec::new();
    let mut count = 0_usize;
    for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        count += 1;
        if count > RANGES_MAX {
            return Wanted::Unsatisfiable;
        }
        match one(text, len_bytes) {
            Some(range) if !range.is_empty() => ranges.push(range),
            Some(_) => {}
            None => return Wanted::Unsatisfiable,
        }
    }
    if ranges.is_empty() {
        return Wanted::Unsatisfiable;
    }
    Wanted::Ranges(if overlap(&ranges) { merge(ranges) } else { ranges })
}

/// One range of the list; empty when it lies beyond the end, `None` when malformed or reversed.
fn one(text: &str, len_bytes: u64) -> Option<ByteRange> {
    let (first, last) = text.split_once('-')?;
    if first.is_empty() {
        let suffix_bytes = number(last)?;
        return Some(ByteRange { start_bytes: len_bytes.saturating_sub(suffix_bytes), end_bytes: len_bytes });
    }
    let start_bytes = number(first)?;
    let end_bytes = if last.is_empty() {
        len_bytes
    } else {
        let last = number(last)?;
        if last < start_bytes {
            return None;
        }
        last.saturating_add(1).min(len_bytes)
    };
    Some(ByteRange { start_bytes: start_bytes.min(len_bytes), end_bytes })
}

/// A decimal number; too large ones saturate, which lies beyond any blob.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

fn overlap(ranges: &[ByteRange]) -> bool {
    let mut sorted: Vec<ByteRange> = ranges.to_vec();
    sorted.sort_unstable_by_key(|range| range.start_bytes);
    sorted.windows(2).any(|pair| pair[1].start_bytes < pair[0].end_bytes)
}

fn merge(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.sort_unstable_by_key(|range| range.start_bytes);
    let mut merged: Vec<ByteRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start_bytes <= last.end_bytes => {
                last.end_bytes = last.end_bytes.max(range.end_bytes);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// A 206 answer.
#[derive(Debug)]
pub(crate) struct Partial {
    /// What the body is made of.
    pub(crate) pieces: Vec<Piece>,
    /// Length of the body in bytes.
    pub(crate) len_bytes: u64,
    /// `Content-Range`, for one range.
    pub(crate) content_range: Option<HeaderValue>,
    /// `Content-Type`, for several.
    pub(crate) content_type: Option<HeaderValue>,
}

/// Lays out a 206 answer; `None` when the whole blob is shorter than the parts with their headers.
pub(crate) fn partial(ranges: &[ByteRange], digest: &Digest, len_bytes: u64) -> Option<Partial> {
    if let [range] = ranges {
        return Some(Partial {
            pieces: vec![Piece::Blob(*range)],
            len_bytes: range.len_bytes(),
            content_range: HeaderValue::try_from(range.content_range(len_bytes)).ok(),
            content_type: None,
        });
    }
    // Nobody can make a blob that holds half of its own digest, so the boundary does not occur in the parts.
    let encoded = digest.encoded();
    let boundary = encoded.get(..32)?;
    let mut pieces = Vec::with_capacity(ranges.len() * 2 + 1);
    for range in ranges {
        let mut head = String::with_capacity(128);
        let newline = if pieces.is_empty() { "" } else { "\r\n" };
        let _ = write!(
            head,
            "{newline}--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {}\r\n\r\n",
            range.content_range(len_bytes)
        );
        pieces.push(Piece::Text(Bytes::from(head)));
        pieces.push(Piece::Blob(*range));
    }
    pieces.push(Piece::Text(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
    let total_bytes: u64 = pieces.iter().map(Piece::len_bytes).sum();
    if total_bytes > len_bytes {
        return None;
    }
    Some(Partial {
        pieces,
        len_bytes: total_bytes,
        content_range: None,
        content_type: HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary}")).ok(),
    })
}

/// `Content-Range` of an upload: `first-last`, as the spec has it, and `bytes first-last/total`, as HTTP has it, with any
/// of its decorations missing.
///
/// `None` when it cannot be read, is reversed, or reaches beyond 2^63.
pub fn of_upload(header: &str) -> Option<ByteRange> {
    let text = header.trim();
    let text = match text.get(..5) {
        Some(unit) if unit.eq_ignore_ascii_case("bytes") => text[5..].trim_start_matches(['=', ' ']),
        _ => text,
    };
    let (range, total) = match text.split_once('/') {
        Some((range, total)) => (range, Some(total.trim())),
        None => (text, None),
    };
    let (first, last) = range.trim().split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let end_bytes = last.checked_add(1)?;
    if last < first || i64::try_from(end_bytes).is_err() {
        return None;
    }
    match total {
        None | Some("*") => {}
        Some(total) if number(total)? >= end_bytes => {}
        Some(_) => return None,
    }
    Some(ByteRange { start_bytes: first, end_bytes })
}

#[cfg(test)]
mod tests {
    use taffrail_blobstore::Algorithm;

    use super::*;

    fn ranges(list: &[(u64, u64)]) -> Wanted {
        Wanted::Ranges(
            list.iter().map(|&(start_bytes, end_bytes)| ByteRange { start_bytes, end_bytes }).collect(),
        )
    }

    #[test]
    fn single_ranges_are_read_as_rfc_9110_has_them() {
        for (header, expected) in [
            ("bytes=0-0", ranges(&[(0, 1)])),
            ("bytes=500-999", ranges(&[(500, 1000)])),
            ("Bytes = 0-1", ranges(&[(0, 2)])),
            ("bytes=500-", ranges(&[(500, 1000)])),
            ("bytes=-1", ranges(&[(999, 1000)])),
            ("bytes=-5000", ranges(&[(0, 1000)])),
            ("bytes=999-5000", ranges(&[(999, 1000)])),
            ("bytes=0-99999999999999999999999", ranges(&[(0, 1000)])),
            ("items=0-1", Wanted::Whole),
            ("bytes=1000-", Wanted::Unsatisfiable),
            ("bytes=1000-2000", Wanted::Unsatisfiable),
            ("bytes=99999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=5-1", Wanted::Unsatisfiable),
            ("bytes=", Wanted::Unsatisfiable),
            ("bytes=-", Wanted::Unsatisfiable),
            ("bytes=a-b", Wanted::Unsatisfiable),
            ("bytes=+1-2", Wanted::Unsatisfiable),
            ("bytes", Wanted::Unsatisfiable),
        ] {
            assert_eq!(wanted(header, 1000), expected, "{header}");
        }
        assert_eq!(wanted("bytes=0-", 0), Wanted::Unsatisfiable);
        assert_eq!(wanted("bytes=-1", 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn several_ranges_keep_their_order_unless_they_overlap() {
        assert_eq!(wanted("bytes=10-19,0-4", 1000), ranges(&[(10, 20), (0, 5)]));
        assert_eq!(wanted("bytes=0-4, 5-9", 1000), ranges(&[(0, 5), (5, 10)]));
        assert_eq!(wanted("bytes=10-19,0-4,15-30", 1000), ranges(&[(0, 5), (10, 31)]));
        assert_eq!(wanted("bytes=0-,0-,0-", 1000), ranges(&[(0, 1000)]));
        assert_eq!(wanted("bytes=0-4,2000-3000", 1000), ranges(&[(0, 5)]));
        assert_eq!(wanted("bytes=0-4,5-1", 1000), Wanted::Unsatisfiable);
    }

    #[test]
    fn ranges_up_to_the_limit_are_served_and_one_more_is_not() {
        let list = |count: usize| {
            let ranges: Vec<String> =
                (0..count).map(|index| format!("{}-{}", index * 10, index * 10 + 1)).collect();
            format!("bytes={}", ranges.join(","))
        };
        let Wanted::Ranges(served) = wanted(&list(RANGES_MAX), 1 << 20) else { panic!() };
        assert_eq!(served.len(), RANGES_MAX);
        assert_eq!(wanted(&list(RANGES_MAX + 1), 1 << 20), Wanted::Unsatisfiable);
    }

    #[test]
    fn a_multipart_answer_is_never_longer_than_the_blob() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        for len_bytes in [10, 1000, 100_000, 10_000_000] {
            for count in [2, 10, 1000] {
                let step = len_bytes / count;
                let ranges: Vec<ByteRange> = (0..count)
                    .map(|index| ByteRange { start_bytes: index * step, end_bytes: index * step + step / 2 })
                    .filter(|range| !range.is_empty())
                    .collect();
                if ranges.len() < 2 {
                    continue;
                }
                if let Some(partial) = partial(&ranges, &digest, len_bytes) {
                    assert!(partial.len_bytes <= len_bytes);
                    assert_eq!(partial.len_bytes, partial.pieces.iter().map(Piece::len_bytes).sum::<u64>());
                    assert!(partial.content_type.is_some());
                }
            }
        }
    }

    #[test]
    fn the_range_of_an_upload_is_read_in_every_form_that_clients_send() {
        let range = |start_bytes, end_bytes| Some(ByteRange { start_bytes, end_bytes });
        for (header, expected) in [
            ("0-9", range(0, 10)),
            (" 10-19 ", range(10, 20)),
            ("bytes 10-19/100", range(10, 20)),
            ("bytes=10-19", range(10, 20)),
            ("10-19/20", range(10, 20)),
            ("10-19/*", range(10, 20)),
            ("10-19/19", None),
            ("19-10", None),
            ("10", None),
            ("10-", None),
            ("-10", None),
            ("a-b", None),
            ("", None),
            ("0-9223372036854775806", range(0, (1 << 63) - 1)),
            ("0-9223372036854775807", None),
            ("9223372036854775808-9223372036854775809", None),
            ("0-99999999999999999999999", None),
            ("+0-9", None),
            ("byteé", None),
        ] {
            assert_eq!(of_upload(header), expected, "{header}");
        }
    }
}
