"""Denoising step of LTX-Video through diffusers, torchao and torch.compile, as JSON for
`longtake bench dit --against FILE`. Random weights of the true size; needs a CUDA GPU, torch,
diffusers and (for --precision fp8) torchao.

    python3 tests/baseline_pytorch.py --tokens 13376 --precision fp8 --out figures.json
"""

import argparse
import json
import os
import time

import torch
from diffusers import LTXVideoTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel

# Latent frames, rows, columns of the shapes that are compared.
SHAPES = {5600: (16, 14, 25), 13376: (16, 22, 38), 22400: (16, 28, 50)}


def make_model(layers):
    """The 13B transformer with weights drawn on the device."""
    with torch.device("meta"):
        model = LTXVideoTransformer3DModel(
            num_attention_heads=32,
            attention_head_dim=128,
            cross_attention_dim=4096,
            num_layers=layers,
            caption_channels=4096,
        )
    model = model.to(torch.bfloat16).to_empty(device="cuda").eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.normal_(0, weight.shape[1] ** -0.5)
        elif "norm" in name:
            weight.normal_(1, 0.1)
        else:
            weight.normal_(0, 0.02)
    return model


def quantise(model):
    """Per-row FP8 for the blocks' linear layers, as torchao does it."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    def wanted(module, name):
        return isinstance(module, torch.nn.Linear) and name.startswith("transformer_blocks.")

    quantize_(model, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), filter_fn=wanted)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, choices=sorted(SHAPES), default=13376)
    parser.add_argument("--precision", choices=["bf16", "fp8"], default="fp8")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", default="baseline_pytorch.json")
    args = parser.parse_args()

    model = make_model(args.layers)
    if args.precision == "fp8":
        quantise(model)
    frames, height, width = SHAPES[args.tokens]
    bf16 = dict(device="cuda", dtype=torch.bfloat16)
    inputs = dict(
        hidden_states=torch.randn(1, args.tokens, 128, **bf16),
        encoder_hidden_states=torch.randn(1, 256, 4096, **bf16),
        timestep=torch.full((1,), 700.0, **bf16),
        encoder_attention_mask=torch.ones(1, 256, **bf16),
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(8 / 25, 32, 32),
        return_dict=False,
    )
    compiled = torch.compile(model, mode="max-autotune-no-cudagraphs")
    start = time.time()
    times = []
    with torch.no_grad(), sdpa_kernel(
        [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True
    ):
        for _ in range(3):
            compiled(**inputs)
        torch.cuda.synchronize()
        warm_up_s = time.time() - start
        for _ in range(args.runs):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            compiled(**inputs)
            after.record()
            torch.cuda.synchronize()
            times.append(before.elapsed_time(after))
    times.sort()
    result = {
        "median_ms": times[len(times) // 2],
        "p10_ms": times[len(times) // 10],
        "p90_ms": times[len(times) * 9 // 10],
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "warm_up_s": warm_up_s,
        "layers": args.layers,
    }
    # Several shapes share a file.
    figures = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "results": {}}
    if os.path.exists(args.out):
        with open(args.out) as file:
            figures = json.load(file)
    figures["results"][f"dit {args.tokens} {args.precision}"] = result
    with open(args.out, "w") as file:
        json.dump(figures, file, indent=1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
