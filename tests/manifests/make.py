"""Writes the manifests: names, shapes and types of the true checkpoints, from the official code.

    python make.py LTX_VIDEO_REPOSITORY

needs torch, diffusers and transformers. No weights are needed: the models are built on torch's meta
device. A line is `official name, diffusers' name, shape, type`; `{48}` stands for 0 to 47. The
second name is what diffusers' own converter makes of the first; `-` where it drops the tensor. A
first line beginning with `#` is the metadata `config`, as JSON.
"""

import json
import pathlib
import re
import sys

import torch

HERE = pathlib.Path(__file__).parent
ENCODER = [["res_x", {"num_layers": 4}], ["compress_space_res", {"multiplier": 2}],
           ["res_x", {"num_layers": 6}], ["compress_time_res", {"multiplier": 2}],
           ["res_x", {"num_layers": 6}], ["compress_all_res", {"multiplier": 2}],
           ["res_x", {"num_layers": 2}], ["compress_all_res", {"multiplier": 2}],
           ["res_x", {"num_layers": 2}]]
RES = ["res_x", {"num_layers": 5, "inject_noise": False}]
UP = ["compress_all", {"residual": True, "multiplier": 2}]
VAE = {
    "_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3,
    "latent_channels": 128, "encoder_blocks": ENCODER, "decoder_blocks": [RES, UP, RES, UP, RES, UP, RES],
    "scaling_factor": 1.0, "norm_layer": "pixel_norm", "patch_size": 4, "latent_log_var": "uniform",
    "use_quant_conv": False, "causal_decoder": False, "timestep_conditioning": True,
    "normalize_latent_channels": False, "spatial_padding_mode": "zeros",
}
SCHEDULER = {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000,
             "sampler": "LinearQuadratic", "shifting": None, "base_resolution": None,
             "target_shift_terminal": None}


def transformer(layers, head_dim):
    inner = 32 * head_dim
    return {
        "_class_name": "Transformer3DModel", "activation_fn": "gelu-approximate",
        "attention_bias": True, "attention_head_dim": head_dim, "attention_type": "default",
        "caption_channels": 4096, "cross_attention_dim": inner, "double_self_attention": False,
        "dropout": 0.0, "in_channels": 128, "norm_elementwise_affine": False, "norm_eps": 1e-06,
        "norm_num_groups": 32, "num_attention_heads": 32, "num_embeds_ada_norm": 1000,
        "num_layers": layers, "num_vector_embeds": None, "only_cross_attention": False,
        "out_channels": 128, "upcast_attention": False, "use_linear_projection": False,
        "qk_norm": "rms_norm", "standardization_norm": "rms_norm",
        "positional_embedding_type": "rope", "positional_embedding_theta": 10000.0,
        "positional_embedding_max_pos": [20, 2048, 2048], "timestep_scale_multiplier": 1000,
        "causal_temporal_positioning": True,
    }


def converted(state):
    from diffusers.loaders import single_file_utils as utils

    names = {}
    for convert in (utils.convert_ltx_transformer_checkpoint_to_diffusers,
                    utils.convert_ltx_vae_checkpoint_to_diffusers):
        renamed = convert(dict(state))
        names.update({id(tensor): name for name, tensor in renamed.items()})
    # The converter drops the statistics by their new names; its VAE model reads them all the same.
    kept = {"vae.per_channel_statistics.mean-of-means": "latents_mean",
            "vae.per_channel_statistics.std-of-means": "latents_std"}
    return {name: kept.get(name) or names.get(id(tensor), "-") for name, tensor in state.items()}


def write(path, config, rows):
    """Rows of the blocks that repeat become one."""
    lines = [] if config is None else ["#" + json.dumps(config, separators=(",", ":"))]
    count = 1 + max([int(m[1]) for row in rows if (m := BLOCK.search(row))], default=-1)
    for row in rows:
        block = BLOCK.search(row)
        if block is None:
            lines.append(row)
        elif int(block[1]) == 0:
            pattern = BLOCK.sub(lambda m: f"transformer_blocks.{{{count}}}.", row)
            for i in range(count):
                assert pattern.replace(f"{{{count}}}", str(i)) in rows, pattern
            lines.append(pattern)
    (HERE / path).write_text("\n".join(lines) + "\n")
    print(path, len(rows), "tensors,", len(lines), "lines")


BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")


def checkpoint(path, layers, head_dim):
    from ltx_video.models.autoencoders.causal_video_autoencoder import CausalVideoAutoencoder
    from ltx_video.models.transformers.transformer3d import Transformer3DModel

    config = {"transformer": transformer(layers, head_dim), "vae": VAE, "scheduler": SCHEDULER}
    state = {}
    with torch.device("meta"):
        dit = Transformer3DModel.from_config(config["transformer"])
        vae = CausalVideoAutoencoder.from_config(json.loads(json.dumps(VAE)))
    print(path, sum(p.numel() for p in dit.parameters()), "parameters in the transformer")
    state.update({f"model.diffusion_model.{k}": v for k, v in dit.state_dict().items()})
    state.update({f"vae.{k}": v for k, v in vae.state_dict().items()})
    for name in ("channel", "mean-of-means", "mean-of-stds", "mean-of-stds_over_std-of-means",
                 "std-of-means"):
        state[f"vae.per_channel_statistics.{name}"] = torch.empty(128, device="meta")
    names = converted(state)
    shape = lambda t: "x".join(map(str, t.shape)) or "scalar"
    rows = [f"{k} {names[k]} {shape(t)} BF16" for k, t in state.items()]
    write(path, config, rows)


def upscaler(path):
    from ltx_video.models.autoencoders.latent_upsampler import LatentUpsampler

    config = {"_class_name": "LatentUpsampler", "in_channels": 128, "mid_channels": 512,
              "num_blocks_per_stage": 4, "dims": 3, "spatial_upsample": True, "temporal_upsample": False}
    with torch.device("meta"):
        state = LatentUpsampler.from_config(config).state_dict()
    write(path, config, [f"{k} {k} {'x'.join(map(str, t.shape))} BF16" for k, t in state.items()])


def t5(path):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                      feed_forward_proj="gated-gelu")
    with torch.device("meta"):
        state = T5EncoderModel(config).state_dict()
    rows = {k: f"{k} {k} {'x'.join(map(str, t.shape))} BF16" for k, t in state.items()
            if k != "encoder.embed_tokens.weight"}
    write(path, None, list(rows.values()))


def main():
    sys.path.insert(0, sys.argv[1])
    checkpoint("ltxv-13b-0.9.8.txt", 48, 128)
    checkpoint("ltxv-2b-0.9.8.txt", 28, 64)
    upscaler("ltxv-spatial-upscaler-0.9.8.txt")
    t5("t5-v1_1-xxl-encoder.txt")


main()
