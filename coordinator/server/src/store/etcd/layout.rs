//! How records lie in etcd, and writes cut to what one transaction takes.
//!
//! | key, after `/PREFIX:` | value                                                               |
//! |-----------------------|---------------------------------------------------------------------|
//! | `term`                | `EPOCH SEQ OWNER`: who may write, and how many commits it has made  |
//! | `record/KEY`          | the record; or a zero byte and `SET COUNT`, when it lies in parts   |
//! | `part/SET/I`          | a piece of a record that is too large for one value                 |
//! | `redo`                | number of entries of a commit that is decided but perhaps not done  |
//! | `redo/I`              | such an entry: its [`Operation`]s                                   |

use crate::store::StateError;
use etcd_client::{DeleteOptions, TxnOp};
use longtake_common::ids::Epoch;
use longtake_core::Write;
use prost::Message;
use std::collections::BTreeMap;

/// Most operations of a transaction besides the one on `term`. etcd takes 128 (`--max-txn-ops`).
const OPERATIONS_MAX: usize = 126;
/// Most bytes of a transaction. etcd takes 1.5 MiB (`--max-request-bytes`); an entry of the redo log
/// wraps one of these, so there has to be room around it.
const TRANSACTION_BYTES_MAX: usize = 1 << 20;
/// Most bytes of one value; larger records are cut. Small enough for a whole page of them to be read.
const VALUE_BYTES_MAX: usize = 256 << 10;
/// First byte of a value that names parts. Records are JSON, so none of them begins with it; one that
/// does is stored in parts, too.
const PARTS_MARK: u8 = 0;

/// Who may write, and how many commits it has made: every commit is made only if this is as the
/// writer left it, and changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Of the coordinator.
    pub epoch: Epoch,
    /// Number of its last commit.
    pub seq: u64,
    /// Tells apart two coordinators that go for the same epoch.
    pub owner: u64,
}

impl Term {
    pub fn encode(&self) -> Vec<u8> {
        format!("{} {} {:016x}", self.epoch, self.seq, self.owner).into_bytes()
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut fields = text.split(' ');
        let term = Self {
            epoch: Epoch(fields.next()?.parse().ok()?),
            seq: fields.next()?.parse().ok()?,
            owner: u64::from_str_radix(fields.next()?, 16).ok()?,
        };
        fields.next().is_none().then_some(term)
    }

    /// After one more commit.
    pub fn next(&self) -> Self {
        Self {
            seq: self.seq + 1,
            ..self.clone()
        }
    }
}

/// What a transaction does to a key, in a form that can be kept.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Operation {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    /// Removes when there is none.
    #[prost(bytes = "vec", optional, tag = "2")]
    value: Option<Vec<u8>>,
    /// Removes every key from `key` to here.
    #[prost(bytes = "vec", optional, tag = "3")]
    range_end: Option<Vec<u8>>,
}

impl From<Operation> for TxnOp {
    fn from(operation: Operation) -> Self {
        let Operation {
            key,
            value,
            range_end,
        } = operation;
        match value {
            Some(value) => Self::put(key, value, None),
            None => {
                let range = range_end.map(|end| DeleteOptions::new().with_range(end));
                Self::delete(key, range)
            }
        }
    }
}

/// An entry of the redo log.
#[derive(Clone, PartialEq, prost::Message)]
struct Entry {
    #[prost(message, repeated, tag = "1")]
    operations: Vec<Operation>,
}

/// Names of keys under one prefix.
#[derive(Clone, Debug)]
pub struct Layout {
    prefix: String,
}

impl Layout {
    /// Keys under `prefix`, which has no slash at either end.
    pub fn new(prefix: &str) -> Self {
        Self {
            // No prefix has a colon, so none is the beginning of another farm's keys.
            prefix: format!("/{prefix}:"),
        }
    }

    pub fn term(&self) -> Vec<u8> {
        format!("{}term", self.prefix).into_bytes()
    }

    pub fn redo(&self) -> Vec<u8> {
        format!("{}redo", self.prefix).into_bytes()
    }

    pub fn redo_entry(&self, index: usize) -> Vec<u8> {
        format!("{}redo/{index:08}", self.prefix).into_bytes()
    }

    pub fn redo_entries(&self) -> Vec<u8> {
        format!("{}redo/", self.prefix).into_bytes()
    }

    pub fn records(&self) -> Vec<u8> {
        format!("{}record/", self.prefix).into_bytes()
    }

    pub fn parts(&self) -> Vec<u8> {
        format!("{}part/", self.prefix).into_bytes()
    }

    pub fn part_set(&self, set: &str) -> Vec<u8> {
        format!("{}part/{set}/", self.prefix).into_bytes()
    }

    fn record(&self, key: &str) -> Vec<u8> {
        format!("{}record/{key}", self.prefix).into_bytes()
    }

    /// The operations that `writes` amount to as the commit that leads to `term`, in groups of which
    /// each fits into one transaction.
    pub fn transactions(&self, writes: Vec<Write>, term: &Term) -> Vec<Vec<Operation>> {
        // etcd refuses two writes to one key in a transaction; the last one counts.
        let writes: BTreeMap<String, Option<Vec<u8>>> = writes.into_iter().collect();
        let mut operations = Vec::with_capacity(writes.len());
        for (index, (key, value)) in writes.into_iter().enumerate() {
            let record = self.record(&key);
            match value {
                None => operations.push(delete(record)),
                Some(value) if is_plain(&value) => operations.push(put(record, value)),
                Some(value) => {
                    let set = format!("{}.{}.{index}", term.epoch, term.seq);
                    let parts = value.chunks(VALUE_BYTES_MAX);
                    let note = format!("{set} {}", parts.len());
                    for (part, bytes) in parts.enumerate() {
                        let key = [self.part_set(&set), format!("{part:08}").into()].concat();
                        operations.push(put(key, bytes.to_vec()));
                    }
                    operations.push(put(record, [&[PARTS_MARK], note.as_bytes()].concat()));
                }
            }
        }
        group(operations)
    }

    /// The records from what lies under `record/` and `part/`, and the sets of parts that no record
    /// names any more.
    pub fn assemble(&self, records: Vec<Pair>, parts: Vec<Pair>) -> Result<Assembled, Damage> {
        let mut sets: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for (key, value) in parts {
            let name = text(key.get(self.parts().len()..))?;
            let (set, _) = name.split_once('/').ok_or(Damage)?;
            sets.entry(set.to_owned()).or_default().push(value);
        }
        let mut assembled = Assembled::default();
        for (key, stored) in records {
            let key = text(key.get(self.records().len()..))?;
            let value = if stored.first() == Some(&PARTS_MARK) {
                let (set, count) = text(stored.get(1..))?.split_once(' ').ok_or(Damage)?;
                let parts = sets.remove(set).unwrap_or_default();
                if count.parse() != Ok(parts.len()) {
                    return Err(Damage);
                }
                parts.concat()
            } else {
                stored
            };
            assembled.records.push((key.to_owned(), value));
        }
        assembled.leftovers = sets.into_keys().collect();
        Ok(assembled)
    }
}

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// What was read.
#[derive(Debug, Default)]
pub struct Assembled {
    /// In the order of their keys.
    pub records: Vec<(String, Vec<u8>)>,
    /// Sets of parts without a record.
    pub leftovers: Vec<String>,
}

/// Something under the prefix is not as this module writes it.
#[derive(Debug)]
pub struct Damage;

impl Damage {
    /// The error for the user.
    pub fn at(self, place: &str) -> StateError {
        StateError::Damaged {
            place: place.to_owned(),
        }
    }
}

fn text(bytes: Option<&[u8]>) -> Result<&str, Damage> {
    std::str::from_utf8(bytes.ok_or(Damage)?).map_err(|_| Damage)
}

fn is_plain(value: &[u8]) -> bool {
    value.len() <= VALUE_BYTES_MAX && value.first() != Some(&PARTS_MARK)
}

/// Cuts a list of operations, each of which fits, into as few transactions as their order allows.
/// There is always one.
fn group(operations: Vec<Operation>) -> Vec<Vec<Operation>> {
    let (mut groups, mut group, mut group_bytes) = (Vec::new(), Vec::new(), 0);
    for operation in operations {
        let bytes = operation.encoded_len();
        if group.len() == OPERATIONS_MAX || group_bytes + bytes > TRANSACTION_BYTES_MAX {
            groups.push(std::mem::take(&mut group));
            group_bytes = 0;
        }
        group_bytes += bytes;
        group.push(operation);
    }
    groups.push(group);
    groups
}

/// An entry of the redo log.
pub fn encode_entry(operations: &[Operation]) -> Vec<u8> {
    let operations = operations.to_vec();
    Entry { operations }.encode_to_vec()
}

/// The operations of an entry.
pub fn decode_entry(bytes: &[u8]) -> Result<Vec<Operation>, Damage> {
    let entry = Entry::decode(bytes).map_err(|_| Damage)?;
    Ok(entry.operations)
}

/// Writes a key.
pub fn put(key: Vec<u8>, value: Vec<u8>) -> Operation {
    Operation {
        key,
        value: Some(value),
        range_end: None,
    }
}

/// Removes a key.
pub fn delete(key: Vec<u8>) -> Operation {
    Operation {
        key,
        ..Default::default()
    }
}

/// Removes every key that begins with `start`.
pub fn delete_all(start: Vec<u8>) -> Operation {
    Operation {
        range_end: Some(after_all(&start)),
        key: start,
        value: None,
    }
}

/// The first key that is greater than all that begin with `start`, which ends in a slash.
pub fn after_all(start: &[u8]) -> Vec<u8> {
    let mut end = start.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term() -> Term {
        Term {
            epoch: Epoch(3),
            seq: 12,
            owner: 0xab,
        }
    }

    /// What a database holds after `transactions`.
    fn stored(transactions: Vec<Vec<Operation>>) -> Vec<Pair> {
        let written = |operation: Operation| Some((operation.key, operation.value?));
        transactions
            .into_iter()
            .flatten()
            .filter_map(written)
            .collect()
    }

    #[test]
    fn terms_are_read_as_they_are_written() {
        assert_eq!(Term::decode(&term().encode()), Some(term()));
        assert_eq!(
            Term::decode(&term().next().encode()).map(|t| t.seq),
            Some(13)
        );
        for bad in ["", "1", "1 2", "1 2 3 4", "1 2 x", "-1 2 3"] {
            assert_eq!(Term::decode(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn every_transaction_keeps_the_limits_and_nothing_gets_lost() {
        let layout = Layout::new("a/b");
        let mut writes: Vec<Write> = (0..300)
            .map(|i| (format!("task/{i:03}"), Some(vec![b'x'; 10 * i])))
            .collect();
        writes.push((
            "long".into(),
            Some(vec![b'y'; 3 * TRANSACTION_BYTES_MAX + 1]),
        ));
        writes.push(("mark".into(), Some(vec![PARTS_MARK; 3])));
        let transactions = layout.transactions(writes.clone(), &term());
        assert!(transactions.len() > 3);
        for transaction in &transactions {
            let bytes: usize = transaction.iter().map(Message::encoded_len).sum();
            assert!(transaction.len() <= OPERATIONS_MAX && bytes <= TRANSACTION_BYTES_MAX);
            assert!(
                encode_entry(transaction).len() < 3 << 19,
                "an entry fits, too"
            );
            let entry = decode_entry(&encode_entry(transaction)).expect("an entry");
            assert_eq!(&entry, transaction);
        }
        let is_part = |pair: &Pair| pair.0.starts_with(b"/a/b:part/");
        let (parts, mut records): (Vec<_>, Vec<_>) =
            stored(transactions).into_iter().partition(is_part);
        records.sort();
        let assembled = layout.assemble(records, parts).expect("whole");
        writes.sort();
        let expected: Vec<_> = writes
            .into_iter()
            .map(|(k, v)| (k, v.expect("a value")))
            .collect();
        assert!(assembled.records == expected);
        assert!(assembled.leftovers.is_empty());
    }

    #[test]
    fn missing_and_forgotten_parts_are_noticed() {
        let layout = Layout::new("l");
        let large = |key: &str| vec![(key.to_owned(), Some(vec![1; 3 * VALUE_BYTES_MAX]))];
        let is_part = |pair: &Pair| pair.0.starts_with(&layout.parts());
        let pairs = stored(layout.transactions(large("a"), &term()));
        let (mut parts, records): (Vec<_>, Vec<_>) = pairs.into_iter().partition(is_part);
        let forgotten = layout.assemble(Vec::new(), parts.clone()).expect("fine");
        assert_eq!(forgotten.leftovers, ["3.12.0"]);
        parts.pop();
        assert!(layout.assemble(records, parts).is_err());
    }

    #[test]
    fn the_last_write_to_a_key_counts() {
        let layout = Layout::new("l");
        let writes = vec![("a".into(), Some(b"1".to_vec())), ("a".into(), None)];
        let transactions = layout.transactions(writes, &term());
        assert_eq!(transactions, [vec![delete(b"/l:record/a".to_vec())]]);
    }
}
