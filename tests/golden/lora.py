"""Makes lora_diffusers.safetensors and lora_comfy.safetensors, two random LoRAs for the golden model, and lora.safetensors:
what diffusers computes with both, at the strengths 0.7 and -0.4, from the inputs in transformer.safetensors.

    python lora.py

Needs torch, diffusers, peft and safetensors.
"""
import json
import pathlib

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline, LTXPipeline, LTXVideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
LAYERS = {
    "transformer_blocks.0.attn1.to_q": (32, 32), "transformer_blocks.0.attn1.to_out.0": (32, 32),
    "transformer_blocks.0.attn2.to_k": (32, 32), "transformer_blocks.1.ff.net.0.proj": (128, 32),
    "transformer_blocks.1.ff.net.2": (32, 128), "transformer_blocks.1.attn1.to_v": (32, 32),
}


def model():
    folder = HERE / "model/transformer"
    stored, plain = {}, {}
    for file in sorted(folder.glob("*.safetensors")):
        stored |= load_file(file)
    for name, w in stored.items():
        if name.endswith("scale_weight"):
            continue
        plain[name] = w.float()
        scale = stored.get(name.removesuffix("weight") + "scale_weight") if name.endswith("weight") else None
        if scale is not None:
            plain[name] *= scale.view(-1, *[1] * (w.ndim - 1))
    transformer = LTXVideoTransformer3DModel.from_config(json.loads((folder / "config.json").read_text()))
    transformer.load_state_dict(plain)
    return transformer.eval()


def lora(path, prefix, rank, metadata):
    tensors = {}
    for name, (n, k) in LAYERS.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.randn(rank, k) * k ** -.5
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.randn(n, rank) * rank ** -.5
    save_file(tensors, HERE / path, metadata=metadata)


@torch.no_grad()
def main():
    torch.manual_seed(3)
    torch.set_num_threads(1)
    peft = {"transformer.r": 4, "transformer.lora_alpha": 6, "transformer.target_modules": [n for n in LAYERS],
            "transformer.peft_type": "LORA"}
    lora("lora_diffusers.safetensors", "transformer.", 4, {"format": "pt", "lora_adapter_metadata": json.dumps(peft)})
    lora("lora_comfy.safetensors", "diffusion_model.", 3, {"format": "pt"})
    transformer = model()
    pipe = LTXPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, transformer)
    pipe.load_lora_weights(str(HERE), weight_name="lora_diffusers.safetensors", adapter_name="a")
    pipe.load_lora_weights(str(HERE), weight_name="lora_comfy.safetensors", adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.7, -0.4])
    inputs = load_file(HERE / "transformer.safetensors")
    ids = LTXConditionPipeline._scale_video_ids(LTXConditionPipeline._prepare_video_ids(1, 3, 2, 3), 32, 8, 0).float()
    ids[:, 0] *= 1.0 / 24
    out = transformer(hidden_states=inputs["x"][None], encoder_hidden_states=inputs["states"][None],
                      encoder_attention_mask=inputs["mask"][None], timestep=inputs["timestep"][None], video_coords=ids,
                      return_dict=False)[0][0]
    pipe.disable_lora()
    save_file({"per_token": out.contiguous()}, HERE / "lora.safetensors")
    print("changed by", (out - inputs["per_token"]).abs().max().item())


if __name__ == "__main__":
    main()
