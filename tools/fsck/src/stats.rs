//! `stats`: where the space of a store goes. It reads as `check` does, but not the bytes of blobs, and changes nothing.

use std::num::NonZeroU64;
use std::path::Path;

use indicatif::BinaryBytes;
use serde_json::{Value, json};
use taffrail_blobstore::RepositoryKey;
use taffrail_blobstore::disk::threads::ThreadsDisk;

use crate::check::{CheckError, Records, report_use};
use crate::columns::Columns;
use crate::estimate::{CHUNK_BYTES, Estimate, Gain};
use crate::finding::{Finding, Findings, Verdict};
use crate::progress::Progress;
use crate::references::Names;
use crate::space::{Count, Held, Space};
use crate::usage::{Usage, Used};

/// Repositories that the text names unless told otherwise; the JSON form names all.
const TOP_IN_TEXT: usize = 20;

/// Everything that `stats` prints.
pub(crate) struct Stats {
    pub(crate) findings: Findings,
    space: Space,
    estimate: Option<Estimate>,
}

/// Looks at the store in `root`. With `sample_bytes`, estimates on so much what chunking would save.
pub(crate) fn stats(
    root: &Path,
    sample_bytes: Option<NonZeroU64>,
    progress: &Progress,
) -> Result<Stats, CheckError> {
    let disk = ThreadsDisk::open_read_only(root)?;
    let mut records = Records::read(&disk, progress)?;
    records.report();
    report_use(root, &mut records.findings);
    let space = Space::of(&records.survey, &Usage::take(root)?);
    let estimate = sample_bytes.map(|bytes| Estimate::take(&disk, &records.survey.served, bytes, progress));
    progress.end();
    Ok(Stats { findings: records.findings, space, estimate })
}

impl Stats {
    pub(crate) fn verdict(&self) -> Verdict {
        self.findings.verdict()
    }

    /// Those that hold most, most first.
    fn repositories(&self, top: usize) -> Vec<(RepositoryKey, Held)> {
        let mut held: Vec<(RepositoryKey, Held)> =
            self.space.repositories.iter().map(|(key, held)| (*key, *held)).collect();
        held.sort_by_key(|(key, held)| (std::cmp::Reverse(held.blobs.bytes + held.sessions.bytes), *key));
        held.truncate(top);
        held
    }

    pub(crate) fn json(&self, root: &Path, top: Option<usize>, names: &Names) -> Value {
        let Stats { findings, space, estimate } = self;
        let repositories: Vec<Value> = self
            .repositories(top.unwrap_or(usize::MAX))
            .into_iter()
            .map(|(key, held)| {
                let said = json!({
                    // Keys have 63 bits, of which many readers of JSON numbers keep 53.
                    "repository": key.number().to_string(),
                    "blobs": held.blobs.count,
                    "bytes": held.blobs.bytes,
                    "exclusive_bytes": held.exclusive_bytes,
                    "shared_bytes": held.shared_bytes(),
                    "sessions": count_json(held.sessions),
                });
                names.add(key, said)
            })
            .collect();
        let (log, disk) = (&space.log, &space.disk);
        json!({
            "store": root.display().to_string(),
            "verdict": findings.verdict().name(),
            "exit_code": findings.verdict().exit_code(),
            "blobs": {
                "linked": count_json(space.linked),
                "garbage": count_json(space.garbage),
                "inline": count_json(space.inline),
                "solo": count_json(space.solo),
                "quarantined": count_json(space.quarantined),
            },
            "links": space.links.count,
            "logical_bytes": space.links.bytes,
            "unique_bytes": space.linked.bytes,
            "dedup_ratio": space.dedup_ratio(),
            "sessions": count_json(space.sessions),
            "log": {
                "segments": log.segments,
                "linked_bytes": log.linked_bytes,
                "garbage_bytes": log.garbage_bytes,
                "dead_bytes": log.dead_bytes,
                "record_bytes": log.record_bytes,
                "unwritten_bytes": log.unwritten_bytes,
            },
            "disk": {
                "log": disk.log.json(),
                "solo_linked": disk.solo_linked.json(),
                "solo_garbage": disk.solo_garbage.json(),
                "solo_sessions": disk.solo_sessions.json(),
                "solo_unclaimed": disk.solo_unclaimed.json(),
                "checkpoints": disk.checkpoints.json(),
                "partitions": disk.partitions.json(),
                "reserve": disk.reserve.json(),
                "superblocks": disk.superblocks.json(),
                "damaged": disk.kept.json(),
                "other": disk.other.json(),
                "total": disk.total.json(),
            },
            "repositories_total": space.repositories.len(),
            "repositories": repositories,
            "estimate": estimate.as_ref().map(Estimate::json),
            "findings": findings.list.iter().map(Finding::json).collect::<Vec<_>>(),
        })
    }

    /// The lines for people.
    pub(crate) fn text(&self, root: &Path, top: Option<usize>, names: &Names) -> Vec<String> {
        let mut lines: Vec<String> = self.findings.list.iter().map(Finding::text).collect();
        lines.push(format!("{}: records {}", root.display(), self.verdict().name()));
        lines.extend(self.blob_lines());
        lines.extend(self.disk_lines());
        lines.extend(self.log_lines());
        lines.extend(self.repository_lines(top.unwrap_or(TOP_IN_TEXT), names));
        lines.extend(self.estimate.iter().flat_map(estimate_lines));
        lines
    }

    fn blob_lines(&self) -> Vec<String> {
        let space = &self.space;
        let mut columns = Columns::default();
        let mut line = |what: &str, count: Count| columns.line(counted(what, count));
        line("linked, each counted once", space.linked);
        line("links, as if nothing were shared", space.links);
        line("garbage, which nothing links", space.garbage);
        line("in the log", space.inline);
        line("in files of their own", space.solo);
        if space.quarantined.count > 0 {
            line("set aside as damaged", space.quarantined);
        }
        line("upload sessions, acknowledged", space.sessions);
        let ratio = match space.dedup_ratio() {
            Some(ratio) => format!("{ratio:.2}"),
            None => "-".to_owned(),
        };
        columns.line(["links to linked, by bytes".to_owned(), String::new(), ratio]);
        headed("blobs", &columns)
    }

    fn disk_lines(&self) -> Vec<String> {
        let disk = &self.space.disk;
        let parts = [
            ("log segments", disk.log),
            ("files of linked blobs", disk.solo_linked),
            ("files of garbage", disk.solo_garbage),
            ("files of upload sessions", disk.solo_sessions),
            ("files that no record names", disk.solo_unclaimed),
            ("checkpoints", disk.checkpoints),
            ("partitions of the index", disk.partitions),
            ("reserve", disk.reserve),
            ("superblocks", disk.superblocks),
            ("kept by repairs (damaged/)", disk.kept),
            ("others", disk.other),
        ];
        let mut columns = Columns::default();
        for (what, used) in parts.into_iter().filter(|(_, used)| used.files > 0) {
            columns.line(on_disk(what, used));
        }
        columns.line(on_disk("all", disk.total));
        headed("on disk", &columns)
    }

    fn log_lines(&self) -> Vec<String> {
        let log = &self.space.log;
        let mut columns = Columns::default();
        for (what, bytes) in [
            ("linked blobs", log.linked_bytes),
            ("garbage", log.garbage_bytes),
            ("dead", log.dead_bytes),
            ("records", log.record_bytes),
            ("not written yet", log.unwritten_bytes),
        ] {
            columns.line([what.to_owned(), size(bytes)]);
        }
        headed("in the log segments", &columns)
    }

    fn repository_lines(&self, top: usize, names: &Names) -> Vec<String> {
        let named = self.repositories(top);
        if named.is_empty() {
            return Vec::new();
        }
        let mut columns = Columns::default();
        columns.line(["repository", "blobs", "bytes", "exclusive", "shared", "uploads"].map(str::to_owned));
        for (key, held) in &named {
            columns.line([
                names.shown(*key),
                held.blobs.count.to_string(),
                size(held.blobs.bytes),
                size(held.exclusive_bytes),
                size(held.shared_bytes()),
                size(held.sessions.bytes),
            ]);
        }
        let mut lines = vec![String::new()];
        lines.extend(columns.text(""));
        let hidden = self.space.repositories.len() - named.len();
        if hidden > 0 {
            lines.push(format!("and {hidden} more (see --top)"));
        }
        lines
    }
}

fn estimate_lines(estimate: &Estimate) -> Vec<String> {
    let sample = estimate.sample();
    let (least, average, most) = CHUNK_BYTES;
    let [least, average, most] = [least, average, most].map(|bytes| size(bytes as u64));
    let mut columns = Columns::default();
    columns.line(["form", "blobs", "bytes", "would be saved", ""].map(str::to_owned));
    let mut line = |what: &str, gain: &Gain| {
        columns.line([
            what.to_owned(),
            gain.blobs.to_string(),
            size(gain.bytes),
            size(gain.saved_bytes),
            share(gain.saved_bytes, gain.bytes),
        ]);
    };
    for (form, gain) in &estimate.forms {
        line(form.name(), gain);
    }
    line("all", &sample);
    let mut lines = headed("estimate of what deduplication below the blob would save", &columns);
    lines.push(format!("  chunks are cut by content, {least} to {most}, {average} on average"));
    lines.push(if estimate.is_whole() {
        "  the sample is every linked blob".to_owned()
    } else {
        format!(
            "  the sample is {} of {} blobs and {} of {}; what it shares with the rest is not seen, so it is at least so much",
            sample.blobs,
            estimate.stored.0,
            size(sample.bytes),
            size(estimate.stored.1)
        )
    });
    if estimate.unreadable > 0 {
        lines.push(format!("  {} blobs could not be read", estimate.unreadable));
    }
    lines
}

/// A heading and what stands below it.
fn headed(heading: &str, columns: &Columns) -> Vec<String> {
    let mut lines = vec![String::new(), heading.to_owned()];
    lines.extend(columns.text("  "));
    lines
}

fn counted(what: &str, count: Count) -> [String; 3] {
    [what.to_owned(), count.count.to_string(), size(count.bytes)]
}

fn on_disk(what: &str, used: Used) -> [String; 3] {
    [what.to_owned(), used.files.to_string(), size(used.allocated_bytes)]
}

fn count_json(count: Count) -> Value {
    json!({ "count": count.count, "bytes": count.bytes })
}

/// A part of a whole, in percent.
#[expect(clippy::cast_precision_loss, reason = "a share is shown with one decimal")]
fn share(part: u64, whole: u64) -> String {
    if whole == 0 { String::new() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

/// Bytes with a binary unit.
pub(crate) fn size(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}
