//! The scrub: when it is due, how fast, and what the operator is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use taffrail_blobstore::Digest;

use super::world::{HOUR_US, World, digest, exhaust};
use crate::ScrubOptions;
use crate::job::{Job as _, Round};
use crate::quarantine::Quarantine;
use crate::scrub::Scrub;

const DAY_US: i64 = 24 * HOUR_US;

const OPTIONS: ScrubOptions = ScrubOptions {
    period: Duration::from_secs(7 * 24 * 3600),
    digest_period: Duration::from_secs(30 * 24 * 3600),
    bytes_per_s: 8 << 20,
};

impl World {
    fn scrub(&self) -> Scrub {
        Scrub {
            store: Arc::clone(&self.store),
            scrubs: self.sources.scrubs.clone(),
            context: self.context.clone(),
            counters: Arc::clone(&self.counters),
            options: OPTIONS,
            pass: None,
        }
    }

    fn quarantine(&self) -> Quarantine {
        Quarantine {
            store: Arc::clone(&self.store),
            scrubs: self.sources.scrubs.clone(),
            repositories: self.sources.repositories.clone(),
            named: BTreeSet::new(),
        }
    }

    /// Flips a bit of a blob on the disk.
    fn rot(&self, content: &str) {
        let rotted = self.disk.files().into_iter().any(|(name, _)| {
            let file = self.disk.contents(&name).unwrap();
            let at = file.windows(content.len()).position(|window| window == content.as_bytes());
            at.is_some_and(|at| self.disk.flip_bit(&name, at as u64, 0))
        });
        assert!(rotted);
    }
}

/// Rounds until the pass is over; gives the rests.
async fn pass(scrub: &mut Scrub) -> Vec<Duration> {
    let mut rests = Vec::new();
    loop {
        match scrub.round().await.unwrap() {
            Round::After(rest) => rests.push(rest),
            Round::Idle => return rests,
            Round::More => panic!("no rest after a step"),
        }
    }
}

#[tokio::test]
async fn everything_is_read_once_a_period_and_held_against_digests_more_seldom() {
    let world = World::new().await;
    for number in 0..40 {
        world.upload(&format!("blob {number}")).await;
    }
    let mut scrub = world.scrub();
    let rests = pass(&mut scrub).await;
    // Forty small blobs count as 64 KiB each, and so does a look at the log.
    let second = Duration::from_secs(1);
    assert!(rests.iter().sum::<Duration>() > second / 4 && rests.len() >= 2, "{rests:?}");
    assert!(rests.iter().all(|rest| *rest < second), "{rests:?}");
    assert_eq!((world.counters.scrub_blobs(), world.counters.scrub_passes()), (40, 1));
    let state = world.sources.scrubs.load().await.unwrap();
    assert_eq!((state.completed_us, state.digests_us), (state.begun_us, state.begun_us));
    assert_eq!(world.counters.scrub_completed_us(), u64::try_from(world.context.now_micros()).unwrap());
    for (after_us, passes, is_deep) in
        [(7 * DAY_US - 1, 1, true), (1, 2, false), (7 * DAY_US, 3, false), (16 * DAY_US, 4, true)]
    {
        world.clock.advance(after_us);
        pass(&mut scrub).await;
        assert_eq!(world.counters.scrub_passes(), passes);
        let state = world.sources.scrubs.load().await.unwrap();
        assert_eq!(state.digests_us == state.completed_us, is_deep, "pass {passes}");
    }
    // A clock that ran ahead, and is right again, keeps nothing from being due.
    world.clock.advance(-2 * DAY_US);
    pass(&mut scrub).await;
    assert_eq!(world.counters.scrub_passes(), 5);
}

#[tokio::test]
async fn a_pass_goes_on_after_a_restart_where_it_was_kept() {
    let world = World::new().await;
    for number in 0..100 {
        world.upload(&format!("blob {number}")).await;
    }
    let mut scrub = world.scrub();
    assert!(matches!(scrub.round().await.unwrap(), Round::After(_)));
    assert!(matches!(scrub.round().await.unwrap(), Round::After(_)));
    // It is kept every half minute.
    world.clock.advance(60_000_000);
    assert!(matches!(scrub.round().await.unwrap(), Round::After(_)));
    let before = world.counters.scrub_blobs();
    assert!((20..80).contains(&before), "{before}");
    assert!(world.counters.scrub_permille() > 0);
    drop(scrub);
    let mut scrub = world.scrub();
    pass(&mut scrub).await;
    assert_eq!((world.counters.scrub_blobs(), world.counters.scrub_passes()), (100, 1));
}

#[tokio::test]
async fn a_damaged_layer_is_set_aside_and_its_images_are_named_until_it_is_pushed_again() {
    let world = World::new().await;
    world.push("v1", &["shared layer", "other layer"]).await;
    world.push("v2", &["shared layer"]).await;
    world.push("v3", &["other layer"]).await;
    world.rot("shared layer");
    pass(&mut world.scrub()).await;
    assert_eq!((world.counters.scrub_bad_blobs(), world.store.stats().quarantined), (1, 1));
    let mut quarantine = world.quarantine();
    exhaust(&mut quarantine).await;
    let bad: BTreeSet<Digest> = BTreeSet::from([digest("shared layer")]);
    assert_eq!(quarantine.named, bad);
    let harmed = world.sources.scrubs.harmed(world.repository(), &digest("shared layer"), 10).await.unwrap();
    assert_eq!(harmed.iter().map(ToString::to_string).collect::<Vec<_>>(), ["p/r:v1", "p/r:v2"]);
    // As a client does that is told that the layer is unknown.
    world.upload("shared layer").await;
    exhaust(&mut quarantine).await;
    assert!(quarantine.named.is_empty());
    assert_eq!(world.store.stats().quarantined, 0);
    assert!(world.is_linked("shared layer"));
}

#[tokio::test]
async fn damage_of_the_log_is_counted_and_a_checkpoint_keeps_what_it_said() {
    let world = World::new().await;
    world.push("v1", &["layer"]).await;
    let (name, _) = world.disk.files().into_iter().find(|(name, _)| name.starts_with("log/")).unwrap();
    assert!(world.disk.flip_bit(&name, 4_096 + 150, 1));
    let replay_bytes = world.store.replay_bytes();
    pass(&mut world.scrub()).await;
    assert_eq!((world.counters.scrub_log_damages(), world.counters.scrub_bad_blobs()), (1, 0));
    assert!(world.disk.files().iter().any(|(name, _)| name.starts_with("index/")));
    assert!(world.store.replay_bytes() <= replay_bytes && world.is_linked("layer"));
}

/// Each step that found damage wrote a checkpoint, and a log that is damaged all over had one written for every MiB that was read.
#[tokio::test]
async fn a_log_that_is_damaged_all_over_is_checkpointed_now_and_then() {
    let world = World::new().await;
    for number in 0..12_u8 {
        let digest = world.upload_bytes(vec![number; 1_000_000].into()).await;
        let rotted = world.disk.files().into_iter().any(|(name, _)| {
            let file = world.disk.contents(&name).unwrap();
            let at = file.windows(32).position(|window| window == digest.bytes());
            at.is_some_and(|at| world.disk.flip_bit(&name, at as u64, 0))
        });
        assert!(rotted);
    }
    let mut scrub = world.scrub();
    let (mut checkpoints, mut steps) = (BTreeSet::new(), 0);
    loop {
        let before = world.counters.scrub_log_damages();
        let round = scrub.round().await.unwrap();
        steps += u64::from(world.counters.scrub_log_damages() > before);
        checkpoints.extend(
            world.disk.files().into_iter().map(|(name, _)| name).filter(|name| name.ends_with(".ckp")),
        );
        // A clock that stands still: the first one, and one at the end.
        if round == Round::Idle {
            break;
        }
    }
    assert!(steps >= 4, "{steps}");
    assert!((1..=2).contains(&checkpoints.len()), "{checkpoints:?} in {steps} steps that found damage");
}
