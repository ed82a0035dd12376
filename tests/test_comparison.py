"""Two laws that are known, and what is said of them: who is better where, where they change places, what one is worth over the other."""
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from scaling_nb.comparison import FAR, Outcome, _crossings, _curve, _gap, _pieces, _Side, compare
from scaling_nb.fitting import fit_law
from scaling_nb.intervals import fit_intervals
from scaling_nb.laws import ChinchillaLaw

OLD = ChinchillaLaw(1.69, 406.4, 410.7, .34, .28)
BUDGETS = 1e18*10.**(np.arange(5)/2)


def crossing_at(C, beta):
    "A law with another exponent that is equal to OLD at C."
    other = lambda B: ChinchillaLaw(1.69, 406.4, B, .34, beta)
    return other(brentq(lambda B: other(B).optimum(C)[2] - OLD.optimum(C)[2], 10, 1e5))


def sweep(law, seed=None, noise=.004, budgets=BUDGETS, cost=lambda N: 6*N, form="chinchilla", **kw):
    N = (law.optimum(budgets)[0][:, None]*np.geomspace(1/8, 4, 7)).ravel()
    C = np.repeat(budgets, 7)
    D = C/cost(N)
    e = 0 if seed is None else noise*np.random.default_rng(seed).standard_normal(len(N))
    return fit_law(N, D, law.loss(N, D) + e, C=C, budget=np.repeat(budgets, 7), law=form, **kw)


NEW = crossing_at(2e19, .30)
PAIR = sweep(OLD, 1), sweep(NEW, 2)


def study(fit, name="GPT(width)", held="aaa", per=None, recipe=None, mock=False, **info):
    "What `compare` asks of a study."
    loss = np.full(3, 2.)
    frame = pd.DataFrame(dict(loss=loss, bits_per_byte=loss/math.log(2)/per if per else np.full(3, math.nan)))
    return SimpleNamespace(surface=fit, reasons={"surface": "no run has finished"}, name=name, runs=frame, recipe=recipe or dict(lr=.01), mock=mock,
                           info=dict(problem=dict(loss="l"), held_out=dict(fingerprint=held) if held else None, **info))


def test_without_noise_the_answers_are_exact():
    c = compare(sweep(OLD), sweep(NEW), budgets=[1e18, 1e20, 1e21], names=("old", "new"))
    assert c.outcome is Outcome.CROSSES and c.crossing.C == pytest.approx(2e19, rel=1e-5) and (c.crossing.better_below, c.crossing.better_above) == ("old", "new")
    assert c.crossing.interval[0] < 2e19 < c.crossing.interval[1] and list(c.frame.better) == ["old", "new", "new"]
    for r in c.frame.itertuples():
        assert r.multiplier == pytest.approx(NEW.compute(OLD.optimum(r.C)[2])/r.C, rel=1e-5) and r.difference == pytest.approx(NEW.optimum(r.C)[2] - OLD.optimum(r.C)[2], abs=1e-6)
        assert (r.N_a, r.N_b) == pytest.approx((OLD.optimum(r.C)[0], NEW.optimum(r.C)[0]), rel=1e-4)


def test_the_multiplier_is_of_compute_as_it_was_measured():
    cost = lambda N: 6*N + 3e4*N**.6
    c = compare(sweep(OLD, cost=cost), sweep(NEW, cost=cost), budgets=[1e19, 1e21])
    for r in c.frame.itertuples():
        L = OLD.optimum(r.C, c_a := sweep(OLD, cost=cost).curve)[2]
        assert r.multiplier == pytest.approx(NEW.compute(L, c_a)/r.C, rel=1e-2) and r.multiplier_low <= r.multiplier <= r.multiplier_high


@pytest.mark.parametrize("law,at", [(crossing_at(5e19, .30), 5e19), (crossing_at(5e20, .295), 5e20)], ids=["steep", "shallow and extrapolated"])
def test_the_interval_of_the_crossing_holds_it_nine_times_in_ten(law, at):
    held, found = 0, 0
    for seed in range(40):
        sides = _Side.of("a", sweep(OLD, 100 + 2*seed)), _Side.of("b", sweep(law, 101 + 2*seed))
        crossings, outcome, undecided = _crossings(sides, (1e18, 99e20), .9)
        covers = lambda p: (p[0] or 0) <= at <= (p[1] or math.inf)
        held += any(map(covers, undecided))
        found += outcome is Outcome.CROSSES
        assert all(c.interval in undecided for c in crossings)
    assert held/40 >= .825 and (found/40 > .5 if at < 1e20 else 0 < found/40 < .4)    # of a shallow crossing the runs mostly cannot say that there is one


def test_the_interval_of_the_multiplier_holds_it():
    from scaling_nb.comparison import _multipliers
    true, held = NEW.compute(OLD.optimum(3e20)[2])/3e20, 0
    for seed in range(40):
        a, b = _Side.of("a", sweep(OLD, 300 + 2*seed)), _Side.of("b", sweep(NEW, 301 + 2*seed))
        _, low, high, wide_low, wide_high = _multipliers(_curve(a, np.array([3e20])), b, .9)[:, 0]
        held += low < true < high
        assert wide_low <= low*1.001 and wide_high >= high/1.001
    assert .8 <= held/40 <= 1


def test_the_same_study_twice_cannot_be_told_apart():
    "Over the whole line, which is many budgets: nine times in ten nothing is claimed of two sweeps of one law."
    outcomes = [_crossings((_Side.of("a", sweep(OLD, 1000 + 2*k)), _Side.of("b", sweep(OLD, 1001 + 2*k))), (1e18, 99e20), .9)[1] for k in range(40)]
    assert outcomes.count(Outcome.CANNOT_TELL) >= 34 and Outcome.ONE_BETTER not in outcomes
    c = compare(PAIR[0], PAIR[0])
    assert c.outcome is Outcome.CANNOT_TELL and c.undecided == ((None, None),) and set(c.frame.better) == {"cannot tell"} and not c.frame.holds.any()
    assert (c.frame.multiplier_low < 1).all() and (c.frame.multiplier_high > 1).all() and c.frame.multiplier.to_numpy() == pytest.approx(1)


def test_one_that_is_always_better_has_no_crossing():
    c = compare(sweep(OLD, 1), sweep(ChinchillaLaw(1.75, 450, 480, .34, .28), 2), names=("good", "bad"))
    assert c.outcome is Outcome.ONE_BETTER and c.crossings == () and c.crossing is None and set(c.frame.better) == {"good"} and "no crossing within reach" in repr(c)
    assert (c.frame.multiplier_low > 1).all()


def test_a_floor_that_may_lie_above_leaves_the_multiplier_open():
    c = compare(PAIR[0], sweep(ChinchillaLaw(2.35, 406.4, 410.7, .34, .28), 2), budgets=[5e21])
    assert c.frame.multiplier[0] == math.inf and c.frame.multiplier_high[0] == math.inf and "any" in repr(c)
    assert c.to_dict()["budgets"][0]["multiplier"] is None


def test_swapped_sides_say_the_same():
    c, d = compare(*PAIR, budgets=[1e18, 1e20], names=("o", "n")), compare(*PAIR[::-1], budgets=[1e18, 1e20], names=("n", "o"))
    assert d.frame.difference.to_numpy() == pytest.approx(-c.frame.difference.to_numpy(), abs=1e-12) and list(c.frame.better) == list(d.frame.better)
    assert c.crossing.C == pytest.approx(d.crossing.C, rel=1e-9) and c.crossing.interval == pytest.approx(d.crossing.interval, rel=1e-6) and c.crossing.better_below == d.crossing.better_below


def test_losses_have_the_intervals_that_the_fit_gives_them():
    "By another road: finite differences in `fit_intervals`, the envelope theorem here."
    cost = lambda N: 6*N + 3e4*N**.6
    for fit in (PAIR[0], sweep(OLD, 5, cost=cost)):
        r = compare(fit, PAIR[1], budgets=[1e18, 1e21]).frame
        for C, row in zip([1e18, 1e21], r.itertuples()):
            for method, low, high in (("sandwich", row.loss_a_low, row.loss_a_high), ("discrepancy", row.loss_a_outer_low, row.loss_a_outer_high)):
                known = fit_intervals(fit, C, method=method, levels=(.9,)).query("quantity == 'loss'").iloc[0]
                assert (low, high) == pytest.approx((known.low, known.high), abs=2e-5), method


def test_beyond_a_hundred_times_nothing_is_said_of_the_loss():
    c = compare(*PAIR, budgets=[1e21, 2e22])
    far = c.frame.iloc[1]
    assert math.isnan(far.difference) and math.isnan(far.multiplier) and far.better.startswith("not said") and not far.holds and far.N_a > 0 and "not said" in repr(c)
    with pytest.raises(ValueError, match="99 times the smaller sweep"): compare(*PAIR, reach=(1e18, 1e23))
    assert c.reach[1] == pytest.approx(FAR*1e20)


def test_the_default_budgets_are_half_decades_of_what_both_have():
    c = compare(PAIR[0], sweep(NEW, 2, budgets=BUDGETS*10))
    assert c.frame.C.to_numpy() == pytest.approx(10.**np.arange(19, 21.1, .5)) and c.reach[0] == pytest.approx(1e19) and c.tops == pytest.approx((1e20, 1e21))


@pytest.mark.parametrize("make,says", [
    (lambda: compare(*PAIR, names=("x", "x")), "two different names"),
    (lambda: compare(*PAIR, unit="bits"), "'nats' or 'bits_per_byte'"),
    (lambda: compare(*PAIR, level=1.2), "between 0 and 1"),
    (lambda: compare(*PAIR, budgets=[-1]), "positive, finite"),
    (lambda: compare(*PAIR, budgets=[]), "positive, finite"),
    (lambda: compare(*PAIR, reach=(1e21, 1e19)), "low < high"),
    (lambda: compare(PAIR[0], sweep(NEW, 2, budgets=BUDGETS*1e6)), "must share budgets.*'a' 1.0e18 to 1.0e20 and 'b' 1.0e24 to 1.0e26 were measured"),
    (lambda: compare(*PAIR, unit="bits_per_byte"), "bytes_per_token"),
    (lambda: compare(PAIR[0], study(None)), "no run has finished"),
    (lambda: compare(PAIR[0], sweep(NEW, 2, form="coupled")), "'b'.*CoupledLaw"),
    (lambda: compare(fit_law([1e7, 2e7, 4e7, 8e7, 1e8], [1e9, 5e9, 2e9, 8e9, 3e9], OLD.loss(np.array([1e7, 2e7, 4e7, 8e7, 1e8]), np.array([1e9, 5e9, 2e9, 8e9, 3e9]))), PAIR[1]), "'a'.*no interval"),
    (lambda: compare(fit_law(N := np.geomspace(1e7, 1e9, 12), 20*N, OLD.loss(N, 20*N)), PAIR[1]), "'a'.*D/N"),
    (lambda: compare(sweep(ChinchillaLaw(0., 40, 60, .1, .12), 3, noise=.02), PAIR[1]), "floor"),
])
def test_what_cannot_be_compared(make, says):
    with pytest.raises(ValueError, match=says): make()


def test_other_held_out_data_are_refused():
    a, b = study(PAIR[0], "old"), study(PAIR[1], "new", held="bbb")
    with pytest.raises(ValueError, match="held-out data.*'old' and 'new' differ.*bits_per_byte"): compare(a, b)
    assert any("was allowed" in n for n in compare(a, b, allow=("held_out",)).notes)
    same = compare(a, study(PAIR[1], "new"))
    assert same.names == ("old", "new") and not same.notes
    assert any("is not known" in n for n in compare(a, study(PAIR[1], "new", held=None)).notes) and any("is not known" in n for n in compare(*PAIR).notes)


def test_bits_per_byte_are_of_each_side_its_own_bytes():
    a, b = study(PAIR[0], "a", per=4.), study(PAIR[1], "b", held="bbb", per=3.5)
    c, d = compare(a, b, unit="bits_per_byte", budgets=[1e19]), compare(*PAIR, unit="bits_per_byte", bytes_per_token=(4., 3.5), budgets=[1e19])
    assert c.unit == "bits per byte" and c.frame.loss_a[0] == pytest.approx(PAIR[0].law.optimum(1e19)[2]/math.log(2)/4) and c.frame.difference[0] == pytest.approx(d.frame.difference[0])
    assert any("which cannot be seen" in n for n in c.notes)
    n = compare(*PAIR, budgets=[1e19]).frame
    e = compare(*PAIR, unit="bits_per_byte", bytes_per_token=(4., 4.), budgets=[1e19]).frame
    assert e.high[0] == pytest.approx(n.high[0]/math.log(2)/4) and e.multiplier_high[0] == pytest.approx(n.multiplier_high[0], rel=1e-6)


def test_other_recipes_are_named_and_rehearsals_refused():
    c = compare(study(PAIR[0], "a"), study(PAIR[1], "b", recipe=dict(lr=.02, decay=.2)))
    assert any("recipes differ in decay, lr" in n for n in c.notes)
    with pytest.raises(ValueError, match="rehearsal"): compare(study(PAIR[0], "a", mock=True), study(PAIR[1], "b"))
    assert compare(study(PAIR[0], "a", mock=True), study(PAIR[1], "b"), allow=("mock",)).names == ("a", "b")
    assert compare(sweep(OLD, 1, mock=True), sweep(NEW, 2, mock=True)).mock and "mock" in repr(compare(sweep(OLD, 1, mock=True), sweep(NEW, 2, mock=True)))
    other = study(PAIR[1], "b")
    other.info["problem"]["loss"] = "m"
    assert any("loss functions differ" in n for n in compare(study(PAIR[0], "a"), other).notes)


def test_a_surface_that_misses_its_runs_is_named():
    N = (OLD.optimum(BUDGETS)[0][:, None]*np.geomspace(1/8, 4, 7)).ravel()
    C = np.repeat(BUDGETS, 7)
    D = C/(6*N)
    L = OLD.loss(N, D) + .02*np.sin(1.3*np.log(N)) + .0005*np.random.default_rng(0).standard_normal(len(N))
    rng = np.random.default_rng(1)
    twice = fit_law(np.r_[N, N], np.r_[D, D], np.r_[L, L + .0005*rng.standard_normal(len(N))], C=np.r_[C, C])
    assert any("misses the runs of 'b'" in n for n in compare(PAIR[0], twice).notes)


def test_it_is_plain_data_and_shows_itself():
    c = compare(*PAIR, names=("old", "<new>"))
    d = json.loads(json.dumps(c.to_dict(), allow_nan=False))
    assert d["outcome"] == "CROSSES" and d["crossings"][0]["C"] == c.crossing.C and len(d["budgets"]) == len(c.frame)
    assert "&lt;new&gt;" in c._repr_html_() and "<new>" not in c._repr_html_() and repr(c).count("\n") >= len(c.frame)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1).filter(lambda v: abs(v) > 1e-3), min_size=2, max_size=12))
def test_pieces_hold_what_is_inside_and_nothing_else(values):
    x, v = np.arange(len(values), dtype=float), np.array(values)
    pieces = _pieces(x, v)
    within = lambda t: any((p[0] is None or p[0] <= t) and (p[1] is None or t <= p[1]) for p in pieces)
    assert [within(t) for t in x] == list(v >= 0)
    ends = [e for p in pieces for e in p if e is not None]
    assert np.interp(ends, x, v) == pytest.approx(0, abs=1e-9) if ends else True


def test_the_gap_is_that_of_independent_sweeps():
    a, b = (_curve(_Side.of(k, f), np.array([1e19])) for k, f in zip("ab", PAIR))
    d, low, high, outer_low, outer_high = _gap(a, b, .9)
    assert outer_low <= low < d < high <= outer_high and (high - low)/2 == pytest.approx(1.6716*math.hypot(a.sd[0], b.sd[0]), rel=5e-3)   # t of about 60 degrees of freedom


@pytest.mark.parametrize("b,level,says,marks", [
    (sweep(NEW, 2), .9, "new overtakes old at 2.", 1), (sweep(crossing_at(5e20, .31), 2), .9, "new may overtake old", 1), (PAIR[0], .9, "old and new cannot be told apart", 0),
    (sweep(ChinchillaLaw(1.75, 450, 480, .34, .28), 2), .9, "old is better at every compute", 0), (sweep(ChinchillaLaw(2.35, 406.4, 410.7, .34, .28), 2), .9, "old is better", 0)])
def test_the_picture_says_the_finding(b, level, says, marks):
    from scaling_nb.charts import chart_svg, plot_comparison
    c = compare(PAIR[0], b, names=("old", "new"), level=level)
    spec = plot_comparison(c).to_dict()
    assert spec["title"]["text"].startswith(says) and says in spec["description"]
    layers = [layer for panel in spec["vconcat"] for layer in panel["layer"]]
    assert sum("crossing" in str(layer.get("encoding", {}).get("tooltip", "")) for layer in layers) == 2*marks
    assert "Infinity" not in json.dumps(spec) and "NaN" not in json.dumps(spec) and "new" in chart_svg(spec)
