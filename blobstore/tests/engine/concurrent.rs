//! Many threads at one store with threads of its own: pushes, deletions, reads and collection at the same time, and power
//! lost in the middle of it.
//!
//! Which thread comes first is not repeatable, so that the seed only repeats what each thread does. What is checked holds
//! in every order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use taffrail_blobstore::disk::sim::SimDisk;
use taffrail_blobstore::{
    Options, ReadError, RepositoryKey, SessionId, Store, StoreState, Threading, UnlinkError,
};

use crate::budget::{say, seed};
use crate::catalog::{ALL, SMALL, content};
use crate::crash::mix;
use crate::reference::{GRACE_MS, LEASE_MS};
use crate::watched::Watched;
use crate::world::{options, wait};

const CLIENTS: u64 = 4;
const OPERATIONS: u64 = 1_000;
const POWER_LOSSES_MAX: u64 = 200;

/// What a client knows of a blob in its own repository.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    there: bool,
    /// An operation is under way that may change it.
    unsure: bool,
}

/// What all clients know. An operation is entered before it begins, so that whoever holds the lock knows which may have
/// happened.
type Ledger = Mutex<BTreeMap<(u64, u8), Known>>;

struct Scene {
    store: Store,
    ledger: Ledger,
    clock_ms: AtomicU64,
    sessions: AtomicU64,
    over: AtomicBool,
}

fn key(client: u64) -> RepositoryKey {
    RepositoryKey::new(70_000 + client).unwrap()
}

impl Scene {
    fn now_ms(&self) -> u64 {
        self.clock_ms.load(Ordering::SeqCst)
    }

    /// Pushes or deletes, and enters the outcome.
    fn change(&self, client: u64, blob: u8, push: bool) {
        let slot = (client, blob);
        self.ledger.lock().unwrap().entry(slot).or_default().unsure = true;
        if push {
            self.push(client, blob);
        } else {
            match wait(self.store.unlink(
                key(client),
                &content(blob).digest,
                self.store.link_generation(key(client), &content(blob).digest).unwrap_or(0),
                self.now_ms(),
            )) {
                Ok(()) | Err(UnlinkError::Unknown) => {}
                Err(error) => panic!("unlink: {error}"),
            }
        }
        self.ledger.lock().unwrap().insert(slot, Known { there: push, unsure: false });
    }

    fn push(&self, client: u64, blob: u8) {
        let mut id = [0xcd; 16];
        id[..8].copy_from_slice(&self.sessions.fetch_add(1, Ordering::SeqCst).to_be_bytes());
        let (id, wanted, now_ms) = (SessionId::new(id), content(blob), self.now_ms());
        self.store.begin_upload(key(client), wanted.digest.algorithm(), id, now_ms).unwrap();
        let mut upload = wait(self.store.open_upload(key(client), id, now_ms)).unwrap();
        for from in (0..wanted.bytes.len()).step_by(400_000) {
            let to = wanted.bytes.len().min(from + 400_000);
            wait(upload.write(wanted.bytes.slice(from..to), now_ms)).unwrap();
        }
        wait(upload.commit(&wanted.digest, now_ms)).unwrap();
    }

    /// Reads a blob that this client holds, and nobody else may take away.
    fn read(&self, client: u64, blob: u8) {
        let there = self.ledger.lock().unwrap().get(&(client, blob)).is_some_and(|known| known.there);
        read_and_compare(&self.store, client, blob, there);
    }

    fn client(&self, client: u64, mut random: StdRng) {
        for _ in 0..OPERATIONS {
            let blob = if random.random_range(0..10) == 0 {
                random.random_range(SMALL..ALL)
            } else {
                // Two clients share a blob: with more of them it would hardly ever be without a link.
                random.random_range(0..SMALL / 2) * 2 + u8::from(client.is_multiple_of(2))
            };
            match random.random_range(0..10) {
                0..4 => self.change(client, blob, true),
                4..8 => self.change(client, blob, false),
                _ => self.read(client, blob),
            }
        }
    }

    /// Collects without pause; time flies, so that everything unlinked is due at once.
    fn collect(&self) -> u64 {
        let mut blobs = 0;
        while !self.over.load(Ordering::SeqCst) {
            let now_ms = self.clock_ms.fetch_add(GRACE_MS, Ordering::SeqCst);
            blobs += wait(self.store.collect(now_ms, 50)).unwrap().blobs;
            wait(self.store.checkpoint()).unwrap();
        }
        blobs
    }

    /// Loses power again and again while the others work.
    fn lose_power(&self, disk: &SimDisk, seed: u64) -> u64 {
        let mut losses = 0;
        while !self.over.load(Ordering::SeqCst) && losses < POWER_LOSSES_MAX {
            // Nobody begins anything while the disk is copied; what was begun is entered as unsure.
            let (known, crashed) = {
                let ledger = self.ledger.lock().unwrap();
                (ledger.clone(), disk.crash(mix(seed, losses)))
            };
            let store = Store::open(Arc::new(crashed), options(), self.now_ms()).unwrap();
            assert_eq!(store.state(), StoreState::Writable);
            for ((client, blob), known) in known.iter().filter(|(_, known)| !known.unsure) {
                read_and_compare(&store, *client, *blob, known.there);
            }
            losses += 1;
        }
        losses
    }
}

fn read_and_compare(store: &Store, client: u64, blob: u8, there: bool) {
    let wanted = content(blob);
    let mut reader = match store.open_blob(key(client), &wanted.digest) {
        Ok(reader) => reader,
        Err(ReadError::Unknown) => return assert!(!there, "client {client} lost blob {blob}"),
        Err(error) => panic!("blob {blob}: {error}"),
    };
    assert!(there, "client {client} has blob {blob}, which it deleted");
    let mut at = 0;
    while at < reader.len_bytes() {
        let bytes =
            wait(reader.read(at, reader.len_bytes())).unwrap_or_else(|error| panic!("blob {blob}: {error}"));
        let from = usize::try_from(at).unwrap();
        assert!(bytes == wanted.bytes[from..from + bytes.len()], "blob {blob} has wrong bytes");
        at += bytes.len() as u64;
    }
}

#[test]
fn what_many_clients_were_promised_survives_power_loss_in_the_middle_of_collection() {
    let seed = seed();
    let disk = SimDisk::new();
    let threading = Threading::Pool { storage_threads: 2 };
    // Without leases, so that collection meets pushes of the same blobs as often as can be.
    let options = Options { threading, lease_ms: 0, grace_ms: 0, ..options() };
    let watched = Watched::new(disk.clone());
    let hasty_flushes = Arc::clone(&watched.hasty_flushes);
    let scene = Scene {
        store: Store::open(Arc::new(watched), options, 1_000_000).unwrap(),
        ledger: Mutex::default(),
        clock_ms: AtomicU64::new(1_000_000),
        sessions: AtomicU64::new(1),
        over: AtomicBool::new(false),
    };
    let (collected, losses) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let random = StdRng::seed_from_u64(mix(seed, client));
                let scene = &scene;
                scope.spawn(move || scene.client(client, random))
            })
            .collect();
        let collector = scope.spawn(|| scene.collect());
        let cutter = scope.spawn(|| scene.lose_power(&disk, seed));
        let ends: Vec<_> = clients.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        scene.over.store(true, Ordering::SeqCst);
        let outcome = (collector.join().unwrap(), cutter.join().unwrap());
        ends.into_iter().for_each(|end| end.unwrap());
        outcome
    });
    let ledger = scene.ledger.lock().unwrap().clone();
    for ((client, blob), known) in &ledger {
        read_and_compare(&scene.store, *client, *blob, known.there);
        if known.there {
            wait(scene.store.unlink(
                key(*client),
                &content(*blob).digest,
                scene.store.link_generation(key(*client), &content(*blob).digest).unwrap_or(0),
                scene.now_ms(),
            ))
            .unwrap();
        }
    }
    let later_ms = scene.now_ms() + 10 * (LEASE_MS + GRACE_MS);
    wait(scene.store.collect(later_ms, usize::MAX)).unwrap();
    let stats = scene.store.stats();
    assert_eq!((stats.blobs, stats.links, stats.sessions, stats.session_memory_bytes), (0, 0, 0, 0));
    let hasty = hasty_flushes.load(Ordering::SeqCst);
    assert_eq!(hasty, 0, "files were flushed while writes to them were under way");
    assert!(collected > 0 && losses > 0, "{collected} blobs collected, {losses} power losses");
    say(&format!(
        "{CLIENTS} clients: {collected} blobs collected beside them, {losses} power losses, nothing lost (seed {seed})"
    ));
}
