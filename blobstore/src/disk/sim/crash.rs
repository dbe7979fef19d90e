//! What a crash leaves: draws of what survives of the changes that were not flushed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::SECTOR_BYTES;
use super::image::Image;
use super::state::{Change, FileState, Inode, Op, Pending, State, parents};

/// A small generator of random numbers (splitmix64): the engine's crate has no other, and a seed must mean the same for
/// ever.
#[derive(Clone, Debug)]
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `bound`, which is not zero.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True in `percent` of a hundred draws.
    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How a crash treats what was pending. Independent coins alone would almost never leave nothing, everything, or a clean
/// prefix, which are the likeliest states of a real disk; and they would seldom lose exactly one write, which is what most
/// bugs need.
#[derive(Clone, Copy, Debug)]
enum Style {
    Nothing,
    Everything,
    /// What came before this one survives; the change itself may be torn.
    Before(u64),
    /// All but this one.
    AllBut(u64),
    /// This one alone.
    Only(u64),
    /// Each for itself, `percent` of them whole; of the others some torn.
    Each {
        percent: u64,
    },
    /// Each write sector by sector.
    Torn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Lost,
    Torn,
    Whole,
}

impl Style {
    fn draw(state: &State, draw: &mut Draw) -> Style {
        let sequences: Vec<u64> = state
            .files
            .values()
            .flat_map(|file| file.pending.iter().map(|pending| pending.sequence))
            .chain(state.folders.values().flat_map(|folder| folder.pending.iter().map(|p| p.sequence)))
            .collect();
        let one = |draw: &mut Draw| match sequences.len() as u64 {
            0 => 0,
            count => {
                sequences.iter().copied().nth(usize::try_from(draw.below(count)).unwrap_or(0)).unwrap_or(0)
            }
        };
        match draw.below(8) {
            0 => Style::Nothing,
            1 => Style::Everything,
            2 => Style::Before(one(draw)),
            3 => Style::AllBut(one(draw)),
            4 => Style::Only(one(draw)),
            5 => Style::Torn,
            _ => Style::Each { percent: [10, 50, 90][usize::try_from(draw.below(3)).unwrap_or(0)] },
        }
    }

    fn fate(self, sequence: u64, draw: &mut Draw) -> Fate {
        let whole = |yes| if yes { Fate::Whole } else { Fate::Lost };
        match self {
            Style::Nothing => Fate::Lost,
            Style::Everything => Fate::Whole,
            Style::Before(one) if sequence == one && draw.chance(50) => Fate::Torn,
            Style::Before(one) => whole(sequence < one),
            Style::AllBut(one) if sequence == one && draw.chance(50) => Fate::Torn,
            Style::AllBut(one) => whole(sequence != one),
            Style::Only(one) => whole(sequence == one),
            Style::Each { percent } => match (draw.chance(percent), draw.chance(33)) {
                (true, _) => Fate::Whole,
                (false, true) => Fate::Torn,
                (false, false) => Fate::Lost,
            },
            Style::Torn => Fate::Torn,
        }
    }

    /// Whether this style also puts writes out of order and lets lengths survive without data.
    fn shuffles(self) -> bool {
        matches!(self, Style::Each { .. } | Style::Torn)
    }
}

/// Loses power: of everything pending, some survives.
pub(super) fn lose_power(mut state: State, seed: u64) -> State {
    let mut draw = Draw::new(seed);
    match state.in_flight.take() {
        // A flush under way may have been finished by the device without the answer being heard; its folder entry or
        // length with it. All lesser outcomes are among those drawn below.
        Some(op @ (Op::Sync { .. } | Op::SyncDir { .. })) => {
            let finished = draw.chance(30);
            if finished {
                state.apply(&op);
            }
        }
        Some(op @ Op::CreateDir { .. }) => create_dir_partly(&mut state, &op, &mut draw),
        Some(op @ Op::WriteDurably { .. }) => {
            let finished = draw.chance(30);
            state.apply(&if finished { op } else { op.not_durable() });
        }
        Some(op) => {
            state.apply(&op);
        }
        None => {}
    }
    let style = Style::draw(&state, &mut draw);
    let files: BTreeMap<Inode, FileState> = state
        .files
        .iter()
        .map(|(inode, file)| {
            let image = surviving_image(file, style, &mut draw);
            (*inode, FileState { durable: image.clone(), current: image, ..FileState::default() })
        })
        .collect();
    state.files = files;
    for folder in state.folders.values_mut() {
        let mut names = std::mem::take(&mut folder.durable);
        for pending in std::mem::take(&mut folder.pending) {
            // A name is there or not; it cannot be torn.
            let survives = match style.fate(pending.sequence, &mut draw) {
                Fate::Lost => false,
                Fate::Whole => true,
                Fate::Torn => draw.chance(50),
            };
            if survives {
                pending.change.apply(&mut names);
            }
        }
        folder.current = names.clone();
        folder.durable = names;
    }
    state.close_all_handles();
    state
}

/// Ends the process: everything completed stays, and stays pending; the call under way is done in part.
pub(super) fn kill(mut state: State, seed: u64) -> State {
    let mut draw = Draw::new(seed);
    match state.in_flight.take().map(Op::not_durable) {
        Some(Op::File { inode, change: Change::Write { offset_bytes, bytes } }) => {
            // The kernel copies page by page, from the front.
            let sectors = bytes.len() as u64 / SECTOR_BYTES;
            let kept = match draw.below(3) {
                0 => 0,
                1 => bytes.len() as u64,
                _ => draw.below(sectors + 1) * SECTOR_BYTES,
            };
            let kept = usize::try_from(kept).unwrap_or(bytes.len());
            let change = Change::Write { offset_bytes, bytes: Arc::from(&bytes[..kept]) };
            state.apply(&Op::File { inode, change });
        }
        Some(op @ Op::CreateDir { .. }) => create_dir_partly(&mut state, &op, &mut draw),
        Some(op) if draw.chance(50) => {
            state.apply(&op);
        }
        Some(_) | None => {}
    }
    state.close_all_handles();
    state
}

/// Does what a failed write may have done: some of its sectors.
pub(super) fn write_partly(state: &mut State, op: &Op, draw: &mut Draw) {
    if let Op::File { inode, change: Change::Write { offset_bytes, bytes } } = &op.clone().not_durable() {
        for (at, part) in surviving_sectors(*offset_bytes, bytes, draw) {
            let change = Change::Write { offset_bytes: at, bytes: Arc::from(part) };
            state.apply(&Op::File { inode: *inode, change });
        }
    }
}

fn create_dir_partly(state: &mut State, op: &Op, draw: &mut Draw) {
    let Op::CreateDir { folder } = op else { return };
    let levels = parents(folder).count() as u64;
    let made = draw.below(levels + 1);
    if let Some(parent) =
        made.checked_sub(1).and_then(|last| parents(folder).nth(usize::try_from(last).ok()?))
    {
        state.apply(&Op::CreateDir { folder: Arc::from(parent) });
    }
}

fn surviving_image(file: &FileState, style: Style, draw: &mut Draw) -> Image {
    let mut image = file.durable.clone();
    let mut changes: Vec<&Pending<Change>> = file.pending.iter().collect();
    if style.shuffles() && draw.chance(50) {
        // Lengths are metadata, which file systems journal in order; data between two of them is in no order.
        for run in changes.split_mut(|pending| !matches!(pending.change, Change::Write { .. })) {
            for last in (1..run.len()).rev() {
                run.swap(last, usize::try_from(draw.below(last as u64 + 1)).unwrap_or(last));
            }
        }
    }
    for pending in changes {
        let fate = style.fate(pending.sequence, draw);
        match (&pending.change, fate) {
            (_, Fate::Lost) => {}
            (change, Fate::Whole) => change.apply(&mut image),
            (Change::Write { offset_bytes, bytes }, Fate::Torn) => {
                for (at, part) in surviving_sectors(*offset_bytes, bytes, draw) {
                    image.write(part, at);
                }
            }
            (change @ (Change::Allocate { .. } | Change::Truncate { .. }), Fate::Torn) => {
                if draw.chance(50) {
                    change.apply(&mut image);
                }
            }
        }
        if let Change::Write { offset_bytes, bytes } = &pending.change
            && fate != Fate::Whole
            && style.shuffles()
            && draw.chance(30)
        {
            // The length was journaled, the data never written.
            image.extend_to(offset_bytes + bytes.len() as u64);
        }
    }
    image
}

/// Parts of a write, sector by sector, that survive: the front, the back, or a random choice.
fn surviving_sectors<'a>(offset_bytes: u64, bytes: &'a [u8], draw: &mut Draw) -> Vec<(u64, &'a [u8])> {
    let end_bytes = offset_bytes + bytes.len() as u64;
    let first = offset_bytes / SECTOR_BYTES;
    let count = end_bytes.div_ceil(SECTOR_BYTES) - first;
    let (kind, at) = (draw.below(3), draw.below(count + 1));
    (0..count)
        .filter(|sector| match kind {
            0 => *sector < at,
            1 => *sector >= at,
            _ => draw.chance(50),
        })
        .filter_map(|sector| {
            let from = ((first + sector) * SECTOR_BYTES).max(offset_bytes);
            let to = ((first + sector + 1) * SECTOR_BYTES).min(end_bytes);
            let range =
                usize::try_from(from - offset_bytes).ok()?..usize::try_from(to - offset_bytes).ok()?;
            Some((from, &bytes[range]))
        })
        .collect()
}
