//! Backups: what is held meanwhile, and what the files of a snapshot hold.

use taffrail_blobstore::{RemovalHold, Snapshot};

use super::*;

/// A backup that is under way.
pub(crate) struct Backup {
    hold: RemovalHold,
    /// The files, and what was linked when they were listed.
    snapshot: Option<(Snapshot, Model)>,
}

impl World {
    pub(super) fn hold(&mut self) -> Outcome {
        if self.backup.is_some() {
            ensure!(wait(self.store().hold_removals()).is_err(), "two hold removals at once");
            return Ok(());
        }
        let hold = wait(self.store().hold_removals()).map_err(|error| format!("hold: {error}"))?;
        self.backup = Some(Backup { hold, snapshot: None });
        self.model.held = Held::FilesAndLinks;
        Ok(())
    }

    /// A client's deletion while links are held: it is told to come again, or waits until it is tired of it.
    pub(super) fn unlink_held(&mut self, op: &Op) -> Outcome {
        let mut unlink = self.start_commit(op, self.model.now_ms)?;
        let answer = poll_once(unlink.as_mut());
        ensure!(!matches!(answer, Poll::Ready(Answer::Unlink(Ok(())))), "a link went that is held");
        self.saw("unlink beside a backup");
        Ok(())
    }

    pub(super) fn snapshot(&mut self) -> Outcome {
        let Some(backup) = self.backup.as_mut().filter(|backup| backup.snapshot.is_none()) else {
            return Ok(());
        };
        let snapshot = wait(backup.hold.snapshot()).map_err(|error| format!("snapshot: {error}"))?;
        backup.snapshot = Some((snapshot, self.model.clone()));
        self.model.held = Held::Files;
        Ok(())
    }

    /// Fetches the files of the snapshot, if there is one, as late as a backup may, and lets removals go on.
    pub(super) fn release(&mut self) -> Outcome {
        let Some(Backup { hold, snapshot }) = self.backup.take() else { return Ok(()) };
        if let (Some((snapshot, model)), Some(sim)) = (&snapshot, &self.sim) {
            let copy = SimDisk::new();
            for file in &snapshot.files {
                let contents = sim.contents(&file.name);
                let is_there = contents.is_some();
                ensure!(is_there || file.len_bytes.is_none(), "{} went before it was fetched", file.name);
                let len_bytes = contents.as_ref().map(|contents| contents.len() as u64);
                ensure!(
                    file.len_bytes.is_none_or(|listed| len_bytes == Some(listed)),
                    "{} has {len_bytes:?} bytes, and was listed with {:?}",
                    file.name,
                    file.len_bytes
                );
                copy.plant(&file.name, &contents.unwrap_or_default());
            }
            copy.plant(snapshot.superblock.0, &snapshot.superblock.1);
            let mut restored = World::reopen_on(&copy, model.clone())?;
            ensure!(restored.store().next_lsn() == snapshot.next_lsn, "the copy goes on at another LSN");
            let links = restored.links()?;
            ensure!(links == model.links, "the copy has {links:?}, should have {:?}", model.links);
            restored.compare_contents().map_err(|error| format!("the copy: {error}"))?;
            self.saw("snapshot restored");
        }
        drop(hold);
        self.model.held = Held::Nothing;
        Ok(())
    }
}
