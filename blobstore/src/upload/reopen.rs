//! An upload session that is known from the log only: its file is looked at, and it goes on where the bytes can be vouched for.

use std::io;

use crate::buffer::AlignedBuffer;
use crate::disk::File;
use crate::engine::Engine;
use crate::error::UploadError;
use crate::format::record::SessionRecord;
use crate::format::solo::PAYLOAD_OFFSET_BYTES;
use crate::format::{BLOCK_BYTES, aligned};
use crate::hasher::Hasher;
use crate::repository::SessionId;
use crate::session::{Logged, SessionData};
use crate::solo::SoloWriter;
use crate::sync::Arc;

use super::closing;

/// Bytes read at once when stored bytes are hashed again.
const REHASH_BYTES: usize = 1024 * 1024;

/// A session that is being looked at after a restart. Dropped in the middle it is as before.
pub(super) struct Reopening<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) id: SessionId,
    pub(super) is_done: bool,
}

impl Reopening<'_> {
    pub(super) fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Reopening<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.engine.sessions.put_back_stored(self.id);
        }
    }
}

/// Takes up a session that the log knows: at the acknowledged offset when the file still holds what was hashed, else at the
/// durable one.
///
/// # Errors
/// `Unreadable`, with which the session is left as it was. What comes with the data ends it: the file or the log lacks what they
/// promised.
pub(super) async fn load(
    engine: &Arc<Engine>,
    logged: Logged,
) -> Result<(Box<SessionData>, Result<(), UploadError>), UploadError> {
    let record = logged.record;
    let mut data = Box::new(SessionData::new(record.algorithm));
    data.is_logged = true;
    let (reading, reader) = (record.clone(), Arc::clone(engine));
    let loaded = engine.pool.run(move || read_back(&reader, &reading));
    match loaded.await.unwrap_or_else(|| Err(closing())) {
        Ok(Some((mut solo, hasher, offset_bytes))) => {
            solo.adopt();
            data.parked_bytes = usize::try_from(offset_bytes - solo.written_bytes).unwrap_or(0);
            data.logged_blocks = solo.crcs.len().min(record.crcs.len());
            data.solo = Some(solo);
            data.hasher = hasher;
            data.offset_bytes = offset_bytes;
            data.logged_bytes = record.acknowledged.offset_bytes;
            data.durable = record.durable;
            Ok((data, Ok(())))
        }
        // The file's name was not durable: nothing was, and the client starts at 0. The log is told with the first write.
        Ok(None) => {
            data.logged_bytes = 0;
            Ok((data, Ok(())))
        }
        Err(error) if is_lost(&error) => {
            // Nobody else will come for its file.
            engine.remove_solo(record.segment);
            Ok((data, Err(UploadError::Io(error))))
        }
        Err(error) => Err(UploadError::Unreadable(error)),
    }
}

/// Whether what was to be read is not there, rather than out of reach at this moment.
fn is_lost(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// The file of a session, with the hasher and offset to go on from; `None` when the file is gone.
fn read_back(engine: &Arc<Engine>, record: &SessionRecord) -> io::Result<Option<(SoloWriter, Hasher, u64)>> {
    let opened = SoloWriter::reopen(engine, record.segment, record.epoch, 0, record.crcs.clone());
    let mut solo = match opened {
        Ok(solo) => solo,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let file = solo.file();
    let (from, from_bytes) = match Hasher::restore(&record.durable.state) {
        Some(hasher) => (hasher, record.durable.offset_bytes),
        None => (Hasher::new(record.algorithm), 0),
    };
    let to_bytes = record.acknowledged.offset_bytes;
    let acknowledged = rehash(&*file, from.clone(), from_bytes, to_bytes);
    let (hasher, offset_bytes) = match acknowledged {
        Ok(hasher) if hasher.export() == record.acknowledged.state => (hasher, to_bytes),
        // Out of reach is not lost: the client was told of these bytes.
        Err(error) if !is_lost(&error) => return Err(error),
        // Power was lost behind the durable offset. BLAKE3 has no state to go on from and hashes again.
        Ok(_) | Err(_) if from_bytes == record.durable.offset_bytes => (from, from_bytes),
        Ok(_) | Err(_) => {
            let durable_bytes = record.durable.offset_bytes;
            (rehash(&*file, from, from_bytes, durable_bytes)?, durable_bytes)
        }
    };
    solo.written_bytes = u64::MAX;
    solo.rewind(offset_bytes);
    let blocks = usize::try_from(solo.written_bytes / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
    if solo.crcs.len() < blocks {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "checksums of the session are missing in the log",
        ));
    }
    Ok(Some((solo, hasher, offset_bytes)))
}

/// Hashes stored bytes again. Blocks on the disk.
pub(super) fn rehash(
    file: &dyn File,
    mut hasher: Hasher,
    from_bytes: u64,
    to_bytes: u64,
) -> io::Result<Hasher> {
    let mut buffer = AlignedBuffer::zeroed(REHASH_BYTES);
    let unit = REHASH_BYTES as u64;
    let mut offset = from_bytes;
    while offset < to_bytes {
        let start = offset / unit * unit;
        let end = (start + unit).min(to_bytes);
        let len = aligned(usize::try_from(end - start).unwrap_or(REHASH_BYTES));
        file.read_at(&mut buffer.as_mut_slice()[..len], PAYLOAD_OFFSET_BYTES + start)?;
        let from = usize::try_from(offset - start).unwrap_or(0);
        let to = usize::try_from(end - start).unwrap_or(0);
        hasher.update(&buffer.as_slice()[from..to]);
        offset = end;
    }
    Ok(hasher)
}
