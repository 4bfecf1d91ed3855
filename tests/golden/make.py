"""Makes the golden files: a small random model in a Diffusers folder, and what diffusers and transformers compute with it.

    python make.py [--seed 7] [--layers 2] [--heads 2] [--head-dim 16] [--out .] [--tokenizer SPIECE_MODEL]

Weights are random, scaled so that activations stay around 1, with biases, norms and statistics that are not trivial.
They are stored in different types (BF16, F16, F8_E4M3 and I8 with a scale beside each), and the references are computed
in F32 from the stored values. Needs torch, diffusers, transformers, safetensors, sentencepiece; the versions used are in
golden.json. Run it again only when the reference itself is meant to change.
"""
import argparse
import json
import pathlib
import random
import shutil

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXConditionPipeline, LTXPipeline,
                       LTXVideoTransformer3DModel)
from diffusers.pipelines.ltx import pipeline_ltx_condition
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel, T5Tokenizer

HERE = pathlib.Path(__file__).resolve().parent
PROMPT, NEGATIVE = "a red circle moves left, slowly", "blurry"
TEXT_TOKENS = 24
TIMESTEPS = [1.0, .9937, .9094, .725, .4219]
FPS = 24


def build(a, vocab):
    transformer = LTXVideoTransformer3DModel(
        in_channels=128, out_channels=128, num_attention_heads=a.heads, attention_head_dim=a.head_dim,
        cross_attention_dim=a.heads * a.head_dim, num_layers=a.layers, caption_channels=24)
    vae = AutoencoderKLLTXVideo(
        latent_channels=128, block_out_channels=(8, 16, 16, 32, 32), down_block_types=("LTXVideo095DownBlock3D",) * 4,
        layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        decoder_block_out_channels=(16, 16, 32), decoder_layers_per_block=(1, 2, 1, 1),
        decoder_spatio_temporal_scaling=(True,) * 3, decoder_inject_noise=(False,) * 4, upsample_residual=(True,) * 3,
        upsample_factor=(2, 1, 2), timestep_conditioning=True, encoder_causal=True, decoder_causal=False,
        spatial_compression_ratio=32, temporal_compression_ratio=8)
    text = T5EncoderModel(T5Config(
        vocab_size=vocab, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu",
        is_encoder_decoder=False, use_cache=False, dropout_rate=0.0, tie_word_embeddings=False, pad_token_id=0,
        eos_token_id=1))
    models = dict(transformer=transformer, vae=vae, text_encoder=text)
    for model in models.values():
        randomise(model.eval().requires_grad_(False))
    return models


def randomise(model):
    """Weights of variance 1 / fan-in, everything else away from its neutral value."""
    for name, p in list(model.named_parameters()) + list(model.named_buffers()):
        noise = torch.randn(p.shape)
        if name.endswith("timestep_scale_multiplier"):
            continue
        if name == "latents_mean":
            p.copy_(noise * .3)
        elif name == "latents_std":
            p.copy_(noise * .2 + 1)
        elif "relative_attention_bias" in name or "shared" in name or "embed_tokens" in name:
            p.copy_(noise)
        elif p.ndim > 1 and name.endswith("weight"):
            p.copy_(noise * p[0].numel() ** -.5)
        elif "norm" in name:
            p.copy_(noise * .2 + 1)
        else:
            p.copy_(noise * .2)
    if hasattr(model, "shared"):
        model.encoder.embed_tokens.weight = model.shared.weight
        for name, p in model.named_parameters():
            if name.endswith("SelfAttention.q.weight"):
                p.mul_(.6)


def store(models, out):
    """Writes the folder in mixed types and puts what can be read back into the models."""
    for kind, model in models.items():
        stored, plain = {}, {}
        for name, w in model.state_dict().items():
            if name == "encoder.embed_tokens.weight":
                continue
            stored[name] = w.clone()
            if name.endswith("weight") and w.ndim > 1:
                rows = w.flatten(1)
                if kind == "vae" and w.numel() > 2000:
                    scale = rows.abs().amax(1) / 127
                    stored[name] = (rows / scale[:, None]).round().to(torch.int8).view(w.shape)
                    stored[name[:-6] + "scale_weight"] = scale
                elif kind == "transformer" and ".0.attn1" in name:
                    scale = rows.abs().amax(1) / 448
                    stored[name] = (rows / scale[:, None]).to(torch.float8_e4m3fn)
                    stored[name[:-6] + "scale_weight"] = scale
                elif kind == "transformer" and ".0.attn2" in name:
                    stored[name] = (w / .01).to(torch.float8_e4m3fn)
                    stored[name[:-6] + "scale_weight"] = torch.tensor([.01])
                else:
                    stored[name] = w.half() if kind == "text_encoder" else w.bfloat16()
            scale = stored.get(name[:-6] + "scale_weight") if name.endswith("weight") else None
            plain[name] = stored[name].float()
            if scale is not None:
                plain[name] *= scale.view(-1, *[1] * (w.ndim - 1))
        folder = out / "model" / kind
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "text_encoder":
            plain["encoder.embed_tokens.weight"] = plain["shared.weight"]
            (folder / "config.json").write_text(model.config.to_json_string())
            save_file(stored, str(folder / "model.safetensors"), metadata={"format": "pt"})
        else:
            model.save_config(str(folder))
            save_shards(stored, folder, kind == "transformer")
        model.load_state_dict(plain)


def save_shards(stored, folder, split):
    """One file, or two with an index."""
    stem = "diffusion_pytorch_model"
    stored = {k: v.contiguous() for k, v in stored.items()}
    if not split:
        return save_file(stored, str(folder / f"{stem}.safetensors"), metadata={"format": "pt"})
    names, index = sorted(stored), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"{stem}-{i + 1:05}-of-00002.safetensors"
        save_file({k: stored[k] for k in part}, str(folder / file), metadata={"format": "pt"})
        index |= {k: file for k in part}
    text = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
    (folder / f"{stem}.safetensors.index.json").write_text(text)


def condition_scheduler():
    return FlowMatchEulerDiscreteScheduler()


def plain_scheduler():
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=.95, max_shift=2.05,
                                           base_image_seq_len=1024, max_image_seq_len=4096, shift_terminal=.1)


def text_goldens(text, tokenizer):
    out = {}
    for name, prompt in dict(prompt=PROMPT, empty="").items():
        t = tokenizer(prompt, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt")
        out[f"{name}.ids"] = t.input_ids[0].int()
        out[f"{name}.masked"] = text(t.input_ids, attention_mask=t.attention_mask)[0][0]
        out[f"{name}.unmasked"] = text(t.input_ids)[0][0]
    long = torch.arange(300).remainder(text.config.vocab_size)[None]       # reaches the farthest position bucket
    out["long.last"] = text(long)[0][0, -4:]
    return out


def transformer_goldens(model):
    f, h, w, n = 3, 2, 3, 11
    x, states = torch.randn(1, f * h * w, 128), torch.randn(1, n, model.config.caption_channels)
    mask = torch.ones(1, n)
    mask[:, 7:] = 0
    timestep = torch.full((1, f, h * w), 725.)
    timestep[:, 0], timestep[:, 1, 2] = 0, 421.9
    timestep = timestep.flatten(1)
    ids = LTXConditionPipeline._scale_video_ids(LTXConditionPipeline._prepare_video_ids(1, f, h, w), 32, 8, 0).float()
    ids[:, 0] *= 1.0 / FPS
    common = dict(hidden_states=x, encoder_hidden_states=states, encoder_attention_mask=mask, return_dict=False)
    per_token = model(timestep=timestep, video_coords=ids, **common)[0]
    uniform = model(timestep=torch.tensor([987.5]), num_frames=f, height=h, width=w,
                    rope_interpolation_scale=(8 / 25, 32, 32), **common)[0]
    return dict(x=x[0], states=states[0], mask=mask[0], timestep=timestep[0], per_token=per_token[0], uniform=uniform[0])


def rope_goldens():
    """Rotations at the width of the 2B model, where angles are largest."""
    embed = diffusers.models.transformers.transformer_ltx.LTXVideoRotaryPosEmbed(dim=2048)
    ids = LTXConditionPipeline._scale_video_ids(LTXConditionPipeline._prepare_video_ids(1, 2, 2, 1), 32, 8, 0).float()
    ids[:, 0] *= 1.0 / 30
    cos, sin = embed(torch.zeros(1), video_coords=ids)
    return {"cos": cos[0, :, ::2].contiguous(), "sin": sin[0, :, ::2].contiguous()}


def clip(frames, height, width, seed):
    """A smooth moving pattern in 8 bits."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(.11 * (c + 1) * x + .07 * (3 - c) * y + .3 * t + seed + c) for c in range(3)]
    return ((torch.stack(waves, -1) * .45 + .5) * 255).round().to(torch.uint8)


def vae_goldens(vae):
    pictures = clip(9, 64, 32, 1)
    x = (pictures.float() / 255 * 2 - 1).permute(3, 0, 1, 2)[None]
    mean, std = (v.view(1, -1, 1, 1, 1) for v in (vae.latents_mean, vae.latents_std))
    encoded = (vae.encode(x).latent_dist.mode() - mean) / std
    z = torch.randn(1, 128, 3, 1, 2)
    decoded = vae.decode(z, torch.tensor([.05]), return_dict=False)[0]
    return dict(pictures=pictures, encoded=encoded, z=z, decoded=decoded[0].permute(1, 2, 3, 0).contiguous())


def pipeline_goldens(parts, tokenizer, seed):
    out = {}
    pipe = LTXConditionPipeline(condition_scheduler(), parts["vae"], parts["text_encoder"], tokenizer,
                                parts["transformer"])
    pipe.set_progress_bar_config(disable=True)
    common = dict(prompt=PROMPT, height=64, width=64, frame_rate=FPS, max_sequence_length=TEXT_TOKENS)
    timesteps = [float(f"{t * 1000:.4f}") for t in TIMESTEPS]
    generator = lambda: torch.Generator("cpu").manual_seed(seed)
    guided = dict(common, negative_prompt=NEGATIVE, num_frames=9, timesteps=timesteps, guidance_scale=2.5)
    out["guided.latents"] = pipe(**guided, output_type="latent", generator=generator()).frames
    video = pipe(**guided, output_type="pt", generator=generator(), decode_timestep=.05, decode_noise_scale=.025).frames
    out["guided.pictures"] = to_rgb8(video[0])

    # Held latents: the mode, and no noise on them, so that the window's noise is all that is drawn.
    sample, pipeline_ltx_condition.retrieve_latents = pipeline_ltx_condition.retrieve_latents, (
        lambda encoded, generator=None: encoded.latent_dist.mode())
    pictures = clip(9, 64, 64, 2)
    held = LTXVideoCondition(video=[Image.fromarray(p.numpy()) for p in pictures], frame_index=0, strength=1.0)
    out["held.latents"] = pipe(**common, num_frames=17, conditions=[held], num_inference_steps=6, guidance_scale=1.0,
                               image_cond_noise_scale=0.0, output_type="latent", generator=generator()).frames
    pipeline_ltx_condition.retrieve_latents = sample
    out["held.pictures"] = pictures

    pipe = LTXPipeline(plain_scheduler(), parts["vae"], parts["text_encoder"], tokenizer, parts["transformer"])
    pipe.set_progress_bar_config(disable=True)
    packed = pipe(**dict(common, frame_rate=25), num_frames=17, num_inference_steps=4, guidance_scale=1.0,
                  output_type="latent", generator=generator()).frames
    out["plain.latents"] = pipe._unpack_latents(packed, 3, 2, 2)
    return out


def to_rgb8(video):
    """[F, 3, H, W] in 0..1 as diffusers turns it into pictures."""
    pictures = (video.permute(0, 2, 3, 1).float().numpy() * 255).round().astype("uint8")
    return torch.from_numpy(np.ascontiguousarray(pictures))


def random_goldens():
    out = {}
    for seed in (0, 42, 2 ** 32 - 1, 2 ** 40 + 5):
        generator = torch.Generator("cpu").manual_seed(seed)
        counts = (5, 3, 16, 1, 17, 100, 7, 31, 15, 257)
        out[f"{seed}"] = torch.cat([torch.randn(n, generator=generator) for n in counts])
    return out, counts


def schedule_goldens():
    """Timesteps and sigmas of both pipelines."""
    rows = []
    for steps in (1, 2, 5, 8, 30):
        s = condition_scheduler()
        s.set_timesteps(steps, timesteps=pipeline_ltx_condition.linear_quadratic_schedule(steps) * 1000)
        rows.append(("condition", steps, 0, s))
    for steps, tokens in ((4, 12), (8, 640), (20, 5600), (3, 3000)):
        s = plain_scheduler()
        c = s.config
        mu = diffusers.pipelines.ltx.pipeline_ltx.calculate_shift(
            tokens, c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift)
        s.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        rows.append(("plain", steps, tokens, s))
    return [dict(pipeline=p, steps=n, tokens=t, timesteps=s.timesteps.tolist(), sigmas=s.sigmas.tolist())
            for p, n, t, s in rows]


def tokenizer_goldens(tokenizer, seed):
    texts = [
        PROMPT, NEGATIVE, "", " ", "\t\n", "a  red \t circle\nmoves", "  leading and trailing  ", "A RED Circle",
        "naïve café résumé", "e\u0301 combined, é composed", "ﬁne ﬂow ½ ² ™", "ｆｕｌｌ ｗｉｄｔｈ～", "日本語のテキスト", "красный круг",
        "🙂 red 🙂🙂 circle", "👩‍👩‍👧 family", "zero\u200bwidth\u00a0space\u3000wide", "soft\u00adhyphen", "\ufeffbom", "a\u2028b\u2029c",
        "</s>", "a </s> b", "<pad> x", "<unk>y", "x<unk>", "</s></s>", "<extra_id_0>", "▁under▁score", "▁", "▁▁ a",
        "1234567890", "3.14,-'!?:;()", "don't stop", "semi;colon", "tab\tred", "ÀÉÎÕÜ", "ß ẞ ſ", "Ⅷ ⅷ", "한국어", "\u1100\u1161",
        "\u0000nul", "control\u0007char", "x" * 300, "red" * 100, "a" + "\u0301" * 10, "مرحبا", "हिन्दी", "ไทย", "\u202eright",
    ]
    rng = random.Random(seed)
    words = "a red blue green circle square moves left right up slowly quickly on white background . , é 中 xyz".split()
    texts += [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(60)]
    alphabet = [chr(c) for c in (*range(32, 127), *range(0xa0, 0x180), 0x2581, 0x3000, 0x4e2d, 0x1f642, 0x301)]
    texts += ["".join(rng.choices(alphabet, k=rng.randint(1, 40))) for _ in range(120)]
    cases = [dict(text=t, ids=tokenizer(t).input_ids) for t in texts]
    long = tokenizer("red circle " * 5000).input_ids
    cases.append(dict(text="red circle ", repeat=5000, ids=tokenizer("red circle").input_ids, length=len(long)))
    cut = tokenizer(PROMPT, padding="max_length", max_length=6, truncation=True).input_ids
    return cases + [dict(text=PROMPT, cut=6, ids=cut)]


@torch.no_grad()
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--heads", type=int, default=2)
    p.add_argument("--head-dim", type=int, default=16)
    p.add_argument("--out", type=pathlib.Path, default=HERE)
    p.add_argument("--tokenizer", type=pathlib.Path, default=None, help="default: the one already in the folder")
    a = p.parse_args()
    torch.manual_seed(a.seed)
    torch.set_num_threads(1)
    folder = a.out / "model/tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    if a.tokenizer:
        shutil.copyfile(a.tokenizer, folder / "spiece.model")
    config = dict(tokenizer_class="T5Tokenizer", extra_ids=0, additional_special_tokens=[])
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    tokenizer = T5Tokenizer.from_pretrained(str(folder))
    parts = build(a, len(tokenizer))
    store(parts, a.out)
    index = {"_class_name": "LTXConditionPipeline", "_diffusers_version": diffusers.__version__}
    (a.out / "model/model_index.json").write_text(json.dumps(index, indent=1) + "\n")
    condition_scheduler().save_config(str(a.out / "model/scheduler"))
    plain_scheduler().save_config(str(a.out / "plain"))
    draws, counts = random_goldens()
    files = dict(text=text_goldens(parts["text_encoder"], tokenizer), transformer=transformer_goldens(parts["transformer"]),
                 rope=rope_goldens(), vae=vae_goldens(parts["vae"]), pipeline=pipeline_goldens(parts, tokenizer, a.seed),
                 randn=draws)
    for name, tensors in files.items():
        save_file({k: v.contiguous() for k, v in tensors.items()}, str(a.out / f"{name}.safetensors"))
    cases = tokenizer_goldens(tokenizer, a.seed)
    (a.out / "tokenizer.json").write_text(json.dumps(cases, ensure_ascii=True, indent=None, separators=(",", ":")) + "\n")
    (a.out / "schedule.json").write_text(json.dumps(schedule_goldens()) + "\n")
    about = dict(torch=torch.__version__, diffusers=diffusers.__version__, transformers=transformers.__version__,
                 seed=a.seed, layers=a.layers, heads=a.heads, head_dim=a.head_dim, prompt=PROMPT, negative=NEGATIVE,
                 text_tokens=TEXT_TOKENS, timesteps=TIMESTEPS, fps=FPS, randn_counts=counts)
    (a.out / "golden.json").write_text(json.dumps(about, indent=1) + "\n")
    for f in a.out.rglob("*.safetensors"):
        f.chmod(0o644)
    size = sum(f.stat().st_size for f in a.out.rglob("*") if f.is_file())
    print(f"{size} bytes in {a.out}")


if __name__ == "__main__":
    main()
