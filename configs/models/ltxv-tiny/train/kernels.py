"""Triton kernel: PixelNorm, modulation and SiLU in one pass, forward and backward.

In plain PyTorch this is some ten passes over the largest tensors of the VAE, more than its convolutions cost.
"""
import torch
import triton
import triton.language as tl

ROWS, LOOP = 32, 8                              # rows a tile, tiles a program


@triton.jit
def forward_kernel(x, y, scale, shift, rows, C: tl.constexpr, CP: tl.constexpr, MOD: tl.constexpr,
                   ROWS: tl.constexpr, LOOP: tl.constexpr):
    b, c = tl.program_id(1).to(tl.int64), tl.arange(0, CP)
    s, h = tl.zeros([CP], tl.float32), tl.zeros([CP], tl.float32)
    if MOD:
        s, h = tl.load(scale + b * C + c, c < C, 0.), tl.load(shift + b * C + c, c < C, 0.)
    for i in range(LOOP):
        r = (tl.program_id(0) * LOOP + i) * ROWS + tl.arange(0, ROWS)
        at = (b * rows + r)[:, None] * C + c[None]
        ok = (r < rows)[:, None] & (c < C)[None]
        v = tl.load(x + at, ok, 0.).to(tl.float32)
        v = v * tl.rsqrt(tl.sum(v * v, 1) / C + 1e-8)[:, None]
        v = v * (1 + s)[None] + h[None]
        tl.store(y + at, v * tl.sigmoid(v), ok)


@triton.jit
def backward_kernel(x, dy, dx, scale, shift, part, rows, blocks, C: tl.constexpr, CP: tl.constexpr,
                    MOD: tl.constexpr, ROWS: tl.constexpr, LOOP: tl.constexpr):
    b, c = tl.program_id(1).to(tl.int64), tl.arange(0, CP)
    s, h = tl.zeros([CP], tl.float32), tl.zeros([CP], tl.float32)
    ds, dh = tl.zeros([CP], tl.float32), tl.zeros([CP], tl.float32)
    if MOD:
        s, h = tl.load(scale + b * C + c, c < C, 0.), tl.load(shift + b * C + c, c < C, 0.)
    for i in range(LOOP):
        r = (tl.program_id(0) * LOOP + i) * ROWS + tl.arange(0, ROWS)
        at = (b * rows + r)[:, None] * C + c[None]
        ok = (r < rows)[:, None] & (c < C)[None]
        v = tl.load(x + at, ok, 0.).to(tl.float32)
        g = tl.load(dy + at, ok, 0.).to(tl.float32)
        inv = tl.rsqrt(tl.sum(v * v, 1) / C + 1e-8)[:, None]
        n = v * inv
        u = n * (1 + s)[None] + h[None]
        sig = tl.sigmoid(u)
        du = g * sig * (1 + u * (1 - sig))
        ds += tl.sum(du * n, 0)
        dh += tl.sum(du, 0)
        dn = du * (1 + s)[None]
        tl.store(dx + at, inv * (dn - n * (tl.sum(dn * n, 1) / C)[:, None]), ok)
    if MOD:
        p = part + (b * blocks + tl.program_id(0)) * 2 * C + c
        tl.store(p, ds, c < C)
        tl.store(p + C, dh, c < C)


class PixelNormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift):
        x, mod = x.contiguous(), scale is not None
        scale, shift = (scale.float().contiguous(), shift.float().contiguous()) if mod else (x, x)
        y, c, rows = torch.empty_like(x), x.shape[-1], x[0].numel() // x.shape[-1]
        grid = (triton.cdiv(rows, ROWS * LOOP), x.shape[0])
        forward_kernel[grid](x, y, scale, shift, rows, c, triton.next_power_of_2(c), mod, ROWS, LOOP)
        ctx.save_for_backward(x, scale, shift)
        ctx.mod = mod
        return y

    @staticmethod
    def backward(ctx, dy):
        x, scale, shift = ctx.saved_tensors
        dy, dx, c, rows = dy.contiguous(), torch.empty_like(x), x.shape[-1], x[0].numel() // x.shape[-1]
        grid = (triton.cdiv(rows, ROWS * LOOP), x.shape[0])
        part = torch.empty(x.shape[0], grid[0], 2, c, device=x.device) if ctx.mod else scale
        backward_kernel[grid](x, dy, dx, scale, shift, part, rows, grid[0], c, triton.next_power_of_2(c), ctx.mod,
                              ROWS, LOOP)
        if not ctx.mod:
            return dx, None, None
        ds, dh = part.sum(1).unbind(1)
        return dx, ds, dh


def pixel_norm_silu(x, scale=None, shift=None):
    """SiLU(PixelNorm(x) * (1 + scale) + shift) over the last axis of [b, ..., c]; scale and shift [b, c]."""
    return PixelNormSilu.apply(x, scale, shift)
