"""Write and read the shipped folder: Diffusers layout, 8-bit matrices with a `scale_weight` beside each.

`<layer>.weight` in F8_E4M3 (transformer blocks) or I8 (VAE) goes with `<layer>.scale_weight`, F32 [out], and means
weight * scale_weight[out]. Every other tensor is BF16 (matrices) or F32 (everything small).
"""
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file

import lean
import models

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = dict(vae="vae/diffusion_pytorch_model.safetensors", transformer="transformer/diffusion_pytorch_model.safetensors",
             text_encoder="text_encoder/model.safetensors")


def pack(state, kind):
    """Stored tensors of one model's state dict."""
    out = {}
    for name, w in state.items():
        w = w.detach().float().cpu()
        if name.startswith("encoder.conv_out.conv."):
            # The encoder's one log-variance, which nothing trains: a sample is to be the mean.
            w = torch.cat([w[:-1], torch.full_like(w[-1:], -30. if name.endswith("bias") else 0.)])
        matrix = name.endswith(".weight") and w.ndim > 1
        if kind == "text_encoder":
            if name != "encoder.embed_tokens.weight":            # the same tensor as shared.weight
                out[name] = w.bfloat16() if matrix and w.numel() >= 4096 else w
        elif matrix and (kind == "vae" and w.numel() >= 4096 or name.startswith("transformer_blocks.")):
            out[name], out[name[:-6] + "scale_weight"] = lean.quantise(w, "i8" if kind == "vae" else "f8")
        else:
            out[name] = w.bfloat16() if matrix else w
    return {k: v.contiguous() for k, v in out.items()}


def unpack(stored):
    """Plain F32 state dict of a stored file."""
    out = {}
    for name, w in stored.items():
        if not name.endswith(".scale_weight"):
            scale = stored.get(name[:-6] + "scale_weight") if name.endswith(".weight") else None
            out[name] = w.float() if scale is None else lean.dequantise(w, scale)
    return out


def configs(root=ROOT, vocab=None):
    """Everything but the weights and the tokenizer."""
    root = pathlib.Path(root)
    index = {"_class_name": "LTXConditionPipeline", "_diffusers_version": "0.32.0",
             "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
             "text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"],
             "transformer": ["diffusers", "LTXVideoTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLLTXVideo"]}
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.32.0",
                 "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None,
                 "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
    write = lambda p, v: (p.parent.mkdir(parents=True, exist_ok=True), p.write_text(json.dumps(v, indent=2) + "\n"))
    write(root / "model_index.json", index)
    write(root / "scheduler/scheduler_config.json", scheduler)
    write(root / "vae/config.json", {"_class_name": "AutoencoderKLLTXVideo", "_diffusers_version": "0.32.0"} | models.VAE)
    write(root / "transformer/config.json", {"_class_name": "LTXVideoTransformer3DModel", "_diffusers_version": "0.32.0",
                                             "attention_bias": True, "attention_out_bias": True, "norm_eps": 1e-6,
                                             "norm_elementwise_affine": False} | models.DIT)
    if vocab:
        write(root / "text_encoder/config.json", {
            "architectures": ["T5EncoderModel"], "model_type": "t5", "vocab_size": vocab, "layer_norm_epsilon": 1e-6,
            "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "is_gated_act": True,
            "dense_act_fn": "gelu_new", "initializer_factor": 1.0, "num_decoder_layers": 2} | models.T5)


def save(root=ROOT, **parts):
    """Store vae=, transformer=, text_encoder= under root; returns the bytes of each."""
    size = {}
    for kind, model in parts.items():
        p = pathlib.Path(root) / FILES[kind]
        p.parent.mkdir(parents=True, exist_ok=True)
        save_file(pack(model.state_dict(), kind), str(p), metadata={"format": "pt"})
        p.chmod(0o644)
        size[kind] = p.stat().st_size
    return size


def load(root, kind, device="cpu"):
    """A model in F32 from the shipped file."""
    state = unpack(load_file(str(pathlib.Path(root) / FILES[kind])))
    if kind == "text_encoder":
        model = models.t5(state["shared.weight"].shape[0])
        state["encoder.embed_tokens.weight"] = state["shared.weight"]
    else:
        model = models.vae() if kind == "vae" else models.dit()
    model.load_state_dict(state)
    return model.to(device).eval().requires_grad_(False)


if __name__ == "__main__":
    import text
    torch.manual_seed(0)
    vocab = text.Tokenizer().sp.get_piece_size()
    configs(vocab=vocab)
    if not (ROOT / FILES["vae"]).exists():
        sizes = save(vae=models.vae(), transformer=models.dit(), text_encoder=models.t5(vocab))
        print(sizes, sum(sizes.values()))
