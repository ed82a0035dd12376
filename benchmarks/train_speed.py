"""Speed of the training loop by width, on a GPU where there is one: python benchmarks/train_speed.py [peak FLOP/s]

Prints tokens and FLOPs per second of `Trainer.step`, beside a bare loop of forward, backward and AdamW on one repeated batch, as a ratio.
Give the hardware's peak to see the share of it (989e12 for the bf16 of an H100; the loop trains in float32)."""
import sys
import time

import torch

from scaling_nb import Problem, Recipe, RunSpec, Trainer, mfu, plan_sweep
from scaling_nb.zoo.data import TokenWindows, byte_tokens, stdlib_text
from scaling_nb.zoo.gpt import GPT, next_token_loss


def timed(step, seconds=3.0):
    "Steps a second, after three to warm up."
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):
        step()
    sync()
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        n += 1
    sync()
    return n / (time.perf_counter() - start)


def main(peak):
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    widths, batch = ((256, 512, 1024, 2048), 32) if device == "cuda" else ((16, 32, 64, 128), 8)
    text = stdlib_text()
    train, val = (TokenWindows(byte_tokens(part), seq_len=64) for part in text)
    problem = Problem(GPT, "width", data=train, val_data=val, loss_fn=next_token_loss, model_kwargs=dict(vocab=128, depth=2))
    print(f"{device}, batch {batch} x 64 tokens\nwidth       N  tokens/s   FLOP/s  over a bare loop" + ("   MFU" if peak else ""))
    for width in widths:
        s = plan_sweep(problem, [1e18], sizes=[width], speed=None).specs[0]
        trainer = Trainer(problem, RunSpec(s.budget, s.size, s.N, s.D, s.flops_per_token), Recipe(batch_size=batch), device)
        ours = timed(trainer.step)
        x, y = (t.to(device) for t in train.batch(list(range(batch))))
        opt = torch.optim.AdamW(trainer.model.parameters(), fused=True)

        def bare(model=trainer.model, x=x, y=y, opt=opt):
            problem.loss(model, x, y).backward()
            opt.step()
            opt.zero_grad(set_to_none=True)

        other = timed(bare)
        speed = ours * batch * 64
        share = f"{mfu(s.flops_per_token, speed, peak):6.3f}" if peak else ""
        print(f"{width:5} {s.N:8,} {speed:9,.0f} {speed * s.flops_per_token:8.2e} {ours / other:8.2f}          {share}", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else None)
