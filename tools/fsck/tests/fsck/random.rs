//! Damage at random: whatever is hit, the checker neither panics nor gives up, says "clean" only of a store that serves everything,
//! and a repair leads to a store that takes writes.

use std::fs;
use std::path::PathBuf;

use taffrail_blobstore::Digest;

use crate::image::{Image, Left, digest, noise};
use crate::program::{check, fsck};
use crate::repair::linked;

/// Damaged stores of an ordinary run. `TAFFRAIL_FSCK_ROUNDS` makes it more.
const ROUNDS: u64 = 24;

/// A source of numbers, printed with every failure.
struct Dice {
    seed: u64,
    rolls: u64,
}

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.rolls += 1;
        let bytes = noise(self.seed * 1_000 + self.rolls, 16);
        let number = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        usize::try_from(number % bound as u64).unwrap()
    }
}

/// The files that damage may hit.
fn files(image: &Image) -> Vec<String> {
    let mut names = vec!["SUPER.0".to_owned(), "SUPER.1".to_owned()];
    names.extend(image.segments().iter().map(|id| id.log_name()));
    names.extend(image.solos().iter().map(|id| id.solo_name()));
    if image.file("index").read_dir().unwrap().next().is_some() {
        names.push(image.checkpoint());
        names.push(image.partition());
    }
    names
}

/// Damages one file, and says how.
fn damage(image: &Image, dice: &mut Dice) -> String {
    let names = files(image);
    let name = &names[dice.below(names.len())];
    let path: PathBuf = image.file(name);
    let mut bytes = fs::read(&path).unwrap();
    if bytes.is_empty() {
        return format!("{name} is empty already");
    }
    // Half of the damages hit the first pages, where the structure is.
    let bound = if dice.below(2) == 0 { bytes.len().min(16_384) } else { bytes.len() };
    let at = dice.below(bound);
    let what = match dice.below(6) {
        0 => {
            bytes[at] ^= 1 << dice.below(8);
            "a bit flipped"
        }
        1 => {
            let end = (at + 4096).min(bytes.len());
            bytes[at..end].fill(0);
            "4096 bytes zeroed"
        }
        2 => {
            bytes.truncate(at);
            "cut"
        }
        3 => {
            let from = dice.below(bytes.len()) / 4096 * 4096;
            let (at, len) = (at / 4096 * 4096, 4096.min(bytes.len() - from.max(at / 4096 * 4096)));
            bytes.copy_within(from..from + len, at);
            "a page copied over another"
        }
        4 => {
            let end = (at + 70_000).min(bytes.len());
            let noise = noise(at as u64, end - at);
            bytes[at..end].copy_from_slice(&noise);
            "70,000 bytes of noise"
        }
        _ => {
            fs::remove_file(&path).unwrap();
            return format!("{name} removed");
        }
    };
    fs::write(&path, bytes).unwrap();
    format!("{name} at {at}: {what}")
}

/// What the store serves, opened for reading in a copy.
fn serves_everything(image: &Image) -> bool {
    let world = image.open();
    let whole = |(number, digest): &(u64, Digest)| {
        world.read(*number, digest).is_ok_and(|bytes| Digest::of(digest.algorithm(), &bytes) == *digest)
    };
    world.is_writable() && linked().iter().all(whole)
}

#[test]
fn whatever_is_damaged_the_checker_tells_and_a_repair_mends() {
    #[expect(clippy::disallowed_methods, reason = "a longer run is the operator's wish")]
    let rounds =
        std::env::var("TAFFRAIL_FSCK_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    for seed in 0..rounds {
        let mut dice = Dice { seed, rolls: 0 };
        let left = [Left::Closed, Left::Killed, Left::KilledEarly][dice.below(3)];
        let image = Image::usual(left);
        let count = 1 + dice.below(3);
        let damages: Vec<String> = (0..count).map(|_| damage(&image, &mut dice)).collect();
        let story = format!("seed {seed}, {left:?}: {damages:?}");

        let before = check(image.path());
        if before.stderr.contains("both superblocks are damaged") || before.stderr.contains("no store here") {
            continue;
        }
        assert!(matches!(before.code, 0..=2), "{story}: {before:?}");
        assert_eq!(fsck(&["inspect"], image.path()).code, 0, "{story}");
        // Two readings of one log: the engine refuses writes for what the checker names, and for nothing else.
        let refused = !Image::copy_of(image.path()).open().is_writable();
        let named = |kind: &str, severity: &str| {
            before.findings(kind).iter().any(|finding| finding["severity"] == severity)
        };
        let must = named("batches", "lost")
            || named("segment-missing", "lost")
            || named("segment-header", "repairable")
            || !before.findings("link-without-blob").is_empty();
        let may = must || !before.findings("chain").is_empty();
        assert!(!must || refused, "{story}: the engine takes writes in spite of {}", before.stdout);
        assert!(!refused || may, "{story}: the engine refuses writes in spite of {}", before.stdout);
        // A torn tail is no damage when nothing says that it was ever whole.
        let tail_lost = !before.findings("torn-tail").is_empty() || left != Left::Closed;
        let repaired = fsck(&["repair", "--json"], image.path());
        assert!(repaired.code <= 1, "{story}: {repaired:?}");
        let after = check(image.path());
        assert!(after.code <= 1, "{story}: {}", after.stdout);
        let whole = serves_everything(&image);
        assert!(
            whole || before.code == 2 || tail_lost,
            "{story}: clean, and yet something is lost: {}",
            before.stdout
        );
        let mut world = image.open();
        assert!(world.is_writable(), "{story}: {:?}", world.store.state());
        world.put(1, 99, 5_000);
        assert!(world.read(1, &digest(99, 5_000)).is_ok(), "{story}");
    }
}
