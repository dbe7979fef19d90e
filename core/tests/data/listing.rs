//! What a catalog names, listed for whoever holds a store against it.

use std::collections::BTreeSet;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use taffrail_core::backup::{Line, list};

use crate::world::{World, image};

/// Cuts the write-ahead log, as a server does now and then; says whether a reader was in the way.
fn cut_log(world: &World) -> bool {
    let path = world.directory.path().join("taffrail.db");
    let cut = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut connection = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
            let (busy, _, _): (i64, i64, i64) =
                sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut connection).await.unwrap();
            busy == 0
        })
    };
    std::thread::scope(|scope| scope.spawn(cut).join().unwrap())
}

/// The list was one transaction: a reader that took its time kept the server's write-ahead log growing for as long.
#[tokio::test]
async fn whoever_reads_the_list_slowly_does_not_hold_the_database() {
    let world = World::new().await;
    let layers: Vec<String> = (0..9_000).map(|number| format!("layer {number}")).collect();
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    for name in ["p/a", "p/b"] {
        let grant = world.grant(name).await;
        world.put(&grant, image("m", &layers, &["v1"])).await.unwrap();
    }
    let (mut seen, mut lines) = (BTreeSet::new(), 0);
    let path = world.directory.path().join("taffrail.db");
    list(&path, |line| {
        lines += 1;
        seen.insert(match line {
            Line::Repository { key, name } => (key, name),
            Line::Reference { key, digest } => (key, digest),
        });
        if lines % 3_000 == 0 {
            assert!(cut_log(&world), "line {lines} is read in a transaction");
        }
        true
    })
    .await
    .unwrap();
    assert_eq!(lines, 2 + 2 * 9_002);
    assert_eq!(seen.len(), lines, "each once");
    let mut few = 0;
    list(&path, |_| {
        few += 1;
        few < 5
    })
    .await
    .unwrap();
    assert_eq!(few, 5);
}
