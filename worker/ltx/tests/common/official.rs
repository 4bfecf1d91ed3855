//! The golden model as an official checkpoint in one file.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The name that an official file has for tensor `name` of folder `part`: the inverse of what is
/// tested, for the golden model's four down and three up blocks.
fn official_name(part: &str, name: &str) -> String {
    if part == "transformer" {
        let pairs = [
            ("proj_in", "patchify_proj"),
            ("time_embed.", "adaln_single."),
            ("norm_q", "q_norm"),
            ("norm_k", "k_norm"),
        ];
        let name = pairs
            .iter()
            .fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
        return format!("model.diffusion_model.{name}");
    }
    let mut pairs = vec![
        (
            "latents_mean".to_owned(),
            "per_channel_statistics.mean-of-means".to_owned(),
        ),
        (
            "latents_std".to_owned(),
            "per_channel_statistics.std-of-means".to_owned(),
        ),
        (
            "decoder.time_embedder".to_owned(),
            "decoder.last_time_embedder".to_owned(),
        ),
        (
            "decoder.scale_shift_table".to_owned(),
            "decoder.last_scale_shift_table".to_owned(),
        ),
        (
            "decoder.mid_block.".to_owned(),
            "decoder.up_blocks.0.".to_owned(),
        ),
        (
            "encoder.mid_block.".to_owned(),
            "encoder.down_blocks.8.".to_owned(),
        ),
    ];
    for i in 0..4 {
        let (down, up) = (
            format!("encoder.down_blocks.{i}."),
            format!("decoder.up_blocks.{i}."),
        );
        pairs.push((
            format!("{down}downsamplers.0."),
            format!("encoder.down_blocks.{}.", 2 * i + 1),
        ));
        pairs.push((down, format!("encoder.down_blocks.{}.", 2 * i)));
        pairs.push((
            format!("{up}upsamplers.0."),
            format!("decoder.up_blocks.{}.", 2 * i + 1),
        ));
        pairs.push((up, format!("decoder.up_blocks.{}.", 2 * i + 2)));
    }
    let found = pairs.iter().find(|(from, _)| name.starts_with(from));
    let name = found.map_or(name.to_owned(), |(from, to)| {
        format!("{to}{}", &name[from.len()..])
    });
    format!("vae.{}", name.replace("resnets", "res_blocks"))
}

/// The golden model as the metadata of an official file describes it.
pub fn config() -> Value {
    let res = |layers: usize| json!(["res_x", { "num_layers": layers }]);
    let down = |kind: &str, multiplier: usize| json!([kind, { "multiplier": multiplier }]);
    let up =
        |multiplier: usize| json!(["compress_all", { "residual": true, "multiplier": multiplier }]);
    json!({
        "transformer": {
            "_class_name": "Transformer3DModel", "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
            "cross_attention_dim": 32, "caption_channels": 24, "in_channels": 128, "out_channels": 128,
            "activation_fn": "gelu-approximate", "attention_bias": true, "norm_elementwise_affine": false,
            "norm_eps": 1e-6, "qk_norm": "rms_norm", "standardization_norm": "rms_norm",
            "positional_embedding_type": "rope", "positional_embedding_theta": 10000.0,
            "positional_embedding_max_pos": [20, 2048, 2048], "timestep_scale_multiplier": 1000,
            "causal_temporal_positioning": true,
        },
        "vae": {
            "dims": 3, "latent_channels": 128, "norm_layer": "pixel_norm", "patch_size": 4, "latent_log_var": "uniform",
            "use_quant_conv": false, "timestep_conditioning": true, "encoder_base_channels": 8, "decoder_base_channels": 8,
            "encoder_blocks": [res(1), down("compress_space_res", 2), res(1), down("compress_time_res", 1), res(1),
                down("compress_all_res", 2), res(1), down("compress_all_res", 1), res(1)],
            "decoder_blocks": [res(1), up(2), res(2), up(1), res(1), up(2), res(1)],
        },
        "scheduler": { "sampler": "LinearQuadratic" },
    })
}

/// Name, type, shape and bytes of each tensor.
pub type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

/// The tensors of the golden model in folder `model` under their official names.
pub fn official_tensors(model: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for part in ["transformer", "vae"] {
        for entry in std::fs::read_dir(model.join(part)).expect("folder") {
            let path = entry.expect("entry").path();
            if path
                .extension()
                .is_none_or(|ending| ending != "safetensors")
            {
                continue;
            }
            let bytes = std::fs::read(path).expect("file");
            for (name, view) in SafeTensors::deserialize(&bytes).expect("weights").tensors() {
                let name = official_name(part, &name);
                tensors.push((
                    name,
                    view.dtype(),
                    view.shape().to_vec(),
                    view.data().to_vec(),
                ));
            }
        }
    }
    tensors
}

/// Writes tensors as a file; with a configuration, it is a checkpoint.
pub fn write(
    path: &Path,
    tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)],
    config: Option<&Value>,
) -> PathBuf {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (
            name.as_str(),
            TensorView::new(*dtype, shape.clone(), data).expect("tensor"),
        )
    });
    let metadata = config.map(|config| HashMap::from([("config".to_owned(), config.to_string())]));
    std::fs::write(path, safetensors::serialize(views, metadata).expect("file")).expect("write");
    path.to_owned()
}
