//! `check`: everything that can be said of a store without opening it, and without writing a byte.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use taffrail_blobstore::Digest;
use taffrail_blobstore::disk::{Access, Disk};
use taffrail_blobstore::format::checkpoint::{CheckpointHeader, Location, file_name, number_of};
use taffrail_blobstore::format::partition::PartitionName;
use taffrail_blobstore::format::record::Body;
use taffrail_blobstore::format::seal::Key;
use taffrail_blobstore::format::segment::HEADER_BYTES;
use taffrail_blobstore::format::superblock::Superblock;
use taffrail_blobstore::format::{INDEX_FOLDER, LOG_FOLDER, SCRATCH_NAME, SegmentId};

use crate::blobs::{Checker, Depth, Sealed};
use crate::checkpoint::{self, Checkpoint};
use crate::finding::{Finding, Findings, Kind, Severity};
use crate::progress::Progress;
use crate::superblocks::{Superblocks, SuperblocksError};
use crate::survey::{CheckpointEnd, Checkpoints, Payload, Range, Survey};

/// Name of the lock file (`disk::threads`).
const LOCK_NAME: &str = "LOCK";

/// A store, checked.
pub(crate) struct Checked {
    pub(crate) superblocks: Superblocks,
    pub(crate) current: Superblock,
    pub(crate) key: Key,
    pub(crate) survey: Survey,
    pub(crate) findings: Findings,
    /// Linked blobs whose bytes are damaged and that are not set aside yet.
    pub(crate) to_quarantine: BTreeSet<Digest>,
    /// Checkpoints that a superblock names and that are damaged.
    pub(crate) bad_checkpoints: Vec<u64>,
    pub(crate) half_known: HalfKnown,
}

/// Blobs that links name and whose record is lost.
#[derive(Debug, Default)]
pub(crate) struct HalfKnown {
    /// Those whose bytes are still there.
    pub(crate) salvage: Vec<(Digest, Salvage)>,
    /// The others.
    pub(crate) gone: Vec<Digest>,
}

/// Where the bytes of a blob without record lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Salvage {
    Inline(Payload),
    Solo(Sealed),
}

/// Why there is nothing to say.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error(transparent)]
    Superblocks(#[from] SuperblocksError),
    #[error("cannot read the store: {0}")]
    Io(#[from] io::Error),
}

impl CheckError {
    /// 2 when the store is known to be lost, 3 when nothing is known.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            CheckError::Superblocks(SuperblocksError::BothDamaged) => 2,
            CheckError::Superblocks(_) | CheckError::Io(_) => 3,
        }
    }
}

/// What a store says of itself, without a look at the bytes of its blobs.
pub(crate) struct Records {
    pub(crate) superblocks: Superblocks,
    pub(crate) current: Superblock,
    pub(crate) key: Key,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) survey: Survey,
    pub(crate) findings: Findings,
}

impl Records {
    /// Reads superblocks, checkpoints and the whole log. What is damaged in the log is in the survey, and not reported yet.
    pub(crate) fn read(disk: &dyn Disk, progress: &Progress) -> Result<Records, CheckError> {
        let superblocks = Superblocks::read(disk)?;
        let current = superblocks.current()?.clone();
        let key = Key::new(current.key, current.uuid);
        let mut findings = Findings::default();
        superblocks.report(&mut findings);
        let checkpoints = check_checkpoints(disk, &key, &superblocks, &current, &mut findings);
        progress.begin("reading the log", 0);
        let survey = Survey::take(disk, &key, &current, &checkpoints, &mut findings)?;
        Ok(Records { superblocks, current, key, checkpoints, survey, findings })
    }

    /// Reports what is wrong with the log, and links whose blob no record places.
    pub(crate) fn report(&mut self) {
        report_log(&self.survey, &mut self.findings);
        let half_known = self.survey.served.half_known();
        if !half_known.is_empty() {
            let what = "repositories link blobs that no record places; a check says whether their bytes are still there";
            let finding = Finding::new(Severity::Repairable, Kind::LinkWithoutBlob, LOG_FOLDER, what);
            self.findings.add(finding.harming(half_known));
        }
    }
}

/// Checks the store on `disk`.
pub(crate) fn check(disk: &dyn Disk, depth: Depth, progress: &Progress) -> Result<Checked, CheckError> {
    let Records { superblocks, current, key, checkpoints, survey, mut findings } =
        Records::read(disk, progress)?;
    let blob_bytes = survey.served.blobs.values().map(|blob| blob.len_bytes).sum();
    progress.begin("reading blobs", blob_bytes);
    let checker = Checker { disk, key: &key, depth, progress };
    let damaged = checker.check_all(&survey.served.blobs, &mut findings);
    checker.check_sessions(survey.served.sessions.values(), &mut findings);
    let orphans = find_orphans(disk, &survey, &mut findings)?;
    let half_known = settle_half_known(&checker, &survey, &orphans, &mut findings)?;
    report_log(&survey, &mut findings);
    report_checkpoint(checkpoints.in_force.as_ref().map(|(header, _)| header), &survey, &mut findings);
    report_quarantined(&survey, &damaged, &mut findings);
    report_unknown_files(disk, &mut findings)?;
    progress.end();
    let to_quarantine = damaged
        .into_iter()
        .filter(|digest| {
            survey.served.blobs.get(digest).is_some_and(|blob| !blob.quarantined && !blob.links.is_empty())
        })
        .collect();
    let bad_checkpoints = checkpoints.bad;
    Ok(Checked { superblocks, current, key, survey, findings, to_quarantine, bad_checkpoints, half_known })
}

/// Whether a process holds the store. The lock is shared for the moment of asking, and nothing is written.
pub(crate) fn report_use(root: &Path, findings: &mut Findings) {
    let Ok(file) = fs::File::open(root.join(LOCK_NAME)) else { return };
    if matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)) {
        let holder = fs::read_to_string(root.join(LOCK_NAME)).unwrap_or_default();
        let what = format!(
            "the store is in use ({}); it changes while it is checked, so look again when it is not before you believe a damage",
            holder.trim()
        );
        findings.add(Finding::new(Severity::Note, Kind::InUse, LOCK_NAME, what));
    }
}

/// Reads the checkpoints that the superblocks name. The one in force is what an opening starts from.
fn check_checkpoints(
    disk: &dyn Disk,
    key: &Key,
    superblocks: &Superblocks,
    current: &Superblock,
    findings: &mut Findings,
) -> Checkpoints {
    let numbers: BTreeSet<u64> =
        superblocks.valid().map(|superblock| superblock.checkpoint).filter(|number| *number != 0).collect();
    let mut found = Checkpoints::default();
    for number in numbers {
        let name = file_name(number);
        let consequence = "nothing is lost, the log says the same; the next opening takes longer";
        match checkpoint::read(disk, key, number) {
            Ok(Checkpoint::Intact(header, entries)) => {
                found.ends.push(CheckpointEnd::of(&header));
                if number == current.checkpoint {
                    found.in_force = Some((header, entries));
                }
            }
            Ok(Checkpoint::Outdated) => {}
            Ok(Checkpoint::Absent) => {
                let what = format!("the checkpoint is missing; {consequence}");
                findings.add(Finding::new(Severity::Repairable, Kind::Checkpoint, &name, what));
            }
            Ok(Checkpoint::Damaged { name, offset_bytes }) => {
                let what = format!("the checkpoint is damaged; {consequence}");
                let finding = Finding::new(Severity::Repairable, Kind::Checkpoint, &name, what);
                findings.add(finding.at(offset_bytes, HEADER_BYTES as u64));
                found.bad.push(number);
            }
            Err(error) => findings.unreadable(&name, &error),
        }
    }
    found
}

fn report_log(survey: &Survey, findings: &mut Findings) {
    for (id, segment) in &survey.segments {
        if segment.header.is_none() {
            let what = "the header is damaged; the batches behind it can be read";
            let finding = Finding::new(Severity::Repairable, Kind::SegmentHeader, &id.log_name(), what);
            findings.add(finding.at(0, HEADER_BYTES as u64));
        }
    }
    for id in &survey.leftover {
        if !survey.missing.contains(id) {
            let what = "holds nothing that counts; the next opening removes it";
            findings.add(Finding::new(Severity::Note, Kind::SegmentUnused, &id.log_name(), what));
        }
    }
    for id in &survey.missing {
        let state = if survey.leftover.contains(id) { "can be read nowhere" } else { "is missing" };
        let what =
            format!("the log segment {state}; what its records said since the last checkpoint is lost");
        findings.add(Finding::new(Severity::Lost, Kind::SegmentMissing, &id.log_name(), what));
    }
    for range in &survey.ranges {
        findings.add(range_finding(range, survey));
    }
    for broken in &survey.breaks {
        let what = "what follows does not continue what stands before; something between is lost";
        let finding = Finding::new(Severity::Lost, Kind::Chain, &broken.segment.log_name(), what);
        findings.add(finding.at(broken.at_bytes, 0));
    }
    for (id, offset_bytes, len_bytes) in &survey.repaired {
        let what = "an earlier repair gave this range up";
        let finding = Finding::new(Severity::Note, Kind::RepairedRange, &id.log_name(), what);
        findings.add(finding.at(*offset_bytes, *len_bytes));
    }
    if let Some(torn) = &survey.torn {
        let what = "the last batch was torn as it was written, or is damaged; nobody was told of it when it was torn";
        let last_lsn = torn.first_lsn + (torn.records.len() as u64).saturating_sub(1);
        let digests = torn.records.iter().filter_map(|record| {
            if let Body::Blob { digest, .. } = record.body.said() { Some(*digest) } else { None }
        });
        let finding = Finding::new(Severity::Note, Kind::TornTail, &torn.place.segment.log_name(), what);
        findings.add(
            finding
                .at(torn.place.offset_bytes, torn.batch_len as u64)
                .with_lsns(Some((torn.first_lsn, last_lsn)))
                .harming(digests.collect()),
        );
    }
}

fn range_finding(range: &Range, survey: &Survey) -> Finding {
    let (severity, what) = if range.covered {
        (Severity::Repairable, "no valid batch where there was one; the checkpoint still has what it said")
    } else {
        (Severity::Lost, "no valid batch where there was one; what its records said is lost")
    };
    let last_lsn = range.next_lsn.map(|next| next.saturating_sub(1)).filter(|last| *last >= range.first_lsn);
    // A blob that another record places as well is not harmed.
    let harmed = |payload: &&Payload| {
        let blob = survey.served.blobs.get(&payload.digest);
        blob.is_none_or(|blob| {
            blob.location.is_none_or(|location| location == Location::Inline(payload.place))
        })
    };
    let digests = range.payloads.iter().filter(harmed).map(|payload| payload.digest).collect();
    Finding::new(severity, Kind::Batches, &range.segment.log_name(), what)
        .at(range.from_bytes, range.to_bytes - range.from_bytes)
        .with_lsns(last_lsn.map(|last| (range.first_lsn, last)))
        .harming(digests)
}

fn report_checkpoint(checkpoint: Option<&CheckpointHeader>, survey: &Survey, findings: &mut Findings) {
    let Some(checkpoint) = checkpoint else { return };
    let differing = survey.logged.differing(&survey.served);
    if survey.log_is_whole() && !differing.is_empty() {
        let what = "checkpoint and log disagree; without the checkpoint, the log counts";
        let name = file_name(checkpoint.number);
        let finding = Finding::new(Severity::Repairable, Kind::CheckpointDisagrees, &name, what);
        findings.add(finding.harming(differing));
    }
}

fn report_quarantined(survey: &Survey, damaged: &BTreeSet<Digest>, findings: &mut Findings) {
    let mut intact: Vec<&Digest> = survey
        .served
        .blobs
        .iter()
        .filter(|(digest, blob)| blob.quarantined && !damaged.contains(digest))
        .map(|(digest, _)| digest)
        .collect();
    intact.sort_unstable();
    for digest in intact {
        let what = "a blob is set aside although its bytes are whole now; the next push of it heals it";
        findings
            .add(Finding::new(Severity::Note, Kind::Quarantined, LOG_FOLDER, what).harming(vec![*digest]));
    }
}

/// The solo files that neither a blob nor an upload session names, with their lengths.
fn find_orphans(
    disk: &dyn Disk,
    survey: &Survey,
    findings: &mut Findings,
) -> io::Result<BTreeMap<SegmentId, u64>> {
    let mut named: BTreeSet<SegmentId> =
        survey.served.sessions.values().map(|session| session.segment).collect();
    named.extend(survey.served.blobs.values().filter_map(|blob| match blob.location {
        Some(Location::Solo { segment, .. }) => Some(segment),
        Some(Location::Inline(_)) | None => None,
    }));
    let mut orphans = BTreeMap::new();
    for number in 0..=0xff_u64 {
        let folder = SegmentId(number).solo_folder();
        for name in disk.list(&folder)? {
            let path = format!("{folder}/{name}");
            let Some(segment) = SegmentId::from_file_name(&name).filter(|segment| segment.0 & 0xff == number)
            else {
                findings.add(Finding::new(
                    Severity::Note,
                    Kind::UnknownFile,
                    &path,
                    "is no file of the store",
                ));
                continue;
            };
            if named.contains(&segment) {
                continue;
            }
            match disk.open(&path, Access::Cached).and_then(|file| file.len_bytes()) {
                Ok(len_bytes) => {
                    let what = "no record names this file; it will be collected";
                    let finding = Finding::new(Severity::Note, Kind::SoloOrphan, &path, what);
                    findings.add(finding.at(0, len_bytes));
                    orphans.insert(segment, len_bytes);
                }
                Err(error) => findings.unreadable(&path, &error),
            }
        }
    }
    Ok(orphans)
}

/// Links whose blob no record places: some have their bytes in a damaged range or in a file without a record.
fn settle_half_known(
    checker: &Checker<'_>,
    survey: &Survey,
    orphans: &BTreeMap<SegmentId, u64>,
    findings: &mut Findings,
) -> io::Result<HalfKnown> {
    let half_known = survey.served.half_known();
    if half_known.is_empty() {
        return Ok(HalfKnown::default());
    }
    let sealed = checker.sealed_orphans(orphans)?;
    let inline: HashMap<Digest, Payload> = survey
        .ranges
        .iter()
        .flat_map(|range| &range.payloads)
        .chain(&survey.stray_payloads)
        .map(|payload| (payload.digest, *payload))
        .collect();
    let mut settled = HalfKnown::default();
    for digest in half_known {
        let whole =
            inline.get(&digest).copied().filter(|payload| checker.is_whole(payload)).map(Salvage::Inline);
        let (severity, file, what) = match whole.or_else(|| sealed.get(&digest).copied().map(Salvage::Solo)) {
            Some(found) => {
                settled.salvage.push((digest, found));
                let file = match found {
                    Salvage::Inline(payload) => payload.place.segment.log_name(),
                    Salvage::Solo(sealed) => sealed.named.segment.solo_name(),
                };
                (
                    Severity::Repairable,
                    file,
                    "a repository links a blob whose record is lost; its bytes are here",
                )
            }
            None => {
                settled.gone.push(digest);
                (Severity::Lost, LOG_FOLDER.to_owned(), "a repository links a blob that is gone")
            }
        };
        findings.add(Finding::new(severity, Kind::LinkWithoutBlob, &file, what).harming(vec![digest]));
    }
    Ok(settled)
}

fn report_unknown_files(disk: &dyn Disk, findings: &mut Findings) -> io::Result<()> {
    let odd_log = disk.list(LOG_FOLDER)?.into_iter().filter(|name| SegmentId::from_file_name(name).is_none());
    let is_scratch = |name: &str| SCRATCH_NAME.strip_prefix(INDEX_FOLDER) == Some(&format!("/{name}"));
    let is_known = |name: &str| {
        number_of(name).is_some() || PartitionName::from_file_name(name).is_some() || is_scratch(name)
    };
    let odd_index = disk.list(INDEX_FOLDER)?.into_iter().filter(|name| !is_known(name));
    let paths = odd_log
        .map(|name| format!("{LOG_FOLDER}/{name}"))
        .chain(odd_index.map(|name| format!("{INDEX_FOLDER}/{name}")));
    for path in paths {
        findings.add(Finding::new(Severity::Note, Kind::UnknownFile, &path, "is no file of the store"));
    }
    Ok(())
}
