"""Turn the shipped folder into a plain F32 Diffusers folder: python dequant.py SHIPPED OUT"""
import pathlib
import shutil
import sys

from safetensors.torch import load_file, save_file

import export


def main(src, dst):
    src, dst = pathlib.Path(src), pathlib.Path(dst)
    for p in src.rglob("*"):
        part = p.relative_to(src)
        if p.is_file() and part.parts[0] in ("model_index.json", "scheduler", "tokenizer", "text_encoder", "transformer", "vae"):
            (dst / part).parent.mkdir(parents=True, exist_ok=True)
            if p.suffix == ".safetensors":
                state = {k: v.contiguous() for k, v in export.unpack(load_file(str(p))).items()}
                save_file(state, str(dst / part), metadata={"format": "pt"})
            else:
                shutil.copyfile(p, dst / part)


if __name__ == "__main__":
    main(*sys.argv[1:3])
