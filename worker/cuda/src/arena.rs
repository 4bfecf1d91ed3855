//! Device memory: one pool that every activation, workspace and weight comes from.
//!
//! Blocks are cut from large chunks on the host; nothing is asked of the driver once the chunks are
//! there. A block may be given out again as soon as it is free: everything runs on one stream, so the
//! next user comes after the last one. Equal sequences of requests get equal addresses.

use crate::error::{CudaError, Result};
use crate::memory::{ChunkSource, source};
use cudarc::driver::CudaContext;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Every block starts at a multiple of this: cuBLASLt's fastest kernels ask for 256 at most.
const ALIGNMENT: usize = 256;
/// Chunks are multiples of this.
const CHUNK_UNIT: usize = 64 << 20;
/// Smallest chunk.
const CHUNK_MIN: usize = 256 << 20;

#[derive(Default)]
struct Pool {
    /// Bytes by address of every chunk.
    chunks: BTreeMap<u64, usize>,
    /// Bytes by address of every free block; neighbours are joined, in a chunk or wherever `joins`.
    free: BTreeMap<u64, usize>,
    /// Whether blocks may lie across chunks.
    joins: bool,
    used: usize,
    reserved: usize,
}

/// What all pools of a device have taken of it.
#[derive(Default)]
struct Account {
    reserved: AtomicUsize,
    peak: AtomicUsize,
}

impl Account {
    fn add(&self, bytes: usize) {
        let now = self.reserved.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }
}

struct Shared {
    pool: Mutex<Pool>,
    source: Arc<dyn ChunkSource>,
    /// Most bytes that all pools of the device together ask it for.
    limit: usize,
    account: Arc<Account>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The pool; clones share it.
#[derive(Clone)]
pub struct Arena {
    shared: Arc<Shared>,
}

impl Arena {
    /// A pool over a device that takes at most `limit` bytes of it.
    pub fn new(context: Arc<CudaContext>, limit: usize) -> Self {
        Self::over(source(&context), limit, Arc::default())
    }

    /// An empty pool beside this one, of the same device and under the same limit. Nothing else
    /// ever lies in its memory: what a graph refers to is safe there.
    pub fn sibling(&self) -> Self {
        let shared = &self.shared;
        let account = Arc::clone(&shared.account);
        Self::over(shared.source.another(), shared.limit, account)
    }

    fn over(source: Arc<dyn ChunkSource>, limit: usize, account: Arc<Account>) -> Self {
        let pool = Pool {
            joins: source.joins(),
            ..Pool::default()
        };
        let shared = Shared {
            pool: Mutex::new(pool),
            source,
            limit,
            account,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// A block of at least `bytes`, contents arbitrary.
    pub fn take(&self, bytes: usize) -> Result<Block> {
        let size = bytes.max(1).next_multiple_of(ALIGNMENT);
        let mut pool = self.shared.lock();
        let mut address = pool.cut(size);
        // Once with what is free at the end, which the new chunk may not come to lie behind.
        let free_at_end = pool.free_at_end();
        for there in [free_at_end, 0] {
            if address.is_none() {
                self.grow(&mut pool, size - there)?;
                address = pool.cut(size);
            }
        }
        let address = address.ok_or(CudaError::Memory {
            wanted: size,
            free: 0,
            hint: "the pool's books are wrong; please report this",
        })?;
        pool.used += size;
        Ok(Block {
            address,
            size,
            home: Home::Pool(Arc::clone(&self.shared)),
        })
    }

    fn grow(&self, pool: &mut Pool, size: usize) -> Result<()> {
        let shared = &self.shared;
        let taken = shared.account.reserved.load(Ordering::Relaxed);
        let room = shared.limit.saturating_sub(taken);
        let exact = size.next_multiple_of(CHUNK_UNIT);
        if exact > room {
            return Err(CudaError::Memory {
                wanted: size,
                free: room,
                hint: "raise --max-vram, or use a smaller --size",
            });
        }
        let generous = exact.max(CHUNK_MIN).min(room);
        let (address, bytes) = match shared.source.take(generous) {
            Ok(address) => (address, generous),
            // Nearly full: what is needed and no more.
            Err(_) => (shared.source.take(exact)?, exact),
        };
        pool.chunks.insert(address, bytes);
        pool.free_again(address, bytes);
        pool.reserved += bytes;
        shared.account.add(bytes);
        Ok(())
    }

    /// Gives chunks that nothing lies in back to the device.
    pub fn trim(&self) {
        let mut pool = self.shared.lock();
        for (at, size) in pool.empty_chunks() {
            pool.carve(at, size);
            pool.chunks.remove(&at);
            pool.reserved -= size;
            let reserved = &self.shared.account.reserved;
            reserved.fetch_sub(size, Ordering::Relaxed);
            self.shared.source.give_back(at, size);
        }
    }

    /// Bytes in use now.
    pub fn used_bytes(&self) -> usize {
        self.shared.lock().used
    }

    /// Bytes taken from the device.
    pub fn reserved_bytes(&self) -> usize {
        self.shared.lock().reserved
    }

    /// Most bytes that this pool and its siblings ever had of the device.
    pub fn peak_bytes(&self) -> usize {
        self.shared.account.peak.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Arena({} of {} bytes)",
            self.used_bytes(),
            self.reserved_bytes()
        )
    }
}

impl Pool {
    /// Takes `size` bytes off the smallest free block that has them, the lowest among equals.
    fn cut(&mut self, size: usize) -> Option<u64> {
        let fitting = self.free.iter().filter(|&(_, &free)| free >= size);
        let (&at, &free) = fitting.min_by_key(|&(&at, &free)| (free, at))?;
        self.free.remove(&at);
        if free > size {
            self.free.insert(at + size as u64, free - size);
        }
        Some(at)
    }

    /// Bytes of the free block that ends where the last chunk does, if a new chunk may join it.
    fn free_at_end(&self) -> usize {
        let end = |(&at, &size): (&u64, &usize)| at + size as u64;
        let (chunk, free) = (self.chunks.last_key_value(), self.free.last_key_value());
        match free {
            Some((_, &size)) if self.joins && chunk.map(end) == free.map(end) => size,
            _ => 0,
        }
    }

    /// Chunks that nothing lies in.
    fn empty_chunks(&self) -> Vec<(u64, usize)> {
        let empty = |&(&at, &size): &(&u64, &usize)| {
            let free = self.free.range(..=at).next_back();
            free.is_some_and(|(&from, &free)| from + free as u64 >= at + size as u64)
        };
        let chunks = self.chunks.iter().filter(empty);
        chunks.map(|(&at, &size)| (at, size)).collect()
    }

    /// Takes `size` bytes at `at`, which are free, out of the free block that they lie in.
    fn carve(&mut self, at: u64, size: usize) {
        let Some((&from, &free)) = self.free.range(..=at).next_back() else {
            return;
        };
        self.free.remove(&from);
        let (end, free_end) = (at + size as u64, from + free as u64);
        if from < at {
            self.free.insert(from, (at - from) as usize);
        }
        if end < free_end {
            self.free.insert(end, (free_end - end) as usize);
        }
    }

    fn put_back(&mut self, at: u64, size: usize) {
        self.used -= size;
        self.free_again(at, size);
    }

    /// Adds a free block, joined with its neighbours.
    fn free_again(&mut self, mut at: u64, mut size: usize) {
        let before = self.free.range(..at).next_back().map(|(&a, &s)| (a, s));
        if let Some((a, s)) = before
            && a + s as u64 == at
            && (self.joins || !self.chunks.contains_key(&at))
        {
            self.free.remove(&a);
            (at, size) = (a, s + size);
        }
        let end = at + size as u64;
        if (self.joins || !self.chunks.contains_key(&end))
            && let Some(s) = self.free.remove(&end)
        {
            size += s;
        }
        self.free.insert(at, size);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let pool = self.pool.get_mut().unwrap_or_else(|e| e.into_inner());
        for (&at, &size) in &pool.chunks {
            self.source.give_back(at, size);
        }
        let reserved = &self.account.reserved;
        reserved.fetch_sub(pool.reserved, Ordering::Relaxed);
    }
}

/// What a block's memory belongs to.
enum Home {
    /// A pool, to which it goes back.
    Pool(Arc<Shared>),
    /// Another block, which is kept.
    #[expect(dead_code, reason = "held, not read")]
    Whole(Arc<dyn Any + Send + Sync>),
}

/// Device memory that goes back to its pool when dropped, or a part of such memory.
pub struct Block {
    address: u64,
    size: usize,
    home: Home,
}

impl Block {
    /// Bytes from `offset` on of `whole`, whose memory starts at `address` and which is kept alive.
    pub(crate) fn part_of(
        whole: Arc<dyn Any + Send + Sync>,
        address: u64,
        offset: usize,
        size: usize,
    ) -> Self {
        Self {
            address: address + offset as u64,
            size,
            home: Home::Whole(whole),
        }
    }

    /// Where it is, for the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes that may be used.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Home::Pool(shared) = &self.home {
            shared.lock().put_back(self.address, self.size);
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunks at made-up addresses, the next one right behind the last.
    #[derive(Default)]
    struct Paper {
        given: Mutex<BTreeMap<u64, usize>>,
        joins: bool,
    }

    impl ChunkSource for Paper {
        fn take(&self, bytes: usize) -> Result<u64> {
            let mut given = self.given.lock().unwrap();
            let last = given.last_key_value();
            let address = last.map_or(1 << 32, |(&at, &size)| at + size as u64);
            given.insert(address, bytes);
            Ok(address)
        }

        fn give_back(&self, address: u64, bytes: usize) {
            assert_eq!(self.given.lock().unwrap().remove(&address), Some(bytes));
        }

        fn joins(&self) -> bool {
            self.joins
        }

        fn another(&self) -> Arc<dyn ChunkSource> {
            Arc::<Self>::default()
        }
    }

    fn arena(limit: usize, joins: bool) -> Arena {
        let given = Mutex::default();
        Arena::over(Arc::new(Paper { given, joins }), limit, Arc::default())
    }

    #[test]
    fn equal_requests_get_equal_addresses_and_never_overlap() {
        let run = |joins| {
            let arena = arena(4 << 30, joins);
            let mut seed = 7u64;
            let mut held: Vec<Block> = Vec::new();
            let mut addresses = Vec::new();
            for _ in 0..2000 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                if seed >> 63 == 0 && !held.is_empty() {
                    held.swap_remove((seed >> 33) as usize % held.len());
                } else {
                    held.push(arena.take((seed >> 40) as usize % (8 << 20)).unwrap());
                }
                let mut spans: Vec<_> = held.iter().map(|b| (b.address, b.size)).collect();
                spans.sort();
                for pair in spans.windows(2) {
                    assert!(pair[0].0 + pair[0].1 as u64 <= pair[1].0);
                }
                addresses.extend(held.last().map(Block::address));
            }
            let used: usize = held.iter().map(Block::size).sum();
            assert_eq!(arena.used_bytes(), used);
            drop(held);
            assert_eq!(arena.used_bytes(), 0);
            arena.trim();
            assert_eq!(arena.reserved_bytes(), 0, "everything was joined again");
            addresses
        };
        assert_eq!(run(false), run(false));
        assert_eq!(run(true), run(true));
    }

    #[test]
    fn the_limit_holds() {
        let arena = arena(512 << 20, false);
        let first = arena.take(300 << 20).unwrap();
        let error = arena.take(300 << 20).unwrap_err().to_string();
        assert!(error.contains("--max-vram"), "{error}");
        drop(first);
        assert!(arena.take(300 << 20).is_ok());
    }

    #[test]
    fn what_is_free_in_neighbouring_chunks_is_one_piece() {
        let arena = arena(1 << 30, true);
        let small: Vec<Block> = (0..4).map(|_| arena.take(200 << 20).unwrap()).collect();
        let reserved = arena.reserved_bytes();
        drop(small);
        let large = arena.take(reserved).unwrap();
        assert_eq!(arena.reserved_bytes(), reserved);
        drop(large);
        // The chunk that something lies in stays.
        let kept = arena.take(1).unwrap();
        arena.trim();
        assert!((1..=256 << 20).contains(&arena.reserved_bytes()));
        let large = arena.take(700 << 20).unwrap();
        assert!(large.address > kept.address);
    }
}
