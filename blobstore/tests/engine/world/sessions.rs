//! Operations on upload sessions.

use super::*;

impl World {
    pub(crate) fn new_session_id(&mut self) -> SessionId {
        let mut bytes = [0x5e; 16];
        bytes[..8].copy_from_slice(&self.next_session.to_be_bytes());
        self.next_session += 1;
        SessionId::new(bytes)
    }

    pub(super) fn begin(&mut self, slot: u8, number: u8, blob: u8) -> Outcome {
        let id = self.new_session_id();
        let now_ms = self.model.now_ms;
        let status = self
            .store()
            .begin_upload(repository(number), content(blob).digest.algorithm(), id, now_ms)
            .map_err(|error| format!("begin: {error}"))?;
        ensure!(
            status.id == id && status.offset_bytes == 0,
            "a new session stands at {}",
            status.offset_bytes
        );
        self.model.slots.insert(slot, id);
        self.model.sessions.push(Session {
            id,
            repository: number,
            blob,
            offset_bytes: 0,
            acknowledged_bytes: 0,
            touched_ms: (now_ms, now_ms),
        });
        Ok(())
    }

    pub(super) fn open_slot(&mut self, slot: u8) -> Outcome<Option<taffrail_blobstore::Upload>> {
        let now_ms = self.model.now_ms;
        let Some(session) = self.model.session(slot).cloned() else { return Ok(None) };
        let strange = repository(session.repository + 1);
        ensure!(
            matches!(self.store().upload_status(strange, session.id, now_ms), Err(UploadError::Unknown)),
            "another repository sees the session"
        );
        let upload = wait(self.store().open_upload(repository(session.repository), session.id, now_ms))
            .map_err(|error| format!("open session: {error}"))?;
        ensure!(
            upload.offset_bytes() == session.offset_bytes,
            "session stands at {}, should be {}",
            upload.offset_bytes(),
            session.offset_bytes
        );
        ensure!(
            matches!(
                wait(self.store().open_upload(repository(session.repository), session.id, now_ms)),
                Err(UploadError::Busy)
            ),
            "a session was opened twice"
        );
        Ok(Some(upload))
    }

    pub(super) fn write(&mut self, slot: u8, bytes: u32) -> Outcome {
        let Some(mut upload) = self.open_slot(slot)? else { return Ok(()) };
        let now_ms = self.model.now_ms;
        let next = self.model.session(slot).unwrap().next(u64::from(bytes));
        for piece in pieces(&next) {
            wait(upload.write(piece, now_ms)).map_err(|error| format!("write: {error}"))?;
        }
        let status = wait(upload.acknowledge(now_ms)).map_err(|error| format!("acknowledge: {error}"))?;
        let session = self.model.session_mut(slot).unwrap();
        session.offset_bytes += next.len() as u64;
        session.acknowledged_bytes = session.offset_bytes;
        ensure!(status.offset_bytes == session.offset_bytes, "acknowledged {}", status.offset_bytes);
        Ok(())
    }

    pub(super) fn leave(&mut self, slot: u8, bytes: u32) -> Outcome {
        let Some(mut upload) = self.open_slot(slot)? else { return Ok(()) };
        let now_ms = self.model.now_ms;
        let next = self.model.session(slot).unwrap().next(u64::from(bytes));
        for piece in pieces(&next) {
            wait(upload.write(piece, now_ms)).map_err(|error| format!("write: {error}"))?;
        }
        drop(upload);
        self.model.session_mut(slot).unwrap().offset_bytes += next.len() as u64;
        Ok(())
    }

    pub(super) fn rewind(&mut self, slot: u8, bytes: u32) -> Outcome {
        let Some(mut upload) = self.open_slot(slot)? else { return Ok(()) };
        let now_ms = self.model.now_ms;
        let garbage = self.model.session(slot).unwrap().garbage(u64::from(bytes));
        for piece in pieces(&garbage) {
            wait(upload.write(piece, now_ms)).map_err(|error| format!("write: {error}"))?;
        }
        upload.rewind();
        let status = wait(upload.acknowledge(now_ms)).map_err(|error| format!("acknowledge: {error}"))?;
        let session = self.model.session_mut(slot).unwrap();
        session.acknowledged_bytes = session.offset_bytes;
        ensure!(status.offset_bytes == session.offset_bytes, "rewound to {}", status.offset_bytes);
        Ok(())
    }

    pub(super) fn restart(&mut self, slot: u8, blob: u8, bytes: u32) -> Outcome {
        let Some(mut upload) = self.open_slot(slot)? else { return Ok(()) };
        let now_ms = self.model.now_ms;
        wait(upload.restart(now_ms)).map_err(|error| format!("restart: {error}"))?;
        ensure!(upload.offset_bytes() == 0, "restarted at {}", upload.offset_bytes());
        let mut session = self.model.session(slot).unwrap().clone();
        (session.blob, session.offset_bytes) = (blob, 0);
        let next = session.next(u64::from(bytes));
        for piece in pieces(&next) {
            wait(upload.write(piece, now_ms)).map_err(|error| format!("write: {error}"))?;
        }
        let status = wait(upload.acknowledge(now_ms)).map_err(|error| format!("acknowledge: {error}"))?;
        ensure!(status.offset_bytes == next.len() as u64, "acknowledged {}", status.offset_bytes);
        let known = self.model.session_mut(slot).unwrap();
        known.blob = blob;
        known.offset_bytes = next.len() as u64;
        known.acknowledged_bytes = known.offset_bytes;
        Ok(())
    }

    pub(super) fn commit(&mut self, slot: u8) -> Outcome<BTreeSet<Link>> {
        let Some(upload) = self.open_slot(slot)? else { return Ok(BTreeSet::new()) };
        let session = self.model.session(slot).unwrap().clone();
        if session.acknowledged_bytes > 0 {
            self.saw("session of several requests committed");
        }
        self.finish(upload, &session)?;
        Ok(BTreeSet::from([(session.repository, session.blob)]))
    }

    /// Writes what a session lacks and commits it.
    pub(super) fn finish(&mut self, mut upload: taffrail_blobstore::Upload, session: &Session) -> Outcome {
        let now_ms = self.model.now_ms;
        let wanted = content(session.blob);
        for piece in pieces(&session.next(wanted.bytes.len() as u64)) {
            wait(upload.write(piece, now_ms)).map_err(|error| format!("write: {error}"))?;
        }
        let stat = wait(upload.commit(&wanted.digest, now_ms)).map_err(|error| format!("commit: {error}"))?;
        ensure!(
            stat.digest == wanted.digest && stat.len_bytes == wanted.bytes.len() as u64,
            "committed as {} of {} bytes",
            stat.digest,
            stat.len_bytes
        );
        self.model.forget_session(session.id);
        self.model.link(session.repository, session.blob);
        let gone = self.store().upload_status(repository(session.repository), session.id, now_ms);
        ensure!(matches!(gone, Err(UploadError::Unknown)), "a committed session is still there");
        Ok(())
    }

    pub(super) fn commit_wrong(&mut self, slot: u8, bytes: u32) -> Outcome {
        let Some(mut upload) = self.open_slot(slot)? else { return Ok(()) };
        let now_ms = self.model.now_ms;
        let session = self.model.session(slot).unwrap().clone();
        for piece in pieces(&session.garbage(u64::from(bytes))) {
            wait(upload.write(piece, now_ms)).map_err(|error| format!("write: {error}"))?;
        }
        match wait(upload.commit(&content(session.blob).digest, now_ms)) {
            Err(UploadError::Mismatch { .. }) => self.saw("wrong digest"),
            other => return Err(format!("wrong bytes were committed: {other:?}")),
        }
        // Touched, and back where it was.
        self.model.session_mut(slot);
        Ok(())
    }

    pub(super) fn abort(&mut self, slot: u8) -> Outcome {
        let Some(session) = self.model.session(slot).cloned() else { return Ok(()) };
        let now_ms = self.model.now_ms;
        wait(self.store().abort_upload(repository(session.repository), session.id, now_ms))
            .map_err(|error| format!("abort: {error}"))?;
        self.model.forget_session(session.id);
        Ok(())
    }

    pub(super) fn expire(&mut self) -> Outcome {
        let now_ms = self.model.now_ms;
        let ended = wait(self.store().expire_sessions(now_ms));
        let before_ms = now_ms.saturating_sub(SESSION_IDLE_MS);
        let mut gone = Vec::new();
        for session in &mut self.model.sessions {
            let (must, may) = (session.touched_ms.1 < before_ms, session.touched_ms.0 <= before_ms);
            match self.store.as_ref().unwrap().upload_status(
                repository(session.repository),
                session.id,
                now_ms,
            ) {
                Ok(_) => {
                    ensure!(!must, "session {} outlived its time", session.id);
                    session.touched_ms = (now_ms, now_ms);
                }
                Err(UploadError::Unknown) => {
                    ensure!(may, "session {} was ended early", session.id);
                    gone.push(session.id);
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        ensure!(ended == gone.len(), "{ended} sessions were ended, {} are gone", gone.len());
        for id in gone {
            self.saw("session expired");
            self.model.forget_session(id);
        }
        Ok(())
    }

    /// After a restart: which sessions are still there, and where they stand.
    pub(crate) fn adopt_sessions(&mut self, after: After) -> Outcome {
        let now_ms = self.model.now_ms;
        let mut gone = Vec::new();
        for index in 0..self.model.sessions.len() {
            let session = self.model.sessions[index].clone();
            let offset_bytes = self.resumed_offset(&session, after)?;
            match offset_bytes {
                Some(offset_bytes) => {
                    match (after, offset_bytes) {
                        (After::Kill, 1..) => self.saw("session resumed after kill"),
                        (After::PowerLoss, 1..) => self.saw("session resumed after power loss"),
                        (After::Kill | After::PowerLoss, 0) => self.saw("session resumed at 0"),
                    }
                    let session = &mut self.model.sessions[index];
                    session.offset_bytes = offset_bytes;
                    session.acknowledged_bytes = session.acknowledged_bytes.min(offset_bytes);
                    session.touched_ms = (now_ms, now_ms);
                }
                None => {
                    self.saw("session forgotten");
                    gone.push(session.id);
                }
            }
        }
        for id in gone {
            self.model.forget_session(id);
        }
        Ok(())
    }

    /// Where a session stands after a restart, held against what was promised.
    pub(crate) fn resumed_offset(&self, session: &Session, after: After) -> Outcome<Option<u64>> {
        let key = repository(session.repository);
        let upload = match wait(self.store().open_upload(key, session.id, self.model.now_ms)) {
            Ok(upload) => upload,
            Err(UploadError::Unknown) => {
                ensure!(!session.must_survive(), "{session:?} was forgotten");
                return Ok(None);
            }
            Err(error) => return Err(format!("{session:?} does not resume: {error}")),
        };
        let offset_bytes = upload.offset_bytes();
        drop(upload);
        ensure!(offset_bytes <= session.offset_bytes, "{session:?} resumes at {offset_bytes}");
        if after == After::Kill && session.must_survive() {
            ensure!(
                offset_bytes >= session.acknowledged_bytes,
                "{session:?} lost bytes: it resumes at {offset_bytes}"
            );
        }
        Ok(Some(offset_bytes))
    }

    pub(crate) fn knows_session(&self, number: u8, id: SessionId) -> bool {
        self.store().upload_status(repository(number), id, self.model.now_ms).is_ok()
    }

    /// Which of `plans` a resumed session is on its way to. The engine says what the bytes hash to when they are
    /// committed as something else, and goes back to where the session was opened.
    pub(crate) fn plan_of(&self, session: &Session, offset_bytes: u64, plans: &[u8]) -> Outcome<u8> {
        let first = *plans.first().unwrap_or(&session.blob);
        if plans.iter().all(|plan| *plan == first) {
            return Ok(first);
        }
        for plan in plans {
            let resumed = Session { blob: *plan, offset_bytes, ..session.clone() };
            if offset_bytes > content(*plan).bytes.len() as u64 {
                continue;
            }
            let now_ms = self.model.now_ms;
            let mut upload =
                wait(self.store().open_upload(repository(session.repository), session.id, now_ms))
                    .map_err(|error| format!("open {session:?}: {error}"))?;
            for piece in pieces(&resumed.next(u64::MAX)) {
                wait(upload.write(piece, now_ms)).map_err(|error| format!("write: {error}"))?;
            }
            let wanted = content(*plan).digest;
            let other = Digest::of(wanted.algorithm(), b"none of the blobs");
            match wait(upload.commit(&other, now_ms)) {
                Err(UploadError::Mismatch { actual }) if actual == wanted => return Ok(*plan),
                Err(UploadError::Mismatch { .. }) => {}
                other => return Err(format!("wrong bytes were committed: {other:?}")),
            }
        }
        Err(format!("{session:?} resumed at {offset_bytes} with bytes of none of {plans:?}"))
    }
}
