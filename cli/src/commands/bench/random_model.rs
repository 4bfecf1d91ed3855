//! Models of the true sizes with random weights, as files of the true layout: what a figure of speed
//! needs, and what a download would be.

use anyhow::{Context, Result};
use longtake_ltx::config::{T5Config, TransformerConfig, VaeConfig};
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
    /// Text of the entry `config` in the file's own metadata.
    config: Option<String>,
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
        self.matrix(name, n, k, fp8);
        self.vector(&format!("{name}.bias"), &[n], 0.0, 0.02);
    }

    fn matrix(&mut self, name: &str, n: usize, k: usize, fp8: bool) {
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

    /// The whole VAE of LTX-Video 0.9.7 and later.
    fn vae(config: &VaeConfig) -> Self {
        let mut file = Self::decoder();
        let f = &mut file;
        let channels = &config.block_out_channels;
        let resnets = |f: &mut Self, name: &str, count: usize, c: usize| {
            for i in 0..count {
                f.conv(&format!("{name}.resnets.{i}.conv1.conv"), c, c);
                f.conv(&format!("{name}.resnets.{i}.conv2.conv"), c, c);
            }
        };
        f.conv("encoder.conv_in.conv", channels[0], 48);
        for (i, kind) in config.downsample_type.iter().enumerate() {
            let name = format!("encoder.down_blocks.{i}");
            resnets(f, &name, config.layers_per_block[i], channels[i]);
            let folds = match kind.as_str() {
                "spatial" => 4,
                "temporal" => 2,
                _ => 8,
            };
            let conv = format!("{name}.downsamplers.0.conv.conv");
            f.conv(&conv, channels[i + 1] / folds, channels[i]);
        }
        let (layers, last) = (config.layers_per_block[4], channels[4]);
        resnets(f, "encoder.mid_block", layers, last);
        f.conv("encoder.conv_out.conv", 129, last);
        file
    }

    /// The encoder of T5 v1.1, its matrices in 8 bits.
    pub fn t5(config: &T5Config) -> Self {
        let mut file = Self::default();
        let f = &mut file;
        let (d, inner) = (config.d_model, config.num_heads * config.d_kv);
        f.vector("shared.weight", &[config.vocab_size, d], 0.0, 1.0);
        for i in 0..config.num_layers {
            let block = format!("encoder.block.{i}");
            let attention = format!("{block}.layer.0.SelfAttention");
            // No scaling of scores: queries are as small as the model has learned to make them.
            f.matrix(&format!("{attention}.q"), inner, d, true);
            for layer in ["k", "v"] {
                f.matrix(&format!("{attention}.{layer}"), inner, d, true);
            }
            f.matrix(&format!("{attention}.o"), d, inner, true);
            let ff = format!("{block}.layer.1.DenseReluDense");
            f.matrix(&format!("{ff}.wi_0"), config.d_ff, d, true);
            f.matrix(&format!("{ff}.wi_1"), config.d_ff, d, true);
            f.matrix(&format!("{ff}.wo"), d, config.d_ff, true);
            for layer in 0..2 {
                let norm = format!("{block}.layer.{layer}.layer_norm.weight");
                f.vector(&norm, &[d], 0.3, 0.05);
            }
        }
        let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let buckets = config.relative_attention_num_buckets;
        f.vector(bias, &[buckets, config.num_heads], 0.0, 0.5);
        f.vector("encoder.final_layer_norm.weight", &[d], 1.0, 0.1);
        file
    }

    /// The spatial latent upscaler of LTX-Video 0.9.8.
    fn upscaler() -> Self {
        let mut file = Self::default();
        let f = &mut file;
        let mid = 512;
        let norm = |f: &mut Self, name: &str| {
            f.vector(&format!("{name}.weight"), &[mid], 1.0, 0.1);
            f.vector(&format!("{name}.bias"), &[mid], 0.0, 0.02);
        };
        f.conv("initial_conv", mid, 128);
        norm(f, "initial_norm");
        for stage in ["res_blocks", "post_upsample_res_blocks"] {
            for i in 0..4 {
                for part in 1..=2 {
                    f.conv(&format!("{stage}.{i}.conv{part}"), mid, mid);
                    norm(f, &format!("{stage}.{i}.norm{part}"));
                }
            }
        }
        let deviation = 1.0 / (9.0 * mid as f32).sqrt();
        f.vector("upsampler.0.weight", &[4 * mid, mid, 3, 3], 0.0, deviation);
        f.vector("upsampler.0.bias", &[4 * mid], 0.0, 0.02);
        f.conv("final_conv", 128, mid);
        file.config = Some(
            r#"{"in_channels":128,"mid_channels":512,"num_blocks_per_stage":4,"dims":3,"spatial_upsample":true,"temporal_upsample":false}"#
                .to_owned(),
        );
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
        if let Some(config) = &self.config {
            let metadata = serde_json::json!({ "config": config });
            write!(header, r#""__metadata__":{metadata},"#)?;
        }
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

/// A transformer's configuration: `[layers, heads, channels of a head]`.
pub fn transformer_config([layers, heads, head_dim]: [usize; 3]) -> TransformerConfig {
    TransformerConfig {
        num_layers: layers,
        num_attention_heads: heads,
        attention_head_dim: head_dim,
        cross_attention_dim: heads * head_dim,
        ..TransformerConfig::default()
    }
}

/// T5-XXL, for so many words.
pub fn t5_xxl(vocab_size: usize) -> T5Config {
    T5Config {
        vocab_size,
        d_model: 4096,
        d_kv: 64,
        d_ff: 10240,
        num_layers: 24,
        num_heads: 64,
        feed_forward_proj: "gated-gelu".into(),
        ..T5Config::default()
    }
}

/// The VAE of LTX-Video 0.9.7 and later.
pub fn vae_config() -> VaeConfig {
    VaeConfig {
        block_out_channels: vec![128, 256, 512, 1024, 2048],
        down_block_types: vec!["LTXVideo095DownBlock3D".into(); 4],
        layers_per_block: vec![4, 6, 6, 2, 2],
        spatio_temporal_scaling: vec![true; 4],
        downsample_type: ["spatial", "temporal", "spatiotemporal", "spatiotemporal"]
            .map(String::from)
            .to_vec(),
        decoder_block_out_channels: vec![256, 512, 1024],
        decoder_layers_per_block: vec![5; 4],
        decoder_spatio_temporal_scaling: vec![true; 3],
        decoder_inject_noise: vec![false; 4],
        upsample_residual: vec![true; 3],
        upsample_factor: vec![2; 3],
        timestep_conditioning: true,
        ..VaeConfig::default()
    }
}

/// Writes a whole model to `folder` as diffusers lays it out, and its upscaler beside it. Tokenizer and
/// scheduler are those of the small model that is shipped.
pub fn write_model(folder: &Path, sizes: [usize; 3]) -> Result<()> {
    // The words of the tokenizer below.
    let t5 = t5_xxl(141);
    let vae = vae_config();
    let shipped = longtake_common::model::find_model("ltxv-tiny")?;
    let copy = |name: &str| -> Result<()> {
        let (from, to) = (shipped.join(name), folder.join(name));
        std::fs::create_dir_all(to.parent().unwrap_or(folder))?;
        std::fs::copy(&from, to).with_context(|| format!("copy {}", from.display()))?;
        Ok(())
    };
    copy("model_index.json")?;
    copy("scheduler/scheduler_config.json")?;
    for name in [
        "spiece.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        copy(&format!("tokenizer/{name}"))?;
    }
    let transformer = transformer_config(sizes);
    let part = |name: &str, config: String, stem: &str, file: RandomFile| -> Result<()> {
        let part = folder.join(name);
        std::fs::create_dir_all(&part)?;
        std::fs::write(part.join("config.json"), config)?;
        file.write(&part.join(format!("{stem}.safetensors")), 1)
    };
    let stem = "diffusion_pytorch_model";
    let blocks = RandomFile::transformer(sizes[0], sizes[1] * sizes[2]);
    part(
        "transformer",
        serde_json::to_string(&transformer)?,
        stem,
        blocks,
    )?;
    part(
        "vae",
        serde_json::to_string(&vae)?,
        stem,
        RandomFile::vae(&vae),
    )?;
    part(
        "text_encoder",
        serde_json::to_string(&t5)?,
        "model",
        RandomFile::t5(&t5),
    )?;
    RandomFile::upscaler().write(&folder.join("upscaler.safetensors"), 2)
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
