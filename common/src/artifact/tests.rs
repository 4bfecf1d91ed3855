use super::*;

fn store() -> (tempfile::TempDir, ArtifactStore) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let url = file_url(&folder.path().join("a b")).expect("UTF-8");
    let store = ArtifactStore::open(&url).expect("open");
    (folder, store)
}

#[tokio::test]
async fn what_is_put_comes_back() {
    let (folder, store) = store();
    for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5] {
        let bytes: Vec<u8> = (0..length).map(|i| (i * 7 % 251) as u8).collect();
        let file = folder.path().join("in");
        std::fs::write(&file, &bytes).expect("write");
        let hash = store.put_file(&file).await.expect("put_file");
        assert_eq!(hash, Hash::of(&bytes));
        assert_eq!(store.put(bytes.clone()).await.expect("put"), hash);
        assert_eq!(store.get(hash).await.expect("get"), bytes);
        let out = folder.path().join("out");
        assert_eq!(
            store.get_to_file(hash, &out).await.expect("file"),
            length as u64
        );
        assert_eq!(std::fs::read(&out).expect("read"), bytes);
    }
}

#[tokio::test]
async fn a_damaged_artifact_is_named_and_mended_by_storing_it_again() {
    let (folder, store) = store();
    let hash = store.put("twelve bytes").await.expect("put");
    let name = hash.to_string();
    let file = file_path(store.url()).expect("file URL");
    let file = file.join(&name[..2]).join(&name[2..4]).join(&name);
    std::fs::write(&file, "other bytes!").expect("damage");
    let out = folder.path().join("out");
    for error in [
        store.get(hash).await.expect_err("get").to_string(),
        store
            .get_to_file(hash, &out)
            .await
            .expect_err("file")
            .to_string(),
    ] {
        assert!(error.contains(&name), "{error}");
        assert!(error.contains("damaged"), "{error}");
    }
    assert!(!out.exists(), "nothing half-written under the final name");
    let condition = |store: ArtifactStore| async move { store.examine(hash).await.expect("read") };
    assert_eq!(condition(store.clone()).await, Condition::SetAside);
    assert_eq!(condition(store.clone()).await, Condition::Missing);
    let aside = file_path(store.url()).expect("file URL").join("damaged");
    assert_eq!(
        std::fs::read(aside.join(&name)).expect("kept"),
        b"other bytes!"
    );
    store.put("twelve bytes").await.expect("put again");
    assert_eq!(store.get(hash).await.expect("mended"), "twelve bytes");
    assert_eq!(condition(store.clone()).await, Condition::Whole);
}

#[tokio::test]
async fn a_missing_artifact_is_an_error() {
    let (_folder, store) = store();
    let hash = Hash::of(b"never stored");
    assert!(!store.exists(hash).await.expect("exists"));
    let error = store.get(hash).await.expect_err("missing");
    assert!(matches!(error, ArtifactError::Missing { .. }), "{error}");
    store.put("never stored").await.expect("put");
    assert!(store.exists(hash).await.expect("exists"));
}

#[test]
fn urls_name_folders() {
    for (url, path) in [
        ("file:a/b", Some("a/b")),
        ("file:/a b", Some("/a b")),
        ("file:///a", Some("/a")),
        ("file://host/a", None),
        ("file:", None),
        ("s3://bucket", None),
        ("/plain", None),
    ] {
        assert_eq!(file_path(url), path.map(PathBuf::from), "{url}");
    }
    let error = ArtifactStore::open("gs://bucket")
        .expect_err("scheme")
        .to_string();
    assert!(
        error.contains("gs://bucket") && error.contains("file:PATH"),
        "{error}"
    );
}

#[tokio::test]
async fn a_store_is_checked_by_using_it() {
    let (folder, store) = store();
    store.check().await.expect("usable");
    std::fs::remove_dir_all(folder.path().join("a b")).expect("remove");
    std::fs::write(folder.path().join("a b"), "a file in its place").expect("write");
    let error = store.check().await.expect_err("unusable").to_string();
    assert!(error.contains("a b"), "{error}");
}

#[tokio::test]
async fn models_lie_apart_and_can_be_removed() {
    let (_folder, store) = store();
    let models = store.models();
    let hash = models.put("weights").await.expect("put");
    assert!(
        !store.exists(hash).await.expect("looked"),
        "no artifact of a job"
    );
    store.put("weights").await.expect("the same bytes of a job");
    models.remove(hash).await.expect("removed");
    models.remove(hash).await.expect("removed already");
    assert!(!models.exists(hash).await.expect("looked"));
    assert_eq!(store.get(hash).await.expect("untouched"), "weights");
}
