//! Taking a whole file in by sharing its extents with the file system (reflink): nothing is written but the end of it.
//!
//! What must stay true: what is hashed and summed is read back from our own file, after it was shared, so that a source that
//! changes meanwhile changes nothing here.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::buffer::AlignedBuffer;
use crate::engine::Engine;
use crate::error::UploadError;
use crate::format::solo::{PAYLOAD_OFFSET_BYTES, block_place};
use crate::format::{BLOCK_BYTES, UPLOAD_INLINE_BYTES_MAX};
use crate::hasher::Hasher;
use crate::repository::SessionId;
use crate::solo::{SoloWriter, WRITE_BYTES};
use crate::sync::Arc;

use super::{Upload, closing, solo_error};

/// Bytes read back at once: whole blocks.
const READ_BYTES: usize = 4 * BLOCK_BYTES;

const _: () = assert!(READ_BYTES.is_multiple_of(BLOCK_BYTES) && WRITE_BYTES.is_multiple_of(BLOCK_BYTES));

/// Whether a file was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// All of it: the session is to be committed.
    Whole,
    /// Nothing of it: it is too small for a file of its own, or the file system does not share. The session stands at 0 as before.
    Nothing,
}

/// A file that was shared and read back.
struct Taken {
    solo: SoloWriter,
    hasher: Hasher,
    /// What is behind the last whole unit.
    tail: Vec<u8>,
}

impl Upload {
    /// Takes the first `len_bytes` of `source` in as the session's whole content. Only in a session without a byte.
    ///
    /// Reads all of it once, on a storage thread. How far the session came survives no crash before its commit.
    ///
    /// # Errors
    /// As [`Upload::write`]; `Io` also when the source is shorter or cannot be read. The session is gone.
    pub async fn share(
        &mut self,
        source: fs::File,
        len_bytes: u64,
        now_ms: u64,
    ) -> Result<Shared, UploadError> {
        let limit_bytes = self.engine.options.blob_bytes_max;
        if len_bytes > limit_bytes {
            return Err(UploadError::TooLarge { limit_bytes });
        }
        if let Some(refusal) = self.engine.health.refusal() {
            return Err(UploadError::Refused(refusal));
        }
        let Some(data) = self.data.as_ref() else { return Err(UploadError::Unknown) };
        let is_fresh = data.offset_bytes == 0 && data.solo.is_none() && !data.is_logged;
        if !is_fresh || len_bytes <= UPLOAD_INLINE_BYTES_MAX as u64 {
            return Ok(Shared::Nothing);
        }
        let hasher = Hasher::new(data.algorithm);
        let (engine, id) = (Arc::clone(&self.engine), self.id);
        let taken = self.engine.pool.run(move || take(&engine, id, hasher, &source, len_bytes, now_ms));
        match taken.await.unwrap_or_else(|| Err(closing())) {
            Ok(taken) => {
                let Some(data) = self.data.as_mut() else { return Err(UploadError::Unknown) };
                (data.hasher, data.offset_bytes) = (taken.hasher, len_bytes);
                data.keep_hashed(&self.engine, &taken.tail);
                data.solo = Some(taken.solo);
                Ok(Shared::Whole)
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(Shared::Nothing),
            Err(error) => {
                let error = solo_error(&self.engine, error);
                Err(self.fail(error).await)
            }
        }
    }
}

/// Makes the session's file, shares the whole units, and reads them back. Blocks on the disk.
fn take(
    engine: &Arc<Engine>,
    session: SessionId,
    mut hasher: Hasher,
    source: &fs::File,
    len_bytes: u64,
    now_ms: u64,
) -> io::Result<Taken> {
    let mut solo = SoloWriter::create(engine, session, hasher.algorithm(), now_ms)?;
    let whole_bytes = len_bytes / WRITE_BYTES as u64 * WRITE_BYTES as u64;
    let file = solo.file();
    file.share_from(source, whole_bytes, PAYLOAD_OFFSET_BYTES)?;
    let mut buffer = AlignedBuffer::zeroed(READ_BYTES);
    while solo.written_bytes < whole_bytes {
        let left = usize::try_from(whole_bytes - solo.written_bytes).unwrap_or(READ_BYTES);
        let read = &mut buffer.as_mut_slice()[..left.min(READ_BYTES)];
        file.read_at(read, PAYLOAD_OFFSET_BYTES + solo.written_bytes)?;
        hasher.update(read);
        for block in read.chunks(BLOCK_BYTES) {
            let place = block_place(solo.segment, solo.epoch, solo.written_bytes / BLOCK_BYTES as u64);
            solo.crcs.push(engine.key.block_crc(place, block));
            solo.written_bytes += block.len() as u64;
        }
    }
    let mut tail = vec![0; usize::try_from(len_bytes - whole_bytes).unwrap_or(0)];
    source.read_exact_at(&mut tail, whole_bytes)?;
    hasher.update(&tail);
    Ok(Taken { solo, hasher, tail })
}
