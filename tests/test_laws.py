"""The formulas against published numbers, brute search and each other."""
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_nb.laws import (
    LAWS,
    ChinchillaLaw,
    CoupledLaw,
    DataConstrainedLaw,
    FlopsCurve,
    Form,
    FormLaw,
    IsoFlopParabola,
    KaplanLaw,
    PowerLaw,
    compute_search,
    effective_epochs,
    inference_optimal,
    lowest_loss,
    optimal_split,
    overtrained,
    parabola_bias,
    sci_format,
    si_format,
    tokens_to_reach,
)

ROUNDED = ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=.34, beta=.28)
TEX = ChinchillaLaw(E=math.exp(.5267228), A=math.exp(6.0073404), B=math.exp(6.0179186), alpha=.33917084, beta=.2849083)
BESIROGLU = ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, alpha=.3478, beta=.3658)
UNEVEN = ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=.465, beta=.155)

laws = st.builds(ChinchillaLaw, E=st.floats(0, 3), A=st.floats(1, 1e4), B=st.floats(1, 1e4), alpha=st.floats(.1, .9), beta=st.floats(.1, .9))


@pytest.mark.parametrize("law, C, G, a, N, D, ratio, L", [
    (ROUNDED, 1e21, 1.34471, .451613, 1.82422e9, 9.13634e10, 50.08, 2.328883),
    (ROUNDED, 5.76e23, 1.34471, .451613, 3.21899e10, 2.98231e12, 92.65, 1.930748),
    (TEX, 5.76e23, 1.30005, .456526, 4.03609e10, 2.37854e12, 58.93, 1.918412),
    (BESIROGLU, 5.76e23, .11963, .512612, 7.22487e10, 1.32874e12, 18.39, 1.974441)])
def test_published_optima(law, C, G, a, N, D, ratio, L):
    n, d, loss = law.optimum(C)
    assert law.G == pytest.approx(G, rel=1e-4) and law.a == pytest.approx(a, abs=1e-6) and law.b == pytest.approx(1 - a, abs=1e-6)
    assert (n, d, d / n) == pytest.approx((N, D, ratio), rel=2e-4) and loss == pytest.approx(L, abs=1e-6)


def general(N):
    return 6 * N + 4e6 * N ** .4


@pytest.mark.parametrize("law", [ROUNDED, BESIROGLU, UNEVEN])
@pytest.mark.parametrize("C", [1e10, 1e17, 1e24])
def test_search_agrees_with_the_closed_form_and_with_brute_force(law, C):
    closed, searched = law.optimum(C, 6.), law.optimum(C, lambda N: 6. * N)
    assert searched == pytest.approx(closed, rel=1e-8)
    N, D, L = law.optimum(C, general)
    grid = N * np.geomspace(.05, 20, 20001)
    losses = law.loss(grid, C / general(grid))
    assert L <= losses.min() + 1e-12 and abs(math.log(grid[losses.argmin()] / N)) < 1e-3
    assert general(N) * D == pytest.approx(C, rel=1e-12)


def test_arrays_and_scalars():
    C = np.array([[1e18, 1e20], [1e21, 1e22]])
    for cost in (6., general):
        N, D, L = ROUNDED.optimum(C, cost)
        assert N.shape == D.shape == L.shape == C.shape
        assert (N[1, 0], D[1, 0], L[1, 0]) == pytest.approx(ROUNDED.optimum(1e21, cost), rel=1e-12)
    assert all(isinstance(v, float) for v in ROUNDED.optimum(1e21)) and all(isinstance(v, float) for v in ROUNDED.optimum(1e21, general))
    many = optimal_split(np.full(3, 406.4), 410.7, .34, np.array([.28, .3, .28]), 1e21, general)
    assert many[0].shape == (3,) and many[0][0] == many[0][2] == pytest.approx(ROUNDED.optimum(1e21, general)[0], rel=1e-10)


@settings(max_examples=40, deadline=None)
@given(law=laws, ln_C=st.floats(30, 60))
def test_compute_inverts_optimum(law, ln_C):
    C = math.exp(ln_C)
    N, D, L = law.optimum(C)
    assert C == pytest.approx(6 * N * D, rel=1e-9)
    assert law.loss(N * 1.2, D / 1.2) >= L <= law.loss(N / 1.2, D * 1.2)
    if L - law.E > 1e-6 * (1 + law.E):
        assert law.compute(L) == pytest.approx(C, rel=1e-4)


def test_compute_with_measured_flops():
    assert ROUNDED.compute(ROUNDED.optimum(1e20, general)[2], general) == pytest.approx(1e20, rel=1e-9)
    with pytest.raises(ValueError, match="irreducible"):
        ROUNDED.compute(1.69)


@pytest.mark.parametrize("bad", [dict(alpha=-.1), dict(beta=0.), dict(A=math.nan), dict(B=math.inf), dict(E=-.1), dict(E=math.nan)])
def test_impossible_laws_are_refused(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
        ChinchillaLaw(**ROUNDED.to_dict() | bad)


@pytest.mark.parametrize("C", [0, -1., math.nan, math.inf])
def test_impossible_budgets_are_refused(C):
    with pytest.raises(ValueError, match="positive"):
        ROUNDED.optimum(C)


def test_round_trips():
    assert ChinchillaLaw.from_dict(TEX.to_dict()) == TEX
    assert PowerLaw.from_dict(PowerLaw(1.7, 3.1, -.15).to_dict()) == PowerLaw(1.7, 3.1, -.15)


@pytest.mark.parametrize("law, expected", [(ROUNDED, (-.327, -1.301, -2.903, -5.100)), (UNEVEN, (-1.675, -6.498, -13.910, -23.116)),
                                           (ChinchillaLaw(1.69, 406.4, 410.7, .31, .31), (0, 0, 0, 0))])
def test_parabola_bias_table(law, expected):
    "METHODS A.1.3: error of D*(1e24) in per cent, budgets 1e17 to 1e21, 15 sizes"
    budgets = 10. ** np.arange(17, 22)
    for k, error in zip((2, 4, 8, 16), expected):
        tokens = []
        for C in budgets:
            N = law.optimum(C)[0] * np.geomspace(1 / k, k, 15)
            p, q, _ = np.polyfit(np.log(C / (6 * N)), law.loss(N, C / (6 * N)), 2)
            tokens.append(-q / (2 * p))
        found = np.polyval(np.polyfit(np.log(budgets), tokens, 1), math.log(1e24)) - math.log(law.optimum(1e24)[1])
        assert 100 * math.expm1(found) == pytest.approx(error, abs=1e-3)
        if k <= 4:  # the formula is the leading order in the width
            assert parabola_bias(law.alpha, law.beta, k) == pytest.approx(-found, abs=2e-2 * abs(found) + 1e-9)


def test_parabola():
    valley = IsoFlopParabola(p=.05, q=-.1 * math.log(3e7), r=4.)
    assert valley.vertex == pytest.approx(3e7, rel=1e-9) and valley.min_loss == pytest.approx(valley.loss(3e7), abs=1e-12)
    assert valley.loss(np.array([1e7, 1e8])).shape == (2,)
    assert math.isnan(IsoFlopParabola(-.05, 1., 3.).vertex) and math.isnan(IsoFlopParabola(0., 1., 3.).min_loss)


def test_flops_curve_passes_through_the_runs_and_holds_the_ratio():
    N = np.array([3e4, 1e5, 1.00005e5, 4e5, 1e6, 5e6])
    curve = FlopsCurve.from_runs(N[::-1], general(N)[::-1])
    assert len(curve.N) == 5 and curve.constant is None
    assert curve(N) == pytest.approx(general(N), rel=1e-4)
    ratio = lambda n: curve(n) / n
    assert ratio(1e12) == pytest.approx(ratio(1e9), rel=1e-2) and ratio(5e6) / 2 < ratio(1e9) < ratio(5e6) and ratio(3e4) < ratio(1e3) < 2 * ratio(3e4)
    for end in (3e4, 5e6):  # the exponent of the cost does not jump
        before, after = (np.log(ratio(end * (1 + s)) / ratio(end)) / s for s in (-1e-6, 1e-6))
        assert before == pytest.approx(after, rel=1e-3)
    fine = np.geomspace(3e4, 5e6, 500)
    assert (np.diff(curve(fine) / fine) <= 1e-9).all(), "never overshoots between two sizes"
    assert curve(2e5) == pytest.approx(general(2e5), rel=2e-3)
    assert FlopsCurve(curve.N, curve.f, curve.scatter) == curve and curve.scatter < 1e-6


def test_flops_curve_of_one_size_and_of_a_line():
    assert FlopsCurve.from_runs([1e6, 1e6], [7e6, 7e6]).constant == pytest.approx(7)
    line = FlopsCurve.from_runs([1e6, 1e7], [6e6, 6e7])
    assert line.constant == pytest.approx(6) and ROUNDED.optimum(1e21, line) == pytest.approx(ROUNDED.optimum(1e21), rel=1e-9)


@pytest.mark.parametrize("x, text", [(0, "0"), (7, "7"), (1234, "1.23k"), (999_999, "1.00M"), (12.34e6, "12.3M"), (70e9, "70.0B"),
                                     (1.4e12, "1.40T"), (4e20, "4.00e20"), (.5, "0.500"), (None, "-"), (math.nan, "-"), (-2.5e6, "-2.50M")])
def test_si_format(x, text):
    assert si_format(x) == text


def test_sci_format():
    assert sci_format(5.76e23) == "5.76e23" and sci_format(4e20, 2) == "4.0e20" and sci_format(1.5e-7) == "1.50e-7" and sci_format(None) == "-"


# ------------------------------------------------------------------ coupled, Kaplan
C4 = DataConstrainedLaw(E=math.exp(.6254804), A=math.exp(6.255414), B=math.exp(7.3049974), alpha=.3526596, beta=.3526596, unique=25e9)
SARDANA = ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=.336, beta=.283)
by_hand = Form(lambda N, D, E, A, B, alpha, beta: E + A * N ** -alpha + B * D ** -beta, ("E", "A", "B", "alpha", "beta"),
               dict(E=(0, 5), A=(1, 1e6), B=(1, 1e6), alpha=(.05, .95), beta=(.05, .95)), name="by hand")
coupled = st.builds(CoupledLaw, E=st.floats(0, 3), A=st.floats(1, 2e6), B=st.floats(1, 2e6), alpha=st.floats(.1, .9), beta=st.floats(.1, .9), gamma=st.floats(.2, 5))


def coupled_of(law, gamma):
    return CoupledLaw(**law.to_dict(), gamma=gamma)


def brute(law, C, f, around, width=3., points=200_001):
    "(N, loss) of the lowest loss on a fine grid around a size: knows nothing but the loss"
    N = around * np.exp(np.linspace(-width, width, points))
    losses = law.loss(N, C / f(N))
    return N[losses.argmin()], losses.min()


def six(N):
    return 6. * N


@pytest.mark.parametrize("gamma, C, N, D, L", [(.9, 1e21, 1.767977e9, 9.426972e10, 2.286378), (.6, 1e21, 1.609445e9, 1.035554e11, 2.175092),
                                               (.9, 5.76e23, 3.119744e10, 3.077176e12, 1.914731), (1., 1e21, 1.82422e9, 9.13634e10, 2.328883)])
def test_coupled_numbers(gamma, C, N, D, L):
    "METHODS A.1.2b"
    law = coupled_of(ROUNDED, gamma)
    n, d, loss = law.optimum(C)
    assert (n, d) == pytest.approx((N, D), rel=3e-6) and loss == pytest.approx(L, abs=6e-7)
    assert law.G * (C / 6) ** law.a == pytest.approx(n, rel=1e-10) and law.a == ROUNDED.a


def test_coupled_is_chinchilla_at_one_and_a_single_power_law_at_the_edges():
    N, D = np.geomspace(1e6, 1e12, 7)[:, None], np.geomspace(1e8, 1e14, 5)
    assert coupled_of(TEX, 1.).loss(N, D) == pytest.approx(TEX.loss(N, D), rel=1e-14)
    for gamma in (.2, .7, 1.4, 5.):
        law = coupled_of(TEX, gamma)
        assert law.loss(1e9, 1e300) == pytest.approx(TEX.E + TEX.A * 1e9 ** -TEX.alpha, rel=1e-9)
        assert law.loss(1e300, 1e9) == pytest.approx(TEX.E + TEX.B * 1e9 ** -TEX.beta, rel=1e-9)
        assert law.optimum(1e21, general)[0] == pytest.approx(lowest_loss(law, 1e21, general)[0], rel=1e-7)


@settings(max_examples=40, deadline=None)
@given(law=coupled, ln_C=st.floats(35, 60), cost=st.sampled_from([six, general]))
def test_coupled_optimum_and_its_inverse(law, ln_C, cost):
    C = math.exp(ln_C)
    N, D, L = law.optimum(C, cost)
    assert cost(N) * D == pytest.approx(C, rel=1e-9) and all(map(math.isfinite, (N, D, L)))
    assert L <= brute(law, C, cost, N, points=2001)[1] * (1 + 1e-14)
    if cost is six: assert (N, D, L) == pytest.approx(law.optimum(C), rel=1e-8)
    if L - law.E > 1e-6 * (1 + law.E): assert law.compute(L, cost) == pytest.approx(C, rel=1e-4)


@pytest.mark.parametrize("gamma", [.01, .05, 20.])
def test_extreme_couplings_do_not_overflow(gamma):
    law = replace(coupled_of(ROUNDED, gamma), A=2e6, B=1e5, alpha=.9, beta=.9)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        N, D, L = law.optimum(1e24, general)
    assert math.isfinite(L) and L <= brute(law, 1e24, general, N, points=2001)[1] * (1 + 1e-14)


def test_kaplan():
    "METHODS A.1.1"
    law = KaplanLaw()
    assert law.loss(1e9, 1e10) == pytest.approx(2.4196518, abs=5e-8)
    N, D = np.geomspace(1e6, 1e12, 7)[:, None], np.geomspace(1e8, 1e13, 6)
    assert law.loss(N, D) == pytest.approx(law.coupled.loss(N, D), rel=1e-12)
    for C in (1e18, 1e23):
        n, d, loss = law.optimum(C, general)
        found = brute(law, C, general, n)
        assert math.log(found[0] / n) == pytest.approx(0, abs=1e-3) and loss <= found[1] * (1 + 1e-14) and loss == pytest.approx(law.loss(n, d), rel=1e-12)
        assert law.compute(loss, general) == pytest.approx(C, rel=1e-9)
    assert math.log(law.optimum(1e23)[0] / law.optimum(1e21)[0]) / math.log(100) == pytest.approx(.103 / (.103 + .076), rel=1e-9)


# ------------------------------------------------------------------ data that run out
def muennighoff(N, D, U, p=C4):
    "The formula of the paper, written down once more"
    G = (p.alpha * p.A / (p.beta * p.B)) ** (1 / (p.alpha + p.beta))
    U_N = min(N, (U * G) ** (p.beta / p.alpha) * G)
    R_D, R_N = D / U - 1, N / U_N - 1
    return (p.E + p.A / (U_N + U_N * p.R_N * (1 - math.exp(-R_N / p.R_N))) ** p.alpha
            + p.B / (U + U * p.R_D * (1 - math.exp(-R_D / p.R_D))) ** p.beta)


def test_muennighoff_numbers():
    "METHODS A.1.6, and the answer of the grid in the paper's repository"
    assert C4.loss(6.34e9, 242e9) == pytest.approx(2.2256440889984477, rel=1e-13) and C4.loss(8.67e9, 178e9) == pytest.approx(2.2269634075087867, rel=1e-13)
    assert effective_epochs(np.array([2, 4, 8, 16, 40])) == pytest.approx([1.968, 3.726, 6.624, 10.58, 15.17], abs=3e-3)
    N, D, _ = C4.unlimited.optimum(1e22)
    i = np.linspace(1.0001, 3, 500)
    i = i[C4.loss(N / i, D * i).argmin()]
    assert (D * i, D * i / 25e9, N / i) == pytest.approx((237.34e9, 9.493, 7.022e9), rel=1e-4)
    n, d, loss = C4.optimum(1e22)
    assert (d, d / 25e9, n) == pytest.approx((237.34e9, 9.493, 7.022e9), rel=1e-3) and loss <= C4.loss(N / i, D * i)


@pytest.mark.parametrize("law", [C4, replace(C4, alpha=.5, beta=.3, R_D=4., R_N=2.), replace(C4, unique=1e8)])
def test_effective_tokens_agree_with_the_paper_above_one_epoch(law):
    for N in (1e7, 3e9, 5e11):
        for epochs in (1., 1.5, 7., 90.):
            assert float(law.loss(N, epochs * law.unique)) == pytest.approx(muennighoff(N, epochs * law.unique, law.unique, law), rel=1e-13)


def test_no_repetition_is_chinchilla():
    free = C4.unlimited
    N_U = free.G ** 2 * 25e9  # alpha = beta: the best size for one pass over the unique tokens
    N = np.geomspace(1e6, N_U, 9)[:, None]
    D = np.geomspace(1e8, 25e9, 9)
    assert C4.loss(N, D) == pytest.approx(free.loss(N, D), rel=1e-14)
    assert C4.optimum(1e19) == free.optimum(1e19) and C4.optimum(1e19, general) == free.optimum(1e19, general)
    assert replace(C4, unique=None).loss(5e11, 1e13) == free.loss(5e11, 1e13) and replace(C4, unique=None).floor == free.E
    step = C4.loss(1e12, 25e9 * (1 + np.array([-1e-9, 1e-9])))
    assert np.ptp(step) < 1e-9, "no jump where repetition begins, for large models either"
    C = np.array([1e19, 1e21, 1e22, 1e23])
    N, D, L = C4.optimum(C, general)
    assert [tuple(v) for v in zip(N, D, L)] == [pytest.approx(C4.optimum(c, general), rel=1e-9) for c in C]


def test_unique_tokens_per_run():
    D, U = np.array([1e10, 1e11, 1e11]), np.array([1e9, 1e10, 1e11])
    each = [float(replace(C4, unique=u).loss(1e9, d)) for d, u in zip(D, U)]
    assert C4.loss(1e9, D, unique=U) == pytest.approx(each, rel=1e-14) and replace(C4, unique=None).loss(1e9, D, unique=U) == pytest.approx(each, rel=1e-14)


@pytest.mark.parametrize("C", [1e21, 1e22, 1e24])
@pytest.mark.parametrize("cost", [six, general])
def test_data_constrained_optimum_and_its_inverse(C, cost):
    N, D, L = C4.optimum(C, cost)  # at 1e21 attention makes the best model larger than N*(U), though no token repeats
    n, lowest = brute(C4, C, cost, N)
    assert math.log(N / n) == pytest.approx(0, abs=1e-3) and L <= lowest * (1 + 1e-14) and cost(N) * D == pytest.approx(C, rel=1e-12)
    assert C4.compute(L, cost) == pytest.approx(C, rel=1e-6)


def test_data_constrained_says_what_it_borrows_and_what_is_out_of_reach():
    assert C4.borrowed == ("R_D", "R_N") and replace(C4, R_D=10.).borrowed == ("R_N",)
    few = replace(C4, unique=1e9)
    assert few.E < few.floor == pytest.approx(float(few.loss(1e30, 1e30)))
    with pytest.raises(ValueError, match="1.00B unique tokens"):
        few.compute((few.E + few.floor) / 2)
    with pytest.raises(ValueError, match="`unique`"):
        replace(C4, unique=0.)
    with pytest.raises(ValueError, match="`R_N`"):
        replace(C4, R_N=-1.)


# ------------------------------------------------------------------ any law, numerically
@pytest.mark.parametrize("law", [ROUNDED, TEX, UNEVEN, coupled_of(BESIROGLU, .5)])
@pytest.mark.parametrize("cost", [6., six, general])
def test_lowest_loss_meets_the_closed_form(law, cost):
    C = np.array([[1e15, 1e18], [1e21, 1e25]])
    found, known = lowest_loss(law, C, cost), law.optimum(C, cost)
    assert found[0].shape == (2, 2) and np.allclose(found, known, rtol=1e-8)
    assert all(isinstance(v, float) for v in lowest_loss(law, 1e20, cost))
    assert compute_search(law, known[2][1, 0], cost) == pytest.approx(1e21, rel=1e-8)


def test_lowest_loss_takes_the_lower_of_two_valleys():
    two = SimpleNamespace(loss=lambda N, D: 3 - .1 * np.exp(-(np.log(N / 1e7)) ** 2) - .2 * np.exp(-(np.log(N / 1e10)) ** 2) + 0 * D)
    assert lowest_loss(two, 1e22)[0] == pytest.approx(1e10, rel=1e-6)
    assert lowest_loss(two, 1e22, sizes=(1e5, 1e8))[0] == pytest.approx(1e7, rel=1e-6)


@pytest.mark.parametrize("loss", [lambda N, D: N ** -.3, lambda N, D: D ** -.3, lambda N, D: np.full_like(N, np.nan), lambda N, D: np.where(N < 1e9, N ** -.3, np.nan)])
def test_a_minimum_at_the_edge_is_refused(loss):
    with pytest.raises(ValueError, match="edge"):
        lowest_loss(SimpleNamespace(loss=loss), 1e21)


def test_lowest_loss_refuses_nonsense():
    for C in (0., -1., math.nan, np.array([1e20, math.inf])):
        with pytest.raises(ValueError, match="`C`"):
            lowest_loss(ROUNDED, C)
    for sizes in ((1e9, 1e6), (1e9, 1e9), (0, 1e9), (-1, 1e9)):
        with pytest.raises(ValueError, match="`sizes`"):
            lowest_loss(ROUNDED, 1e20, sizes=sizes)
    with pytest.raises(ValueError, match="some budget reaches"):
        compute_search(FormLaw(by_hand, ROUNDED.to_dict()), 1.6)
    with pytest.raises(ValueError, match="no minimum"):
        ROUNDED.optimum(1e20, lambda N: 6e9 / N)


# ------------------------------------------------------------------ forms of one's own
def test_a_form_behaves_as_the_law_it_writes_down():
    law = FormLaw(by_hand, ROUNDED.to_dict())
    N = np.geomspace(1e6, 1e12, 5)
    assert np.allclose(law.loss(N, 20 * N), ROUNDED.loss(N, 20 * N), rtol=1e-14, atol=0) and law.values == ROUNDED.to_dict()
    assert np.allclose(law.optimum(1e21, general), ROUNDED.optimum(1e21, general), rtol=1e-8) and law.compute(2.2) == pytest.approx(ROUNDED.compute(2.2), rel=1e-9)
    assert FormLaw(by_hand, (1.69, 406.4, 410.7, .34, .28)) == law == FormLaw.from_dict(json.loads(json.dumps(law.to_dict())), by_hand)
    assert by_hand.bounds[0] == (0., 5.) and by_hand == replace(by_hand, bounds=[(0, 5), (1, 1e6), (1, 1e6), (.05, .95), (.05, .95)])
    assert "0x" not in repr(by_hand) + repr(law) and "alpha=0.34" in repr(law)


@pytest.mark.parametrize("change, says", [(dict(names=("E", "A", "B", "alpha")), "bounds"), (dict(names=("E", "A", "B", "beta", "beta")), "different"), (dict(names=()), "names"),
                                          (dict(bounds=[(0, 5)]), "5 names .* 1 bounds"), (dict(bounds=dict(E=(0, 5))), "must name every"),
                                          (dict(bounds=[(5, 0)] + [(0, 1)] * 4), r"low=5, high=0"), (dict(bounds=[(math.nan, 1)] + [(0, 1)] * 4), "low < high"),
                                          (dict(function=lambda N, D, E: E), r"must take \(N, D, E, A"), (dict(starts=[(1., 2.)]), "start"),
                                          (dict(starts=[(1.69, 406.4, 410.7, .34, 1.28)]), "within its bounds")])
def test_a_form_that_does_not_fit_together_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(by_hand, **change)


def test_a_form_law_needs_every_value_and_its_function():
    for params in ((1., 2.), dict(E=1.), (1, 2, 3, 4, math.nan), (1, 2, 3, 4, 5, 6), ROUNDED.to_dict() | dict(gamma=1.)):
        with pytest.raises(ValueError, match="`params`"):
            FormLaw(by_hand, params)
    stored = FormLaw(by_hand, ROUNDED.to_dict()).to_dict()
    for form in (None, replace(by_hand, name="another")):
        with pytest.raises(ValueError, match="by hand"):
            FormLaw.from_dict(stored, form)


# ------------------------------------------------------------------ beyond compute-optimal
def thirteen(law):
    "Loss of the compute-optimal model of 13B parameters"
    return law.optimum(6 * (13e9 / law.G) ** (1 / law.a))[2]


def test_sardana_numbers():
    "METHODS A.1.7: quality of a 13B model, 2T tokens served"
    best = inference_optimal(SARDANA, thirteen(SARDANA), 2e12)
    assert (best.N, best.D, best.total, best.base_total) == pytest.approx((6.968e9, 1.248e12, 8.005e22, 9.697e22), rel=5e-4)
    assert best.base_N == pytest.approx(13e9, rel=1e-9) and best.base_total - best.total == pytest.approx(1.69e22, abs=.01e22) and .174 <= best.saving <= .175
    assert inference_optimal(ROUNDED, thirteen(ROUNDED), 2e12).saving == pytest.approx(.101, abs=5e-4), "the same question with exponents at two digits"
    N, D = best.N, best.D
    a, A, b, B = SARDANA.alpha, SARDANA.A, SARDANA.beta, SARDANA.B
    assert a * A * N ** -a == pytest.approx(b * B * D ** -b * (1 + 2e12 / (3 * D)), rel=1e-7), "the first-order condition in closed form"
    assert SARDANA.loss(N, D) == pytest.approx(best.loss, rel=1e-13) and best.total == best.training + best.serving == pytest.approx(6 * N * D + 2 * N * 2e12, rel=1e-12)


@pytest.mark.parametrize("law", [ROUNDED, coupled_of(BESIROGLU, .7), C4, FormLaw(by_hand, BESIROGLU.to_dict()), KaplanLaw()])
@pytest.mark.parametrize("kw", [dict(), dict(flops_per_token=general), dict(flops_per_token=general, serving_flops=lambda N: 2 * N + 1e9, prices=(1., 3.))])
def test_serving_against_brute_force(law, kw):
    L = law.optimum(1e21)[2]
    best = inference_optimal(law, L, 3e11, **kw)
    f = kw.get("flops_per_token", six)
    g = kw.get("serving_flops", lambda N: f(N) / 3)
    price = kw.get("prices", (1., 1.))
    N = best.N * np.exp(np.linspace(-1, 1, 20001))
    bills = price[0] * f(N) * tokens_to_reach(law, N, L) + price[1] * g(N) * 3e11
    assert best.total <= bills.min() * (1 + 1e-10) and math.log(N[bills.argmin()] / best.N) == pytest.approx(0, abs=2e-3)
    assert best.N < best.base_N and best.D > best.base_D and best.saving > 0 and law.loss(best.N, best.D) == pytest.approx(L, rel=1e-12)


def test_serving_nothing_is_compute_optimal_and_serving_more_shrinks_the_model():
    L = ROUNDED.optimum(1e21)[2]
    sizes = [inference_optimal(ROUNDED, L, T) for T in (0, 1e9, 1e11, 1e13, 1e16, 1e20)]
    assert sizes[0].N == pytest.approx(sizes[0].base_N, rel=1e-7) and sizes[0].saving == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff([s.N for s in sizes]) < 0) and np.all(np.diff([s.saving for s in sizes]) > 0)
    smallest = (ROUNDED.A / (L - ROUNDED.E)) ** (1 / ROUNDED.alpha)
    assert smallest < sizes[-1].N < 1.1 * smallest, "no smaller model reaches this loss at any number of tokens"


def test_tokens_to_reach():
    D = tokens_to_reach(ROUNDED, np.array([[1e8, 1e9], [1e10, 1e11]]), 2.3)
    left = 2.3 - ROUNDED.E - ROUNDED.A * np.array([1e9, 1e10, 1e11]) ** -ROUNDED.alpha
    assert D[0, 0] == math.inf and D.ravel()[1:] == pytest.approx((ROUNDED.B / left) ** (1 / ROUNDED.beta), rel=1e-10)


@pytest.mark.parametrize("law", [BESIROGLU, coupled_of(ROUNDED, .8), C4])
@pytest.mark.parametrize("cost", [6., general])
@pytest.mark.parametrize("ratio", [1., 20., 700.])
def test_the_dial(law, cost, ratio):
    f = cost if callable(cost) else six
    m = overtrained(law, 1e21, ratio, cost)
    assert (m.D / m.N, f(m.N) * m.D) == pytest.approx((ratio, 1e21), rel=1e-10) and m.loss == pytest.approx(law.loss(m.N, m.D), rel=1e-14)
    assert m.penalty >= 0 and m.extra_compute >= -1e-9 and m.best_loss == law.optimum(1e21, cost)[2]
    N, D, L = law.optimum(m.least_C, cost)
    assert L == pytest.approx(m.loss, rel=1e-9) and m.serving_saving == pytest.approx(1 - f(m.N) / f(N), rel=1e-9)
    assert (m.serving_saving > 0) == (m.N < N)


def test_the_dial_at_the_optimum_costs_nothing():
    N, D, L = BESIROGLU.optimum(1e22, general)
    m = overtrained(BESIROGLU, 1e22, D / N, general)
    assert (m.N, m.D) == pytest.approx((N, D), rel=1e-9) and m.penalty == pytest.approx(0, abs=1e-12) and m.extra_compute == pytest.approx(0, abs=1e-6)


def test_a_fit_stands_for_its_law():
    N = np.geomspace(1e6, 1e10, 9)
    fit = SimpleNamespace(law=BESIROGLU, curve=FlopsCurve.from_runs(N, general(N)), message="")
    L = BESIROGLU.optimum(1e19)[2]
    assert inference_optimal(fit, L, 1e11) == inference_optimal(BESIROGLU, L, 1e11, fit.curve) != inference_optimal(BESIROGLU, L, 1e11)
    assert overtrained(fit, 1e19, 50) == overtrained(BESIROGLU, 1e19, 50, fit.curve) and overtrained(fit, 1e19, 50, 6.) == overtrained(BESIROGLU, 1e19, 50)
    for ask in (lambda f: overtrained(f, 1e19, 50), lambda f: inference_optimal(f, L, 1e11)):
        with pytest.raises(ValueError, match="only D/N = 20 observed"):
            ask(SimpleNamespace(law=None, curve=None, message="only D/N = 20 observed: a not identified."))


def test_nonsense_beyond_the_optimum_is_refused():
    for T, prices in ((-1., (1, 1)), (math.nan, (1, 1)), (1e12, (1, 0))):
        with pytest.raises(ValueError, match="`tokens_served`"):
            inference_optimal(ROUNDED, 2.2, T, prices=prices)
    with pytest.raises(ValueError, match="irreducible"):
        inference_optimal(ROUNDED, 1.6, 1e12)
    for ratio in (0., -5., 1e22, math.nan):
        with pytest.raises(ValueError, match="`ratio`"):
            overtrained(ROUNDED, 1e21, ratio)


# ------------------------------------------------------------------ storing, and the numbers beside METHODS.md
@pytest.mark.parametrize("name, law", [("chinchilla", TEX), ("coupled", coupled_of(TEX, .9)), ("data_constrained", C4), ("data_constrained", replace(C4, unique=None)), ("kaplan", KaplanLaw())])
def test_every_law_comes_back_from_json_and_from_another_process(name, law):
    assert LAWS[name].from_dict(json.loads(json.dumps(law.to_dict()))) == law == pickle.loads(pickle.dumps(law)) and hash(law) == hash(replace(law))


@pytest.mark.parametrize("bad", [dict(alpha=-.1), dict(gamma=0.), dict(gamma=math.nan), dict(E=-1.)])
def test_impossible_coupled_laws_are_refused(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
        replace(coupled_of(ROUNDED, .9), **bad)


def test_reference_numbers():
    path = Path(__file__).parents[2] / "shared" / "data" / "reference_numbers.json"
    if not path.exists(): pytest.skip(f"{path.name} is not there")
    known = json.loads(path.read_text())
    assert KaplanLaw().loss(1e9, 1e10) == pytest.approx(known["kaplan_L_1e9_1e10"], abs=5e-8)
    for key, value in known["muennighoff"].items():
        N, D, U = (float(v) for v in key[2:-1].split(","))
        assert float(replace(C4, unique=U).loss(N, D)) == pytest.approx(value, rel=1e-13)
    for key, value in known["coupled_surface_rounded_chinchilla"].items():
        if key.startswith("g"):
            gamma, C = (float(v[1:]) for v in key.split("_"))
            N, D, L = coupled_of(ROUNDED, gamma).optimum(C)
            assert (N, D) == pytest.approx((value["N"], value["D"]), rel=1e-6) and pytest.approx(value["L"], abs=6e-7) == L
    s = known["sardana_13B_2T"]
    law = replace(SARDANA, alpha=s["alpha"], beta=s["beta"])
    best = inference_optimal(law, thirteen(law), 2e12)
    assert (best.N, best.D, best.total, best.base_total) == pytest.approx((s["N"], s["D"], s["total"], s["base"]), rel=5e-4)
    for name, row in known["chinchilla_closed_form"].items():
        law = ChinchillaLaw(**{k: row[k] for k in ("E", "A", "B", "alpha", "beta")})
        assert (law.G, law.a) == pytest.approx((row["G"], row["a"]), rel=1e-4), name
        for key, value in row.items():
            if key.startswith("C="):
                assert law.optimum(float(key[2:])) == pytest.approx((value["N"], value["D"], value["L"]), rel=1e-4), name
    for name, law in (("chinchilla_rounded", ROUNDED), ("asym_.465_.155", UNEVEN)):
        for k, error in known["parabola_bias_D_at_1e24_pct"][name].items():
            predicted = 100 * math.expm1(-parabola_bias(law.alpha, law.beta, float(k)))
            assert predicted == pytest.approx(error, rel=.08), "the formula is the leading order: right to 8 % of the bias at 16x"


@pytest.mark.parametrize("digits, most", [(2, .02), (3, .005)])
def test_rounded_tables_do_not_shake_the_optimum(digits, most):
    "N to two digits beside nominal FLOPs: the slope of f is the truth's, not that of the rounding"
    law = ChinchillaLaw(1.69, 406.4, 410.7, .34, .28)
    C = np.repeat(np.geomspace(1e18, 1e20, 5), 9)
    N = (law.optimum(C[::9])[0][:, None] * np.geomspace(1 / 8, 8, 9)).ravel()
    rounded = np.array([float(f"{n:.{digits - 1}e}") for n in N])
    curve = FlopsCurve.from_runs(rounded, C / (C / (6 * N)))
    for budget in np.geomspace(1e18, 1e21, 13):
        assert law.optimum(budget, curve)[0] == pytest.approx(law.optimum(budget)[0], rel=most)
    assert curve.scatter == pytest.approx(np.log(rounded / N).std(), rel=.2)
