"""Makes the committed cases: what diffusers and Lightricks' code render with the golden model.

    python cases.py --official CHECKOUT_OF_LTX_VIDEO [NAME...]

Each goes to cases/NAME, see reference.py. Run it again only when a reference itself is meant to change.
"""
import pathlib
import shutil
import sys

import reference
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
BASIC, CONDITION, OFFICIAL, COMFY = (["--pipeline", p] for p in ("basic", "condition", "official", "comfy"))
GUIDED = "--guidance [1,6,8,3] --guidance-timesteps [1.0,0.99,0.9,0.5]".split()
STG = "--stg-scale 2 --rescaling-scale 0.7 --skip-blocks [1]".split()
CASES = {
    "basic": BASIC + "--size 96x64 --frames 17 --guidance 3 --negative blurry --seed 3".split(),
    "basic_wide": BASIC + "--size 160x32 --frames 1 --steps 7 --seed 1099511627779 --fps 30".split(),
    "condition": CONDITION + "--size 32x96 --frames 25 --steps 5 --guidance 2.5 --seed 11 --fps 24".split(),
    "condition_image": CONDITION + "--size 64x32 --frames 9 --guidance 3 --seed 5 --condition 0:1:1.0".split(),
    "condition_keyframes": CONDITION + ["--size", "64x64", "--frames", "25", "--seed", "6", "--condition", "0:1:1.0",
                                        "--condition", "13:1:0.8", "--condition", "24:1:1.0"],
    "condition_extend": CONDITION + "--size 32x64 --frames 33 --seed 8 --condition 8:25:0.9".split(),
    "condition_reference": CONDITION + "--size 64x64 --frames 17 --seed 9 --guidance 2 --reference-stride 1".split(),
    "condition_reference_small": CONDITION + ["--size", "128x64", "--frames", "9", "--seed", "10", "--reference-stride", "2",
                                              "--reference-strength", "0.6"],
    "basic_image": BASIC + "--size 64x64 --frames 17 --guidance 3 --seed 12 --condition 0:1:1.0".split(),
    "official_attention_values": OFFICIAL + STG + "--size 64x96 --frames 9 --guidance 4 --cfg-star --seed 21".split(),
    "official_attention_skip": OFFICIAL + STG + "--size 64x32 --frames 15 --stg-mode attention_skip --seed 22".split(),
    "official_residual": OFFICIAL + STG + "--size 32x64 --frames 9 --stg-mode residual --guidance 2 --seed 23".split(),
    "official_transformer_block": OFFICIAL + STG + "--size 50x60 --frames 9 --stg-mode transformer_block --seed 24".split(),
    "official_lists": OFFICIAL + GUIDED + [
        "--size", "64x64", "--frames", "9", "--steps", "12", "--skip-final", "3", "--stg-scale", "[0,0,2,1]",
        "--rescaling-scale", "[1,0.5,0.7,1]", "--skip-blocks", "[[],[0],[0,1],[1]]", "--cfg-star", "--seed", "25",
        "--scheduler", "condition", "--negative", "worst quality"],
    "official_stochastic": OFFICIAL + ["--size", "64x32", "--frames", "9", "--timesteps", "[1.0,0.9937,0.725,0.4219]",
                                       "--stochastic", "--seed", "26", "--prompt", "The sea at night"],
    "official_keyframes": OFFICIAL + ["--size", "60x40", "--frames", "24", "--seed", "27", "--condition", "0:1:1.0",
                                      "--condition", "11:1:0.7", "--sampler", "linear-quadratic"],
    "official_extend": OFFICIAL + ["--size", "64x32", "--frames", "41", "--seed", "28", "--condition", "0:9:1.0",
                                   "--condition", "16:25:1.0", "--sampler", "uniform"],
    "official_video": OFFICIAL + "--size 64x32 --frames 17 --steps 8 --skip-initial 3 --input-video --seed 29".split(),
    "official_multi_scale": OFFICIAL + [
        "--size", "90x120", "--frames", "9", "--seed", "30", "--multi-scale", "--timesteps", "[1.0,0.9875,0.725]",
        "--second-timesteps", "[0.9094,0.4219]", "--tone-map", "0.6", "--condition", "0:1:1.0"],
    "official_multi_scale_dev": OFFICIAL + [
        "--size", "96x64", "--frames", "17", "--seed", "31", "--multi-scale", "--steps", "6", "--skip-final", "1",
        "--second-skip-initial", "4", "--guidance", "3", "--downscale-factor", "0.5", "--scheduler", "condition"],
    "comfy": COMFY + "--size 64x96 --frames 9 --guidance 2.5 --steps 5 --seed 32 --condition 0:1:0.7".split(),
    "comfy_clip": COMFY + "--size 64x32 --frames 25 --steps 6 --seed 33 --condition 0:9:1.0".split(),
}


def thin(file):
    """Keeps every fourth frame: the others say little more."""
    case = load_file(str(file))
    save_file(dict(case, frames=case["frames"][::4].contiguous()), str(file))


def main():
    official, names = sys.argv[sys.argv.index("--official") + 1], sys.argv[3:]
    for name, arguments in CASES.items():
        if names and name not in names:
            continue
        out = HERE / "cases" / name
        shutil.rmtree(out, ignore_errors=True)
        reference.main(["--out", str(out), "--official", official, "--model", str(HERE / "model"), *arguments])
        (out / "official.safetensors").unlink(missing_ok=True)
        thin(out / "case.safetensors")
        upscaler = out / "upscaler.safetensors"
        if upscaler.exists():
            shutil.move(upscaler, HERE / "upscaler.safetensors")
    for file in HERE.rglob("*.safetensors"):
        file.chmod(0o644)


if __name__ == "__main__":
    main()
