//! Comparing a store with the model: links, figures, sessions, contents; and bringing both to an end.

use super::*;

impl World {
    /// All links the store has, by its own account.
    pub(crate) fn links(&self) -> Outcome<Links> {
        let mut links = Links::new();
        for page in 0..Store::LINK_PAGES {
            for entry in self.store().links_page(page).map_err(|error| format!("links of {page}: {error}"))? {
                let blob =
                    catalog::number(&entry.digest).ok_or_else(|| format!("a link to {}", entry.digest))?;
                let number = catalog::repository_number(entry.repository)
                    .ok_or_else(|| format!("a link of {}", entry.repository.number()))?;
                ensure!(links.insert((number, blob), entry.generation).is_none(), "a link twice");
            }
        }
        Ok(links)
    }

    pub(super) fn compare_links(&mut self, renewed: &BTreeSet<Link>) -> Outcome {
        let links = self.links()?;
        let (has, should): (BTreeSet<&Link>, BTreeSet<&Link>) =
            (links.keys().collect(), self.model.links.keys().collect());
        ensure!(has == should, "links are {has:?}, should be {should:?}");
        for (link, generation) in &links {
            let known = self.model.links[link];
            if renewed.contains(link) {
                ensure!(
                    *generation > known,
                    "{link:?} was renewed and has generation {generation} after {known}"
                );
            } else {
                ensure!(*generation == known, "{link:?} has generation {generation}, should be {known}");
            }
        }
        self.model.links = links;
        Ok(())
    }

    pub(crate) fn compare_counts(&self) -> Outcome {
        let stats = self.store().stats();
        let linked = self.model.linked_blobs().len() as u64;
        let garbage = self.model.garbage.len() as u64;
        if self.model.garbage_is_exact {
            ensure!(
                stats.blobs == linked + garbage,
                "{} blobs are stored, should be {linked} + {garbage}",
                stats.blobs
            );
        } else {
            ensure!(
                (linked..=linked + garbage).contains(&stats.blobs),
                "{} blobs are stored, should be {linked} and up to {garbage}",
                stats.blobs
            );
        }
        ensure!(stats.links == self.model.links.len() as u64, "{} links are counted", stats.links);
        let received: u64 = self.model.sessions.iter().map(|session| session.offset_bytes).sum();
        ensure!(
            stats.session_memory_bytes <= received,
            "{} bytes of sessions are in memory, of {received} received",
            stats.session_memory_bytes
        );
        let bytes = |blobs: &mut dyn Iterator<Item = u8>| {
            blobs.map(|blob| content(blob).bytes.len() as u64).sum::<u64>()
        };
        let linked_bytes = bytes(&mut self.model.linked_blobs().into_iter());
        let garbage_bytes = bytes(&mut self.model.garbage.keys().copied());
        ensure!(
            (linked_bytes..=linked_bytes + garbage_bytes).contains(&stats.blob_bytes),
            "{} bytes are counted, should be {linked_bytes} and up to {garbage_bytes}",
            stats.blob_bytes
        );
        self.compare_sessions()
    }

    /// Every repository has the sessions it should have.
    pub(crate) fn compare_sessions(&self) -> Outcome {
        for number in 0..REPOSITORIES {
            let has = self.store().sessions_of(repository(number));
            let should = self.model.sessions.iter().filter(|session| session.repository == number).count();
            ensure!(has == should, "repository {number} has {has} sessions, should be {should}");
        }
        Ok(())
    }

    /// Reads every blob in full through one of its repositories, and asks all others whether they see it.
    pub(crate) fn compare_contents(&mut self) -> Outcome {
        self.read_everything()?;
        for (number, blob) in self.model.links.keys().copied().collect::<Vec<_>>() {
            self.model.lease(number, blob);
        }
        Ok(())
    }

    pub(super) fn read_everything(&self) -> Outcome {
        let (store, model) = (self.store(), &self.model);
        for blob in 0..catalog::ALL {
            let wanted = content(blob);
            let holders = model.holders(blob);
            let mut said: Vec<u8> = store
                .holders(&wanted.digest, 100)
                .into_iter()
                .filter_map(catalog::repository_number)
                .collect();
            said.sort_unstable();
            ensure!(said == holders, "blob {blob} is held by {said:?}, should be {holders:?}");
            for number in 0..REPOSITORIES {
                match store.stat(repository(number), &wanted.digest, model.now_ms) {
                    Ok(stat) => {
                        ensure!(holders.contains(&number), "repository {number} sees blob {blob}");
                        ensure!(
                            stat.len_bytes == wanted.bytes.len() as u64,
                            "it has {} bytes",
                            stat.len_bytes
                        );
                    }
                    Err(ReadError::Unknown) => {
                        ensure!(!holders.contains(&number), "repository {number} has lost blob {blob}");
                    }
                    Err(error) => return Err(format!("blob {blob}: {error}")),
                }
            }
            if let Some(number) = holders.first() {
                let read = self
                    .read(*number, blob, 0..wanted.bytes.len())
                    .map_err(|error| format!("blob {blob} in {number} is not readable: {error}"))?;
                ensure!(read == wanted.bytes, "blob {blob} has wrong bytes");
            }
        }
        Ok(())
    }

    // Crashes.

    pub(super) fn crash(&mut self, after: After, seed: u64) -> Outcome {
        let disk = match after {
            After::Kill => self.sim().kill(seed),
            After::PowerLoss => self.sim().crash(seed),
        };
        self.drop_store();
        if let Some(moments) = &mut self.moments {
            moments.extend(self.sim.as_ref().unwrap().take_tape());
            disk.start_tape();
        }
        self.disk = Arc::new(disk.clone());
        self.sim = Some(disk);
        self.open()?;
        self.adopt_sessions(after)?;
        self.compare_links(&BTreeSet::new())?;
        self.compare_contents()
    }

    /// Finishes every session that is left.
    pub(crate) fn finish_sessions(&mut self) -> Outcome {
        for session in self.model.sessions.clone() {
            let upload =
                wait(self.store().open_upload(repository(session.repository), session.id, self.model.now_ms))
                    .map_err(|error| format!("{session:?} does not open: {error}"))?;
            ensure!(
                upload.offset_bytes() == session.offset_bytes,
                "{session:?} stands at {}",
                upload.offset_bytes()
            );
            self.finish(upload, &session).map_err(|error| format!("{session:?} does not finish: {error}"))?;
            self.compare_links(&BTreeSet::from([(session.repository, session.blob)]))?;
        }
        self.compare_contents()
    }

    /// Deletes everything, collects and drops the store; then nothing may be left but an empty one.
    pub(crate) fn drain(&mut self) -> Outcome {
        self.release()?;
        self.pins.clear();
        self.model.pins.clear();
        let now_ms = self.model.now_ms;
        for session in self.model.sessions.clone() {
            wait(self.store().abort_upload(repository(session.repository), session.id, now_ms))
                .map_err(|error| format!("abort of {session:?}: {error}"))?;
            self.model.forget_session(session.id);
        }
        for (number, blob) in self.model.links.keys().copied().collect::<Vec<_>>() {
            wait(self.store().unlink(
                repository(number),
                &content(blob).digest,
                self.store().link_generation(repository(number), &content(blob).digest).unwrap_or(0),
                now_ms,
            ))
            .map_err(|error| format!("unlink of {blob} in {number}: {error}"))?;
            self.model.unlink(number, blob);
        }
        self.model.now_ms += 10 * (LEASE_MS + GRACE_MS);
        wait(self.store().collect(self.model.now_ms, usize::MAX))
            .map_err(|error| format!("collect: {error}"))?;
        let stats = self.store().stats();
        ensure!(
            stats.blobs == 0 && stats.links == 0,
            "after everything was deleted there are {} blobs and {} links",
            stats.blobs,
            stats.links
        );
        (self.model.garbage, self.model.garbage_is_exact) = (BTreeMap::new(), true);
        // The first checkpoint covers the deletions, so that the segments before it can go.
        wait(self.store().checkpoint()).map_err(|error| format!("checkpoint: {error}"))?;
        wait(self.store().collect(self.model.now_ms, usize::MAX))
            .map_err(|error| format!("collect: {error}"))?;
        // Files are removed on a storage thread, for which nobody waits but the end of the store.
        self.drop_store();
        self.no_orphans()
    }

    /// No file is left that an empty store does not need.
    fn no_orphans(&self) -> Outcome {
        let Some(sim) = &self.sim else { return Ok(()) };
        let files = sim.files();
        let solos: Vec<&String> =
            files.iter().map(|(name, _)| name).filter(|name| name.starts_with("solo/")).collect();
        ensure!(solos.is_empty(), "an empty store keeps {solos:?}");
        let logs = files.iter().filter(|(name, _)| name.starts_with("log/")).count();
        ensure!(logs <= 2, "an empty store keeps {logs} log segments: {files:?}");
        Ok(())
    }
}
