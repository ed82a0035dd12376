"""The solver against finite differences, SciPy, and many random laws: no start may be lost, no answer called converged that is not."""
import math
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from scaling_nb.engine import _BIG, SurfaceProblem, _derivatives, _eliminate, _metric, _objective, _starts, refit, solve_surface
from scaling_nb.fitting import LOSSES, FitStatus, fit_law
from scaling_nb.laws import ChinchillaLaw, CoupledLaw, Form

quick = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def laws(draw, floor=(0., 3.)):
    "Laws of the range seen in public: losses from .4 to 7, B up to 2e6, E near 0, from 1e5 to 1e10 parameters"
    size, tokens = 10 ** draw(st.floats(5, 10)), 10 ** draw(st.floats(0, 2.3))
    alpha, beta = draw(st.floats(.12, .7)), draw(st.floats(.12, .7))
    parts = draw(st.floats(.1, 1.5)), draw(st.floats(.1, 1.5))
    E = draw(st.floats(*floor))
    return ChinchillaLaw(max(E, .3 - sum(parts)), parts[0] * size ** alpha, parts[1] * (size * tokens) ** beta, alpha, beta), 6 * size * size * tokens


def grid(law, centre, K=5, M=7, span=8., step=.5, shift=0.):
    "N, D on K budgets about `centre` FLOPs"
    C = np.repeat(centre * 10 ** (step * (np.arange(K) - (K - 1) / 2)), M)
    N = (law.optimum(C[::M])[0][:, None] * np.geomspace(1 / span, span, M) * math.exp(shift)).ravel()
    return N, C / (6 * N)


TRUTH = ChinchillaLaw(1.69, 406.4, 410.7, .34, .28)


def sweep(sigma=.005, seed=0, law=TRUTH):
    N, D = grid(law, 1e17)
    return N, D, law.loss(N, D) * np.exp(sigma * np.random.default_rng(seed).standard_normal(len(N)))


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("delta", [1e-3, .02, _BIG])
def test_derivatives(raw, delta):
    problem = SurfaceProblem.of(*sweep(.01), raw)
    rng = np.random.default_rng(1)
    w, theta = rng.uniform(.5, 2, (1, 35)), np.array([[.55, -.9, -.8, .31, .27]])
    h = 1e-6 * np.eye(5)
    _, g, H = _derivatives(problem, theta, w, delta)
    slope = [(_objective(problem, theta + s, w, delta) - _objective(problem, theta - s, w, delta))[0] / 2e-6 for s in h]
    curve = [(_derivatives(problem, theta + s, w, delta)[1] - _derivatives(problem, theta - s, w, delta)[1])[:, 0] / 2e-6 for s in h]
    assert np.allclose(slope, g[:, 0], rtol=1e-5, atol=1e-6) and np.allclose(curve, H[..., 0], rtol=1e-4, atol=1e-4)
    assert np.linalg.eigvalsh(_metric(problem, theta, w, delta)[..., 0])[0] > 0


def test_elimination_of_one_and_of_none():
    A, b = np.diag([4., 1, 1, 1, 1])[..., None], np.ones((5, 1))
    x, positive = _eliminate(A, b)
    assert positive.all() and x[0, 0] == .25
    assert not _eliminate(-A, b)[1].any() and _eliminate(A[..., :0], b[:, :0])[0].shape == (5, 0)


@quick
@given(laws(), st.integers(3, 7), st.integers(5, 9), st.floats(3, 16), st.floats(-1, 1))
def test_noise_free_laws_come_back(drawn, K, M, span, shift):
    law, C = drawn
    N, D = grid(law, C, K, M, span, shift=shift)
    fit = fit_law(N, D, law.loss(N, D))
    if fit.status is FitStatus.NOT_IDENTIFIED:
        assert fit.condition > 3000
        return
    assert fit.status.ok and fit.decrement <= 1e-8
    assert fit.law.alpha == pytest.approx(law.alpha, rel=1e-5) and fit.law.beta == pytest.approx(law.beta, rel=1e-5) and fit.law.E == pytest.approx(law.E, rel=1e-5, abs=1e-5)
    assert fit.law.optimum(100 * C)[0] == pytest.approx(law.optimum(100 * C)[0], rel=1e-4)


@quick
@given(laws(), st.integers(0, 10**6), st.floats(.0005, .05), st.sampled_from([*LOSSES]), st.booleans())
def test_nothing_found_nearby_is_better(drawn, seed, sigma, loss, bad):
    "However noisy, no start and no other minimiser finds a lower objective"
    law, C = drawn
    rng = np.random.default_rng(seed)
    N, D = grid(law, C, 4, 6)
    L = law.loss(N, D) * np.exp(sigma * rng.standard_normal(len(N)))
    if bad:
        L[rng.integers(0, len(L), 2)] *= rng.uniform(1.3, 3)
    fit = fit_law(N, D, L, loss=loss)
    assert all(map(math.isfinite, (fit.objective, fit.rms, fit.share_best))) and np.isfinite(fit.residuals).all()
    if fit.status is FitStatus.CONVERGED:
        assert fit.decrement <= 1e-8 and all(map(math.isfinite, fit.law.to_dict().values()))
    problem, delta, ones = SurfaceProblem.of(N, D, L, loss == "mse"), fit.delta if loss == "huber" else _BIG, np.ones((1, len(N)))
    theta, value = solve_surface(problem, ones[0], delta)[:2]
    value_of = lambda p: float(_objective(problem, np.clip(p, problem.lower, problem.upper)[None], ones, delta)[0])
    slope_of = lambda p: _derivatives(problem, np.clip(p, problem.lower, problem.upper)[None], ones, delta)[1][:, 0]
    bounds = list(zip(problem.lower, problem.upper))
    others = [minimize(value_of, p, jac=slope_of, bounds=bounds, method="L-BFGS-B", options=dict(ftol=1e-15, gtol=1e-12, maxiter=500)).fun
              for p in (*_starts(problem, ones[0])[::3], problem.theta(law.E, law.A, law.B, law.alpha, law.beta))]
    others.append(minimize(value_of, theta * (1 + 1e-4 * rng.standard_normal(5)), method="Nelder-Mead", options=dict(maxiter=250, xatol=1e-9, fatol=1e-15)).fun)
    assert value <= min(others) * (1 + 1e-7) + 1e-18


@quick
@given(st.integers(0, 10**6), st.integers(5, 40), st.sampled_from(["noise", "constant N", "constant D", "ratio", "huge", "two sizes", "clones"]))
def test_junk_is_answered(seed, n, kind):
    "Documented errors only, and never a NaN in a fit that claims to have converged"
    rng = np.random.default_rng(seed)
    N, D, L = 10 ** rng.uniform(4, 11, n), 10 ** rng.uniform(6, 13, n), rng.uniform(.1, 8, n)
    if kind == "constant N":
        N[:] = N[0]
    if kind == "constant D":
        D[:] = D[0]
    if kind == "ratio":
        D = 20 * N
    if kind == "huge":
        N, D, L = N ** 3, D ** 3, L * 1e6
    if kind == "two sizes":
        N = N[rng.integers(0, 2, n)]
    if kind == "clones":
        N, D, L = (np.resize(v[:4], n) for v in (N, D, L))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            fit = fit_law(N, D, L, loss=[*LOSSES][seed % 3])
        except ValueError as e:
            assert kind == "clones" and "at least 5 different runs" in str(e)
            return
    if kind in ("constant N", "constant D", "ratio"):
        assert fit.status is FitStatus.NOT_IDENTIFIED and fit.law is None
    if fit.status is FitStatus.CONVERGED:
        assert all(math.isfinite(v) for v in fit.law.to_dict().values()) and math.isfinite(fit.objective)


@pytest.mark.parametrize("law, centre", [
    (ChinchillaLaw(.05, 12., 30., .22, .24), 1e15),       # a floor near 0
    (ChinchillaLaw(0., 40., 2e6, .3, .62), 1e20),         # none, and B of two million
    (ChinchillaLaw(.3, .29 * 1e6**.53, 5e3, .53, .5), 1e18),  # losses from .4
    (ChinchillaLaw(3.2, 2e3, 9e3, .35, .37), 1e19),       # losses to 7
])
def test_shapes_of_other_labs(law, centre):
    N, D = grid(law, centre, 7, 12, 6)
    assert fit_law(N, D, law.loss(N, D)).law.optimum(1e3 * centre)[0] == pytest.approx(law.optimum(1e3 * centre)[0], rel=1e-4)
    for seed in range(3):
        fit = fit_law(N, D, law.loss(N, D) * np.exp(.004 * np.random.default_rng(seed).standard_normal(len(N))))
        assert fit.status.ok and fit.share_best > .5 and abs(math.log(fit.law.optimum(1e3 * centre)[0] / law.optimum(1e3 * centre)[0])) < .25
        assert fit.law.E >= 0 and (fit.law.E > 0 or "E" in fit.at_bounds)


def test_a_law_without_a_floor_says_so():
    law = ChinchillaLaw(0., 40., 300., .3, .3)
    N, D = grid(law, 1e17)
    fit = fit_law(N, D, law.loss(N, D) * np.exp(-.01 * (np.log(D) > np.log(D).mean())))
    assert fit.status is FitStatus.AT_BOUND and fit.at_bounds == ("E",) and fit.law.E == 0 and "floor" in fit.message
    assert fit.optimum(1e18).N > 0


def test_refit_is_fit():
    "Replicates by weight and by other losses are what separate fits give"
    N, D, L = sweep(.01)
    fit = fit_law(N, D, L, delta=2e-3)
    W = np.random.default_rng(0).multinomial(35, np.full(35, 1 / 35), 12).astype(float)
    many = refit(fit, W)
    for w, row in zip(W, many.itertuples()):
        keep = w > 0
        one = fit_law(N[keep], D[keep], L[keep], weights=w[keep], delta=2e-3)
        assert row.objective <= one.objective * (1 + 1e-9) and row.alpha == pytest.approx(one.law.alpha, rel=1e-4)
    other = sweep(.01, seed=3)[2]
    assert refit(fit, np.ones((1, 35)), other[None]).alpha[0] == pytest.approx(fit_law(N, D, other, delta=2e-3).law.alpha, rel=1e-6)
    raw = fit_law(N, D, L, loss="mse")
    assert refit(raw, np.ones((2, 35))).B.to_numpy() == pytest.approx(raw.law.B, rel=1e-6)
    assert len(refit(fit, np.ones((0, 35)))) == 0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_weights_scale_nothing(reduction):
    "The sum over runs or their mean: the same optimum to 1e-6 in a"
    N, D, L = sweep(.01)
    w = np.ones(35) if reduction == "sum" else np.full(35, 1 / 35)
    assert abs(fit_law(N, D, L, weights=w, delta=1e-3).law.a - fit_law(N, D, L, delta=1e-3).law.a) < 1e-8


def test_coupled_surface_comes_back():
    for gamma in (.5, .9, 1.2):
        law = CoupledLaw(1.69, 406.4, 410.7, .34, .28, gamma)
        N, D, _ = sweep()
        fit = fit_law(N, D, law.loss(N, D), law="coupled")
        assert fit.status is FitStatus.CONVERGED and fit.law.gamma == pytest.approx(gamma, rel=1e-4) and fit.law.alpha == pytest.approx(.34, rel=1e-4)
        assert fit.optimum(1e20).N == pytest.approx(law.optimum(1e20)[0], rel=1e-3)


def test_own_form_with_bad_predictions():
    "A form that gives NaN or negative losses on part of its bounds is fitted on the rest"
    form = Form(lambda N, D, E, A, s: E + A * np.sqrt(s - .1) * N ** -s, names=("E", "A", "s"), bounds=((-1, 3), (1, 1e4), (.05, 1)), name="odd")
    N, D, _ = sweep()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_law(N, D, 1.5 + 90 * np.sqrt(.2) * N ** -.3, law=form)
    assert fit.law.values == pytest.approx(dict(E=1.5, A=90, s=.3), rel=1e-3)
