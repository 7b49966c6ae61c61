"""VaR and CVaR models and their tests: published tables, other packages, integration, no look-ahead, properties, errors."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, stats

from tradebench.backtest import metrics
from tradebench.errors import DataError
from tradebench.validation import var, var_tests

RNG = np.random.default_rng(24)
R = RNG.standard_t(5, 700) * 0.01
LEVELS = (0.01, 0.05)


def storms(n=600, seed=3):
    "Returns whose volatility wanders"
    from scipy.signal import lfilter

    rng = np.random.default_rng(seed)
    vol = np.exp(lfilter([0.15], [1, -0.98], rng.standard_normal(n)))
    return pd.Series(0.01 * vol * rng.standard_normal(n), pd.date_range("2020-01-01", periods=n, freq="B", tz="UTC"))


# Published tables --------------------------------------------------------------------------------------------------------------------

KUPIEC = {  # Kupiec 1995 as in Jorion, exceptions strictly between, for 255, 510 and 1000 days
    0.01: [(0, 7), (1, 11), (4, 17)],  # the first is printed without a lower limit, see the notebook
    0.025: [(2, 12), (6, 21), (15, 36)],
    0.05: [(6, 21), (16, 36), (37, 65)],
    0.075: [(11, 28), (27, 51), (59, 92)],
    0.10: [(16, 36), (38, 65), (81, 120)],
}


@pytest.mark.parametrize("level", KUPIEC)
def test_kupiec_regions(level):
    for n, (low, high) in zip((255, 510, 1000), KUPIEC[level], strict=True):
        assert var_tests.accepted(n, level) == (low + 1, high - 1)
        for x, rejected in ((low, True), (low + 1, False), (high - 1, False), (high, True)):
            assert (var_tests.kupiec(x, n, level).p < 0.05) == rejected


def test_jorions_bank():
    """20 exceptions in 252 days at 95 %, 6 after another one: 3.91, 9.53, 13.44."""
    h = np.zeros(253, bool)
    h[[10, 11, 30, 31, 50, 51, 70, 71, 90, 91, 110, 111, 130, 140, 150, 160, 170, 180, 190, 200]] = True
    assert round(var_tests.kupiec(20, 252, 0.05).lr, 2) == 3.91
    assert round(var_tests.independence(h).lr, 2) == 9.53
    assert round(var_tests.kupiec(20, 252, 0.05).lr + var_tests.independence(h).lr, 2) == 13.44


def test_basel_zones_and_probabilities():
    printed = [8.11, 28.58, 54.32, 75.81, 89.22, 95.88, 98.63, 99.60, 99.89, 99.97, 99.99]
    for k, p in enumerate(printed):
        light = var_tests.traffic_light(k)
        assert round(100 * light.cumulative, 2) == p
        assert light.colour == ("green" if k < 5 else "yellow" if k < 10 else "red")
    assert set(var_tests.PLUS) == {k for k in range(11) if var_tests.traffic_light(k).colour == "yellow"}


def test_riskmetrics_effective_days():
    impulse = var.ewma_variance(np.append(1.0, np.zeros(250)), 0.94, start=0.0)
    assert impulse[1] == pytest.approx(0.06)
    days = [math.log(a) / math.log(0.94) for a in (0.01, 0.001, 0.0001, 0.00001)]
    assert [round(d) for d in days] == [74, 112, 149, 186]
    assert impulse[75] / impulse[1] == pytest.approx(0.94**74)


# Agreement with other packages and with numerical integration ------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_historical_is_the_metric_and_empyrical(level):
    import empyrical

    v = var.historical(R, level)
    assert v == (metrics.value_at_risk(R, level), metrics.conditional_value_at_risk(R, level))
    assert v == pytest.approx((empyrical.value_at_risk(R, level), empyrical.conditional_value_at_risk(R, level)))


@pytest.mark.parametrize("level", LEVELS)
def test_parametric_tails_are_integrals_of_their_quantiles(level):
    mean_below = lambda q: integrate.quad(q, 0, level, limit=200)[0] / level
    g = var.gaussian(R, level)
    dist = stats.norm(R.mean(), R.std(ddof=1))
    assert g == pytest.approx((dist.ppf(level), mean_below(dist.ppf)))
    nu, mu, scale = var.student_fit(R)
    dist = stats.t(nu, mu, scale)
    assert var.student(R, level) == pytest.approx((dist.ppf(level), mean_below(dist.ppf)), rel=1e-5)
    mu, sd, s, k = 0.001, 0.01, -0.4, 1.5

    def quantile(u):
        z = stats.norm.ppf(u)
        return mu + sd * (z + (z**2 - 1) * s / 6 + (z**3 - 3 * z) * k / 24 - (2 * z**3 - 5 * z) * s**2 / 36)

    assert var.cornish_fisher(None, level, (mu, sd, s, k)) == pytest.approx((quantile(level), mean_below(quantile)))


def test_student_fit_is_at_least_as_likely_as_scipys():
    ours, theirs = var.student_fit(R), stats.t.fit(R)
    like = lambda f: stats.t.logpdf(R, *f).sum()
    assert like(ours) >= like(theirs) - 0.01 and ours[0] == pytest.approx(theirs[0], rel=0.05)


def test_garch_is_archs_model():
    from arch import arch_model

    r = storms().to_numpy()
    fitted = var.garch_fit(r)
    result = arch_model(r / r.std(), mean="Constant", vol="GARCH", rescale=False).fit(disp="off")
    assert np.allclose(fitted, result.params.to_numpy() * [r.std(), r.std() ** 2, 1, 1])
    ours = var.garch_variance(r, fitted)
    theirs = result.conditional_volatility**2 * r.var()
    assert np.allclose(ours[200:-1], theirs[200:], rtol=1e-3)  # the first variance differs and is forgotten
    ahead = result.forecast(horizon=1).variance.iloc[-1, 0] * r.var()
    assert ours[-1] == pytest.approx(ahead, rel=1e-4)


def test_ewma_is_the_recursion_and_archs():
    from arch.univariate import EWMAVariance

    r, lam = R[:80], 0.94
    v = [r @ r / len(r)]
    for x in r:
        v.append(lam * v[-1] + (1 - lam) * x * x)
    ours = var.ewma_variance(r)
    assert np.allclose(ours, v)
    model = EWMAVariance(lam)
    theirs = np.empty(80)
    model.compute_variance(np.empty(0), r, theirs, v[0], np.tile([0.0, 1e9], (80, 1)))
    assert np.allclose(ours[1:-1], theirs[1:], rtol=1e-10)


def test_filtered_tail_scales_with_the_last_volatility():
    r = storms().to_numpy()[:300]
    calm, wild = np.append(r, np.full(10, 1e-4)), np.append(r, np.tile([0.08, -0.08], 5))
    for model in (var.ewma, var.garch):
        assert model(wild, 0.05).var < 2 * model(calm, 0.05).var < 0


# Properties --------------------------------------------------------------------------------------------------------------------------

MODELS = [var.historical, var.gaussian, var.student, var.ewma, var.garch]


@pytest.mark.parametrize("model", MODELS)
def test_models_scale_and_order(model):
    r = storms().to_numpy()[:400]
    a, b = model(r, 0.01), model(r, 0.05)
    assert a.cvar <= a.var < b.var < 0 and b.cvar <= b.var
    assert model(3 * r, 0.05) == pytest.approx(tuple(3 * v for v in b), rel=1e-3)


@given(st.floats(-3, 3), st.floats(-2, 12), st.sampled_from([math.inf, 6, 2.5]))
def test_cornish_fisher_domain_is_monotonicity(skew, excess, reach):
    z = np.linspace(-1, 1, 40_001) * min(reach, 200)
    assume(math.isfinite(reach) or abs(excess / 8 - skew**2 / 6) > 1e-3)
    slope = (excess / 8 - skew**2 / 6) * z**2 + skew / 3 * z + 1 - excess / 8 + 5 * skew**2 / 36
    assume(abs(slope.min()) > 1e-2)
    w = z + (z**2 - 1) * skew / 6 + (z**3 - 3 * z) * excess / 24 - (2 * z**3 - 5 * z) * skew**2 / 36
    assert var.cornish_fisher_domain(skew, excess, reach) == bool((np.diff(w) > 0).all())


def test_cornish_fisher_domain_limits():
    """Maillard 2012: excess kurtosis 0 to 8 without skew, skew up to 6 (sqrt 2 - 1)."""
    edge = 6 * (2**0.5 - 1)
    assert any(var.cornish_fisher_domain(edge - 0.001, k) for k in np.linspace(0, 12, 120_001))
    assert not any(var.cornish_fisher_domain(edge + 0.001, k) for k in np.linspace(0, 12, 120_001))
    assert [var.cornish_fisher_domain(0, k) for k in (-0.01, 0, 8, 8.01)] == [False, True, True, False]


@given(st.integers(1, 3000), st.data(), st.floats(0.001, 0.3))
def test_kupiec_is_a_likelihood_ratio(n, data, level):
    x = data.draw(st.integers(0, n))
    t = var_tests.kupiec(x, n, level)
    assert t.lr >= 0 and 0 <= t.p <= 1
    if 0 < x < n:
        direct = -2 * (stats.binom.logpmf(x, n, level) - stats.binom.logpmf(x, n, x / n))
        assert t.lr == pytest.approx(direct, abs=1e-6)


@given(st.lists(st.booleans(), min_size=2, max_size=200))
def test_independence_against_a_contingency_table(hits):
    h = np.array(hits)
    table = np.array([[((h[:-1] == a) & (h[1:] == b)).sum() for b in (0, 1)] for a in (0, 1)])
    t = var_tests.independence(h)
    if (table.sum(0) > 0).all() and (table.sum(1) > 0).all():
        g = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
        assert t == pytest.approx((g.statistic, g.pvalue), abs=1e-9)
    else:
        assert t.lr == pytest.approx(0, abs=1e-9)  # one state only, or one that is left never
    joint = var_tests.conditional_coverage(h, 0.05)
    assert joint.lr == pytest.approx(t.lr + var_tests.kupiec(int(h.sum()), len(h), 0.05).lr)


def test_tests_hold_their_size_and_have_power():
    rng = np.random.default_rng(0)
    right = rng.random((400, 1000)) < 0.05
    assert np.mean([var_tests.kupiec(int(h.sum()), 1000, 0.05).p < 0.05 for h in right]) == pytest.approx(
        0.05, abs=0.035
    )
    assert np.mean([var_tests.independence(h).p < 0.05 for h in right]) == pytest.approx(0.05, abs=0.04)
    assert np.mean([var_tests.kupiec(int(h.sum()), 1000, 0.025).p < 0.05 for h in right]) > 0.8
    clustered = np.repeat(rng.random((400, 500)) < 0.05, 2, axis=1)
    assert np.mean([var_tests.independence(h).p < 0.05 for h in clustered]) > 0.95


def test_z2_is_zero_on_average_for_the_right_model():
    rng, level, z2 = np.random.default_rng(1), 0.05, []
    right = stats.norm.ppf(level), -stats.norm.pdf(stats.norm.ppf(level)) / level
    for _ in range(200):
        f = pd.DataFrame(dict(returns=rng.standard_normal(500), var=right[0], cvar=right[1]))
        z2.append(var_tests.backtest_var(f, level)["z2"])
    assert abs(np.mean(z2)) < 4 * np.std(z2) / 200**0.5
    low = f.assign(var=f["var"] / 1.5, cvar=f["cvar"] / 1.5)
    assert var_tests.backtest_var(low, level)["z2"] < -0.7 and var_tests.backtest_var(low, level)["shortfall"] > 1


# Rolling -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [*var.MODELS, lambda r, level: (r.min(), r.min())])
def test_forecasts_do_not_look_ahead(model):
    r = storms(420)
    f = var.forecasts(r, model, level=0.05, window=250, every=40)
    assert f.index.equals(r.index[250:]) and f["returns"].equals(r.iloc[250:].rename("returns"))
    for cut in (251, 300, 419):
        future = r.copy()
        future.iloc[cut:] = -5 * future.iloc[cut:] + 0.1
        changed = var.forecasts(future, model, level=0.05, window=250, every=40)
        assert changed[["var", "cvar"]].iloc[: cut - 249].equals(f[["var", "cvar"]].iloc[: cut - 249])
        if cut < 419:
            assert not changed["var"].iloc[cut - 249 :].equals(f["var"].iloc[cut - 249 :])
    if cut < 420:
        prefix = var.forecasts(r.iloc[:400], model, level=0.05, window=250, every=40)
        assert prefix.equals(f.iloc[:150])


def test_forecasts_are_the_models_over_the_windows():
    r = storms(320).to_numpy()
    for name in ("historical", "gaussian", "ewma"):
        f = var.forecasts(r, name, level=0.05, window=300)
        assert tuple(f.iloc[7][["var", "cvar"]]) == getattr(var, name)(r[7:307], 0.05)
    for name in ("student", "garch"):
        f = var.forecasts(r, name, level=0.05, window=300, every=1)
        assert tuple(f.iloc[7][["var", "cvar"]]) == pytest.approx(getattr(var, name)(r[7:307], 0.05), rel=1e-3)


def test_models_that_follow_volatility_pass_where_fixed_ones_fail():
    t = var_tests.compare_var(storms(1250, seed=1), ("historical", "gaussian", "ewma", "garch"), level=0.05, every=250)
    assert (t.coverage[["ewma", "garch"]] > 0.05).all() and (t.coverage[["historical", "gaussian"]] < 0.001).all()


def test_forecasts_outside_the_domain_are_missing_and_counted():
    r = np.random.default_rng(2).normal(0, 0.01, 400)
    r[160] = -0.3
    f = var.forecasts(r, "cornish_fisher", level=0.05, window=150)
    shapes = [metrics.moments(r[k : k + 150]) for k in range(250)]
    refused = np.array([not var.cornish_fisher_domain(*m, reach=4) for m in shapes])
    assert refused[11:161].all() and refused.sum() < 200  # the windows that hold the crash, and few others
    assert np.array_equal(f["var"].isna(), refused)
    row = var_tests.backtest_var(f, 0.05)
    assert (row["missing"], row["bars"]) == (refused.sum(), 250 - refused.sum())
    still = np.append(np.zeros(60), r)  # the windows that end before anything moves
    assert var.forecasts(still, "historical", window=50)["var"].isna().sum() == 11


# Errors and figures ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: var.historical(R, 0.95), "0.01 for 99 % VaR"),
        (lambda: var.gaussian([0.01, 0.02]), "too few"),
        (lambda: var.gaussian([0.01] * 30), "never moves"),
        (lambda: var.student(R[:10]), "at least 20"),
        (lambda: var.garch(R[:50]), "at least 100"),
        (lambda: var.cornish_fisher(np.append(R, -0.9)), "use historical or student"),
        (lambda: var.ewma_variance(R, 1.0), "decay"),
        (lambda: var.forecasts(R, "har"), "known: historical"),
        (lambda: var.forecasts(R, window=700), "below the 700 returns"),
        (lambda: var.forecasts(R, "garch", window=50), "100 or more"),
        (lambda: var.forecasts(np.append(R, np.nan)), "finite returns"),
        (lambda: var.forecasts(R, every=0), "every"),
        (lambda: var.forecasts(R, level=0.99), "tail"),
        (lambda: var_tests.kupiec(11, 10, 0.01), "11 exceptions in 10 bars"),
        (lambda: var_tests.kupiec(1, 10, 0.0), "cannot be tested"),
        (lambda: var_tests.independence([0, 1, 2]), "True or False"),
        (lambda: var_tests.independence([True]), "at least two"),
        (lambda: var_tests.exceptions([0.1], [0.1, 0.2]), "one length"),
        (lambda: var_tests.exceptions([0.1], [np.nan]), "no bar"),
    ],
)
def test_errors_say_what_and_where(call, words):
    with pytest.raises(DataError, match=words) as e:
        call()
    assert "\n" not in str(e.value) and e.value.rule


def test_figure_marks_every_exception():
    f = var.forecasts(storms(), "historical", level=0.05)
    for g in (f, f.reset_index(drop=True)):
        fig = var_tests.plot_var(g, 0.05)
        hits = int((f["returns"] < f["var"]).sum())
        assert (
            len(next(t for t in fig.data if t.name == "Exception").x) == hits
            and f"{hits} exceptions in 350" in fig.layout.title.text
        )
    long = pd.DataFrame(dict(returns=RNG.normal(0, 1, 50_000), var=-2.0, cvar=-2.5))
    assert len(var_tests.plot_var(long).data[0].x) < 8000


def test_exceptions_leave_missing_forecasts_out():
    assert var_tests.exceptions([-2, -2, 0, np.nan], [-1, np.nan, -1, -1]).tolist() == [True, False]
