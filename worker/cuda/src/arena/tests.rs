//! Pools over made-up memory.

use super::*;

/// Chunks at made-up addresses, the next one right behind the last.
#[derive(Default)]
struct Paper {
    given: Mutex<BTreeMap<u64, usize>>,
    /// Chunks without memory.
    away: Mutex<BTreeMap<u64, usize>>,
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

    fn copy_out(&self, address: u64, bytes: usize) -> Result<HostCopy> {
        assert!(!self.away.lock().unwrap().contains_key(&address));
        let mut copy = vec![0; bytes];
        copy[..8].copy_from_slice(&address.to_le_bytes());
        Ok(HostCopy::Plain(copy))
    }

    fn unmap(&self, address: u64, bytes: usize) {
        assert_eq!(self.given.lock().unwrap().get(&address), Some(&bytes));
        assert_eq!(self.away.lock().unwrap().insert(address, bytes), None);
    }

    fn map_again(&self, address: u64, copy: &HostCopy) -> Result<()> {
        assert_eq!(copy.bytes()[..8], address.to_le_bytes());
        let bytes = self.away.lock().unwrap().remove(&address);
        assert_eq!(bytes, Some(copy.bytes().len()));
        Ok(())
    }
}

fn arena(limit: usize, joins: bool) -> Arena {
    let paper = Paper {
        joins,
        ..Paper::default()
    };
    Arena::over(Arc::new(paper), limit, Arc::default(), None, CHUNK_MIN)
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

const MIB: usize = 1 << 20;

/// A pool that can be put away, with a block of so many MiB in it.
fn part(main: &Arena, mib: usize) -> (Arc<Parking>, Block) {
    let (parking, stay) = Parking::beside(main);
    let block = parking.arena().take(mib * MIB).unwrap();
    drop(stay);
    (parking, block)
}

#[test]
fn what_was_not_used_for_longest_makes_room_and_comes_back_where_it_was() {
    let main = arena(1024 * MIB, true);
    let ((a, in_a), (b, _in_b)) = (part(&main, 448), part(&main, 448));
    let (at, reserved) = (in_a.address(), || {
        [&a, &b].map(|p| p.arena().reserved_bytes() / MIB)
    });
    assert_eq!(reserved(), [448, 448]);
    drop(a.stay().unwrap());
    let work = main.take(256 * MIB).unwrap();
    assert_eq!(reserved(), [448, 0], "the other one was used later");
    let using_b = b.stay().unwrap();
    assert_eq!(reserved(), [0, 448]);
    let error = a.stay().map(drop).unwrap_err().to_string();
    assert!(
        error.contains("--max-vram"),
        "what is in use stays: {error}"
    );
    drop(using_b);
    let using_a = a.stay().unwrap();
    assert_eq!((reserved(), in_a.address()), ([448, 0], at));
    // What the work left free is room too, before any weights have to go.
    drop(work);
    let using_b = b.stay().unwrap();
    assert_eq!((reserved(), main.reserved_bytes()), ([448, 448], 0));
    assert!(main.take(256 * MIB).is_err(), "both are in use");
    drop((using_a, using_b));
    assert!(main.peak_bytes() <= 1024 * MIB);
    assert_eq!(main.put_away(), (3, 3 * 448 * MIB));
}

#[test]
fn a_pool_gives_back_what_lies_free_in_it_before_it_asks_for_more() {
    let main = arena(1024 * MIB, false);
    let pieces: Vec<Block> = (0..3).map(|_| main.take(256 * MIB).unwrap()).collect();
    drop(pieces);
    assert!(main.take(900 * MIB).is_ok());
    assert!(main.reserved_bytes() <= 1024 * MIB);
}
