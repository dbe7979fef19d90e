//! `inspect`: the records of a store, readably. It reads as `check` does, and judges nothing.

use std::io::{self, Write};

use serde_json::{Value, json};
use taffrail_blobstore::disk::{Access, Disk};
use taffrail_blobstore::format::batch::ValidBatch;
use taffrail_blobstore::format::checkpoint::Location;
use taffrail_blobstore::format::record::{Body, Record};
use taffrail_blobstore::format::seal::{Key, Place};
use taffrail_blobstore::format::segment::{Content, HEADER_BYTES, Previous, SegmentHeader};
use taffrail_blobstore::format::{ALIGN_BYTES, LOG_FOLDER, SUPERBLOCK_NAMES, SegmentId};
use taffrail_blobstore::segment::scan::{Found, Scan, epoch_of};

use crate::check::CheckError;
use crate::checkpoint::{self, Checkpoint};
use crate::superblocks::{Copy, Superblocks};
use crate::window::Window;

/// What to print, and how.
pub(crate) struct Wanted {
    /// One log segment, or everything.
    pub(crate) segment: Option<SegmentId>,
    /// Batches from here on.
    pub(crate) from_bytes: u64,
    pub(crate) form: Form,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    /// One JSON object per line.
    JsonLines,
}

struct Printer<'a> {
    out: &'a mut dyn Write,
    form: Form,
}

impl Printer<'_> {
    fn print(&mut self, text: &str, value: &Value) -> io::Result<()> {
        match self.form {
            Form::Text => writeln!(self.out, "{text}"),
            Form::JsonLines => writeln!(self.out, "{value}"),
        }
    }
}

/// Prints what `wanted` says.
pub(crate) fn inspect(disk: &dyn Disk, wanted: &Wanted, out: &mut dyn Write) -> Result<(), CheckError> {
    let superblocks = Superblocks::read(disk)?;
    let current = superblocks.current()?.clone();
    let key = Key::new(current.key, current.uuid);
    let mut printer = Printer { out, form: wanted.form };
    if wanted.segment.is_none() {
        print_superblocks(&superblocks, &mut printer)?;
        if current.checkpoint != 0 {
            print_checkpoint(disk, &key, current.checkpoint, &mut printer)?;
        }
    }
    let mut ids: Vec<SegmentId> =
        disk.list(LOG_FOLDER)?.iter().filter_map(|name| SegmentId::from_file_name(name)).collect();
    ids.sort_unstable();
    let headers: Vec<(SegmentId, Option<SegmentHeader>)> = ids
        .into_iter()
        .map(|id| Ok((id, read_header(disk, &key, &id.log_name(), id)?)))
        .collect::<io::Result<_>>()?;
    let stated: Vec<Previous> =
        headers.iter().filter_map(|(_, header)| previous_of(header.as_ref()?)).collect();
    for (id, header) in &headers {
        if wanted.segment.is_none_or(|wanted| wanted == *id) {
            let end = stated.iter().find(|previous| previous.id == *id).map(|previous| previous.end_bytes);
            print_segment(disk, &key, *id, header.as_ref(), end, wanted.from_bytes, &mut printer)?;
        }
    }
    if wanted.segment.is_none() {
        print_solos(disk, &key, &mut printer)?;
    }
    Ok(())
}

fn previous_of(header: &SegmentHeader) -> Option<Previous> {
    match &header.content {
        Content::Log { previous, .. } => *previous,
        Content::Solo { .. } => None,
    }
}

fn read_header(disk: &dyn Disk, key: &Key, name: &str, id: SegmentId) -> io::Result<Option<SegmentHeader>> {
    let Some(window) = Window::open(disk, name, Access::Direct)? else { return Ok(None) };
    Ok(window.read(0, HEADER_BYTES)?.and_then(|bytes| SegmentHeader::decode(&bytes, id, key)))
}

fn print_superblocks(superblocks: &Superblocks, printer: &mut Printer<'_>) -> io::Result<()> {
    for (name, copy) in SUPERBLOCK_NAMES.into_iter().zip(&superblocks.copies) {
        match copy {
            Copy::Absent => printer.print(&format!("{name} absent"), &json!({"file": name, "state": "absent"}))?,
            Copy::Invalid(error) => printer.print(
                &format!("{name} {error}"),
                &json!({"file": name, "state": "invalid", "reason": error.to_string()}),
            )?,
            // The key stays out: who reads along could make seals.
            Copy::Valid(superblock) => printer.print(
                &format!(
                    "{name} format {} sequence {} epoch {} uuid {} segment-bytes {} oldest-segment {} checkpoint {} written-ms {}",
                    superblock.format,
                    superblock.sequence,
                    superblock.epoch,
                    hex(&superblock.uuid),
                    superblock.segment_bytes,
                    superblock.oldest_segment,
                    superblock.checkpoint,
                    superblock.written_ms
                ),
                &json!({
                    "file": name,
                    "state": "valid",
                    "format": superblock.format,
                    "sequence": superblock.sequence,
                    "epoch": superblock.epoch,
                    "uuid": hex(&superblock.uuid),
                    "segment_bytes": superblock.segment_bytes,
                    "oldest_segment": superblock.oldest_segment,
                    "checkpoint": superblock.checkpoint,
                    "written_ms": superblock.written_ms,
                }),
            )?,
        }
    }
    Ok(())
}

fn print_checkpoint(disk: &dyn Disk, key: &Key, number: u64, printer: &mut Printer<'_>) -> io::Result<()> {
    match checkpoint::read(disk, key, number)? {
        Checkpoint::Absent => printer
            .print(&format!("checkpoint {number} absent"), &json!({"checkpoint": number, "state": "absent"})),
        Checkpoint::Outdated => printer.print(
            &format!("checkpoint {number} of an earlier format"),
            &json!({"checkpoint": number, "state": "outdated"}),
        ),
        Checkpoint::Damaged { name, offset_bytes } => printer.print(
            &format!("checkpoint {number} damaged at {offset_bytes} of {name}"),
            &json!({"checkpoint": number, "state": "damaged", "file": name, "offset_bytes": offset_bytes}),
        ),
        Checkpoint::Intact(header, _) => printer.print(
            &format!(
                "checkpoint {number} epoch {} frames {} entries {} next-lsn {} replay from segment {} at {}",
                header.epoch,
                header.frames,
                header.entries,
                header.next_lsn,
                header.replay_segment,
                header.replay_offset_bytes
            ),
            &json!({
                "checkpoint": number,
                "state": "intact",
                "epoch": header.epoch,
                "frames": header.frames,
                "entries": header.entries,
                "next_lsn": header.next_lsn,
                "replay_segment": header.replay_segment.to_string(),
                "replay_offset_bytes": header.replay_offset_bytes,
            }),
        ),
    }
}

fn print_segment(
    disk: &dyn Disk,
    key: &Key,
    id: SegmentId,
    header: Option<&SegmentHeader>,
    stated_end: Option<u64>,
    from_bytes: u64,
    printer: &mut Printer<'_>,
) -> io::Result<()> {
    let Some(window) = Window::open(disk, &id.log_name(), Access::Direct)? else { return Ok(()) };
    let epoch = match header {
        Some(header) => {
            print_header(header, printer)?;
            header.epoch
        }
        None => {
            printer.print(
                &format!("segment {id} header damaged or never written"),
                &json!({"segment": id.to_string(), "state": "header-damaged"}),
            )?;
            let Some(epoch) = epoch_of(&*window.file, key, id)? else { return Ok(()) };
            epoch
        }
    };
    let content = Content::Log { previous: None, first_lsn: 0 };
    let scanned = SegmentHeader { id, epoch, created_ms: 0, content };
    let mut scan = Scan::new(&*window.file, key, &scanned, None, stated_end)?;
    scan.skip_to(from_bytes / ALIGN_BYTES as u64 * ALIGN_BYTES as u64);
    loop {
        match scan.next_found()? {
            Found::Batch(batch) => print_batch(&batch, printer)?,
            Found::Damage { from_bytes, to_bytes } => printer.print(
                &format!("  damage {from_bytes} to {to_bytes}"),
                &json!({"segment": id.to_string(), "damage": {"from_bytes": from_bytes, "to_bytes": to_bytes}}),
            )?,
            Found::End { at_bytes } => {
                return printer.print(
                    &format!("  end {at_bytes}"),
                    &json!({"segment": id.to_string(), "end_bytes": at_bytes}),
                );
            }
        }
    }
}

fn print_header(header: &SegmentHeader, printer: &mut Printer<'_>) -> io::Result<()> {
    let (id, epoch, created_ms) = (header.id, header.epoch, header.created_ms);
    match &header.content {
        Content::Log { previous, first_lsn } => {
            let before = previous.map_or("none".to_owned(), |previous| {
                format!(
                    "{} ending at {} with seal {}",
                    previous.id,
                    previous.end_bytes,
                    hex(&previous.seal[..8])
                )
            });
            printer.print(
                &format!("segment {id} epoch {epoch} created-ms {created_ms} first-lsn {first_lsn} previous {before}"),
                &json!({
                    "segment": id.to_string(),
                    "epoch": epoch,
                    "created_ms": created_ms,
                    "first_lsn": first_lsn,
                    "previous": previous.map(|previous| json!({
                        "segment": previous.id.to_string(),
                        "end_bytes": previous.end_bytes,
                        "seal": hex(&previous.seal),
                    })),
                }),
            )
        }
        Content::Solo { session, algorithm } => printer.print(
            &format!(
                "solo {id} epoch {epoch} created-ms {created_ms} session {session} algorithm {algorithm}"
            ),
            &json!({
                "solo": id.to_string(),
                "epoch": epoch,
                "created_ms": created_ms,
                "session": session.to_string(),
                "algorithm": algorithm.to_string(),
            }),
        ),
    }
}

fn print_batch(batch: &ValidBatch, printer: &mut Printer<'_>) -> io::Result<()> {
    let (segment, offset_bytes) = (batch.place.segment, batch.place.offset_bytes);
    let repaired = if batch.repaired { " repaired" } else { "" };
    printer.print(
        &format!(
            "  batch at {offset_bytes} len {} time-ms {} seal {}{repaired}",
            batch.batch_len,
            batch.time_ms,
            hex(&batch.seal[..8])
        ),
        &json!({
            "segment": segment.to_string(),
            "batch": {
                "offset_bytes": offset_bytes,
                "len_bytes": batch.batch_len,
                "first_lsn": batch.first_lsn,
                "time_ms": batch.time_ms,
                "repaired": batch.repaired,
                "seal": hex(&batch.seal),
                "records": batch.records.len(),
            },
        }),
    )?;
    for record in &batch.records {
        print_record(segment, record, printer)?;
    }
    Ok(())
}

fn print_record(segment: SegmentId, record: &Record, printer: &mut Printer<'_>) -> io::Result<()> {
    let lsn = record.lsn;
    let (text, body) = match &record.body {
        Body::Blob { digest, len_bytes, payload_offset_bytes } => (
            format!("BLOB {digest} len {len_bytes} payload at +{payload_offset_bytes}"),
            json!({"type": "BLOB", "digest": digest.to_string(), "len_bytes": len_bytes, "payload_offset_bytes": payload_offset_bytes}),
        ),
        Body::Solo { digest, len_bytes, segment, epoch, trailer } => (
            format!("SOLO {digest} len {len_bytes} file {segment} epoch {epoch}"),
            json!({"type": "SOLO", "digest": digest.to_string(), "len_bytes": len_bytes, "file": segment.to_string(), "epoch": epoch, "trailer": hex(trailer)}),
        ),
        Body::Link { repository, digest } => (
            format!("LINK {repository:?} {digest}"),
            json!({"type": "LINK", "repository": repository.number(), "digest": digest.to_string()}),
        ),
        Body::Unlink { repository, digest } => (
            format!("UNLINK {repository:?} {digest}"),
            json!({"type": "UNLINK", "repository": repository.number(), "digest": digest.to_string()}),
        ),
        Body::Delete { digest } => {
            (format!("DELETE {digest}"), json!({"type": "DELETE", "digest": digest.to_string()}))
        }
        Body::Corrupt { digest, location } => {
            let (text, location) = location_text(location.as_ref());
            (
                format!("CORRUPT {digest}{text}"),
                json!({"type": "CORRUPT", "digest": digest.to_string(), "location": location}),
            )
        }
        Body::Session(session) => (
            format!(
                "SESSION {} {:?} file {} durable {} acknowledged {} crcs {}+{}",
                session.session,
                session.repository,
                session.segment,
                session.durable.offset_bytes,
                session.acknowledged.offset_bytes,
                session.first_block,
                session.crcs.len()
            ),
            json!({
                "type": "SESSION",
                "session": session.session.to_string(),
                "repository": session.repository.number(),
                "file": session.segment.to_string(),
                "epoch": session.epoch,
                "algorithm": session.algorithm.to_string(),
                "touched_ms": session.touched_ms,
                "durable_bytes": session.durable.offset_bytes,
                "acknowledged_bytes": session.acknowledged.offset_bytes,
                "first_block": session.first_block,
                "crcs": session.crcs.len(),
            }),
        ),
        Body::SessionEnd { session } => {
            (format!("SESSION_END {session}"), json!({"type": "SESSION_END", "session": session.to_string()}))
        }
        Body::SegmentDrop { segment } => (
            format!("SEGMENT_DROP {segment}"),
            json!({"type": "SEGMENT_DROP", "dropped": segment.to_string()}),
        ),
        Body::Seal => ("SEAL".to_owned(), json!({"type": "SEAL"})),
        Body::Repaired => ("REPAIRED".to_owned(), json!({"type": "REPAIRED"})),
    };
    let value = json!({"segment": segment.to_string(), "lsn": lsn, "record": body});
    printer.print(&format!("    {lsn} {text}"), &value)
}

/// Where a record says that bytes lie.
fn location_text(location: Option<&Location>) -> (String, Value) {
    match location {
        None => (String::new(), Value::Null),
        Some(Location::Inline(Place { segment, epoch, offset_bytes })) => (
            format!(" in segment {segment} epoch {epoch} at {offset_bytes}"),
            json!({"segment": segment.to_string(), "epoch": epoch, "offset_bytes": offset_bytes}),
        ),
        Some(Location::Solo { segment, epoch, trailer }) => (
            format!(" in file {segment} epoch {epoch}"),
            json!({"file": segment.to_string(), "epoch": epoch, "trailer": hex(trailer)}),
        ),
    }
}

fn print_solos(disk: &dyn Disk, key: &Key, printer: &mut Printer<'_>) -> io::Result<()> {
    for number in 0..=0xff_u64 {
        let mut ids: Vec<SegmentId> = disk
            .list(&SegmentId(number).solo_folder())?
            .iter()
            .filter_map(|name| SegmentId::from_file_name(name))
            .collect();
        ids.sort_unstable();
        for id in ids {
            match read_header(disk, key, &id.solo_name(), id)? {
                Some(header) => print_header(&header, printer)?,
                None => printer.print(
                    &format!("solo {id} header damaged"),
                    &json!({"solo": id.to_string(), "state": "header-damaged"}),
                )?,
            }
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
