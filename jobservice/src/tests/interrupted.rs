//! Every job, dropped at any `.await` and run again, ends where an undisturbed one does.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use super::world::{HOUR_US, LEASE_US, World, exhaust};
use crate::job::Job;

/// More polls than any round here takes.
const POLLS_MAX: usize = 400;

/// Worlds in which a job is cut, at most, until it was cut often enough: a statement that is answered before the job looks
/// for its answer is no place to cut, and how many are is up to the machine.
const WORLDS_MAX: usize = 50;

/// Polls a future up to so often, then drops it. Says whether it ended.
async fn cut<T>(future: impl Future<Output = T>, polls: usize) -> bool {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        future.as_mut().poll(context).map(|_| true)
    })
    .await
}

/// A world with something to do for everybody: garbage, a deleted image, a stray link, an idle session.
async fn busy() -> World {
    let world = World::new().await;
    world.push("old", &["old layer"]).await;
    world.push("kept", &["shared"]).await;
    world.push("deleted", &["shared", "own"]).await;
    world.upload("stray").await;
    exhaust(&mut world.reconcile()).await;
    world.delete("old").await;
    world.clock.advance(LEASE_US);
    exhaust(&mut world.outbox()).await;
    world.begin();
    world.clock.advance(26 * HOUR_US);
    world.delete("deleted").await;
    world
}

/// What is to be true in the end, whatever happened in between.
async fn check(world: &World) {
    for content in ["kept", "shared"] {
        assert!(world.is_linked(content), "{content}");
    }
    for content in ["old", "old layer", "deleted", "own", "stray"] {
        assert!(!world.is_linked(content), "{content}");
    }
    assert_eq!(world.sources.outbox.waiting().await.unwrap(), 0);
    assert_eq!(world.store.sessions_of(world.repository()), 0);
    assert_eq!(world.counters.missing(), 0);
}

/// Runs `job` cut after 1, 2, 3 … polls until it gets through, then everything once more, and looks. Says how often it was cut.
async fn cut_everywhere<J: Job>(job: impl Fn(&World) -> J) -> usize {
    let world = busy().await;
    let mut cuts = 0;
    for polls in 1..POLLS_MAX {
        // A round takes more than one poll, and each goes a little further, until one ends with nothing left to do.
        if cut(job(&world).round(), polls).await {
            break;
        }
        cuts += 1;
    }
    assert!(cuts < POLLS_MAX - 1, "it never got through");
    settle(&world).await;
    settle(&world).await;
    check(&world).await;
    cuts
}

async fn settle(world: &World) {
    exhaust(&mut world.expiry()).await;
    exhaust(&mut world.outbox()).await;
    exhaust(&mut world.reconcile()).await;
    exhaust(&mut world.collection()).await;
    exhaust(&mut world.compaction(u64::MAX)).await;
}

/// The same in one world after the other, until there were so many cuts.
async fn cut_often<J: Job>(job: impl Fn(&World) -> J, enough: usize) {
    let mut cuts = 0;
    for _ in 0..WORLDS_MAX {
        cuts += cut_everywhere(&job).await;
        if cuts >= enough {
            return;
        }
    }
    panic!("{cuts} cuts in {WORLDS_MAX} worlds: hardly a statement can be cut off");
}

#[tokio::test]
async fn the_outbox() {
    cut_often(World::outbox, 8).await;
}

#[tokio::test]
async fn the_reconciliation() {
    cut_often(World::reconcile, 20).await;
}

// On a disk that answers at once these two have no place to be cut; they are run twice all the same.

#[tokio::test]
async fn the_collection() {
    cut_everywhere(World::collection).await;
}

#[tokio::test]
async fn the_expiry() {
    cut_everywhere(World::expiry).await;
}
