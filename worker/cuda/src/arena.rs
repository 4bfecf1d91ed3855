//! Device memory: one pool that every activation, workspace and weight comes from.
//!
//! Blocks are cut from large chunks on the host; nothing is asked of the driver once the chunks are
//! there. A block may be given out again as soon as it is free: everything runs on one stream, so the
//! next user comes after the last one. Equal sequences of requests get equal addresses.

use crate::error::{CudaError, Result};
use crate::memory::{ChunkSource, HostCopy, source};
use crate::park::Parking;
use cudarc::driver::CudaContext;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// Every block starts at a multiple of this: cuBLASLt's fastest kernels ask for 256 at most.
const ALIGNMENT: usize = 256;
/// Chunks are multiples of this.
const CHUNK_UNIT: usize = 64 << 20;
/// Smallest chunk, so that growing is rare.
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

/// What all pools of a device have taken of it, and which of them can be put away.
#[derive(Default)]
pub(crate) struct Account {
    reserved: AtomicUsize,
    peak: AtomicUsize,
    pub parked: Parked,
}

impl Account {
    fn add(&self, bytes: usize) {
        let now = self.reserved.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    fn subtract(&self, bytes: usize) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Pools whose contents can wait in host memory.
#[derive(Default)]
pub(crate) struct Parked {
    all: Mutex<Vec<Weak<Parking>>>,
    clock: AtomicU64,
    /// How often one was put away, and the bytes of all these times.
    moves: AtomicUsize,
    bytes: AtomicUsize,
}

impl Parked {
    pub fn register(&self, one: &Arc<Parking>) {
        let mut all = self.all.lock().unwrap_or_else(|e| e.into_inner());
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(one));
    }

    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn count(&self, bytes: usize) {
        self.moves.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Puts the pool away that was not used for longest. False where none can be.
    fn make_room(&self) -> bool {
        let all = self.all.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let mut all: Vec<_> = all.iter().filter_map(Weak::upgrade).collect();
        all.sort_by_key(|one| one.used_at());
        all.iter().any(|one| one.put_away())
    }
}

struct Shared {
    pool: Mutex<Pool>,
    source: Arc<dyn ChunkSource>,
    /// Most bytes that all pools of the device together ask it for.
    limit: usize,
    account: Arc<Account>,
    /// The first pool of the device: what is free in it is free for the others.
    first: Option<Weak<Self>>,
    /// Smallest chunk that is taken while there is room.
    chunk_min: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn grow(&self, pool: &mut Pool, size: usize) -> Result<()> {
        let exact = size.next_multiple_of(CHUNK_UNIT);
        let taken = self.account.reserved.load(Ordering::Relaxed);
        if self.first.is_none() && exact > self.limit.saturating_sub(taken) {
            self.trim(pool);
        }
        let (address, bytes) = self.with_room(exact, || {
            let taken = self.account.reserved.load(Ordering::Relaxed);
            let generous = exact
                .max(self.chunk_min)
                .min(self.limit.saturating_sub(taken));
            match self.source.take(generous) {
                Ok(address) => Ok((address, generous)),
                // Nearly full: what is needed and no more.
                Err(_) => Ok((self.source.take(exact)?, exact)),
            }
        })?;
        pool.chunks.insert(address, bytes);
        pool.free_again(address, bytes);
        pool.reserved += bytes;
        self.account.add(bytes);
        Ok(())
    }

    /// Does what takes `bytes` of the device; where there is no room for it, makes some.
    fn with_room<T>(&self, bytes: usize, take: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            let taken = self.account.reserved.load(Ordering::Relaxed);
            let room = self.limit.saturating_sub(taken);
            let outcome = match bytes > room {
                true => Err(CudaError::Memory {
                    wanted: bytes,
                    free: room,
                    hint: "raise --max-vram, or use a smaller --size",
                }),
                false => take(),
            };
            let short = matches!(outcome, Err(CudaError::Memory { .. }));
            if !short || !self.make_room() {
                return outcome;
            }
        }
    }

    /// Gives the device something back that is not in use. False where there is nothing.
    fn make_room(&self) -> bool {
        let first = self.first.as_ref().and_then(Weak::upgrade);
        // A pool that is locked is just being used: by this very request, if it is the first one.
        let trimmed = first.is_some_and(|first| match first.pool.try_lock() {
            Ok(mut pool) => first.trim(&mut pool),
            Err(_) => false,
        });
        trimmed || self.account.parked.make_room()
    }

    /// Gives chunks that nothing lies in back to the device. Says whether there were any.
    fn trim(&self, pool: &mut Pool) -> bool {
        let chunks = pool.empty_chunks();
        for &(at, size) in &chunks {
            pool.carve(at, size);
            pool.chunks.remove(&at);
            pool.reserved -= size;
            self.account.subtract(size);
            self.source.give_back(at, size);
        }
        !chunks.is_empty()
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
        Self::over(source(&context), limit, Arc::default(), None, CHUNK_MIN)
    }

    /// An empty pool beside this one, of the same device and under the same limit. Nothing else
    /// ever lies in its memory: what a graph refers to is safe there.
    pub fn sibling(&self) -> Self {
        self.beside(CHUNK_MIN)
    }

    /// The same for what is taken once and stays: nothing is taken in advance.
    pub(crate) fn sibling_of_exact_size(&self) -> Self {
        self.beside(CHUNK_UNIT)
    }

    fn beside(&self, chunk_min: usize) -> Self {
        let shared = &self.shared;
        let account = Arc::clone(&shared.account);
        let first = shared.first.clone();
        let first = first.unwrap_or_else(|| Arc::downgrade(shared));
        let source = shared.source.another();
        Self::over(source, shared.limit, account, Some(first), chunk_min)
    }

    fn over(
        source: Arc<dyn ChunkSource>,
        limit: usize,
        account: Arc<Account>,
        first: Option<Weak<Shared>>,
        chunk_min: usize,
    ) -> Self {
        let pool = Pool {
            joins: source.joins(),
            ..Pool::default()
        };
        let shared = Shared {
            pool: Mutex::new(pool),
            source,
            limit,
            account,
            first,
            chunk_min,
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
                self.shared.grow(&mut pool, size - there)?;
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

    /// Gives chunks that nothing lies in back to the device.
    pub fn trim(&self) {
        self.shared.trim(&mut self.shared.lock());
    }

    pub(crate) fn account(&self) -> &Account {
        &self.shared.account
    }

    /// Copies of all chunks, by address.
    ///
    /// # Errors
    /// When the host has no room for them, or the device's memory cannot be taken from its addresses.
    pub(crate) fn copied_out(&self) -> Result<BTreeMap<u64, HostCopy>> {
        let (pool, source) = (self.shared.lock(), &self.shared.source);
        let chunks = pool.chunks.iter();
        chunks
            .map(|(&at, &bytes)| Ok((at, source.copy_out(at, bytes)?)))
            .collect()
    }

    /// Takes the memory from behind all chunks' addresses; says how many bytes they had.
    pub(crate) fn unmap(&self) -> usize {
        let mut pool = self.shared.lock();
        for (&at, &bytes) in &pool.chunks {
            self.shared.source.unmap(at, bytes);
        }
        self.shared.account.subtract(pool.reserved);
        std::mem::take(&mut pool.reserved)
    }

    /// Puts memory behind all chunks' addresses again, with what `copies` have of them; all or none.
    pub(crate) fn map_again(&self, copies: &BTreeMap<u64, HostCopy>) -> Result<()> {
        let (mut pool, shared) = (self.shared.lock(), &self.shared);
        let mut done = Vec::new();
        for (&at, copy) in copies {
            let bytes = copy.bytes().len();
            let mapped = shared.with_room(bytes, || shared.source.map_again(at, copy));
            if let Err(error) = mapped {
                for (at, bytes) in done {
                    shared.source.unmap(at, bytes);
                }
                shared.account.subtract(std::mem::take(&mut pool.reserved));
                return Err(error);
            }
            done.push((at, bytes));
            pool.reserved += bytes;
            shared.account.add(bytes);
        }
        Ok(())
    }

    /// Times that weights were put away, and their bytes in all.
    pub fn put_away(&self) -> (usize, usize) {
        let parked = &self.shared.account.parked;
        let read = |n: &AtomicUsize| n.load(Ordering::Relaxed);
        (read(&parked.moves), read(&parked.bytes))
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
        self.account.subtract(pool.reserved);
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
mod tests;
