"""What a planned FLOP buys: python benchmarks/design.py [quick] [--sims 24], or: python benchmarks/design.py replay table.csv

1. FLOPs for a given width of the 90 % interval of ln N*(1e21). The width asked for is that of a 5 x 7 grid over 8x to both sides on 1 % of the target. "Ours"
   is a 5 x 5 grid on .4 of the spend and three rounds of four runs chosen by `next_points` from the fit of the losses so far; it and the grid over 4x are
   scaled, all budgets together, until their median width is the same. The grids are centred on 20 tokens per parameter, where the laws' optima are not.
   Noise is .2 % of the loss in all runs, or .2 % at 1e18 FLOPs and falling as C^-1/4. With even noise a law that is exactly right can be learned
   from runs of any scale, so the ratio there has no limit, and the search stops at 16; the second noise is the harder question.
   A form that does not fit (the coupled laws) widens the interval of runs that reach far.
   The last table is at equal spend: root mean square error of ln N*, where the law is right and where it is bent smoothly by .2 % (over 3 e-folds).
2. Forecast over simulated median widths, for many laws, grids and noises.
3. `replay`: runs chosen from those of a real table, and what it costs until the 90 % interval of N* at ten times the top budget is of a given width."""
import argparse
import math

import numpy as np
import pandas as pd

from scaling_nb.design import candidate_points, next_points, predict_width, simulate
from scaling_nb.fitting import fit_law
from scaling_nb.intervals import fit_intervals
from scaling_nb.laws import ChinchillaLaw, CoupledLaw

TARGET = 1e21
LAWS = {"Chinchilla": ChinchillaLaw(1.69, 406.4, 410.7, .34, .28), "Besiroglu": ChinchillaLaw(1.8172, 482.01, 2085.43, .3478, .3658),
        "steep in D": ChinchillaLaw(1.69, 200., 2000., .30, .40), "steep in N": ChinchillaLaw(1.69, 1500., 200., .42, .26),
        "low floor": ChinchillaLaw(.6, 60., 130., .22, .24), "coupled .9": CoupledLaw(1.69, 406.4, 410.7, .34, .28, .9), "coupled 1.15": CoupledLaw(1.69, 406.4, 410.7, .34, .28, 1.15)}


def grid(K, M, reach, spend, law=None):
    "N and D of K half-decade budgets, M sizes over `reach` to both sides of D/N = 20, or of the law's optimum"
    top = spend / (M * (10. ** (-np.arange(K) / 2)).sum())
    budgets = top * 10. ** (-np.arange(K)[::-1] / 2)
    centre = np.sqrt(budgets / 120) if law is None else law.optimum(budgets)[0]
    N = (centre[:, None] * np.geomspace(1 / reach, reach, M)).ravel()
    return N, np.repeat(budgets, M) / (6 * N)


class World:
    "Measures losses: a law, noise of ln L that falls as C^-fall, and a smooth bend of the law"
    def __init__(self, law, seed, noise=.002, fall=0., bend=0., length=3., waves=60):
        self.law, self.noise, self.fall, self.rng = law, noise, fall, np.random.default_rng(seed)
        self.k, self.at = self.rng.standard_normal((2, waves)) / length, self.rng.uniform(0, 2 * np.pi, waves)
        self.amplitude = self.rng.standard_normal(waves) * bend * math.sqrt(2 / waves)

    def __call__(self, N, D):
        e = self.noise * (1e18 / (6 * N * D)) ** self.fall * self.rng.standard_normal(len(N))
        return self.law.loss(N, D) * np.exp(e + np.cos(np.log(np.stack([N, D], 1)) @ self.k + self.at) @ self.amplitude)


def interval(fit, target=TARGET):
    "ln N*, and its 90 % interval; NaN where there is none"
    row = fit_intervals(fit, target, levels=.9).iloc[0]
    return tuple(np.log([row.estimate, row.low, row.high]))


def hybrid(world, spend, share=.4, rounds=3, k=4, **kw):
    "A 5 x 5 grid, then runs chosen by the fit"
    (N, D), left = grid(5, 5, 8, share * spend), (1 - share) * spend
    L, sizes = world(N, D), np.geomspace(N.min(), 3 * N.max(), 33)
    for turn in range(rounds):
        fit, part = fit_law(N, D, L), left / (rounds - turn)
        if not fit.status.ok:
            break
        more = next_points(fit, candidate_points(fit, sizes, part), TARGET, k, spend=part, **kw)
        n, d = more["N"].to_numpy(), more["D"].to_numpy()
        N, D, L, left = np.r_[N, n], np.r_[D, d], np.r_[L, world(n, d)], left - more["C"].sum()
    return fit_law(N, D, L)


def gridded(reach):
    def fitted(world, spend):
        N, D = grid(5, 7, reach, spend)
        return fit_law(N, D, world(N, D))
    return fitted


def trials(design, law, spend, sims, seed=0, **world):
    "Median width, share of intervals that hold the truth, root mean square error of ln N*"
    truth = math.log(law.optimum(TARGET)[0])
    found = np.array([interval(design(World(law, [seed, i], **world), spend)) for i in range(sims)])
    point, low, high = found[np.isfinite(found).all(1)].T
    return float(np.median(high - low)), float(np.mean((low <= truth) & (truth <= high))), float(np.sqrt(np.mean((point - truth) ** 2)))


def spend_for(design, law, width, sims, start=1e19, factor=4., most=2, **world):
    "FLOPs at which the median width is `width`, by halving or doubling up to `most` times and interpolating; and the coverage at the nearest spend tried"
    spend, (now, covered, _) = start, trials(design, law, start, sims, **world)
    way = 1 / factor if now <= width else factor
    for _ in range(most):
        other, held, _ = trials(design, law, spend * way, sims, **world)
        if (other > width) != (now > width):
            return spend * way ** (math.log(now / width) / math.log(now / other)), covered, False
        spend, now, covered = spend * way, other, held
    return spend, covered, True


def needed(sims, laws, falls=(0., .25)):
    "Table 1"
    for fall in falls:
        print(f"\nFLOPs for the width of the grid over 8x on 1e19 FLOPs, noise .2 % {'in all runs' if not fall else 'at 1e18 FLOPs, falling as C^-1/4'}; in brackets: 90 % intervals that hold")
        rows, ratios = {}, []
        for name in laws:
            width, held8, _ = trials(gridded(8), LAWS[name], 1e19, sims, fall=fall)
            ours, held, end = spend_for(hybrid, LAWS[name], width, sims, fall=fall)
            four, held4, end4 = spend_for(gridded(4), LAWS[name], width, sims, fall=fall)
            ratios.append(1e19 / ours)
            beyond = "" if not end4 else "<" if four < 1e19 else ">"
            rows[name] = {"width": f"{width:.3f}", "ours": f"{'<' * end}{ours:.1e} ({100 * held:.0f} %)", "8x": f"1.0e19 ({100 * held8:.0f} %)", "4x": f"{beyond}{four:.1e} ({100 * held4:.0f} %)",
                          "8x / ours": f"{'>' * end}{1e19 / ours:.1f}"}
        print(pd.DataFrame(rows).T.to_string(), flush=True)
        print(f"least {min(ratios):.1f}, geometric mean {math.exp(np.log(ratios).mean()):.1f}")


def equal_spend(sims, laws):
    "Error at equal spend"
    print("\nAt 1e19 FLOPs each: root mean square error of ln N*, over all laws (geometric mean); in brackets: 90 % intervals that hold the truth")
    designs, rows = {"ours": hybrid, "8x": gridded(8), "4x": gridded(4)}, {}
    for label, world in {"law right, even noise": {}, "law right, noise falls": dict(fall=.25), "law bent by .2 %": dict(bend=.002)}.items():
        found = {d: np.array([trials(f, LAWS[name], 1e19, sims, seed=1, **world) for name in laws]) for d, f in designs.items()}
        rows[label] = {d: f"{np.exp(np.log(v[:, 2]).mean()):.4f} ({100 * v[:, 1].mean():.0f} %)" for d, v in found.items()}
    print(pd.DataFrame(rows).T.to_string(), flush=True)


SHAPES = ((5, 7, 8), (5, 7, 4), (3, 5, 4), (3, 7, 8), (2, 5, 8), (8, 9, 8))

def forecasts(sims, laws, noises=(.001, .003, .008)):
    "Table 2"
    rows = []
    for name in laws:
        for shape in SHAPES:
            for noise in noises:
                N, D = grid(*shape, 1e19, LAWS[name])
                told, seen = predict_width(LAWS[name], N, D, 1e20, noise=noise, double=False), simulate(LAWS[name], N, D, 1e20, noise=noise, n=sims).summary
                if seen["width"]["ln N"] < 2:  # beyond a factor of e each way nobody reads a width
                    rows.append((name, f"{shape[0]} x {shape[1]}, {shape[2]}x", noise, 2 * told.ln_N / seen["width"]["ln N"], 2 * told.loss / seen["width"]["loss"]))
    frame = pd.DataFrame(rows, columns=["law", "grid", "noise", "ln N*", "loss"])
    print(f"\nForecast over simulated median width, {len(frame)} plans, {sims} sweeps each")
    print(frame.groupby("grid", sort=False)[["ln N*", "loss"]].agg(["min", "median", "max"]).round(2).to_string())
    off = frame[["ln N*", "loss"]].sub(1).abs()
    print(f"within 20 %: {100 * (off < .2).to_numpy().mean():.0f} % of the figures, the worst {100 * off.to_numpy().max():.0f} % off", flush=True)


def table(path):
    "N, D, C, loss of a table with columns params or N, train_flops or C, loss; the five highest losses are left out, as in the published fits"
    frame = pd.read_csv(path, comment="#").rename(columns=dict(params="N", train_flops="C")).sort_values("loss").iloc[:-5]
    return frame.assign(D=frame["C"] / (6 * frame["N"]))[["N", "D", "C", "loss"]].sort_values("C", ignore_index=True)


def chosen(frame, target, order, width, first, k=12):
    "FLOPs until the interval is as narrow as `width`, runs, and ln N* then; `order` gives the next rows from the fit, the rows taken and the rows left"
    taken = list(first)
    while True:
        fit = fit_law(frame.loc[taken, ["N", "D", "loss", "C"]])
        point, low, high = interval(fit, target) if fit.status.ok else (math.nan,) * 3
        if high - low <= width:
            return float(frame.loc[taken, "C"].sum()), len(taken), point
        left = frame.index.difference(taken)
        if not len(left):
            return math.nan, len(taken), point
        taken += list(order(fit, left))[:k]


def first_runs(frame, n=12, share=.4):
    "A cheap start that spreads: of the cheapest part, n runs at even steps of D/N"
    cheap = frame.iloc[:int(share * len(frame))]
    ranked = (cheap["D"] / cheap["N"]).sort_values().index
    return ranked[np.linspace(0, len(ranked) - 1, n).round().astype(int)]


def shuffled(seed):
    rng = np.random.default_rng(seed)
    return lambda fit, left: rng.permutation(left)


def replay(path, width=.5, draws=20):
    "Table 3"
    frame = table(path)
    target, first = 10 * frame["C"].max(), first_runs(frame)
    whole = interval(fit_law(frame), target)

    def ours(fit, left):
        if not fit.status.ok:
            return left[:4]
        return next_points(fit, frame.loc[left].assign(row=left), target, 4, repeat=1)["row"]
    ways = {"ours": [chosen(frame, target, ours, width, first, k=4)], "in order of compute": [chosen(frame, target, lambda fit, left: left, width, first)]}
    ways["at random"] = [chosen(frame, target, shuffled(s), width, first) for s in range(draws)]
    print(f"\n{len(frame)} runs, {frame['C'].sum():.2g} FLOPs, all of them: ln N*({target:.1e}) = {whole[0]:.2f} ({whole[1]:.2f} to {whole[2]:.2f}). Until the interval is {width:g} wide:")
    median = lambda found: pd.Series(np.nanmedian(found, axis=0), ["FLOPs", "runs", "ln N*"])
    print(pd.DataFrame({w: median(found) for w, found in ways.items()}).T.to_string(formatters={"FLOPs": "{:.2e}".format, "runs": "{:.0f}".format, "ln N*": "{:.2f}".format}), flush=True)
    return ways


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", nargs="?", default="all", choices=("all", "quick", "replay"))
    p.add_argument("path", nargs="?", help="of a table of runs, for replay")
    p.add_argument("--sims", type=int, default=12)
    p.add_argument("--width", type=float, default=.5, help="of the interval of ln N*, for replay")
    args = p.parse_args()
    if args.what == "replay":
        replay(args.path, args.width)
    else:
        quick = args.what == "quick"
        laws, sims = (("Chinchilla", "coupled .9"), 8) if quick else (tuple(LAWS), args.sims)
        needed(sims, laws)
        equal_spend(sims, laws)
        forecasts(60 if quick else 100, laws)
