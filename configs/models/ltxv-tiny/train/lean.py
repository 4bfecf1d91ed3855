"""Lean training forwards over the parameters of diffusers' and transformers' classes.

The classes define the architecture and the names; these functions compute the same thing (checked by `check.py`)
with channels last, fused pointwise work, no Python in the way of CUDA graphs, and optional fake quantisation.
"""
import math

import torch
import torch.nn.functional as F

try:
    import kernels
except ImportError:                                      # no Triton: plain PyTorch
    kernels = None

FP8 = torch.float8_e4m3fn


def quantise(w, kind):
    """(stored tensor, scale per output row or channel) with w ~ stored * scale."""
    rows = w.detach().float().flatten(1)
    top = {"f8": 448., "i8": 127.}[kind]
    scale = rows.abs().amax(1).clamp_min(1e-8) / top
    q = rows / scale[:, None]
    q = q.to(FP8) if kind == "f8" else q.round().clamp(-127, 127).to(torch.int8)
    return q.view(w.shape), scale


def dequantise(q, scale):
    return q.float() * scale.view(-1, *[1] * (q.ndim - 1))


def fake(w, kind):
    """Straight-through: the forward sees the stored weight, the gradient passes unchanged."""
    return w + (dequantise(*quantise(w, kind)) - w).detach()


# ---------------------------------------------------------------- VAE
class Vae:
    """encode and decode with [b, t, h, w, c] inside; `quant` turns fake quantisation on."""

    def __init__(self, model, dtype=torch.bfloat16):
        self.m, self.dtype, self.quant = model, dtype, False

    def weight(self, p):
        return fake(p, "i8") if self.quant and p.ndim > 1 and p.numel() >= 4096 else p

    def conv(self, m, x):
        if m.kernel_size[0] == 3:
            x = torch.cat([x[:, :1], x[:, :1], x], 1) if m.is_causal else torch.cat([x[:, :1], x, x[:, -1:]], 1)
        w = self.weight(m.conv.weight).to(self.dtype, memory_format=torch.channels_last_3d)
        y = F.conv3d(x.permute(0, 4, 1, 2, 3), w, m.conv.bias.to(self.dtype), padding=(0, 1, 1))
        return y.permute(0, 2, 3, 4, 1)

    def norm(self, x, scale=None, shift=None):
        """PixelNorm, modulation by sample, SiLU."""
        if x.is_cuda and kernels is not None:
            return kernels.pixel_norm_silu(x, scale, shift)
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-8)
        if scale is not None:
            y = y * (1 + scale[:, None, None, None]) + shift[:, None, None, None]
        return F.silu(y).to(x.dtype)

    def embed(self, m, t):
        """Timestep embedder over cos-first sinusoids; t already times 1000."""
        freq = torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)
        e = torch.cat([(t[:, None] * freq).cos(), (t[:, None] * freq).sin()], 1)
        m = m.timestep_embedder
        e = F.silu(F.linear(e, self.weight(m.linear_1.weight), m.linear_1.bias))
        return F.linear(e, self.weight(m.linear_2.weight), m.linear_2.bias)

    def res(self, m, x, temb=None):
        s1 = h1 = s2 = h2 = None
        if temb is not None:
            h1, s1, h2, s2 = (temb.unflatten(1, (4, -1)) + m.scale_shift_table).unbind(1)
        y = self.conv(m.conv1, self.norm(x, s1, h1))
        return x + self.conv(m.conv2, self.norm(y, s2, h2))

    def stage(self, m, x, t=None):
        temb = None if t is None else self.embed(m.time_embedder, t)
        for up in getattr(m, "upsamplers", None) or ():
            x = self.up(up, x)
        for r in m.resnets:
            x = self.res(r, x, temb)
        for down in getattr(m, "downsamplers", None) or ():
            x = self.down(down, x)
        return x

    def down(self, m, x):
        st, sh, sw = m.stride
        x = torch.cat([x[:, :st - 1], x], 1) if st > 1 else x

        def fold(y):                                     # space (and time) to depth, channel order (c, t, h, w)
            b, t, h, w, c = y.shape
            y = y.reshape(b, t // st, st, h // sh, sh, w // sw, sw, c)
            return y.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4)
        return fold(self.conv(m.conv, x)) + fold(x).unflatten(-1, (-1, m.group_size)).mean(-1)

    def up(self, m, x):
        st, sh, sw = m.stride

        def spread(y):                                   # depth to space (and time)
            b, t, h, w, c = y.shape
            y = y.reshape(b, t, h, w, c // (st * sh * sw), st, sh, sw).permute(0, 1, 5, 2, 6, 3, 7, 4)
            return y.reshape(b, t * st, h * sh, w * sw, -1)[:, st - 1:]
        skip = spread(x)
        return spread(self.conv(m.conv, x)) + torch.cat([skip] * (st * sh * sw // m.upscale_factor), -1)

    def encode(self, x):
        """Video [b, 3, t, h, w] in -1..1 to latents [b, 128, f, h/32, w/32] (the mean), not normalised."""
        e = self.m.encoder
        b, c, t, h, w = x.shape
        x = x.reshape(b, c, t, h // 4, 4, w // 4, 4).permute(0, 2, 3, 5, 1, 6, 4).flatten(4)
        x = self.conv(e.conv_in, x.to(self.dtype).contiguous())
        for block in e.down_blocks:
            x = self.stage(block, x)
        x = self.conv(e.conv_out, self.norm(self.stage(e.mid_block, x)))
        return x[..., :128].permute(0, 4, 1, 2, 3).float()

    def decode(self, z, t):
        """Latents to video [b, 3, t, h, w]; t [b] is the decode timestep (0.05)."""
        d, t = self.m.decoder, t * 1000.
        x = self.conv(d.conv_in, z.permute(0, 2, 3, 4, 1).to(self.dtype).contiguous())
        for block in [d.mid_block, *d.up_blocks]:
            x = self.stage(block, x, t)
        h, s = (self.embed(d.time_embedder, t).unflatten(1, (2, -1)) + d.scale_shift_table).unbind(1)
        x = self.conv(d.conv_out, self.norm(x, s, h))
        b, n, h, w, _ = x.shape
        x = x.reshape(b, n, h, w, 3, 4, 4).permute(0, 4, 1, 2, 6, 3, 5)
        return x.reshape(b, 3, n, h * 4, w * 4).float()


# ---------------------------------------------------------------- T5
def t5(model, ids):
    """Encoder states [b, n, d] in f32; padded positions (id 0) are masked."""
    c, enc = model.config, model.encoder
    mask = (ids > 0)[:, None, None]
    att0 = enc.block[0].layer[0].SelfAttention
    bias = t5_bias(att0, ids.shape[1]) + torch.where(mask, 0., -1e9)
    norm = lambda m, v: v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + c.layer_norm_epsilon) * m.weight
    x = F.embedding(ids, model.shared.weight)
    for block in enc.block:
        a, f = block.layer[0], block.layer[1]
        y, s = norm(a.layer_norm, x), a.SelfAttention
        heads = lambda v: v.unflatten(-1, (c.num_heads, c.d_kv)).transpose(1, 2)
        q, k, v = heads(s.q(y)), heads(s.k(y)), heads(s.v(y))
        w = torch.softmax(q @ k.transpose(-1, -2) + bias, -1)
        x = x + s.o((w @ v).transpose(1, 2).flatten(2))
        y, g = norm(f.layer_norm, x), f.DenseReluDense
        x = x + g.wo(F.gelu(g.wi_0(y), approximate="tanh") * g.wi_1(y))
    return norm(enc.final_layer_norm, x)


def t5_bias(att, n):
    """T5's bidirectional relative position bias: 32 buckets, distances to 128."""
    pos = torch.arange(n, device=att.relative_attention_bias.weight.device)
    rel = pos[None] - pos[:, None]
    far = 8 + (rel.abs().clamp_min(1).float() / 8).log() / math.log(128 / 8) * 8
    bucket = torch.where(rel.abs() < 8, rel.abs(), far.long().clamp_max(15)) + (rel > 0) * 16
    return att.relative_attention_bias(bucket).permute(2, 0, 1)[None]


# ---------------------------------------------------------------- DiT
def rope(f, h, w, causal, dim=256, device="cpu", start=0):
    """cos, sin [f*h*w, dim] f32. `causal`: times max(0, 8f-7)/24 (LTXConditionPipeline), else 8f/24 (LTXPipeline).

    `start`: the frame at which a clip of its own begins.
    """
    t = torch.arange(f, device=device) * 8.
    t = ((t - 7).clamp_min(0) if causal else t) + start
    grid = torch.meshgrid(t / 24 / 20, torch.arange(h, device=device) * 32 / 2048.,
                          torch.arange(w, device=device) * 32 / 2048., indexing="ij")
    grid = torch.stack(grid, -1).flatten(0, 2)
    freq = 10000. ** torch.linspace(0, 1, dim // 6, device=device) * math.pi / 2
    a = ((grid[..., None] * 2 - 1) * freq).transpose(1, 2).flatten(1).repeat_interleave(2, 1)
    pad = dim % 6
    return F.pad(a.cos(), (pad, 0), value=1.), F.pad(a.sin(), (pad, 0))


def rms(x, eps, w=None):
    y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return (y if w is None else y * w).to(x.dtype)


def rotate(x, cos, sin):
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos.unflatten(-1, (-1, 2))[..., 0], sin.unflatten(-1, (-1, 2))[..., 0]
    return torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2).to(x.dtype)


def split(x, heads=4):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def block(x, ctx, bias, temb, clean, cos, sin, p):
    """One transformer block. temb [b, 2, 6, d]: row 0 for noisy tokens, row 1 for clean ones (timestep 0)."""
    ada = p["table"] + temb
    pick = lambda i: torch.where(clean, ada[:, 1:2, i], ada[:, 0:1, i])
    y = (rms(x, 1e-6).float() * (1 + pick(1)) + pick(0)).to(x.dtype)
    q = rotate(rms(F.linear(y, *p["q1"]), 1e-5, p["nq1"]), cos, sin)
    k = rotate(rms(F.linear(y, *p["k1"]), 1e-5, p["nk1"]), cos, sin)
    a = F.scaled_dot_product_attention(split(q), split(k), split(F.linear(y, *p["v1"])))
    x = (x + F.linear(a.transpose(1, 2).flatten(2), *p["o1"]) * pick(2)).to(x.dtype)
    q, k = rms(F.linear(x, *p["q2"]), 1e-5, p["nq2"]), rms(F.linear(ctx, *p["k2"]), 1e-5, p["nk2"])
    a = F.scaled_dot_product_attention(split(q), split(k), split(F.linear(ctx, *p["v2"])), attn_mask=bias)
    x = x + F.linear(a.transpose(1, 2).flatten(2), *p["o2"])
    y = (rms(x, 1e-6).float() * (1 + pick(4)) + pick(3)).to(x.dtype)
    y = F.linear(F.gelu(F.linear(y, *p["f1"]), approximate="tanh"), *p["f2"])
    return (x + y * pick(5)).to(x.dtype)


class Dit:
    """v = dit(z, sigma, clean, states, mask, cos, sin); `compiled` is the block through torch.compile, if wanted."""

    def __init__(self, model, dtype=torch.bfloat16, compiled=None):
        self.m, self.dtype, self.quant, self.block = model, dtype, False, compiled or block

    def params(self, b):
        d = self.dtype
        w = lambda m: ((fake(m.weight, "f8") if self.quant else m.weight).to(d), m.bias.to(d))
        p = dict(table=b.scale_shift_table)
        for i, a in ((1, b.attn1), (2, b.attn2)):
            p |= {f"q{i}": w(a.to_q), f"k{i}": w(a.to_k), f"v{i}": w(a.to_v), f"o{i}": w(a.to_out[0]),
                  f"nq{i}": a.norm_q.weight, f"nk{i}": a.norm_k.weight}
        return p | dict(f1=w(b.ff.net[0].proj), f2=w(b.ff.net[2]))

    def __call__(self, z, sigma, clean, states, mask, cos, sin):
        """z [b, s, 128]; sigma [b]; clean [b, s] bool: tokens at timestep 0; states [b, n, 128]; mask [b, n]."""
        m, d = self.m, self.dtype
        lin = lambda l, v: F.linear(v, l.weight.to(d), l.bias.to(d))
        t = torch.stack([sigma, torch.zeros_like(sigma)], 1) * 1000
        freq = torch.exp(-math.log(10000) * torch.arange(128, device=z.device) / 128)
        e = torch.cat([(t[..., None] * freq).cos(), (t[..., None] * freq).sin()], -1)
        te = m.time_embed.emb.timestep_embedder                      # in f32: two rows a sample, so it costs nothing
        e = te.linear_2(F.silu(te.linear_1(e)))
        temb = m.time_embed.linear(F.silu(e)).unflatten(-1, (6, -1))
        ctx = lin(m.caption_projection.linear_2,
                  F.gelu(lin(m.caption_projection.linear_1, states.to(d)), approximate="tanh"))
        bias = ((1 - mask.float()) * -10000.).to(d)[:, None, None].expand(-1, -1, z.shape[1], -1)
        x, clean = lin(m.proj_in, z.to(d)), clean[..., None]
        for b in m.transformer_blocks:
            x = self.block(x, ctx, bias, temb, clean, cos, sin, self.params(b))
        shift, scale = (m.scale_shift_table + e[:, :, None]).unbind(2)
        pick = lambda v: torch.where(clean, v[:, 1:2], v[:, 0:1])
        x = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * (1 + pick(scale)) + pick(shift)
        return lin(m.proj_out, x.to(d)).float()
