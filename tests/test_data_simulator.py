"""The simulator: seeded, extendable, labelled, and like a market where it claims to be."""

import numpy as np
import pandas as pd
import pytest

from tradebench.data.bars import prepare
from tradebench.data.quality import FAULTS, examine
from tradebench.data.simulator import NEXT, REGIMES, simulate, simulate_trades, u_shape
from tradebench.errors import DataError


@pytest.mark.parametrize("calendar", ["XNYS", "24/7", "24/5"])
@pytest.mark.parametrize("freq", ["5min", "1h", "session"])
def test_simulated_bars_are_valid_and_the_grid_is_full(calendar, freq):
    f, regime = simulate(sessions=8, seed=3, freq=freq, calendar=calendar)
    b = prepare(f)
    assert len(b) == len(regime) and set(regime) <= set(REGIMES) and b.calendar == calendar
    _, report = examine(f, calendar=calendar)
    assert not report.issues["rule"].isin([*FAULTS, "gap"]).any()
    assert (b.clock[b.session_ends(), 2] == 0).all() and len(b.session_ends()) == 8


def test_more_sessions_extend_the_series():
    short, r1 = simulate(sessions=10, seed=11, freq="15min")
    long, r2 = simulate(sessions=30, seed=11, freq="15min")
    assert long.iloc[: len(short)].equals(short) and r2.iloc[: len(short)].equals(r1)


def test_seeds_differ_and_repeat():
    a, b, c = (simulate(sessions=2, seed=s)[0] for s in (1, 1, 2))
    assert a.equals(b) and not a["close"].equals(c["close"])
    assert a.attrs["tradebench"]["label"] == "simulated (seed 1)"


def test_half_days_have_half_the_bars():
    f, _ = simulate(sessions=3, seed=0, start="2012-11-21")
    assert np.bincount(prepare(f).clock[:, 0]).tolist() == [390, 210, 390]


def test_regimes_have_their_volatility_and_last_their_time():
    f, regime = simulate(sessions=5000, seed=5, freq="session", start="1995-01-03")
    r = np.log(f["close"]).diff()
    for name, (_, vol, _, _, length) in REGIMES.items():
        mine = r[(regime == name) & (regime.shift() == name)]
        assert 0.85 * vol < mine.std() * np.sqrt(252) < 1.7 * vol
        spells = (regime == name) & (regime.shift() != name)
        assert 0.6 * length < (regime == name).sum() / spells.sum() < 1.5 * length


def test_regime_transitions_are_probabilities():
    assert NEXT.sum(axis=1) == pytest.approx(1) and (np.diag(NEXT) == 0).all() and NEXT.shape == (len(REGIMES),) * 2


@pytest.mark.parametrize("n", [1, 2, 7, 78, 390])
def test_u_shape_has_mean_square_one(n):
    assert (u_shape(n) ** 2).mean() == pytest.approx(1)


def test_prices_are_on_the_tick():
    f, _ = simulate(sessions=1, seed=0, tick=0.25)
    assert ((f[["open", "high", "low", "close"]] / 0.25) % 1 == 0).all(axis=None)


def test_trades_lie_inside_their_bars():
    f, _ = simulate(sessions=1, seed=0)
    t = simulate_trades(f, seed=0)
    minute = t.index.floor("min") + pd.Timedelta("1min")
    assert (t["price"].to_numpy() <= f["high"].loc[minute].to_numpy() + 0.006).all() and t.index.is_monotonic_increasing
    with pytest.raises(DataError):
        simulate_trades(f.iloc[:1], per_bar=0)


@pytest.mark.parametrize("n", [0, -3, 10**6])
def test_a_silly_number_of_sessions_is_refused(n):
    with pytest.raises(DataError, match="must be from 1"):
        simulate(sessions=n)
