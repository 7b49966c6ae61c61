"""Overfitting statistics: published examples, agreement with other packages, properties, errors, memory of the PBO."""

import math
import os
import subprocess
import sys
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from tradebench import ledger
from tradebench.errors import DataError
from tradebench.validation import multiple, pbo as pbo_, sharpe, trials
from tradebench.validation.pbo import pbo

RNG = np.random.default_rng(20)
NOISE = RNG.normal(0, 0.01, (400, 30))
TRACKS = arrays(np.float64, st.integers(5, 60), elements=st.floats(-0.25, 0.25, width=32)).filter(
    lambda x: np.ptp(x) > 1e-3
)
RATIO, BARS = st.floats(-0.5, 0.5), st.integers(5, 5000)
SKEW = st.floats(-3, 3)


def kurt_for(skew, above):
    return 1 + skew**2 + above


# Published examples ------------------------------------------------------------------------------------------------------------------


def test_psr_of_the_hedge_fund_example():
    """Bailey and Lopez de Prado 2012: 0.982 under normality, 0.913 with the fund's moments."""
    assert round(sharpe.psr(0.458, 24), 3) == 0.982
    assert round(sharpe.psr(0.458, 24, skew=-2.448, kurt=10.164), 3) == 0.913


@pytest.mark.parametrize(
    "q, shape, years", [(252, {}, 2.73), (52, {}, 2.83), (12, {}, 3.24), (12, dict(skew=-0.72, kurt=5.78), 4.99)]
)
def test_min_track_record_of_the_paper(q, shape, years):
    assert round(sharpe.min_track_record(2 / q**0.5, 1 / q**0.5, **shape) / q, 2) == years


@pytest.mark.parametrize("n, shape, value", [(100, (-3, 10), 0.9004), (46, (-3, 10), 0.9505), (88, (0, 3), 0.9505)])
def test_dsr_of_the_paper(n, shape, value):
    assert round(trials.dsr(2.5 / 250**0.5, 1250, n, 0.5 / 250, *shape), 4) == value


def test_min_backtest_length_of_the_paper():
    assert sharpe.min_backtest_length(45) <= 5 < sharpe.min_backtest_length(46)
    assert sharpe.min_backtest_length(7) <= 2 < sharpe.min_backtest_length(8)
    assert round(sharpe.expected_max_sharpe(10), 2) == 1.57


def test_expected_maximum_against_simulation_and_tables():
    """Expected maxima of normal samples: 0.56419, 1.16296, 1.53875, 2.50759 for 2, 5, 10, 100 (tables of order statistics)."""
    for n, value in ((2, 0.56419), (5, 1.16296), (10, 1.53875), (100, 2.50759)):
        assert sharpe.expected_max_sharpe(n, exact=True) == pytest.approx(value, abs=1e-5)
        if n > 2:
            assert sharpe.expected_max_sharpe(n) == pytest.approx(value, rel=0.03)
    draws = np.random.default_rng(0).standard_normal((20_000, 50)).max(1)
    assert abs(draws.mean() - sharpe.expected_max_sharpe(50, exact=True)) < 4 * draws.std() / 20_000**0.5


def test_haircut_of_exhibit_5():
    h = multiple.haircut(1.0, 120, 12, trials=100, correlation=0.4, autocorrelation=0.1)
    printed = dict(
        bonferroni=(0.465, 0.232, 0.746),
        holm=(0.409, 0.262, 0.713),
        bhy=(0.169, 0.438, 0.520),
        average=(0.348, 0.298, 0.673),
    )
    for name, values in printed.items():
        assert np.allclose(h.loc[name], values, atol=0.0006 if name in ("bonferroni", "holm") else 0.006), name


@pytest.mark.parametrize(
    "n, t, printed",  # exhibit 1: E/P, momentum, betting against beta; independent tests
    [(10, 2.99, 0.266), (50, 2.99, 0.500), (100, 2.99, 0.616), (10, 4.70, 0.109), (50, 4.70, 0.192), (100, 4.70, 0.230)]
    + [(10, 7.29, 0.046), (50, 7.29, 0.079), (100, 7.29, 0.093)],
)
def test_haircuts_of_exhibit_1(n, t, printed):
    """The printed t-ratios have two decimals and the numbers of months are not printed, so half a point of tolerance."""
    months = 580
    h = multiple.haircut(t / (months / 12) ** 0.5, months, 12, trials=n, sims=10).loc["independent"]
    assert h.haircut == pytest.approx(printed, abs=0.006)


def test_adjusted_p_values_of_harvey_and_liu():
    six = [0.005, 0.009, 0.0128, 0.0135, 0.045, 0.06]
    assert np.allclose(multiple.adjust(six, "holm"), [0.03, 0.045, 0.0512, 0.0512, 0.09, 0.09])
    assert np.allclose(multiple.adjust(six, "bhy")[:4], 0.0496, atol=5e-5)


# Agreement with other packages -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def multipletests():
    "Imported here, because an import inside a hypothesis test is traced and takes half a minute"
    from statsmodels.stats.multitest import multipletests

    for method in ("bonferroni", "holm", "fdr_bh", "fdr_by"):  # so is what it imports later
        multipletests([0.1, 0.2], 0.05, method)
    return multipletests


@pytest.mark.parametrize("seed", range(40))  # hypothesis would trace statsmodels, which takes half a minute
def test_adjust_equals_statsmodels(multipletests, seed):
    rng = np.random.default_rng(seed)
    p = np.round(rng.random(rng.integers(1, 31)), int(rng.integers(1, 12)))  # with ties, zeros and ones
    for ours, theirs in dict(bonferroni="bonferroni", holm="holm", bh="fdr_bh", bhy="fdr_by").items():
        assert np.allclose(multiple.adjust(p, ours), multipletests(p, 0.05, theirs)[1], atol=1e-14), ours


@given(arrays(np.float64, st.integers(1, 8), elements=st.floats(0, 1)), st.integers(0, 9))
def test_missing_trials_are_p_values_of_one(p, more):
    full = np.append(p, np.ones(more))
    for m in multiple.METHODS:
        assert np.allclose(multiple.adjust(p, m, trials=len(full)), multiple.adjust(full, m)[: len(p)], atol=1e-14)


def test_adjust_works_on_the_last_axis():
    p = RNG.random((4, 9))
    for m in multiple.METHODS:
        assert np.array_equal(multiple.adjust(p, m), np.array([multiple.adjust(row, m) for row in p]))


def test_psr_against_scipy_and_empyrical():
    import empyrical

    r = RNG.standard_t(5, 700) * 0.01 + 0.0005
    s = sharpe.sharpe_stats(r)
    assert s.sr == pytest.approx(empyrical.sharpe_ratio(r, annualization=1))
    assert (s.skew, s.kurt) == pytest.approx((stats.skew(r), stats.kurtosis(r, fisher=False)))
    error = math.sqrt((1 - s.skew * s.sr + (s.kurt - 1) / 4 * s.sr**2) / 699)
    assert sharpe.probabilistic_sharpe(r, 0.02) == pytest.approx(stats.norm.cdf((s.sr - 0.02) / error))


def test_hac_error_equals_statsmodels_long_run_covariance():
    from statsmodels.stats.sandwich_covariance import S_hac_simple

    r = np.convolve(RNG.normal(0.001, 0.01, 500), [0.5, 0.3, 0.2], "valid")
    mu, var = r.mean(), r.var()
    moments = np.column_stack([r - mu, (r - mu) ** 2 - var])
    grad = np.array([1 / var**0.5, -mu / (2 * var**1.5)])
    for lags in (0, 3, 9):
        omega = S_hac_simple(moments, nlags=lags) / len(r)
        assert sharpe.sharpe_error_hac(r, lags) == pytest.approx(math.sqrt(grad @ omega @ grad / len(r)))


def test_standard_errors_cover_simulated_spread():
    """Skewed returns (exponential less a constant): Mertens' error is the spread of the estimates; and HAC's for an AR(1)."""
    rng = np.random.default_rng(1)
    x = rng.exponential(1, (4000, 250)) - 0.7
    found = (x.mean(1) / x.std(1, ddof=1)).std()
    assert found == pytest.approx(sharpe.sharpe_error(0.3, 250, 2, 9), rel=0.05)
    assert abs(found / sharpe.sharpe_error(0.3, 250) - 1) > 0.1  # the normal formula would miss it


def test_spa_and_stepm_are_arch_with_returns_for_losses():
    from arch.bootstrap import SPA, StepM

    x = NOISE.copy()
    x[:, 3] += 0.002
    test = SPA(np.zeros(400), -x, reps=200, seed=5, block_size=10)
    test.compute()
    ours = multiple.spa(x, reps=200, seed=5, block=10)
    assert (ours.lower, ours.consistent, ours.upper) == tuple(test.pvalues[k] for k in ("lower", "consistent", "upper"))
    steps = StepM(np.zeros(400), -x, reps=200, seed=5, block_size=10)
    steps.compute()
    assert (
        multiple.stepm(x, reps=200, seed=5, block=10) == [str(k) for k in steps.superior_models] == ["3"] == [ours.best]
    )
    assert multiple.spa(x, reps=200, seed=5) == multiple.spa(x, reps=200, seed=5)
    assert multiple.reality_check(NOISE, reps=200).upper > 0.05


def test_spa_benchmark_is_what_is_to_be_beaten():
    market = RNG.normal(0.001, 0.01, 400)
    x = market[:, None] + RNG.normal(0, 0.002, (400, 5))
    assert multiple.spa(x, reps=200).upper < 0.2 and multiple.spa(x, market, reps=200).upper > 0.05
    with pytest.raises(DataError, match="benchmark by a constant"):
        multiple.spa(np.column_stack([x, market + 0.25]), market)


# Properties --------------------------------------------------------------------------------------------------------------------------


@given(RATIO, RATIO, BARS, SKEW, st.floats(0, 20))
def test_psr_monotone(a, b, n, skew, above):
    k = kurt_for(skew, above + 0.5)
    low, high = min(a, b), max(a, b)
    p = sharpe.psr(high, n, 0.0, skew, k)
    assert 0 <= p <= 1
    assert sharpe.psr(high, n, low, skew, k) >= 0.5 - 1e-12  # an estimate above its benchmark
    assert sharpe.psr(a, n, high, skew, k) <= sharpe.psr(a, n, low, skew, k) + 1e-12
    better = sharpe.psr(high, n + 100, 0.0, skew, k)
    assert better >= p - 1e-12 if high >= 0 else better <= p + 1e-12
    if high > 0:
        assert sharpe.psr(high, n, 0.0, skew, k + 1) <= p + 1e-12  # fatter tails: less sure
        if kurt_for(skew + 0.1, 0) <= k:
            assert sharpe.psr(high, n, 0.0, skew + 0.1, k) >= p - 1e-12


@given(st.floats(0.001, 0.5), BARS, st.floats(1, 1e6), st.floats(1, 1e6), st.floats(1e-6, 1e-2))
def test_dsr_falls_with_trials_and_variance(sr, n, a, b, v):
    assert trials.dsr(sr, n, max(a, b), v) <= trials.dsr(sr, n, min(a, b), v) + 1e-12
    assert trials.dsr(sr, n, a, 2 * v) <= trials.dsr(sr, n, a, v) + 1e-12
    assert trials.dsr(sr, n, 1, v) == sharpe.psr(sr, n)


@given(st.floats(0.01, 0.5), st.floats(-0.5, 0.0), st.floats(0.51, 0.999), SKEW)
def test_min_track_record_inverts_psr(sr, benchmark, confidence, skew):
    k = kurt_for(skew, 1)
    n = sharpe.min_track_record(sr, benchmark, confidence, skew, k)
    if n > 2:
        assert sharpe.psr(sr, n, benchmark, skew, k) == pytest.approx(confidence, abs=1e-9)
    assert sharpe.min_track_record(benchmark, sr) == math.inf


@given(TRACKS, st.floats(0.01, 100), st.randoms(use_true_random=False))
def test_psr_ignores_scale_and_order(r, scale, random):
    mixed = list(r)
    random.shuffle(mixed)
    p = sharpe.probabilistic_sharpe(r)
    assert sharpe.probabilistic_sharpe(scale * r) == pytest.approx(p, abs=1e-9)
    assert sharpe.probabilistic_sharpe(mixed) == pytest.approx(p, abs=1e-9)
    assert sharpe.probabilistic_sharpe(-r) == pytest.approx(1 - p, abs=1e-9)
    assert sharpe.probabilistic_sharpe(np.append(r, np.nan)) == p


@given(st.floats(1, 1e9), st.floats(1, 1e9))
def test_expected_maximum_monotone_and_below_its_bound(a, b):
    for exact in (False, True):
        low, high = (sharpe.expected_max_sharpe(n, exact=exact) for n in sorted((a, b)))
        assert 0 <= low <= high + 1e-9 and high <= math.sqrt(2 * math.log(max(a, b))) + 1e-6


@given(st.lists(st.floats(1e-6, 1), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_adjust_keeps_order_and_is_permutation_equivariant(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    p = np.array(p)
    for m in multiple.METHODS:
        q = multiple.adjust(p, m)
        assert (q >= p - 1e-15).all() and (q <= 1).all() and (np.diff(q[np.argsort(p)]) >= -1e-15).all()
        assert np.allclose(multiple.adjust(p[order], m), q[order], atol=1e-15)
    q = {m: multiple.adjust(p, m) for m in multiple.METHODS}
    assert (
        (q["bh"] <= q["holm"] + 1e-12).all()
        and (q["holm"] <= q["bonferroni"] + 1e-12).all()
        and (q["bh"] <= q["bhy"] + 1e-12).all()
    )


def test_bonferroni_and_bh_hold_their_levels_on_noise():
    p = np.random.default_rng(3).random((2000, 40))
    for m in multiple.METHODS:
        false = (multiple.adjust(p, m) <= 0.05).any(1).mean()
        assert false <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5, m


def test_haircut_grows_with_trials_and_shrinks_with_the_ratio():
    cut = lambda sr, n: multiple.haircut(sr, 250, 12, trials=n, sims=300).haircut
    assert (cut(0.8, 200) >= cut(0.8, 20) - 0.02).all() and (cut(0.5, 50) > cut(1.5, 50)).all()
    h = multiple.haircut(0.1, 120, 12, trials=1000, sims=50)
    assert h.p.bonferroni == 1 and h.sharpe.bonferroni == 0 and h.haircut.bonferroni == 1
    known = multiple.haircut(1.0, 120, 12, trials=3, others=[0.2, 0.5, 0.9])
    p = 2 * stats.t.sf(1 / 12**0.5 * 120**0.5, 119)
    assert known.p.holm == pytest.approx(4 * p) and known.p.bonferroni == pytest.approx(3 * p)
    some = multiple.haircut(1.0, 120, 12, trials=10, others=[0.2, 0.5, 0.9])  # seven were not kept
    assert some.p.holm == pytest.approx(11 * p)


# Effective trials, ledger ------------------------------------------------------------------------------------------------------------


def test_effective_trials_of_copies_and_of_noise():
    ideas = RNG.normal(0, 1, (2000, 4))
    copies = np.repeat(ideas, 5, axis=1) + RNG.normal(0, 0.05, (2000, 20))
    e = trials.effective_trials(copies)
    assert e["clusters"] == 4 and e["participation"] == pytest.approx(4, rel=0.1) and e["correlation"] > 10
    e = trials.effective_trials(RNG.normal(0, 1, (300, 100)))
    assert e["clusters"] == 100 and e["participation"] > 90 and e["correlation"] > 97


@given(st.floats(0, 0.95))
@settings(max_examples=10)
def test_effective_trials_lie_between_one_and_all(rho):
    rng = np.random.default_rng(0)
    x = math.sqrt(rho) * rng.normal(0, 1, (500, 1)) + math.sqrt(1 - rho) * rng.normal(0, 1, (500, 12))
    for v in trials.effective_trials(x).values():
        assert 1 <= v <= 12 + 1e-9
    assert trials.effective_by_correlation(x) == pytest.approx(rho + (1 - rho) * 12, abs=1)
    assert trials.effective_trials(-3 * x) == pytest.approx(trials.effective_trials(x))


def bars_of(symbol, start, n, mark):
    ts = pd.date_range(start, periods=n, freq="D", tz="UTC").as_unit("ns").asi8
    return SimpleNamespace(ts=ts, symbols=(symbol,), source="made", freq="1d", hash=mark)


def test_deflated_takes_the_count_of_the_ledger(tmp_path, monkeypatch):
    monkeypatch.delenv("TRADEBENCH_TRIALS")
    path = tmp_path / "trials.sqlite"
    for symbol, start, n in (("A", "2020-01-01", 300), ("A", "2010-01-01", 7), ("B", "2020-01-01", 50)):
        bars = bars_of(symbol, start, 400, f"{symbol}{start}")
        ledger.record("sweep", "S", "code", dict(a=n), bars, costs={}, options={}, count=n, path=path)
    index = pd.date_range("2020-02-01", periods=200, freq="D", tz="UTC")
    r = pd.Series(RNG.normal(0.001, 0.01, 200), index)
    d = trials.deflated(r, instruments="A", path=path)
    assert (d.trials, d.counted, d.variance) == (300, "ledger", 1 / 199)
    assert d.dsr == trials.dsr(d.sr, 200, 300, 1 / 199, d.skew, d.kurt) < d.psr == sharpe.probabilistic_sharpe(r)
    assert trials.deflated(r, path=path).trials == 350  # every instrument of those dates
    assert trials.deflated(r, path=path, start=None, end=None).trials == 357  # and of all dates
    assert trials.deflated(r, 12, path=path)[4:] == (12, 1 / 199, 200, d.skew, d.kurt, "given")
    with pytest.raises(DataError, match="knows no trial on instruments C"):
        trials.deflated(r, instruments="C", path=path)
    others = RNG.normal(0, 0.01, (200, 9))
    assert trials.deflated(r, 9, others=others).variance == pytest.approx(
        (others.mean(0) / others.std(0, ddof=1)).var(ddof=1)
    )


def test_bearable_trials_is_where_the_dsr_crosses():
    d = trials.deflated(RNG.normal(0.0015, 0.01, 800), trials=10)
    n = trials.bearable_trials(d)
    assert trials.dsr(d.sr, d.n, n, d.variance, d.skew, d.kurt) == pytest.approx(0.95)
    assert trials.bearable_trials(trials.deflated(NOISE[:, 0] - 0.001, trials=1)) == 0
    assert trials.bearable_trials(d._replace(sr=2.0)) == math.inf


# PBO ---------------------------------------------------------------------------------------------------------------------------------


def definition(x, blocks):
    "CSCV written out: logits by slicing"
    parts, out = np.array_split(x, blocks), []
    ratio = lambda a: a.mean(0) / a.std(0, ddof=1)
    for c in combinations(range(blocks), blocks // 2):
        inside, outside = (
            ratio(np.concatenate([p for k, p in enumerate(parts) if (k in c) == want])) for want in (True, False)
        )
        w = (outside <= outside[inside.argmax()]).sum() / (x.shape[1] + 1)
        out.append(math.log(w / (1 - w)))
    return np.array(out)


@pytest.mark.parametrize("blocks", [2, 4, 8])
def test_pbo_equals_its_definition(blocks):
    x = NOISE + np.linspace(-0.002, 0.002, 30)
    p = pbo(x, blocks, chunk=7)
    assert np.allclose(p.logits, definition(x, blocks)) and len(p.logits) == math.comb(blocks, blocks // 2)
    loop = pbo(x, blocks, metric=lambda a: a.mean(0) / a.std(0, ddof=1))
    assert np.allclose(loop.inside, p.inside) and np.allclose(loop.outside, p.outside) and loop.pbo == p.pbo
    assert np.array_equal(p.winner, loop.winner)


def test_large_means_do_not_lose_the_ratio():
    x = 1e6 + NOISE
    half = np.concatenate(np.array_split(x, 4)[:2])
    assert pbo(x, 4).inside[0] == pytest.approx((half.mean(0) / half.std(0, ddof=1)).max(), rel=1e-4)


def test_cscv_is_symmetric():
    """The halves come in pairs: reversing time turns each half into another one, so the set of logits stays."""
    p, back = pbo(NOISE, 8), pbo(NOISE[::-1], 8)
    assert np.allclose(np.sort(p.logits), np.sort(back.logits)) and p.pbo == back.pbo
    order = np.random.default_rng(0).permutation(8)
    shuffled = np.concatenate([NOISE[k * 50 : (k + 1) * 50] for k in order])
    assert np.allclose(np.sort(pbo(shuffled, 8).logits), np.sort(p.logits))
    count = len(p.inside)
    both = p.winner == p.winner[::-1]  # the same winner in a half and its complement: ratios swap places
    assert np.allclose(p.inside[both], p.outside[::-1][both]) and count == 70


@pytest.mark.parametrize("change", [lambda x: 3 * x, lambda x: x[:, ::-1], lambda x: x * np.linspace(0.5, 4, 30)])
def test_pbo_ignores_scale_and_order_of_columns(change):
    assert np.allclose(pbo(change(NOISE), 8).logits, pbo(NOISE, 8).logits)


def test_pbo_of_noise_is_a_half_on_average():
    values = [pbo(np.random.default_rng(k).normal(0, 1, (64, n)), 8).pbo for k in range(150) for n in (10, 11)]
    assert abs(np.mean(values) - 0.5) < 3 * np.std(values) / len(values) ** 0.5 + 0.01


def test_pbo_of_a_dominating_strategy_is_zero():
    x = NOISE.copy()
    x[:, 7] += 0.01
    p = pbo(x)
    assert p.pbo == 0 and (p.winner == 7).all() and p.loss == 0 and p.first_order and p.second_order


def test_overfitted_strategies_score_above_a_half():
    """Strategies that are good in one half only because they are bad in the other."""
    x = NOISE.copy()
    wave = np.sign(np.sin(np.arange(400) / 400 * 2 * np.pi))[:, None] * np.linspace(-1, 1, 30)
    assert pbo(x + 0.01 * wave, 2).pbo == 1


def test_identical_strategies_tie():
    same = np.repeat(NOISE[:, :1], 9, axis=1)
    p = pbo(same, 8)
    assert p.pbo == 0.5 and (p.logits == 0).all() and not np.isnan(p.slope)
    twice = pbo(np.repeat(NOISE, 2, axis=1), 8)
    assert abs(twice.pbo - pbo(NOISE, 8).pbo) < 0.05


def test_rows_that_fill_no_block_are_dropped_and_counted():
    p = pbo(NOISE[:397], 16)
    assert (p.dropped, p.bars) == (397 % 16, 397 - 397 % 16)
    assert np.array_equal(p.logits, pbo(NOISE[397 % 16 : 397], 16).logits)


def test_a_strategy_that_rests_in_a_half_scores_zero_there():
    x = NOISE[:, :6].copy()
    x[200:, 0] = 0.0
    p = pbo(x, 2)
    assert np.isfinite(p.inside).all() and np.isfinite(p.outside).all()
    assert p.outside[p.winner == 0].tolist() in ([], [0.0])


def test_dominance_counts_every_value():
    p = pbo(NOISE, 8)
    assert p.cdf_all[-1] == p.cdf_best[-1] == 1 and (np.diff(p.cdf_all) >= 0).all()
    assert p.loss == pytest.approx(np.mean(p.outside < 0)) and p.slope == pytest.approx(
        np.polyfit(p.inside, p.outside, 1)[0]
    )


MEMORY = """
import re, time, numpy as np
from tradebench.validation.pbo import pbo

def peak():  # MB; ru_maxrss would be that of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

x = np.random.default_rng(0).normal(0, 0.01, (2520, 1000))
before = peak()
start = time.perf_counter()
p = pbo(x, 16)
print(len(p.logits), time.perf_counter() - start, before, peak())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of memory is read from /proc")
def test_pbo_of_a_thousand_strategies_in_bounded_memory():
    """12,870 halves of 1,000 strategies: below 500 MB for the whole process and 10 s."""
    env = os.environ | dict(OPENBLAS_NUM_THREADS="2", OMP_NUM_THREADS="2")
    out = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=env
    ).stdout.split()
    assert int(out[0]) == 12870 and float(out[1]) < 10 and float(out[3]) < 500, out
    assert float(out[3]) - float(out[2]) < 150, out


# Errors and figures ------------------------------------------------------------------------------------------------------------------


def hurt(row, col, value):
    x = NOISE.copy()
    x[row, col] = value
    return x


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: pbo(hurt(5, 3, np.nan)), "strategy 3 in row 5"),
        (lambda: pbo(hurt(5, 3, np.inf)), "strategy 3 in row 5"),
        (lambda: pbo(hurt(slice(None), 2, 0.0)), "never move, the first is 2"),
        (lambda: pbo(pd.DataFrame(hurt(0, 1, np.nan), columns=[f"s{k}" for k in range(30)])), "strategy s1 in row 0"),
        (lambda: pbo(NOISE[:31]), "31 bars of 30 strategies are too few: at least 32"),
        (lambda: pbo(NOISE[:, :1]), "too few"),
        (lambda: pbo(NOISE[:, 0]), "matrix of returns"),
        (lambda: pbo(NOISE, 7), "even"),
        (lambda: pbo(NOISE, 22), "2 to 20"),
        (lambda: pbo(NOISE, metric="sortino"), "unknown metric"),
        (lambda: pbo(NOISE, 4, metric=lambda a: 1.0), "one number for each"),
        (lambda: sharpe.probabilistic_sharpe([0.01, 0.02, 0.01]), "3 returns are too few"),
        (lambda: sharpe.probabilistic_sharpe([0.01] * 10), "never moves"),
        (lambda: sharpe.probabilistic_sharpe([0.01, np.inf, 0.0, 0.1]), "return 1 is infinite"),
        (lambda: sharpe.probabilistic_sharpe(NOISE), "one series"),
        (lambda: sharpe.psr(0.1, 100, skew=2, kurt=3), "no distribution"),
        (lambda: sharpe.psr(0.1, 1), "too few"),
        (lambda: sharpe.expected_max_sharpe(0.5), "at least 1"),
        (lambda: sharpe.expected_max_sharpe(math.nan), "at least 1"),
        (lambda: sharpe.expected_max_sharpe(5, -1), "negative"),
        (lambda: sharpe.min_backtest_length(5, 0), "positive"),
        (lambda: sharpe.min_track_record(0.1, confidence=1), "confidence"),
        (lambda: sharpe.annual_factor(12, 1.0), "autocorrelation"),
        (lambda: sharpe.annual_factor(12, [-0.9]), "no series"),
        (lambda: sharpe.sharpe_error_hac(NOISE[:, 0], 400), "lags"),
        (lambda: trials.clusters(NOISE, 1.5), "threshold"),
        (lambda: trials.effective_trials(NOISE[:, :1]), "too few"),
        (lambda: multiple.adjust([0.1, 1.2]), "between 0 and 1"),
        (lambda: multiple.adjust([0.1, np.nan]), "between 0 and 1"),
        (lambda: multiple.adjust([]), "at least one"),
        (lambda: multiple.adjust([0.1], "sidak"), "known: bonferroni"),
        (lambda: multiple.adjust([0.1, 0.2], trials=1), "fewer than"),
        (lambda: multiple.haircut(-1, 120, 12, 10), "positive Sharpe"),
        (lambda: multiple.haircut(1, 120, 12, 10, correlation=0.9), "0 to 0.8"),
        (lambda: multiple.spa(hurt(0, 0, np.nan)), "strategy 0 in row 0"),
        (lambda: multiple.spa(NOISE, np.zeros(3)), "400 finite returns"),
    ],
)
def test_errors_say_what_and_where(call, words):
    with pytest.raises(DataError, match=words) as e:
        call()
    assert "\n" not in str(e.value) and e.value.rule


def test_figures_show_the_figures():
    p = pbo(NOISE, 8)
    red = [t for t in pbo_.plot_logits(p).data if t.name == "Below the median"]
    assert sum(sum(t.y) for t in pbo_.plot_logits(p).data) == 70 and sum(red[0].y) == (p.logits < 0).sum()
    assert f"{p.slope:.2f}".replace("-", "−") in pbo_.plot_degradation(p).layout.title.text
    assert len(pbo_.plot_dominance(p).data) == 2
    d = trials.deflated(NOISE[:, 0] + 0.001, trials=50)
    fig = trials.plot_deflated(d, marks=dict(clusters=4))
    assert list(fig.data[1].text) == ["counted", "clusters"] and fig.data[1].y[0] == pytest.approx(d.dsr, abs=1e-4)
    r = pd.Series(NOISE[:, 0] + 0.001, pd.date_range("2020-01-01", periods=400, freq="D", tz="UTC"))
    for x in (r, r.to_numpy()):
        line = sharpe.plot_track(x).data[0]
        assert line.y[-1] == pytest.approx(sharpe.probabilistic_sharpe(r), abs=1e-4)
        assert line.y[0] == pytest.approx(sharpe.probabilistic_sharpe(r[:20]), abs=1e-4)
    table = multiple.study(NOISE, "bh")
    assert len(multiple.plot_pvalues(table.p, trials=100).data) == 5
    pbo_.plot_logits(pbo(np.repeat(NOISE[:, :1], 3, axis=1), 4))  # all in one bar


def test_study_finds_what_is_there_and_names_it():
    x = pd.DataFrame(NOISE, columns=[f"s{k}" for k in range(30)])
    x["s9"] += 0.005
    t = multiple.study(x)
    assert list(t.index[t.discovery]) == ["s9"] and t.p["s9"] == pytest.approx(
        stats.ttest_1samp(x["s9"], 0, alternative="greater").pvalue
    )
    two = multiple.study(x, two_sided=True)
    assert two.p["s9"] == pytest.approx(2 * t.p["s9"]) and multiple.study(x, trials=10**12).discovery.sum() <= 1
