"""The last stage of the transformer: learn on the model's own eight-step paths what many guided steps would do.

A model of velocities is exact in the limit of small steps; eight steps, five of them at nearly pure noise, are far from
it, and states that only such steps reach were never trained on. Here the model walks its own path; at every state of
it a frozen copy goes to the next of the eight noise levels in several smaller steps with guidance, and the model
learns the one velocity that leads there (progressive distillation, Salimans and Ho 2022, on the student's own states).
"""
import copy

import torch

import lean
import models

LEVELS = (*models.SIGMAS, 0.)
JUMP = 4                                     # the first four levels differ by .6% each: most paths pass them at once
FINE = 4                                     # the teacher's steps from one level to the next


class Paths:
    """`n` half-walked paths of one shape; each step trains on where they are and moves them on."""

    def __init__(self, n, frames, pool, draw, te, causal, teacher, guidance):
        self.n, self.frames, self.pool, self.draw, self.te = n, frames, pool, draw, te
        self.teacher, self.guidance = teacher, guidance
        dev = pool.z.device
        self.cs = lean.rope(frames, *pool.grid[1:], causal, device=dev)
        self.levels = torch.tensor(LEVELS, device=dev)
        self.weight = torch.tensor([.4, .4, .4, .4, 1., 1., 1.2, 1.5], device=dev)
        self.z, self.clean, self.ids, self.at, self.jump = self.fresh()
        # Spread over the levels from the start; states that noise alone would not reach correct themselves in a round.
        self.at = torch.randint(0, 2, (n,), device=dev) * JUMP

    @torch.no_grad()
    def fresh(self):
        z, lead, clean, ids = self.draw(self.pool, self.n, self.frames)
        z, lead, clean = z.flatten(1, 2), lead.flatten(1, 2), clean.repeat_interleave(z.shape[2], 1)
        z = torch.where(clean[..., None], lead, torch.randn_like(z))
        zero = torch.zeros(self.n, dtype=torch.long, device=z.device)
        return z, clean, ids, zero, torch.rand(self.n, device=z.device) < .75

    def said(self, ids):
        return lean.t5(self.te, ids), (ids > 0).float()

    @torch.no_grad()
    def target(self, here, there, said):
        """The velocity that leads in one step to where the teacher's fine guided steps end."""
        nothing = torch.zeros_like(self.ids[:1])
        nothing[:, 0] = 1
        blank = [v.expand(self.n, *v.shape[1:]) for v in self.said(nothing)]
        free = (self.ids == nothing).all(1)
        g = torch.where(free, 1., self.guidance)[:, None, None]
        z, still = self.z, self.clean[..., None]
        for j in range(FINE):
            s = here + (there - here) * (j / FINE)
            v = self.teacher(z, s, self.clean, *said, *self.cs)
            u = self.teacher(z, s, self.clean, *blank, *self.cs)
            z = z + torch.where(still, 0., ((there - here) / FINE)[:, None, None] * (u + g * (v - u)))
        return (z - self.z) / (there - here)[:, None, None]

    def loss(self, dit):
        """Mean square error of the velocities by path, and the paths moved on."""
        with torch.no_grad():
            after = torch.where((self.at == 0) & self.jump, JUMP, self.at + 1)
            here, there = self.levels[self.at], self.levels[after]
            said = self.said(self.ids)
        want = self.target(here, there, said)
        v = dit(self.z, here, self.clean, *said, *self.cs)
        moving = ~self.clean
        e = ((v - want).pow(2).mean(-1) * moving * self.heavy()).sum(1) / moving.sum(1)
        with torch.no_grad():
            last = self.at == len(models.SIGMAS) - 1
            figures = dict(last=(e * last).sum() / last.sum().clamp_min(1))
            step = torch.where(moving[..., None], (there - here)[:, None, None] * v.detach(), 0.)
            new = self.fresh()
            old = (self.z + step, self.clean, self.ids, after, self.jump)
            done = after == len(models.SIGMAS)
            pick = lambda a, b: torch.where(done.view(-1, *[1] * (a.ndim - 1)), a, b)
            weight = self.weight[self.at]
            self.replaced(done)
            self.z, self.clean, self.ids, self.at, self.jump = (pick(a, b) for a, b in zip(new, old))
        return (e * weight).mean(), figures

    def heavy(self):
        """Weight of each token of each path."""
        return 1.

    def replaced(self, done):
        """Paths in `done` are about to be replaced by those that `fresh` gave last."""


def teacher_of(dit):
    """A frozen copy of the model as it is now, without fake quantisation."""
    model = copy.deepcopy(dit.m).eval().requires_grad_(False)
    return lean.Dit(model, dit.dtype, dit.block)
