"""What both trainings share: a step in a CUDA graph, EMA, saved states, a wall-clock budget with a cosine schedule."""
import json
import math
import pathlib
import time

import torch


class Trainer:
    """`step_loss(shape)` returns (loss, dict of figures); one CUDA graph holds a whole step for each shape."""

    def __init__(self, params, lr, budget, state, log, betas=(.9, .99), decay=0., ema=.999, warm=300, clip=1.,
                 graphs=True):
        self.params, self.base, self.budget, self.warm, self.clip = params, lr, budget, warm, clip
        self.cuda = params[0].is_cuda
        self.captured = self.cuda and graphs
        self.lr = torch.tensor(lr, device=params[0].device)
        self.opt = torch.optim.AdamW(params, self.lr if self.cuda else lr, betas=betas, weight_decay=decay,
                                     **(dict(fused=True, capturable=True) if self.cuda else {}))
        self.ema = [p.detach().clone() for p in params]
        self.keep, self.rate = torch.tensor(1., device=params[0].device), ema
        self.graphs, self.figures, self.pool = {}, {}, None
        self.step, self.used, self.state, self.log = 0, 0., pathlib.Path(state), open(log, "a")
        if self.state.exists():
            s = torch.load(self.state, map_location=params[0].device)
            with torch.no_grad():
                for a, b in ((params, s["params"]), (self.ema, s["ema"])):
                    torch._foreach_copy_(a, b)
            self.opt.load_state_dict(s["opt"])
            for g in self.opt.param_groups:
                g["lr"] = self.lr if self.cuda else lr
            self.step, self.used = s["step"], s["used"]
        self.started = time.time() - self.used

    def save(self):
        new = self.state.with_suffix(".new")
        torch.save(dict(params=[p.detach() for p in self.params], ema=self.ema, opt=self.opt.state_dict(),
                        step=self.step, used=self.time()), new)
        new.replace(self.state)

    def time(self):
        return time.time() - self.started

    def part(self):
        return self.time() / self.budget

    def write(self, **figures):
        line = json.dumps(dict(step=self.step, t=round(self.time(), 1), **figures))
        print(line, flush=True)
        self.log.write(line + "\n")
        self.log.flush()

    def work(self, step_loss, shape):
        self.opt.zero_grad(set_to_none=True)
        loss, figures = step_loss(shape)
        loss.backward()
        figures["norm"] = torch.nn.utils.clip_grad_norm_(self.params, self.clip)
        self.opt.step()
        with torch.no_grad():                            # ema += (1 - rate) * (p - ema); the rate is a tensor
            d = torch._foreach_sub([p.detach() for p in self.params], self.ema)
            torch._foreach_mul_(d, self.keep)
            torch._foreach_add_(self.ema, d)
        return {k: v.detach() for k, v in figures.items()} | dict(loss=loss.detach())

    def capture(self, step_loss, shape):
        """Three warm-up steps on a side stream, then the graph. They are real steps at the present rate."""
        t = time.time()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.work(step_loss, shape)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.opt.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g, pool=self.pool):
            figures = self.work(step_loss, shape)
        self.pool = self.pool or g.pool()
        torch.cuda.synchronize()
        self.write(captured=str(shape), seconds=round(time.time() - t, 1),
                   gib=round(torch.cuda.memory_reserved() / 2**30, 1))
        return g, figures

    def run(self, step_loss, shape, key=None):
        """One step. A new `key` (fake quantisation, say) captures anew."""
        if self.step % 20 == 0 and self.cuda:
            torch.cuda.synchronize()                     # keep the host's clock honest
        part = min(1., self.part())
        lr = self.base * min(1., (self.step + 1) / self.warm) * (.5 * (1 + math.cos(math.pi * part)) + .01)
        keep = 1 - min(self.rate, (self.step + 1) / (self.step + 20))
        self.keep.fill_(keep)
        if not self.cuda:
            self.opt.param_groups[0]["lr"] = lr
        self.lr.fill_(lr)
        if not self.captured:
            self.figures = self.work(step_loss, shape)
        else:
            if (shape, key) not in self.graphs:
                self.graphs[shape, key] = self.capture(step_loss, shape)
            g, self.figures = self.graphs[shape, key]
            g.replay()
        self.step += 1

    def drop_graphs(self):
        self.graphs, self.pool, self.figures = {}, None, {}
        self.opt.zero_grad(set_to_none=True)
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def swap(self):
        """Exchange the weights and their moving average (again to go back)."""
        with torch.no_grad():
            for p, e in zip(self.params, self.ema):
                t = p.detach().clone()
                p.copy_(e)
                e.copy_(t)
