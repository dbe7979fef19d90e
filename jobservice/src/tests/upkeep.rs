//! Upload sessions and checkpoints.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::world::{HOUR_US, World, exhaust};
use crate::checkpoint::Checkpoint;
use crate::job::{Job as _, Round};

#[tokio::test]
async fn idle_sessions_are_ended_and_used_ones_are_not() {
    let world = World::new().await;
    world.begin_with_bytes().await;
    world.clock.advance(23 * HOUR_US);
    let used = world.begin_with_bytes().await;
    let empty = world.begin();
    world.clock.advance(2 * HOUR_US);
    exhaust(&mut world.expiry()).await;
    assert_eq!(world.counters.expired(), 2, "an empty one is not kept for a day");
    assert!(world.store.upload_status(world.repository(), empty, world.context.now_ms()).is_err());
    assert_eq!(world.store.sessions_of(world.repository()), 1);
    assert!(world.store.upload_status(world.repository(), used, world.context.now_ms()).is_ok());
}

#[tokio::test]
async fn a_checkpoint_is_written_when_much_would_be_replayed_and_not_again() {
    let world = World::new().await;
    let mut checkpoint = Checkpoint {
        store: Arc::clone(&world.store),
        counters: Arc::clone(&world.counters),
        floor_bytes: 0,
        replay_bytes_max: 4 << 20,
    };
    exhaust(&mut checkpoint).await;
    assert_eq!(world.counters.checkpoints(), 0);
    for number in 0..8_u8 {
        world.upload_bytes(Bytes::from(vec![number; 700 << 10])).await;
    }
    let before_bytes = world.store.replay_bytes();
    assert!(before_bytes > 4 << 20);
    exhaust(&mut checkpoint).await;
    assert_eq!(world.counters.checkpoints(), 1);
    assert!(world.store.replay_bytes() < before_bytes);
    exhaust(&mut checkpoint).await;
    assert_eq!(world.counters.checkpoints(), 1);
}

/// A world whose log has segments in each of which one small blob is left.
async fn with_garbage() -> World {
    let world = World::new().await;
    world.push("kept", &["layer"]).await;
    let now_ms = world.context.now_ms();
    for number in 0..5_u8 {
        world.upload_bytes(Bytes::from(vec![number; 100])).await;
        let digest = world.upload_bytes(Bytes::from(vec![number; 700 << 10])).await;
        let generation = world.store.link_generation(world.repository(), &digest).unwrap();
        world.store.unlink(world.repository(), &digest, generation, now_ms).await.unwrap();
    }
    world.clock.advance(3 * HOUR_US);
    exhaust(&mut world.collection()).await;
    world.store.checkpoint().await.unwrap();
    world
}

#[tokio::test]
async fn log_segments_that_are_mostly_dead_are_given_back_at_the_pace_that_is_set() {
    let world = with_garbage().await;
    let before = world.store.stats().log;
    assert!(before.backlog_bytes > 600 << 10, "{before:?}");
    exhaust(&mut world.compaction(0)).await;
    assert_eq!(world.store.stats().log, before, "switched off");
    let (mut compaction, mut rested) = (world.compaction(100_000), Duration::ZERO);
    while let Round::After(rest) = compaction.round().await.unwrap() {
        rested += rest;
    }
    let after = world.store.stats().log;
    assert!(after.backlog_bytes == 0 && after.bytes < before.bytes / 2, "{after:?} after {before:?}");
    let counters = &world.counters;
    assert!(counters.compacted_segments() > 0 && counters.compaction_copied_bytes() > 0);
    assert!(counters.compaction_freed_bytes() > 600 << 10);
    assert!(world.is_linked("kept") && world.is_linked("layer"));
    // Several segments of 700 KiB were read; behind the last portion comes the pause between two looks.
    assert!(rested.as_secs() >= 14, "{rested:?}");
}
