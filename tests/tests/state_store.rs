//! What every state store has to do, on each of them; and what only a cluster has to.

use longtake_common::artifact::file_url;
use longtake_common::ids::Epoch;
use longtake_core::Write;
use longtake_server::store::{self, StateError, StateStore};
use longtake_tests::services::{Etcd, free_address};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A record's key and value.
type Record = (String, Vec<u8>);

fn put(key: &str, value: &str) -> Write {
    (key.to_owned(), Some(value.as_bytes().to_vec()))
}

fn remove(key: &str) -> Write {
    (key.to_owned(), None)
}

fn records(pairs: &[(&str, &str)]) -> Vec<Record> {
    let record = |(key, value): &(&str, &str)| ((*key).to_owned(), value.as_bytes().to_vec());
    pairs.iter().map(record).collect()
}

async fn open(url: &str) -> Arc<dyn StateStore> {
    store::open(url).await.expect("open the store")
}

/// The tests that every store has to pass, each on an empty one.
macro_rules! conformance {
    ($name:ident, $prepare:expr) => {
        mod $name {
            use super::*;

            #[tokio::test]
            async fn records_outlive_the_process_and_terms_grow() {
                let (_keep, url) = $prepare;
                super::records_outlive_the_process_and_terms_grow(&url).await;
            }

            #[tokio::test]
            async fn an_earlier_term_cannot_write() {
                let (_keep, url) = $prepare;
                super::an_earlier_term_cannot_write(&url).await;
            }

            #[tokio::test]
            async fn commits_of_any_size_come_back_whole() {
                let (_keep, url) = $prepare;
                super::commits_of_any_size_come_back_whole(&url).await;
            }

            #[tokio::test]
            async fn a_long_story_ends_as_it_should() {
                let (_keep, url) = $prepare;
                super::a_long_story_ends_as_it_should(&url).await;
            }
        }
    };
}

conformance!(redb, {
    let folder = tempfile::tempdir().expect("a folder");
    let url = file_url(folder.path()).expect("UTF-8");
    (folder, url)
});

conformance!(etcd, {
    let folder = tempfile::tempdir().expect("a folder");
    let etcd = Etcd::start(folder.path());
    let url = format!("{}/farms/one", etcd.url());
    ((etcd, folder), url)
});

async fn records_outlive_the_process_and_terms_grow(url: &str) {
    {
        let store = open(url).await;
        let claim = store.claim().await.expect("claim");
        assert_eq!((claim.epoch, claim.records.len()), (Epoch(1), 0));
        let first = vec![put("a/1", "1"), put("b", "2"), put("b/x", "3")];
        store.commit(Epoch(1), first).await.expect("commit");
        let second = vec![remove("a/1"), remove("never there"), put("c", "4")];
        store.commit(Epoch(1), second).await.expect("commit");
        assert_eq!(store.trouble(), None);
    }
    let store = open(url).await;
    let claim = store.claim().await.expect("claim");
    assert_eq!(claim.epoch, Epoch(2));
    assert_eq!(
        claim.records,
        records(&[("b", "2"), ("b/x", "3"), ("c", "4")])
    );
}

async fn an_earlier_term_cannot_write(url: &str) {
    let store = open(url).await;
    let first = store.claim().await.expect("claim").epoch;
    let second = store.claim().await.expect("claim").epoch;
    for _ in 0..2 {
        let fenced = store.commit(first, vec![put("a", "old")]).await;
        let error = fenced.expect_err("fenced");
        assert!(matches!(error, StateError::Superseded { .. }), "{error}");
    }
    store
        .commit(second, vec![put("b", "new")])
        .await
        .expect("commit");
    let found = store.claim().await.expect("claim").records;
    assert_eq!(found, records(&[("b", "new")]));
}

async fn commits_of_any_size_come_back_whole(url: &str) {
    let store = open(url).await;
    let epoch = store.claim().await.expect("claim").epoch;
    let many = |value: &str| -> Vec<Write> {
        (0..1000)
            .map(|i| put(&format!("task/j/{i:04}"), value))
            .collect()
    };
    let long = |byte: u8| ("long".to_owned(), Some(vec![byte; 5_000_000]));
    let odd = ("odd".to_owned(), Some(vec![0, 255, 0]));
    store.commit(epoch, many("first")).await.expect("many");
    store
        .commit(epoch, vec![long(b'x'), odd.clone()])
        .await
        .expect("long");
    store.commit(epoch, vec![]).await.expect("nothing");
    let mut all = many("second");
    all.extend([long(b'y'), remove("task/j/0500")]);
    store.commit(epoch, all).await.expect("many and long");
    drop(store);

    let store = open(url).await;
    let claim = store.claim().await.expect("claim");
    let mut expected: BTreeMap<String, Vec<u8>> = many("second")
        .into_iter()
        .chain([long(b'y'), odd])
        .map(|(key, value)| (key, value.expect("a value")))
        .collect();
    expected.remove("task/j/0500");
    assert!(claim.records == expected.into_iter().collect::<Vec<_>>());
    store
        .commit(claim.epoch, vec![remove("long")])
        .await
        .expect("remove");
    let found = store.claim().await.expect("claim").records;
    assert!(found.len() == 1000 && found.iter().all(|(key, _)| key != "long"));
}

async fn a_long_story_ends_as_it_should(url: &str) {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut expected = BTreeMap::new();
    for term in 1..=4 {
        let store = open(url).await;
        let claim = store.claim().await.expect("claim");
        assert_eq!(claim.epoch, Epoch(term));
        assert_eq!(
            claim.records,
            expected.clone().into_iter().collect::<Vec<_>>()
        );
        for _ in 0..25 {
            let mut writes = BTreeMap::new();
            for _ in 0..random(200) {
                let value = (random(4) > 0).then(|| random(u64::MAX).to_le_bytes().to_vec());
                writes.insert(format!("k{}", random(300)), value);
            }
            for (key, value) in &writes {
                match value {
                    Some(value) => expected.insert(key.clone(), value.clone()),
                    None => expected.remove(key),
                };
            }
            let writes = writes.into_iter().collect();
            store.commit(claim.epoch, writes).await.expect("commit");
        }
    }
}

fn etcd(folder: &Path) -> (Etcd, String) {
    let etcd = Etcd::start(folder);
    let url = etcd.url();
    (etcd, url)
}

#[tokio::test]
async fn of_two_coordinators_only_the_later_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_etcd, url) = etcd(folder.path());
    let (early, late) = (open(&url).await, open(&url).await);
    let first = early.claim().await.expect("claim").epoch;
    early
        .commit(first, vec![put("a", "1")])
        .await
        .expect("commit");
    let second = late.claim().await.expect("claim");
    assert_eq!(
        (second.epoch, second.records),
        (Epoch(2), records(&[("a", "1")]))
    );
    let large: Vec<Write> = (0..500).map(|i| put(&format!("b{i}"), "old")).collect();
    for writes in [vec![put("a", "old")], large] {
        let error = early.commit(first, writes).await.expect_err("fenced");
        assert!(matches!(error, StateError::Superseded { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("taken over") && text.contains("term 2"),
            "{text}"
        );
    }
    late.commit(Epoch(2), vec![put("c", "2")])
        .await
        .expect("commit");
    let found = open(&url).await.claim().await.expect("claim").records;
    assert_eq!(found, records(&[("a", "1"), ("c", "2")]));
}

#[tokio::test]
async fn prefixes_keep_farms_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_etcd, url) = etcd(folder.path());
    for farm in ["a", "a/b", "ab", "a/record", "a/term"] {
        let store = open(&format!("{url}/{farm}")).await;
        let claim = store.claim().await.expect("claim");
        assert_eq!((claim.epoch, claim.records.len()), (Epoch(1), 0), "{farm}");
        store
            .commit(Epoch(1), vec![put("x", farm)])
            .await
            .expect("commit");
    }
    let found = open(&format!("{url}/a"))
        .await
        .claim()
        .await
        .expect("claim")
        .records;
    assert_eq!(found, records(&[("x", "a")]));
}

#[tokio::test]
async fn commits_outlast_a_standstill_and_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut etcd, url) = etcd(folder.path());
    let store = open(&url).await;
    let epoch = store.claim().await.expect("claim").epoch;
    store
        .commit(epoch, vec![put("a", "0")])
        .await
        .expect("commit");
    let commit = |value: &'static str| {
        let store = store.clone();
        tokio::spawn(async move { store.commit(epoch, vec![put("a", value)]).await })
    };

    etcd.freeze();
    let waiting = commit("1");
    // Longer than a request is waited for: the same commit is on its way more than once.
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert!(!waiting.is_finished());
    let trouble = store.trouble().expect("trouble");
    assert!(trouble.contains("state store unreachable"), "{trouble}");
    etcd.thaw();
    waiting.await.expect("no panic").expect("committed");
    assert_eq!(store.trouble(), None);
    // What is late must not undo what comes after it.
    for value in ["2", "3", "4"] {
        commit(value).await.expect("no panic").expect("committed");
    }

    etcd.kill();
    let waiting = commit("5");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(store.trouble().is_some() && !waiting.is_finished());
    etcd.restart();
    waiting.await.expect("no panic").expect("committed");
    let found = open(&url).await.claim().await.expect("claim").records;
    assert_eq!(found, records(&[("a", "5")]));
}

#[tokio::test]
async fn a_large_commit_that_breaks_off_counts_wholly_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_etcd, url) = etcd(folder.path());
    let writes = |round: usize| -> Vec<Write> {
        (0..700)
            .map(|i| put(&format!("k{i:03}"), &round.to_string()))
            .collect()
    };
    let store = open(&url).await;
    let epoch = store.claim().await.expect("claim").epoch;
    let started = Instant::now();
    store.commit(epoch, writes(0)).await.expect("commit");
    let took = started.elapsed();
    let (mut before, mut whole, mut lost) = (0, 0, 0);
    for round in 1..=24 {
        let store = open(&url).await;
        let epoch = store.claim().await.expect("claim").epoch;
        // The commit is dropped wherever it is by then, as if its process had been killed.
        let patience = took * (round as u32) / 20;
        let commit = store.commit(epoch, writes(round));
        let done = tokio::time::timeout(patience, commit).await.is_ok();
        let unclaimed = store.commit(epoch, vec![put("k000", "after")]).await;
        assert_eq!(
            unclaimed.is_ok(),
            done,
            "nothing is built on an unknown state"
        );
        let found = open(&url).await.claim().await.expect("claim").records;
        assert_eq!(found.len(), 700);
        let value = String::from_utf8_lossy(&found[1].1).into_owned();
        let same = found
            .iter()
            .skip(1)
            .all(|(_, found)| found == value.as_bytes());
        assert!(same, "round {round}: a part of a commit was found");
        let is_new = value == round.to_string();
        assert!(
            is_new || value == before.to_string(),
            "round {round}: {value}"
        );
        assert!(is_new || !done, "round {round}: a commit got lost");
        if is_new {
            (before, whole) = (round, whole + 1);
        } else {
            lost += 1;
        }
    }
    assert!(
        whole > 0 && lost > 0,
        "{whole} counted, {lost} did not: the timing tells nothing"
    );
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named() {
    let address = free_address();
    let started = Instant::now();
    let opened = store::open(&format!("etcd://{address}")).await;
    let error = opened.err().expect("unreachable").to_string();
    assert!(
        error.contains(&address.to_string()) && error.contains("cannot reach"),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn an_unknown_scheme_is_refused() {
    let error = store::open("mysql://x")
        .await
        .err()
        .expect("refused")
        .to_string();
    assert!(error.contains("etcd://HOST:PORT"), "{error}");
}
