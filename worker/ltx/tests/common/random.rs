//! A model of random weights with more attention heads than the golden one, and an upscaler of
//! another kind.

use super::{backend, golden, model_copy};
use longtake_cpu::CpuBackend;
use longtake_ltx::Model;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::path::PathBuf;

/// Blocks, channels of a head, channels of a caption (the golden text encoder's).
const LAYERS: usize = 3;
const HEAD: usize = 8;
const CAPTION: usize = 24;

/// Tensors in the making.
struct Weights {
    state: u64,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
}

impl Weights {
    fn add(&mut self, name: String, shape: &[usize], mean: f32, deviation: f32) {
        let count: usize = shape.iter().product();
        let mut bytes = Vec::with_capacity(4 * count);
        for _ in 0..count {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            let even = (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            bytes.extend((mean + 1.7 * deviation * even).to_le_bytes());
        }
        self.tensors.push((name, shape.to_vec(), bytes));
    }

    fn linear(&mut self, name: &str, n: usize, k: usize) {
        self.add(
            format!("{name}.weight"),
            &[n, k],
            0.0,
            (k as f32).sqrt().recip(),
        );
        self.add(format!("{name}.bias"), &[n], 0.0, 0.05);
    }
}

/// The golden model with a transformer of `heads` heads.
pub fn model_of_heads(heads: usize) -> Model<CpuBackend> {
    let dim = heads * HEAD;
    let mut w = Weights {
        state: 0x9e37_79b9_7f4a_7c15,
        tensors: Vec::new(),
    };
    w.linear("proj_in", dim, 128);
    w.linear("time_embed.emb.timestep_embedder.linear_1", dim, 256);
    w.linear("time_embed.emb.timestep_embedder.linear_2", dim, dim);
    w.linear("time_embed.linear", 6 * dim, dim);
    w.linear("caption_projection.linear_1", dim, CAPTION);
    w.linear("caption_projection.linear_2", dim, dim);
    for i in 0..LAYERS {
        let block = format!("transformer_blocks.{i}");
        for attention in ["attn1", "attn2"] {
            for layer in ["to_q", "to_k", "to_v", "to_out.0"] {
                w.linear(&format!("{block}.{attention}.{layer}"), dim, dim);
            }
            for norm in ["norm_q", "norm_k"] {
                w.add(
                    format!("{block}.{attention}.{norm}.weight"),
                    &[dim],
                    1.0,
                    0.1,
                );
            }
        }
        w.linear(&format!("{block}.ff.net.0.proj"), 4 * dim, dim);
        w.linear(&format!("{block}.ff.net.2"), dim, 4 * dim);
        w.add(format!("{block}.scale_shift_table"), &[6, dim], 0.0, 0.3);
    }
    w.add("scale_shift_table".to_owned(), &[2, dim], 0.0, 0.3);
    w.linear("proj_out", 128, dim);

    let dir = model_copy();
    let folder = dir.path().join("transformer");
    let config = std::fs::read(folder.join("config.json")).expect("configuration");
    let mut config: serde_json::Value = serde_json::from_slice(&config).expect("configuration");
    for (key, value) in [
        ("num_attention_heads", heads),
        ("attention_head_dim", HEAD),
        ("cross_attention_dim", dim),
        ("num_layers", LAYERS),
    ] {
        config[key] = value.into();
    }
    std::fs::remove_dir_all(&folder).expect("folder");
    std::fs::create_dir(&folder).expect("folder");
    std::fs::write(folder.join("config.json"), config.to_string()).expect("configuration");
    let views = w.tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("tensor");
        (name.as_str(), view)
    });
    let file = safetensors::serialize(views, None).expect("file");
    std::fs::write(folder.join("diffusion_pytorch_model.safetensors"), file).expect("file");
    Model::load(dir.path(), backend(2)).expect("the model loads")
}

/// The golden upscaler with kernels of one frame, its norms frame by frame (`dims` 2); the folder that
/// it is in, and the file.
pub fn flat_upscaler() -> (tempfile::TempDir, PathBuf) {
    let bytes = std::fs::read(golden("upscaler.safetensors")).expect("upscaler");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("header");
    let mut metadata = header.metadata().clone().expect("metadata");
    let config = metadata.get_mut("config").expect("configuration");
    *config = config.replace("\"dims\": 3", "\"dims\": 2");
    let file = SafeTensors::deserialize(&bytes).expect("upscaler");
    let flat = file.iter().map(|(name, view)| {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
        if let &[n, c, kt, kh, kw] = &shape[..] {
            // The frame in the middle of each kernel.
            let frame = 2 * kh * kw;
            let kernels = data.chunks_exact(kt * frame);
            data = kernels
                .flat_map(|k| &k[kt / 2 * frame..][..frame])
                .copied()
                .collect();
            shape = vec![n, c, kh, kw];
        }
        (name.to_owned(), view.dtype(), shape, data)
    });
    let flat: Vec<_> = flat.collect();
    let views = flat.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).expect("tensor");
        (name.as_str(), view)
    });
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("upscaler.safetensors");
    let file = safetensors::serialize(views, Some(metadata)).expect("file");
    std::fs::write(&path, file).expect("file");
    (dir, path)
}
