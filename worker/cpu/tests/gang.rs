//! Gangs of threads and of processes: what arrives where, and what happens when a rank does not.

use longtake_cpu::gang::{Gang, Link, Seat, SocketLink, Timing, threads};
use longtake_cpu::{CpuBackend, Isa};
use longtake_tensor::{Backend, Collective, Loader, Shape, Tensor};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type End = dyn Collective<CpuBackend>;

fn backend() -> CpuBackend {
    CpuBackend::new(1, Isa::detect()).expect("the detected level is available")
}

const SECRET: u64 = 0x5eed;

/// A gang of threads that are linked by sockets.
fn linked(ranks: usize) -> Vec<Gang<SocketLink>> {
    let seats: Vec<Seat> = (0..ranks)
        .map(|_| Seat::at(Ipv4Addr::LOCALHOST.into()).expect("a port"))
        .collect();
    let addresses: Vec<SocketAddr> = seats.iter().map(Seat::address).collect();
    std::thread::scope(|scope| {
        let join = |(rank, seat): (usize, Seat)| {
            let addresses = &addresses;
            scope.spawn(move || seat.join(rank, addresses, SECRET, Timing::default(), &mut || true))
        };
        let joining: Vec<_> = seats.into_iter().enumerate().map(join).collect();
        let joined = joining.into_iter().map(|end| end.join().expect("a rank"));
        joined.map(|end| end.expect("joined")).collect()
    })
}

/// Runs `rank` at every end.
fn on_all<L: Link + 'static>(ends: Vec<Gang<L>>, rank: impl Fn(&End) + Sync) {
    std::thread::scope(|scope| {
        for end in &ends {
            let rank = &rank;
            scope.spawn(move || rank(end));
        }
    });
}

/// All operations, several times, with as much content as fills any buffer on the way.
fn exchange_everything(end: &End) {
    let (b, rank, ranks) = (backend(), end.rank(), end.ranks());
    for size in [1, 5, 300_000] {
        // Slice `to` of rank `from` is all `100 from + to`.
        let value = |from: usize, to: usize| (100 * from + to) as f32;
        let mine: Vec<f32> = (0..ranks)
            .flat_map(|to| vec![value(rank, to); size])
            .collect();
        let x = b.upload(Shape::from([ranks, size]), &mine).expect("x");
        let y = end.all_to_all(&b, &x).expect("all to all");
        for (from, slice) in y.values().chunks_exact(size).enumerate() {
            assert!(slice.iter().all(|&v| v == value(from, rank)), "from {from}");
        }
        let all = end.all_gather(&b, &x).expect("all gather");
        for (from, theirs) in all.iter().enumerate() {
            assert_eq!(theirs.shape().dims(), [ranks, size]);
            assert_eq!(theirs.values()[0], value(from, 0));
        }
        let mut sum = [rank as f64, 0.1];
        end.all_reduce_sum(&mut sum).expect("sum");
        let expected = (0..ranks).fold([0.0, 0.0], |s, r| [s[0] + r as f64, s[1] + 0.1]);
        assert_eq!(sum, expected, "in the order of the ranks");
        let mut text = format!("from {rank}").into_bytes();
        end.broadcast(ranks - 1, &mut text).expect("broadcast");
        assert_eq!(text, format!("from {}", ranks - 1).into_bytes());
        end.barrier().expect("barrier");
    }
}

#[test]
fn threads_exchange() {
    for ranks in [1, 2, 5] {
        on_all(threads(ranks), exchange_everything);
    }
}

#[test]
fn sockets_exchange() {
    for ranks in [2, 4] {
        on_all(linked(ranks), exchange_everything);
    }
}

#[test]
fn ranks_that_do_different_things_are_told() {
    on_all(linked(2), |end| {
        let done = match end.rank() {
            0 => end.all_reduce_sum(&mut [1.0]),
            _ => end.all_reduce_sum(&mut [1.0, 2.0]),
        };
        let error = done.expect_err("different sums").to_string();
        assert!(error.contains("adds"), "{error}");
    });
    on_all(threads(2), |end| {
        let b = backend();
        let x = b.upload(Shape::from([2, 1]), &[0.0; 2]).expect("x");
        let done = match end.rank() {
            0 => end.barrier(),
            _ => end.all_to_all(&b, &x).map(drop),
        };
        let error = done.expect_err("out of step").to_string();
        assert!(error.contains("does something else"), "{error}");
    });
    on_all(threads(2), |end| {
        let b = backend();
        let x = b.upload(
            Shape::from([2, 1 + end.rank()]),
            &[0.0; 4][..2 + 2 * end.rank()],
        );
        let error = end
            .all_to_all(&b, &x.expect("x"))
            .expect_err("sizes differ");
        assert!(
            error.to_string().contains("values were expected"),
            "{error}"
        );
    });
}

#[test]
fn a_reason_to_give_up_reaches_all_ranks() {
    for ends in [3, 4] {
        on_all(linked(ends), |end| {
            if end.rank() == 1 {
                end.abort("the device is on fire");
            }
            let error = end.barrier().expect_err("rank 1 gave up").to_string();
            let expected = format!("rank 1 of {ends} gave up: the device is on fire");
            assert_eq!(error, expected);
        });
    }
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let seats: Vec<Seat> = (0..3)
        .map(|_| Seat::at(Ipv4Addr::LOCALHOST.into()).expect("a port"))
        .collect();
    let addresses: Vec<SocketAddr> = seats.iter().map(Seat::address).collect();
    let timing = Timing {
        forming: Duration::from_millis(300),
        ..Timing::default()
    };
    let mut seats = seats.into_iter();
    let first = seats.next().expect("three");
    // A stranger dials: it does not know the secret.
    let mut stranger = std::net::TcpStream::connect(addresses[0]).expect("dialled");
    stranger.write_all(&[0; 20]).expect("sent");
    let error = first
        .join(0, &addresses, SECRET, timing, &mut || true)
        .err()
        .expect("alone");
    assert_eq!(
        error.to_string(),
        "rank 1 of 3 did not join the gang in time"
    );
}

/// Not a test of its own: a rank in a process of its own, for the ones below. It says where it is
/// reached, reads where the others are, joins, and sums until the gang ends.
#[test]
#[ignore = "a process of other tests"]
fn child_rank() {
    let Some(rank) = std::env::var_os("GANG_RANK") else {
        return;
    };
    let rank: usize = rank.to_str().and_then(|r| r.parse().ok()).expect("rank");
    let seat = Seat::at(Ipv4Addr::LOCALHOST.into()).expect("a port");
    println!("seat {}", seat.address());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("addresses");
    let addresses: Vec<SocketAddr> = line
        .split_whitespace()
        .map(|a| a.parse().expect("address"))
        .collect();
    let gang = seat
        .join(rank, &addresses, SECRET, Timing::default(), &mut || true)
        .expect("joined");
    let end: &End = &gang;
    while end.all_reduce_sum(&mut [1.0]).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A child that is killed when dropped.
struct Rank {
    child: Child,
    address: SocketAddr,
}

impl Rank {
    fn start(rank: usize) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args(["--exact", "child_rank", "--ignored", "--nocapture"])
            .env("GANG_RANK", rank.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let seats = lines.map(|line| line.expect("a line"));
        let address = seats
            .filter_map(|line| Some(line.split_once("seat ")?.1.parse().expect("address")))
            .next()
            .expect("where it is reached");
        Self { child, address }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What rank 0 is told, and after how long, when `harm` comes to rank 2 of 3 processes.
fn told_after(harm: impl Fn(&mut Child)) -> (String, Duration) {
    let mut children = vec![Rank::start(1), Rank::start(2)];
    let seat = Seat::at(Ipv4Addr::LOCALHOST.into()).expect("a port");
    let mut addresses = vec![seat.address()];
    addresses.extend(children.iter().map(|rank| rank.address));
    let line: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    for rank in &mut children {
        let stdin = rank.child.stdin.as_mut().expect("stdin");
        writeln!(stdin, "{}", line.join(" ")).expect("told");
    }
    let gang = seat
        .join(0, &addresses, SECRET, Timing::default(), &mut || true)
        .expect("joined");
    let end: &End = &gang;
    for _ in 0..5 {
        let mut sum = [1.0];
        end.all_reduce_sum(&mut sum).expect("all are there");
        assert_eq!(sum, [3.0]);
    }
    harm(&mut children[1].child);
    let harmed = Instant::now();
    loop {
        if let Err(error) = end.all_reduce_sum(&mut [1.0]) {
            return (error.to_string(), harmed.elapsed());
        }
    }
}

#[test]
fn a_rank_that_is_killed_is_named_at_once() {
    let (error, _) = told_after(|child| child.kill().expect("killed"));
    // Whoever notices first tells the others.
    assert!(
        error.ends_with("rank 2 of 3 has gone: its process ended"),
        "{error}"
    );
}

#[test]
fn a_rank_that_hangs_is_named() {
    let (error, after) = told_after(|child| {
        let pid = child.id().to_string();
        let stopped = Command::new("kill").args(["-STOP", &pid]).status();
        assert!(stopped.expect("kill").success());
    });
    // Whoever notices first tells the others.
    assert!(
        error.contains("rank 2 of 3 has given no sign of life"),
        "{error} after {after:?}"
    );
}

#[test]
fn heads_are_exchanged_for_tokens_and_back() {
    let b = backend();
    let values = |from: usize| -> Vec<f32> { (0..12).map(|i| (from + i) as f32).collect() };
    let shape = Shape::from([3, 4]);
    let (x, y) = (
        b.upload(shape, &values(0)).expect("x"),
        b.upload(shape, &values(100)).expect("y"),
    );
    let packed = b.pack_heads(&[&x, &y], 2).expect("packed");
    assert_eq!(packed.shape().dims(), [2, 3, 2, 2]);
    // Rank 1 gets channels 2 and 3 of either, token by token.
    assert_eq!(
        packed.values()[12..],
        [2., 3., 102., 103., 6., 7., 106., 107., 10., 11., 110., 111.]
    );
    let second = b
        .upload(Shape::from([3, 4]), &packed.values()[12..])
        .expect("part");
    let parts = b.unpack_heads(&second, 2).expect("unpacked");
    assert_eq!(parts[0].values(), [2., 3., 6., 7., 10., 11.]);
    assert_eq!(parts[1].values(), [102., 103., 106., 107., 110., 111.]);
    let heads = b
        .upload(
            Shape::from([2, 3, 2]),
            &[0., 1., 4., 5., 8., 9., 2., 3., 6., 7., 10., 11.],
        )
        .expect("heads");
    let joined = b.join_heads(&heads).expect("joined");
    assert_eq!(joined.values(), x.values());
    assert!(b.pack_heads(&[&x], 3).is_err() && b.pack_heads(&[], 1).is_err());
    assert!(b.unpack_heads(&x, 3).is_err() && b.join_heads(&x).is_err());
}

#[test]
fn rows_are_cut_and_joined() {
    let b = backend();
    let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let x = b.upload(Shape::from([2, 3, 2, 2]), &values).expect("x");
    let first = b.rows(&x, 0..1).expect("first row");
    assert_eq!(first.values(), [0., 1., 2., 3., 12., 13., 14., 15.]);
    let rest = b.rows(&x, 1..3).expect("others");
    let joined = b.join_rows(&[&first, &rest]).expect("joined");
    assert_eq!((joined.shape(), joined.values()), (x.shape(), x.values()));
    assert!(b.rows(&x, 2..4).is_err() && b.rows(&x, 1..1).is_err());
    let narrow = b.upload(Shape::from([2, 3, 1, 2]), &[0.0; 12]).expect("x");
    assert!(b.join_rows(&[&x, &narrow]).is_err());
}
