"""Check that the lean forwards compute what diffusers and transformers compute."""
import sys

import torch

import lean
import models
import text


def close(name, a, b, limit):
    e = float((a.float() - b.float()).norm() / b.float().norm())
    print(f"check {name}: {e:.2e} of {float(b.float().norm()):.3g}", flush=True)
    assert e < limit, name


def main(device, dtype, limit):
    torch.manual_seed(0)
    v = models.vae().to(device)
    x, lv = torch.rand(2, 3, 17, 64, 96, device=device) * 2 - 1, lean.Vae(v, dtype)
    z = v.encode(x).latent_dist.mean.detach()
    t = torch.tensor([.05, .02], device=device)
    close("vae encode", lv.encode(x), z, limit)
    close("vae decode", lv.decode(z, t), v.decode(z, t, return_dict=False)[0], limit)
    ids = text.Tokenizer()(["a small red ball rolls slowly left over a black background", ""]).to(device)
    te, m = models.t5(text.Tokenizer().sp.get_piece_size()).to(device), (ids > 0).float()
    e = te(input_ids=ids, attention_mask=m).last_hidden_state
    close("t5", lean.t5(te, ids) * m[..., None], e * m[..., None], 1e-3)
    d = models.dit().to(device)
    for p in d.parameters():                             # away from the zero initialisation
        torch.nn.init.normal_(p, std=.04) if p.ndim > 1 else None
    n, sig = torch.randn(2, 4 * 2 * 3, 128, device=device), torch.tensor([.9, .3], device=device)
    clean = torch.zeros(2, 24, dtype=torch.bool, device=device)
    clean[0, :12] = True
    for causal in (False, True):
        tt = torch.where(clean, 0., sig[:, None]) * 1000
        grid = torch.stack(torch.meshgrid(torch.arange(4.), torch.arange(2.), torch.arange(3.), indexing="ij"))
        co = grid.flatten(1)[None].repeat(2, 1, 1).to(device) * torch.tensor([8., 32, 32], device=device)[:, None]
        co[:, 0] = (co[:, 0] - 7 * causal).clamp_min(0) / 24
        ref = d(hidden_states=n, encoder_hidden_states=e, timestep=tt, encoder_attention_mask=m, num_frames=4,
                height=2, width=3, video_coords=co, return_dict=False)[0]
        got = lean.Dit(d, dtype)(n, sig, clean, e, m, *lean.rope(4, 2, 3, causal, device=device))
        close(f"dit causal={causal}", got, ref, limit)


if __name__ == "__main__":
    with torch.no_grad():
        main("cpu", torch.float32, 1e-4)
        if torch.cuda.is_available():
            main("cuda", torch.bfloat16, 3e-2)
    sys.exit(0)
