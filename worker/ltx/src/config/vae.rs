//! Configuration of the VAE.

use super::{Checker, LAYERS_MAX, read_json};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `vae/config.json` of `AutoencoderKLLTXVideo`, block layout of LTX-Video 0.9.5 and later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are diffusers'")]
pub struct VaeConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub down_block_types: Vec<String>,
    pub decoder_block_out_channels: Vec<usize>,
    pub layers_per_block: Vec<usize>,
    pub decoder_layers_per_block: Vec<usize>,
    pub spatio_temporal_scaling: Vec<bool>,
    pub decoder_spatio_temporal_scaling: Vec<bool>,
    pub decoder_inject_noise: Vec<bool>,
    pub downsample_type: Vec<String>,
    pub upsample_residual: Vec<bool>,
    pub upsample_factor: Vec<usize>,
    pub timestep_conditioning: bool,
    pub patch_size: usize,
    pub patch_size_t: usize,
    pub scaling_factor: f32,
    pub encoder_causal: bool,
    pub decoder_causal: bool,
    pub spatial_compression_ratio: Option<usize>,
    pub temporal_compression_ratio: Option<usize>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 128,
            block_out_channels: vec![128, 256, 512, 512],
            down_block_types: vec!["LTXVideoDownBlock3D".into(); 4],
            decoder_block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: vec![4, 3, 3, 3, 4],
            decoder_layers_per_block: vec![4, 3, 3, 3, 4],
            spatio_temporal_scaling: vec![true, true, true, false],
            decoder_spatio_temporal_scaling: vec![true, true, true, false],
            decoder_inject_noise: vec![false; 5],
            downsample_type: vec!["conv".into(); 4],
            upsample_residual: vec![false; 4],
            upsample_factor: vec![1; 4],
            timestep_conditioning: false,
            patch_size: 4,
            patch_size_t: 1,
            scaling_factor: 1.0,
            encoder_causal: true,
            decoder_causal: false,
            spatial_compression_ratio: None,
            temporal_compression_ratio: None,
        }
    }
}

impl VaeConfig {
    /// Reads and checks `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let c: Self = read_json(path)?;
        c.check(path)?;
        Ok(c)
    }

    /// Fails on what is not computed; `path` is where it was read.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let c = self;
        let check = Checker(path);
        check.require(
            c.in_channels == 3,
            "in_channels",
            c.in_channels,
            "only 3 is supported",
        )?;
        check.require(
            c.out_channels == 3,
            "out_channels",
            c.out_channels,
            "only 3 is supported",
        )?;
        check.require(
            c.latent_channels > 0,
            "latent_channels",
            0,
            "it must be positive",
        )?;
        check.require(
            c.patch_size > 0,
            "patch_size",
            c.patch_size,
            "it must be positive",
        )?;
        check.require(
            c.patch_size_t == 1,
            "patch_size_t",
            c.patch_size_t,
            "only 1 is supported",
        )?;
        for (key, layers) in [
            ("layers_per_block", &c.layers_per_block),
            ("decoder_layers_per_block", &c.decoder_layers_per_block),
        ] {
            let fits = layers.iter().all(|&layers| layers <= LAYERS_MAX);
            check.require(fits, key, layers, "at most 1024 are supported in a block")?;
        }
        c.check_encoder(&check)?;
        c.check_decoder(&check)?;
        c.check_ratios(&check)
    }

    fn check_encoder(&self, check: &Checker<'_>) -> Result<()> {
        let types = &self.down_block_types;
        let known = !types.is_empty() && types.iter().all(|t| t == "LTXVideo095DownBlock3D");
        let only = "only LTXVideo095DownBlock3D is supported (LTX-Video 0.9.5 and later)";
        check.require(known, "down_block_types", types, only)?;
        let blocks = types.len();
        let channels = &self.block_out_channels;
        let fits = channels.len() == blocks + 1 && channels.iter().all(|&c| c > 0);
        check.require(
            fits,
            "block_out_channels",
            channels,
            "one more than blocks are needed",
        )?;
        let layers = &self.layers_per_block;
        let fits = layers.len() == blocks + 1;
        check.require(
            fits,
            "layers_per_block",
            layers,
            "one more than blocks are needed",
        )?;
        let scaling = &self.spatio_temporal_scaling;
        let fits = scaling.len() == blocks && scaling.iter().all(|&s| s);
        check.require(
            fits,
            "spatio_temporal_scaling",
            scaling,
            "true for each block is needed",
        )?;
        let kinds = &self.downsample_type;
        let fits = kinds.len() == blocks && kinds.iter().all(|k| downsample_stride(k).is_some());
        let only = "spatial, temporal or spatiotemporal is needed for each block";
        check.require(fits, "downsample_type", kinds, only)?;
        for (pair, kind) in channels.windows(2).zip(kinds) {
            let stride = downsample_stride(kind).unwrap_or([1; 3]);
            let block: usize = stride.iter().product();
            let fits = pair[1].is_multiple_of(block) && pair[0].is_multiple_of(pair[1] / block);
            let rule = "each width must divide by its stride, and divide that of the skip";
            check.require(fits, "block_out_channels", channels, rule)?;
        }
        Ok(())
    }

    fn check_decoder(&self, check: &Checker<'_>) -> Result<()> {
        let channels = &self.decoder_block_out_channels;
        let blocks = channels.len();
        check.require(
            blocks > 0,
            "decoder_block_out_channels",
            channels,
            "none are given",
        )?;
        let layers = &self.decoder_layers_per_block;
        let one_more = "one more than decoder blocks are needed";
        check.require(
            layers.len() == blocks + 1,
            "decoder_layers_per_block",
            layers,
            one_more,
        )?;
        let noise = &self.decoder_inject_noise;
        check.require(
            !noise.contains(&true),
            "decoder_inject_noise",
            noise,
            "only false is supported",
        )?;
        let scaling = &self.decoder_spatio_temporal_scaling;
        let fits = scaling.len() == blocks && scaling.iter().all(|&s| s);
        let each = "true for each decoder block is needed";
        check.require(fits, "decoder_spatio_temporal_scaling", scaling, each)?;
        let residual = &self.upsample_residual;
        let one_each = "one value for each decoder block is needed";
        check.require(
            residual.len() == blocks,
            "upsample_residual",
            residual,
            one_each,
        )?;
        let factor = &self.upsample_factor;
        let fits = factor.len() == blocks && factor.iter().all(|&f| f > 0);
        check.require(fits, "upsample_factor", factor, one_each)?;
        let mut width = channels[blocks - 1];
        for (&out, &factor) in channels.iter().zip(factor).rev() {
            let rule =
                "blocks that change their width by a shortcut (LTX-Video 0.9.1) are not supported";
            check.require(
                width / factor == out / factor,
                "decoder_block_out_channels",
                channels,
                rule,
            )?;
            width = out / factor;
        }
        Ok(())
    }

    fn check_ratios(&self, check: &Checker<'_>) -> Result<()> {
        let ([time, space], blocks) = (self.ratios(), self.decoder_block_out_channels.len() as u32);
        let decoder = [2usize.pow(blocks), self.patch_size * 2usize.pow(blocks)];
        let rule = "encoder and decoder must change sizes by the same factors";
        check.require(
            [time, space] == decoder,
            "downsample_type",
            &self.downsample_type,
            rule,
        )?;
        let stated = self.spatial_compression_ratio;
        let rule = "it does not agree with the blocks";
        check.require(
            stated.is_none_or(|r| r == space),
            "spatial_compression_ratio",
            stated,
            rule,
        )?;
        let stated = self.temporal_compression_ratio;
        check.require(
            stated.is_none_or(|r| r == time),
            "temporal_compression_ratio",
            stated,
            rule,
        )
    }

    /// `[frames, pixels]` to one latent frame and cell.
    pub fn ratios(&self) -> [usize; 2] {
        let strides = self
            .downsample_type
            .iter()
            .filter_map(|kind| downsample_stride(kind));
        strides.fold([1, self.patch_size], |[time, space], [st, sh, _]| {
            [time * st, space * sh]
        })
    }
}

/// `[st, sh, sw]` of a downsampler.
pub(crate) fn downsample_stride(kind: &str) -> Option<[usize; 3]> {
    match kind {
        "spatial" => Some([1, 2, 2]),
        "temporal" => Some([2, 1, 1]),
        "spatiotemporal" => Some([2, 2, 2]),
        _ => None,
    }
}
