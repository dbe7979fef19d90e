//! Upload sessions and checkpoints.

use std::sync::Arc;

use bytes::Bytes;

use super::world::{HOUR_US, World, exhaust};
use crate::checkpoint::Checkpoint;

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
