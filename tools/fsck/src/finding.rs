//! What a check found: one entry per damage, with where it lies and what is lost by it.

use std::fmt::Write as _;

use serde_json::{Value, json};
use taffrail_blobstore::Digest;
use taffrail_blobstore::format::Lsn;

/// Most digests that one line of text names; the JSON form names all.
const DIGESTS_IN_TEXT_MAX: usize = 8;

/// How bad it is. The order is that of growing harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Nothing that was promised is lost: `repair`, the next opening or the next push puts it right.
    Repairable,
    /// Something that was promised is not there any more.
    Lost,
}

impl Severity {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Repairable => "repairable",
            Severity::Lost => "lost",
        }
    }
}

/// What it is. The names are part of the JSON form and do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    InUse,
    Superblock,
    SegmentHeader,
    SegmentUnused,
    SegmentMissing,
    Batches,
    Chain,
    RepairedRange,
    TornTail,
    PayloadHeader,
    PayloadBlock,
    SoloMissing,
    SoloHeader,
    SoloTrailer,
    SoloBlock,
    SoloOrphan,
    SoloLength,
    Digest,
    Quarantined,
    LinkWithoutBlob,
    LinkUnreferenced,
    ReferenceWithoutLink,
    Checkpoint,
    CheckpointDisagrees,
    Session,
    UnknownFile,
    Unreadable,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::InUse => "in-use",
            Kind::Superblock => "superblock",
            Kind::SegmentHeader => "segment-header",
            Kind::SegmentUnused => "segment-unused",
            Kind::SegmentMissing => "segment-missing",
            Kind::Batches => "batches",
            Kind::Chain => "chain",
            Kind::RepairedRange => "repaired-range",
            Kind::TornTail => "torn-tail",
            Kind::PayloadHeader => "payload-header",
            Kind::PayloadBlock => "payload-block",
            Kind::SoloMissing => "solo-missing",
            Kind::SoloHeader => "solo-header",
            Kind::SoloTrailer => "solo-trailer",
            Kind::SoloBlock => "solo-block",
            Kind::SoloOrphan => "solo-orphan",
            Kind::SoloLength => "solo-length",
            Kind::Digest => "digest",
            Kind::Quarantined => "quarantined",
            Kind::LinkWithoutBlob => "link-without-blob",
            Kind::LinkUnreferenced => "link-unreferenced",
            Kind::ReferenceWithoutLink => "reference-without-link",
            Kind::Checkpoint => "checkpoint",
            Kind::CheckpointDisagrees => "checkpoint-disagrees",
            Kind::Session => "session",
            Kind::UnknownFile => "unknown-file",
            Kind::Unreadable => "unreadable",
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    pub(crate) kind: Kind,
    /// Relative to the store.
    pub(crate) file: String,
    pub(crate) offset_bytes: Option<u64>,
    pub(crate) len_bytes: Option<u64>,
    /// A sentence without the place.
    pub(crate) what: String,
    /// Blobs that it harms, as far as they are known.
    pub(crate) digests: Vec<Digest>,
    /// Records that it harms: first and last.
    pub(crate) lsns: Option<(Lsn, Lsn)>,
}

impl Finding {
    pub(crate) fn new(severity: Severity, kind: Kind, file: &str, what: impl Into<String>) -> Finding {
        Finding {
            severity,
            kind,
            file: file.to_owned(),
            offset_bytes: None,
            len_bytes: None,
            what: what.into(),
            digests: Vec::new(),
            lsns: None,
        }
    }

    pub(crate) fn at(self, offset_bytes: u64, len_bytes: u64) -> Finding {
        Finding { offset_bytes: Some(offset_bytes), len_bytes: Some(len_bytes), ..self }
    }

    pub(crate) fn harming(self, digests: Vec<Digest>) -> Finding {
        Finding { digests, ..self }
    }

    pub(crate) fn with_lsns(self, lsns: Option<(Lsn, Lsn)>) -> Finding {
        Finding { lsns, ..self }
    }

    /// One line.
    pub(crate) fn text(&self) -> String {
        let mut line = format!("{:<10}  {}", self.severity.name(), self.file);
        if let (Some(offset), Some(len)) = (self.offset_bytes, self.len_bytes) {
            let _ = write!(line, " at {offset}, {len} bytes");
        }
        let _ = write!(line, ": {} [{}]", self.what, self.kind.name());
        if let Some((first, last)) = self.lsns {
            let _ = write!(line, "; records {first} to {last}");
        }
        for digest in self.digests.iter().take(DIGESTS_IN_TEXT_MAX) {
            let _ = write!(line, "; {digest}");
        }
        if let Some(more) = self.digests.len().checked_sub(DIGESTS_IN_TEXT_MAX).filter(|more| *more > 0) {
            let _ = write!(line, "; and {more} more (see --json)");
        }
        line
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "severity": self.severity.name(),
            "kind": self.kind.name(),
            "file": self.file,
            "offset_bytes": self.offset_bytes,
            "len_bytes": self.len_bytes,
            "what": self.what,
            "digests": self.digests.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "first_lsn": self.lsns.map(|(first, _)| first),
            "last_lsn": self.lsns.map(|(_, last)| last),
        })
    }
}

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Clean,
    Repairable,
    Damaged,
    /// Something could not be read, and nothing worse was seen.
    Unchecked,
}

impl Verdict {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Verdict::Clean => "clean",
            Verdict::Repairable => "repairable",
            Verdict::Damaged => "damaged",
            Verdict::Unchecked => "unchecked",
        }
    }

    /// 0 clean, 1 repaired or repairable, 2 damaged, 3 could not check.
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Verdict::Clean => 0,
            Verdict::Repairable => 1,
            Verdict::Damaged => 2,
            Verdict::Unchecked => 3,
        }
    }
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) list: Vec<Finding>,
}

impl Findings {
    pub(crate) fn add(&mut self, finding: Finding) {
        self.list.push(finding);
    }

    /// A file that the device would not read. What is in it is not known to be lost.
    pub(crate) fn unreadable(&mut self, file: &str, error: &std::io::Error) {
        self.add(Finding::new(Severity::Note, Kind::Unreadable, file, format!("cannot be read: {error}")));
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let worst = self.list.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Note);
        let unread = self.list.iter().any(|finding| finding.kind == Kind::Unreadable);
        match worst {
            Severity::Lost => Verdict::Damaged,
            Severity::Note | Severity::Repairable if unread => Verdict::Unchecked,
            Severity::Repairable => Verdict::Repairable,
            Severity::Note => Verdict::Clean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, kind: Kind) -> Finding {
        Finding::new(severity, kind, "log/x", "is odd")
    }

    #[test]
    fn loss_outweighs_what_could_not_be_read_and_that_outweighs_the_rest() {
        let mut findings = Findings::default();
        assert_eq!(findings.verdict(), Verdict::Clean);
        findings.add(finding(Severity::Note, Kind::SoloOrphan));
        assert_eq!(findings.verdict(), Verdict::Clean);
        findings.add(finding(Severity::Repairable, Kind::Superblock));
        assert_eq!(findings.verdict(), Verdict::Repairable);
        findings.unreadable("log/y", &std::io::Error::other("no"));
        assert_eq!(findings.verdict(), Verdict::Unchecked);
        findings.add(finding(Severity::Lost, Kind::Batches));
        assert_eq!(findings.verdict(), Verdict::Damaged);
    }

    #[test]
    fn a_line_names_place_kind_records_and_the_first_digests() {
        let digest = Digest::of(taffrail_blobstore::Algorithm::Sha256, b"x");
        let line = finding(Severity::Lost, Kind::Batches)
            .at(4096, 8192)
            .with_lsns(Some((3, 9)))
            .harming(vec![digest; 10])
            .text();
        assert!(
            line.starts_with(
                "lost        log/x at 4096, 8192 bytes: is odd [batches]; records 3 to 9; sha256:"
            )
        );
        assert!(line.ends_with("; and 2 more (see --json)"), "{line}");
    }
}
