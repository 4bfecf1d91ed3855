//! Models of the true sizes with random weights, as files of the true layout: what a figure of speed
//! needs, and what a download would be.

use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// How the values of a tensor are drawn.
#[derive(Clone, Copy)]
enum Draw {
    /// bf16, normal around `mean`.
    Bf16 { mean: f32, deviation: f32 },
    /// f32, normal around `mean`.
    F32 { mean: f32, deviation: f32 },
    /// E4M3 codes with a scale beside them that makes the deviation 1 / sqrt(K).
    E4m3,
}

/// A tensor of a file.
struct Entry {
    name: String,
    shape: Vec<usize>,
    draw: Draw,
}

/// The tensors of a file in the making.
#[derive(Default)]
pub struct RandomFile {
    entries: Vec<Entry>,
}

/// Values that are drawn; tensors repeat them. Prime, so that rows of a matrix differ.
const DRAWN: usize = 1_048_573;

/// Reproducible values, near normal: mean 0, deviation 1.
pub fn normals(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let sum: u64 = (0..4).map(|i| state >> (16 * i) & 0xffff).sum();
        (sum as f32 / 65535.0 - 2.0) * 1.732_050_8
    };
    (0..count).map(|_| next()).collect()
}

/// `value` in bf16, little-endian.
pub fn bf16_bytes(value: f32) -> [u8; 2] {
    // Ties away from even do not matter to random values.
    ((value.to_bits().wrapping_add(0x8000) >> 16) as u16).to_le_bytes()
}

impl RandomFile {
    fn add(&mut self, name: &str, shape: &[usize], draw: Draw) {
        self.entries.push(Entry {
            name: name.to_owned(),
            shape: shape.to_vec(),
            draw,
        });
    }

    fn vector(&mut self, name: &str, shape: &[usize], mean: f32, deviation: f32) {
        self.add(name, shape, Draw::Bf16 { mean, deviation });
    }

    fn linear(&mut self, name: &str, n: usize, k: usize, fp8: bool) {
        let deviation = 1.0 / (k as f32).sqrt();
        if fp8 {
            self.add(&format!("{name}.weight"), &[n, k], Draw::E4m3);
            // The codes' own deviation is 60.
            let mean = deviation / 60.0;
            self.add(
                &format!("{name}.scale_weight"),
                &[1],
                Draw::F32 {
                    mean,
                    deviation: 0.0,
                },
            );
        } else {
            self.vector(&format!("{name}.weight"), &[n, k], 0.0, deviation);
        }
        self.vector(&format!("{name}.bias"), &[n], 0.0, 0.02);
    }

    fn conv(&mut self, name: &str, n: usize, c: usize) {
        let deviation = 1.0 / (27.0 * c as f32).sqrt();
        self.vector(&format!("{name}.weight"), &[n, c, 3, 3, 3], 0.0, deviation);
        self.vector(&format!("{name}.bias"), &[n], 0.0, 0.02);
    }

    /// The transformer: `layers` blocks of `dim` channels, the blocks' matrices in 8 bits.
    pub fn transformer(layers: usize, dim: usize) -> Self {
        let mut file = Self::default();
        let f = &mut file;
        f.linear("proj_in", dim, 128, false);
        f.linear("time_embed.emb.timestep_embedder.linear_1", dim, 256, false);
        f.linear("time_embed.emb.timestep_embedder.linear_2", dim, dim, false);
        f.linear("time_embed.linear", 6 * dim, dim, false);
        f.linear("caption_projection.linear_1", dim, 4096, false);
        f.linear("caption_projection.linear_2", dim, dim, false);
        for i in 0..layers {
            let block = format!("transformer_blocks.{i}");
            for attention in ["attn1", "attn2"] {
                for layer in ["to_q", "to_k", "to_v", "to_out.0"] {
                    f.linear(&format!("{block}.{attention}.{layer}"), dim, dim, true);
                }
                for norm in ["norm_q", "norm_k"] {
                    f.vector(
                        &format!("{block}.{attention}.{norm}.weight"),
                        &[dim],
                        1.0,
                        0.1,
                    );
                }
            }
            f.linear(&format!("{block}.ff.net.0.proj"), 4 * dim, dim, true);
            f.linear(&format!("{block}.ff.net.2"), dim, 4 * dim, true);
            f.vector(&format!("{block}.scale_shift_table"), &[6, dim], 0.0, 0.1);
        }
        f.vector("scale_shift_table", &[2, dim], 0.0, 0.1);
        f.linear("proj_out", 128, dim, false);
        file
    }

    /// The VAE's decoder of LTX-Video 0.9.5 and later.
    pub fn decoder() -> Self {
        let mut file = Self::default();
        let f = &mut file;
        let embedder = |f: &mut Self, name: &str, to: usize| {
            f.linear(
                &format!("{name}.timestep_embedder.linear_1"),
                to,
                256,
                false,
            );
            f.linear(&format!("{name}.timestep_embedder.linear_2"), to, to, false);
        };
        let stage = |f: &mut Self, name: &str, c: usize| {
            embedder(f, &format!("{name}.time_embedder"), 4 * c);
            for i in 0..5 {
                let block = format!("{name}.resnets.{i}");
                f.conv(&format!("{block}.conv1.conv"), c, c);
                f.conv(&format!("{block}.conv2.conv"), c, c);
                f.vector(&format!("{block}.scale_shift_table"), &[4, c], 0.0, 0.1);
            }
        };
        f.conv("decoder.conv_in.conv", 1024, 128);
        stage(f, "decoder.mid_block", 1024);
        for (i, c) in [512, 256, 128].into_iter().enumerate() {
            let name = format!("decoder.up_blocks.{i}");
            f.conv(&format!("{name}.upsamplers.0.conv.conv"), 8 * c, 2 * c);
            stage(f, &name, c);
        }
        embedder(f, "decoder.time_embedder", 2 * 128);
        f.vector("decoder.scale_shift_table", &[2, 128], 0.0, 0.1);
        f.vector("decoder.timestep_scale_multiplier", &[], 1000.0, 0.0);
        f.conv("decoder.conv_out.conv", 48, 128);
        f.vector("latents_mean", &[128], 0.0, 0.1);
        f.vector("latents_std", &[128], 1.0, 0.1);
        file
    }

    /// Writes the file; `seed` chooses the values.
    pub fn write(&self, path: &Path, seed: u64) -> Result<()> {
        let at = || {
            format!(
                "write {}: random weights need room for the whole model",
                path.display()
            )
        };
        let file = File::create(path).with_context(at)?;
        self.write_to(BufWriter::with_capacity(8 << 20, file), seed)
            .with_context(at)
    }

    fn write_to(&self, mut out: impl Write, seed: u64) -> Result<()> {
        let (mut header, mut offset) = (String::from("{"), 0);
        for (i, entry) in self.entries.iter().enumerate() {
            let (dtype, bytes) = match entry.draw {
                Draw::Bf16 { .. } => ("BF16", 2),
                Draw::F32 { .. } => ("F32", 4),
                Draw::E4m3 => ("F8_E4M3", 1),
            };
            let end = offset + entry.shape.iter().product::<usize>() * bytes;
            let comma = if i == 0 { "" } else { "," };
            let (name, shape) = (&entry.name, &entry.shape);
            write!(
                header,
                r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{offset},{end}]}}"#
            )?;
            offset = end;
        }
        header.push('}');
        while header.len() % 8 != 0 {
            header.push(' ');
        }
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        let drawn = normals(seed, DRAWN);
        let codes: Vec<u8> = drawn.iter().map(|&v| e4m3_code(v * 60.0)).collect();
        for entry in &self.entries {
            let count: usize = entry.shape.iter().product();
            match entry.draw {
                Draw::E4m3 => repeat(&mut out, &codes, count)?,
                Draw::Bf16 { mean, deviation } => {
                    let part = &drawn[..count.min(DRAWN)];
                    let values = part.iter().map(|&v| bf16_bytes(mean + deviation * v));
                    repeat(&mut out, &values.flatten().collect::<Vec<_>>(), count * 2)?;
                }
                Draw::F32 { mean, deviation } => {
                    let part = &drawn[..count.min(DRAWN)];
                    let values = part.iter().map(|&v| (mean + deviation * v).to_le_bytes());
                    repeat(&mut out, &values.flatten().collect::<Vec<_>>(), count * 4)?;
                }
            }
        }
        out.flush()?;
        Ok(())
    }
}

/// Writes `bytes` bytes of `block`, again and again.
fn repeat(out: &mut impl Write, block: &[u8], mut bytes: usize) -> Result<()> {
    while bytes > 0 {
        let part = bytes.min(block.len());
        out.write_all(&block[..part])?;
        bytes -= part;
    }
    Ok(())
}

/// An E4M3 code near `value`: exact rounding does not matter to random values.
pub fn e4m3_code(value: f32) -> u8 {
    let sign = if value < 0.0 { 0x80 } else { 0 };
    let magnitude = value.abs().min(448.0);
    if magnitude < 1.0 / 64.0 {
        return sign | (magnitude * 512.0) as u8;
    }
    sign | ((magnitude.to_bits() >> 20) - (120 << 3)).min(0x7e) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use longtake_tensor::dtype::f8e4m3_to_f32;

    #[test]
    fn codes_are_near_their_values() {
        for value in normals(3, 1000) {
            let back = f8e4m3_to_f32(e4m3_code(value * 60.0));
            assert!((back - value * 60.0).abs() <= (value * 60.0).abs() / 8.0 + 0.002);
        }
    }

    #[test]
    fn a_written_model_can_be_loaded() {
        use longtake_ltx::config::TransformerConfig;
        use longtake_ltx::names::Part;
        use longtake_ltx::transformer::Transformer;
        use longtake_ltx::weights::{Scrutiny, Weights};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("diffusion_pytorch_model.safetensors");
        RandomFile::transformer(2, 64).write(&path, 5).unwrap();
        let config = TransformerConfig {
            num_layers: 2,
            num_attention_heads: 2,
            attention_head_dim: 32,
            cross_attention_dim: 64,
            ..TransformerConfig::default()
        };
        let stem = "diffusion_pytorch_model";
        let weights =
            Weights::open(folder.path(), stem, Part::Transformer, Scrutiny::Values).unwrap();
        let cpu = longtake_cpu::CpuBackend::new(1, longtake_cpu::Isa::detect()).unwrap();
        Transformer::load(&cpu, &weights, &config).unwrap();
    }
}
