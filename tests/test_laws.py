"""The formulas against published numbers, brute search and each other."""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_nb.laws import ChinchillaLaw, FlopsCurve, IsoFlopParabola, PowerLaw, optimal_split, parabola_bias, sci_format, si_format

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
    assert curve(1e9) / 1e9 == pytest.approx(general(5e6) / 5e6) and curve(1e3) / 1e3 == pytest.approx(general(3e4) / 3e4)
    fine = np.geomspace(3e4, 5e6, 500)
    assert (np.diff(curve(fine) / fine) <= 1e-9).all(), "never overshoots between two sizes"
    assert curve(2e5) == pytest.approx(general(2e5), rel=.03)
    assert FlopsCurve(*[tuple(v) for v in (curve.N, curve.f)]) == curve


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
