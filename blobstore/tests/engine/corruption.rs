//! Rot: flipped bits, zeroed, copied and misdirected sectors, files cut short, missing or made of garbage.
//!
//! What is promised: no wrong byte is ever served; damage harms the blob it hit, or, in the log's records, what was in the
//! batch it hit; a store that lost records opens read-only and names the damage; only the torn end of an unsealed log is
//! dropped silently, because a crash looks the same.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use taffrail_blobstore::disk::sim::{Call, Landing, SimDisk};
use taffrail_blobstore::{OpenError, PutError, ReadError, Refusal, Store, StoreState, UploadError};

use crate::budget::{rounds, say, seed};
use crate::catalog::{self, content, repository};
use crate::operation::Op::{self, *};
use crate::reference::{Link, Links, Model};
use crate::world::{Outcome, World, ensure, options, wait};

/// Random damages of each kind in an ordinary run.
const ROUNDS: u64 = 1_500;

/// A store at rest, and what is in it.
struct Image {
    disk: SimDisk,
    history: Vec<Op>,
    /// The model before each operation, and after the last.
    models: Vec<Model>,
}

/// How the store of an image was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// In good order: the log is sealed and a checkpoint covers it.
    Closed,
    /// With a log behind its last checkpoint.
    Killed,
    /// Before there was a checkpoint: all of the log is replayed.
    KilledEarly,
}

/// Records of every kind, several segments, solo files, a session with a file, and a log behind the last checkpoint.
fn history() -> Vec<Op> {
    vec![
        Push { repository: 0, blob: 1 },
        Push { repository: 0, blob: 6 },
        Push { repository: 0, blob: 11 },
        Put { repository: 0, blob: 4, needs: vec![1, 6], pins: 0 },
        Mount { from: 0, to: 1, blob: 6 },
        Push { repository: 1, blob: 9 },
        Push { repository: 1, blob: 10 },
        Unlink { repository: 1, blob: 9 },
        Checkpoint,
        Push { repository: 2, blob: 12 },
        Begin { slot: 0, repository: 2, blob: 13 },
        Write { slot: 0, bytes: 1_400_000 },
        Push { repository: 2, blob: 7 },
        Mount { from: 0, to: 2, blob: 4 },
        Unlink { repository: 1, blob: 6 },
        Push { repository: 0, blob: 8 },
        Push { repository: 1, blob: 5 },
        Push { repository: 1, blob: 3 },
        Push { repository: 1, blob: 2 },
    ]
}

fn image(left: Left) -> Image {
    let disk = SimDisk::new();
    let mut history = history();
    if left == Left::KilledEarly {
        history.retain(|op| *op != Checkpoint);
    }
    let mut world = World::on_sim(&disk).unwrap();
    let mut models = vec![world.model.clone()];
    for op in &history {
        world.step(op).unwrap();
        models.push(world.model.clone());
    }
    match left {
        Left::Closed => world.close().unwrap(),
        Left::Killed | Left::KilledEarly => world.drop_store(),
    }
    Image { disk: disk.fork(), history, models }
}

impl Image {
    fn links(&self) -> &Links {
        &self.models[self.models.len() - 1].links
    }

    /// Blobs that an operation spoke of.
    fn touched(op: &Op) -> BTreeSet<u8> {
        match op {
            Push { blob, .. } | Mount { blob, .. } | Unlink { blob, .. } => BTreeSet::from([*blob]),
            Put { blob, needs, .. } => needs.iter().copied().chain([*blob]).collect(),
            _ => BTreeSet::new(),
        }
    }

    /// Whether the loss of at most `batches` operations explains what is different.
    fn explains(&self, links: &BTreeSet<Link>, batches: usize) -> bool {
        let should: BTreeSet<Link> = self.links().keys().copied().collect();
        let different: BTreeSet<u8> = links.symmetric_difference(&should).map(|(_, blob)| *blob).collect();
        let touched: Vec<BTreeSet<u8>> = self.history.iter().map(Image::touched).collect();
        fn covered(rest: &BTreeSet<u8>, touched: &[BTreeSet<u8>], batches: usize) -> bool {
            let Some(first) = rest.first() else { return true };
            batches > 0
                && touched
                    .iter()
                    .filter(|blobs| blobs.contains(first))
                    .any(|blobs| covered(&(rest - blobs), touched, batches - 1))
        }
        covered(&different, &touched, batches)
    }

    fn open(&self, disk: &SimDisk) -> Outcome<Store> {
        let now_ms = self.models[self.models.len() - 1].now_ms;
        let opened = Store::open(std::sync::Arc::new(disk.clone()), options(), now_ms);
        opened.map_err(|error| format!("the store does not open: {error}"))
    }

    /// All links of a store; `None` when damage of the index hides some.
    fn links_of(store: &Store) -> Outcome<Option<BTreeSet<Link>>> {
        let mut links = BTreeSet::new();
        for page in 0..Store::LINK_PAGES {
            let Ok(found) = store.links_page(page) else { return Ok(None) };
            for entry in found {
                let number = catalog::repository_number(entry.repository).ok_or("a link of nobody")?;
                links.insert((number, catalog::number(&entry.digest).ok_or("a link to nothing")?));
            }
        }
        Ok(Some(links))
    }

    /// Opens a damaged copy and holds it against the promises. `batches` may be lost when the damage is named.
    fn examine(&self, disk: &SimDisk, left: Left, batches: usize) -> Outcome<Found> {
        let mut store = self.open(disk)?;
        let mut links = Image::links_of(&store)?;
        if links.is_none() {
            ensure!(matches!(store.state(), StoreState::Poisoned { .. }), "a damaged index is not said");
            drop(store);
            store = self.open(disk)?;
            links = Image::links_of(&store)?;
        }
        let links = links.ok_or("the index is not made anew")?;
        let state = store.state();
        match &state {
            StoreState::Writable => {
                let keys = |links: &Links| links.keys().copied().collect::<BTreeSet<Link>>();
                let torn =
                    self.models[self.models.len() - 2..].iter().any(|model| keys(&model.links) == links);
                let whole = keys(self.links()) == links;
                ensure!(
                    whole || (left != Left::Closed && torn),
                    "the store opens as if nothing was damaged, with links {links:?}"
                );
            }
            StoreState::ReadOnly { damage } => {
                ensure!(!damage.is_empty(), "the store is read-only and names no damage");
                ensure!(self.explains(&links, batches), "{damage:?} does not explain links {links:?}");
            }
            StoreState::Poisoned { reason } => return Err(format!("poisoned by {reason}")),
        }
        let mut corrupt = BTreeSet::new();
        for (number, blob) in &links {
            if !self.read(&store, *number, *blob)? {
                corrupt.insert(*blob);
            }
        }
        self.heal(&store, &state, &corrupt)?;
        Ok(Found { corrupt: corrupt.len(), read_only: state != StoreState::Writable })
    }

    /// Reads a blob in full; false when it is damaged, and then it must be unknown from now on.
    fn read(&self, store: &Store, number: u8, blob: u8) -> Outcome<bool> {
        let wanted = content(blob);
        let key = repository(number);
        let mut reader = match store.open_blob(key, &wanted.digest) {
            Ok(reader) => reader,
            // Another repository found the damage.
            Err(ReadError::Unknown) => return Ok(false),
            Err(error) => return Err(error.to_string()),
        };
        ensure!(
            reader.len_bytes() == wanted.bytes.len() as u64,
            "blob {blob} has {} bytes",
            reader.len_bytes()
        );
        let mut at = 0;
        while at < reader.len_bytes() {
            match wait(reader.read(at, reader.len_bytes())) {
                Ok(bytes) => {
                    let from = usize::try_from(at).unwrap();
                    ensure!(
                        wanted.bytes[from..from + bytes.len()] == bytes,
                        "blob {blob}: wrong bytes were served"
                    );
                    at += bytes.len() as u64;
                }
                Err(ReadError::Corrupt { .. }) => {
                    let again = store.stat(key, &wanted.digest, 0);
                    ensure!(
                        matches!(again, Err(ReadError::Unknown)),
                        "a damaged blob is still shown: {again:?}"
                    );
                    return Ok(false);
                }
                Err(error) => return Err(format!("blob {blob}: {error}")),
            }
        }
        Ok(true)
    }

    /// Damaged blobs are pushed again; a store that is read-only refuses that.
    fn heal(&self, store: &Store, state: &StoreState, corrupt: &BTreeSet<u8>) -> Outcome {
        for blob in corrupt.iter().copied().chain([0]) {
            let wanted = content(blob);
            let put = wait(store.put(repository(0), &wanted.digest, wanted.bytes.clone(), &[], 0));
            match (put, state) {
                (Ok(_), StoreState::Writable) => {
                    ensure!(self.read(store, 0, blob)?, "blob {blob} does not heal")
                }
                (Err(PutError::Refused(Refusal::ReadOnly)), StoreState::ReadOnly { .. }) => {}
                (put, state) => return Err(format!("{state:?}, and a new push gives {put:?}")),
            }
        }
        Ok(())
    }
}

/// What damage led to.
struct Found {
    corrupt: usize,
    read_only: bool,
}

/// Counts what a sweep found, and panics at the first broken promise.
#[derive(Default)]
struct Tally {
    harmless: u64,
    blobs: u64,
    read_only: u64,
}

impl Tally {
    fn add(&mut self, what: &str, found: Outcome<Found>) {
        let found = found.unwrap_or_else(|error| panic!("{what}: {error}"));
        if found.read_only {
            self.read_only += 1;
        } else if found.corrupt > 0 {
            self.blobs += 1;
        } else {
            self.harmless += 1;
        }
    }

    fn report(&self, name: &str, seed: u64) {
        let Tally { harmless, blobs, read_only } = self;
        say(&format!(
            "{name}: {harmless} harmless, {blobs} of a blob, {read_only} of the log; no wrong byte (seed {seed})"
        ));
        assert!(*blobs > 0 && *read_only > 0 && *harmless > 0, "{name} never hit everything it is for");
    }
}

/// A random place in a random file, files weighted alike: superblocks and headers are small and matter most.
fn place(disk: &SimDisk, random: &mut StdRng) -> (String, u64, u64) {
    let files: Vec<(String, u64)> =
        disk.files().into_iter().filter(|(name, len)| *len > 0 && !name.starts_with("reserve/")).collect();
    let (name, len) = &files[random.random_range(0..files.len())];
    let offset = match random.random_range(0..3) {
        // Where headers and records are: at the beginning of pages at the beginning of files.
        0 => (random.random_range(0..(*len).min(96 * 1024)) / 4096 * 4096 + random.random_range(0..500))
            .min(*len - 1),
        1 => random.random_range(0..(*len).min(64 * 1024)),
        _ => random.random_range(0..*len),
    };
    (name.clone(), *len, offset)
}

fn damage_often(name: &str, damage: impl Fn(&SimDisk, &mut StdRng) -> (String, usize)) {
    let seed = seed();
    let mut tally = Tally::default();
    for left in [Left::Closed, Left::Killed, Left::KilledEarly] {
        let image = image(left);
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..rounds(ROUNDS) / 3 {
            let disk = image.disk.fork();
            let (what, batches) = damage(&disk, &mut random);
            tally
                .add(&format!("{left:?}, {what}, TAFFRAIL_SEED={seed}"), image.examine(&disk, left, batches));
        }
    }
    tally.report(name, seed);
}

#[test]
fn a_flipped_bit_anywhere_is_never_served() {
    damage_often("bit flips", |disk, random| {
        let (name, _, offset) = place(disk, random);
        let bit = random.random_range(0..8);
        assert!(disk.flip_bit(&name, offset, bit));
        (format!("bit {bit} of byte {offset} of {name}"), 1)
    });
}

#[test]
fn a_zeroed_page_is_never_served() {
    damage_often("zeroed pages", |disk, random| {
        let (name, len, offset) = place(disk, random);
        let page = offset / 4096 * 4096;
        disk.overwrite(&name, page, &vec![0; usize::try_from((len - page).min(4096)).unwrap()]);
        (format!("page at {page} of {name} zeroed"), 1)
    });
}

#[test]
fn a_page_in_the_place_of_another_is_never_served() {
    damage_often("copied pages", |disk, random| {
        let (from, _, from_offset) = place(disk, random);
        let (to, _, to_offset) = place(disk, random);
        let (from_page, to_page) = (from_offset / 4096 * 4096, to_offset / 4096 * 4096);
        let bytes = disk.contents(&from).unwrap();
        let start = usize::try_from(from_page).unwrap();
        disk.overwrite(&to, to_page, &bytes[start..bytes.len().min(start + 4096)]);
        (format!("page at {from_page} of {from} copied to {to_page} of {to}"), 1)
    });
}

#[test]
fn a_file_that_lost_its_end_is_never_served_past_it() {
    damage_often("cut files", |disk, random| {
        loop {
            let (name, _, offset) = place(disk, random);
            let last = disk.files().into_iter().map(|(name, _)| name).rfind(|name| name.starts_with("log/"));
            // The end of the log may be torn off by a crash as well; that is another test.
            if last.as_ref() != Some(&name) {
                assert!(disk.cut(&name, offset));
                return (format!("{name} cut to {offset}"), usize::MAX);
            }
        }
    });
}

#[test]
fn a_write_that_lands_elsewhere_or_nowhere_is_never_served() {
    let seed = seed();
    let clean = image(Left::Killed);
    let mut random = StdRng::seed_from_u64(seed);
    let writes = clean_writes();
    let mut tally = Tally::default();
    let mut noticed = 0;
    for write in 0..writes {
        for _ in 0..4 {
            let disk = SimDisk::new();
            let (name, _, offset) = place(&clean.disk, &mut random);
            let landing = match random.random_range(0..3) {
                0 => Landing::Nowhere,
                1 => Landing::At { offset_bytes: offset / 4096 * 4096 },
                _ => Landing::In { name, offset_bytes: offset / 4096 * 4096 },
            };
            disk.misdirect(write, landing.clone());
            let Ok(mut world) = World::on_sim(&disk) else { continue };
            // The device says that all is well. Of all this, only the index is read back while the store is open.
            let stepped = clean.history.iter().try_for_each(|op| world.step(op));
            if let Err(error) = stepped {
                let noticed_as = ["the disk failed a write", "poisoned", "a page of the index is damaged"];
                let is_noticed = noticed_as.iter().any(|it| error.contains(it));
                assert!(is_noticed, "write {write} {landing:?}: {error}, TAFFRAIL_SEED={seed}");
                noticed += 1;
                continue;
            }
            world.drop_store();
            let disk = disk.fork();
            // A large write covers many batches where it lands, and leaves its own place empty.
            let found = match clean.examine(&disk, Left::Killed, usize::MAX) {
                // Both superblocks can be gone: one where the write should have gone, one where it went.
                Err(error) if error.contains("neither superblock") => continue,
                found => found,
            };
            tally.add(&format!("write {write} {landing:?}, TAFFRAIL_SEED={seed}"), found);
        }
    }
    say(&format!("{noticed} misdirected writes were noticed at once"));
    tally.report("misdirected writes", seed);
}

/// Writes of the history, without those of making the store.
fn clean_writes() -> u64 {
    let disk = SimDisk::new();
    let mut world = World::on_sim(&disk).unwrap();
    world.run(&history()).unwrap();
    disk.count(Call::Write)
}

#[test]
fn a_log_that_is_cut_short_loses_its_end_and_nothing_else() {
    let image = image(Left::Killed);
    let keys = |model: &Model| model.links.keys().copied().collect::<BTreeSet<Link>>();
    let (name, len) = image.disk.files().into_iter().rfind(|(name, _)| name.starts_with("log/")).unwrap();
    let bytes = image.disk.contents(&name).unwrap();
    let end = (bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1).next_multiple_of(4096);
    assert!(end < len, "the last segment is not full");
    let mut seen = BTreeSet::new();
    for cut in (end.saturating_sub(12 * 1024)..=end).rev().step_by(61) {
        let disk = image.disk.fork();
        disk.cut(&name, cut);
        let world =
            World::reopen_on(&disk, image.models[0].clone()).unwrap_or_else(|error| panic!("{cut}: {error}"));
        let links: BTreeSet<Link> = world.links().unwrap().keys().copied().collect();
        let state = image.models.iter().rposition(|model| keys(model) == links);
        let state = state.unwrap_or_else(|| panic!("cut at {cut}: links are {links:?}"));
        seen.insert(image.models.len() - 1 - state);
    }
    assert!(seen.contains(&0) && seen.contains(&3), "lost {seen:?} operations");
}

#[test]
fn checkpoints_are_derived_and_may_be_lost_or_garbled() {
    for left in [Left::Closed, Left::Killed] {
        let image = image(left);
        let checkpoints: Vec<(String, u64)> =
            image.disk.files().into_iter().filter(|(name, _)| name.starts_with("index/")).collect();
        assert!(!checkpoints.is_empty());
        for damage in 0..3 {
            let disk = image.disk.fork();
            for (name, len) in &checkpoints {
                match damage {
                    0 => assert!(disk.uproot(name)),
                    1 => assert!(disk.overwrite(name, 0, &catalog::noise(5, usize::try_from(*len).unwrap()))),
                    _ => assert!(disk.cut(name, len / 2)),
                }
            }
            let mut world = World::reopen_on(&disk, image.models[image.models.len() - 1].clone()).unwrap();
            world.step(&Tick { ms: 0 }).unwrap_or_else(|error| panic!("{left:?} {damage}: {error}"));
            world.compare_contents().unwrap();
        }
    }
}

#[test]
fn no_flipped_bit_of_the_index_changes_an_answer() {
    for left in [Left::Closed, Left::Killed] {
        let image = image(left);
        let files = image.disk.files().into_iter().filter(|(name, _)| name.starts_with("index/"));
        let mut partitions = 0;
        for (name, len) in files {
            partitions += usize::from(name.ends_with(".idx"));
            // The first and the last page of entries, and what stands behind them.
            for at in (0..len).step_by(397) {
                let disk = image.disk.fork();
                assert!(disk.flip_bit(&name, at, 3));
                let found = image.examine(&disk, left, 0);
                let found = found.unwrap_or_else(|error| panic!("{left:?}, byte {at} of {name}: {error}"));
                assert!(found.corrupt == 0 && !found.read_only, "{left:?}, byte {at} of {name}");
            }
        }
        assert!(partitions > 0);
    }
}

#[test]
fn one_superblock_is_enough_and_none_is_said_so() {
    let image = image(Left::Closed);
    let model = &image.models[image.models.len() - 1];
    for name in ["SUPER.0", "SUPER.1"] {
        for lost in [true, false] {
            let disk = image.disk.fork();
            assert!(if lost { disk.uproot(name) } else { disk.overwrite(name, 0, &[0xff; 4096]) });
            let mut world = World::reopen_on(&disk, model.clone()).unwrap();
            world.step(&Tick { ms: 0 }).unwrap_or_else(|error| panic!("{name} {lost}: {error}"));
            world.compare_contents().unwrap();
        }
    }
    let disk = image.disk.fork();
    assert!(disk.flip_bit("SUPER.0", 9, 0) && disk.flip_bit("SUPER.1", 9, 0));
    let opened = Store::open(std::sync::Arc::new(disk), options(), model.now_ms);
    assert!(matches!(opened, Err(OpenError::Superblock(_))), "{opened:?}");
    let disk = image.disk.fork();
    assert!(disk.uproot("SUPER.0") && disk.uproot("SUPER.1"));
    let opened = Store::open(std::sync::Arc::new(disk), options(), model.now_ms);
    assert!(opened.is_err(), "a store without superblocks is not taken for an empty folder: {opened:?}");
}

#[test]
fn files_that_are_not_the_engines_are_left_alone_and_do_no_harm() {
    for left in [Left::Closed, Left::Killed, Left::KilledEarly] {
        let image = image(left);
        let disk = image.disk.fork();
        let strange = [
            "log/README",
            "log/0000000000000002.SEG",
            "log/zz00000000000002.seg",
            "log/2.seg",
            "notes.txt",
            "solo/x",
            "solo/01/0000000100000001.seg.bak",
            "solo/zz/0000000100000001.seg",
            "index/0000000000000001.tmp",
            "index/what",
            "lost+found/#17",
        ];
        for name in strange {
            disk.plant(name, b"not ours");
        }
        disk.plant("log/00000000000000f0.seg", b"");
        disk.plant("solo/ee/00000000000000ee.seg", &catalog::noise(4, 9_000));
        let mut world = World::reopen_on(&disk, image.models[image.models.len() - 1].clone()).unwrap();
        world.adopt_sessions(crate::world::After::Kill).unwrap();
        world.step(&Push { repository: 0, blob: 0 }).unwrap_or_else(|error| panic!("{left:?}: {error}"));
        world.compare_contents().unwrap();
        for name in strange {
            assert_eq!(disk.contents(name).as_deref(), Some(b"not ours".as_slice()), "{name}");
        }
    }
}

#[test]
fn a_missing_log_segment_is_named_and_the_rest_is_served() {
    for left in [Left::Closed, Left::Killed, Left::KilledEarly] {
        let image = image(left);
        let segments: Vec<String> = image
            .disk
            .files()
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| name.starts_with("log/"))
            .collect();
        assert!(segments.len() > 2);
        // Without the last one, the log of a killed store merely ends earlier.
        for name in &segments[..segments.len() - 1] {
            let disk = image.disk.fork();
            assert!(disk.uproot(name));
            let found = image
                .examine(&disk, left, usize::MAX)
                .unwrap_or_else(|error| panic!("{left:?}, {name}: {error}"));
            assert!(found.read_only, "{left:?}: {name} is missing and nobody says so");
        }
    }
}

#[test]
fn a_missing_or_shortened_solo_file_harms_its_blob_alone() {
    let image = image(Left::Closed);
    let solos: Vec<(String, u64)> =
        image.disk.files().into_iter().filter(|(name, _)| name.starts_with("solo/")).collect();
    assert_eq!(solos.len(), 3, "two blobs and a session");
    let mut harmed = 0;
    for (name, len) in solos {
        for cut in [None, Some(0), Some(4096), Some(len - 1)] {
            let disk = image.disk.fork();
            assert!(cut.map_or_else(|| disk.uproot(&name), |cut| disk.cut(&name, cut)));
            let found = image
                .examine(&disk, Left::Closed, 0)
                .unwrap_or_else(|error| panic!("{name} cut to {cut:?}: {error}"));
            assert!(!found.read_only && found.corrupt <= 1);
            harmed += found.corrupt;
        }
    }
    assert_eq!(harmed, 8, "two of them are blobs");
}

#[test]
fn a_damaged_session_file_never_becomes_a_blob_of_other_bytes() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let image = image(Left::Killed);
    let model = &image.models[image.models.len() - 1];
    let session = model.sessions.first().unwrap().clone();
    let key = repository(session.repository);
    let wanted = content(session.blob);
    // Of the three solo files, the one that no blob has.
    let (name, _) = image.disk.files().into_iter().rfind(|(name, _)| name.starts_with("solo/")).unwrap();
    for _ in 0..rounds(200) {
        let disk = image.disk.fork();
        let offset = random.random_range(0..1_400_000);
        assert!(disk.flip_bit(&name, offset, 3));
        let store = Store::open(std::sync::Arc::new(disk), options(), model.now_ms).unwrap();
        let mut upload = match wait(store.open_upload(key, session.id, model.now_ms)) {
            Ok(upload) => upload,
            Err(UploadError::Io(_)) => continue,
            Err(error) => panic!("bit of byte {offset}: {error}; TAFFRAIL_SEED={seed}"),
        };
        let from = usize::try_from(upload.offset_bytes()).unwrap();
        wait(upload.write(wanted.bytes.slice(from..), model.now_ms)).unwrap();
        match wait(upload.commit(&wanted.digest, model.now_ms)) {
            Ok(_) => {
                let whole = image.read(&store, session.repository, session.blob);
                assert!(whole.is_ok(), "bit of byte {offset}: {whole:?}; TAFFRAIL_SEED={seed}");
            }
            Err(UploadError::Mismatch { .. }) => {}
            Err(error) => panic!("bit of byte {offset}: {error}; TAFFRAIL_SEED={seed}"),
        }
    }
}
