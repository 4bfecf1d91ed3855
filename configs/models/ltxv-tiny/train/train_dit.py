"""Train the transformer and the text encoder: python train_dit.py --seconds 840 --own 400 --out FOLDER --state FILE

FOLDER holds the finished VAE. Rectified flow, v = noise - x0, on normalised latents, for the first --seconds; then
--own seconds on the model's own eight-step paths (rollout.py). Clips are encoded once into a pool that is refreshed
all the time.
"""
import argparse
import pathlib
import random

import torch

import export
import judge
import lean
import models
import rollout
import text
import world
from loop import Trainer

EMPTY = .1                                   # captions left out, for guidance
LEAD = 4                                     # longest clean lead, in latents
OFTEN = {"s": (1., 1.25, 1.4), "z": (1.6, 1.)}   # what is hard is drawn more often: corners, small things
ON_OBJECT = 3.                               # weight of the tokens that show the object, once it is clear where it is


class Pool:
    """Latents of n clips of one frame size: the clip, a lead that went through pixels, three captions."""

    def __init__(self, n, width, height, vae, tok, device, rng, frames=121, chunk=8):
        self.n, self.vae, self.tok, self.rng, self.frames, self.chunk = n, vae, tok, rng, frames, chunk
        self.w = world.World(width, height, device)
        self.often = torch.ones(len(self.w.rows), device=device)
        for key, factors in OFTEN.items():
            self.often *= torch.tensor(factors, device=device)[self.w.rows[:, world.KEYS.index(key)]]
        f, s = frames // 8 + 1, width * height // 1024
        self.grid = (f, height // 32, width // 32)
        self.z = torch.zeros(n, f, s, 128, dtype=torch.bfloat16, device=device)
        self.shown = torch.zeros(n, f, s, dtype=torch.bool, device=device)
        self.lead = torch.zeros(n, LEAD, s, 128, dtype=torch.bfloat16, device=device)
        self.count = torch.zeros(n, dtype=torch.long, device=device)
        self.ids = torch.zeros(n, 3, text.TOKENS, dtype=torch.long, device=device)
        self.at = 0

    def encode(self, x):
        return judge.pack(self.vae, self.vae.encode(x))

    def tokens(self, m):
        """Which latents show a part of the object, from its mask [b, t, h, w]: frame 0, then eight frames each."""
        m = torch.nn.functional.max_pool2d(m, 32)
        later = m[:, 1:].unflatten(1, (-1, 8)).amax(2)
        return torch.cat([m[:, :1], later], 1).flatten(2) > .1

    @torch.no_grad()
    def refresh(self, n):
        """Replace the n oldest clips.

        The lead is what a renderer has between windows: an earlier clip, encoded and decoded, its last
        8(O-1)+1 frames encoded again; the clip itself starts with exactly those frames.
        """
        for _ in range(0, n, self.chunk):
            i, b = self.at, min(self.chunk, self.n - self.at)
            a, o = self.w.sample(b, self.often), self.rng.choice([1, 2, 3, 3, 4])
            x, m = self.w.render(a, self.frames)
            self.z[i:i + b], self.shown[i:i + b] = self.encode(x), self.tokens(m)
            tail = 8 * (o - 1)
            before = min(self.frames, 49) - 1
            y = judge.decode(self.vae, self.vae.encode(self.w.render(a, before + 1, tail - before)[0]))
            self.lead[i:i + b, :o] = self.encode(y[:, :, before - tail:])
            self.count[i:i + b] = o
            rows = torch.stack([a[k] for k in world.KEYS], 1).tolist()
            lines = [f(r) for r in rows for f in (world.caption, *[lambda r: world.paraphrase(r, self.rng)] * 2)]
            self.ids[i:i + b] = self.tok(lines).view(b, 3, -1).to(self.ids.device)
            self.made(i, x)
            self.at = (i + b) % self.n

    def made(self, i, x):
        """Videos x are what clips i and on show now."""


def timesteps(b, device):
    """Half near the distilled values, a quarter shifted to noise, a quarter uniform."""
    s = torch.cat([torch.linspace(1, 1, 1, device=device) * v for v in (*models.SIGMAS, .2)])
    i = torch.randint(0, len(models.SIGMAS), (b,), device=device)
    r = torch.rand(b, device=device) - .5
    near = (s[i] + r * .6 * (s[i] - s[i + 1])).clamp_max(1)
    kind, u = torch.rand(b, device=device), torch.rand(b, device=device)
    shifted = torch.sigmoid(torch.randn(b, device=device) + 1.2)
    return torch.where(kind < .5, near, torch.where(kind < .75, shifted, u))


def batch(pool, b, frames):
    """Everything random of a step: latents, clean leads and which tokens are clean, captions."""
    dev = pool.z.device
    k = torch.randint(0, pool.n, (b,), device=dev)
    z = pool.z[k, :frames].float()
    which, u = torch.randint(0, 3, (b,), device=dev), torch.rand(b, device=dev)
    which = torch.where(u < .4, 0, which)                            # the main grammar: 0.4 + 0.6 / 3 = 0.6
    ids = pool.ids[k, which]
    empty = torch.zeros_like(ids)
    empty[:, 0].fill_(1)
    ids = torch.where((torch.rand(b, device=dev) < EMPTY)[:, None], empty, ids)
    kind = torch.rand(b, device=dev)
    free = kind < .5
    through = kind > .75                                             # half of the led samples went through pixels
    n = torch.where(through, pool.count[k], torch.randint(1, LEAD + 1, (b,), device=dev))
    n = torch.where(free, 0, n).clamp_max(frames - 1)
    clean = torch.arange(frames, device=dev)[None] < n[:, None]      # [b, f]
    noisy_lead = pool.lead[k].float()
    noisy_lead = noisy_lead + .06 * torch.rand(b, 1, 1, 1, device=dev) * torch.randn_like(noisy_lead)
    lead = z.clone()
    m = min(LEAD, frames)
    lead[:, :m] = torch.where(through[:, None, None, None], noisy_lead[:, :m], z[:, :m])
    return z, lead, clean, ids, pool.shown[k, :frames].flatten(1)


def paths_batch(pool, b, frames):
    """What a path starts with: `batch` without the weights."""
    return batch(pool, b, frames)[:4]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--seconds", type=float, default=840)
    a.add_argument("--out", default="out")
    a.add_argument("--state", default="dit.state")
    a.add_argument("--tiny", action="store_true")
    a.add_argument("--every", type=float, default=120)
    a.add_argument("--batch", type=int, default=128)
    a.add_argument("--pool", type=int, default=6144)
    a.add_argument("--rate", type=float, default=1.5e-3)
    a.add_argument("--init", help="a folder with an earlier export to start from")
    a.add_argument("--own", type=float, default=400)
    a.add_argument("--own-rate", type=float, default=3e-4)
    a.add_argument("--guidance", type=float, default=2.)
    a = a.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(2)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    out, rng, tok = pathlib.Path(a.out), random.Random(3), text.Tokenizer()
    vae = lean.Vae(export.load(out, "vae", device), dtype)
    d, te = models.dit().to(device), models.t5(tok.sp.get_piece_size()).to(device)
    te.shared.weight.data.mul_(.3)
    if a.init:
        d.load_state_dict(export.load(a.init, "transformer").state_dict())
        te.load_state_dict(export.load(a.init, "text_encoder").state_dict())
    params = list(d.parameters()) + [p for n, p in te.named_parameters() if "embed_tokens" not in n]
    tr = Trainer(params, a.rate, a.seconds, a.state, out / "dit.jsonl", betas=(.9, .97), decay=.01, ema=.9995, warm=500)
    torch._dynamo.config.cache_size_limit = 32
    compiled = torch.compile(lean.block) if device == "cuda" else None
    dit = lean.Dit(d, dtype, compiled)
    sizes = {(96, 64): 8} if a.tiny else {(256, 160): a.pool, (192, 128): 384, (256, 256): 384, (320, 192): 384}
    frames = 25 if a.tiny else 121
    pools = {}
    for (w, h), n in sizes.items():
        pools[w, h] = Pool(n, w, h, vae, tok, device, rng, frames, 4 if a.tiny else 8)
        pools[w, h].refresh(n)
        tr.write(pool=f"{w}x{h}", clips=n)
    main_pool = next(iter(pools.values()))
    ropes = {}

    def loss(shape):
        size, f, b = shape
        z, lead, clean, ids, shown = batch(pools[size], b, f)
        z, lead, clean = z.flatten(1, 2), lead.flatten(1, 2), clean.repeat_interleave(z.shape[2], 1)
        t = timesteps(b, device)
        noise = torch.randn_like(z)
        zt = torch.where(clean[..., None], lead, z + t[:, None, None] * (noise - z))
        mask = (ids > 0).float()
        v = dit(zt, t, clean, lean.t5(te, ids), mask, *ropes[shape])
        e = (v - (noise - z)).pow(2).mean(-1) * ~clean
        heavy = 1 + (ON_OBJECT - 1) * shown * (t < .9)[:, None]
        mean = (e * heavy).sum() / (~clean).sum()
        late = (t < .8)[:, None] * ~clean
        return mean, dict(late=(e * late).sum() / late.sum().clamp_min(1))

    def pick():
        """Mostly 121 frames at 256x160; a fifth fewer latents, an eighth another size."""
        size, f, u = next(iter(pools)), main_pool.grid[0], rng.random()
        if not a.tiny and u < .125:
            size = rng.choice(list(pools)[1:])
        elif u < .325:
            f = rng.choice([2, 3] if a.tiny else [4, 7, 10, 13])
        return size, f, a.batch

    def export_now(tr, guidance, final=False):
        tr.swap()
        size = export.save(out, transformer=d, text_encoder=te)
        if not final:
            tr.write(**judge.quick(out, device, a.tiny, guidance=guidance), bytes=sum(size.values()))
        tr.swap()
        tr.save()

    saved = tr.time()
    while tr.part() < 1:
        quant = not a.own and tr.part() > .8
        if quant != dit.quant:
            dit.quant = quant
            tr.drop_graphs()
        shape = pick()
        if shape not in ropes:
            grid = (shape[1], *pools[shape[0]].grid[1:])
            ropes[shape] = [c.clone() for c in lean.rope(*grid, True, device=device)]
            ropes[shape, 0], ropes[shape, 1] = (lean.rope(*grid, c, device=device) for c in (False, True))
        # Both conventions for the latents' times are in use (see lean.rope): learn both, most often the causal one.
        for c, new in zip(ropes[shape], ropes[shape, int(rng.random() < .67)]):
            c.copy_(new)
        tr.run(loss, shape, quant)
        if tr.step % 25 == 0 and tr.part() < .97:
            main_pool.refresh(main_pool.chunk)
        if tr.step % (3 if a.tiny else 500) == 0:
            tr.write(lr=round(float(tr.lr), 6), shape=shape, **{k: round(float(v), 4) for k, v in tr.figures.items()})
        if tr.time() - saved > a.every:
            export_now(tr, a.guidance)
            saved = tr.time()
    tr.drop_graphs()
    export_now(tr, a.guidance, final=not a.own)
    if a.own:
        tr.swap()                                        # go on from the moving average, and learn from it
        own_paths(a, dit, te, main_pool, rng, export_now)


def own_paths(a, dit, te, pool, rng, export_now):
    """The stage of rollout.py. The text encoder stays as it is; half of the steps' weights are trained rounded."""
    out, b, full = pathlib.Path(a.out), a.batch, pool.grid[0]
    teacher = rollout.teacher_of(dit)
    # The teacher above is what training ended with, whatever an interrupted stage has left in its own state.
    tr = Trainer(list(dit.m.parameters()), a.own_rate, a.own, pathlib.Path(a.state).with_suffix(".own"),
                 out / "dit.jsonl", betas=(.9, .97), decay=.01, ema=.998, warm=100, graphs=False)
    dit.quant = True
    start = lambda f, causal: rollout.Paths(b, f, pool, paths_batch, te, causal, teacher, a.guidance)
    shorter = (2, 3) if a.tiny else (11, 7)
    kinds = [(.6, start(full, True)), (.15, start(full, False)), (.15, start(shorter[0], True)),
             (.1, start(shorter[1], True))]
    saved = tr.time()
    while tr.part() < 1:
        paths = rng.choices([k for _, k in kinds], [p for p, _ in kinds])[0]
        tr.run(lambda _: paths.loss(dit), None)
        if tr.step % 8 == 0:
            pool.refresh(pool.chunk)
        if tr.step % (3 if a.tiny else 100) == 0:
            tr.write(lr=round(float(tr.lr), 6), own=True, **{k: round(float(v), 5) for k, v in tr.figures.items()})
        if tr.time() - saved > a.every:
            export_now(tr, 1.)
            saved = tr.time()
    export_now(tr, 1.)


if __name__ == "__main__":
    main()
