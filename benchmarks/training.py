"""Speed of the training loop against the machine and against a plain loop: python benchmarks/training.py [--seconds 2] [--peak FLOP/s]

On a CPU: FLOP/s of our loop as a share of the matmul peak of one thread, for four widths, beside the loop that one would write first (DataLoader, unfused SGD, two threads, `.item()`
at every step). The two take turns within one process, so that what else runs on the machine meets both alike. Then where the time of our step goes.
On a GPU: MFU in float32, with bf16 autocast, compiled, and with CUDA graphs, with the compile time and the run length from which it pays; small runs that share the GPU;
the memory estimate beside the memory used; and a resumed run beside a whole one. Give the promised peak with --peak (989e12 for the bf16 of an H100); else the measured one is used."""
import argparse
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from scaling_nb import Problem, Recipe, RunSpec, Trainer, measure_cost
from scaling_nb.zoo.data import TokenWindows, byte_tokens, stdlib_text
from scaling_nb.zoo.gpt import GPT, next_token_loss

CUDA = torch.cuda.is_available()


def sync():
    if CUDA:
        torch.cuda.synchronize()


def rate(step, seconds, clock=time.perf_counter):
    "Steps a second of the clock: of the wall's, or of the processor's."
    step()
    sync()
    wall, start, n = time.perf_counter(), clock(), 0
    while n < 3 or time.perf_counter() - wall < seconds:
        step()
        n += 1
    sync()
    return n / (clock() - start)


def matmul_peak(seconds, dtype=torch.float32):
    "FLOP/s of the best square product, on one thread or on the GPU."
    best = 0.0
    for n in (1024, 4096, 8192) if CUDA else (256, 512, 1024):
        a, b = (torch.randn(n, n, device="cuda" if CUDA else "cpu", dtype=dtype) for _ in range(2))
        best = max(best, 2 * n**3 * rate(lambda a=a, b=b: a @ b, seconds / 3))
    return best


def the_problem(depth, seq_len):
    train, val = (TokenWindows(byte_tokens(part), seq_len) for part in stdlib_text())
    return Problem(GPT, "width", data=train, val_data=val, loss_fn=next_token_loss, model_kwargs=dict(vocab=128, depth=depth, seq_len=seq_len))


def our_loop(problem, width, batch, **kw):
    "(step, trainer): a step of the trainer as train_run takes it, reading included."
    cost = measure_cost(problem, width)
    t = Trainer(problem, RunSpec(0, width, cost.N, 10**12, cost.flops_per_token), replace(Recipe(batch_size=batch), **kw))

    def step():
        t.step()
        if not t.cuda or t.steps % 50 == 0:
            t.read()
    return step, t


def plain_loop(problem, width, batch):
    "The loop that one would write first."
    model = problem.build(width).to("cuda" if CUDA else "cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, foreach=False)
    batches, losses = iter(()), []

    def step():
        nonlocal batches
        item = next(batches, None)
        if item is None:
            batches = iter(DataLoader(problem.data, batch_size=batch, shuffle=True))
            item = next(batches)
        x, y = (v.to(next(model.parameters()).device) for v in item)
        optimizer.zero_grad()
        loss = problem.loss(model, x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return step


@contextmanager
def threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_turns(ways, seconds, rounds=4):
    "Name -> median over rounds of steps a second, by the wall's clock and by the processor's; one way after the other."
    seen = {name: ([], []) for name in ways}
    for _ in range(rounds):
        for name, (n, step) in ways.items():
            with threads(n):
                for clock, found in zip((time.perf_counter, time.process_time), seen[name]):
                    found.append(rate(step, seconds / rounds / 2, clock))
    return {name: tuple(statistics.median(x) for x in v) for name, v in seen.items()}


def where_the_time_goes(problem, width, batch, steps=60):
    "Shares of a step on a CPU."
    _, t = our_loop(problem, width, batch)
    spent = dict.fromkeys(("data", "forward", "backward", "clip", "optimizer", "reading and the rest"), 0.0)

    @contextmanager
    def timed(name):
        start = time.perf_counter()
        yield
        spent[name] += time.perf_counter() - start

    def wrapped(name, f):
        def g(*a, **k):
            with timed(name):
                return f(*a, **k)
        return g
    t.data.take = wrapped("data", t.data.take)
    t.optimizer.step = wrapped("optimizer", t.optimizer.step)
    forward = wrapped("forward", problem.loss)
    object.__setattr__(t, "problem", replace(problem))
    object.__setattr__(t.problem, "loss", forward)
    backward, clip = torch.Tensor.backward, torch.nn.utils.clip_grad_norm_
    torch.Tensor.backward, torch.nn.utils.clip_grad_norm_ = wrapped("backward", backward), wrapped("clip", clip)
    try:
        start = time.perf_counter()
        for _ in range(steps):
            t.step()
            t.read()
        whole = time.perf_counter() - start
    finally:
        torch.Tensor.backward, torch.nn.utils.clip_grad_norm_ = backward, clip
    spent["reading and the rest"] = whole - sum(spent.values())
    return {k: v / whole for k, v in spent.items()}


def on_cpu(seconds, batch, widths=(16, 32, 64, 128)):
    torch.set_num_threads(1)
    problem = the_problem(depth=2, seq_len=64)
    print(f"GPT of two layers, {batch} windows of 64 tokens a step, one thread; the plain loop on two threads")
    print("              FLOP/s by the clock on the wall                       by CPU seconds")
    print("width        N  peak GF/s    ours of peak   plain of peak ours/plain   ours of peak   plain ours/plain")
    for width in widths:
        cost = measure_cost(problem, width)
        flops = cost.flops_per_token * 64 * batch
        a, b = torch.randn(512, 512), torch.randn(512, 512)
        r = in_turns({"peak": (1, lambda a=a, b=b: a @ b), "ours": (1, our_loop(problem, width, batch)[0]), "plain": (2, plain_loop(problem, width, batch))}, seconds)
        (peak, peak_cpu), (ours, ours_cpu), (plain, plain_cpu) = ([1e-9 * k * v for v in r[name]] for name, k in (("peak", 2 * 512**3), ("ours", flops), ("plain", flops)))
        print(f"{width:5} {cost.N:8,}  {peak:9.1f}  {ours:6.1f} {ours / peak:7.2f}  {plain:6.1f} {plain / peak:7.2f} {ours / plain:9.2f}x "
              f" {ours_cpu:6.1f} {ours_cpu / peak_cpu:7.2f}  {plain_cpu:6.1f} {ours_cpu / plain_cpu:9.2f}x", flush=True)
    print("\nwhere the time of our step goes")
    for width in widths:
        print(f"{width:5}  " + ", ".join(f"{k} {v:.0%}" for k, v in where_the_time_goes(problem, width, batch).items()), flush=True)


def on_gpu(seconds, peak):
    problem = the_problem(depth=8, seq_len=512)
    problem = replace(problem, model_kwargs={**problem.model_kwargs, "heads": 4})
    best = matmul_peak(seconds, torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}: bf16 matmul {best:.3g} FLOP/s measured; MFU against {peak or best:.3g}")
    print("width         N  way                 tokens/s    MFU   compile s   pays after")
    for width in (128, 512, 1024, 2048):
        cost = measure_cost(problem, width)
        speeds = {}
        for way in ("float32", "bf16", "bf16 compiled", "bf16 CUDA graphs"):
            step, t = our_loop(problem, width, 32, precision="float32" if way == "float32" else "bf16")
            start = time.perf_counter()
            if "compiled" in way or "graphs" in way:
                t.compile("reduce-overhead" if "graphs" in way else "default")
            for _ in range(3):
                step()
            sync()
            wait = time.perf_counter() - start
            speeds[way] = rate(step, seconds) * 32 * 512
            gain = speeds[way] / speeds.get("bf16", speeds[way])
            pays = f"{wait / (1 - 1 / gain):8.0f} s" if gain > 1.01 else ("" if way in ("float32", "bf16") else "   never")
            print(f"{width:5} {cost.N:11,}  {way:17} {speeds[way]:10,.0f}  {speeds[way] * cost.flops_per_token / (peak or best):5.3f}  {wait if pays else 0:8.0f}   {pays}", flush=True)
            del step, t
            torch.cuda.empty_cache()
    _sharing(seconds)
    _memory(problem)
    _resume(problem)


def _sharing(seconds):
    "Tokens a second of k processes on one GPU."
    code = (f"import sys; sys.path.insert(0, {sys.path[0]!r}); import training as b\n"
            f"step, t = b.our_loop(b.the_problem(2, 64), 64, 64)\nfor _ in range(50): step()\nprint(b.rate(step, {4 * seconds}) * 64 * 64)")
    print("\nruns that share the GPU (width 64): tokens/s in all")
    alone = None
    for k in (1, 2, 4, 8):
        procs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(k)]
        total = sum(float(p.communicate()[0].split()[-1]) for p in procs)
        alone = alone or total
        print(f"  {k} at a time: {total:10,.0f}  {total / alone:.2f}x", flush=True)


def _memory(problem):
    "The estimate beside the memory used."
    print("\npeak memory, estimated (float32, from above) over used")
    for width in (512, 1024):
        for precision in ("float32", "bf16"):
            torch.cuda.reset_peak_memory_stats()
            step, t = our_loop(problem, width, 32, precision=precision)
            for _ in range(3):
                step()
            print(f"  width {width}, {precision}: {measure_cost(problem, width).memory(32) / torch.cuda.max_memory_allocated():.2f}")
            del step, t
            torch.cuda.empty_cache()


def _resume(problem):
    "A run that was stopped half-way beside one that was not."
    cost = measure_cost(problem, 128)
    s = RunSpec(0, 128, cost.N, 64 * 32 * cost.tokens_per_sample, cost.flops_per_token)
    whole, half, rest = (Trainer(problem, s, Recipe(batch_size=32)) for _ in range(3))
    a = [whole.step().item() for _ in range(64)]
    for _ in range(32):
        half.step()
    rest.load(half.save())
    b = [rest.step().item() for _ in range(32)]
    most = max(abs(x - y) for x, y in zip(a[32:], b))
    print(f"\nresumed on the GPU: largest difference of a training loss {most:.2g} nats, of the held-out loss {abs(whole.evaluate()[0] - rest.evaluate()[0]):.2g}")


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--seconds", type=float, default=2.0, help="time to spend on each figure")
    args.add_argument("--batch", type=int, default=16, help="windows a step on a CPU")
    args.add_argument("--peak", type=float, help="FLOP/s that the GPU promises")
    args = args.parse_args()
    on_gpu(args.seconds, args.peak) if CUDA else on_cpu(args.seconds, args.batch)
