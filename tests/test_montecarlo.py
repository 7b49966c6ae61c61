"""Other histories: what stays when returns, trades and prices are drawn anew, and what stress does."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tradebench.backtest.costs import Costs
from tradebench.backtest.simulation import backtest, simulation
from tradebench.data.bars import prepare
from tradebench.data.sources import load
from tradebench.errors import EngineError
from tradebench.validation.targets import recorded
from tradebench.strategies.scalping import Scalping
from tradebench.strategies.sma_cross import SmaCross
from tradebench.validation.bootstrap import block_length, bootstrap, figures, shuffled
from tradebench.validation.montecarlo import montecarlo
from tradebench.validation.permutation import orders, permutation_test, permuted
from tradebench.validation.stress import delayed, neighbourhood, neighbours, stress


@pytest.fixture(scope="module")
def days():
    return prepare(load("AAPL", start="2000", end="2006"))


@pytest.fixture(scope="module")
def minutes():
    return prepare(load("sim:minutes,seed=5,sessions=12"))


returns = st.lists(st.floats(-0.2, 0.2), min_size=10, max_size=60).map(np.array)


@given(returns)
@settings(max_examples=150)
def test_figures_are_those_of_the_slow_way(r):
    growth, sharpe, drawdown, lowest, equity = figures(r, 252)
    e = peak = low = 1.0
    worst = 0.0
    for x in r:
        e *= 1 + x
        peak, low = max(peak, e), min(low, e)
        worst = min(worst, e / peak - 1)
    assert growth == pytest.approx(e) and drawdown == pytest.approx(worst, abs=1e-12) and lowest == pytest.approx(low)
    assert equity[-1] == growth
    assert np.isnan(sharpe) or sharpe == pytest.approx(r.mean() / r.std(ddof=1) * 252**0.5)


def test_nothing_comes_back_after_ruin():
    growth, _, drawdown, lowest, equity = figures(np.array([0.1, -1.0, 5.0]), 252)
    assert (growth, drawdown, lowest) == (0.0, -1.0, 0.0) and equity.tolist() == [1.1, 0.0, 0.0]


@given(returns, st.integers(1, 30), st.sampled_from(["stationary", "block"]), st.integers(0, 3))
@settings(max_examples=60)
def test_histories_are_made_of_what_was(r, paths, kind, seed):
    a = bootstrap(r, paths, periods_per_year=252, kind=kind, block=3.0, seed=seed)
    b = bootstrap(r, paths, periods_per_year=252, kind=kind, block=3.0, seed=seed)
    assert np.array_equal(a.growth, b.growth) and len(a) == paths
    assert (a.growth <= (1 + r.max()) ** len(r) + 1e-9).all() and (a.growth >= (1 + r.min()) ** len(r) - 1e-9).all()
    assert a.ruin(0.0) == (a.lowest <= 0).mean() and a.levels[:, -1] == pytest.approx(a.growth)


def test_block_of_the_whole_series_is_a_rotation():
    r = np.random.default_rng(0).normal(0, 0.01, 50)
    p = bootstrap(r, 40, periods_per_year=252, kind="block", block=50)
    assert p.growth == pytest.approx(np.full(40, p.actual["growth"])) and p.sharpe == pytest.approx(
        np.full(40, p.actual["sharpe"])
    )


def test_dependence_makes_longer_blocks():
    rng, x = np.random.default_rng(1), np.zeros(3000)
    noise = rng.normal(0, 0.01, 3000)
    for t in range(1, 3000):
        x[t] = 0.8 * x[t - 1] + noise[t]
    assert block_length(x) > 5 * block_length(noise) and block_length(np.full(100, 0.01)) == 1.0


def test_bands_hold_what_they_say():
    "The 90 % band of the mean of independent returns covers the true growth about nine times in ten"
    rng, inside = np.random.default_rng(2), 0
    for _ in range(100):
        r = rng.normal(0.0005, 0.01, 250)
        p = bootstrap(r, 200, periods_per_year=252, block=1.0, seed=int(rng.integers(1 << 30)))
        low, high = np.quantile(np.log(p.growth), [0.05, 0.95])
        inside += low <= 250 * (0.0005 - 0.01**2 / 2) <= high
    assert 80 <= inside <= 98, inside


def test_shuffled_trades_end_where_they_ended():
    r = np.random.default_rng(3).normal(0.01, 0.05, 40)
    p = shuffled(r, 100, trades_per_year=20)
    assert p.growth == pytest.approx(np.full(100, np.prod(1 + r))) and p.drawdown.std() > 0


@pytest.mark.parametrize("bad", [np.ones(5), np.array([0.1] * 20 + [np.nan]), np.ones((10, 2))])
def test_series_that_give_no_histories(bad):
    with pytest.raises(EngineError, match="at least 10 returns"):
        bootstrap(bad, 10, periods_per_year=252)


# -- permuted prices


@given(seed=st.integers(0, 10**6), keep=st.integers(1, 200))
@settings(max_examples=30)
def test_permuted_days_keep_gaps_and_shapes(days, seed, keep):
    other = permuted(days, seed, keep)
    a, b = np.log(days.seen[:, 0, :4]), np.log(other.seen[:, 0, :4])
    assert np.allclose(a[:keep], b[:keep], atol=1e-9)
    assert np.allclose(
        np.sort(a[keep:, 0] - a[keep - 1 : -1, 3]), np.sort(b[keep:, 0] - b[keep - 1 : -1, 3]), atol=1e-9
    )
    assert np.allclose(np.sort(a[keep:, 3] - a[keep:, 0]), np.sort(b[keep:, 3] - b[keep:, 0]), atol=1e-9)
    assert b[-1, 3] == pytest.approx(a[-1, 3]), "the drift over the span stays"
    r = other.raw[:, 0]
    assert (
        (r[:, 1] >= r[:, :4].max(1)).all() and (r[:, 2] <= r[:, :4].min(1)).all() and np.array_equal(other.ts, days.ts)
    )


def test_permuted_minutes_keep_their_hours(minutes):
    gaps, shapes = orders(minutes, np.random.default_rng(0))
    assert np.array_equal(gaps, shapes) and np.array_equal(minutes.clock[gaps, 1], minutes.clock[:, 1])
    assert np.array_equal(np.sort(gaps), np.arange(len(minutes))) and not np.array_equal(gaps, np.arange(len(minutes)))
    first = minutes.clock[:, 0] == minutes.clock[0, 0]
    assert np.array_equal(gaps[first], np.flatnonzero(first)), "the first session stays"


def test_symbols_move_together():
    both = prepare(load(["AAPL", "IBM"], start="2000", end="2003"))
    other = permuted(both, 4)
    rows, _ = orders(both, np.random.default_rng(4))
    gap = lambda x: np.log(x.seen[1:, :, 0] / x.seen[:-1, :, 3])  # noqa: E731
    assert np.allclose(gap(other), gap(both)[rows[1:] - 1], atol=1e-9)


def test_noise_is_not_found_significant_more_often_than_by_chance():
    "p-values of a strategy on random walks are spread evenly, as they must be"
    import pandas as pd

    values = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, 400)))
        opened = np.append(100.0, close[:-1])
        frame = pd.DataFrame(
            dict(open=opened, high=np.maximum(opened, close), low=np.minimum(opened, close), close=close, volume=1e6)
        )
        frame.index = pd.date_range("2015-01-01", periods=400, freq="D", tz="UTC")
        values.append(permutation_test(SmaCross(fast=2, slow=6), frame, 19, costs=Costs(), seed=seed).p)
    assert 0.35 < np.mean(values) < 0.65 and np.mean(np.array(values) <= 0.1) <= 0.25, values


def test_what_cannot_be_permuted_is_said(days):
    frame = days.frame().assign(signal=1.0)
    frame.attrs = days.frame().attrs
    with pytest.raises(EngineError, match="further columns"):
        permuted(prepare(frame))
    with pytest.raises(EngineError, match="did you mean sharpe"):
        permutation_test(SmaCross(), days, 3, metric="sharp")
    with pytest.raises(EngineError, match="keep"):
        permuted(days, keep=10**6)


# -- stress


@pytest.mark.parametrize("strategy, data", [(SmaCross(fast=5, slow=20), "days"), (Scalping(), "minutes")])
def test_delay_moves_the_first_order_by_a_bar(request, strategy, data):
    bars = request.getfixturevalue(data)
    plain = simulation(strategy, bars)
    plain.advance()
    late = delayed(strategy, bars, 1)
    a, b = plain.orders[: plain.account["n_orders"]], late.orders[: late.account["n_orders"]]
    assert len(b) and a["t"][0] + 1 == b["t"][0]


def test_decisions_given_to_the_engine_are_those_of_the_strategy(days):
    strategy = SmaCross(fast=5, slow=20)
    _, decisions = recorded(strategy, days)
    plain, again = simulation(strategy, days), simulation(bars=days, target=decisions[:, :, 0])
    plain.advance(), again.advance()
    assert np.array_equal(plain.equity, again.equity)


def test_scenarios_change_what_they_say(days):
    s = stress(SmaCross(fast=5, slow=20), days)
    assert list(s.index) == ["as assumed", "costs x 2", "one bar later", "worse fills", "all of these"]
    own = backtest(SmaCross(fast=5, slow=20), days)
    assert s.loc["as assumed", "total_return"] == pytest.approx(own.metrics["total_return"])
    assert s.loc["costs x 2", "total_return"] < s.loc["as assumed", "total_return"]
    assert s.loc["worse fills", "costs"] > s.loc["as assumed", "costs"] * 2


def test_neighbours_are_allowed_near_and_others(days):
    strategy = SmaCross(fast=20, slow=22)
    found = neighbours(strategy, count=40)
    assert all(v["fast"] < v["slow"] and v != strategy.values for _, v in found) and len(
        {tuple(v.values()) for _, v in found}
    ) == len(found)
    assert all(abs(v[k] - strategy.values[k]) <= 3 for _, v in found for k in v)
    n = neighbourhood(strategy, days)
    row = n.frame.iloc[0]
    own = backtest(SmaCross(fast=int(row["fast"]), slow=int(row["slow"])), days)
    assert row["sharpe"] == pytest.approx(own.metrics["sharpe"]) and 0 <= n.profitable <= 1


# -- all of it


def test_whole_study_repeats_and_shows_itself(minutes):
    how = dict(paths=50, permutations=5, markets=2)
    a, b = (montecarlo(Scalping(), minutes, seed=3, **how) for _ in range(2))
    assert repr(a) == repr(b) and a.figures.keys() == b.figures.keys()
    assert a.plot().data and a.plot_drawdowns().data and a.plot_permutation().data and "<table" in a._repr_html_()


def test_too_little_of_something_is_a_warning_and_no_failure(days):
    m = montecarlo(SmaCross(fast=50, slow=200), days, paths=20, permutations=0, markets=0)
    assert m.trades is None and "too few to shuffle" in m.warnings[0] and m.permutation is None and m.simulated.empty
    with pytest.raises(EngineError, match="ruin"):
        montecarlo(SmaCross(), days, ruin=1.5)
