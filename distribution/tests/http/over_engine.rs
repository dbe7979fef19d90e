//! The same API over the local engine on a real disk: the adapter, and what only the engine decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_blobstore::{Algorithm, Digest, Options, RepositoryKey, SessionId, Store, Uploader};
use taffrail_distribution::blobs::{BlobError, Blobs, PutError, UploadError};
use taffrail_distribution::engine::Engine;
use taffrail_distribution::limits::Limits;
use taffrail_distribution::manifest::OCI_IMAGE;
use taffrail_distribution::registry::Registry;

use crate::client::{End, Frames, Scene, image, sha256};

/// A store in a folder that goes with it.
struct Folder {
    _folder: tempfile::TempDir,
    engine: Engine,
}

fn folder(change: impl FnOnce(&mut Options)) -> Folder {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(ThreadsDisk::open_or_create(folder.path()).unwrap());
    let mut options = Options::new([7; 48]);
    options.segment_bytes = 16 << 20;
    options.reserve_bytes = 1 << 20;
    change(&mut options);
    let store = Arc::new(Store::open(disk, options, 1_000).unwrap());
    let made = AtomicU64::new(1);
    let ids = move || {
        let mut bytes = [0_u8; 16];
        bytes[..8].copy_from_slice(&made.fetch_add(1, Ordering::SeqCst).to_be_bytes());
        SessionId::new(bytes)
    };
    Folder { _folder: folder, engine: Engine::new(store, Arc::new(|| 1_000), Arc::new(ids)) }
}

fn scene(folder: &Folder) -> Scene {
    let mut scene = Scene::new();
    let registry = Registry::new(
        Arc::new(folder.engine.clone()),
        Arc::clone(&scene.catalog) as Arc<_>,
        Arc::clone(&scene.access) as Arc<_>,
        Limits::default(),
    );
    scene.registry = Arc::new(registry);
    scene
}

fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(len)
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_goes_in_and_out_in_every_size_and_algorithm() {
    let folder = folder(|_| {});
    let scene = scene(&folder);
    let config = scene.push_blob("alice", "pa/app", b"{}").await;
    for len in [0, 1, 4096, (256 << 10) + 1, 1 << 20, (1 << 20) + 1, 3_000_000] {
        let layer = content(len);
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, &layer);
            let location = scene.begin("alice", "pa/app").await;
            let frames = layer.chunks(60_000).map(Bytes::copy_from_slice).collect::<Vec<_>>();
            let patch = scene.patch("alice", &location).frames(Frames::chunked(frames, End::Clean));
            patch.expect(202).await;
            let answer = scene.put("alice", format!("{location}?digest={digest}")).expect(201).await;
            let path = answer.header("location").to_owned();
            assert_eq!(scene.get("guest", &path).expect(200).await.bytes(), layer, "{algorithm} {len}");
            if len > 10 {
                let range = format!("bytes=3-{}", len - 2);
                let answer = scene.get("guest", &path).header("Range", &range).expect(206).await;
                assert_eq!(answer.bytes(), &layer[3..len - 1]);
            }
        }
        let document = image(&[(config, 2), (sha256(&layer), len)]);
        scene.push_manifest("alice", "pa/app", &format!("v{len}"), &document).await;
        let answer = scene.get("guest", format!("/v2/pa/app/manifests/v{len}")).expect(200).await;
        assert_eq!(answer.text(), document.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_of_4_mib_is_stored_and_what_it_needs_is_checked() {
    let folder = folder(|_| {});
    let scene = scene(&folder);
    let config = scene.push_blob("alice", "pa/app", b"{}").await;
    let mut document = image(&[(config, 2)]).to_string();
    document.push_str(&" ".repeat((4 << 20) - document.len()));
    let call = scene.put("alice", "/v2/pa/app/manifests/big").header("Content-Type", OCI_IMAGE);
    call.body(document.clone()).expect(201).await;
    assert_eq!(scene.get("alice", "/v2/pa/app/manifests/big").expect(200).await.text(), document);
    for (digest, size, status) in [(config, 3, 400), (sha256(b"absent"), 6, 404)] {
        let call = scene.put("alice", "/v2/pa/app/manifests/bad").header("Content-Type", OCI_IMAGE);
        call.body(image(&[(digest, size)]).to_string()).expect(status).await;
    }
    scene.get("alice", "/v2/pa/app/manifests/bad").refused(404, "MANIFEST_UNKNOWN").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monolithic_post_that_is_given_up_leaves_room_for_the_next() {
    let folder = folder(|options| options.sessions_max = 1);
    let scene = scene(&folder);
    let layer = content(1000);
    let target = format!("/v2/pa/app/blobs/uploads/?digest={}", sha256(&layer));
    let frames = Frames::chunked([Bytes::copy_from_slice(&layer[..500])], End::Silent);
    scene.post("alice", &target).frames(frames).hang_up().await;
    scene.post("alice", &target).body(layer).expect(201).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_back_after_a_wrong_digest_and_goes_on_after_a_break() {
    let folder = folder(|_| {});
    let scene = scene(&folder);
    for len in [1000, 3_000_000] {
        let layer = content(len);
        let third = len / 3;
        let location = scene.begin("alice", "pa/app").await;
        scene.patch("alice", &location).body(layer[..third].to_vec()).expect(202).await;
        let target = format!("{location}?digest={}", sha256(&layer));
        scene.put("alice", &target).body(layer[..third].to_vec()).refused(400, "DIGEST_INVALID").await;
        let status = scene.get("alice", &location).expect(204).await;
        assert_eq!(status.header("range"), format!("0-{}", third - 1));
        let range = format!("{third}-{}", 2 * third - 1);
        let patch = scene.patch("alice", &location).header("Content-Range", &range);
        patch.body(layer[third..2 * third - 1].to_vec()).refused(400, "SIZE_INVALID").await;
        let frames = [Bytes::copy_from_slice(&layer[third..2 * third])];
        scene.patch("alice", &location).frames(Frames::chunked(frames, End::Broken)).expect(400).await;
        let status = scene.get("alice", &location).expect(204).await;
        assert_eq!(status.header("range"), format!("0-{}", 2 * third - 1));
        scene.put("alice", &target).body(layer[2 * third..].to_vec()).expect(201).await;
        let path = format!("/v2/pa/app/blobs/{}", sha256(&layer));
        assert_eq!(scene.get("alice", path).expect(200).await.bytes(), layer);
        scene.get("alice", &location).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_a_mount_and_a_cancel_do_what_they_say() {
    let folder = folder(|_| {});
    let scene = scene(&folder);
    let layer = content(2_000_000);
    let location = scene.begin("admin", "pa/app").await;
    scene.patch("admin", &location).body(vec![0_u8; 1_500_000]).expect(202).await;
    let put = scene.put("admin", format!("{location}?digest={}", sha256(&layer)));
    put.header("Content-Range", "0-1999999").body(layer.clone()).expect(201).await;
    let path = format!("/v2/pb/app/blobs/uploads/?mount={}", sha256(&layer));
    scene.post("bob", &path).expect(202).await;
    scene.post("admin", &path).expect(201).await;
    let path = format!("/v2/pb/app/blobs/{}", sha256(&layer));
    assert_eq!(scene.get("bob", &path).expect(200).await.bytes(), layer);
    scene.delete("bob", &path).expect(202).await;
    scene.get("bob", &path).refused(404, "BLOB_UNKNOWN").await;
    let location = scene.begin("bob", "pb/app").await;
    scene.patch("bob", &location).body(layer).expect(202).await;
    scene.delete("bob", &location).expect(204).await;
    scene.get("bob", &location).refused(404, "BLOB_UPLOAD_UNKNOWN").await;
}

/// F-03, F-05: many at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_blob_may_come_from_many_at_once_and_a_session_has_one_writer() {
    let folder = folder(|_| {});
    let scene = scene(&folder);
    let layer = content(100_000);
    let digest = sha256(&layer);
    let pushes = (0..32).map(|_| {
        let call =
            scene.post("alice", format!("/v2/pa/app/blobs/uploads/?digest={digest}")).body(layer.clone());
        tokio::spawn(call.expect(201))
    });
    for push in pushes.collect::<Vec<_>>() {
        push.await.unwrap();
    }
    let key = scene.key("pa/app");
    let status = folder.engine.begin_upload(Uploader(1), key, Algorithm::Sha256).await.unwrap();
    let open = folder.engine.open_upload(key, status.id).await.unwrap();
    assert!(matches!(folder.engine.open_upload(key, status.id).await, Err(UploadError::Busy)));
    let location = format!("/v2/pa/app/blobs/uploads/{}", status.id);
    scene.patch("alice", location).body(&b"x"[..]).refused(409, "BLOB_UPLOAD_INVALID").await;
    drop(open);
    assert!(folder.engine.open_upload(key, status.id).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engines_refusals_are_told_apart() {
    let folder = folder(|options| {
        options.sessions_per_repository_max = 1;
        options.blob_bytes_max = 1000;
    });
    let key = RepositoryKey::new(5).unwrap();
    let other = RepositoryKey::new(6).unwrap();
    let engine = &folder.engine;
    let status = engine.begin_upload(Uploader(1), key, Algorithm::Sha256).await.unwrap();
    assert!(matches!(
        engine.begin_upload(Uploader(1), key, Algorithm::Sha256).await,
        Err(UploadError::TooMany)
    ));
    assert!(matches!(engine.upload_status(other, status.id).await, Err(UploadError::Unknown)));
    let mut upload = engine.open_upload(key, status.id).await.unwrap();
    let too_large = upload.write(Bytes::from(vec![0; 1001])).await;
    assert!(matches!(too_large, Err(UploadError::TooLarge { limit_bytes: 1000 })));
    drop(upload);

    let bytes = Bytes::from_static(b"a manifest");
    let digest = sha256(&bytes);
    let absent = sha256(b"absent");
    assert!(matches!(engine.stat(key, &digest).await, Err(BlobError::Unknown)));
    assert!(matches!(engine.open(key, &digest).await.err(), Some(BlobError::Unknown)));
    assert!(matches!(engine.link_generation(key, &digest).await, Err(BlobError::Unknown)));
    assert!(matches!(engine.unlink(key, &digest, 1).await, Err(BlobError::Unknown)));
    assert!(matches!(engine.mount(other, key, &digest).await, Err(BlobError::Unknown)));
    let put = engine.put(key, &digest, bytes.clone(), &[(absent, 6)]).await;
    assert!(matches!(put.err(), Some(PutError::Missing(missing)) if missing == [absent]));
    let pins = engine.put(key, &digest, bytes.clone(), &[]).await.unwrap();
    let first = engine.link_generation(key, &digest).await.unwrap();
    assert!(matches!(engine.unlink(key, &digest, first).await, Err(BlobError::InUse)), "it is pinned");
    drop(pins);
    drop(engine.put(key, &digest, bytes.clone(), &[]).await.unwrap());
    assert!(matches!(engine.unlink(key, &digest, first).await, Err(BlobError::InUse)), "it was renewed");
    let put = engine.put(key, &absent, bytes.clone(), &[(digest, 9)]).await;
    assert!(matches!(put.err(), Some(PutError::Unavailable(_))), "bytes that are not what the digest says");
    let put = engine.put(key, &sha256(b"x"), Bytes::from_static(b"x"), &[(digest, 9)]).await;
    assert!(matches!(put.err(), Some(PutError::Length { actual_bytes: 10, stated_bytes: 9, .. })));
    let large = Bytes::from(vec![0_u8; (4 << 20) + 1]);
    let put = engine.put(key, &sha256(&large), large.clone(), &[]).await;
    assert!(matches!(put.err(), Some(PutError::TooLarge { .. })));
    assert_eq!(engine.holders(&digest, 10).await, [key]);
    let generation = engine.link_generation(key, &digest).await.unwrap();
    engine.unlink(key, &digest, generation).await.unwrap();
    assert!(engine.holders(&digest, 10).await.is_empty());
}

/// A deletion waited without an answer until a backup had copied the catalog, up to a quarter of an hour.
#[tokio::test(start_paused = true)]
async fn a_deletion_beside_a_backup_is_answered_in_seconds() {
    let folder = folder(|_| {});
    let scene = scene(&folder);
    let digest = scene.push_blob("alice", "pa/app", b"a blob").await;
    let path = format!("/v2/pa/app/blobs/{digest}");
    let hold = folder.engine.store().hold_removals().await.unwrap();
    let begun = tokio::time::Instant::now();
    let answer = scene.delete("admin", &path).refused(503, "UNAVAILABLE").await;
    assert!(begun.elapsed().as_secs() <= 10, "{:?}", begun.elapsed());
    assert_eq!(answer.header("retry-after"), "5");
    assert!(answer.message().contains("backup"), "{}", answer.message());
    scene.head("alice", &path).expect(200).await;
    hold.snapshot().await.unwrap();
    scene.delete("admin", &path).expect(202).await;
    scene.head("alice", &path).expect(404).await;
}
