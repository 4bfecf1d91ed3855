"""Times diffusers and longtake side by side on the same threads, F32: DiT forward and VAE decode of one window.

    cargo build --release -p longtake-ltx --example time_parts
    python time_reference.py [--model DIR] [--binary target/release/examples/time_parts] [--threads 2]

Weights of the shipped 8-bit storage are turned into F32 first, on both sides, so that the same is computed.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import time

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNS, TEXT_TOKENS, FPS = 9, 64, 24


def load(cls, folder):
    model = cls.from_config(cls.load_config(str(folder)))
    stored = load_file(str(folder / "diffusion_pytorch_model.safetensors"))
    state = {}
    for name, w in stored.items():
        if not name.endswith(".scale_weight"):
            scale = stored.get(name[:-6] + "scale_weight") if name.endswith(".weight") else None
            state[name] = w.float() if scale is None else w.float() * scale.view(-1, *[1] * (w.ndim - 1))
    model.load_state_dict(state)
    return model.eval()


def measure(work):
    work()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return [min(seconds), statistics.median(seconds)]


@torch.no_grad()
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=pathlib.Path, default=ROOT / "configs/models/ltxv-tiny")
    p.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/examples/time_parts")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--size", type=int, nargs=3, default=(16, 5, 8), help="latent frames, rows, columns")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    f, h, w = a.size
    dit, vae = load(LTXVideoTransformer3DModel, a.model / "transformer"), load(AutoencoderKLLTXVideo, a.model / "vae")
    x, states = torch.randn(1, f * h * w, 128), torch.randn(1, TEXT_TOKENS, dit.config.caption_channels)
    mask = torch.ones(1, TEXT_TOKENS)
    forward = lambda: dit(x, states, torch.tensor([725.0]), mask, num_frames=f, height=h, width=w,
                          rope_interpolation_scale=(8 / FPS, 32, 32), return_dict=False)
    z = torch.randn(1, 128, f, h, w)
    decode = lambda: vae.decode(z, torch.tensor([0.05]), return_dict=False)
    reference = dict(dit=measure(forward), vae=measure(decode))
    command = [str(a.binary), str(a.model), str(a.threads), *map(str, a.size)]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for part in ("dit", "vae"):
        (r, rm), (o, om) = reference[part], ours[part]
        print(f"{part}: diffusers {r * 1000:.1f} ms (median {rm * 1000:.1f}), longtake {o * 1000:.1f} ms "
              f"(median {om * 1000:.1f}), ratio {o / r:.2f} (median {om / rm:.2f})")
    print(f"torch {torch.__version__}, {a.threads} threads, {ours['tokens']} tokens, {ours['isa']}")


if __name__ == "__main__":
    main()
