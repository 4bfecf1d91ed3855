"""The shapes of kernels.rs in PyTorch: prints milliseconds (best of several runs) and GFLOP/s.

    OMP_NUM_THREADS=2 python kernels_torch.py
"""

import time

import torch
import torch.nn.functional as F

CONVS = [
    (24, 24, 121, 40, 64),
    (24, 48, 121, 40, 64),
    (48, 48, 61, 20, 32),
    (48, 192, 61, 20, 32),
    (96, 96, 31, 10, 16),
    (192, 192, 16, 5, 8),
    (16, 16, 121, 40, 64),
    (32, 32, 61, 20, 32),
    (64, 64, 31, 10, 16),
    (128, 128, 16, 5, 8),
    (128, 512, 16, 5, 8),
    (64, 256, 31, 10, 16),
    (32, 128, 61, 20, 32),
    (16, 48, 121, 40, 64),
    (48, 16, 121, 40, 64),
]
LINEARS = [(640, 256, 256), (640, 256, 1024), (640, 1024, 256), (2048, 2048, 2048), (1, 256, 1536)]
ATTENTIONS = [(4, 64, 640, 640), (4, 64, 640, 64), (2, 64, 22400, 22400)]
ROWS = (640, 256)


def best(work, seconds=1.5):
    work()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def report(name, seconds, flop):
    print(f"{name:40s} {seconds * 1e3:9.3f} ms {flop / seconds / 1e9:8.1f} GFLOP/s", flush=True)


@torch.inference_mode()
def main():
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for cin, cout, t, h, w in CONVS:
        conv = torch.nn.Conv3d(cin, cout, 3, padding=(0, 1, 1))
        flop = 2 * 27 * cin * cout * t * h * w
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            x = torch.randn(1, cin, t + 2, h, w).to(memory_format=layout)
            net = conv.to(memory_format=layout)
            tag = "nchw" if layout == torch.contiguous_format else "nhwc"
            report(f"conv {cin}->{cout} {t}x{h}x{w} {tag}", best(lambda: net(x)), flop)
    for m, k, n in LINEARS:
        net, x = torch.nn.Linear(k, n), torch.randn(m, k)
        report(f"linear {m}x{k}x{n}", best(lambda: net(x)), 2 * m * k * n)
    for heads, dim, lq, lk in ATTENTIONS:
        q, k, v = (torch.randn(1, n, heads, dim).transpose(1, 2) for n in (lq, lk, lk))
        work = lambda: F.scaled_dot_product_attention(q, k, v)
        report(f"attention {heads}x{dim} {lq}x{lk}", best(work), 4 * heads * dim * lq * lk)
    x = torch.randn(*ROWS)
    for name, work in [
        ("gelu_tanh", lambda: F.gelu(x, approximate="tanh")),
        ("silu", lambda: F.silu(x)),
        ("exp", lambda: torch.exp(x)),
        ("layer_norm", lambda: F.layer_norm(x, ROWS[1:])),
        ("rms_norm", lambda: F.rms_norm(x, ROWS[1:])),
    ]:
        report(f"{name} {ROWS[0]}x{ROWS[1]}", best(work, 0.5), x.numel())


main()
