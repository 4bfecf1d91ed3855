//! The store of a cluster: etcd.
//!
//! **Fencing.** One key, `term`, says which coordinator may write and how many commits it has made.
//! Every transaction compares it with what the writer believes and, when it commits, changes it. So a
//! coordinator that was superseded can never write again; and a request that got no answer may safely
//! be sent again, however late the first one arrives: only one of the two finds the term unchanged.
//!
//! **Atomicity.** etcd takes 128 operations and 1.5 MiB in one transaction, which nearly every commit
//! fits in. A larger one (a job of which thousands of results are there already) first goes into a
//! redo log, entry by entry; one transaction then decides it; then the entries are made, and the log
//! is cleared. Whoever claims the term next makes a decided log's entries and drops an undecided log,
//! so the whole commit counts or nothing of it.

mod client;
mod layout;

use super::{Claim, StateError, StateStore};
use async_trait::async_trait;
use client::Client;
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse};
use layout::{
    Layout, Operation, Pair, Term, after_all, decode_entry, delete, delete_all, encode_entry, put,
};
use longtake_common::ids::Epoch;
use longtake_core::Write;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;
use tokio::sync::Mutex;

/// How long a start waits for etcd: it may just be starting, too.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// Keys read at a time.
const PAGE_KEYS: i64 = 256;
const PORT: u16 = 2379;
const PREFIX: &str = "longtake";

/// Records in an etcd cluster, under one prefix.
pub struct EtcdStore {
    client: Client,
    layout: Layout,
    place: String,
    owner: u64,
    /// As the last commit left it; `None` before a claim, and after a write of which nobody waited
    /// for the end.
    term: Mutex<Option<Term>>,
}

/// What a guarded transaction met.
enum Guarded {
    Made,
    /// The term is another one.
    Refused(Option<Vec<u8>>),
}

impl EtcdStore {
    /// The store at `etcd://HOST[:PORT][,HOST[:PORT]...][/PREFIX]`. Makes no connection.
    pub fn new(url: &str) -> Result<Self, StateError> {
        let bad = || StateError::EtcdUrl(url.to_owned());
        let rest = url.strip_prefix("etcd://").ok_or_else(bad)?;
        let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = match prefix.trim_matches('/') {
            "" => PREFIX,
            prefix => prefix,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        let nameless = |host: &str| host.is_empty() || host.starts_with(':');
        if !prefix.chars().all(plain) || hosts.contains('@') || hosts.split(',').any(nameless) {
            return Err(bad());
        }
        let hosts: Vec<String> = hosts.split(',').map(with_port).collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let place = format!("etcd://{}/{prefix}", hosts.join(","));
        Ok(Self {
            client: Client::new(&hosts, &place).ok_or_else(bad)?,
            layout: Layout::new(prefix),
            place,
            // Seeded by the system for every process, and for every state within one.
            owner: RandomState::new().build_hasher().finish(),
            term: Mutex::new(None),
        })
    }

    /// The same, once the cluster has answered and holds nothing of others at the place of the term.
    pub async fn open(url: &str) -> Result<Self, StateError> {
        let store = Self::new(url)?;
        let found = store.look(store.layout.term()).await?;
        match found.map(|bytes| Term::decode(&bytes)) {
            Some(None) => Err(store.damaged()),
            _ => Ok(store),
        }
    }

    /// Makes `operations` if the term is still `term`.
    async fn guarded(
        &self,
        term: Option<&[u8]>,
        operations: Vec<Operation>,
        patience: Option<Duration>,
    ) -> Result<Guarded, StateError> {
        let key = self.layout.term();
        let unchanged = match term {
            Some(term) => Compare::value(key.clone(), CompareOp::Equal, term),
            None => Compare::version(key.clone(), CompareOp::Equal, 0),
        };
        let operations: Vec<TxnOp> = operations.into_iter().map(TxnOp::from).collect();
        let transaction = Txn::new()
            .when([unchanged])
            .and_then(operations)
            .or_else([TxnOp::get(key, None)]);
        let reply = self.client.transact(transaction, patience).await?;
        if reply.succeeded() {
            return Ok(Guarded::Made);
        }
        let found = reply.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
            _ => None,
        });
        Ok(Guarded::Refused(found.map(|pair| pair.into_key_value().1)))
    }

    /// The value at a key, read while the store is being taken over.
    async fn look(&self, key: Vec<u8>) -> Result<Option<Vec<u8>>, StateError> {
        let mut found = self.client.get(key, None, Some(START_PATIENCE)).await?;
        Ok(found.take_kvs().pop().map(|pair| pair.into_key_value().1))
    }

    /// Makes `operations` under `term`, and goes on to `next` with them when that is another one.
    async fn make(
        &self,
        term: &Term,
        next: &Term,
        mut operations: Vec<Operation>,
    ) -> Result<(), StateError> {
        if next != term {
            operations.push(put(self.layout.term(), next.encode()));
        }
        let guard = term.encode();
        match self.guarded(Some(&guard), operations, None).await? {
            Guarded::Made => Ok(()),
            // An earlier try was made after all; its answer got lost.
            Guarded::Refused(Some(found)) if found == next.encode() => Ok(()),
            Guarded::Refused(found) => Err(self.superseded(term, found)),
        }
    }

    fn superseded(&self, own: &Term, found: Option<Vec<u8>>) -> StateError {
        let found = found.as_deref().and_then(Term::decode);
        match found {
            Some(found) => StateError::Superseded {
                place: self.place.clone(),
                found: found.epoch,
                own: own.epoch,
            },
            None => self.damaged(),
        }
    }

    fn damaged(&self) -> StateError {
        layout::Damage.at(&self.place)
    }

    /// Makes this process the one that writes.
    async fn take_term(&self) -> Result<Term, StateError> {
        let mut found = self.look(self.layout.term()).await?;
        loop {
            let before = match &found {
                Some(bytes) => Term::decode(bytes).ok_or_else(|| self.damaged())?.epoch.0,
                None => 0,
            };
            let term = Term {
                epoch: Epoch(before + 1),
                seq: 0,
                owner: self.owner,
            };
            let write = vec![put(self.layout.term(), term.encode())];
            let patience = Some(START_PATIENCE);
            match self.guarded(found.as_deref(), write, patience).await? {
                Guarded::Made => return Ok(term),
                Guarded::Refused(Some(now)) if now == term.encode() => return Ok(term),
                // Somebody was quicker; whoever comes last has it.
                Guarded::Refused(now) => found = now,
            }
        }
    }

    /// Everything that begins with `start`.
    async fn read_all(&self, start: Vec<u8>) -> Result<Vec<Pair>, StateError> {
        let options = GetOptions::new()
            .with_range(after_all(&start))
            .with_limit(PAGE_KEYS);
        let (mut key, mut found) = (start, Vec::new());
        loop {
            let page = self
                .client
                .get(key, Some(options.clone()), Some(START_PATIENCE));
            let mut page = page.await?;
            found.extend(page.take_kvs().into_iter().map(KeyValue::into_key_value));
            match found.last() {
                // The smallest key after the last one.
                Some((last, _)) if page.more() => key = [last.as_slice(), &[0]].concat(),
                _ => return Ok(found),
            }
        }
    }

    /// Brings a decided commit to its end, and drops one that was not decided. Returns the term as
    /// it is then.
    async fn recover(&self, term: &Term) -> Result<Term, StateError> {
        if let Some(head) = self.look(self.layout.redo()).await? {
            let count = std::str::from_utf8(&head)
                .ok()
                .and_then(|count| count.parse().ok());
            let entries = self.read_all(self.layout.redo_entries()).await?;
            if count != Some(entries.len()) {
                return Err(self.damaged());
            }
            tracing::info!(
                place = self.place,
                entries = entries.len(),
                "finishing a commit"
            );
            for (_, entry) in entries {
                let operations = decode_entry(&entry).map_err(|e| e.at(&self.place))?;
                self.make(term, term, operations).await?;
            }
        }
        self.clear_redo(term).await
    }

    /// Goes on to the next term as well: what is still on its way under this one comes too late to
    /// touch the next log.
    async fn clear_redo(&self, term: &Term) -> Result<Term, StateError> {
        let clear = vec![
            delete(self.layout.redo()),
            delete_all(self.layout.redo_entries()),
        ];
        let next = term.next();
        self.make(term, &next, clear).await?;
        Ok(next)
    }

    /// Commits what no single transaction takes. Returns the term as it is then.
    async fn commit_logged(
        &self,
        term: &Term,
        next: &Term,
        transactions: Vec<Vec<Operation>>,
    ) -> Result<Term, StateError> {
        for (index, operations) in transactions.iter().enumerate() {
            let entry = encode_entry(operations);
            let stage = vec![put(self.layout.redo_entry(index), entry)];
            self.make(term, term, stage).await?;
        }
        let count = transactions.len().to_string().into_bytes();
        let decide = vec![put(self.layout.redo(), count)];
        self.make(term, next, decide).await?;
        for operations in transactions {
            self.make(next, next, operations).await?;
        }
        self.clear_redo(next).await
    }
}

#[async_trait]
impl StateStore for EtcdStore {
    async fn claim(&self) -> Result<Claim, StateError> {
        let mut held = self.term.lock().await;
        *held = None;
        let term = self.take_term().await?;
        // From here on nobody else writes, so that reading page by page is reading one state.
        let term = self.recover(&term).await?;
        let records = self.read_all(self.layout.records()).await?;
        let parts = self.read_all(self.layout.parts()).await?;
        let assembled = self.layout.assemble(records, parts);
        let assembled = assembled.map_err(|damage| damage.at(&self.place))?;
        for set in assembled.leftovers {
            let clear = vec![delete_all(self.layout.part_set(&set))];
            self.make(&term, &term, clear).await?;
        }
        let epoch = term.epoch;
        *held = Some(term);
        Ok(Claim {
            epoch,
            records: assembled.records,
        })
    }

    async fn commit(&self, epoch: Epoch, writes: Vec<Write>) -> Result<(), StateError> {
        let mut held = self.term.lock().await;
        let unclaimed = || StateError::Unclaimed {
            place: self.place.clone(),
        };
        let term = held.clone().ok_or_else(unclaimed)?;
        if term.epoch != epoch {
            return Err(StateError::Superseded {
                place: self.place.clone(),
                found: term.epoch,
                own: epoch,
            });
        }
        // Put back at the end: if nobody waits for that, it is unknown where this write stopped.
        *held = None;
        let next = term.next();
        let mut transactions = self.layout.transactions(writes, &next);
        let made = if transactions.len() == 1 {
            let made = self.make(&term, &next, transactions.remove(0)).await;
            made.map(|()| next)
        } else {
            self.commit_logged(&term, &next, transactions).await
        };
        match made {
            Ok(now) => {
                *held = Some(now);
                Ok(())
            }
            Err(error) => {
                if matches!(error, StateError::Superseded { .. }) {
                    *held = Some(term);
                }
                Err(error)
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        self.client.trouble()
    }
}

/// `HOST:PORT`, with etcd's usual port where none is given.
fn with_port(host: &str) -> String {
    let after_address = host.rsplit(']').next().unwrap_or(host);
    if after_address.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:{PORT}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn urls_name_members_and_a_prefix() {
        for (url, place) in [
            ("etcd://a", "etcd://a:2379/longtake"),
            ("etcd://a:1/", "etcd://a:1/longtake"),
            ("etcd://a:1,b:2/x/y", "etcd://a:1,b:2/x/y"),
            (
                "etcd://[::1],127.0.0.1",
                "etcd://[::1]:2379,127.0.0.1:2379/longtake",
            ),
        ] {
            let store = EtcdStore::new(url).expect(url);
            assert_eq!(store.place, place);
        }
        for bad in [
            "etcd://",
            "etcd:a",
            "etcd://a b",
            "etcd://a,,b",
            "etcd://u:p@a",
            "etcd://a/ü",
        ] {
            let error = EtcdStore::new(bad).err().expect(bad).to_string();
            assert!(error.contains("etcd://HOST:PORT"), "{error}");
        }
    }
}
