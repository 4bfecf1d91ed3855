//! Artifacts in a real S3-speaking server.

use longtake_common::Hash;
use longtake_common::artifact::{ArtifactError, ArtifactStore, Settings};
use longtake_tests::services::{BUCKET, S3, free_address};
use std::time::{Duration, Instant};

fn start() -> (tempfile::TempDir, S3, ArtifactStore) {
    let folder = tempfile::tempdir().expect("a folder");
    let s3 = S3::start(folder.path());
    let settings: Settings = s3.environment().into_iter().collect();
    let store = ArtifactStore::open_with(&s3.url(), settings).expect("open");
    (folder, s3, store)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 % 251) as u8).collect()
}

#[tokio::test]
async fn what_is_put_comes_back() {
    let (folder, _s3, store) = start();
    store.check().await.expect("usable");
    let part = 8 << 20;
    for length in [0, 1, 100_000, part, part + 1, 2 * part + 5] {
        let bytes = bytes(length);
        let file = folder.path().join("in");
        std::fs::write(&file, &bytes).expect("write");
        let hash = store.put_file(&file).await.expect("put_file");
        assert_eq!(hash, Hash::of(&bytes), "{length} bytes");
        assert!(store.exists(hash).await.expect("exists"));
        assert!(
            store.get(hash).await.expect("get") == bytes,
            "{length} bytes"
        );
        assert_eq!(store.put_file(&file).await.expect("the same again"), hash);
        assert_eq!(store.put(bytes.clone()).await.expect("put"), hash);
        let out = folder.path().join("out");
        let written = store.get_to_file(hash, &out).await.expect("file");
        assert_eq!(written, length as u64);
        assert!(
            std::fs::read(&out).expect("read") == bytes,
            "{length} bytes"
        );
    }
}

#[tokio::test]
async fn a_damaged_or_missing_artifact_is_named() {
    let (folder, s3, store) = start();
    let missing = store
        .get(Hash::of(b"never stored"))
        .await
        .expect_err("missing");
    assert!(
        matches!(missing, ArtifactError::Missing { .. }),
        "{missing}"
    );
    assert!(
        !store
            .exists(Hash::of(b"never stored"))
            .await
            .expect("exists")
    );

    let hash = store.put("twelve bytes").await.expect("put");
    let name = hash.to_string();
    s3.overwrite(
        &format!("farm/{}/{}/{name}", &name[..2], &name[2..4]),
        "other bytes!",
    );
    let out = folder.path().join("out");
    for error in [
        store.get(hash).await.expect_err("get").to_string(),
        store
            .get_to_file(hash, &out)
            .await
            .expect_err("file")
            .to_string(),
    ] {
        assert!(
            error.contains(&name) && error.contains("damaged"),
            "{error}"
        );
        assert!(error.contains(&s3.url()), "{error}");
    }
    assert!(!out.exists(), "nothing half-written under the final name");
    store.put("twelve bytes").await.expect("put again");
    assert_eq!(store.get(hash).await.expect("mended"), "twelve bytes");
}

#[tokio::test]
async fn a_server_that_stands_still_for_a_while_is_waited_for() {
    let (_folder, s3, store) = start();
    let hash = store.put("before").await.expect("put");
    s3.freeze();
    let (reader, writer) = (store.clone(), store.clone());
    let read = tokio::spawn(async move { reader.get(hash).await });
    let write = tokio::spawn(async move { writer.put("after").await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!read.is_finished() && !write.is_finished());
    s3.thaw();
    assert_eq!(read.await.expect("no panic").expect("read"), "before");
    let hash = write.await.expect("no panic").expect("written");
    assert_eq!(store.get(hash).await.expect("get"), "after");
}

#[tokio::test]
async fn what_cannot_be_used_is_said_at_once() {
    let (_folder, s3, _store) = start();
    let started = Instant::now();
    let usable: Settings = s3.environment().into_iter().collect();
    let dead = format!("http://{}", free_address());
    let keys = [("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let unreachable: Settings = keys
        .into_iter()
        .chain([("AWS_ENDPOINT_URL", &*dead)])
        .collect();
    for (url, settings, hint) in [
        (
            "s3://no-such-bucket/farm".to_owned(),
            usable,
            "NoSuchBucket",
        ),
        (format!("s3://{BUCKET}"), unreachable, "AWS_ENDPOINT_URL"),
    ] {
        let store = ArtifactStore::open_with(&url, settings).expect("open");
        let error = store.check().await.expect_err("unusable").to_string();
        assert!(error.contains(&url) && error.contains(hint), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(20));
}
