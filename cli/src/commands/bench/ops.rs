//! `bench ops`: every operation of the GPU against the CPU's, on fresh random operands.

use super::random_model::{e4m3_code, normals};
use anyhow::{Context, Result, bail};
use longtake_cpu::{CpuBackend, Isa};
use longtake_cuda::{CudaBackend, CudaOptions, Precision};
use longtake_tensor::dtype::f8e4m3_to_f32;
use longtake_tensor::{
    Activation, AttentionBias, Backend, ChannelModulation, DType, Gate, GroupNorm, Modulation,
    Rope, RopeAxes, Shape, TimePadding, WeightView,
};

/// Largest relative error of an operation in bf16.
const BF16: f64 = 1e-2;
/// The same of an 8-bit product on operands that 8 bits hold exactly.
const FP8_EXACT: f64 = 3e-3;
/// The same on operands that have to be rounded.
const FP8: f64 = 4.5e-2;
/// What is computed in f32.
const F32: f64 = 1e-5;

/// Flags of `bench ops`.
#[derive(clap::Args)]
pub struct OpsArgs {
    /// Device
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: usize,
    /// Where the random operands start
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only operations with this in their name
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Operands on one backend, drawn the same on each: the n-th drawn is the n-th of the seed.
struct Side<'a, B: Backend> {
    b: &'a B,
    seed: std::cell::Cell<u64>,
}

/// Rounded to bf16, so that both backends have the same operands.
fn narrow(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & 0xffff_0000)
}

impl<B: Backend> Side<'_, B> {
    fn draw(&self, count: usize, deviation: f32) -> Vec<f32> {
        self.seed.set(self.seed.get() + 1);
        let seed = self.seed.get().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        normals(seed, count)
            .iter()
            .map(|v| narrow(v * deviation))
            .collect()
    }

    fn tensor(&self, dims: &[usize]) -> Result<B::Tensor> {
        let shape = Shape::new(dims);
        Ok(self.b.upload(shape, &self.draw(shape.count(), 1.0))?)
    }

    fn matrix(&self, n: usize, k: usize, repeats: bool) -> Result<B::Matrix> {
        let values = self.draw(n * k, 1.0 / (k as f32).sqrt());
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = WeightView::new(Shape::from([n, k]), DType::F32, &bytes, None)?;
        let bias = self.draw(n, 0.1);
        Ok(if repeats {
            self.b.block_matrix(&view, Some(&bias))?
        } else {
            self.b.matrix(&view, Some(&bias))?
        })
    }

    /// The same with two low-rank branches, of which one has an odd rank.
    fn branched(&self, n: usize, k: usize, repeats: bool) -> Result<B::Matrix> {
        let mut matrix = self.matrix(n, k, repeats)?;
        for (rank, scale) in [(32, 0.7), (5, -1.3)] {
            let (down, up) = (self.draw(rank * k, 0.05), self.draw(n * rank, 0.05));
            let bytes = |values: &[f32]| -> Vec<u8> {
                values.iter().flat_map(|v| v.to_le_bytes()).collect()
            };
            let (down, up) = (bytes(&down), bytes(&up));
            let view = |shape: [usize; 2], bytes| {
                WeightView::new(Shape::from(shape), DType::F32, bytes, None)
            };
            let (down, up) = (view([rank, k], &down)?, view([n, rank], &up)?);
            self.b.add_low_rank(&mut matrix, &down, &up, scale)?;
        }
        Ok(matrix)
    }

    /// An 8-bit matrix, and an operand whose rows 8 bits hold exactly.
    fn exact(&self, m: usize, n: usize, k: usize) -> Result<(B::Tensor, B::Matrix)> {
        let codes: Vec<u8> = self.draw(n * k, 60.0).into_iter().map(e4m3_code).collect();
        let scale: Vec<f32> = (0..n)
            .map(|i| (1.0 + i as f32 / n as f32) / 4096.0)
            .collect();
        let view = WeightView::new(Shape::from([n, k]), DType::F8E4M3, &codes, Some(&scale))?;
        let w = self.b.block_matrix(&view, Some(&self.draw(n, 0.1)))?;
        let mut x: Vec<f32> = self.draw(m * k, 60.0);
        for (i, row) in x.chunks_exact_mut(k).enumerate() {
            row[i % k] = 448.0;
            for v in row.iter_mut() {
                // A power of two, so that quantising the row finds the codes again.
                *v = f8e4m3_to_f32(e4m3_code(*v)) * 2f32.powi(i as i32 % 5 - 8);
            }
        }
        Ok((self.b.upload(Shape::from([m, k]), &x)?, w))
    }

    fn conv(&self, n: usize, c: usize, size: usize) -> Result<B::Conv> {
        let taps = size * size * size;
        let values = self.draw(n * c * taps, 1.0 / ((c * taps) as f32).sqrt());
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = WeightView::new(
            Shape::from([n, c, size, size, size]),
            DType::F32,
            &bytes,
            None,
        )?;
        Ok(self.b.conv(&view, Some(&self.draw(n, 0.1)))?)
    }

    fn index(&self, tokens: usize) -> Result<B::Index> {
        let index: Vec<u32> = (0..tokens).map(|i| u32::from(i % 7 < 3)).collect();
        Ok(self.b.upload_index(&index)?)
    }

    fn rope(&self, tokens: usize, d: usize) -> Result<Rope<B>> {
        let angles = self.draw(tokens * d / 2, 3.0);
        let shape = Shape::from([tokens, d / 2]);
        let table = |f: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|&a| f(a)).collect();
            self.b.upload(shape, &values)
        };
        Ok(Rope {
            cos: table(f32::cos)?,
            sin: table(f32::sin)?,
        })
    }

    /// Runs case `name`; its result, or `None` when there is no such case.
    fn run(&self, name: &str) -> Result<Vec<f32>> {
        let b = self.b;
        let out = match name {
            "linear bf16 333x256x512 gelu" => {
                let (x, w) = (self.tensor(&[333, 512])?, self.matrix(256, 512, false)?);
                b.linear(&x, &w, Activation::GeluTanh)?
            }
            "linear few rows" => {
                let (x, w) = (self.tensor(&[2, 256])?, self.matrix(1000, 256, false)?);
                b.linear(&x, &w, Activation::Silu)?
            }
            "linear bf16 with two branches, gelu" => {
                let (x, w) = (self.tensor(&[333, 512])?, self.branched(256, 512, false)?);
                b.linear(&x, &w, Activation::GeluTanh)?
            }
            "linear fp8 with two branches" => {
                let (x, w) = (self.tensor(&[333, 4096])?, self.branched(1024, 4096, true)?);
                b.linear(&x, &w, Activation::None)?
            }
            "linear fp8 exact operands" => {
                let (x, w) = self.exact(333, 512, 1024)?;
                b.linear(&x, &w, Activation::None)?
            }
            "linear fp8 rounded operands" => {
                let (x, w) = (self.tensor(&[333, 4096])?, self.matrix(1024, 4096, true)?);
                b.linear(&x, &w, Activation::None)?
            }
            "linear fp8 mlp 16384" => {
                let x = self.tensor(&[130, 4096])?;
                let (a, c) = (
                    self.matrix(16384, 4096, true)?,
                    self.matrix(512, 16384, true)?,
                );
                b.linear(
                    &b.linear(&x, &a, Activation::GeluTanh)?,
                    &c,
                    Activation::None,
                )?
            }
            "rms_norm_modulate 4096" => self.modulated(4096, true)?,
            "rms_norm_modulate 256" => self.modulated(256, true)?,
            "layer_norm_modulate 4096" => self.modulated(4096, false)?,
            "rms_norm 2048" => {
                let (x, w) = (self.tensor(&[77, 2048])?, self.tensor(&[2048])?);
                b.rms_norm(&x, &w, 1e-6)?
            }
            "residual, norm, linear fp8" => self.block_row(4096, true)?,
            "residual, norm, linear bf16" => self.block_row(4096, false)?,
            "residual without gate" => {
                let (x, y) = (self.tensor(&[100, 4096])?, self.tensor(&[100, 4096])?);
                b.gated_residual(x, &y, None)?
            }
            "qk_norm_rope, attention 700x700 D=128" => self.attended(700, 8, 128)?,
            "qk_norm_rope, attention 1000x1000 D=64" => self.attended(1000, 4, 64)?,
            "attention 130x130 D=64" => self.attended(130, 4, 64)?,
            "attention text with padding" => {
                let q = self.tensor(&[600, 1024])?;
                let (k, v) = (self.tensor(&[128, 1024])?, self.tensor(&[128, 1024])?);
                let mask: Vec<f32> = (0..128)
                    .map(|i| if i < 77 { 0.0 } else { -10000.0 })
                    .collect();
                let keys = b.upload(Shape::from([128]), &mask)?;
                let bias = AttentionBias {
                    keys: Some(&keys),
                    positions: None,
                };
                b.attention(&q, &k, &v, 8, 0.088, &bias)?
            }
            "attention with positions D=32" => {
                let [q, k, v] = [(); 3].map(|()| self.tensor(&[77, 128]));
                let positions = self.tensor(&[4, 77, 77])?;
                let mask: Vec<f32> = (0..77).map(|i| if i < 50 { 0.0 } else { -1e30 }).collect();
                let keys = b.upload(Shape::from([77]), &mask)?;
                let bias = AttentionBias {
                    keys: Some(&keys),
                    positions: Some(&positions),
                };
                b.attention(&q?, &k?, &v?, 4, 1.0, &bias)?
            }
            "multiply" => b.multiply(&self.tensor(&[50, 64])?, &self.tensor(&[50, 64])?)?,
            "silu" => b.silu(&self.tensor(&[3, 1000])?)?,
            "add_table" => b.add_table(&self.tensor(&[2, 384])?, &self.tensor(&[6, 64])?)?,
            "add_table, repeated" => {
                b.add_table(&self.tensor(&[2, 64])?, &self.tensor(&[6, 64])?)?
            }
            "weighted_sum" => b.weighted_sum(
                &self.tensor(&[70, 128])?,
                0.3,
                &self.tensor(&[70, 128])?,
                -1.7,
            )?,
            "add_scaled_tokens" => {
                let (x, y) = (self.tensor(&[70, 128])?, self.tensor(&[70, 128])?);
                b.add_scaled_tokens(x, &y, &[0.5, -0.25], &self.index(70)?)?
            }
            "channel_affine" => b.channel_affine(
                &self.tensor(&[70, 128])?,
                &self.tensor(&[128])?,
                &self.tensor(&[128])?,
            )?,
            "first_channels" => b.first_channels(&self.tensor(&[9, 129])?, 128)?,
            "conv3d causal 128 to 136, odd" => {
                let x = self.tensor(&[5, 9, 11, 128])?;
                b.conv3d(&x, &self.conv(129, 128, 3)?, TimePadding::Causal)?
            }
            "pixel_norm, conv3d, skip 256" => {
                let (x, skip) = (
                    self.tensor(&[4, 10, 12, 256])?,
                    self.tensor(&[4, 10, 12, 256])?,
                );
                let table = self.tensor(&[4, 256])?;
                let m = ChannelModulation {
                    table: &table,
                    shift: 2,
                    scale: 3,
                };
                let h = b.pixel_norm_silu(&x, 1e-8, Some(&m))?;
                b.conv3d_add(&h, &self.conv(256, 256, 3)?, TimePadding::Symmetric, skip)?
            }
            "pixel_norm 24" => b.pixel_norm_silu(&self.tensor(&[3, 5, 7, 24])?, 1e-8, None)?,
            "pixel_norm 2048" => b.pixel_norm_silu(&self.tensor(&[2, 3, 4, 2048])?, 1e-8, None)?,
            "conv3d 24 to 48" => {
                let x = self.tensor(&[5, 16, 20, 24])?;
                b.conv3d(&x, &self.conv(48, 24, 3)?, TimePadding::Symmetric)?
            }
            "conv3d, zeros around" => {
                let x = self.tensor(&[4, 6, 8, 64])?;
                b.conv3d(&x, &self.conv(64, 64, 3)?, TimePadding::Zeros)?
            }
            "group_norm, skip, all frames" => self.grouped([5, 14, 25, 512], false)?,
            "group_norm by frame" => self.grouped([3, 6, 9, 64], true)?,
            "norm, conv3d of a part" => {
                let (before, x) = (self.tensor(&[2, 6, 8, 64])?, self.tensor(&[3, 6, 8, 64])?);
                let x = b.join_frames(&before, &b.pixel_norm_silu(&x, 1e-8, None)?)?;
                let padding = TimePadding::Part {
                    begins: false,
                    ends: true,
                };
                let y = b.conv3d(&x, &self.conv(64, 64, 3)?, padding)?;
                let kept = b.frames(&x, 3..5)?;
                b.join_frames(&b.frames(&y, 0..3)?, &kept)?
            }
            "depth_to_space_add" => {
                let (x, skip) = (self.tensor(&[3, 5, 6, 512])?, self.tensor(&[3, 5, 6, 128])?);
                b.depth_to_space_add(&x, Some(&skip), [2, 2, 2], true)?
            }
            "depth_to_space" => {
                b.depth_to_space_add(&self.tensor(&[3, 5, 6, 256])?, None, [1, 2, 2], false)?
            }
            "space_to_depth_add" => {
                let (x, skip) = (self.tensor(&[4, 6, 8, 32])?, self.tensor(&[4, 6, 8, 64])?);
                b.space_to_depth_add(&x, &skip, [2, 2, 2])?
            }
            "repeat_first_frame" => b.repeat_first_frame(&self.tensor(&[2, 3, 4, 8])?, 1)?,
            "patchify" => b.patchify(&self.tensor(&[2, 8, 12, 3])?, 4)?,
            "unpatchify" => b.unpatchify(&self.tensor(&[2, 3, 5, 48])?, 4)?,
            "unpatchify to rgb8" => {
                let x = b.unpatchify(&self.tensor(&[2, 3, 5, 48])?, 4)?;
                let mut rgb = Vec::new();
                b.download_rgb8(&x, &mut rgb)?;
                return Ok(rgb.into_iter().map(f32::from).collect());
            }
            "rope of three axes" => {
                let table = |places: usize| self.draw(places * 5 * 2, 1.0);
                let axes = RopeAxes {
                    identity: 1,
                    frequencies: 5,
                    tables: [table(3), table(4), table(2)],
                    strides: vec![1; 3],
                };
                let rope = b.rope(&axes)?;
                let mut both = b.download(&rope.cos)?;
                both.extend(b.download(&rope.sin)?);
                return Ok(both);
            }
            "upload_rgb8" => {
                let rgb: Vec<u8> = (0..2 * 4 * 6 * 3).map(|i| (i * 37 % 256) as u8).collect();
                b.upload_rgb8(2, 4, 6, &rgb)?
            }
            other => bail!("there is no case {other}"),
        };
        Ok(b.download(&out)?)
    }

    fn grouped(&self, dims: [usize; 4], by_frame: bool) -> Result<B::Tensor> {
        let (x, skip) = (self.tensor(&dims)?, self.tensor(&dims)?);
        let (weight, bias) = (self.tensor(&dims[3..])?, self.tensor(&dims[3..])?);
        let norm = GroupNorm {
            groups: 32,
            eps: 1e-5,
            weight: &weight,
            bias: &bias,
            by_frame,
        };
        let skip = (!by_frame).then_some(&skip);
        Ok(self.b.group_norm_silu(&x, &norm, skip)?)
    }

    fn modulated(&self, d: usize, rms: bool) -> Result<B::Tensor> {
        let (x, table, index) = (
            self.tensor(&[99, d])?,
            self.tensor(&[2, 6, d])?,
            self.index(99)?,
        );
        let m = Modulation {
            table: &table,
            index: &index,
            shift: 3,
            scale: 4,
        };
        Ok(if rms {
            self.b.rms_norm_modulate(&x, 1e-6, &m)?
        } else {
            self.b.layer_norm_modulate(&x, 1e-6, &m)?
        })
    }

    /// A gated residual, the norm behind it and a linear layer, whose kernels the GPU joins.
    fn block_row(&self, d: usize, repeats: bool) -> Result<B::Tensor> {
        let b = self.b;
        let (x, y) = (self.tensor(&[99, d])?, self.tensor(&[99, d])?);
        let (gates, table) = (self.tensor(&[2, 6, d])?, self.tensor(&[2, 6, d])?);
        let (index, w) = (self.index(99)?, self.matrix(512, d, repeats)?);
        let gate = Gate {
            table: &gates,
            index: &index,
            row: 5,
        };
        let x = b.gated_residual(x, &y, Some(&gate))?;
        let m = Modulation {
            table: &table,
            index: &index,
            shift: 0,
            scale: 1,
        };
        let h = b.linear(&b.rms_norm_modulate(&x, 1e-6, &m)?, &w, Activation::None)?;
        // The stream itself has to be right too: it goes on.
        let first = b.first_channels(&x, 512)?;
        Ok(b.weighted_sum(&h, 1.0, &first, 1.0)?)
    }

    fn attended(&self, tokens: usize, heads: usize, head_dim: usize) -> Result<B::Tensor> {
        let (b, d) = (self.b, heads * head_dim);
        let [q, k, v] = [(); 3].map(|()| self.tensor(&[tokens, d]));
        let (wq, wk, rope) = (
            self.tensor(&[d])?,
            self.tensor(&[d])?,
            self.rope(tokens, d)?,
        );
        let q = b.qk_norm_rope(q?, &wq, 1e-5, Some(&rope))?;
        let k = b.qk_norm_rope(k?, &wk, 1e-5, Some(&rope))?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        Ok(b.attention(&q, &k, &v?, heads, scale, &AttentionBias::NONE)?)
    }
}

/// Every case and the largest relative error that it may have.
const CASES: &[(&str, f64)] = &[
    ("linear bf16 333x256x512 gelu", BF16),
    ("linear few rows", F32),
    ("linear bf16 with two branches, gelu", BF16),
    ("linear fp8 with two branches", FP8),
    ("linear fp8 exact operands", FP8_EXACT),
    ("linear fp8 rounded operands", FP8),
    ("linear fp8 mlp 16384", 2.0 * FP8),
    ("rms_norm_modulate 4096", BF16),
    ("rms_norm_modulate 256", BF16),
    ("layer_norm_modulate 4096", BF16),
    ("rms_norm 2048", BF16),
    ("residual, norm, linear fp8", FP8),
    ("residual, norm, linear bf16", BF16),
    ("residual without gate", BF16),
    ("qk_norm_rope, attention 700x700 D=128", BF16),
    ("qk_norm_rope, attention 1000x1000 D=64", BF16),
    ("attention 130x130 D=64", BF16),
    ("attention text with padding", BF16),
    ("attention with positions D=32", BF16),
    ("multiply", BF16),
    ("silu", F32),
    ("add_table", F32),
    ("add_table, repeated", F32),
    ("weighted_sum", F32),
    ("add_scaled_tokens", F32),
    ("channel_affine", F32),
    ("first_channels", F32),
    ("conv3d causal 128 to 136, odd", BF16),
    ("pixel_norm, conv3d, skip 256", BF16),
    ("pixel_norm 24", BF16),
    ("pixel_norm 2048", BF16),
    ("conv3d 24 to 48", BF16),
    ("conv3d, zeros around", BF16),
    ("group_norm, skip, all frames", BF16),
    ("group_norm by frame", BF16),
    ("norm, conv3d of a part", BF16),
    ("depth_to_space_add", BF16),
    ("depth_to_space", BF16),
    ("space_to_depth_add", BF16),
    ("repeat_first_frame", F32),
    ("patchify", F32),
    ("unpatchify", F32),
    ("unpatchify to rgb8", F32),
    ("upload_rgb8", F32),
    ("rope of three axes", F32),
];

/// `|a - b| / |b|`; infinite where one has other values than the other, or none.
fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() || a.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let square = |v: f64| v * v;
    let pairs = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)));
    let of: f64 = b.iter().map(|&b| square(f64::from(b))).sum();
    (pairs.sum::<f64>() / of.max(f64::MIN_POSITIVE)).sqrt()
}

/// Compares and prints; fails when an operation is too far off.
pub fn run(args: &OpsArgs) -> Result<()> {
    let cpu = CpuBackend::new(0, Isa::detect())?;
    let options = CudaOptions {
        ordinal: args.device,
        precision: Precision::Fp8,
        ..CudaOptions::default()
    };
    let gpu = CudaBackend::open(options).context("open the GPU; `longtake doctor` says more")?;
    let (mut results, mut failed) = (Vec::new(), 0);
    for (name, limit) in CASES.iter().filter(|(name, _)| name.contains(&args.only)) {
        let error = case(&cpu, &gpu, name, args.seed);
        let good = matches!(error, Ok(error) if error <= *limit);
        failed += usize::from(!good);
        let mark = if good { "ok  " } else { "FAIL" };
        let line = match &error {
            Ok(error) => format!("{mark}  {name:42} {error:.2e} of {limit:.1e}"),
            Err(error) => format!("{mark}  {name:42} {error:#}"),
        };
        crate::terminal::remark(line);
        results.push(serde_json::json!({
            "case": name,
            "error": error.as_ref().ok().filter(|e| e.is_finite()),
            "limit": limit,
            "ok": good,
        }));
    }
    if args.json {
        crate::terminal::print(serde_json::json!({ "ok": failed == 0, "cases": results }))?;
    }
    if failed > 0 {
        bail!("{failed} operations differ from the CPU's");
    }
    Ok(())
}

fn case(cpu: &CpuBackend, gpu: &CudaBackend, name: &str, seed: u64) -> Result<f64> {
    let start = || std::cell::Cell::new(seed.wrapping_mul(1000));
    let right = Side {
        b: cpu,
        seed: start(),
    }
    .run(name)?;
    let side = Side {
        b: gpu,
        seed: start(),
    };
    let first = side.run(name)?;
    let again = Side {
        b: gpu,
        seed: start(),
    }
    .run(name)?;
    if first
        .iter()
        .zip(&again)
        .any(|(a, b)| a.to_bits() != b.to_bits())
    {
        bail!("two runs gave different bits");
    }
    Ok(relative_error(&first, &right))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases themselves, on the CPU alone: they run, and equal operands give equal results.
    #[test]
    fn cases_are_reproducible() {
        let cpu = CpuBackend::new(1, Isa::detect()).unwrap();
        for (name, _) in CASES
            .iter()
            .filter(|(name, _)| !name.contains("4096") && !name.contains("mlp"))
        {
            let run = || {
                Side {
                    b: &cpu,
                    seed: std::cell::Cell::new(5),
                }
                .run(name)
                .unwrap()
            };
            let (a, b) = (run(), run());
            assert_eq!(relative_error(&a, &b), 0.0, "{name}");
            assert!(a.iter().any(|v| *v != 0.0), "{name}");
        }
    }

    #[test]
    fn errors_are_seen() {
        assert!(relative_error(&[1.0, 2.0], &[1.0, 2.1]) > 0.04);
        assert_eq!(relative_error(&[f32::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(relative_error(&[1.0], &[1.0, 2.0]), f64::INFINITY);
    }
}
