"""Does the learning rate that was measured on small models suit a larger one? python benchmarks/tune_lr.py [folder]

Tunes a GPT of two layers at two widths and two horizons, with each of three seeds by itself, then asks by brute force at a width and a horizon
that the law has not seen: rates a factor of 1.3 apart, a parabola through them. Each chosen rate must be within a factor of 1.5 of the best one.
About ten minutes on two cores; given a folder, the same line resumes."""
import math
import sys
import tempfile

from scaling_nb import Problem, Resources, fit_lr, tune_lr
from scaling_nb.zoo.data import TokenWindows, byte_tokens, stdlib_text
from scaling_nb.zoo.gpt import GPT, next_token_loss

SIZES, HORIZONS, SEEDS = (16, 32), (100_000, 400_000), 3
SIZE, HORIZON, STEP = 64, 800_000, 1.3


def main(folder):
    train, val = (TokenWindows(byte_tokens(part), seq_len=64) for part in stdlib_text())
    problem = Problem(GPT, "width", data=train, val_data=val, loss_fn=next_token_loss, model_kwargs=dict(vocab=128, depth=2), val_samples=2048)
    options = dict(view=False, resources=Resources(slots=2))
    every = tune_lr(problem, SIZES, HORIZONS, seeds=SEEDS, storage=f"{folder}/tuned", **options)
    alone = [fit_lr(runs) for _, runs in every.frame.groupby("seed")]        # what `tune_lr` says by default, of one seed
    for t in alone: print(t, flush=True)
    brute = tune_lr(problem, [SIZE], [HORIZON], lrs=[.0105 * STEP**k for k in range(-5, 6)], storage=f"{folder}/brute", **options)
    print(brute)
    best, N = brute.cells.iloc[0], int(brute.cells.N[0])
    print(f"\nwidth {SIZE}, N {N:,}, D {HORIZON:,}: {every.law.doubt(N, HORIZON)}")
    print(f"best {best.lr:.4g} (90 %: {best.lr_low:.4g} to {best.lr_high:.4g}), lowest raw loss at {brute.frame.lr[brute.frame.loss.idxmin()]:.4g}; noise of a loss {brute.noise:.4f}")
    off = []
    for name, t in [*((f"seed {i}", t) for i, t in enumerate(alone)), (f"all {SEEDS} seeds", every)]:
        assert t.status.ok, f"{name}: {t.status.value}"
        off.append(abs(math.log(t(N, HORIZON) / best.lr)))
        print(f"{name}: chosen {t(N, HORIZON):.4g}, chosen / best = {t(N, HORIZON) / best.lr:.2f} (one standard deviation said to be a factor of {math.exp(t.law.sd(N, HORIZON)):.2f}), "
              f"excess loss {.5 * best.curvature * off[-1]**2:.4f} nats, {t.law.excess(best.lr, N, HORIZON):.4f} by the law's own curvature; {t.status.value}")
    print(f"{'all' if max(off) < math.log(1.5) else 'NOT all'} within a factor of 1.5")
    return max(off) < math.log(1.5)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(not main(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(not main(folder))
