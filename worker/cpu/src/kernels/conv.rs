//! Three-dimensional convolution, channels last.

use super::isa::Isa;

/// How a convolution continues its input in time. Space is always padded with zeros by
/// (kernel - 1) / 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemporalPadding {
    /// The first frame is repeated kt - 1 times in front: no output sees the future.
    Causal,
    /// The first frame is repeated (kt - 1) / 2 times in front, the last one as often behind
    /// (once more if kt is even).
    Symmetric,
    /// Nothing is added: kt - 1 frames fewer come out. For input that brings its own context.
    Valid,
}

impl TemporalPadding {
    /// Frames that come out for `frames` in.
    pub fn output_frames(self, frames: usize, kt: usize) -> usize {
        match self {
            TemporalPadding::Valid => (frames + 1).saturating_sub(kt),
            _ => frames,
        }
    }

    fn front(self, kt: usize) -> usize {
        match self {
            TemporalPadding::Causal => kt - 1,
            TemporalPadding::Symmetric => (kt - 1) / 2,
            TemporalPadding::Valid => 0,
        }
    }
}

/// Convolution weights `[cout, cin, kt, kh, kw]` (PyTorch `Conv3d`), packed once.
#[derive(Clone, Debug)]
pub struct PackedConv {
    cout: usize,
    cin: usize,
    kernel: [usize; 3],
    data: Vec<f32>,
}

impl PackedConv {
    /// Packs row-major `weights[cout, cin, kt, kh, kw]`; `kernel` is `[kt, kh, kw]`, kh and kw odd.
    pub fn pack(weights: &[f32], cout: usize, cin: usize, kernel: [usize; 3]) -> PackedConv {
        assert_eq!(weights.len(), cout * cin * kernel.iter().product::<usize>());
        PackedConv {
            cout,
            cin,
            kernel,
            data: weights.to_vec(),
        }
    }

    /// Output channels.
    pub fn cout(&self) -> usize {
        self.cout
    }

    /// Input channels.
    pub fn cin(&self) -> usize {
        self.cin
    }

    /// Kernel size `[kt, kh, kw]`.
    pub fn kernel(&self) -> [usize; 3] {
        self.kernel
    }
}

/// `y[t', h, w, cout] = conv(x[t, h, w, cin]) + bias[cout] + residual[t', h, w, cout]`, stride 1;
/// `size` is the input's `[t, h, w]`, t' is [`TemporalPadding::output_frames`].
pub fn conv3d(
    _isa: Isa,
    x: &[f32],
    size: [usize; 3],
    weights: &PackedConv,
    padding: TemporalPadding,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    y: &mut [f32],
) {
    let [t, h, w] = size;
    let [kt, kh, kw] = weights.kernel;
    let (cin, cout) = (weights.cin, weights.cout);
    let out_t = padding.output_frames(t, kt);
    for i in 0..out_t * h * w {
        let (ot, oy, ox) = (i / (h * w), i / w % h, i % w);
        for co in 0..cout {
            let mut sum = bias.map_or(0.0, |b| b[co]) + residual.map_or(0.0, |r| r[i * cout + co]);
            for tap in 0..kt * kh * kw {
                let (dt, dy, dx) = (tap / (kh * kw), tap / kw % kh, tap % kw);
                let it = (ot + dt).saturating_sub(padding.front(kt)).min(t - 1);
                let (iy, ix) = (
                    (oy + dy).wrapping_sub(kh / 2),
                    (ox + dx).wrapping_sub(kw / 2),
                );
                if iy < h && ix < w {
                    for ci in 0..cin {
                        sum += x[((it * h + iy) * w + ix) * cin + ci]
                            * weights.data[(co * cin + ci) * kt * kh * kw + tap];
                    }
                }
            }
            y[i * cout + co] = sum;
        }
    }
}
