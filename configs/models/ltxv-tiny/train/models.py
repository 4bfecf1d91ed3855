"""The architecture: diffusers' and transformers' own classes at a small size."""
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from transformers import T5Config, T5EncoderModel

VAE = dict(
    in_channels=3, out_channels=3, latent_channels=128,
    # Encoder widths are multiples of 16 so that every space-to-depth convolution has whole groups of 8 channels.
    block_out_channels=(32, 64, 64, 64, 128), down_block_types=("LTXVideo095DownBlock3D",) * 4,
    layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True,) * 4,
    downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    # Decoder 96 -> 48 -> 48 -> 24: halving thrice would leave 12 channels for 48 output values a position, so the
    # middle step keeps its width (factor 1).
    decoder_block_out_channels=(48, 48, 96), decoder_layers_per_block=(2, 2, 2, 1),
    decoder_spatio_temporal_scaling=(True,) * 3, decoder_inject_noise=(False,) * 4,
    upsample_residual=(True,) * 3, upsample_factor=(2, 1, 2), timestep_conditioning=True,
    patch_size=4, patch_size_t=1, resnet_norm_eps=1e-6, scaling_factor=1.0, encoder_causal=True,
    decoder_causal=False, spatial_compression_ratio=32, temporal_compression_ratio=8)
DIT = dict(in_channels=128, out_channels=128, patch_size=1, patch_size_t=1, num_attention_heads=4,
           attention_head_dim=64, cross_attention_dim=256, num_layers=7, caption_channels=128,
           qk_norm="rms_norm_across_heads", activation_fn="gelu-approximate")
T5 = dict(d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
          is_encoder_decoder=False, use_cache=False, dropout_rate=0.0, tie_word_embeddings=False, pad_token_id=0,
          eos_token_id=1)
SIGMAS = (1., .99375, .9875, .98125, .975, .9094, .725, .4219)   # the distilled timesteps; then 0
DECODE_TIMESTEP, DECODE_NOISE = .05, .025


def vae():
    return AutoencoderKLLTXVideo(**VAE)


def dit():
    m = LTXVideoTransformer3DModel(**DIT)
    torch.nn.init.zeros_(m.time_embed.linear.weight)
    torch.nn.init.zeros_(m.proj_out.weight)
    return m


def t5(vocab):
    c = T5Config(vocab_size=vocab, **T5)
    c.architectures = ["T5EncoderModel"]
    return T5EncoderModel(c)


def count(m):
    return sum(p.numel() for p in m.parameters())
