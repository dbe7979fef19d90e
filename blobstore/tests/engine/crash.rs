//! Crashes at every change of the disk, with what survives drawn many times, and crashes of the recovery itself.
//!
//! A history runs once, and the simulated disk keeps a copy of itself at every change. Each copy then crashes with several
//! seeds; the store is opened on what is left and held against the model before and after the operation that was under way.

use proptest::collection::vec;
use proptest::strategy::Strategy;
use taffrail_blobstore::SessionId;
use taffrail_blobstore::disk::sim::SimDisk;

use crate::budget::{Budget, check_one, say, seed};
use crate::operation::{Crashes, Op, backup, history};
use crate::reference::{Model, Session};
use crate::world::{After, Outcome, World, ensure};

/// Episodes of a history at most.
const HISTORY_LENGTH: usize = 16;

/// Backups of a history at most.
const BACKUPS_MAX: usize = 3;

/// Outcomes of power loss that are drawn for every copy of the disk.
const SURVIVALS: u64 = 3;

/// One crash in so many is followed by a sweep of its recovery.
const RECOVERIES_ONE_IN: u64 = 12;

/// One crash in so many is followed by power loss when the store is open again.
const LOSSES_AFTER_ONE_IN: u64 = 3;

/// One crash in so many takes the checkpoints as well: the log alone says all there is to say.
const LOG_ALONE_ONE_IN: u64 = 3;

/// One crash in so many is followed by finishing all sessions, deleting everything, and collecting.
const DRAINS_ONE_IN: u64 = 10;

/// A history that was run, to be crashed.
pub(crate) struct Tape {
    /// The disk at every change, and in which operation that was.
    moments: Vec<(SimDisk, usize)>,
    /// The model before each operation, and after the last.
    models: Vec<Model>,
}

impl Tape {
    pub(crate) fn record(disk: &SimDisk, history: &[Op]) -> Outcome<Tape> {
        let mut world = World::on_sim(disk)?;
        world.record();
        let mut tape = Tape { moments: Vec::new(), models: vec![world.model.clone()] };
        for (number, op) in history.iter().enumerate() {
            world.step(op).map_err(|error| format!("at operation {number}, {op:?}: {error}"))?;
            tape.moments.extend(world.take_moments().into_iter().map(|disk| (disk, number)));
            tape.models.push(world.model.clone());
        }
        tape.moments.push((world.sim().fork(), history.len()));
        Ok(tape)
    }
}

/// What should be found after a crash: the state before an operation, or after it.
struct Expected<'a> {
    before: &'a Model,
    after: &'a Model,
    how: After,
    /// A session that is being restarted holds nothing for a moment, and such a session may be forgotten.
    restarting: Option<SessionId>,
}

/// Crashes everywhere in `history`; gives the number of crash points. Every other seed has a disk that gains from zeros ahead of the log.
pub(crate) fn sweep(history: &[Op], seed: u64) -> Outcome<u64> {
    sweep_on(&disk_of(seed), history, seed)
}

/// An empty disk, of one kind or the other.
pub(crate) fn disk_of(seed: u64) -> SimDisk {
    let disk = SimDisk::new();
    if seed.is_multiple_of(2) {
        disk.set_gains_from_zeros();
    }
    disk
}

pub(crate) fn sweep_on(disk: &SimDisk, history: &[Op], seed: u64) -> Outcome<u64> {
    let tape = Tape::record(disk, history)?;
    let mut points = 0;
    for (number, (moment, op)) in tape.moments.iter().enumerate() {
        let after = tape.models.get(op + 1).unwrap_or(&tape.models[*op]);
        for draw in 0..=SURVIVALS {
            let how = if draw == SURVIVALS { After::Kill } else { After::PowerLoss };
            let survival = mix(seed, number as u64 * 16 + draw);
            let before = &tape.models[*op];
            let restarting = match history.get(*op) {
                Some(Op::Restart { slot, .. }) => before.slots.get(slot).copied(),
                Some(_) | None => None,
            };
            let expected = Expected { before, after, how, restarting };
            points += crash(moment, &expected, survival).map_err(|error| {
                let op = history.get(*op).map_or_else(|| "the end".to_owned(), |op| format!("{op:?}"));
                format!("{how:?} at change {number}, in {op}, survival {survival}: {error}")
            })?;
        }
    }
    Ok(points)
}

fn crash(moment: &SimDisk, expected: &Expected<'_>, survival: u64) -> Outcome<u64> {
    let crashed = || match expected.how {
        After::Kill => moment.kill(survival),
        After::PowerLoss => moment.crash(survival),
    };
    let mut points = 1;
    let mut world = examine(&crashed(), expected)?;
    if (survival / LOSSES_AFTER_ONE_IN).is_multiple_of(LOG_ALONE_ONE_IN) {
        let disk = crashed();
        lose_checkpoints(&disk);
        examine(&disk, expected).map_err(|error| format!("from the log alone: {error}"))?;
        points += 1;
    }
    if survival.is_multiple_of(LOSSES_AFTER_ONE_IN) {
        // What a reopened store has shown stays, also when it shows what the process before had not flushed.
        let shown = world.model.clone();
        let again = Expected { before: &shown, after: &shown, how: After::PowerLoss, restarting: None };
        examine(&world.sim().crash(mix(survival, 1)), &again)
            .map_err(|error| format!("then, when power was lost after the recovery: {error}"))?;
        points += 1;
    }
    if survival.is_multiple_of(DRAINS_ONE_IN) {
        world.finish_sessions()?;
        world.drain()?;
    }
    drop(world);
    if (survival / DRAINS_ONE_IN).is_multiple_of(RECOVERIES_ONE_IN) {
        let disk = crashed();
        disk.start_tape();
        let mut recovery = reopen(&disk, expected)?;
        recovery.drop_store();
        for (number, moment) in disk.take_tape().iter().enumerate() {
            let survival = mix(survival, number as u64);
            let how = if survival.is_multiple_of(4) { After::Kill } else { After::PowerLoss };
            let crashed = match how {
                After::Kill => moment.kill(survival),
                After::PowerLoss => moment.crash(survival),
            };
            // Two ends in a row promise what the harder one promises.
            let how = if expected.how == After::Kill && how == After::Kill {
                After::Kill
            } else {
                After::PowerLoss
            };
            examine(&crashed, &Expected { how, ..*expected }).map_err(|error| {
                format!("then at change {number} of the recovery, survival {survival}: {error}")
            })?;
            points += 1;
        }
    }
    Ok(points)
}

/// Takes everything away that is derived from the log.
fn lose_checkpoints(disk: &SimDisk) {
    for (name, _) in disk.files().iter().filter(|(name, _)| name.starts_with("index/")) {
        disk.uproot(name);
    }
}

fn reopen(disk: &SimDisk, expected: &Expected<'_>) -> Outcome<World> {
    let mut model = expected.before.clone();
    model.now_ms = expected.after.now_ms;
    World::reopen_on(disk, model)
}

/// Opens what a crash left and compares it with both states that are right.
fn examine(disk: &SimDisk, expected: &Expected<'_>) -> Outcome<World> {
    let mut world = reopen(disk, expected)?;
    let links = world.links()?;
    let (before, after) = (expected.before, expected.after);
    ensure!(
        links == before.links || links == after.links,
        "links are {links:?}, should be {:?} or {:?}",
        before.links,
        after.links
    );
    world.model.links = links;
    // What has no link may have been collected by the operation under way.
    world.model.garbage_is_exact = false;
    world.model.garbage.extend(after.garbage.iter().map(|(blob, since_ms)| (*blob, *since_ms)));
    let linked = world.model.linked_blobs();
    world.model.garbage.retain(|blob, _| !linked.contains(blob));
    world.compare_contents()?;
    // A batch is there in full or not at all: where the links tell which state this is, the sessions must agree.
    let settled = (before.links != after.links).then(|| world.model.links == after.links);
    let mut sessions = Vec::new();
    for (was, is) in both(before, after) {
        let states = match settled {
            Some(true) => vec![is],
            Some(false) => vec![was],
            None => vec![was, is],
        };
        let id = was.or(is).map(|session| (session.repository, session.id));
        let forgettable = id.is_some_and(|(_, id)| expected.restarting == Some(id));
        match resumed(&world, id, &states, expected.how) {
            Ok(session) => sessions.extend(session),
            Err(_)
                if forgettable && !id.is_some_and(|(repository, id)| world.knows_session(repository, id)) => {
            }
            Err(error) => return Err(error),
        }
    }
    world.model.sessions = sessions;
    world.compare_counts()?;
    Ok(world)
}

/// Every session as it was before and as it is after.
fn both<'a>(before: &'a Model, after: &'a Model) -> Vec<(Option<&'a Session>, Option<&'a Session>)> {
    let find = |model: &'a Model, id| model.sessions.iter().find(|session| session.id == id);
    let mut pairs: Vec<_> =
        before.sessions.iter().map(|session| (Some(session), find(after, session.id))).collect();
    let new = after.sessions.iter().filter(|session| find(before, session.id).is_none());
    pairs.extend(new.map(|session| (None, Some(session))));
    pairs
}

/// What became of a session, which should be in one of `states`; `None` there and as the answer: it is not there.
fn resumed(
    world: &World,
    id: Option<(u8, SessionId)>,
    states: &[Option<&Session>],
    how: After,
) -> Outcome<Option<Session>> {
    let mut errors = Vec::new();
    for state in states {
        match state {
            Some(session) => match world.resumed_offset(session, how) {
                Ok(Some(offset_bytes)) => {
                    let plans: Vec<u8> = states.iter().flatten().map(|session| session.blob).collect();
                    let blob = world.plan_of(session, offset_bytes, &plans)?;
                    let acknowledged_bytes = session.acknowledged_bytes.min(offset_bytes);
                    return Ok(Some(Session {
                        blob,
                        offset_bytes,
                        acknowledged_bytes,
                        ..(*session).clone()
                    }));
                }
                Ok(None) => return Ok(None),
                Err(error) => errors.push(error),
            },
            None => match id {
                Some((repository, id)) if world.knows_session(repository, id) => {
                    errors.push(format!("session {id} is there, and should not be"));
                }
                Some(_) | None => return Ok(None),
            },
        }
    }
    Err(errors.join("; "))
}

/// A seed from a seed.
pub(crate) fn mix(seed: u64, number: u64) -> u64 {
    let mixed = (seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 29)
}

/// Sweeps random histories until the budget is spent.
fn sweep_histories(name: &str, strategy: impl Strategy<Value = Vec<Op>>, share: u64) {
    let (seed, budget) = (seed(), Budget::crash_points(share));
    let (mut points, mut histories) = (0, 0);
    // Both kinds of disk have one at least.
    while histories < 2 || !budget.is_spent(points) {
        // The first history of a seed is the one that a failure names, so that it is repeated at once.
        let case = seed + histories;
        check_one(name, case, &strategy, |history| {
            points += sweep(history, case)?;
            Ok(())
        });
        histories += 1;
    }
    say(&format!("{name}: {points} crash points in {histories} histories, nothing lost (seed {seed})"));
}

#[test]
fn nothing_acknowledged_is_lost_at_any_crash() {
    sweep_histories("crash sweep", history(HISTORY_LENGTH, Crashes::Never), 50);
}

#[test]
fn nothing_acknowledged_is_lost_at_any_crash_of_a_store_that_crashed_before() {
    sweep_histories("crash sweep of crashed stores", history(HISTORY_LENGTH, Crashes::Between), 30);
}

/// A hold lives in memory: after a crash what waited behind it may go, and all of it does.
#[test]
fn nothing_is_lost_and_nothing_is_left_at_any_crash_of_a_store_that_is_being_backed_up() {
    let backups = vec(backup(Crashes::Never), 1..=BACKUPS_MAX).prop_map(|backups| backups.concat());
    sweep_histories("crash sweep of backups", backups, 20);
}
