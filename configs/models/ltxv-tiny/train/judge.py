"""Sample the shipped files and judge what comes out: python judge.py --out FOLDER [--clips 100] [--chains 16]

The detector sees frames only, never the prompt or the latents.
"""
import argparse
import json
import math
import pathlib

import numpy as np
import torch
from PIL import Image

import export
import lean
import models
import text
import world


def pack(vae, z):
    """Latents [b, c, f, h, w] to normalised tokens [b, f, h*w, c]."""
    v = lambda s: s.view(1, -1, 1, 1, 1)
    return ((z - v(vae.m.latents_mean)) / v(vae.m.latents_std)).flatten(3).permute(0, 2, 3, 1)


def unpack(vae, x, h, w):
    v = lambda s: s.view(1, -1, 1, 1, 1)
    return x.permute(0, 3, 1, 2).unflatten(3, (h, w)) * v(vae.m.latents_std) + v(vae.m.latents_mean)


def decode(vae, z):
    """As the product does: noise 0.025, timestep 0.05."""
    z = (1 - models.DECODE_NOISE) * z + models.DECODE_NOISE * torch.randn_like(z)
    return vae.decode(z, torch.full((len(z),), models.DECODE_TIMESTEP, device=z.device)).clamp(-1, 1)


class Model:
    def __init__(self, root, device, dtype=torch.float32):
        self.vae = lean.Vae(export.load(root, "vae", device), dtype)
        self.dit = lean.Dit(export.load(root, "transformer", device), dtype)
        self.t5, self.tok, self.device = export.load(root, "text_encoder", device), text.Tokenizer(), device

    @torch.no_grad()
    def sample(self, prompts, seed, f=16, h=5, w=8, lead=None, sigmas=models.SIGMAS, causal=True, guidance=1., clip=None):
        """Video [b, 3, 8f-7, 32h, 32w]; lead: clean leading latents, normalised tokens [b, n, h*w, 128].

        clip: (k, such latents): a clip that begins at frame 8k, held as LTXConditionPipeline does.
        """
        g = torch.Generator().manual_seed(seed)
        z = torch.randn(len(prompts), 128, f, h, w, generator=g).to(self.device).flatten(2).transpose(1, 2)
        clean = torch.zeros(z.shape[:2], dtype=torch.bool, device=self.device)
        if lead is not None:
            n = lead.shape[1] * lead.shape[2]
            z, clean[:, :n] = torch.cat([lead.flatten(1, 2), z[:, n:]], 1), True
        ids = self.tok(prompts).to(self.device)
        nothing = torch.zeros_like(ids)
        nothing[:, 0] = 1
        said = [(lean.t5(self.t5, i), (i > 0).float()) for i in (ids, nothing)]
        cs = lean.rope(f, h, w, causal, device=self.device)
        if clip is not None:
            k, given = clip
            at, own = slice((k + 2) * h * w, (k + given.shape[1]) * h * w), given[:, :2].flatten(1, 2)
            z[:, at], clean[:, at] = given[:, 2:].flatten(1, 2), True
            z, clean = torch.cat([z, own], 1), torch.cat([clean, torch.ones_like(own[..., 0], dtype=torch.bool)], 1)
            more = lean.rope(min(given.shape[1], 2), h, w, causal, device=self.device, start=8 * k)
            cs = [torch.cat(v) for v in zip(cs, more)]
        for a, b in zip(sigmas, (*sigmas[1:], 0.)):
            t = torch.full((len(z),), a, device=self.device)
            v = self.dit(z, t, clean, *said[0], *cs)
            if guidance != 1:
                u = self.dit(z, t, clean, *said[1], *cs)
                v = u + guidance * (v - u)
            z = z + torch.where(clean[..., None], 0., (b - a) * v)
        return decode(self.vae, unpack(self.vae, z[:, :f * h * w].unflatten(1, (f, h * w)), h, w))


class Detector:
    """Colour, background, shape, size, direction and speed of one clip [3, t, h, w] in -1..1."""

    def __init__(self, width, height, device):
        self.w = world.World(width, height, device)
        wd = self.w
        shape, size = torch.meshgrid(torch.arange(3, device=device), torch.arange(2, device=device), indexing="ij")
        self.shape, self.radius = shape.flatten(), wd.sizes[size.flatten()]
        mid = torch.tensor([width / 2., height / 2.], device=device)
        cx, cy = self.centre(wd.mask(self.shape, self.radius, mid[0].expand(6), mid[1].expand(6)))
        self.off = cx - mid[0], cy - mid[1]              # a triangle's centroid is not its reference point

    def centre(self, m):
        """Centroid on the torus, per frame."""
        def axis(p, total, weight):
            a = (p + .5) / total * 2 * math.pi
            return torch.atan2((weight * a.sin()).sum(-1), (weight * a.cos()).sum(-1)) % (2 * math.pi) / (2 * math.pi) * total
        x, y = torch.arange(self.w.w, device=m.device), torch.arange(self.w.h, device=m.device)
        return axis(x, self.w.w, m.sum(-2)), axis(y, self.w.h, m.sum(-1))

    def __call__(self, video):
        wd, v = self.w, (video.float().clamp(-1, 1) + 1) / 2
        grounds = wd.grounds[:, :, None, None] * wd.background()                         # [5, 3, h, w]
        some = v[:, ::12]
        far = torch.stack([(some - g[:, None]).abs().sum(0).flatten().median() for g in grounds])
        b = int(far.argmin())
        diff = v - grounds[b][:, None]
        fg = diff.pow(2).sum(0) > .03
        d = (v[:, None] - wd.colours.T[:, :, None, None, None]).pow(2).sum(0)           # [8, t, h, w]
        votes = torch.stack([((d.argmin(0) == c) & (d.min(0).values < .05) & fg).sum() for c in range(8)])
        c = int(votes.argmax())
        line = wd.colours[c][:, None, None] - grounds[b]
        alpha = ((diff * line[:, None]).sum(0) / line.pow(2).sum(0)).clamp(0, 1)        # coverage [t, h, w]
        alpha = torch.where(alpha < .15, 0., alpha)
        cx, cy = self.centre(alpha)
        wrap = lambda p, n: (p + n / 2) % n - n / 2
        ux = cx[0] + torch.cat([cx[:1] * 0, wrap(cx[1:] - cx[:-1], wd.w).cumsum(0)])     # unwrapped track
        uy = cy[0] + torch.cat([cy[:1] * 0, wrap(cy[1:] - cy[:-1], wd.h).cumsum(0)])
        t = torch.arange(len(ux), device=ux.device) / world.FPS
        slope = lambda u: ((t - t.mean()) * (u - u.mean())).sum() / (t - t.mean()).pow(2).sum()
        vel = torch.stack([slope(ux), slope(uy)])
        fit = lambda u: (u - u.mean() - slope(u) * (t - t.mean())).pow(2).mean()
        pick = slice(0, None, max(1, len(ux) // 12))
        px, py = cx[pick, None] - self.off[0], cy[pick, None] - self.off[1]
        templates = wd.mask(self.shape[None], self.radius[None], px, py)                # [n, 6, h, w]
        a = alpha[pick, None]
        iou = torch.minimum(a, templates).sum((-1, -2)) / torch.maximum(a, templates).sum((-1, -2)).clamp_min(1)
        best = int(iou.mean(0).argmax())
        area = alpha.sum((-1, -2))
        return dict(c=c, b=b, s=best // 2, z=best % 2, d=int((wd.dirs @ vel).argmax()),
                    v=int(vel.norm() > 65), moving=bool(vel.norm() > 12), iou=float(iou.mean(0).max()),
                    wobble=float((fit(ux) + fit(uy)).sqrt()), area=float(area.min() / area.max().clamp_min(1)),
                    track=torch.stack([ux, uy], 1).cpu())


class Frames:
    """Colour and shape in each frame by itself, as the product's own judge finds them (tests/src/detect.rs)."""

    def __init__(self, device):
        self.colours = torch.tensor(list(world.COLOURS.values()), device=device)

    def __call__(self, clip):
        """Of a clip [3, t, h, w] in -1..1: colour [t], shape [t], and whether anything was seen [t]."""
        v = (clip.float().clamp(-1, 1).transpose(0, 1) + 1) / 2
        ground = v.median(-1).values[..., None]
        diff = v - ground
        d = diff.norm(dim=1)
        far, nan = d > .12, torch.tensor(float("nan"), device=d.device)
        seen = far.sum((1, 2)) >= 60
        usual = torch.where(far, d, nan).flatten(1).nanmedian(1).values
        core = far & (d > .7 * usual[:, None, None])
        colour = torch.where(core[:, None], v, nan).flatten(2).nanmedian(2).values.nan_to_num()
        axis = colour[..., None, None] - ground
        share = (diff * axis).sum(1) / axis.pow(2).sum(1).clamp_min(1e-6)
        share = torch.where(share < .2, 0., share.clamp_max(1))
        return torch.cdist(colour, self.colours).argmin(1), self.shapes(share), seen

    def shapes(self, m):
        """The ideal shape that overlaps best with coverage [t, h, w]."""
        h, w = m.shape[1:]
        at = lambda n: torch.arange(n, device=m.device) + .5
        def mean(weight, n):
            a = at(n) / n * 2 * math.pi
            return torch.atan2((weight * a.sin()).sum(1), (weight * a.cos()).sum(1)) / (2 * math.pi) * n
        x, y = mean(m.sum(1), w), mean(m.sum(2), h)
        for _ in range(3):
            dx = ((at(w) - x[:, None] + w / 2) % w - w / 2)[:, None]
            dy = ((at(h) - y[:, None] + h / 2) % h - h / 2)[:, :, None]
            near = m * (dx.abs() <= 48) * (dy.abs() <= 48)
            total = near.sum((1, 2)).clamp_min(1e-6)
            sx, sy = (near * dx).sum((1, 2)) / total, (near * dy).sum((1, 2)) / total
            x, y = x + sx, y + sy
        dx, dy = dx - sx[:, None, None], dy - sy[:, None, None]
        spread = lambda q: (near * q * q).sum((1, 2)).clamp_min(1e-9)
        wide = (spread(dx) / spread(dy)).sqrt().clamp(.8, 1.25).sqrt()[:, None, None]
        dx, dy, best = dx / wide, dy * wide, []
        tall = .8 + .8 / .62
        for shape, unit, low in ((0, math.pi, 0.), (1, 3.24, 0.), (2, tall * tall / 1.7, .8 - tall / 3)):
            for f in (.94, .97, 1., 1.03, 1.06):
                r = (total / unit).sqrt()[:, None, None] * f
                e = dy + low * r
                inside = (r - torch.sqrt(dx * dx + e * e), r * .9 - torch.maximum(dx.abs(), e.abs()),
                          torch.minimum(r * .8 - e, (r * .8 - (dx.abs() * 1.7 - e) * .62) / 1.223))[shape]
                ideal = (inside.clamp(-.75, .75) / 1.5 + .5) * (dx.abs() < 52) * (dy.abs() < 52)
                best.append(torch.minimum(near, ideal).sum((1, 2)) / torch.maximum(near, ideal).sum((1, 2)))
        return torch.stack(best).argmax(0) // 5

    def steady(self, clip, row=None):
        """Whether every frame shows one colour and one shape, and those of `row` if given."""
        c, s, seen = self(clip)
        c0, s0 = (row[0], row[2]) if row is not None else (c.mode().values, s.mode().values)
        return bool((seen & (c == c0) & (s == s0)).all())


def compare(found, rows):
    """Shares of right answers."""
    n = len(found)
    share = lambda f: round(sum(f(x, dict(zip(world.KEYS, r))) for x, r in zip(found, rows)) / n, 4)
    same = lambda *ks: share(lambda x, r: all(x[k] == r[k] for k in ks) and ("d" not in ks or x["moving"]))
    mean = lambda k: round(sum(x[k] for x in found) / n, 3)
    return dict(clips=n, colour=same("c"), background=same("b"), colour_and_background=same("c", "b"), direction=same("d"),
                speed=same("v"), shape=same("s"), size=same("z"), all=same(*world.KEYS), iou=mean("iou"),
                wobble_px=mean("wobble"), steady_area=mean("area"))


def sheet(clips, path, frames=(0, 24, 48, 72, 96, 120), scale=1):
    """Rows of frames as one picture."""
    rows = [np.concatenate([((c[:, min(t, c.shape[1] - 1)].permute(1, 2, 0).float().cpu().numpy() + 1) * 127.5).round().astype(np.uint8)
                            for t in frames], 1) for c in clips]
    im = Image.fromarray(np.concatenate(rows))
    im = im if scale == 1 else im.resize((int(im.width * scale), int(im.height * scale)), Image.LANCZOS)
    im.save(path, optimize=True)


def chain(model, det, rows, windows, seed, tail=17):
    """Windows joined as the product does: the last 17 decoded frames encoded again as three clean latents."""
    prompts = [world.caption(r) for r in rows]
    film = model.sample(prompts, seed)
    joins = []
    for i in range(1, windows):
        with torch.no_grad():
            lead = pack(model.vae, model.vae.encode(film[:, :, -tail:]))
        new = model.sample(prompts, seed + i, lead=lead)
        joins.append(film.shape[2])
        film = torch.cat([film, new[:, :, tail:]], 2)
    found, errors = [], []
    for clip in film:
        x = det(clip)
        found.append(det(clip[:, -104:]))
        for j in joins:
            before = x["track"][j - 24:j].double()
            t = torch.arange(24.).double()
            a = torch.stack([torch.ones(24).double(), t], 1)
            fit = torch.linalg.lstsq(a, before).solution
            errors.append(float((fit[0] + fit[1] * 24 - x["track"][j]).norm()))
    e = torch.tensor(errors)
    return film, compare(found, rows) | dict(join_error_mean_px=round(float(e.mean()), 2),
                                             join_error_p95_px=round(float(e.quantile(.95)), 2),
                                             join_error_max_px=round(float(e.max()), 2))


def quick(root, device, tiny=False, clips=50, guidance=2.):
    """A short look during training."""
    model = Model(root, device, torch.bfloat16 if device == "cuda" else torch.float32)
    f, h, w = (4, 2, 3) if tiny else (16, 5, 8)
    rows = world.combinations()[1][:2 if tiny else clips].tolist()
    video = model.sample([world.caption(r) for r in rows], 5, f, h, w, guidance=guidance)
    det, each = Detector(w * 32, h * 32, device), Frames(device)
    sheet(video[:10], pathlib.Path(root) / "sample.png", scale=.5)
    steady = sum(each.steady(v, r) for v, r in zip(video, rows)) / len(rows)
    return compare([det(v) for v in video], rows) | dict(steady=round(steady, 3), guidance=guidance)


@torch.no_grad()
def arriving(root, device, tiny=False, clips=50, first=9):
    """Films of held-out worlds that lead up to a clip: what they keep, and how far they are from where they should be."""
    model = Model(root, device, torch.bfloat16 if device == "cuda" else torch.float32)
    f, h, w = (4, 2, 3) if tiny else (16, 5, 8)
    first, clips = (1, 2) if tiny else (first, clips)
    wd, rows = world.World(w * 32, h * 32, device), world.combinations()[1][:clips]
    g = torch.Generator().manual_seed(8)
    a = wd.place(rows.to(device), *torch.rand(2, clips, generator=g).to(device))
    drawn = wd.render(a, 8 * f - 7)[0]
    own = pack(model.vae, model.vae.encode(drawn[:, :, 8 * first:]))
    video = model.sample([world.caption(r) for r in rows.tolist()], 6, f, h, w, clip=(first, own))
    det, each = Detector(w * 32, h * 32, device), Frames(device)
    found, far, steady = [], [], 0
    for v, x, r in zip(video, drawn, rows.tolist()):
        found.append(det(v[:, :8 * first]))
        off = det(v)["track"] - det(x)["track"]
        wide = torch.tensor([w * 32., h * 32.])
        far.append(float(((off + wide / 2) % wide - wide / 2).norm(dim=1).max()))
        steady += each.steady(v, r)
    far = torch.tensor(far)
    return compare(found, rows.tolist()) | dict(
        steady=round(steady / clips, 3), within_3_px=round(float((far <= 3).float().mean()), 3),
        far_median_px=round(float(far.median()), 2), far_max_px=round(float(far.max()), 2))


def truth(device, n=48):
    """The detector on the renderer's own frames: it should be right."""
    wd, rows = world.World(256, 160, device), world.combinations()[1][:n]
    g = torch.Generator().manual_seed(1)
    a = wd.place(rows.to(device), *torch.rand(2, n, generator=g).to(device))
    det = Detector(256, 160, device)
    return compare([det(wd.render({k: v[i:i + 1] for k, v in a.items()}, 121)[0][0]) for i in range(n)], rows.tolist())


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", default=str(export.ROOT))
    a.add_argument("--results", default=None)
    a.add_argument("--clips", type=int, default=100)
    a.add_argument("--chains", type=int, default=16)
    a.add_argument("--windows", type=int, default=4)
    a.add_argument("--truth", action="store_true")
    a = a.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if a.truth:
        return print(json.dumps(dict(truth=truth(device))))
    res = pathlib.Path(a.results or a.out)
    res.mkdir(parents=True, exist_ok=True)
    model, det, each = Model(a.out, device), Detector(256, 160, device), Frames(device)
    rows = world.combinations()[1].tolist()[:a.clips]
    report = {}
    for name, causal in (("held_out", True), ("held_out_other_times", False))[:2 if device == "cuda" else 1]:
        found, shown, steady = [], [], 0
        for i in range(0, len(rows), 10):
            v = model.sample([world.caption(r) for r in rows[i:i + 10]], 1000 + i, causal=causal)
            found += [det(x) for x in v]
            steady += sum(each.steady(x, r) for x, r in zip(v, rows[i:i + 10]))
            shown += list(v[:5].cpu()) if len(shown) < 20 else []
        report[name] = compare(found, rows) | dict(steady=round(steady / len(rows), 3))
        if causal:
            report["wrong"] = [(world.caption(r), {k: x[k] for k in world.KEYS if x[k] != q}, round(x["iou"], 2))
                               for r, x in zip(rows, found) for k, q in zip(world.KEYS, r) if x[k] != q][:40]
            sheet(shown[:20], res / "held_out.png", scale=.6)
    if a.chains:
        report["arriving"] = arriving(a.out, device)
        film, report["chain"] = chain(model, det, rows[:a.chains], a.windows, 77)
        sheet(film[:12], res / "chain.png", [0, 60, 103, 120, 121, 160, 224, 225, 280, 328, 329, 400], .5)
    print(json.dumps(report, indent=1))
    (res / "judge.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
