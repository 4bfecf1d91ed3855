"""Train the VAE: python train_vae.py --seconds 600 --out FOLDER --state FILE"""
import argparse
import pathlib
import random

import torch
import torch.nn.functional as F

import export
import judge
import lean
import models
import world
from loop import Trainer


def weights(mask):
    """1 on the background, more around the object, most at its edge: edges are what a viewer sees first."""
    m = mask.flatten(0, 1)[:, None]
    grow = lambda v, n: F.max_pool2d(v, 2 * n + 1, 1, n)
    near, edge = grow(m, 5), grow(m, 1) + grow(-m, 1)
    return (1 + 7 * near + 10 * edge).view_as(mask)[:, None]


def psnr(d, m=None):
    """dB of a difference d in -1..1 units, [b, 3, t, h, w], of a peak of 2; over a mask [b, t, h, w] if given."""
    d = d.float().pow(2) / 4
    return -10 * torch.log10(d.mean() if m is None else (d * m[:, None]).sum() / m.sum() / 3)


def shapes(part, rng, tiny):
    """(frames, height, width, batch) by the part of the time gone: long clips and other sizes come late."""
    if tiny:
        return rng.choice([(9, 64, 64, 2), (17, 64, 96, 1)])
    a, b, c = (9, 160, 256, 16), (17, 160, 256, 9), (33, 160, 256, 5)
    whole, other = (121, 160, 256, 2), (17, 256, 256, 6)
    if part < .45:
        return rng.choice([a, a, b])
    # Short clips alone leave ghosts in long ones: the receptive field in time is far wider than 17 frames.
    return rng.choice([b, b, c, c, whole, whole, whole, whole, other])


@torch.no_grad()
def measure(vae, device, tiny, clips=16, picture=None):
    """Held-out worlds, 121 frames (or fewer when tiny), decoded as the product decodes; also the latents' spread."""
    w, h, t = (96, 64, 17) if tiny else (256, 160, 121)
    wd, g = world.World(w, h, device), torch.Generator().manual_seed(99)
    rows = world.combinations()[1][:clips].to(device)
    xy = torch.rand(2, clips, generator=g).to(device)
    whole, inside, std = [], [], []
    for i in range(0, clips, 2):
        x, m = wd.render(wd.place(rows[i:i + 2], xy[0, i:i + 2], xy[1, i:i + 2]), t)
        z = vae.encode(x)
        zn = (1 - models.DECODE_NOISE) * z + models.DECODE_NOISE * torch.randn(z.shape, generator=g).to(device)
        y = vae.decode(zn, torch.full((len(x),), models.DECODE_TIMESTEP, device=device)).clamp(-1, 1)
        if picture and i == 0:
            judge.sheet([v for p in zip(x, y) for v in p], picture)
        for j in range(len(x)):
            whole.append(psnr((y - x)[j:j + 1]))
            inside.append(psnr((y - x)[j:j + 1], m[j:j + 1]))
        std.append(z.std())
    mean = lambda v: round(float(torch.stack(v).mean()), 2)
    return dict(db=mean(whole), object_db=mean(inside), worst_db=round(float(torch.stack(whole).min()), 2),
                latent_std=mean(std))


@torch.no_grad()
def statistics(vae, device, tiny, clips=192):
    """Mean and standard deviation of each latent channel over training clips, into the model's buffers."""
    w, h, t, b = (96, 64, 17, 1) if tiny else (256, 160, 121, 4)
    wd = world.World(w, h, device)
    z = torch.cat([vae.encode(wd.render(wd.sample(b), t)[0]) for _ in range(2 if tiny else clips // b)])
    vae.m.latents_mean.copy_(z.mean((0, 2, 3, 4)))
    vae.m.latents_std.copy_(z.std((0, 2, 3, 4)).clamp_min(1e-3))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--seconds", type=float, default=600)
    a.add_argument("--out", default="out")
    a.add_argument("--state", default="vae.state")
    a.add_argument("--init", help="a folder with an earlier export to start from")
    a.add_argument("--tiny", action="store_true")
    a.add_argument("--every", type=float, default=50)
    a = a.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    torch.backends.cudnn.benchmark = True
    out = pathlib.Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    model = (export.load(a.init, "vae") if a.init else models.vae()).to(device).requires_grad_(True)
    model.decoder.timestep_scale_multiplier.requires_grad_(False)
    vae = lean.Vae(model, torch.bfloat16 if device == "cuda" else torch.float32)
    params = [p for p in model.parameters() if p.requires_grad]
    tr = Trainer(params, 1.1e-3 if a.init else 1.5e-3, a.seconds, a.state, out / "vae.jsonl", ema=.998)
    worlds = {}

    def loss(shape):
        t, h, w, b = shape
        x, m = worlds[shape].render(worlds[shape].sample(b), t)
        z = vae.encode(x)
        # Mostly exactly what the product decodes with (noise .025, timestep .05), sometimes others near it; and a
        # little unannounced noise, so that the decoder forgives the transformer small errors.
        usual = torch.rand(b, device=device) < .8
        ts = torch.where(usual, models.DECODE_TIMESTEP, torch.rand(b, device=device) * .1)
        ns = (ts * models.DECODE_NOISE / models.DECODE_TIMESTEP)[:, None, None, None, None]
        extra = .06 * torch.rand(b, 1, 1, 1, 1, device=device)
        y = vae.decode((1 - ns) * z + ns * torch.randn_like(z) + extra * torch.randn_like(z), ts)
        d = y - x
        wt = weights(m)
        rec = ((d.abs() + 2 * d * d) * wt).mean()
        size = z.pow(2).mean()
        figures = dict(db=psnr(d.detach().clamp(-2, 2)), object_db=psnr(d.detach(), m), latent=size.sqrt())
        return rec + 1e-4 * size + 1e-2 * F.relu(size - 1), figures

    rng, saved = random.Random(tr.step), 0.

    def export_now(final=False):
        tr.swap()
        if final or tr.part() > .5:
            statistics(vae, device, a.tiny)
        size = export.save(out, vae=model)
        shipped = lean.Vae(export.load(out, "vae", device), vae.dtype)
        tr.write(**measure(shipped, device, a.tiny, 4 if a.tiny else 32 if final else 8,
                           out / "vae.png"), bytes=size["vae"], held_out=True)
        tr.swap()
        tr.save()

    while tr.part() < 1:
        quant = tr.part() > .82
        if quant != vae.quant:
            vae.quant = quant
            tr.drop_graphs()
        shape = shapes(max(tr.part(), .45 * bool(a.init)), rng, a.tiny)
        if shape not in worlds:
            worlds[shape] = world.World(shape[2], shape[1], device)
        tr.run(loss, shape, quant)
        if tr.step % (2 if a.tiny else 250) == 0:
            tr.write(lr=round(float(tr.lr), 6), shape=shape, **{k: round(float(v), 3) for k, v in tr.figures.items()})
        if tr.time() - saved > a.every:
            export_now()
            saved = tr.time()
    tr.drop_graphs()
    vae.quant = False
    export_now(final=True)


if __name__ == "__main__":
    main()
