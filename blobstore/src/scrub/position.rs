//! Where a pass stands, in a form that can be kept and taken up after a restart.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::format::SegmentId;
use crate::format::partition::shard_of;
use crate::locator::SHARDS;

/// Where a pass goes on. Kept as text: [`fmt::Display`] and [`FromStr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubPosition {
    /// In the log, at a batch of a segment.
    Log {
        /// Which segment, or the next one that exists.
        segment: SegmentId,
        /// Offset of the batch.
        offset_bytes: u64,
    },
    /// Behind a blob; before all of them with `None`.
    After(Option<Digest>),
    /// Within a blob.
    Within {
        /// Which blob. When it is gone, behind it.
        digest: Digest,
        /// The next block.
        block: u64,
    },
}

impl ScrubPosition {
    /// The beginning of a pass.
    pub const START: ScrubPosition = ScrubPosition::Log { segment: SegmentId(0), offset_bytes: 0 };

    /// About how much of the blobs lies behind the position, in thousandths: digests lie evenly.
    pub fn permille(&self) -> u64 {
        let digest = match self {
            ScrubPosition::Log { .. } | ScrubPosition::After(None) => return 0,
            ScrubPosition::After(Some(digest)) | ScrubPosition::Within { digest, .. } => digest,
        };
        let first = u64::from(digest.bytes()[0]);
        let (part, parts) = (shard_of(digest) as u64, SHARDS as u64);
        (part * 1000 + first / parts * 1000 * parts / 256) / parts
    }
}

impl fmt::Display for ScrubPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScrubPosition::Log { segment, offset_bytes } => write!(f, "log {} {offset_bytes}", segment.0),
            ScrubPosition::After(None) => f.write_str("after"),
            ScrubPosition::After(Some(digest)) => write!(f, "after {digest}"),
            ScrubPosition::Within { digest, block } => write!(f, "within {digest} {block}"),
        }
    }
}

/// The text is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no position of a scrub")]
pub struct NoPosition;

impl FromStr for ScrubPosition {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<ScrubPosition, NoPosition> {
        let mut words = text.split(' ');
        let kind = words.next();
        let mut word = || words.next().ok_or(NoPosition);
        let number = |text: &str| text.parse::<u64>().map_err(|_| NoPosition);
        let digest = |text: &str| Digest::parse(text).map_err(|_| NoPosition);
        let position = match kind {
            Some("log") => {
                ScrubPosition::Log { segment: SegmentId(number(word()?)?), offset_bytes: number(word()?)? }
            }
            Some("after") => ScrubPosition::After(word().ok().map(digest).transpose()?),
            Some("within") => ScrubPosition::Within { digest: digest(word()?)?, block: number(word()?)? },
            Some(_) | None => return Err(NoPosition),
        };
        if words.next().is_some() { Err(NoPosition) } else { Ok(position) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn a_position_is_the_same_after_it_was_kept_as_text() {
        let digest = Digest::of(Algorithm::Sha512, b"x");
        let positions = [
            ScrubPosition::START,
            ScrubPosition::Log { segment: SegmentId(17), offset_bytes: 4096 },
            ScrubPosition::After(None),
            ScrubPosition::After(Some(digest)),
            ScrubPosition::Within { digest, block: 9 },
        ];
        for position in positions {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for text in ["", "log", "log 1", "log 1 2 3", "log x 1", "after sha256:12", "within", "elsewhere"] {
            assert_eq!(text.parse::<ScrubPosition>(), Err(NoPosition), "{text}");
        }
    }

    #[test]
    fn progress_grows_with_the_order_in_which_blobs_are_read() {
        let mut digests: Vec<Digest> =
            (0..200_u32).map(|seed| Digest::of(Algorithm::Sha256, &seed.to_le_bytes())).collect();
        digests.sort_unstable_by_key(|digest| (shard_of(digest), *digest));
        let permilles: Vec<u64> =
            digests.iter().map(|digest| ScrubPosition::After(Some(*digest)).permille()).collect();
        assert!(permilles.is_sorted(), "{permilles:?}");
        assert!(permilles[0] < 50 && permilles[199] > 950 && permilles[199] < 1000, "{permilles:?}");
        assert_eq!(ScrubPosition::START.permille(), 0);
    }
}
