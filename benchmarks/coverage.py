"""What the 90 % intervals cover: python benchmarks/coverage.py [--sims 200] [--replicates 200] [--methods sandwich,discrepancy]

Sweeps drawn from known laws, each with its own noise, fitted and asked about 10 times the largest budget. A cell is the share
of intervals that hold the truth, in per cent, and their median width. Losses are stretched in logs, so that a noise of .005 is .5 %.

The first table is ln N*, the second the loss. The first four rows are noise: there 90 % should be near 90. "Under-tuned" runs
are too high by .002 in the mean, so that no fit can find the true loss. "Smooth" rows are a law that is not quite right, by a smooth error of the
amplitude and length given (e-folds) over noise of .001, which bends the loss at the target as well: no interval for chance alone can cover these.
The last table is a law whose two terms are coupled (exponent gamma), fitted without the coupling: the loss, ever further out."""
import argparse
import math

import numpy as np
import pandas as pd

from scaling_nb.fitting import fit_law
from scaling_nb.intervals import METHODS, fit_intervals
from scaling_nb.laws import ChinchillaLaw, CoupledLaw

CHINCHILLA = ChinchillaLaw(1.69, 406.4, 410.7, .34, .28)
BESIROGLU = ChinchillaLaw(1.8172, 482.01, 2085.43, .3478, .3658)
DESIGNS = {"5 x 7, 8x": (CHINCHILLA, 5, 7, 8), "3 x 5, 4x": (CHINCHILLA, 3, 5, 4), "4 x 6, 4x, Besiroglu": (BESIROGLU, 4, 6, 4)}
NOISES = ("iid", "falls with C", "8 % bad runs", "under-tuned", "smooth .002, 1.4", "smooth .002, 2.7", "smooth .004, 2.7", "smooth .002, 5", "smooth .004, 5")


def design(law, budgets, sizes, reach, top=1e18):
    "N, D, C of a grid: half-decade budgets up to `top`, sizes over a factor `reach` to both sides of the optimum"
    C = np.repeat(top * 10 ** (-np.arange(budgets)[::-1] / 2), sizes)
    N = (law.optimum(C[::sizes])[0][:, None] * np.geomspace(1 / reach, reach, sizes)).ravel()
    return N, C / (6 * N), C


def noise(kind, N, D, C, targets, rng):
    "What is added to ln L of the runs (R,), and by how much the truth at the targets (N, D) is bent (K,)"
    z = rng.standard_normal(len(N))
    if kind == "iid":
        e = .0015 * z
    elif kind == "falls with C":
        e = .001 * (C.max() / C) ** .25 * z
    elif kind == "8 % bad runs":
        e = .0012 * z + np.where(rng.random(len(N)) < .08, rng.exponential(.015, len(N)), 0)
    elif kind == "under-tuned":
        e = .001 * z + rng.exponential(.002, len(N))
    else:
        amplitude, length = map(float, kind.removeprefix("smooth").split(","))
        at = np.log(np.concatenate([np.stack([N, D], 1), targets]))
        K = np.exp(-((at[:, None] - at) ** 2).sum(-1) / (2 * length ** 2)) + 1e-9 * np.eye(len(at))
        bend = amplitude * np.linalg.cholesky(K) @ rng.standard_normal(len(at))
        return .001 * z + bend[:len(N)], bend[len(N):]
    return e, np.zeros(len(targets))


def tally(law, runs, kind, budgets, methods, sims, replicates, seed=1):
    "Frame by (C, quantity, method): share that holds the truth, median width, how many gave an interval; N in logs. `law` made the losses"
    N, D, spent = runs
    rng, rows = np.random.default_rng(seed), []
    best = np.array([law.optimum(C) for C in budgets])
    for s in range(sims):
        e, bend = noise(kind, N, D, spent, best[:, :2], rng)
        truth = {(C, q): v for C, (n, _, loss), x in zip(budgets, best, bend) for q, v in (("N", n), ("loss", loss * math.exp(x)))}
        fit = fit_law(N, D, law.loss(N, D) * np.exp(e))
        found = pd.concat([fit_intervals(fit, budgets, method=m, levels=.9, n=replicates, seed=s) for m in methods])
        for r in found[found.quantity.isin(("N", "loss"))].itertuples():
            width = math.log(r.high / r.low) if r.quantity == "N" else r.high - r.low
            rows.append((r.C, r.quantity, r.method, 100. * (r.low <= truth[r.C, r.quantity] <= r.high) if math.isfinite(width) else math.nan, width))
    frame = pd.DataFrame(rows, columns=["C", "quantity", "method", "holds", "width"])
    return frame.groupby(["C", "quantity", "method"], sort=False).agg(holds=("holds", "mean"), width=("width", "median"), n=("holds", "count"))


def cell(found, *key):
    return f"{found.loc[key, 'holds']:.0f} ({found.loc[key, 'width']:.3f})" if found.loc[key, "n"] else "-"


def show(cells):
    "Rows of {column: 'share (width)'} as a table"
    print(pd.DataFrame(cells).set_index("").to_string() + "\n", flush=True)


def main(sims, replicates, methods):
    print(f"{sims} sweeps a cell, standard error {100 * math.sqrt(.9 * .1 / sims):.1f} points; bootstraps of {replicates} replicates")
    for name, (law, *shape) in DESIGNS.items():
        runs, tables = design(law, *shape), {"N": [], "loss": []}
        for kind in NOISES:
            found = tally(law, runs, kind, [1e19], methods, sims, replicates)
            for q, cells in tables.items():
                cells.append({"": kind} | {m: cell(found, 1e19, q, m) for m in methods})
        for q, cells in tables.items():
            print(f"{name}: {'ln N*' if q == 'N' else 'loss'} at 10 times the top budget")
            show(cells)
    print("5 x 7, 8x: the loss under a coupled law, noise .0015, at 10, 100 and 1000 times the top budget")
    cells = []
    for gamma in (.9, .95, 1.05, 1.1):
        law, budgets = CoupledLaw(**CHINCHILLA.to_dict(), gamma=gamma), [1e19, 1e20, 1e21]
        found = tally(law, design(CHINCHILLA, 5, 7, 8), "iid", budgets, ("sandwich", "discrepancy"), sims, replicates)
        cells.append({"": f"gamma {gamma:g}"} | {f"{m} {C / 1e18:.0f}x": cell(found, C, "loss", m) for m in ("sandwich", "discrepancy") for C in budgets})
    show(cells)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sims", type=int, default=200)
    p.add_argument("--replicates", type=int, default=200)
    p.add_argument("--methods", default=",".join(METHODS), help="of fit_intervals, with commas")
    args = p.parse_args()
    main(args.sims, args.replicates, args.methods.split(","))
