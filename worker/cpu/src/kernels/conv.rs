//! Three-dimensional convolution, channels last, without a matrix of patches.
//!
//! A task computes some neighbouring output rows. It copies the input rows they read once, with
//! the padding, into a small block that stays in the second-level cache; there the taps of one
//! kernel row are one contiguous run of kw * cin values, so a strip of output positions times a
//! panel of output channels is one register tile with kt * kh segments (see [`super::tile`]).
//! Sums run over kt, kh, kw and cin, in this order, for every output.

use rayon::prelude::*;

use super::gemm::pack_panels;
use super::isa::Isa;
use super::scratch::with_scratch;
use super::tile::{Factors, Panel, Start, max_rows, panels, strips, tile};

/// Floats of a task's input block: about half a second-level cache of 1 MiB, the rest is for
/// weights. Affects speed only, like the constants below.
const BLOCK_FLOATS: usize = 9 << 14;

/// Output positions that a pass should have, so that going over the weights pays.
const TASK_POSITIONS: usize = 640;

/// Most passes of a task. Each but the first finds kt - 1 frames of its input copied already.
const MOST_PASSES: usize = 8;

/// How a convolution continues its input in time. Space is always padded with zeros by
/// (kernel - 1) / 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemporalPadding {
    /// The first frame is repeated kt - 1 times in front: no output sees the future.
    Causal,
    /// The first frame is repeated (kt - 1) / 2 times in front, the last one as often behind
    /// (once more if kt is even).
    Symmetric,
    /// (kt - 1) / 2 frames of zeros are added in front, and as many behind.
    Zeros,
    /// As symmetric, for a part of the frames that brings its neighbours' along: copies are added only
    /// in front where the whole begins, and behind where it ends.
    Part {
        /// Whether the first frame is the whole's.
        begins: bool,
        /// Whether the last frame is the whole's.
        ends: bool,
    },
}

impl TemporalPadding {
    /// Frames that come out for `frames` in.
    pub fn output_frames(self, frames: usize, kt: usize) -> usize {
        let TemporalPadding::Part { ends, .. } = self else {
            return frames;
        };
        let back = (kt - 1 - (kt - 1) / 2) * usize::from(ends);
        (frames + self.front(kt) + back + 1).saturating_sub(kt)
    }

    /// Frames added in front.
    fn front(self, kt: usize) -> usize {
        match self {
            TemporalPadding::Causal => kt - 1,
            TemporalPadding::Symmetric | TemporalPadding::Zeros => (kt - 1) / 2,
            TemporalPadding::Part { begins, .. } => (kt - 1) / 2 * usize::from(begins),
        }
    }
}

/// Convolution weights `[cout, cin, kt, kh, kw]` (PyTorch `Conv3d`), packed once. The layout does
/// not depend on the instruction-set level.
#[derive(Clone, Debug)]
pub struct PackedConv {
    cout: usize,
    cin: usize,
    kernel: [usize; 3],
    /// Panel after panel of output channels, each `[kt, kh, kw, cin, width]`.
    data: Vec<f32>,
}

impl PackedConv {
    /// Packs row-major `weights[cout, cin, kt, kh, kw]`; `kernel` is `[kt, kh, kw]`, kh and kw odd.
    pub fn pack(weights: &[f32], cout: usize, cin: usize, kernel: [usize; 3]) -> PackedConv {
        let [kt, kh, kw] = kernel;
        let taps = kt * kh * kw;
        assert!(
            kt > 0 && kh % 2 == 1 && kw % 2 == 1,
            "kernel {kernel:?} has no centre"
        );
        assert!(
            cout * cin > 0,
            "a convolution of {cin} to {cout} channels has no weights"
        );
        assert_eq!(
            weights.len(),
            cout * cin * taps,
            "weights are not [{cout}, {cin}, {kernel:?}]"
        );
        let data = pack_panels(cout, taps * cin, |channel, row| {
            weights[(channel * cin + row % cin) * taps + row / cin]
        });
        PackedConv {
            cout,
            cin,
            kernel,
            data,
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

    /// Bytes that the packed weights occupy.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    /// Values that one output sums.
    fn depth(&self) -> usize {
        self.kernel.iter().product::<usize>() * self.cin
    }

    fn panel(&self, panel: Panel) -> &[f32] {
        &self.data[panel.first * self.depth()..][..panel.width() * self.depth()]
    }
}

/// `y[t', h, w, cout] = conv(x[t, h, w, cin]) + bias[cout] + residual[t', h, w, cout]`, stride 1;
/// `size` is the input's `[t, h, w]`, t' is [`TemporalPadding::output_frames`].
pub fn conv3d(
    isa: Isa,
    x: &[f32],
    size: [usize; 3],
    weights: &PackedConv,
    padding: TemporalPadding,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    y: &mut [f32],
) {
    let [frames, height, width] = size;
    let cout = weights.cout;
    let rows = padding.output_frames(frames, weights.kernel[0]) * height;
    assert_eq!(
        x.len(),
        frames * height * width * weights.cin,
        "the input is not {size:?}"
    );
    assert_eq!(
        y.len(),
        rows * width * cout,
        "the output is not {rows} rows of {width}"
    );
    assert!(
        bias.is_none_or(|bias| bias.len() == cout),
        "the bias is not [{cout}]"
    );
    assert!(
        residual.is_none_or(|r| r.len() == y.len()),
        "the residual is not like the output"
    );
    if y.is_empty() {
        return;
    }
    let job = Job {
        isa,
        x,
        size,
        weights,
        front: padding.front(weights.kernel[0]),
        zeros: padding == TemporalPadding::Zeros,
        bias,
    };
    let Division { pass, task } = job.division(rows);
    let run = |(index, y): (usize, &mut [f32])| {
        let first = index * task;
        if let Some(residual) = residual {
            job.prefill(&residual[first * width * cout..][..y.len()], y);
        }
        job.rows(first, pass, residual.is_some(), y);
    };
    let chunk = task * width * cout;
    if rayon::current_num_threads() == 1 {
        y.chunks_mut(chunk).enumerate().for_each(run);
    } else {
        y.par_chunks_mut(chunk).enumerate().for_each(run);
    }
}

/// How an output is divided, in rows: a task is one or more passes over the weights.
struct Division {
    pass: usize,
    task: usize,
}

/// The padded input of a task: a ring of frames.
struct Block<'a> {
    memory: &'a mut [f32],
    /// Lines of a frame here.
    lines: usize,
    /// Frames here; frame f lies in slot f % slots.
    slots: usize,
    /// Output line whose first tap reads line 0 here.
    first_line: usize,
    /// Frames before this one, counted with the padding in front, were copied.
    copied: usize,
}

/// A convolution at work. A row is one (frame, line) of the output, counted over all frames.
struct Job<'a> {
    isa: Isa,
    x: &'a [f32],
    size: [usize; 3],
    weights: &'a PackedConv,
    /// Frames that the padding adds in front.
    front: usize,
    /// Whether the frames that the padding adds are zeros, not copies.
    zeros: bool,
    bias: Option<&'a [f32]>,
}

impl Job<'_> {
    /// Length of a line of the input block.
    fn line(&self) -> usize {
        (self.size[2] + self.weights.kernel[2] - 1) * self.weights.cin
    }

    /// How the output's rows are divided.
    fn division(&self, rows: usize) -> Division {
        let [_, height, width] = self.size;
        let [kt, kh, _] = self.weights.kernel;
        let fair = rows.div_ceil(4 * rayon::current_num_threads()).max(1);
        let wanted = TASK_POSITIONS.div_ceil(width).min(fair);
        let frame = (height + kh - 1) * self.line();
        if wanted >= height && kt * frame <= BLOCK_FLOATS {
            let frames = (wanted / height).min(BLOCK_FLOATS / frame + 1 - kt);
            let passes = (fair / (frames * height)).clamp(1, MOST_PASSES);
            return Division {
                pass: frames * height,
                task: passes * frames * height,
            };
        }
        let lines = (BLOCK_FLOATS / (kt * self.line())).saturating_sub(kh - 1);
        let lines = lines.clamp(1, wanted).min(height);
        // Passes end with their frame: none reads a second one for a few lines only.
        let per_frame = height.div_ceil(lines);
        let lines = if height.is_multiple_of(per_frame) {
            height / per_frame
        } else {
            lines
        };
        Division {
            pass: lines,
            task: lines,
        }
    }

    /// Starts the sums with the residual and the bias.
    fn prefill(&self, residual: &[f32], y: &mut [f32]) {
        y.copy_from_slice(residual);
        if let Some(bias) = self.bias {
            for y in y.chunks_mut(self.weights.cout) {
                y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
        }
    }

    /// Computes a task: the rows from `first` on, `pass` at a time, into `y`.
    fn rows(&self, first: usize, pass: usize, load: bool, y: &mut [f32]) {
        let [_, height, width] = self.size;
        let [kt, kh, _] = self.weights.kernel;
        let row_len = width * self.weights.cout;
        let (block_lines, slots) = if pass.is_multiple_of(height) {
            (height + kh - 1, pass / height + kt - 1)
        } else {
            // A pass of some lines may begin in one frame and end in the next.
            let spans = (first % height + y.len() / row_len).div_ceil(height);
            (
                if spans == 1 { pass } else { height } + kh - 1,
                spans + kt - 1,
            )
        };
        with_scratch(slots * block_lines * self.line(), |memory| {
            let mut block = Block {
                memory,
                lines: block_lines,
                slots,
                first_line: 0,
                copied: 0,
            };
            if block_lines < height + kh - 1 {
                block.first_line = first % height;
            }
            block.copied = first / height;
            for (i, y) in y.chunks_mut(pass * row_len).enumerate() {
                self.pass(&mut block, first + i * pass, load, y);
            }
        });
    }

    /// Computes the rows from `first` on into `y`: first brings the block up to the last frame
    /// that they read, then goes over the weights once.
    fn pass(&self, block: &mut Block<'_>, first: usize, load: bool, y: &mut [f32]) {
        let [_, height, width] = self.size;
        let [kt, kh, _] = self.weights.kernel;
        let cout = self.weights.cout;
        let count = y.len() / (width * cout);
        let frame_len = block.lines * self.line();
        while block.copied < (first + count - 1) / height + kt {
            let place = block.copied % block.slots * frame_len;
            let memory = &mut block.memory[place..place + frame_len];
            self.copy_frame(block.copied, block.first_line, memory);
            block.copied += 1;
        }
        let mut segments = vec![0; kt * kh];
        for panel in panels(cout) {
            for row in 0..count {
                let (frame, line) = ((first + row) / height, (first + row) % height);
                for (tap, segment) in segments.iter_mut().enumerate() {
                    let slot = (frame + tap / kh) % block.slots;
                    let line = line - block.first_line + tap % kh;
                    *segment = (slot * block.lines + line) * self.line();
                }
                let y = &mut y[row * width * cout + panel.first..];
                self.row(block.memory, &segments, panel, load, y);
            }
        }
    }

    /// Copies the lines of one padded frame that the taps of output line `first` and its
    /// followers read; `frame` counts with the padding in front.
    fn copy_frame(&self, frame: usize, first: usize, block: &mut [f32]) {
        let [frames, height, width] = self.size;
        let [_, kh, kw] = self.weights.kernel;
        let cin = self.weights.cin;
        let added = frame < self.front || frame - self.front >= frames;
        if self.zeros && added {
            return block.fill(0.0);
        }
        let frame = frame.saturating_sub(self.front).min(frames - 1);
        let margin = kw / 2 * cin;
        for (i, block) in block.chunks_mut(self.line()).enumerate() {
            match (first + i)
                .checked_sub(kh / 2)
                .filter(|&line| line < height)
            {
                None => block.fill(0.0),
                Some(line) => {
                    let row = &self.x[(frame * height + line) * width * cin..][..width * cin];
                    block[..margin].fill(0.0);
                    block[margin..margin + row.len()].copy_from_slice(row);
                    block[margin + row.len()..].fill(0.0);
                }
            }
        }
    }

    /// One output row times one panel of output channels.
    fn row(&self, block: &[f32], segments: &[usize], panel: Panel, load: bool, y: &mut [f32]) {
        let cout = self.weights.cout;
        let start = match self.bias {
            _ if load => Start::Output,
            Some(bias) => Start::Row(&bias[panel.first..][..panel.cols]),
            None => Start::Zero,
        };
        for (x, positions) in strips(self.size[2], max_rows(self.isa, panel)) {
            let factors = Factors {
                a: block,
                origin: x * self.weights.cin,
                segments,
                row_stride: self.weights.cin,
                depth: self.weights.kernel[2] * self.weights.cin,
                b: self.weights.panel(panel),
                b_stride: panel.width(),
            };
            tile(
                self.isa,
                &factors,
                panel,
                positions,
                start,
                &mut y[x * cout..],
                cout,
            );
        }
    }
}

#[cfg(test)]
#[path = "conv_tests.rs"]
mod tests;
