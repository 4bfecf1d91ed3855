"""Renders random small models with diffusers and with the built program, and says how far apart the latents are.

    python parity.py LONGTAKE [--cases 20] [--first-seed 0] [--keep DIR] [--threads 1]

Every case is a model, size, length, schedule, guidance, prompt and seed of its own, drawn from the case's number: both
pipelines, with and without guidance, negative prompts, timesteps or counted steps, pictures and clips at any frame. Nothing
is handed over but files and flags. Prints one line a case; exit status 1 when any is further off than 1e-3 (relative norm).
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
from safetensors.torch import load_file

import reference

FAR = 1e-3
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
            "--steps", str(rng.randint(1, 8)), "--guidance", str(rng.choice((1, 1.5, 3, 7.5)))]
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


def flags_of(a, folder):
    """The same for the program."""
    flags = [a.prompt, "--model", str(folder / "model"), "--seed", str(a.seed), "--size", a.size,
             "--frames", str(a.frames), "--fps", str(a.fps), "--text-tokens", str(a.text_tokens),
             "--steps", str(a.steps), "--guidance-scale", str(a.guidance), "--continuity", "none"]
    if a.negative:
        flags += ["--negative", a.negative]
    for i, (frame, pictures, strength) in enumerate(reference.conditions(a)):
        if len(pictures) == 1:
            path = folder / f"picture{i}.png"
            Image.fromarray(pictures[0]).save(path)
            flags += ["--image", f"{path}@{frame}:{strength}"]
        else:
            clip = folder / f"clip{i}"
            clip.mkdir()
            for n, picture in enumerate(pictures):
                Image.fromarray(picture).save(clip / f"{n + 1:06d}.png")
            flags += ["--video", f"{clip}/%06d.png@{frame}:{strength}"]
    return flags


def check(number, longtake, folder, threads):
    line = arguments_of(number, folder)
    try:
        reference.main(line)
    except (ValueError, IndexError) as error:  # some schedules are too short for diffusers itself
        return line, f"not rendered by diffusers: {error}", False
    a = reference.arguments(line)
    latents = folder / "latents.safetensors"
    command = [longtake, "render", *flags_of(a, folder), "--workers", "1", "--threads", str(threads),
               "--save-latents", str(latents), "-o", str(folder / "film/%06d.png"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return line, f"failed: {done.stderr.strip().splitlines()[-1:]}", True
    ours, theirs = load_file(latents)["latents"], load_file(folder / "case.safetensors")["latents"]
    if ours.shape != theirs.shape:
        return line, f"shape {tuple(ours.shape)} for {tuple(theirs.shape)}", True
    error = float((ours - theirs).norm() / theirs.norm())
    return line, f"{error:.1e}", not error <= FAR


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("longtake")
    p.add_argument("--cases", type=int, default=20)
    p.add_argument("--first-seed", type=int, default=0)
    p.add_argument("--keep", type=pathlib.Path)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    far = 0
    for number in range(a.first_seed, a.first_seed + a.cases):
        folder = a.keep / str(number) if a.keep else pathlib.Path(tempfile.mkdtemp(prefix="parity"))
        shutil.rmtree(folder, ignore_errors=True)
        line, said, is_far = check(number, a.longtake, folder, a.threads)
        far += is_far
        print(f"{'FAR ' if is_far else '    '}{number:4} {said}  {' '.join(map(repr, line[2:]))}", flush=True)
        if not a.keep:
            shutil.rmtree(folder)
    print(json.dumps(dict(cases=a.cases, far=far)))
    sys.exit(far > 0)


if __name__ == "__main__":
    main()
