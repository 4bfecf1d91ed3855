"""The last training of the transformer: clips that a film leads up to, python train_clips.py --init FOLDER --out FOLDER

A clip in the middle or at the end of a window is held as LTXConditionPipeline holds it: its first two latents as
tokens of their own at the clip's times, the others in their places. Where the clip goes and what the caption says
leave one film only, so the model walks its own eight-step paths and at every state learns the velocity that leads
to the true latents. The other half of the steps keeps what the model can do: without a clip it learns what a frozen
copy of it says on the same states.
"""
import argparse
import pathlib
import random
import shutil

import torch

import export
import judge
import lean
import models
import rollout
import text
import train_dit
import world
from loop import Trainer

PREFIX = 2                                   # latents of a clip that are tokens of their own
LONGEST = 9                                  # latents of the longest clip
FULL = 16                                    # latents of a window
# (latents of the window, first latent of the clip, its latents): mostly at the end; 1 is a picture.
CLIPS = ((16, 9, 7), (16, 7, 9), (16, 11, 5), (16, 12, 4), (16, 13, 3), (16, 14, 2), (16, 4, 4), (16, 9, 1), (11, 7, 4),
         (11, 4, 1))
TINY_CLIPS = ((4, 1, 3), (4, 2, 2), (4, 2, 1))


class ClipPool(train_dit.Pool):
    """Clips of which each also has latents of its own for what is shown from latent `first` on."""

    def __init__(self, clips, n, *rest, **more):
        super().__init__(n, *rest, **more)
        self.starts = sorted({k for _, k, _ in clips})
        self.first = torch.zeros(n, dtype=torch.long, device=self.z.device)
        self.clip = torch.zeros(n, LONGEST, *self.z.shape[2:], dtype=torch.bfloat16, device=self.z.device)

    @torch.no_grad()
    def made(self, i, x):
        b, k = len(x), self.starts[i // self.chunk % len(self.starts)]
        n = min(self.grid[0] - k, LONGEST)
        y = x[:, :, 8 * k:8 * (k + n - 1) + 1]
        if self.rng.random() < .5:                       # what a renderer has: decoded, and encoded again
            y = judge.decode(self.vae, self.vae.encode(y))
        self.clip[i:i + b, :n] = self.encode(y)
        self.first[i:i + b] = k


def draw_clips(pool, b, shape):
    """Latents, held tokens, captions: of clips whose own latents begin where `shape` wants it."""
    frames, first, n = shape
    dev = pool.z.device
    some = (pool.first == first).nonzero()[:, 0]
    k = some[torch.randint(0, len(some), (b,), device=dev)]
    z, clip = pool.z[k, :frames].float(), pool.clip[k, :n].float()
    clip = clip + .04 * torch.rand(b, 1, 1, 1, device=dev) * torch.randn_like(clip)
    # A picture says nothing of motion: only the main grammar says all of it.
    which = torch.randint(0, 3, (b,), device=dev) * (torch.rand(b, device=dev) < .4) * (n > 1)
    ids = pool.ids[k, which]
    empty = torch.zeros_like(ids)
    empty[:, 0].fill_(1)
    ids = torch.where((torch.rand(b, device=dev) < train_dit.EMPTY * (n > 1))[:, None], empty, ids)
    lead = torch.where(torch.rand(b, device=dev) < .25, torch.randint(1, train_dit.LEAD + 1, (b,), device=dev), 0)
    at = torch.arange(frames, device=dev)[None]
    inside = (at >= first + PREFIX) & (at < first + n)
    given = z.clone()
    given[:, first + PREFIX:first + n] = clip[:, PREFIX:]
    clean = (at < lead.clamp_max(first)[:, None]) | inside
    return z, given, clean, clip[:, :PREFIX], ids, pool.shown[k, :frames].flatten(1)


class Clips(rollout.Paths):
    """Paths of one clip's place, whose end is known."""

    def __init__(self, n, shape, pool, te):
        self.shape = shape
        super().__init__(n, shape[0], pool, None, te, True, None, 1.)
        own = lean.rope(min(shape[2], PREFIX), *pool.grid[1:], True, device=pool.z.device, start=8 * shape[1])
        self.cs = [torch.cat(v) for v in zip(self.cs, own)]

    @torch.no_grad()
    def fresh(self):
        z, given, clean, own, ids, shown = draw_clips(self.pool, self.n, self.shape)
        s = z.shape[2]
        x, given, own = z.flatten(1, 2), given.flatten(1, 2), own.flatten(1, 2)
        clean = clean.repeat_interleave(s, 1)
        start = torch.where(clean[..., None], given, torch.randn_like(x))
        self.new = torch.cat([x, own], 1), torch.cat([shown, torch.zeros_like(own[..., 0], dtype=torch.bool)], 1)
        if not hasattr(self, "end"):
            self.end, self.shown = self.new
        held = torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)
        zero = torch.zeros(self.n, dtype=torch.long, device=z.device)
        return (torch.cat([start, own], 1), torch.cat([clean, held], 1), ids, zero,
                torch.rand(self.n, device=z.device) < .75)

    def target(self, here, there, said):
        return (self.z - self.end) / here[:, None, None]

    def heavy(self):
        return 1 + (train_dit.ON_OBJECT - 1) * self.shown * (self.at >= rollout.JUMP)[:, None]

    def replaced(self, done):
        self.end = torch.where(done[:, None, None], self.new[0], self.end)
        self.shown = torch.where(done[:, None], self.new[1], self.shown)


class Kept(rollout.Paths):
    """Paths without a clip, on which the model is to stay what it was."""

    def target(self, here, there, said):
        return self.teacher(self.z, here, self.clean, *said, *self.cs)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--seconds", type=float, default=400)
    a.add_argument("--init", default=str(export.ROOT), help="the folder to start from")
    a.add_argument("--out", default="out")
    a.add_argument("--state", default="clips.state")
    a.add_argument("--tiny", action="store_true")
    a.add_argument("--every", type=float, default=100)
    a.add_argument("--batch", type=int, default=128)
    a.add_argument("--pool", type=int, default=3584)
    a.add_argument("--rate", type=float, default=3e-4)
    a = a.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(4)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    out, rng, tok = pathlib.Path(a.out), random.Random(5), text.Tokenizer()
    if not (out / "vae").exists():
        shutil.copytree(a.init, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("train"))
    vae = lean.Vae(export.load(a.init, "vae", device), dtype)
    d, te = export.load(a.init, "transformer", device), export.load(a.init, "text_encoder", device)
    d.requires_grad_(True)
    torch._dynamo.config.cache_size_limit = 32
    dit = lean.Dit(d, dtype, torch.compile(lean.block) if device == "cuda" else None)
    teacher, dit.quant = rollout.teacher_of(dit), True
    clips = TINY_CLIPS if a.tiny else CLIPS
    frames, size, chunk = (25, (96, 64), 4) if a.tiny else (121, (256, 160), 8)
    pool = ClipPool(clips, 16 if a.tiny else a.pool, *size, vae, tok, device, rng, frames, chunk)
    pool.refresh(pool.n)
    tr = Trainer(list(d.parameters()), a.rate, a.seconds, a.state, out / "dit.jsonl", betas=(.9, .97), decay=.01,
                 ema=.998, warm=100, graphs=False)
    keep = lambda f, causal: Kept(a.batch, f, pool, train_dit.paths_batch, te, causal, teacher, 1.)
    full = pool.grid[0]
    shorter = (2, 3) if a.tiny else (11, 7)
    kinds = [(.25, keep(full, True)), (.06, keep(full, False)), (.05, keep(shorter[0], True)),
             (.04, keep(shorter[1], True)), *[(.6 / len(clips), Clips(a.batch, c, pool, te)) for c in clips]]
    saved, losses = tr.time(), {}
    while tr.part() < 1:
        paths = rng.choices([k for _, k in kinds], [p for p, _ in kinds])[0]
        tr.run(lambda _: paths.loss(dit), None)
        losses[getattr(paths, "shape", "kept")] = tr.figures["loss"]
        if tr.step % 8 == 0:
            pool.refresh(pool.chunk)
        if tr.step % (3 if a.tiny else 200) == 0:
            tr.write(stage="clips", lr=round(float(tr.lr), 6),
                     **{str(k): round(float(v), 5) for k, v in sorted(losses.items(), key=str)})
        if tr.time() - saved > a.every:
            export_now(a, tr, d, out, device)
            saved = tr.time()
    export_now(a, tr, d, out, device)


def export_now(a, tr, d, out, device):
    tr.swap()
    export.save(out, transformer=d)
    tr.write(**judge.quick(out, device, a.tiny, guidance=1.), arriving=judge.arriving(out, device, a.tiny))
    tr.swap()
    tr.save()


if __name__ == "__main__":
    main()
