"""Renders one case with diffusers or with Lightricks' own code, on the CPU in F32, for comparison with longtake.

    python reference.py --out DIR --pipeline basic|condition|official [--model DIR] [--seed N] [--size WxH] [--frames N]
        [--steps N | --timesteps T,T,..] [--guidance G] [--stg-mode M --stg-scale S --skip-blocks 0,1] [--multi-scale] ...

Without --model a small random model is made first, from --model-seed: a Diffusers folder DIR/model, the same weights as an
official single file DIR/official.safetensors, and a latent upscaler DIR/upscaler.safetensors. What was asked is written to
DIR/case.json; prompt tokens, latents and frames (8 bits) to DIR/case.safetensors. The official code is imported from
--official PATH, a checkout of github.com/Lightricks/LTX-Video. Its VAE samples, decoder noise and stochastic steps come
from torch's default generator, which is seeded like the pipeline's own right before the call.
"""
import argparse
import json
import math
import pathlib
import random
import shutil
import sys

import numpy as np
import torch
from diffusers import (AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXConditionPipeline,
                       LTXImageToVideoPipeline, LTXPipeline, LTXVideoTransformer3DModel)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel, T5Tokenizer

HERE = pathlib.Path(__file__).resolve().parent
SCHEDULERS = {
    "condition": dict(),
    "basic": dict(use_dynamic_shifting=True, base_shift=.95, max_shift=2.05, base_image_seq_len=1024,
                  max_image_seq_len=4096, shift_terminal=.1),
}


# ---- a random model

def random_model(a):
    """A model of random sizes in the layout of LTX-Video 0.9.5 and later."""
    rng = random.Random(a.model_seed)
    heads = a.heads or rng.choice((1, 2, 3, 4))
    head_dim = a.head_dim or rng.choice((8, 12, 16, 32))
    while heads * head_dim < 12:
        heads *= 2
    layers = a.layers if a.layers is not None else rng.randint(1, 4)
    caption, wide, narrow = rng.choice((16, 24, 40)), rng.choice((16, 32)), rng.choice((8, 16))
    torch.manual_seed(a.model_seed)
    transformer = LTXVideoTransformer3DModel(
        in_channels=128, out_channels=128, num_attention_heads=heads, attention_head_dim=head_dim,
        cross_attention_dim=heads * head_dim, num_layers=layers, caption_channels=caption)
    count = lambda: rng.randint(1, 2)
    vae = AutoencoderKLLTXVideo(
        latent_channels=128, block_out_channels=(narrow, narrow * 2, narrow * 2, wide * 2, wide * 2),
        down_block_types=("LTXVideo095DownBlock3D",) * 4, layers_per_block=tuple(count() for _ in range(5)),
        spatio_temporal_scaling=(True,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        decoder_block_out_channels=(wide // 2, wide, wide * 2), decoder_layers_per_block=tuple(count() for _ in range(4)),
        decoder_spatio_temporal_scaling=(True,) * 3, decoder_inject_noise=(False,) * 4, upsample_residual=(True,) * 3,
        upsample_factor=(2, 2, 2), timestep_conditioning=True, encoder_causal=True, decoder_causal=False,
        spatial_compression_ratio=32, temporal_compression_ratio=8)
    shutil.copytree(HERE / "model/tokenizer", a.out / "model/tokenizer", dirs_exist_ok=True)
    tokenizer = T5Tokenizer.from_pretrained(str(a.out / "model/tokenizer"))
    text = T5EncoderModel(T5Config(
        vocab_size=len(tokenizer), d_model=caption, d_kv=8, d_ff=2 * caption, num_layers=count(), num_heads=count() + 1,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False, dropout_rate=0.0,
        tie_word_embeddings=False, pad_token_id=0, eos_token_id=1))
    from make import randomise
    parts = dict(transformer=transformer, vae=vae, text_encoder=text)
    for name, part in parts.items():
        randomise(part.eval().requires_grad_(False))
        part.save_pretrained(str(a.out / "model" / name))
    name = "LTXPipeline" if a.pipeline == "basic" else "LTXConditionPipeline"
    (a.out / "model/model_index.json").write_text(json.dumps({"_class_name": name}) + "\n")
    save_scheduler(a, a.out / "model")
    return parts, tokenizer


def save_scheduler(a, folder):
    FlowMatchEulerDiscreteScheduler(**SCHEDULERS[scheduler_kind(a)]).save_config(str(folder / "scheduler"))


def scheduler_kind(a):
    return a.scheduler or ("condition" if a.pipeline == "condition" else "basic")


def stored_weights(folder):
    """All tensors of a folder in F32, scales applied."""
    raw = {}
    for file in sorted(folder.glob("*.safetensors")):
        raw |= load_file(str(file))
    plain = {}
    for name, w in raw.items():
        if name.endswith("scale_weight"):
            continue
        scale = raw.get(name[:-6] + "scale_weight") if name.endswith("weight") else None
        plain[name] = w.float()
        if scale is not None:
            plain[name] *= scale.view(-1, *[1] * (w.ndim - 1))
    return plain


def existing_model(folder):
    """The parts of a Diffusers folder, in F32."""
    parts = dict(transformer=LTXVideoTransformer3DModel, vae=AutoencoderKLLTXVideo)
    for name, kind in parts.items():
        parts[name] = kind.from_config(kind.load_config(str(folder / name)))
        parts[name].load_state_dict(stored_weights(folder / name))
    text = T5EncoderModel(T5Config.from_pretrained(str(folder / "text_encoder")))
    weights = stored_weights(folder / "text_encoder")
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    text.load_state_dict(weights)
    parts["text_encoder"] = text
    for part in parts.values():
        part.eval().requires_grad_(False)
    return parts, T5Tokenizer.from_pretrained(str(folder / "tokenizer"))


# ---- the same model as Lightricks' code wants it

def official_transformer_config(c):
    return dict(
        _class_name="Transformer3DModel", activation_fn="gelu-approximate", attention_bias=True,
        attention_head_dim=c.attention_head_dim, attention_type="default", caption_channels=c.caption_channels,
        cross_attention_dim=c.cross_attention_dim, double_self_attention=False, dropout=0.0, in_channels=c.in_channels,
        norm_elementwise_affine=False, norm_eps=1e-6, norm_num_groups=32, num_attention_heads=c.num_attention_heads,
        num_embeds_ada_norm=1000, num_layers=c.num_layers, num_vector_embeds=None, only_cross_attention=False,
        out_channels=c.out_channels, upcast_attention=False, use_linear_projection=False, qk_norm="rms_norm",
        standardization_norm="rms_norm", positional_embedding_type="rope", positional_embedding_theta=10000.0,
        positional_embedding_max_pos=[20, 2048, 2048], timestep_scale_multiplier=1000, causal_temporal_positioning=True,
        adaptive_norm="single_scale_shift")


def official_vae_config(c):
    kinds = dict(spatial="compress_space_res", temporal="compress_time_res", spatiotemporal="compress_all_res")
    widths = c.block_out_channels
    encoder = []
    for i, kind in enumerate(c.downsample_type):
        encoder += [["res_x", {"num_layers": c.layers_per_block[i]}],
                    [kinds[kind], {"multiplier": widths[i + 1] // widths[i]}]]
    encoder.append(["res_x", {"num_layers": c.layers_per_block[-1]}])
    decoder = [["res_x", {"num_layers": c.decoder_layers_per_block[0], "inject_noise": False}]]
    for i in range(len(c.decoder_block_out_channels)):
        decoder += [["compress_all", {"residual": c.upsample_residual[i], "multiplier": c.upsample_factor[i]}],
                    ["res_x", {"num_layers": c.decoder_layers_per_block[i + 1], "inject_noise": False}]]
    base = c.decoder_block_out_channels[0] // c.upsample_factor[0]
    return dict(_class_name="CausalVideoAutoencoder", dims=3, in_channels=3, out_channels=3,
                latent_channels=c.latent_channels, encoder_blocks=encoder, decoder_blocks=decoder, norm_layer="pixel_norm",
                patch_size=c.patch_size, latent_log_var="uniform", use_quant_conv=False, causal_decoder=c.decoder_causal,
                timestep_conditioning=c.timestep_conditioning, scaling_factor=1.0, spatial_padding_mode="zeros",
                encoder_base_channels=widths[0], decoder_base_channels=base)


def official_names(parts):
    """Tensors of the single file."""
    out = {}
    for name, w in parts["transformer"].state_dict().items():
        for ours, theirs in (("proj_in", "patchify_proj"), ("time_embed", "adaln_single"), ("norm_q", "q_norm"),
                             ("norm_k", "k_norm")):
            name = name.replace(ours, theirs)
        out[f"model.diffusion_model.{name}"] = w
    blocks = len(parts["vae"].config.downsample_type)
    for name, w in parts["vae"].state_dict().items():
        if name.startswith("latents_"):
            out["vae.per_channel_statistics." + ("mean-of-means" if name == "latents_mean" else "std-of-means")] = w
            continue
        side, _, rest = name.partition(".")
        words = rest.split(".")
        if words[0] == "mid_block":
            words[:1] = ["up_blocks", "0"] if side == "decoder" else ["down_blocks", str(2 * blocks)]
        elif words[0] == "down_blocks" or words[0] == "up_blocks":
            i = int(words[1])
            if words[2] == "downsamplers":
                words[:4] = ["down_blocks", str(2 * i + 1)]
            elif words[2] == "upsamplers":
                words[:4] = ["up_blocks", str(2 * i + 1)]
            else:
                words[1] = str(2 * i + 2 if side == "decoder" else 2 * i)
        rest = ".".join(words).replace("resnets", "res_blocks")
        if side == "decoder" and (rest.startswith("time_embedder") or rest.startswith("scale_shift_table")):
            rest = "last_" + rest
        out[f"vae.{side}.{rest}"] = w
    return out


def official_scheduler_config(a):
    base = dict(_class_name="RectifiedFlowScheduler", num_train_timesteps=1000, base_resolution=1024)
    if scheduler_kind(a) == "basic":
        return dict(base, shifting="SD3", sampler="Uniform", target_shift_terminal=.1)
    return dict(base, shifting=None, sampler="LinearQuadratic", target_shift_terminal=None)


def save_official(a, parts):
    config = dict(transformer=official_transformer_config(parts["transformer"].config),
                  vae=official_vae_config(parts["vae"].config), scheduler=official_scheduler_config(a))
    if a.allowed:
        config["allowed_inference_steps"] = a.allowed
    weights = {k: v.contiguous().clone() for k, v in official_names(parts).items()}
    save_file(weights, str(a.out / "official.safetensors"), metadata={"config": json.dumps(config)})


def save_upscaler(a):
    from ltx_video.models.autoencoders.latent_upsampler import LatentUpsampler
    torch.manual_seed(a.model_seed + 1)
    config = dict(_class_name="LatentUpsampler", in_channels=128, mid_channels=32, num_blocks_per_stage=1, dims=a.upscaler_dims,
                  spatial_upsample=True, temporal_upsample=False)
    model = LatentUpsampler.from_config(config).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape)
        p.copy_(noise * p[0].numel() ** -.5 if p.ndim > 1 else noise * .2 + ("norm" in name and name.endswith("weight")))
        p.copy_(p.bfloat16().float())
    stored = {k: v.bfloat16().contiguous() for k, v in model.state_dict().items()}
    save_file(stored, str(a.out / "upscaler.safetensors"), metadata={"config": json.dumps(config)})


# ---- rendering

def clip(frames, width, height, seed):
    """A smooth moving pattern in 8 bits, [F, H, W, 3]; longtake's tests make the same one."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [(t * 3 + x * (c + 2) + y * (5 - c) + seed * 17 + c * 40) % 256 for c in range(3)]
    triangle = [np.where(w < 128, 2 * w, 511 - 2 * w) for w in waves]
    return np.stack(triangle, -1).astype(np.uint8)


def conditions(a):
    """--condition FRAME:COUNT:STRENGTH, pictures from `clip`."""
    for i, text in enumerate(a.condition):
        frame, count, strength = text.split(":")
        yield int(frame), clip(int(count), a.width, a.height, i + 1), float(strength)


def latent_size(a):
    return (a.frames - 1) // 8 + 1, a.height // 32, a.width // 32


def with_reference_video(pipe, a):
    """Has the pipeline see a reference video, as an IC-LoRA's model does in ComfyUI: all of its latents as tokens of noise
    level 1 - strength at the places of the window's own, of which each covers --reference-stride down and across."""
    stride = a.reference_stride
    pictures = torch.from_numpy(clip(a.frames, a.width // stride, a.height // stride, 7)).float()
    z = pipe.vae.encode(pictures.permute(3, 0, 1, 2)[None] / 127.5 - 1).latent_dist.mode()
    z = pipe._normalize_latents(z, pipe.vae.latents_mean, pipe.vae.latents_std)
    f, h, w = latent_size(a)

    def prepare_latents(*_, generator, **__):
        noise = torch.randn((1, 128, f, h, w), generator=generator)
        held = pipe._pack_latents(z, 1, 1)
        if a.reference_strength < 1:
            held = torch.lerp(pipe._pack_latents(torch.randn(z.shape, generator=generator), 1, 1), held, a.reference_strength)
        own = pipe._scale_video_ids(pipe._prepare_video_ids(1, f, h, w), 32, 8, 0, "cpu")
        seen = pipe._scale_video_ids(pipe._prepare_video_ids(1, f, h // stride, w // stride), 32 * stride, 8, 0, "cpu")
        mask = torch.cat([torch.full(held.shape[:2], a.reference_strength), torch.zeros(1, f * h * w)], 1)
        return torch.cat([held, pipe._pack_latents(noise, 1, 1)], 1), mask, torch.cat([seen, own], 2), held.shape[1]

    pipe.prepare_latents = prepare_latents
    # Only so that the pipeline takes a mask at all.
    return dict(conditions=[LTXVideoCondition(image=Image.new("RGB", (a.width, a.height)))], image_cond_noise_scale=0)


def diffusers_case(a, parts, tokenizer):
    kind = LTXPipeline if a.pipeline == "basic" else LTXConditionPipeline
    if a.pipeline == "basic" and a.condition:  # one picture, the first frame
        kind = LTXImageToVideoPipeline
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULERS[scheduler_kind(a)])
    pipe = kind(scheduler, parts["vae"], parts["text_encoder"], tokenizer, parts["transformer"])
    pipe.set_progress_bar_config(disable=True)
    args = dict(prompt=a.prompt, negative_prompt=a.negative, height=a.height, width=a.width, num_frames=a.frames,
                frame_rate=a.fps, guidance_scale=a.guidance, max_sequence_length=a.text_tokens,
                decode_timestep=a.decode_timestep, decode_noise_scale=a.decode_noise_scale)
    if a.timesteps:
        args["timesteps"] = [float(f"{t * 1000:.4f}") for t in a.timesteps]
    else:
        args["num_inference_steps"] = a.steps
    if kind is LTXImageToVideoPipeline:
        [(_, pictures, _)] = conditions(a)
        args["image"] = Image.fromarray(pictures[0])
    if a.pipeline == "condition":
        args["image_cond_noise_scale"] = a.image_cond_noise_scale
        held = []
        for frame, pictures, strength in conditions(a):
            pictures = [Image.fromarray(p) for p in pictures]
            media = dict(image=pictures[0]) if len(pictures) == 1 else dict(video=pictures)
            held.append(LTXVideoCondition(**media, frame_index=frame, strength=strength))
        if held:
            args["conditions"] = held
    if a.reference_stride:
        args |= with_reference_video(pipe, a)
    generator = torch.Generator("cpu").manual_seed(a.seed)
    latents = pipe(**args, output_type="latent", generator=generator).frames
    if a.pipeline == "basic":
        latents = pipe._unpack_latents(latents, *latent_size(a))
    generator = torch.Generator("cpu").manual_seed(a.seed)
    video = pipe(**args, output_type="pt", generator=generator).frames[0]
    return latents, (video.permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")


def comfy_levels(steps, tokens):
    """The levels of ComfyUI's LTXVScheduler as it comes: shifted by size, stretched to end at 0.1, then 0."""
    levels = torch.linspace(1.0, 0.0, steps + 1)
    shift = math.exp(0.95 + (tokens - 1024) * (2.05 - 0.95) / (4096 - 1024))
    levels = torch.where(levels > 0, shift / (shift + (1 / levels - 1)), levels)
    away = 1 - levels[:-1]
    return torch.cat([1 - away * (1 - 0.1) / away[-1], levels[-1:]])


def comfy_case(a, parts, tokenizer):
    """Euler steps as ComfyUI takes them with pictures from the first frame on, which it mixes with what the transformer sees
    and with what it predicts; the parts are those of diffusers."""
    pipe = LTXConditionPipeline(FlowMatchEulerDiscreteScheduler(), parts["vae"], parts["text_encoder"], tokenizer,
                                parts["transformer"])
    text, mask, negative, negative_mask = pipe.encode_prompt(a.prompt, a.negative, max_sequence_length=a.text_tokens)
    f, h, w = latent_size(a)
    generator = torch.Generator("cpu").manual_seed(a.seed)
    x = pipe._pack_latents(torch.randn((1, 128, f, h, w), generator=generator), 1, 1)
    held, free = torch.zeros(1, 128, f, h, w), torch.ones(1, 1, f, h, w)
    for _, pictures, strength in conditions(a):
        z = pipe.vae.encode(torch.from_numpy(pictures).float().permute(3, 0, 1, 2)[None] / 127.5 - 1).latent_dist.mode()
        z = pipe._normalize_latents(z, pipe.vae.latents_mean, pipe.vae.latents_std)
        held[:, :, :z.shape[2]], free[:, :, :z.shape[2]] = z, 1 - strength
    held, free = pipe._pack_latents(held, 1, 1), pipe._pack_latents(free, 1, 1)
    places = pipe._scale_video_ids(pipe._prepare_video_ids(1, f, h, w), 32, 8, 0, "cpu").float()
    places[:, 0] /= a.fps
    levels = comfy_levels(a.steps, f * h * w)
    for level, after in zip(levels, levels[1:]):
        seen = x * free + held * (1 - free)
        predict = lambda text, mask: seen - level * parts["transformer"](
            seen, text, (level * 1000 * free)[..., 0], mask, video_coords=places, return_dict=False)[0]
        clean = predict(text, mask)
        if a.guidance != 1:
            other = predict(negative, negative_mask)
            clean = other + (clean - other) * a.guidance
        clean = clean * free + held * (1 - free)
        x = x + (x - clean) / level * (after - level)
    latents = pipe._unpack_latents(x, f, h, w)
    z = pipe._denormalize_latents(latents, pipe.vae.latents_mean, pipe.vae.latents_std)
    z = torch.lerp(z, torch.randn(z.shape, generator=generator), a.decode_noise_scale)
    video = pipe.vae.decode(z, torch.tensor([a.decode_timestep]), return_dict=False)[0]
    video = (video[0] / 2 + .5).clamp(0, 1)
    return latents, (video.permute(1, 2, 3, 0).numpy() * 255).round().astype("uint8")


def official_pipeline(a, tokenizer, text):
    from ltx_video.models.autoencoders.causal_video_autoencoder import CausalVideoAutoencoder
    from ltx_video.models.autoencoders.latent_upsampler import LatentUpsampler
    from ltx_video.models.transformers.symmetric_patchifier import SymmetricPatchifier
    from ltx_video.models.transformers.transformer3d import Transformer3DModel
    from ltx_video.pipelines.pipeline_ltx_video import LTXMultiScalePipeline, LTXVideoPipeline
    from ltx_video.schedulers.rf import RectifiedFlowScheduler
    file = a.out / "official.safetensors"
    vae = CausalVideoAutoencoder.from_pretrained(str(file))
    transformer = Transformer3DModel.from_pretrained(str(file))
    if a.sampler == "from_checkpoint":
        scheduler = RectifiedFlowScheduler.from_pretrained(str(file))
    else:
        scheduler = RectifiedFlowScheduler(sampler="Uniform" if a.sampler == "uniform" else "LinearQuadratic")
    with safe_open(str(file), "pt") as f:
        allowed = json.loads(f.metadata()["config"]).get("allowed_inference_steps")
    pipe = LTXVideoPipeline(
        tokenizer=tokenizer, text_encoder=text, vae=vae.eval(), transformer=transformer.eval(), scheduler=scheduler,
        patchifier=SymmetricPatchifier(patch_size=1), prompt_enhancer_image_caption_model=None,
        prompt_enhancer_image_caption_processor=None, prompt_enhancer_llm_model=None, prompt_enhancer_llm_tokenizer=None,
        allowed_inference_steps=allowed)
    pipe.set_progress_bar_config(disable=True)
    if not a.multi_scale:
        return pipe
    upsampler = LatentUpsampler.from_pretrained(str(a.out / "upscaler.safetensors")).float().eval()
    return LTXMultiScalePipeline(pipe, latent_upsampler=upsampler)


def pass_arguments(a):
    """The keys of an official pipeline file that say how one pass samples."""
    args = dict(guidance_scale=a.guidance, stg_scale=a.stg_scale, rescaling_scale=a.rescaling_scale,
                skip_block_list=a.skip_blocks, cfg_star_rescale=a.cfg_star, stochastic_sampling=a.stochastic)
    if a.guidance_timesteps:
        args["guidance_timesteps"] = a.guidance_timesteps
    if a.timesteps:
        args["timesteps"] = a.timesteps
    else:
        args |= dict(num_inference_steps=a.steps, skip_initial_inference_steps=a.skip_initial,
                     skip_final_inference_steps=a.skip_final)
    return args


def official_case(a, parts, tokenizer):
    from ltx_video.pipelines.pipeline_ltx_video import ConditioningItem
    from ltx_video.utils.skip_layer_strategy import SkipLayerStrategy
    from ltx_video import inference
    modes = dict(attention_values=SkipLayerStrategy.AttentionValues, attention_skip=SkipLayerStrategy.AttentionSkip,
                 residual=SkipLayerStrategy.Residual, transformer_block=SkipLayerStrategy.TransformerBlock)
    height, width = ((a.height - 1) // 32 + 1) * 32, ((a.width - 1) // 32 + 1) * 32
    frames = ((a.frames - 2) // 8 + 1) * 8 + 1
    padding = inference.calculate_padding(a.height, a.width, height, width)
    args = dict(pass_arguments(a), skip_layer_strategy=modes[a.stg_mode], height=height, width=width, num_frames=frames,
                frame_rate=a.fps, prompt=a.prompt, negative_prompt=a.negative, is_video=True, vae_per_channel_normalize=True,
                image_cond_noise_scale=a.image_cond_noise_scale, text_encoder_max_tokens=a.text_tokens,
                decode_timestep=a.decode_timestep, decode_noise_scale=a.decode_noise_scale)
    if not a.multi_scale:
        args["tone_map_compression_ratio"] = a.tone_map
    held = []
    for frame, pictures, strength in conditions(a):
        media = torch.from_numpy(pictures).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
        media = torch.nn.functional.pad(media, padding + (0, 0))
        held.append(ConditioningItem(media, frame, strength))
    if held:
        args["conditioning_items"] = held
    if a.input_video:
        media = torch.from_numpy(clip(frames, a.width, a.height, 9)).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
        args["media_items"] = torch.nn.functional.pad(media, padding + (0, 0))
    if a.multi_scale:
        second = dict(guidance_scale=1, stg_scale=0, rescaling_scale=1, skip_block_list=None,
                      tone_map_compression_ratio=a.tone_map)
        second |= dict(timesteps=a.second_timesteps) if a.second_timesteps else dict(
            num_inference_steps=a.steps, skip_initial_inference_steps=a.second_skip_initial)
        keys = [k for k in pass_arguments(a) if k in args]
        first = {k: args.pop(k) for k in keys}
        args |= dict(downscale_factor=a.downscale_factor, first_pass=first, second_pass=second)
    pipe = official_pipeline(a, tokenizer, parts["text_encoder"])
    results = []
    for kind in ("latent", "pt"):
        torch.manual_seed(a.seed)
        results.append(pipe(**args, output_type=kind, generator=torch.Generator("cpu").manual_seed(a.seed)).images)
    latents, video = results
    left, right, top, bottom = padding
    video = video[0, :, :a.frames, top:video.shape[3] - bottom, left:video.shape[4] - right]
    return latents, (video.permute(1, 2, 3, 0).numpy() * 255).astype("uint8")


def numbers(text):
    """`2.5`, or a list `[1, 6, 8]`, or lists of lists, as in an official pipeline file."""
    return json.loads(text)


def arguments(line=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--pipeline", choices=("basic", "condition", "official", "comfy"), default="basic")
    p.add_argument("--model", type=pathlib.Path)
    p.add_argument("--model-seed", type=int, default=1)
    for name in ("heads", "head-dim", "layers"):
        p.add_argument(f"--{name}", type=int)
    p.add_argument("--scheduler", choices=tuple(SCHEDULERS))
    p.add_argument("--official", default=None, help="checkout of Lightricks/LTX-Video")
    p.add_argument("--upscaler-dims", type=int, default=3, choices=(2, 3))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--size", default="64x64")
    p.add_argument("--frames", type=int, default=9)
    p.add_argument("--fps", type=float, default=25)
    p.add_argument("--prompt", default="a red circle moves left, slowly")
    p.add_argument("--negative", default="")
    p.add_argument("--text-tokens", type=int, default=24)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--timesteps", type=numbers)
    p.add_argument("--skip-initial", type=int, default=0)
    p.add_argument("--skip-final", type=int, default=0)
    p.add_argument("--allowed", type=numbers)
    p.add_argument("--sampler", default="from_checkpoint", choices=("from_checkpoint", "uniform", "linear-quadratic"))
    p.add_argument("--guidance", type=numbers, default=1)
    p.add_argument("--cfg-star", action="store_true")
    p.add_argument("--stg-mode", default="attention_values",
                   choices=("attention_values", "attention_skip", "residual", "transformer_block"))
    p.add_argument("--stg-scale", type=numbers, default=0)
    p.add_argument("--rescaling-scale", type=numbers, default=1)
    p.add_argument("--skip-blocks", type=numbers)
    p.add_argument("--guidance-timesteps", type=numbers)
    p.add_argument("--stochastic", action="store_true")
    p.add_argument("--image-cond-noise-scale", type=float, default=.15)
    p.add_argument("--condition", action="append", default=[], metavar="FRAME:COUNT:STRENGTH")
    p.add_argument("--reference-stride", type=int, default=0, help="see a clip as an IC-LoRA's model does, so much smaller")
    p.add_argument("--reference-strength", type=float, default=1)
    p.add_argument("--input-video", action="store_true", help="start from a clip; needs --skip-initial")
    p.add_argument("--decode-timestep", type=float, default=.05)
    p.add_argument("--decode-noise-scale", type=float, default=.025)
    p.add_argument("--tone-map", type=float, default=0)
    p.add_argument("--multi-scale", action="store_true")
    p.add_argument("--downscale-factor", type=float, default=.6666666)
    p.add_argument("--second-timesteps", type=numbers)
    p.add_argument("--second-skip-initial", type=int, default=0)
    a = p.parse_args(line)
    a.width, a.height = map(int, a.size.split("x"))
    return a


@torch.no_grad()
def main(line=None):
    a = arguments(line)
    if a.official:
        sys.path.insert(0, a.official)
    sys.path.insert(0, str(HERE))
    a.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if a.model:
        parts, tokenizer = existing_model(a.model)
    else:
        parts, tokenizer = random_model(a)
    if a.pipeline == "official" or (a.official and not a.model):
        save_official(a, parts)
        save_upscaler(a)
    ids = tokenizer(a.prompt, padding="max_length", max_length=a.text_tokens, truncation=True).input_ids
    render = dict(official=official_case, comfy=comfy_case).get(a.pipeline, diffusers_case)
    latents, frames = render(a, parts, tokenizer)
    save_file({"tokens": torch.tensor(ids, dtype=torch.int32), "latents": latents.float().contiguous(),
               "frames": torch.from_numpy(np.ascontiguousarray(frames))}, str(a.out / "case.safetensors"))
    about = {k: v for k, v in vars(a).items() if not isinstance(v, pathlib.Path) and k not in ("official",)}
    (a.out / "case.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"{a.out}: latents {tuple(latents.shape)} of {latents.std():.3f}, frames {frames.shape} around {frames.mean():.1f}")


if __name__ == "__main__":
    main()
