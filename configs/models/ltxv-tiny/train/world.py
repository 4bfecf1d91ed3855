"""The world that ltxv-tiny knows: one coloured shape that moves over a background.

Opposite edges are joined, so that motion never ends and a long take has something to be continuous about.
Everything that depends on chance is a tensor operation, so that a whole training step can live in one CUDA graph.
"""
import random

import torch

COLOURS = {"red": (.9, .1, .1), "green": (.1, .75, .2), "blue": (.15, .25, .95), "yellow": (.95, .85, .1),
           "purple": (.6, .15, .8), "orange": (.98, .5, .05), "white": (.97, .97, .97), "cyan": (.1, .85, .9)}
BACKGROUNDS = {"black": (.05, .05, .06), "gray": (.45, .45, .45), "brown": (.35, .22, .12),
               "navy": (.05, .08, .3), "olive": (.35, .38, .12)}
SHAPES = ("ball", "square", "triangle")
DIRECTIONS = {"left": (-1., 0.), "right": (1., 0.), "up": (0., -1.), "down": (0., 1.)}
SPEEDS = {"slowly": 40., "quickly": 90.}     # pixels a second
SIZES = {"small": 18., "big": 30.}           # "radius" in pixels
FPS = 24.
KEYS = "cbsdvz"                              # colour, background, shape, direction, speed (v), size (z)
COUNTS = (8, 5, 3, 4, 2, 2)


def combinations():
    """All 1920 worlds as rows (c, b, s, d, v, z), split into (training, held out): 100 are never trained on."""
    grid = torch.cartesian_prod(*[torch.arange(n) for n in COUNTS])
    order = torch.randperm(len(grid), generator=torch.Generator().manual_seed(20))
    return grid[order[100:]], grid[order[:100]]


class World:
    """Constants on one device, at one frame size."""

    def __init__(self, width, height, device):
        self.w, self.h, self.device = width, height, device
        table = lambda v: torch.tensor(list(v), device=device)
        self.colours, self.grounds = table(COLOURS.values()), table(BACKGROUNDS.values())
        self.dirs, self.speeds, self.sizes = table(DIRECTIONS.values()), table(SPEEDS.values()), table(SIZES.values())
        self.rows = combinations()[0].to(device)
        self.yy, self.xx = torch.meshgrid(torch.arange(height, device=device) + .5,
                                          torch.arange(width, device=device) + .5, indexing="ij")

    def sample(self, n, weights=None):
        """n random worlds of the training part; `weights` [rows] makes some of them more frequent."""
        if weights is None:
            row = self.rows[torch.randint(0, len(self.rows), (n,), device=self.device)]
        else:
            row = self.rows[torch.multinomial(weights, n, replacement=True)]
        return self.place(row, torch.rand(n, device=self.device), torch.rand(n, device=self.device))

    def place(self, row, x, y):
        """Worlds from rows and start positions in 0..1."""
        return dict(zip(KEYS, row.unbind(1)), x=x * self.w, y=y * self.h)

    def centres(self, a, frames, start=0):
        t = (torch.arange(frames, device=self.device) + start) / FPS
        v = self.dirs[a["d"]] * self.speeds[a["v"]][:, None]
        return (a["x"][:, None] + v[:, :1] * t) % self.w, (a["y"][:, None] + v[:, 1:] * t) % self.h

    def mask(self, shape, radius, cx, cy):
        """Anti-aliased coverage, [..., h, w]; shape, radius, cx, cy broadcast over the leading axes."""
        shape, r, cx, cy = (v[..., None, None] for v in (shape, radius, cx, cy))
        dx = (self.xx - cx + self.w / 2) % self.w - self.w / 2
        dy = (self.yy - cy + self.h / 2) % self.h - self.h / 2
        ball = r - torch.sqrt(dx * dx + dy * dy)
        square = r * .9 - torch.maximum(dx.abs(), dy.abs())
        sides = (r * .8 - (dx.abs() * 1.7 - dy) * .62) / 1.223
        inside = torch.where(shape == 0, ball, torch.where(shape == 1, square, torch.minimum(r * .8 - dy, sides)))
        return inside.clamp(-.75, .75) / 1.5 + .5

    def background(self):
        """Brightness of the backgrounds by row: a vertical gradient."""
        return .75 + .5 * self.yy / self.h

    def render(self, a, frames, start=0):
        """Video [n, 3, frames, h, w] in -1..1, and the shape's mask [n, frames, h, w]."""
        cx, cy = self.centres(a, frames, start)
        m = self.mask(a["s"][:, None], self.sizes[a["z"]][:, None], cx, cy)
        bg = (self.grounds[a["b"]][:, :, None, None] * self.background())[:, :, None]
        fg = self.colours[a["c"]][:, :, None, None, None]
        return (bg + (fg - bg) * m[:, None]).clamp(0, 1) * 2 - 1, m


def words(row):
    c, b, s, d, v, z = [int(i) for i in row]
    return dict(c=list(COLOURS)[c], b=list(BACKGROUNDS)[b], s=SHAPES[s], d=list(DIRECTIONS)[d], v=list(SPEEDS)[v],
                z=list(SIZES)[z])


def caption(row):
    """The main grammar."""
    w = words(row)
    return f"a {w['z']} {w['c']} {w['s']} rolls {w['v']} {w['d']} over a {w['b']} background"


def paraphrase(row, rng: random.Random):
    """The same in other words; an attribute that is left out stays as the clip has it, so it is random to the model."""
    w = words(row)
    drop = lambda p: rng.random() < p
    size = "" if drop(.12) else rng.choice([w["z"], {"small": "little", "big": "large"}[w["z"]], w["z"]]) + " "
    colour = "" if drop(.08) else w["c"] + " "
    shape = {"ball": ["ball", "ball", "circle"], "square": ["square", "square", "box"], "triangle": ["triangle"]}
    noun = "shape" if drop(.06) else rng.choice(shape[w["s"]])
    speed = "" if drop(.12) else " " + rng.choice({"slowly": ["slowly", "slow"], "quickly": ["quickly", "fast"]}[w["v"]])
    to = {"left": ["left", "to the left", "leftwards"], "right": ["right", "to the right", "rightwards"],
          "up": ["up", "upwards", "to the top"], "down": ["down", "downwards", "to the bottom"]}[w["d"]]
    way = "" if drop(.08) else " " + rng.choice(to)
    verb = rng.choice(["rolls", "moves", "slides", "glides", "drifts", "flies", "moving", "rolling", "sliding"])
    b = w["b"]
    ground = "" if drop(.08) else " " + rng.choice(
        [f"over a {b} background", f"on a {b} background", f"on {b}", f"over {b}", f"against a {b} background"])
    article = rng.choice(["a", "a", "a", "the", "one"])
    motion = rng.choice([f"{verb}{speed}{way}", f"{verb}{way}{speed}"])
    thing = rng.choice([f"{article} {size}{colour}{noun}"] * 3 + [f"{article} {colour}{size}{noun}"])
    text = rng.choice([f"{thing} {motion}{ground}", f"{thing} {motion}{ground}", f"{thing}{ground}, {motion}",
                       f"{ground.strip()}, {thing} {motion}" if ground else f"{thing} {motion}",
                       f"{thing}{way}{speed}{ground}", f"video of {thing} {motion}{ground}"])
    text = text[0].upper() + text[1:] if rng.random() < .3 else text
    return text + "." if rng.random() < .25 else text
