"""Draw the picture of the first page from runs on a law that is known: python tools/picture.py

The runs are those of the README's example, so that the answer in the picture is the one printed there, with the truth beside it.
Writes docs/_static/welcome-light.svg and docs/_static/welcome-dark.svg, the charts of the package in two inks."""
import sys
from pathlib import Path

import altair as alt
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from scaling_nb import ChinchillaLaw, compute_optimal, fit_law  # noqa: E402
from scaling_nb.charts import chart_svg, plot_isoflop, plot_optimum  # noqa: E402
from scaling_nb.laws import si_format  # noqa: E402

TARGET = 1e21
INK, INKS = "#787878", dict(light="#30363d", dark="#c9d1d9")  # that of the charts, and what it becomes
TRUTH = "#e0566a"


def runs():
    "The law and the fit of the README's example"
    law = ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    rng = np.random.default_rng(0)
    C = np.repeat([1e18, 3e18, 1e19, 3e19, 1e20], 7)
    N = np.concatenate([law.optimum(c)[0]*np.geomspace(1/8, 4, 7) for c in C[::7]])
    D = C/(6*N)
    return law, fit_law(N, D, law.loss(N, D) + .003*rng.standard_normal(35))


def says(law, fit):
    "(the finding, what it rests on, what is seen on the left, on the right)"
    best, truth = compute_optimal(fit, TARGET), law.optimum(TARGET)[0]
    low, high = best.N_interval
    return (f"For 1e{np.log10(TARGET):.0f} FLOPs: {si_format(best.N)} parameters (90 %: {si_format(low)} to {si_format(high)}); the truth is {si_format(truth)}",
            f"Read off {len(fit.N)} runs of a tenth of that or less, whose losses were drawn from a law that is known",
            "Each budget has a best size", "The best sizes lie on a line, which is extrapolated")


def picture(law, fit):
    "The profiles, and the optimum extrapolated to the target, as an Altair chart"
    title, about, left, right = says(law, fit)
    seen = plot_isoflop(fit).properties(title=alt.TitleParams(left, fontSize=12, fontWeight=500), width=330, height=230)
    answer = plot_optimum(fit, TARGET).hconcat[0].properties(title=alt.TitleParams(right, fontSize=12, fontWeight=500), width=330, height=230)
    at = alt.Chart(alt.Data(values=[dict(C=TARGET, N=law.optimum(TARGET)[0], says="the truth")])).encode(x="C:Q", y="N:Q")
    answer = answer + at.mark_point(shape="circle", size=190, color=TRUTH, strokeWidth=2.2, filled=False) + at.mark_text(color=TRUTH, align="right", dx=-14, fontSize=12).encode(text="says:N")
    both = alt.hconcat(seen, answer, spacing=34).resolve_scale(color="shared", shape="shared").properties(title=alt.TitleParams(title, subtitle=about, fontSize=15))
    return both.configure_legend(orient="bottom", direction="horizontal", titleOrient="left", titlePadding=12, columnPadding=14)


def flat(spec):
    "A spec whose legends lie on one line"
    if isinstance(spec, list):
        return [flat(x) for x in spec]
    if not isinstance(spec, dict):
        return spec
    return {k: {**flat(v), "columns": 9} if k == "legend" and isinstance(v, dict) else flat(v) for k, v in spec.items()}


def draw(chart, ink):
    "The chart as SVG in an ink of its own"
    return chart_svg(flat(chart.to_dict())).replace(INK, ink)


if __name__ == "__main__":
    chart = picture(*runs())
    for name, ink in INKS.items():
        where = ROOT / "docs" / "_static" / f"welcome-{name}.svg"
        where.write_text(draw(chart, ink) + "\n", encoding="utf-8")
        print(f"{where.relative_to(ROOT)}: {where.stat().st_size / 1e3:.0f} kB")
