//! The segment that a repair appends: what follows from the loss, said in records, so that an opening has nothing left to find.

use std::io;

use bytes::Bytes;
use taffrail_blobstore::disk::{Access, Disk};
use taffrail_blobstore::format::SegmentId;
use taffrail_blobstore::format::batch::{BATCH_BYTES_SOFT, NewRecord, Position, encode, record_bytes_bound};
use taffrail_blobstore::format::payload::PAYLOAD_HEADER_BYTES;
use taffrail_blobstore::format::record::Body;
use taffrail_blobstore::format::seal::Place;
use taffrail_blobstore::format::segment::{Content, HEADER_BYTES, Previous, SegmentHeader, UNKNOWN_SEAL};

use super::files::NewFile;
use super::log::new_epoch;
use crate::check::{Checked, Salvage};
use crate::window::Window;

/// Makes the segment; `None` when there is nothing to say.
pub(crate) fn segment(disk: &dyn Disk, checked: &Checked, now_ms: u64) -> io::Result<Option<NewFile>> {
    let mut records = records(disk, checked)?;
    if records.is_empty() {
        return Ok(None);
    }
    records.push(NewRecord { body: Body::Seal, payload: Bytes::new() });
    let survey = &checked.survey;
    let newest = survey.segments.keys().chain(&survey.leftover).chain(&survey.missing).max();
    let id = SegmentId(newest.map_or(1, |newest| newest.0 + 1));
    let epoch = new_epoch(&checked.current, survey);
    let time_ms = survey.time_ms.max(now_ms);
    let previous = survey.segments.iter().next_back().map(|(id, segment)| Previous {
        id: *id,
        end_bytes: segment.end_bytes,
        seal: segment.end_seal.unwrap_or(UNKNOWN_SEAL),
    });
    let content = Content::Log { previous, first_lsn: survey.next_lsn };
    let mut bytes = SegmentHeader { id, epoch, created_ms: time_ms, content }.encode(&checked.key);
    debug_assert!(bytes.len() == HEADER_BYTES);
    let mut seal = SegmentHeader::seal_of(&bytes);
    let mut first_lsn = survey.next_lsn;
    for records in batches(records) {
        let place = Place { segment: id, epoch, offset_bytes: bytes.len() as u64 };
        let batch = encode(&checked.key, Position { place, first_lsn, previous: seal, time_ms }, records);
        first_lsn += batch.records.len() as u64;
        seal = batch.seal;
        bytes.extend_from_slice(&batch.bytes);
    }
    Ok(Some(NewFile { name: id.log_name(), len_bytes: bytes.len() as u64, overlays: vec![(0, bytes)] }))
}

fn records(disk: &dyn Disk, checked: &Checked) -> io::Result<Vec<NewRecord>> {
    let plain = |body| NewRecord { body, payload: Bytes::new() };
    let mut records = Vec::new();
    for (digest, salvage) in &checked.half_known.salvage {
        match salvage {
            Salvage::Solo(sealed) => records.push(plain(Body::Solo {
                digest: *digest,
                len_bytes: sealed.len_bytes,
                segment: sealed.named.segment,
                epoch: sealed.named.epoch,
                trailer: sealed.named.trailer,
            })),
            Salvage::Inline(payload) => {
                let from = payload.place.offset_bytes + PAYLOAD_HEADER_BYTES as u64;
                let window = Window::open(disk, &payload.place.segment.log_name(), Access::Direct)?;
                let bytes = window.map(|window| window.read(from, payload.len_bytes)).transpose()?.flatten();
                let bytes = bytes.ok_or(io::ErrorKind::UnexpectedEof)?;
                let len_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let body = Body::Blob { digest: *digest, len_bytes, payload_offset_bytes: 0 };
                records.push(NewRecord { body, payload: Bytes::from(bytes) });
            }
        }
    }
    records.extend(checked.half_known.gone.iter().map(|digest| plain(Body::Delete { digest: *digest })));
    let served = &checked.survey.served.blobs;
    records.extend(checked.to_quarantine.iter().map(|digest| {
        let location = served.get(digest).and_then(|blob| blob.location);
        plain(Body::Corrupt { digest: *digest, location })
    }));
    Ok(records)
}

/// Groups of records that each fit into a batch.
fn batches(records: Vec<NewRecord>) -> Vec<Vec<NewRecord>> {
    let mut batches: Vec<Vec<NewRecord>> = Vec::new();
    let mut bytes = usize::MAX;
    for record in records {
        let wanted = record_bytes_bound(&record);
        if bytes.saturating_add(wanted) > BATCH_BYTES_SOFT {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += wanted;
        if let Some(batch) = batches.last_mut() {
            batch.push(record);
        }
    }
    batches
}
