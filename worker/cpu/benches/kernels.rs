//! Speed of the kernels on the shapes of the small model's decoder and transformer.
//!
//! `cargo bench -p longtake-cpu` runs on the best level and two threads; LONGTAKE_BENCH_ISA and
//! LONGTAKE_BENCH_THREADS choose others. The counter column is in operations (two for each
//! multiply-add, one for each element of the element-wise functions). kernels_torch.py measures
//! PyTorch on the same shapes.

use divan::{Bencher, counter::ItemsCount};
use longtake_cpu::kernels::*;

fn main() {
    let threads = std::env::var("LONGTAKE_BENCH_THREADS").ok();
    let threads = threads.map_or(2, |n| n.parse().expect("LONGTAKE_BENCH_THREADS"));
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("threads");
    // The kernels run on the pool of the calling thread.
    pool.install(divan::main);
}

/// Measures `work`, with `operations` a call.
fn bench(bencher: Bencher, operations: usize, mut work: impl FnMut(Isa)) {
    let named = std::env::var("LONGTAKE_BENCH_ISA").ok();
    let isa = named.map_or_else(Isa::detect, |name| {
        name.parse().expect("LONGTAKE_BENCH_ISA")
    });
    bencher
        .counter(ItemsCount::new(operations))
        .bench_local(|| work(isa));
}

fn values(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 7919) % 2001) as f32 / 1000.0 - 1.0)
        .collect()
}

#[divan::bench(min_time = 1, args = [
    (24, 24, [121, 40, 64]),
    (24, 48, [121, 40, 64]),
    (48, 48, [61, 20, 32]),
    (48, 192, [61, 20, 32]),
    (96, 96, [31, 10, 16]),
    (192, 192, [16, 5, 8]),
    (16, 16, [121, 40, 64]),
    (32, 32, [61, 20, 32]),
    (64, 64, [31, 10, 16]),
    (128, 128, [16, 5, 8]),
    (128, 512, [16, 5, 8]),
    (64, 256, [31, 10, 16]),
    (32, 128, [61, 20, 32]),
    (16, 48, [121, 40, 64]),
    (48, 16, [121, 40, 64]),
])]
fn conv(bencher: Bencher, (cin, cout, size): (usize, usize, [usize; 3])) {
    let positions: usize = size.iter().product();
    let (x, bias, mut y) = (
        values(positions * cin),
        values(cout),
        vec![0.0; positions * cout],
    );
    let weights = PackedConv::pack(&values(cout * cin * 27), cout, cin, [3; 3]);
    bench(bencher, 2 * 27 * cin * cout * positions, |isa| {
        let padding = TemporalPadding::Symmetric;
        conv3d(isa, &x, size, &weights, padding, Some(&bias), None, &mut y);
    });
}

#[divan::bench(min_time = 1, args = [
    (640, 256, 256),
    (640, 256, 1024),
    (640, 1024, 256),
    (2048, 2048, 2048),
    (1, 256, 1536),
])]
fn linear_layer(bencher: Bencher, (m, k, n): (usize, usize, usize)) {
    let (x, bias, mut y) = (values(m * k), values(n), vec![0.0; m * n]);
    let weights = PackedMatrix::pack(&values(n * k), n, k);
    bench(bencher, 2 * m * k * n, |isa| {
        linear(isa, &x, &weights, Some(&bias), Epilogue::None, &mut y);
    });
}

#[divan::bench(min_time = 1, args = [(4, 64, 640, 640), (4, 64, 640, 64), (2, 64, 22400, 22400)])]
fn attention_heads(bencher: Bencher, (heads, head_dim, lq, lk): (usize, usize, usize, usize)) {
    let shape = AttentionShape {
        heads,
        head_dim,
        lq,
        lk,
    };
    let width = heads * head_dim;
    let (q, k, v) = (values(lq * width), values(lk * width), values(lk * width));
    let mut out = vec![0.0; lq * width];
    bench(bencher, 4 * width * lq * lk, |isa| {
        attention(isa, shape, &q, &k, &v, 0.125, AttentionBias::None, &mut out);
    });
}

const ROWS: usize = 640;
const DIM: usize = 256;

#[divan::bench(args = ["gelu_tanh", "silu", "exp", "tanh"])]
fn element_wise(bencher: Bencher, name: &str) {
    let x = values(ROWS * DIM);
    let mut y = x.clone();
    let run = match name {
        "gelu_tanh" => math::gelu_tanh,
        "silu" => math::silu,
        "exp" => math::exp,
        _ => math::tanh,
    };
    bench(bencher, ROWS * DIM, |isa| {
        y.copy_from_slice(&x);
        run(isa, &mut y);
    });
}

#[divan::bench(args = ["rms_norm", "layer_norm", "pixel_norm_silu"])]
fn norm_rows(bencher: Bencher, name: &str) {
    let (x, mut y) = (values(ROWS * DIM), vec![0.0; ROWS * DIM]);
    bench(bencher, ROWS * DIM, |isa| match name {
        "rms_norm" => rms_norm(isa, &x, DIM, 1e-6, None, None, &mut y),
        "layer_norm" => layer_norm(isa, &x, DIM, 1e-6, None, None, &mut y),
        _ => pixel_norm(isa, &x, DIM, 1e-8, None, true, &mut y),
    });
}
