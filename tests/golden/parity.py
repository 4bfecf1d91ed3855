"""Renders random small models with a reference and with the built program, and says how far apart they are.

    python parity.py LONGTAKE [--official CHECKOUT] [--cases 20] [--first-seed 0] [--keep DIR] [--threads 1]

The reference is diffusers, or Lightricks' code where a checkout of Lightricks/LTX-Video is named.

Every case is a model, size, length, schedule, guidance, prompt and seed of its own, drawn from the case's number: both
pipelines, with and without guidance, negative prompts, timesteps or counted steps, pictures and clips at any frame. Nothing
is handed over but files and flags. With Lightricks' code: single files, one pass or two with the upscaler, STG in its four
modes, values by step, skipped steps, stochastic sampling, tone mapping, a video to start from, lengths that are cut. Each
fourth case is rendered from what `longtake convert` made of the model, with diffusers in 8 bits, and there another fourth
with a LoRA. Prints one line a case; exit status 1 when any is further off than 1e-3 in its latents (relative norm), or 50 dB
in its frames.
"""
import argparse
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import reference

FAR = 1e-3
FRAMES_DB = 50
PROMPTS = ("a red circle moves left, slowly", "", "The sea at night", "two dogs; a ball", "x " * 60)


def arguments_of(number, folder):
    """The reference's arguments for a case."""
    rng = random.Random(number)
    pipeline = rng.choice(("basic", "condition"))
    frames = 8 * rng.randint(0, 4) + 1
    width, height = 32 * rng.randint(1, 4), 32 * rng.randint(1, 4)
    line = ["--out", str(folder), "--pipeline", pipeline, "--model-seed", str(rng.randint(0, 10**6)),
            "--seed", str(rng.choice((rng.randint(0, 99), rng.randint(0, 2**40)))), "--size", f"{width}x{height}",
            "--frames", str(frames), "--fps", str(rng.choice((8, 23.976, 24, 25, 30, 50))),
            "--prompt", rng.choice(PROMPTS), "--text-tokens", str(rng.choice((8, 24, 77, 128))),
            "--steps", str(rng.randint(1, 8)), "--guidance", str(rng.choice((1, 1.5, 3, 7.5))),
            "--decode-timestep", "0", "--decode-noise-scale", "0"]  # as diffusers decodes when nobody says otherwise
    if rng.random() < .5:
        line += ["--negative", rng.choice(PROMPTS[:-1])]
    if pipeline == "basic" and rng.random() < .3:  # the condition pipeline cannot shift by size
        line += ["--scheduler", "condition"]
    if pipeline == "basic" and rng.random() < .3:
        line += ["--condition", "0:1:1.0"]
    if pipeline == "condition":
        counts = [rng.choice((1, 1, 9)) for _ in range(rng.choice((0, 0, 1, 2)))]
        for count in sorted(counts):  # the program takes pictures before clips
            last = frames - count
            if last < 0:
                continue
            frame = rng.randint(0, last) if count == 1 else 8 * rng.randint(0, last // 8)
            line += ["--condition", f"{frame}:{count}:{rng.choice((1.0, 1.0, .8, .5))}"]
    return line


def official_arguments_of(number, folder):
    """The same for Lightricks' code."""
    rng = random.Random(number)
    one = lambda *values: rng.choice(values)
    frames, two = 8 * rng.randint(0, 3) + 1, rng.random() < .5
    width, height = 16 * rng.randint(4 if two else 2, 8), 16 * rng.randint(4 if two else 2, 8)
    stepwise = rng.random() < .3
    scale = lambda *values: str([one(*values) for _ in range(3)]) if stepwise else str(one(*values))
    line = ["--out", str(folder), "--pipeline", "official", "--model-seed", str(rng.randint(0, 10**6)),
            "--seed", str(rng.randint(0, 2**32 - 1)), "--size", f"{width}x{height}", "--frames", str(frames),
            "--fps", str(one(8, 24, 25, 30)), "--prompt", one(*PROMPTS), "--negative", one(*PROMPTS[:-1]),
            "--text-tokens", str(one(24, 77, 128)), "--stg-mode",
            one("attention_values", "attention_skip", "residual", "transformer_block"),
            "--guidance", scale(1, 1, 2, 4.5), "--stg-scale", scale(0, 0, 1), "--rescaling-scale", scale(1, .7),
            "--decode-timestep", str(one(.05, .1)), "--decode-noise-scale", str(one(.025, 0, .1)),
            "--tone-map", str(one(0, 0, .6)), "--upscaler-dims", str(one(2, 3)),
            "--sampler", one("from_checkpoint", "from_checkpoint", "uniform", "linear-quadratic")]
    line += ["--skip-blocks", str([[0], [1], [0, 1]] if stepwise else one([0], [1]))]
    line += ["--guidance-timesteps", "[1.0, 0.9, 0.5]"] if stepwise else []
    line += ["--cfg-star"] if rng.random() < .3 else []
    line += ["--stochastic"] if rng.random() < .2 else []
    if rng.random() < .4:
        line += ["--timesteps", one("[1.0, 0.7, 0.3]", "[1.0, 0.9937, 0.975, 0.725]")]
        line += ["--second-timesteps", "[0.9094, 0.4219]"] if two else []
    else:
        line += ["--steps", str(rng.randint(4, 8)), "--skip-final", str(rng.randint(0, 1))]
        line += ["--second-skip-initial", "2"] if two else []
        line += ["--input-video", "--skip-initial", str(rng.randint(1, 2))] if rng.random() < .3 and not two else []
    if two:
        line += ["--multi-scale", "--downscale-factor", str(one(.5, .6666666))]
    if "--input-video" in line:
        return line
    if frames > 9 and rng.random() < .3:  # rounded up to whole latents, and cut again
        frames -= rng.randint(1, 7)
        line[line.index("--frames") + 1] = str(frames)
    for count in sorted(one(1, 1, 9) for _ in range(one(0, 0, 1, 2))):
        if frames >= count:  # a single picture may be anywhere, a clip begins with a latent
            frame = rng.randint(0, frames - 1) if count == 1 else 8 * rng.randint(0, (frames - count) // 8)
            line += ["--condition", f"{frame}:{count}:{one(1.0, 1.0, .8, .4)}"]
    return line


def pipeline_file(a, folder):
    """The pipeline file that says what an official case says."""
    first = {k: v for k, v in reference.pass_arguments(a).items() if v is not None}
    keys = dict(checkpoint_path=str(folder / "official.safetensors"), sampler=a.sampler, stg_mode=a.stg_mode,
                decode_timestep=a.decode_timestep, decode_noise_scale=a.decode_noise_scale, precision="float32",
                text_encoder_model_name_or_path=str(folder / "model/text_encoder"), text_tokens=a.text_tokens,
                negative_prompt=a.negative, pipeline_type="multi-scale" if a.multi_scale else "base")
    if a.multi_scale:
        second = dict(guidance_scale=1, stg_scale=0, rescaling_scale=1, tone_map_compression_ratio=a.tone_map)
        second |= dict(timesteps=a.second_timesteps) if a.second_timesteps else dict(
            num_inference_steps=a.steps, skip_initial_inference_steps=a.second_skip_initial)
        keys |= dict(spatial_upscaler_model_path=str(folder / "upscaler.safetensors"), first_pass=first, second_pass=second,
                     downscale_factor=a.downscale_factor)
    else:
        keys |= first | dict(tone_map_compression_ratio=a.tone_map)
    path = folder / "pipeline.yaml"
    path.write_text(json.dumps(keys, indent=1))  # JSON is YAML
    return path


def sequence(pictures, folder):
    folder.mkdir()
    for n, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{n + 1:06d}.png")
    return f"{folder}/%06d.png"


def frames_db(folder, theirs):
    ours = np.stack([np.array(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))])
    return 10 * np.log10(255**2 / np.mean((ours.astype(float) - theirs.numpy()) ** 2).clip(1e-9))


def converted(longtake, model, folder, *flags):
    """What `longtake convert` makes of a model."""
    subprocess.run([longtake, "convert", str(model), "-o", str(folder), *flags], check=True, capture_output=True)
    return str(folder)


def changed(number, line, longtake, folder):
    """Of some cases, the model that the reference renders, and the program's flags for the same one: each fourth is in 8 bits,
    and each fourth has a LoRA, which the reference finds in the matrices."""
    a = reference.arguments(line)
    a.out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        reference.random_model(a)
    narrow = folder / "narrow"
    if number % 4 == 0 or number % 8 == 1:
        converted(longtake, folder / "model", narrow, "--precision", "float8_e4m3fn")
    if number % 4 == 0:
        return narrow, ["--model", str(narrow)]
    model, merged, lora = narrow if narrow.exists() else folder / "model", folder / "merged", folder / "lora.safetensors"
    scale = with_lora(random.Random(number), model, merged, lora)
    return merged, ["--model", str(model), "--lora", f"{lora}:{scale}"] + ["--lora-fuse"] * (number % 16 < 8)


def with_lora(rng, model, merged, path):
    """Writes a random LoRA for `model` to `path`, and the model that it makes of that one; its strength."""
    weights, lora = reference.stored_weights(model / "transformer"), {}
    rank, scale = rng.choice((1, 4, 7)), rng.choice((.5, -1.25, 1.0))
    prefix = rng.choice(("transformer.", "diffusion_model."))
    for name, weight in weights.items():
        if weight.ndim == 2 and name.endswith(".weight") and rng.random() < .6:
            down, up = torch.randn(rank, weight.shape[1]) * .1, torch.randn(weight.shape[0], rank) * .1
            layer = name[:-len(".weight")]
            if prefix == "diffusion_model.":
                layer = layer.replace("proj_in", "patchify_proj").replace("time_embed", "adaln_single")
            lora |= {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
            weights[name] = weight + scale * (up @ down)
    save_file(lora, str(path))
    shutil.copytree(model, merged)
    save_file(weights, str(merged / "transformer/diffusion_pytorch_model.safetensors"))
    return scale


def flags_of(a, folder, own):
    """The same for the program."""
    flags = [a.prompt, "--seed", str(a.seed), "--size", a.size, "--frames", str(a.frames), "--fps", str(a.fps),
             "--continuity", "none"]
    if a.pipeline == "official":
        flags += ["--config", str(pipeline_file(a, folder))]
    else:
        flags += [*(own or ["--model", str(folder / "model")]), "--text-tokens", str(a.text_tokens), "--steps", str(a.steps),
                  "--guidance-scale", str(a.guidance)]
        flags += ["--negative", a.negative] if a.negative else []
    for i, (frame, pictures, strength) in enumerate(reference.conditions(a)):
        if len(pictures) == 1:
            path = folder / f"picture{i}.png"
            Image.fromarray(pictures[0]).save(path)
            flags += ["--image", f"{path}@{frame}:{strength}"]
        else:
            flags += ["--video", f"{sequence(pictures, folder / f'clip{i}')}@{frame}:{strength}"]
    if a.input_video:
        flags += ["--start-video", sequence(reference.clip(a.frames, a.width, a.height, 9), folder / "start")]
    return flags


def check(number, longtake, official, folder, threads):
    line = official_arguments_of(number, folder) if official else arguments_of(number, folder)
    line += ["--official", official] if official else []
    own = []
    if not official and number % 4 < 2:
        model, own = changed(number, line, longtake, folder)
        line += ["--model", str(model)]
    try:
        reference.main(line)
    except (ValueError, IndexError, AssertionError, ZeroDivisionError) as error:  # some schedules are too short for the reference itself
        return line, f"not rendered by the reference: {error}", False
    a = reference.arguments(line)
    case = load_file(folder / "case.safetensors")
    latents = folder / "latents.safetensors"
    flags = flags_of(a, folder, own)
    if official and number % 4 == 0:
        text = ("--text-encoder", str(folder / "model/text_encoder"))
        flags += ["--model", converted(longtake, folder / "official.safetensors", folder / "converted", *text),
                  "--reference", "official"]
    command = [longtake, "render", *flags, "--workers", "1", "--threads", str(threads),
               "--save-latents", str(latents), "-o", str(folder / "film/%06d.png"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return line, f"failed: {done.stderr.strip().splitlines()[-1:]}", True
    ours, theirs = load_file(latents)["latents"], case["latents"]
    if ours.shape != theirs.shape:
        return line, f"shape {tuple(ours.shape)} for {tuple(theirs.shape)}", True
    error = float((ours - theirs).norm() / theirs.norm())
    db = frames_db(folder / "film", case["frames"])
    return line, f"{error:.1e} {db:.1f} dB", not (error <= FAR and db >= FRAMES_DB)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("longtake")
    p.add_argument("--official", help="checkout of Lightricks/LTX-Video")
    p.add_argument("--cases", type=int, default=20)
    p.add_argument("--first-seed", type=int, default=0)
    p.add_argument("--keep", type=pathlib.Path)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    far = 0
    for number in range(a.first_seed, a.first_seed + a.cases):
        folder = a.keep / str(number) if a.keep else pathlib.Path(tempfile.mkdtemp(prefix="parity"))
        shutil.rmtree(folder, ignore_errors=True)
        line, said, is_far = check(number, a.longtake, a.official, folder, a.threads)
        far += is_far
        print(f"{'FAR ' if is_far else '    '}{number:4} {said}  {' '.join(map(repr, line[2:]))}", flush=True)
        if not a.keep:
            shutil.rmtree(folder)
    print(json.dumps(dict(cases=a.cases, far=far)))
    sys.exit(far > 0)


if __name__ == "__main__":
    main()
